//! Tests rekeys of the IKE SA by either end.

use super::*;
use crate::crypto::InitiatorKeyExchange;
use crate::event::DownReason;
use crate::negotiate;
use crate::sa::QueuedRequest;
use crate::wire::{Notify, NotifyType, Payload};

#[test]
fn a_rekey_of_the_ike_sa_does_not_put_off_the_peers_next_authentication() {
    let mut peer = Established::new();
    let begun = peer.now;
    let hours = |hours: u32| begun + Duration::from_secs(3600) * hours;
    // The peer's authentication is valid for 24 hours. The responder renews it after 30 hours, and
    // the IKE SA ends after 36 hours. The peer rekeys the IKE SA after 2 hours.
    peer.now = hours(2);
    let offers = negotiate::offer_ike(&profile().config.ike_proposals, &7_u64.to_be_bytes());
    let share = InitiatorKeyExchange::start(SUITE.group, &mut Host).unwrap().payload();
    let payloads = Payloads::from(vec![
        Payload::SecurityAssociation(offers),
        Payload::Nonce(vec![9; 32]),
        Payload::KeyExchange(share),
    ]);
    let SaStep::Rekeyed { new, .. } = peer.request(ExchangeType::CreateChildSa, &payloads) else {
        panic!("it is not rekeyed");
    };
    assert_eq!(new.reauthenticate_at(), hours(30));
    // The keys are valid for 4 hours from the rekey, and we rekey them 5 hours after it.
    assert_eq!(new.rekey_at(), Some(hours(7)));
    peer.sa = new;
    // Later rekeys by the peer are simulated by a change of the lifetime.
    peer.sa.lifetime = peer.sa.lifetime.rekeyed(&profile(), hours(36));
    peer.sa.rekey_at = None;
    peer.now = hours(30);
    assert!(matches!(peer.step(|sa, child_sas, cx| sa.handle_timeout(child_sas, cx)), SaStep::Reauthenticate));
    peer.now = hours(36);
    let step = peer.step(|sa, child_sas, cx| sa.handle_timeout(child_sas, cx));
    assert!(matches!(step, SaStep::End(DownReason::Expired, _)), "{step:?}");
}

#[test]
fn a_rekey_that_is_queued_while_one_is_outstanding_is_not_sent_after_any_refusal() {
    //= RFC 7296 2.25 MUST NOT 2: no repetition at once
    for refusal in [NotifyType::TemporaryFailure, NotifyType::NoAdditionalSas] {
        let mut peer = Established::new();
        let payloads = Payloads::from(vec![Payload::Notify(Notify::new(refusal))]);
        // The peer goes on refusing until we have had enough of it.
        let replaced = (0..20).any(|id| {
            for _ in 0..2 {
                peer.step(|sa, child_sas, cx| sa.begin(QueuedRequest::RekeyIke, child_sas, cx));
            }
            assert_eq!(peer.sent().len(), 1, "{refusal}: one request is outstanding");
            let step = peer.respond(ExchangeType::CreateChildSa, id, &payloads);
            assert_eq!(peer.sent(), [], "{refusal} of request {id}");
            matches!(step, SaStep::Reauthenticate)
        });
        assert!(replaced, "{refusal}: a new IKE SA replaces this one in the end");
    }
}
