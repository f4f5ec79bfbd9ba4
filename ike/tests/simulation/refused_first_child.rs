//! Tests peers that refuse a CHILD_SA of the first of several children in IKE_AUTH (RFC 7296 1.2:
//! the IKE SA is created nevertheless).

use edge_ike::config::{Cipher, Group};
use edge_ike::{Childless, PeerConfig};

use crate::network::LinkQuality;
use crate::peers::{Pair, SECOND, with_children};

#[test]
pub fn the_other_children_come_up_although_ike_auth_has_refused_the_first_one() {
    let mut pair = Pair::new(8, LinkQuality::RELIABLE).one_sided().both(|config| with_children(config, 3));
    let net0 = &mut pair.b_config.child.proposals[0];
    let ciphers = std::mem::replace(&mut net0.ciphers, vec![Cipher::ChaCha20Poly1305]);
    pair.start();
    let nodes = [pair.a, pair.b];
    let are_up = |pair: &Pair, child: &str| nodes.map(|node| pair.child(node, child).is_some());
    for time in [3, 60] {
        pair.network.run_for(time * SECOND);
        for child in ["net1", "net2"] {
            assert_eq!(are_up(&pair, child), [true; 2], "{child}: {}", pair.network.history());
        }
        // The success of the other ones does not hide the failure of the first one.
        pair.assert_says(pair.a, &["child net0", "none of our proposals"]);
        pair.assert_says(pair.b, &["child net0", "none of the peer's ESP proposals"]);
    }
    assert_eq!(pair.ike_sas_up(pair.a), 1, "{}", pair.network.history());
    pair.b_config.child.proposals[0].ciphers = ciphers;
    pair.start_b();
    pair.network.run_for(15 * SECOND);
    assert_eq!(are_up(&pair, "net0"), [true; 2], "{}", pair.network.history());
    assert_eq!(nodes.map(|node| pair.last_error(node)), ["", ""]);
    assert_eq!(pair.ike_sas_up(pair.a), 1, "{}", pair.network.history());
    pair.network.assert_tidy();
}

/// Makes a pair with two CHILD_SAs. `b` has another cipher for those of `refused`.
fn refusing_ciphers(seed: u64, refused: &[usize]) -> Pair {
    let mut pair = Pair::new(seed, LinkQuality::RELIABLE).one_sided().both(|config| with_children(config, 2));
    for child in refused {
        set_cipher(&mut pair.b_config, *child, Cipher::ChaCha20Poly1305);
    }
    pair
}

fn set_cipher(config: &mut PeerConfig, child: usize, cipher: Cipher) {
    let child = if child == 0 { &mut config.child } else { &mut config.additional_children[child - 1] };
    child.proposals[0].ciphers = vec![cipher];
}

#[test]
fn where_all_children_are_refused_a_new_ike_sa_follows_when_the_peer_ends_the_last_one() {
    let mut pair = refusing_ciphers(9, &[0, 1]);
    let ours = pair.a_config.child.proposals[0].ciphers[0];
    pair.start();
    let nodes = [pair.a, pair.b];
    pair.network.run_for(590 * SECOND);
    pair.assert_says(pair.a, &["child net0", "none of our proposals", "also failed: net1"]);
    // `b` ends an IKE SA without a CHILD_SA after a minute.
    let attempts = pair.ike_sas_up(pair.a);
    assert!((5..=10).contains(&attempts), "{attempts} in ten minutes: {}", pair.network.history());
    // IKE_AUTH creates it now, and CREATE_CHILD_SA would not.
    set_cipher(&mut pair.b_config, 0, ours);
    pair.b_config.child.proposals[0].groups = vec![Group::P521];
    pair.start_b();
    pair.network.run_for(80 * SECOND);
    assert!(nodes.iter().all(|node| pair.child(*node, "net0").is_some()), "{}", pair.network.history());
    pair.assert_says(pair.a, &["child net1"]);
}

#[test]
fn a_child_that_comes_up_beside_a_refused_first_one_ends_the_attempts_for_that_one() {
    let mut pair = refusing_ciphers(10, &[0, 1]);
    let ours = pair.a_config.child.proposals[0].ciphers[0];
    pair.start();
    pair.network.run_for(30 * SECOND);
    let before = pair.ike_sas_up(pair.a);
    set_cipher(&mut pair.b_config, 1, ours);
    pair.start_b();
    pair.network.run_for(1300 * SECOND);
    assert!(pair.child(pair.a, "net1").is_some(), "{}", pair.network.history());
    assert_eq!(pair.ike_sas_up(pair.a), before, "{}", pair.network.history());
    pair.assert_says(pair.a, &["child net0"]);
}

#[test]
fn another_authentication_moves_the_other_children_although_the_first_one_is_refused() {
    let mut pair = refusing_ciphers(11, &[0]);
    pair.start();
    pair.network.run_for(3 * SECOND);
    let nodes = [pair.a, pair.b];
    let net1 = |pair: &Pair| nodes.map(|node| pair.child(node, "net1"));
    for time in 2..4 {
        let before = net1(&pair);
        assert!(before.iter().all(Option::is_some), "{}", pair.network.history());
        let name = pair.b_name.clone();
        assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&name, now, env)));
        pair.traffic(30 * SECOND);
        let now = net1(&pair);
        assert!(now.iter().all(Option::is_some) && now != before, "{}", pair.network.history());
        assert_eq!(pair.ike_sas_up(pair.a), time, "{}", pair.network.history());
        pair.assert_says(pair.a, &["child net0"]);
    }
    pair.network.assert_tidy();
}

#[test]
fn an_ike_sa_that_a_packet_wanted_ends_where_all_children_are_refused() {
    for childless in [Childless::Allow, Childless::Prefer] {
        let mut pair = refusing_ciphers(12, &[0, 1]).both(|config| config.childless = childless);
        pair.a_config.initiate = false;
        // `b` keeps an IKE SA without a CHILD_SA.
        pair.b_config.initiate = true;
        pair.b_config.remotes.clear();
        pair.start();
        let name = pair.b_name.clone();
        assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.connect(&name, now, env)));
        // `b` may begin once to where this IKE SA ends.
        for time in [100, 1400] {
            pair.network.run_for(time * SECOND);
            assert!((1..=2).contains(&pair.ike_sas_up(pair.a)), "{}", pair.network.history());
            let ike_sas = |node: usize| pair.network.nodes[node].host.kernel.ike_sas.len();
            assert_eq!((ike_sas(pair.a), ike_sas(pair.b)), (0, 0), "{}", pair.network.history());
        }
    }
}

/// `b` refuses a CHILD_SA in IKE_AUTH, and creates each by CREATE_CHILD_SA.
#[test]
fn a_first_child_that_only_create_child_sa_brings_moves_to_each_new_ike_sa() {
    let mut pair = Pair::new(14, LinkQuality::RELIABLE).one_sided().both(|config| with_children(config, 2));
    pair.b_config.childless = Childless::Force;
    pair.start();
    pair.network.run_for(15 * SECOND);
    let nodes = [pair.a, pair.b];
    let children = |pair: &Pair| ["net0", "net1"].map(|child| nodes.map(|node| pair.child(node, child)));
    for time in 2..4 {
        let before = children(&pair);
        assert!(before.as_flattened().iter().all(Option::is_some), "{}", pair.network.history());
        let name = pair.b_name.clone();
        assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&name, now, env)));
        pair.traffic(60 * SECOND);
        let now = children(&pair);
        assert!(now.as_flattened().iter().all(Option::is_some), "{}", pair.network.history());
        assert!(now[0] != before[0] && now[1] != before[1], "{}", pair.network.history());
        assert_eq!(pair.ike_sas_up(pair.a), time, "{}", pair.network.history());
    }
    pair.network.assert_tidy();
}

#[test]
fn an_ike_sa_can_be_replaced_although_the_peer_creates_no_child_by_ike_auth_any_more() {
    let mut pair = Pair::new(15, LinkQuality::RELIABLE).one_sided().both(|config| with_children(config, 2));
    pair.start();
    pair.traffic(3 * SECOND);
    pair.b_config.childless = Childless::Force;
    pair.start_b();
    let nodes = [pair.a, pair.b];
    let name = pair.b_name.clone();
    assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&name, now, env)));
    pair.traffic(60 * SECOND);
    for child in ["net0", "net1"] {
        assert!(nodes.iter().all(|node| pair.child(*node, child).is_some()), "{}", pair.network.history());
    }
    // The first one is given up, since IKE_AUTH has created the child before, and the second stays.
    assert_eq!(pair.ike_sas_up(pair.a), 3, "{}", pair.network.history());
    pair.network.assert_tidy();
}

/// charon does so with `close_ike_on_child_failure`.
#[test]
fn a_peer_that_closes_the_ike_sa_when_it_has_refused_a_child_is_not_tried_again_at_once() {
    for refused in [&[0, 1][..], &[0]] {
        let mut pair = refusing_ciphers(13, refused);
        pair.start();
        let name = pair.a_name.clone();
        for _ in 0..600 {
            pair.network.run_for(SECOND / 10);
            pair.network.call(pair.b, |endpoint, now, env| endpoint.terminate(&name, now, env));
        }
        let attempts = pair.ike_sas_up(pair.a);
        assert!((2..=20).contains(&attempts), "{attempts} in a minute: {}", pair.network.history());
    }
}
