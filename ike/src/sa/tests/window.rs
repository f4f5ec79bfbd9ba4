//! Tests the limits of the window for the peer's requests (RFC 7296 2.3).

use super::mobike::mobile;
use super::*;
use crate::crypto::InitiatorKeyExchange;
use crate::negotiate;
use crate::sa::receive_window::{MAX_HELD, MAX_HELD_OCTETS, OLDER_RESPONSE_KEPT, WINDOW};
use crate::wire::{Notify, NotifyType, Payload};

const INFORMATIONAL: ExchangeType = ExchangeType::Informational;

fn with_window() -> Established {
    open_window(Established::new())
}

fn open_window(mut peer: Established) -> Established {
    peer.sa.channel.profile = Some(Arc::clone(&peer.sa.profile));
    peer.sa.channel.open_window();
    peer
}

/// Returns a vendor ID of this size.
fn of_size(octets: usize) -> Payloads {
    Payloads::from(vec![Payload::VendorId(vec![7; octets])])
}

/// Delivers a datagram, and then those that it lets follow, as the endpoint does.
fn arrive(peer: &mut Established, datagram: &[u8]) {
    assert!(matches!(peer.arrive(datagram), SaStep::Continue));
    while let Some(held) = peer.sa.take_held() {
        assert!(matches!(peer.arrive(&held.datagram), SaStep::Continue));
    }
}

#[test]
fn fragments_of_several_requests_may_come_mixed_and_backwards() {
    let mut peer = with_window();
    let mut datagrams = Vec::new();
    for id in (0..u32::from(WINDOW)).rev() {
        let fragments = peer.seal(INFORMATIONAL, id, &of_size(900), Some(300));
        assert!(fragments.len() > 2);
        datagrams.extend(fragments.into_iter().rev().enumerate());
    }
    // The last fragments of all requests first, those of the last request first.
    datagrams.sort_by_key(|(index, _)| *index);
    for (_, datagram) in &datagrams {
        arrive(&mut peer, datagram);
    }
    let ids: Vec<u32> = peer.sent().iter().map(|(header, _)| header.message_id).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
    assert_eq!(peer.sa.channel.window_octets().0, 0);
    // The first fragment of any of them counts as its retransmission.
    let again = peer.seal(INFORMATIONAL, 1, &of_size(900), Some(200)).remove(0);
    arrive(&mut peer, &again);
    assert_eq!(peer.sent().len(), 1);
}

#[test]
fn what_waits_for_an_earlier_request_has_a_limit_in_number_and_in_octets() {
    for octets in [1, 1000] {
        let mut peer = with_window();
        for _ in 0..200 {
            let datagram = peer.seal(INFORMATIONAL, 1, &of_size(octets), None).remove(0);
            arrive(&mut peer, &datagram);
        }
        let held = peer.sa.channel.window_octets().0;
        assert!(held > 0 && held <= MAX_HELD_OCTETS, "{held}");
        assert!(peer.sent().is_empty());
        assert!(std::iter::from_fn(|| peer.sa.channel.take_any_held()).count() <= MAX_HELD);
        // What was dropped is taken when it comes again.
        for id in [0, 1] {
            let datagram = peer.seal(INFORMATIONAL, id, &of_size(1), None).remove(0);
            arrive(&mut peer, &datagram);
        }
        assert_eq!(peer.sent().len(), 2);
    }
}

#[test]
fn what_waits_in_vain_and_old_responses_are_forgotten() {
    let mut peer = with_window();
    for id in [0, 1, 2, 4] {
        let datagram = peer.seal(INFORMATIONAL, id, &of_size(1), None).remove(0);
        arrive(&mut peer, &datagram);
    }
    let (held, older) = peer.sa.channel.window_octets();
    assert!(held > 0 && older > 0, "{held}, {older}");
    peer.sa.channel.forget_stale_fragments(peer.now + Duration::from_secs(31));
    assert_eq!(peer.sa.channel.window_octets(), (0, older));
    peer.sa.channel.forget_stale_fragments(peer.now + OLDER_RESPONSE_KEPT);
    assert_eq!(peer.sa.channel.window_octets(), (0, 0));
    assert!(peer.sa.channel.received.is_none(), "and their memory is free");
}

/// Delivers a datagram between these addresses, and then those that it lets follow.
fn arrive_from(peer: &mut Established, datagram: &[u8], remote: SocketAddr) -> SaStep {
    let deliver = |peer: &mut Established, datagram: &[u8], local, remote| {
        let header = Header::decode(datagram).unwrap();
        peer.step(|sa, child_sas, cx| sa.handle(&header, datagram, local, remote, child_sas, cx))
    };
    let mut step = deliver(peer, datagram, local(), remote);
    while let Some(held) = matches!(step, SaStep::Continue).then(|| peer.sa.take_held()).flatten() {
        step = deliver(peer, &held.datagram, held.local, held.remote);
    }
    step
}

/// Returns where the datagrams went that were sent since the last call, and what is in them.
fn sent_to(peer: &mut Established) -> Vec<(SocketAddr, Header, Payloads)> {
    let remotes: Vec<SocketAddr> = peer.out.transmits.iter().map(|transmit| transmit.remote).collect();
    remotes.into_iter().zip(peer.sent()).map(|(remote, (header, payloads))| (remote, header, payloads)).collect()
}

#[test]
fn a_request_that_waits_is_answered_where_it_came_from_last() {
    //= RFC 7296 2.11 MUST 2: the response goes back
    let mut peer = with_window();
    let [before, after] = ["192.0.2.2:4500", "192.0.2.2:61000"].map(|text| text.parse().unwrap());
    let [first, second] = [0, 1].map(|id| peer.seal(INFORMATIONAL, id, &of_size(1), None).remove(0));
    // The first transmission of the first request is lost. Then a NAT maps to another port.
    arrive_from(&mut peer, &second, before);
    arrive_from(&mut peer, &second, after);
    arrive_from(&mut peer, &first, after);
    let answers: Vec<_> = sent_to(&mut peer).iter().map(|(remote, header, _)| (*remote, header.message_id)).collect();
    assert_eq!(answers, [(after, 0), (after, 1)]);
}

/// Makes the peer's rekey of the IKE SA, of more than one fragment.
fn rekey() -> Payloads {
    let offers = negotiate::offer_ike(&profile().config.ike_proposals, &7_u64.to_be_bytes());
    let share = InitiatorKeyExchange::start(SUITE.group, &mut Host).unwrap().payload();
    Payloads::from(vec![
        Payload::SecurityAssociation(offers),
        Payload::Nonce(vec![9; 32]),
        Payload::KeyExchange(share),
        Payload::VendorId(vec![7; 900]),
    ])
}

#[test]
fn an_address_update_and_a_rekey_of_the_ike_sa_in_mixed_fragments_are_carried_out_in_order() {
    //= RFC 7296 2.3 REQUIRED 12: requests out of order
    let mut peer = open_window(mobile(Initiation::ByPeer(Instant::default())));
    let elsewhere = "192.0.2.3:500".parse().unwrap();
    let update = Payload::Notify(Notify::new(NotifyType::UpdateSaAddresses));
    let update = Payloads::from(vec![update, Payload::VendorId(vec![7; 900])]);
    let (rekey_ike, create) = (rekey(), ExchangeType::CreateChildSa);
    let requests = [(INFORMATIONAL, &of_size(900)), (INFORMATIONAL, &update), (create, &rekey_ike)];
    let mut datagrams = Vec::new();
    for (id, (exchange, payloads)) in (0..3_u32).zip(requests).rev() {
        let fragments = peer.seal(exchange, id, payloads, Some(300));
        assert!(fragments.len() > 2);
        datagrams.extend(fragments.into_iter().rev().enumerate().map(|(index, datagram)| (index, id, datagram)));
    }
    // The last fragments of all requests first. The peer has moved after the first request.
    datagrams.sort_by_key(|(index, ..)| *index);
    for (_, id, datagram) in &datagrams {
        let from = if *id == 0 { remote() } else { elsewhere };
        assert!(matches!(arrive_from(&mut peer, datagram, from), SaStep::Continue));
    }
    let sent = sent_to(&mut peer);
    let brief: Vec<_> = sent.iter().map(|(to, header, _)| (*to, header.response, header.message_id)).collect();
    let check = (elsewhere, false, 0);
    assert_eq!(brief, [(remote(), true, 0), check, (elsewhere, true, 1), (elsewhere, true, 2)], "{sent:?}");
    // While the new address is checked, the IKE SA is not rekeyed.
    assert_eq!(sent[3].2.error().map(|notify| notify.kind), Some(NotifyType::TemporaryFailure));
    let cookie = Payloads::from(vec![Payload::Notify(sent[1].2.notify(NotifyType::Cookie2).unwrap().clone())]);
    let header = peer.header(INFORMATIONAL, true, 0);
    let response = peer.cipher.seal(&header, &cookie, None).unwrap().remove(0);
    assert!(matches!(arrive_from(&mut peer, &response, elsewhere), SaStep::Continue));
    assert_eq!(peer.sa.channel.path.remote, elsewhere);
    // The rekey comes again, and behind it the deletion of the IKE SA.
    let deletion = Payloads::from(vec![Payload::Delete(crate::wire::Delete::Ike), Payload::VendorId(vec![7; 900])]);
    let mut again: Vec<Vec<u8>> = peer.seal(INFORMATIONAL, 4, &deletion, Some(300));
    again.extend(peer.seal(create, 3, &rekey_ike, Some(300)));
    let last = again.remove(again.len() - 1);
    for datagram in &again {
        assert!(matches!(arrive_from(&mut peer, datagram, elsewhere), SaStep::Continue));
    }
    assert!(matches!(arrive_from(&mut peer, &last, elsewhere), SaStep::Rekeyed { .. }));
    assert!(peer.sa.take_held().is_some(), "the deletion follows");
}
