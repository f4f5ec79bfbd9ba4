//! Tests attempts to reach a peer, and the effect of other hosts on these attempts and on a peer
//! that is up.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::endpoint::Phase;

#[test]
fn a_doubled_request_for_another_group_is_no_failure() {
    //= RFC 7296 2.21.1 REQUIRED 1: go on after an unauthenticated error
    let mut pair = Pair::new().one_sided();
    pair.configs[0].ike_proposals[0].groups = vec![Group::P256, Group::X25519];
    pair.configs[1].ike_proposals[0].groups = vec![Group::X25519];
    let caught = Rc::new(RefCell::new(Vec::new()));
    let basket = Rc::clone(&caught);
    pair.tap = Box::new(move |from, sent| {
        if from == 1 {
            basket.borrow_mut().push(sent.clone());
        }
        from == 0
    });
    pair.start();
    pair.tap = Box::new(|_, _| true);
    let invalid_ke = caught.take().remove(0);
    for _ in 0..2 {
        pair.arrive(0, &invalid_ke.payload, invalid_ke.remote, invalid_ke.local);
    }
    pair.deliver();
    assert!(pair.is_connected());
    assert_eq!(pair.errors(0), []);
}

/// Simulates a host at another address that claims to be `a` and has another pre-shared key.
fn guess(pair: &mut Pair) {
    let address: SocketAddr = "203.0.113.66:500".parse().unwrap();
    let mut intruder = Endpoint::new(EndpointConfig::default());
    let mut host = Host::new(66);
    let now = Instant::new(pair.now);
    let wrong = Auth::Psk(Secret::new(b"a guess".to_vec()));
    let config = PeerConfig { local: Some(address.ip()), ..config(0, wrong) };
    intruder.set_peer(config, now, &mut host).unwrap();
    for _ in 0..4 {
        while let Some(sent) = intruder.poll_transmit() {
            pair.arrive(1, &sent.payload, sent.remote, sent.local);
        }
        let end = &mut pair.ends[1];
        end.events.extend(std::iter::from_fn(|| end.endpoint.poll_event()));
        while let Some(sent) = end.endpoint.poll_transmit() {
            intruder.handle(&sent.payload, sent.remote, sent.local, now, &mut host);
        }
    }
}

#[test]
fn a_strangers_guess_is_no_failure_of_a_peer_that_is_up() {
    //= RFC 7296 2.4 MUST NOT 3: nothing unprotected proves a failure
    let mut pair = Pair::new().one_sided();
    pair.start();
    guess(&mut pair);
    assert_eq!(pair.ends[1].endpoint.snapshot()[0].last_error, None);
    let failed = pair.ends[1].events.iter().any(|event| matches!(event, Event::PeerFailed { .. }));
    assert!(!failed, "{:?}", pair.error_texts(1));
    let from = |event: &Event| match event {
        Event::Refused { from, identity, error } => Some((from.ip(), identity.clone(), error.kind)),
        _ => None,
    };
    let refused: Vec<_> = pair.ends[1].events.iter().filter_map(from).collect();
    let identity = Some(Identity::Fqdn(NAMES[0].into()));
    assert_eq!(refused, [("203.0.113.66".parse().unwrap(), identity, PeerErrorKind::AuthenticationFailed)]);
}

#[test]
fn a_wrong_secret_of_a_peer_that_is_down_is_its_failure() {
    let mut pair = Pair::new().one_sided();
    pair.configure(1);
    guess(&mut pair);
    let error = pair.ends[1].endpoint.snapshot()[0].last_error.clone().expect("the operator has to know");
    assert_eq!(error.kind, PeerErrorKind::AuthenticationFailed);
}

#[test]
fn every_port_of_an_address_is_tried() {
    let mut pair = Pair::new().one_sided();
    pair.configs[0].remotes = ["192.0.2.2:9999", "192.0.2.2:500"].map(|at| at.parse().unwrap()).to_vec();
    pair.start();
    assert!(pair.is_connected());
}

/// The responder first requires a cookie and then no longer does. Its cookie request crosses our
/// retransmission. The IKE SA must still be established.
#[test]
fn a_cookie_that_crosses_a_retransmission_spoils_nothing() {
    //= RFC 7296 2.15 REQUIRED 2: the latest IKE_SA_INIT counts
    let mut pair = Pair::new().one_sided();
    pair.configure(1);
    let caught = Rc::new(RefCell::new(Vec::new()));
    let basket = Rc::clone(&caught);
    pair.tap = Box::new(move |from, sent| {
        if from == 1 {
            basket.borrow_mut().push(sent.clone());
        }
        from == 0
    });
    pair.ends[1].endpoint.config.cookie_threshold = 0;
    pair.configure(0);
    pair.ends[1].endpoint.config.cookie_threshold = 64;
    pair.run_for(Duration::from_millis(600));
    pair.tap = Box::new(|_, _| true);
    let answers = caught.take();
    assert_eq!(answers.len(), 2, "a cookie, then a response");
    for sent in &answers {
        pair.arrive(0, &sent.payload, sent.remote, sent.local);
        pair.deliver();
    }
    pair.run_for(SECOND);
    assert!(pair.is_connected(), "{:?}", pair.error_texts(0));
    assert_eq!(pair.errors(0), []);
}

#[test]
fn a_peer_that_waits_is_tried_again_at_once_when_the_way_to_it_may_have_changed() {
    let mut pair = Pair::new().one_sided();
    pair.ends[1].down = true;
    pair.start();
    while !matches!(pair.ends[0].endpoint.snapshot()[0].phase, Phase::Waiting { .. }) {
        pair.run_for(SECOND);
    }
    let addresses = |pair: &Pair| -> Vec<_> {
        pair.ends[0].endpoint.ike_addresses().map(|(_, local, remote)| (local.ip(), remote.ip())).collect()
    };
    assert_eq!((pair.ike_sas(0), addresses(&pair)), (0, vec![]));
    pair.ends[1].down = false;
    pair.call(0, |endpoint, now, env| endpoint.retry_unreached(now, env));
    assert!(pair.is_connected());
    let [a, b] = ADDRESSES.map(|address| address.parse::<SocketAddr>().unwrap().ip());
    assert_eq!(addresses(&pair), [(a, b)]);
    // No attempt starts for a peer that is up.
    let before = pair.ends[0].events.len();
    pair.call(0, |endpoint, now, env| endpoint.retry_unreached(now, env));
    assert_eq!(pair.ends[0].events.len(), before);
}
