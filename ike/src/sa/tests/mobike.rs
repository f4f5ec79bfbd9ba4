//! Tests what an IKE SA with MOBIKE (RFC 4555) tells the peer about its addresses.

use super::*;
use crate::sa::ike_sa::{CloseReason, Lifecycle};
use crate::sa::mobike::{self, Mobike};
use crate::sa::path::Following;
use crate::sa::{QueuedRequest, Survivor};
use crate::wire::{Notify, NotifyType, Payload};

const OTHER: IkeId = IkeId { initiator: 3, responder: 4 };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An IKE SA whose ends both speak MOBIKE, and that `initiation` began.
pub(super) fn mobile(initiation: Initiation) -> Established {
    let mut test = Established::begun(initiation);
    let supported = Payloads::from(vec![Payload::Notify(Notify::new(NotifyType::MobikeSupported))]);
    let mobike = Mobike::negotiated(&profile().config, &supported, Vec::new(), &test.sa.channel.path);
    test.sa = test.sa.with_mobike(mobike);
    test
}

fn by_us() -> Initiation {
    Initiation::ByUs(Instant::default())
}

/// The kinds of the notifications of the only message that was sent.
fn notified(test: &mut Established) -> Vec<NotifyType> {
    let sent = test.sent();
    assert_eq!(sent.len(), 1, "{sent:?}");
    sent[0].1.notifies().map(|notify| notify.kind).collect()
}

fn answer_with_cookie(test: &mut Established, id: u32, request: &Payloads, more: &[Notify]) -> SaStep {
    let cookie = request.notify(NotifyType::Cookie2).unwrap().clone();
    let notifies = more.iter().cloned().chain([cookie]).map(Payload::Notify).collect();
    test.respond(ExchangeType::Informational, id, &notifies)
}

#[test]
fn an_ike_sa_that_moved_while_it_was_superseded_tells_the_peer_when_it_is_used_again() {
    for (initiation, told) in [
        (by_us(), NotifyType::UpdateSaAddresses),
        (Initiation::ByPeer(Instant::default()), NotifyType::NoAdditionalAddresses),
    ] {
        let mut test = mobile(initiation);
        let other = Survivor { ike: OTHER, spi: OTHER.responder, ours: false };
        test.step(|sa, child_sas, cx| sa.supersede_by_new_authentication(other, child_sas, cx));
        test.step(|sa, child_sas, cx| sa.change_local_address(local().ip(), ip("192.0.2.9"), child_sas, cx));
        assert!(test.sent().is_empty());
        test.step(|sa, child_sas, cx| sa.reinstate(OTHER, Lifecycle::Active, child_sas, cx));
        assert!(notified(&mut test).contains(&told), "{initiation:?}");
    }
}

#[test]
fn a_list_of_addresses_counts_as_announced_once_the_peer_has_taken_it() {
    //= RFC 4555 3.6 REQUIRED 1: the complete list
    let mut test = mobile(by_us());
    test.config.addresses = vec![local().ip(), ip("192.0.2.8")];
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::UpdateAddresses, child_sas, cx));
    let (_, refused) = test.sent().remove(0);
    assert!(refused.notify(NotifyType::AdditionalIp4Address).is_some());
    let step = answer_with_cookie(&mut test, 0, &refused, &[Notify::new(NotifyType::UnacceptableAddresses)]);
    assert!(matches!(step, SaStep::Reauthenticate));
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::UpdateAddresses, child_sas, cx));
    let (_, taken) = test.sent().remove(0);
    assert!(taken.notify(NotifyType::AdditionalIp4Address).is_some(), "the peer does not know the list");
    answer_with_cookie(&mut test, 1, &taken, &[]);
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::UpdateAddresses, child_sas, cx));
    assert!(!notified(&mut test).contains(&NotifyType::AdditionalIp4Address));
}

#[test]
fn nat_detection_in_a_response_that_was_not_asked_for_it_moves_nothing() {
    let mut test = mobile(by_us());
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::Liveness, child_sas, cx));
    assert_eq!(notified(&mut test), []);
    let seen = Notify::with_data(NotifyType::NatDetectionDestinationIp, vec![9; 20]);
    test.respond(ExchangeType::Informational, 0, &Payloads::from(vec![Payload::Notify(seen)]));
    assert!(test.sent().is_empty());
}

/// Moves an IKE SA into a TCP connection. Each end numbers connections by itself.
fn into_tcp(test: &mut Established) {
    let id = crate::TcpConnectionId::new(7);
    let (local, remote) = (SocketAddr::new(id.local(), 500), SocketAddr::new(id.remote(), 500));
    let nats = Path { nat_local: true, nat_remote: true, nat_traversal: true, ..test.sa.channel.path };
    test.sa.channel.use_path(Path { local, remote, ..nats });
}

#[test]
fn a_liveness_check_in_a_tcp_connection_asks_for_no_nat_mapping() {
    let mut test = mobile(by_us());
    into_tcp(&mut test);
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::Liveness, child_sas, cx));
    assert_eq!(notified(&mut test), []);
}

#[test]
fn an_address_update_in_the_tcp_connection_in_use_is_taken_and_one_in_another_is_refused() {
    let update = Payloads::from(vec![Payload::Notify(Notify::new(NotifyType::UpdateSaAddresses))]);
    for (number, refused) in [(7, false), (8, true)] {
        let mut test = mobile(Initiation::ByPeer(Instant::default()));
        into_tcp(&mut test);
        let id = crate::TcpConnectionId::new(number);
        let datagram = test.seal(ExchangeType::Informational, 0, &update, None).remove(0);
        let header = Header::decode(&datagram).unwrap();
        let (local, remote) = (SocketAddr::new(id.local(), 500), SocketAddr::new(id.remote(), 500));
        test.step(|sa, child_sas, cx| sa.handle(&header, &datagram, local, remote, child_sas, cx));
        assert_eq!(notified(&mut test).contains(&NotifyType::UnacceptableAddresses), refused, "connection {number}");
        assert_eq!(test.sa.channel.path.remote, SocketAddr::new(crate::TcpConnectionId::new(7).remote(), 500));
    }
}

#[test]
fn our_address_on_a_path_that_is_checked_is_replaced_too() {
    let mut test = mobile(Initiation::ByPeer(Instant::default()));
    let (old, new) = (ip("192.0.2.8"), ip("192.0.2.9"));
    let update = Payloads::from(vec![Payload::Notify(Notify::new(NotifyType::UpdateSaAddresses))]);
    let datagram = test.seal(ExchangeType::Informational, 0, &update, None).remove(0);
    let header = Header::decode(&datagram).unwrap();
    let elsewhere = SocketAddr::new(ip("192.0.2.3"), 500);
    test.step(|sa, child_sas, cx| {
        sa.handle(&header, &datagram, SocketAddr::new(old, 500), elsewhere, child_sas, cx);
    });
    test.out.transmits.clear();
    assert!(test.sa.sends_from(old));
    assert!(test.step(|sa, child_sas, cx| sa.change_local_address(old, new, child_sas, cx)));
    assert!(!test.sa.sends_from(old) && test.sa.sends_from(local().ip()));
    let ends = test.out.transmits.iter().map(|transmit| (transmit.local.ip(), transmit.remote));
    assert_eq!(ends.collect::<Vec<_>>(), [(new, elsewhere)]);
    assert!(test.out.events.is_empty(), "ESP stays where it is: {:?}", test.out.events);
}

#[test]
fn a_peer_that_does_not_answer_is_tried_at_all_its_addresses_and_at_port_4500() {
    let mut test = mobile(by_us());
    let mapped: SocketAddr = "192.0.2.2:20001".parse().unwrap();
    let path = Path { local: SocketAddr::new(local().ip(), 4500), remote: mapped, ..test.sa.channel.path };
    test.sa.channel.use_path(path);
    let mobike = test.sa.mobike.as_mut().unwrap();
    // The list came from an address that the peer has left since.
    mobike.announced_by_peer_from = SocketAddr::new(ip("192.0.2.3"), 4500);
    mobike.peer_addresses = (0..30).map(|host| IpAddr::from([192, 0, 3, host])).take(3).collect();
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::Liveness, child_sas, cx));
    for _ in 0..2 {
        test.now = test.now + Duration::from_secs(2);
        test.step(|sa, child_sas, cx| sa.handle_timeout(child_sas, cx));
    }
    let tried: Vec<SocketAddr> = test.out.transmits.iter().map(|transmit| transmit.remote).collect();
    assert!(tried.contains(&SocketAddr::new(ip("192.0.2.3"), 4500)), "{tried:?}");
    for address in ["192.0.3.0", "192.0.3.1", "192.0.3.2"] {
        for port in [20001, 4500] {
            assert!(tried.contains(&SocketAddr::new(ip(address), port)), "{address} {port}: {tried:?}");
        }
    }
}

/// The addresses between which a request was sent that is not answered.
fn tried(test: &mut Established) -> Vec<(SocketAddr, SocketAddr)> {
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::Liveness, child_sas, cx));
    for _ in 0..3 {
        test.now = test.now + Duration::from_secs(2);
        test.step(|sa, child_sas, cx| sa.handle_timeout(child_sas, cx));
    }
    test.out.transmits.iter().map(|transmit| (transmit.local, transmit.remote)).collect()
}

#[test]
fn our_own_other_addresses_are_tried_although_the_peer_has_many_and_two_ports() {
    let mut test = mobile(by_us());
    let (ours, mapped) = (SocketAddr::new(local().ip(), 4500), "192.0.2.2:20001".parse().unwrap());
    test.sa.channel.use_path(Path { local: ours, remote: mapped, ..test.sa.channel.path });
    let peer_addresses = (0..mobike::MAX_ADDITIONAL as u8).map(|host| IpAddr::from([192, 0, 3, host]));
    test.sa.mobike.as_mut().unwrap().peer_addresses = peer_addresses.collect();
    test.config.addresses = vec![ours.ip(), ip("192.0.2.8"), ip("192.0.2.9")];
    let tried = tried(&mut test);
    for own in ["192.0.2.8:4500", "192.0.2.9:4500"] {
        assert!(tried.contains(&(own.parse().unwrap(), mapped)), "{own}: {tried:?}");
    }
    assert!(tried.contains(&(ours, "192.0.3.0:20001".parse().unwrap())), "{tried:?}");
}

/// The peer's refusal of an update because a NAT changed its addresses.
fn unexpected_nat() -> [Notify; 1] {
    [Notify::new(NotifyType::UnexpectedNatDetected)]
}

#[test]
fn an_update_in_which_the_peer_finds_a_nat_is_tried_several_times_before_a_new_ike_sa() {
    //= RFC 4555 3.9 SHOULD 4: the update is tried several times
    let mut test = mobile(by_us());
    let times = profile().config.timing.transmissions;
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::UpdateAddresses, child_sas, cx));
    for id in 0..times {
        let (_, update) = test.sent().remove(0);
        assert!(update.notify(NotifyType::UpdateSaAddresses).is_some(), "request {id}: {update:?}");
        let step = answer_with_cookie(&mut test, id, &update, &unexpected_nat());
        assert!(matches!(step, SaStep::Continue), "request {id}");
    }
    let (_, update) = test.sent().remove(0);
    assert!(matches!(answer_with_cookie(&mut test, times, &update, &unexpected_nat()), SaStep::Reauthenticate));
    assert!(test.sent().is_empty());
}

#[test]
fn an_update_that_is_taken_after_a_nat_was_found_begins_to_count_again() {
    let mut test = mobile(by_us());
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::UpdateAddresses, child_sas, cx));
    for (id, refused) in [true, true, false].into_iter().enumerate() {
        let (_, update) = test.sent().remove(0);
        let more = if refused { unexpected_nat().to_vec() } else { Vec::new() };
        answer_with_cookie(&mut test, id as u32, &update, &more);
        assert_eq!(test.sa.mobike.as_ref().unwrap().unexpected_nats, if refused { id as u32 + 1 } else { 0 });
    }
}

#[test]
fn without_nat_traversal_each_request_that_changes_addresses_forbids_nats() {
    //= RFC 4555 3.9 MUST 1: NO_NATS_ALLOWED without NAT traversal
    let by_peer = Initiation::ByPeer(Instant::default());
    for initiation in [by_us(), by_peer] {
        for nat_traversal in [false, true] {
            let mut test = mobile(initiation);
            test.sa.channel.use_path(Path { nat_traversal, ..test.sa.channel.path });
            let by_us = initiation.by_us();
            let request = if by_us { QueuedRequest::UpdateAddresses } else { QueuedRequest::AnnounceAddresses };
            test.step(|sa, child_sas, cx| sa.begin(request, child_sas, cx));
            let (_, sent) = test.sent().remove(0);
            let forbidden = sent.notify(NotifyType::NoNatsAllowed).map(|notify| notify.data.clone());
            // 192.0.2.1, 192.0.2.2, and port 500 twice.
            let addresses = vec![192, 0, 2, 1, 192, 0, 2, 2, 1, 244, 1, 244];
            assert_eq!(forbidden, Some(addresses).filter(|_| !nat_traversal), "{initiation:?}");
        }
    }
}

#[test]
fn a_request_goes_once_to_an_address_that_is_a_candidate_and_an_alternative() {
    let other: SocketAddr = "192.0.2.3:500".parse().unwrap();
    let to_other = |peer: &mut Established| {
        let sent = std::mem::take(&mut peer.out.transmits);
        sent.iter().filter(|transmit| transmit.remote == other).count()
    };
    for candidate_first in [true, false] {
        let mut peer = Established::new();
        peer.step(|sa, child_sas, cx| sa.begin(QueuedRequest::Liveness, child_sas, cx));
        let become_candidate = |peer: &mut Established| {
            peer.sa.channel.candidate = Some(Box::new(other));
            peer.sa.channel.candidate_is_new = true;
            peer.step(|sa, _, cx| sa.channel.probe_candidate(cx));
        };
        let become_alternative = |peer: &mut Established| {
            peer.step(|sa, _, cx| sa.channel.send_to_alternatives(vec![(local(), other)], cx));
        };
        let steps: [&dyn Fn(&mut Established); 2] = if candidate_first {
            [&become_candidate, &become_alternative]
        } else {
            [&become_alternative, &become_candidate]
        };
        steps.iter().for_each(|step| step(&mut peer));
        assert_eq!(to_other(&mut peer), 1, "candidate first: {candidate_first}");
        peer.now = peer.now + Duration::from_secs(1);
        peer.step(|sa, child_sas, cx| sa.handle_timeout(child_sas, cx));
        assert_eq!(to_other(&mut peer), 1, "candidate first: {candidate_first}, once more");
    }
}

#[test]
fn a_path_that_was_given_up_is_not_checked_again_while_the_request_goes_there() {
    let mut peer = Established::new();
    let other: SocketAddr = "192.0.2.3:500".parse().unwrap();
    peer.step(|sa, child_sas, cx| sa.begin(QueuedRequest::Liveness, child_sas, cx));
    peer.step(|sa, _, cx| sa.channel.send_to_alternatives(vec![(local(), other)], cx));
    let channel = &mut peer.sa.channel;
    channel.following = Following::Update;
    channel.given_up = Some(Box::new(Path { remote: other, ..channel.path }));
    channel.response_path = (local(), other);
    assert_eq!(channel.take_given_up(), None, "the request is on its way there");
    channel.alternatives.clear();
    assert_eq!(channel.take_given_up().map(|path| path.remote), Some(other));
}

/// Moves the peer to a second new address while the first one is not answered, and our request
/// neither. Returns whether our request is sent again on the path in use after all of its
/// transmissions.
fn goes_on_after_two_moves(peer_may_move: bool, esp: bool) -> bool {
    let mut test = mobile(Initiation::ByPeer(Instant::default()));
    test.sa.channel.peer_may_move = peer_may_move;
    let update = Payloads::from(vec![Payload::Notify(Notify::new(NotifyType::UpdateSaAddresses))]);
    test.step(|sa, child_sas, cx| sa.begin(QueuedRequest::Liveness, child_sas, cx));
    let mut sent_in_use = 0;
    for (id, new) in ["192.0.2.3:500", "192.0.2.4:500"].into_iter().enumerate() {
        let datagram = test.seal(ExchangeType::Informational, id as u32, &update, None).remove(0);
        let header = Header::decode(&datagram).unwrap();
        let new = new.parse().unwrap();
        test.step(|sa, child_sas, cx| sa.handle(&header, &datagram, local(), new, child_sas, cx));
        let datagrams = |test: &mut Established| std::mem::take(&mut test.out.transmits);
        assert!(datagrams(&mut test).iter().any(|transmit| transmit.remote == new), "the request goes to {new}");
        while test.sa.channel.is_unchecked() {
            test.now = test.now + Duration::from_millis(100);
            if esp {
                test.sa.esp_received(test.now);
            }
            let step = test.step(|sa, child_sas, cx| sa.handle_timeout(child_sas, cx));
            if matches!(step, SaStep::Closed(CloseReason::Timeout)) {
                return false;
            }
        }
        sent_in_use += datagrams(&mut test).iter().filter(|transmit| transmit.remote == remote()).count();
    }
    assert_eq!(sent_in_use, 2, "once for each new address that is given up");
    true
}

#[test]
fn a_request_goes_on_where_esp_arrives_although_two_new_addresses_of_the_peer_were_given_up() {
    //= RFC 7296 2.4 MUST 4: a failure is silence or INITIAL_CONTACT
    for peer_may_move in [false, true] {
        assert!(goes_on_after_two_moves(peer_may_move, true), "ESP arrives");
        assert!(!goes_on_after_two_moves(peer_may_move, false), "nothing arrives");
    }
}
