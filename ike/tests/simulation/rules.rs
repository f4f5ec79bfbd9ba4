//! Tests single rules of RFC 7296 with a peer that tries to violate them.

use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::{EndpointConfig, Event};

use crate::foreign::{Foreign, delete_child, notification};
use crate::oracle::octets::{Message, exchange, notify, payload};
use crate::peers::{PSK, SECOND};

fn errors(messages: &[Message]) -> Vec<Option<u16>> {
    messages.iter().filter(|message| message.header.response()).map(Message::error).collect()
}

#[test]
pub fn a_foreign_peer_comes_up_and_is_let_in_by_its_secret_alone() {
    //= RFC 7296 2.21.2 SHOULD 1: AUTHENTICATION_FAILED
    //= RFC 7296 3.14 MUST 4: any IV is taken
    let foreign = Foreign::established(1, |_| {});
    assert!(foreign.network.nodes[0].events.iter().any(|(_, event)| matches!(event, Event::ChildUp { .. })));
    let mut foreign = Foreign::new(1, |_| {});
    let refusal = foreign.authenticate(b"correct horse battery stapler");
    assert_eq!(refusal.error(), Some(24), "AUTHENTICATION_FAILED");
}

#[test]
pub fn an_ike_sa_is_rekeyed_when_nothing_else_is_under_way() {
    //= RFC 7296 1.4 MUST 3: about a CHILD_SA on its IKE SA
    //= RFC 7296 2.8 REQUIRED 5: CHILD_SAs move
    //= RFC 7296 2.18 MUST 4: message IDs begin at 0 again
    let mut foreign = Foreign::established(1, |_| {});
    let parts = foreign.rekey_ike_parts(0x77);
    let response = foreign.request(exchange::CREATE_CHILD_SA, &parts).remove(0);
    assert_eq!(response.error(), None);
    foreign.take_rekeyed(&response, 0x77);
    // RFC 7296 2.8, 2.18: the CHILD_SAs belong to the new IKE SA, whose message IDs start at 0.
    let response = foreign.request(exchange::INFORMATIONAL, &[delete_child(foreign.child.0)]).remove(0);
    assert_eq!(response.deleted_children(), [foreign.child.1]);
}

#[test]
pub fn an_ike_sa_is_not_rekeyed_while_a_child_sa_is() {
    //= RFC 7296 2.3 MUST 3: requests are taken while ours waits
    //= RFC 7296 2.25 SHOULD 1: TEMPORARY_FAILURE
    //= RFC 7296 2.25.1 SHOULD 8: the IKE SA waits for CHILD_SAs
    // RFC 7296 2.25.2.
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    let parts = foreign.rekey_ike_parts(0x77);
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &parts);
    assert_eq!(errors(&answers), [Some(notify::TEMPORARY_FAILURE)]);
    let messages = foreign.answer(&request, &Foreign::child_parts(0xf002, [1; 32]));
    // Our DELETE of the old CHILD_SA is outstanding now.
    assert_eq!(messages[0].deleted_children(), [foreign.child.1]);
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &parts);
    assert_eq!(errors(&answers), [Some(notify::TEMPORARY_FAILURE)]);
    foreign.answer(&messages[0], &[delete_child(foreign.child.0)]);
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &parts);
    assert_eq!(errors(&answers), [None]);
}

#[test]
pub fn a_child_sa_that_is_being_deleted_is_not_rekeyed() {
    //= RFC 7296 2.25.1 SHOULD 1: rekeyed while we close it
    // RFC 7296 2.25.1.
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    let messages = foreign.answer(&request, &Foreign::child_parts(0xf002, [1; 32]));
    assert_eq!(messages[0].deleted_children(), [foreign.child.1]);
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &Foreign::rekey_parts(foreign.child.0, 0xf003));
    assert_eq!(errors(&answers), [Some(notify::TEMPORARY_FAILURE)]);
}

/// Lets the peer rekey the CHILD_SA that our node rekeys. The peer responds to our node's request,
/// with this nonce, only after it has rekeyed its new CHILD_SA once more and deleted the two old
/// ones. Returns our next message, and our SPI of the peer's last CHILD_SA.
fn collision_with_a_survivor_that_is_rekeyed(nonce: [u8; 32]) -> (Message, u32) {
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    let mut ours = 0;
    for (old, new) in [(foreign.child.0, 0xf002), (0xf002, 0xf003)] {
        let answer = foreign.request(exchange::CREATE_CHILD_SA, &Foreign::rekey_parts(old, new)).remove(0);
        assert_eq!(answer.error(), None);
        ours = answer.proposals()[0].spi32();
        assert_eq!(foreign.request(exchange::INFORMATIONAL, &[delete_child(old)])[0].deleted_children().len(), 1);
    }
    (foreign.answer(&request, &Foreign::child_parts(0xf004, nonce)).remove(0), ours)
}

#[test]
pub fn the_redundant_child_sa_of_a_collision_goes_although_the_other_one_was_rekeyed_meanwhile() {
    //= RFC 7296 2.8.1 SHOULD 3: the lowest nonce goes
    //= RFC 7296 2.25.1 SHOULD 3: the redundant one is known
    let (deletion, survivor) = collision_with_a_survivor_that_is_rekeyed([0; 32]);
    assert_eq!(deletion.deleted_children().len(), 1, "ours has the lowest nonce");
    assert_ne!(deletion.deleted_children(), [survivor]);
}

#[test]
pub fn a_child_sa_that_is_unknown_is_not_rekeyed() {
    //= RFC 7296 2.25 SHOULD 5: CHILD_SA_NOT_FOUND
    //= RFC 7296 2.25 REQUIRED 6: it names the SPI
    //= RFC 7296 2.25.1 SHOULD 4: rekeyed and not there
    // RFC 7296 2.25: the notification contains the SPI of the request.
    let mut foreign = Foreign::established(1, |_| {});
    let answer = foreign.request(exchange::CREATE_CHILD_SA, &Foreign::rekey_parts(0xbad, 0xf003)).remove(0);
    let notify = answer.notify(notify::CHILD_SA_NOT_FOUND).expect("CHILD_SA_NOT_FOUND");
    assert_eq!(notify.spi, 0xbad_u32.to_be_bytes());
}

#[test]
pub fn a_child_sa_that_our_unanswered_request_may_have_made_is_rekeyed_later() {
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    // The peer's response is late, and the peer already rekeys the CHILD_SA that it has created.
    let rekey = Foreign::rekey_parts(0xf002, 0xf003);
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &rekey);
    assert_eq!(errors(&answers), [Some(notify::TEMPORARY_FAILURE)]);
    let messages = foreign.answer(&request, &Foreign::child_parts(0xf002, [1; 32]));
    assert_eq!(messages[0].deleted_children(), [foreign.child.1]);
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &rekey);
    assert_eq!(errors(&answers), [None]);
}

#[test]
pub fn a_child_sa_that_the_peer_deleted_before_its_late_response_is_not_used() {
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    let answers = foreign.request(exchange::INFORMATIONAL, &[delete_child(0xf002)]);
    assert!(answers[0].deleted_children().is_empty());
    let messages = foreign.answer(&request, &Foreign::child_parts(0xf002, [1; 32]));
    assert_eq!(messages, []);
    let kernel = &foreign.network.nodes[0].host.kernel;
    let in_use = kernel.tunnels[&foreign.config.name].sole_outbound().expect("the old one stays");
    assert_eq!((in_use.outbound_spi, kernel.reserved.len()), (foreign.child.0, 0));
    // The node sends its request again.
    foreign.network.run_for(3 * SECOND);
    let again = foreign.arrived();
    assert_eq!(foreign.open(&again[0]).rekeys(), Some(foreign.child.1));
}

#[test]
fn a_child_sa_whose_lifetime_ends_while_its_deletion_is_under_way_is_deleted_once() {
    let lifetime = 4 * SECOND;
    let mut foreign = Foreign::established(1, |config| config.timing.child_lifetime = lifetime);
    let request = foreign.rekey_of_ours();
    let deletion = foreign.answer(&request, &Foreign::child_parts(0xf002, [1; 32])).remove(0);
    assert_eq!(deletion.deleted_children(), [foreign.child.1]);
    foreign.network.run_for(lifetime * 3 / 2 + SECOND / 2);
    let again: Vec<Message> = foreign.arrived().iter().map(|datagram| foreign.open(datagram)).collect();
    assert!(!again.is_empty() && again.iter().all(|message| *message == deletion), "{again:?}");
    let mut messages = foreign.answer(&deletion, &[delete_child(foreign.child.0)]);
    foreign.network.run_for(SECOND);
    let later = foreign.arrived();
    messages.extend(later.iter().map(|datagram| foreign.open(datagram)));
    assert!(messages.iter().all(|message| !message.deleted_children().contains(&foreign.child.1)), "{messages:?}");
}

#[test]
pub fn what_is_asked_to_wait_waits() {
    //= RFC 7296 1.3.3 MUST 1: REKEY_SA
    //= RFC 7296 2.25 MUST NOT 2: no repetition at once
    //= RFC 7296 2.25 MUST 3: wait
    // RFC 7296 2.25: after TEMPORARY_FAILURE the request is not repeated immediately.
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    let after = foreign.answer(&request, &[notification(notify::TEMPORARY_FAILURE, 0, &[], &[])]);
    assert_eq!(after, []);
    foreign.network.run_for(2 * SECOND);
    let again = foreign.arrived();
    assert_eq!(foreign.open(&again[0]).rekeys(), Some(foreign.child.1));
}

#[test]
pub fn requests_outside_of_the_window_are_not_answered() {
    //= RFC 7296 1.4 MUST 4: every request is answered
    //= RFC 7296 2.3 MUST NOT 8: no INVALID_MESSAGE_ID in a response
    //= RFC 7296 2.3 MUST NOT 9: no answer outside of the window
    // RFC 7296 2.2, 2.3: our window is four requests.
    let mut foreign = Foreign::established(1, |_| {});
    let next = foreign.next_id;
    for id in [next + 4, next + 7, next.wrapping_sub(2), u32::MAX] {
        let datagram = foreign.seal(exchange::INFORMATIONAL, false, id, &[delete_child(foreign.child.0)]);
        assert_eq!(foreign.exchange(datagram), Vec::<Vec<u8>>::new(), "request {id}");
    }
    assert_eq!(foreign.request(exchange::INFORMATIONAL, &[]).len(), 1);
}

#[test]
pub fn a_response_is_repeated_to_the_same_request_and_to_nothing_else() {
    //= RFC 7296 2.1 MUST NOT 1: no response unasked
    //= RFC 7296 2.1 MUST 2: a repeated request does nothing else
    // RFC 7296 2.1.
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.seal(exchange::INFORMATIONAL, false, foreign.next_id, &[]);
    let first = foreign.exchange(request.clone());
    assert_eq!(first.len(), 1);
    assert_eq!(foreign.exchange(request), first);
    // Another message with the same ID, even an authentic one, is not a retransmission.
    let other = foreign.seal(exchange::INFORMATIONAL, false, foreign.next_id, &[delete_child(1)]);
    assert_eq!(foreign.exchange(other), Vec::<Vec<u8>>::new());
}

#[test]
pub fn a_peer_without_a_nat_is_answered_where_it_is_but_not_followed() {
    //= RFC 7296 2.6 REQUIRED 2: the SPI alone finds the IKE SA
    //= RFC 7296 2.11 MUST 2: the response goes back
    // RFC 7296 2.11, 2.23.
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.seal(exchange::INFORMATIONAL, false, foreign.next_id, &[]);
    let elsewhere = "198.51.100.99:500".parse().unwrap();
    assert_eq!(foreign.exchange_from(elsewhere, request).len(), 1, "answered");
    foreign.network.run_for(10 * SECOND);
    let to: Vec<_> = foreign.network.outside.iter().map(|(_, to, _)| *to).collect();
    assert!(!to.is_empty() && to.iter().all(|to| *to == Foreign::address()), "{to:?}");
}

/// Returns endpoint limits that a few requests reach.
fn narrow() -> EndpointConfig {
    EndpointConfig { cookie_threshold: 3, half_open_limit: 6, ..EndpointConfig::default() }
}

#[test]
fn an_ike_sa_init_that_comes_again_to_another_address_is_answered_from_there() {
    //= RFC 7296 2.11 MUST 2: the response goes back
    let mut foreign = Foreign::new(1, |_| {});
    let other = "10.0.0.8".parse().unwrap();
    foreign.network.nodes[0].host.more_addresses = vec![other];
    let request = foreign.init_request(&foreign.init_parts());
    let first = foreign.exchange(request.clone());
    foreign.network.inject(Foreign::address(), SocketAddr::new(other, 500), request);
    foreign.network.run_for(SECOND / 50);
    let again = std::mem::take(&mut foreign.network.outside);
    assert_eq!(again, [(SocketAddr::new(other, 500), Foreign::address(), first[0].clone())]);
}

#[test]
pub fn with_many_half_open_ike_sas_only_the_right_cookie_makes_one_more() {
    //= RFC 7296 2.6 SHOULD 4: cookies against floods
    //= RFC 7296 2.6 MUST 7: a wrong cookie is none
    // RFC 7296 2.6: the cookie is bound to address, SPI and nonce.
    let mut foreign = Foreign::with(1, narrow(), |_| {});
    let parts = foreign.init_parts();
    let answer = |foreign: &mut Foreign, from: &str, spi: u64, cookie: Option<&[u8]>| {
        foreign.spis = (spi, 0);
        let cookie = cookie.map(|cookie| notification(notify::COOKIE, 0, &[], cookie));
        let request = foreign.init_request(&cookie.into_iter().chain(parts.clone()).collect::<Vec<_>>());
        let answers = foreign.exchange_from(from.parse().unwrap(), request);
        answers.iter().map(|answer| crate::oracle::clear(answer).unwrap()).next()
    };
    let half_open = |answer: &Option<Message>| answer.as_ref().is_some_and(|answer| answer.key_exchange().is_some());
    let cookie_of = |answer: &Option<Message>| {
        answer.as_ref().and_then(|answer| answer.notify(notify::COOKIE)).expect("a cookie").data
    };
    for spi in 1..=3 {
        assert!(half_open(&answer(&mut foreign, "203.0.113.1:500", spi, None)), "below the threshold");
    }
    let cookie = cookie_of(&answer(&mut foreign, "203.0.113.1:500", 4, None));
    for (from, spi, cookie) in [
        ("203.0.113.2:500", 4, cookie.clone()),
        ("203.0.113.1:500", 5, cookie.clone()),
        ("203.0.113.1:500", 4, vec![0; cookie.len()]),
        ("203.0.113.1:500", 4, cookie[..cookie.len() - 1].to_vec()),
    ] {
        cookie_of(&answer(&mut foreign, from, spi, Some(&cookie)));
    }
    assert!(half_open(&answer(&mut foreign, "203.0.113.1:500", 4, Some(&cookie))), "the right cookie");
    // At the limit, the oldest ones make room, and only for those who return their cookie.
    for spi in 10..20 {
        let cookie = cookie_of(&answer(&mut foreign, "203.0.113.3:500", spi, None));
        assert!(half_open(&answer(&mut foreign, "203.0.113.3:500", spi, Some(&cookie))), "{spi}");
    }
    for spi in 1..=3 {
        cookie_of(&answer(&mut foreign, "203.0.113.1:500", spi, None));
    }
    // The half-open IKE SAs are removed, and an honest peer can connect.
    foreign.network.run_for(Duration::from_secs(31));
    foreign.spis = (0x1111_2222_3333_4444, 0);
    assert_eq!(foreign.authenticate(PSK).error(), None);
}

#[test]
pub fn who_does_not_support_fragments_gets_none() {
    // RFC 7383 2.3.
    let small = EndpointConfig { fragment_size: 150, ..EndpointConfig::default() };
    let mut foreign = Foreign::with(1, small, |_| {});
    assert_eq!(foreign.authenticate(PSK).error(), None);
}

#[test]
pub fn deletions_that_cross_name_each_spi_once() {
    //= RFC 7296 1.4.1 MUST NOT 5: no SPI twice in crossing deletions
    //= RFC 7296 2.25.1 SHOULD 5: closed while we close it
    // RFC 7296 1.4.1.
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    let messages = foreign.answer(&request, &Foreign::child_parts(0xf002, [1; 32]));
    assert_eq!(messages[0].deleted_children(), [foreign.child.1]);
    let crossing = foreign.request(exchange::INFORMATIONAL, &[delete_child(foreign.child.0)]);
    assert!(crossing[0].deleted_children().is_empty(), "{crossing:?}");
}

/// Makes our node rekey its IKE SA. Returns its request.
pub fn ike_rekey_of_ours(foreign: &mut Foreign) -> Message {
    let name = foreign.config.name.clone();
    assert!(foreign.network.call(0, |endpoint, now, env| endpoint.rekey_ike(&name, now, env)));
    foreign.network.run_for(SECOND / 50);
    let arrived = foreign.arrived();
    foreign.open(&arrived[0])
}

#[test]
pub fn no_child_sa_is_made_while_we_rekey_the_ike_sa() {
    //= RFC 7296 1.4.1 REQUIRED 7: the response names the other direction
    //= RFC 7296 2.25.2 SHOULD 6: no CHILD_SA while we rekey the IKE SA
    //= RFC 7296 2.25.2 SHOULD 7: deletions while we rekey the IKE SA
    // RFC 7296 2.25.2.
    let mut foreign = Foreign::established(1, |_| {});
    ike_rekey_of_ours(&mut foreign);
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &Foreign::rekey_parts(foreign.child.0, 0xf003));
    assert_eq!(errors(&answers), [Some(notify::TEMPORARY_FAILURE)]);
    // The deletion of a CHILD_SA is still accepted.
    let answers = foreign.request(exchange::INFORMATIONAL, &[delete_child(foreign.child.0)]);
    assert_eq!(answers[0].deleted_children(), [foreign.child.1]);
}

#[test]
pub fn an_ike_sa_that_was_rekeyed_is_not_rekeyed_again() {
    //= RFC 7296 2.8.2 SHOULD 3: no second rekey
    // RFC 7296 2.8.2.
    let mut foreign = Foreign::established(1, |_| {});
    let parts = foreign.rekey_ike_parts(0x77);
    assert_eq!(errors(&foreign.request(exchange::CREATE_CHILD_SA, &parts)), [None]);
    let parts = foreign.rekey_ike_parts(0x78);
    assert_eq!(errors(&foreign.request(exchange::CREATE_CHILD_SA, &parts)), [Some(notify::TEMPORARY_FAILURE)]);
}

#[test]
pub fn a_rekey_of_the_ike_sa_that_is_asked_to_wait_waits() {
    //= RFC 7296 2.25 MUST NOT 2: no repetition at once
    // RFC 7296 2.25.
    let mut foreign = Foreign::established(1, |_| {});
    let mut request = ike_rekey_of_ours(&mut foreign);
    for _ in 0..3 {
        let after = foreign.answer(&request, &[notification(notify::TEMPORARY_FAILURE, 0, &[], &[])]);
        assert_eq!(after, []);
        // The delay is up to 4 s. Answer liveness checks in the meantime.
        request = (0..8)
            .find_map(|_| {
                foreign.network.run_for(SECOND);
                let arrived = foreign.arrived();
                let message = arrived.first().map(|datagram| foreign.open(datagram))?;
                let rekeys = message.header.exchange == exchange::CREATE_CHILD_SA;
                if !rekeys {
                    foreign.answer(&message, &[]);
                }
                rekeys.then_some(message)
            })
            .expect("it asks again");
    }
}

#[test]
pub fn a_peer_that_refuses_to_rekey_the_ike_sa_is_authenticated_again_instead() {
    // RFC 7296 2.8.3. The refusals are NO_ADDITIONAL_SAS, NO_PROPOSAL_CHOSEN and INVALID_SYNTAX.
    for refusal in [35, 14, 7] {
        let mut foreign = Foreign::established(1, |_| {});
        let request = ike_rekey_of_ours(&mut foreign);
        let datagram =
            foreign.seal(exchange::CREATE_CHILD_SA, true, request.header.id, &[notification(refusal, 0, &[], &[])]);
        let arrived = foreign.exchange(datagram);
        let inits = arrived.iter().filter_map(|datagram| crate::oracle::clear(datagram));
        let inits: Vec<_> = inits.filter(|message| message.header.exchange == exchange::IKE_SA_INIT).collect();
        assert!(!inits.is_empty(), "refused by {refusal}");
        assert!(foreign.network.nodes[0].endpoint.snapshot()[0].children.len() == 1, "the CHILD_SA goes on");
    }
}

#[test]
pub fn a_rekey_does_not_narrow_the_selectors() {
    //= RFC 7296 1.3.1 SHOULD NOT 3: a refusal ends no IKE SA
    //= RFC 7296 2.8 SHOULD NOT 4: an equivalent CHILD_SA
    //= RFC 7296 2.9.2 MUST NOT 1: a rekey narrows nothing
    //= RFC 7296 2.9.2 MUST NOT 3: the responder keeps what is in use
    // RFC 7296 2.9.2. The refusal is TS_UNACCEPTABLE.
    let mut foreign = Foreign::established(1, |_| {});
    let narrower = (
        payload::TS_INITIATOR,
        [[1, 0, 0, 0].as_slice(), &[7, 0, 0, 16, 0, 0, 255, 255], &[10, 0, 0, 0], &[10, 255, 255, 255]].concat(),
    );
    let mut parts = Foreign::rekey_parts(foreign.child.0, 0xf003);
    parts[3] = narrower;
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &parts);
    assert_eq!(errors(&answers), [Some(38)]);
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &Foreign::rekey_parts(foreign.child.0, 0xf003));
    assert_eq!(errors(&answers), [None], "the same selectors");
}

#[test]
pub fn a_child_sa_that_the_peer_does_not_rekey_comes_with_a_new_ike_sa() {
    //= RFC 7296 1.3.1 SHOULD NOT 3: a refusal ends no IKE SA
    // The refusals are NO_PROPOSAL_CHOSEN, and INVALID_KE_PAYLOAD with a group that is not
    // configured (2048-bit MODP).
    for (refusal, data) in [(14, &[][..]), (notify::INVALID_KE_PAYLOAD, &[0, 14][..])] {
        let mut foreign = Foreign::established(1, |_| {});
        let request = foreign.rekey_of_ours();
        let refused = [notification(refusal, 0, &[], data)];
        let datagram = foreign.seal(exchange::CREATE_CHILD_SA, true, request.header.id, &refused);
        let arrived = foreign.exchange(datagram);
        let messages: Vec<_> = arrived.iter().filter_map(|datagram| crate::oracle::clear(datagram)).collect();
        assert!(
            messages.iter().any(|message| message.header.exchange == exchange::IKE_SA_INIT),
            "refused by {refusal}"
        );
        let status = &foreign.network.nodes[0].endpoint.snapshot()[0];
        assert_eq!(status.children.len(), 1, "the CHILD_SA goes on");
        let error = status.last_error.as_ref().expect("status says why");
        assert_eq!(error.kind, edge_ike::event::PeerErrorKind::NoProposalChosen);
    }
}

/// The peer can rekey the CHILD_SA only with a group that we do not have. As a responder without an
/// address of the peer, we begin another IKE SA to where this one ends. The peer does not answer.
#[test]
pub fn a_peer_whose_rekey_we_refuse_gets_a_new_ike_sa_and_not_too_many() {
    let mut foreign = Foreign::established(1, |config| config.max_children = 1);
    assert!(foreign.config.remotes.is_empty() && !foreign.config.initiate);
    let mut spi = 0xf100;
    let mut refused = |foreign: &mut Foreign| {
        spi += 1;
        let mut parts = Foreign::rekey_parts(foreign.child.0, spi);
        parts[1] = crate::foreign::esp_proposal_with_ecp_521(spi);
        parts[2].1[..4].copy_from_slice(&spi.to_be_bytes());
        let datagram = foreign.seal(exchange::CREATE_CHILD_SA, false, foreign.next_id, &parts);
        foreign.next_id += 1;
        let answers = foreign.exchange(datagram);
        assert_eq!(errors(&[foreign.open(&answers[0])]), [Some(14)], "NO_PROPOSAL_CHOSEN");
        answers[1..].to_vec()
    };
    // Returns the SPIs of the IKE_SA_INIT requests. Other requests are answered.
    let begun = |foreign: &mut Foreign, arrived: Vec<Vec<u8>>| -> Vec<u64> {
        let mut begun = Vec::new();
        for datagram in arrived {
            if datagram[18] == exchange::IKE_SA_INIT {
                begun.push(crate::oracle::clear(&datagram).unwrap().header.spis.0);
            } else {
                let message = foreign.open(&datagram);
                if !message.header.response() {
                    foreign.answer(&message, &[]);
                }
            }
        }
        begun
    };
    let wait = |foreign: &mut Foreign, seconds: u32| {
        let mut all = Vec::new();
        for _ in 0..seconds {
            foreign.network.run_for(SECOND);
            let arrived = foreign.arrived();
            all.extend(begun(foreign, arrived));
        }
        all
    };
    // A new CHILD_SA needs no successor.
    assert_eq!(refused(&mut foreign), Vec::<Vec<u8>>::new());
    assert_eq!(wait(&mut foreign, 5), Vec::<u64>::new());
    wait(&mut foreign, 6);
    assert_eq!(refused(&mut foreign), Vec::<Vec<u8>>::new(), "the peer may begin itself");
    let mut spis: std::collections::BTreeSet<u64> = wait(&mut foreign, 4).into_iter().collect();
    assert_eq!(spis.len(), 1, "we begin, since the peer does not");
    let status = &foreign.network.nodes[0].endpoint.snapshot()[0];
    assert_eq!(status.children.len(), 1, "the CHILD_SA goes on");
    let error = status.last_error.as_ref().expect("status says why");
    assert_eq!(error.kind, edge_ike::event::PeerErrorKind::NoProposalChosen);
    // However often the peer repeats its request, attempts come with growing waits.
    for _ in 0..120 {
        let arrived = refused(&mut foreign);
        assert!(arrived.iter().all(|datagram| datagram[18] == exchange::IKE_SA_INIT), "{arrived:?}");
        spis.extend(wait(&mut foreign, 1));
    }
    assert!((3..=12).contains(&spis.len()), "{} attempts in two minutes", spis.len());
    assert_eq!(foreign.network.nodes[0].endpoint.snapshot()[0].children.len(), 1, "the CHILD_SA goes on");
}
