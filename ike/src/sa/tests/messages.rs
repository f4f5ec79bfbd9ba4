//! Tests messages that are authentic but invalid.

use super::*;
use crate::event::DownReason;
use crate::sa::QueuedRequest;
use crate::sa::ike_sa::CloseReason;
use crate::wire::{Notify, NotifyType, Payload, PayloadType};

/// Returns a vendor ID that does not fit into one small fragment.
fn large() -> Payloads {
    Payloads::from(vec![Payload::VendorId(vec![7; 900])])
}

#[test]
fn a_request_of_an_unknown_exchange_is_answered_and_the_next_one_too() {
    //= RFC 7296 2.21.3 MUST 1: errors are answered
    //= RFC 7296 3.10.1 MUST 4: INVALID_SYNTAX is for the rest
    let mut peer = Established::new();
    let unknown = ExchangeType::from(200);
    assert!(matches!(peer.request(unknown, &Payloads::new()), SaStep::Continue));
    let (header, payloads) = peer.sent().remove(0);
    assert_eq!((header.exchange, header.response, header.message_id), (unknown, true, 0));
    assert!(payloads.notify(NotifyType::InvalidSyntax).is_some());
    assert!(matches!(peer.request(ExchangeType::Informational, &Payloads::new()), SaStep::Continue));
    assert_eq!(peer.sent().len(), 1);
}

#[test]
fn an_answer_that_cannot_be_read_ends_the_ike_sa_and_the_peer_is_told() {
    //= RFC 7296 2.21 REQUIRED 1: no error about a response
    //= RFC 7296 2.21.3 SHOULD NOT 2: no INFORMATIONAL about a response
    let malformed = Payloads::from(vec![Payload::Nonce(vec![1; 3])]);
    for (exchange, payloads) in
        [(ExchangeType::Informational, malformed), (ExchangeType::CreateChildSa, Payloads::new())]
    {
        let mut peer = Established::new();
        peer.step(|sa, child_sas, cx| sa.begin(QueuedRequest::Liveness, child_sas, cx));
        let step = peer.respond(exchange, 0, &payloads);
        assert!(matches!(step, SaStep::End(DownReason::Failed, _)), "{step:?}");
    }
}

#[test]
fn a_request_that_comes_again_in_smaller_fragments_is_answered_again_once() {
    //= RFC 7296 2.1 MUST 2: a repeated request does nothing else
    let mut peer = Established::new();
    assert!(matches!(peer.request(ExchangeType::Informational, &large()), SaStep::Continue));
    let first = peer.sent();
    let fragments = peer.seal(ExchangeType::Informational, 0, &large(), Some(300));
    assert!(fragments.len() > 2);
    for fragment in &fragments {
        assert!(matches!(peer.arrive(fragment), SaStep::Continue));
    }
    assert_eq!(peer.sent(), first);
    // A retransmission that is identical to the request is still answered.
    let mut again = Established::new();
    let datagram = again.seal(ExchangeType::Informational, 0, &large(), None).remove(0);
    again.arrive(&datagram);
    again.arrive(&datagram);
    assert_eq!(again.sent().len(), 2);
}

#[test]
fn impossible_fragment_numbers_are_dropped() {
    let mut peer = Established::new();
    let header = peer.header(ExchangeType::Informational, false, 0);
    for (number, total) in [(0, 0), (0, 3), (4, 3)] {
        let fragment = peer.cipher.seal_fragment(&header, PayloadType::VendorId, number, total, &[1; 40]).unwrap();
        let step = peer.arrive(&fragment);
        assert!(matches!(step, SaStep::Continue), "{number} of {total}: {step:?}");
        assert!(peer.sent().is_empty());
    }
    assert!(matches!(peer.request(ExchangeType::Informational, &Payloads::new()), SaStep::Continue));
    assert_eq!(peer.sent().len(), 1);
}

#[test]
fn fragments_whose_rest_never_comes_are_forgotten() {
    let mut peer = Established::new();
    let fragments = peer.seal(ExchangeType::Informational, 0, &large(), Some(300));
    peer.arrive(&fragments[0]);
    assert!(peer.sa.channel.fragment_octets() > 0);
    for _ in 0..40 {
        peer.now = peer.now + Duration::from_secs(1);
        peer.step(|sa, child_sas, cx| sa.handle_timeout(child_sas, cx));
        let sent = peer.sent();
        for (header, _) in sent.iter().filter(|(header, _)| !header.response) {
            peer.respond(ExchangeType::Informational, header.message_id, &Payloads::new());
        }
    }
    assert_eq!(peer.sa.channel.fragment_octets(), 0);
    for fragment in &fragments {
        peer.arrive(fragment);
    }
    assert_eq!(peer.sent().len(), 1, "the whole is answered when it comes after all");
}

#[test]
fn copies_of_a_request_are_answered_as_often_as_an_honest_peer_sends_it_again() {
    //= RFC 7296 2.1 MUST 5: a forgotten response is not made again
    let mut peer = Established::new();
    let datagram = peer.seal(ExchangeType::Informational, 0, &large(), None).remove(0);
    for _ in 0..1000 {
        peer.arrive(&datagram);
    }
    let answers = peer.sent().len();
    assert!((12..=20).contains(&answers), "{answers} answers");
    peer.next_request = 1;
    assert!(matches!(peer.request(ExchangeType::Informational, &Payloads::new()), SaStep::Continue));
    assert_eq!(peer.sent().len(), 1, "the next request is answered");
}

#[test]
fn an_initiator_that_cannot_take_our_answer_ends_the_ike_sa() {
    //= RFC 7296 2.21.2 REQUIRED 6: three notifications end the IKE SA
    for kind in [NotifyType::AuthenticationFailed, NotifyType::InvalidSyntax, NotifyType::UnsupportedCriticalPayload] {
        let mut peer = Established::new();
        let step = peer.request(ExchangeType::Informational, &vec![Payload::Notify(Notify::new(kind))].into());
        assert!(matches!(step, SaStep::Closed(CloseReason::Failed(_))), "{kind}: {step:?}");
        assert!(peer.sent()[0].1.is_empty(), "it is answered");
    }
}

#[test]
fn a_malformed_request_ends_the_ike_sa() {
    //= RFC 7296 2.21.3 REQUIRED 3: INVALID_SYNTAX is the end
    let mut peer = Established::new();
    let step = peer.request(ExchangeType::Informational, &vec![Payload::Nonce(vec![1; 3])].into());
    assert!(matches!(step, SaStep::Closed(CloseReason::Failed(_))), "{step:?}");
    let (header, payloads) = peer.sent().remove(0);
    assert!(header.response && payloads.notify(NotifyType::InvalidSyntax).is_some());
}

#[test]
fn an_ike_sa_ends_before_its_message_ids_are_used_up() {
    //= RFC 7296 2.2 MUST 2: message IDs end with the IKE SA
    let mut peer = Established::new();
    let first = u32::MAX - 2000;
    peer.sa.channel.skip_to_message_id(first);
    peer.next_request = first;
    let steps = std::iter::from_fn(|| Some(peer.request(ExchangeType::Informational, &Payloads::new())));
    let ended = steps.take(1500).position(|step| matches!(step, SaStep::End(DownReason::Expired, _)));
    assert!(ended.is_some_and(|ended| ended > 0), "{ended:?}");
}

#[test]
fn a_response_is_repeated_sixteen_times_in_a_burst_and_then_once_a_second() {
    //= RFC 7296 2.1 MUST 4: the response is kept
    let mut test = Established::new();
    let request = test.seal(ExchangeType::Informational, 0, &Payloads::new(), None).remove(0);
    test.arrive(&request);
    assert_eq!(test.sent().len(), 1);
    for (after, repeated) in [(0, 16), (3, 3), (0, 0), (3600, 16)] {
        test.now = test.now + Duration::from_secs(after);
        for _ in 0..100 {
            test.arrive(&request);
        }
        assert_eq!(test.sent().len(), repeated, "after {after} s");
    }
}
