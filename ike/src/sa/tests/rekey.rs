//! Tests a rekey of the IKE SA by the peer.

use super::*;
use crate::crypto::InitiatorKeyExchange;
use crate::event::DownReason;
use crate::negotiate;
use crate::wire::Payload;

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
