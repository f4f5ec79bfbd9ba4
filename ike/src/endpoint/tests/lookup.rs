//! Tests how an endpoint finds the peer of a request.

use super::*;
use crate::endpoint::peer::LOOKS;

/// Returns how often a handshake reads the configuration of a peer if this many peers are
/// configured at the responder.
fn looks(peers: usize) -> usize {
    let mut pair = Pair::new().one_sided();
    for number in 0..peers {
        let template = pair.configs[1].clone();
        let other = PeerConfig {
            name: PeerName::new(&format!("z-{number}")),
            remotes: vec![SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + number as u32).into(), 500)],
            remote_id: Identity::Fqdn(format!("z-{number}.example")),
            ..template
        };
        pair.call(1, |endpoint, now, env| endpoint.set_peer(other, now, env).unwrap());
    }
    pair.configure(1);
    LOOKS.set(0);
    pair.configure(0);
    let looks = LOOKS.get();
    assert!(pair.is_connected());
    looks
}

#[test]
fn a_handshake_looks_at_as_few_peers_among_ten_thousand_as_among_ten() {
    assert_eq!(looks(10), looks(10_000));
}

#[test]
fn identities_that_name_the_same_peer_find_it_however_they_are_written() {
    for (here, there) in [("A.Example", "a.example"), ("a.example.", "a.example"), ("a.example", "A.EXAMPLE.")] {
        let mut pair = Pair::new().one_sided();
        pair.configs[1].remote_id = Identity::Fqdn(here.into());
        pair.configs[0].local_id = Identity::Fqdn(there.into());
        pair.start();
        assert!(pair.is_connected(), "{here} and {there}");
    }
}

#[test]
fn a_removed_peer_is_found_no_longer() {
    let mut pair = Pair::new().one_sided();
    pair.configure(1);
    let name = pair.configs[1].name.clone();
    pair.call(1, |endpoint, now, env| endpoint.remove_peer(&name, now, env));
    pair.configure(0);
    assert!(pair.errors(0).contains(&PeerErrorKind::NoProposalChosen), "{:?}", pair.ends[0].events);
}

#[test]
fn both_ends_decide_alike_which_ike_sa_stays_however_identities_are_written() {
    for capitals in 0..2 {
        let mut pair = Pair::new();
        // The ends write the identity of `a` differently.
        let shouted = Identity::Fqdn("B.EXAMPLE".into());
        match capitals {
            0 => pair.configs[0].remote_id = shouted,
            _ => pair.configs[1].local_id = shouted,
        }
        // Both ends initiate at the same time.
        pair.tap = Box::new(|_, _| false);
        pair.start();
        pair.tap = Box::new(|_, _| true);
        pair.run_for(60 * SECOND);
        assert!(pair.is_connected(), "written in capitals at {capitals}");
        let replaced = |event: &&Event| matches!(event, Event::IkeReplaced { .. });
        let times = pair.ends[0].events.iter().filter(replaced).count();
        assert!(times <= 1, "replaced {times} times");
    }
}

#[test]
fn the_proposals_of_the_peers_at_an_address_come_before_those_of_all_others() {
    let mut pair = Pair::new().one_sided();
    let strong = pair.configs[1].ike_proposals.clone();
    let mut both = strong.clone();
    both[0].ciphers = vec![Cipher::Aes128Gcm16, Cipher::Aes256Gcm16];
    // Another peer of the responder prefers algorithms that `a` does not accept.
    let mut other = pair.configs[1].clone();
    other.name = PeerName::new("z");
    other.remote_id = Identity::Fqdn("z.example".into());
    other.remotes = vec!["192.0.2.77:500".parse().unwrap()];
    other.ike_proposals[0].ciphers = vec![Cipher::Aes128Gcm16];
    pair.call(1, |endpoint, now, env| endpoint.set_peer(other, now, env).unwrap());
    pair.configs[0].ike_proposals = both;
    pair.configure(1);
    pair.configure(0);
    assert!(pair.is_connected(), "{:?}", pair.error_texts(0));
}

#[test]
fn the_trust_anchors_of_many_peers_do_not_make_ike_sa_init_large() {
    let common = Authority::new("common");
    let mut pair = Pair::new().one_sided();
    for number in 0..400 {
        // Each peer has an authority of its own, and one that all have.
        let mut certified = Authority::new(&format!("CA {number}")).certify(1, DAY);
        certified.trust_anchors.push(common.der.clone());
        let other = PeerConfig {
            name: PeerName::new(&format!("z-{number}")),
            remotes: vec![],
            remote_id: Identity::Fqdn(format!("z-{number}.example")),
            auth: Auth::Certificate(certified),
            ..pair.configs[1].clone()
        };
        pair.call(1, |endpoint, now, env| endpoint.set_peer(other, now, env).unwrap());
    }
    let own = Authority::new("own");
    pair.configs[0].auth = Auth::Certificate(own.certify(0, DAY));
    pair.configs[1].auth = Auth::Certificate(own.certify(1, DAY));
    let hash = {
        let profile = crate::sa::Profile::new(std::sync::Arc::new(pair.configs[1].clone())).unwrap();
        profile.auth.certificate_request().unwrap().authorities
    };
    let longest = std::rc::Rc::new(std::cell::Cell::new(0));
    let measure = std::rc::Rc::clone(&longest);
    let names_own = std::rc::Rc::new(std::cell::Cell::new(false));
    let found = std::rc::Rc::clone(&names_own);
    pair.tap = Box::new(move |from, sent| {
        if from == 1 && crate::wire::Header::decode(&sent.payload).is_ok() {
            measure.set(measure.get().max(sent.payload.len()));
            found.set(found.get() || sent.payload.windows(20).any(|octets| octets == hash));
        }
        true
    });
    pair.configure(1);
    pair.configure(0);
    assert!(pair.is_connected(), "{:?}", pair.error_texts(0));
    assert!((100..1280).contains(&longest.get()), "{} octets", longest.get());
    assert!(names_own.get(), "the authority of the peer with this address is among them");
}
