//! Tests rekeys of CHILD_SAs that the peer refuses because it wants forward secrecy by another
//! group, where an IKE SA has several CHILD_SAs. IKE_AUTH makes one CHILD_SA without a key
//! exchange, so a new IKE SA helps only the first child. Until then, the status names each child
//! that is missing.

use std::time::Duration;

use edge_ike::config::{Cipher, Group};
use edge_ike::{ChildName, Childless, Event, PeerConfig};

use crate::foreign::{Foreign, Part, delete_child, notification};
use crate::network::LinkQuality;
use crate::oracle::octets::{Message, exchange, notify};
use crate::peers::{Pair, SECOND, with_children};

/// The lifetime of CHILD_SAs in these tests. It ends half as much later if there is no rekey.
const LIFETIME: u32 = 60;

// Notify message types (RFC 7296 3.10.1).
const INVALID_SYNTAX: u16 = 7;
const NO_PROPOSAL_CHOSEN: u16 = 14;
const NO_ADDITIONAL_SAS: u16 = 35;
const TS_UNACCEPTABLE: u16 = 38;

/// The inbound SPI of the foreign peer for `net1`.
const NET1: u32 = 0xf002;

/// Sets the group of the first child and of the additional one.
fn set_groups(config: &mut PeerConfig, [first, additional]: [Group; 2]) {
    config.child.proposals[0].groups = vec![first];
    config.additional_children[0].proposals[0].groups = vec![additional];
}

/// Makes a pair with the CHILD_SAs `net0` and `net1`. `b` changes its groups when both are up.
/// Either `a`, which has initiated, or `b` rekeys.
fn changed_after_start(groups: [Group; 2], b_rekeys: bool) -> Pair {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().both(|config| {
        with_children(config, 2);
        set_groups(config, [Group::X25519, Group::X25519]);
        config.timing.child_lifetime = LIFETIME * SECOND;
    });
    let other = if b_rekeys { &mut pair.a_config } else { &mut pair.b_config };
    other.timing.child_lifetime *= 10;
    pair.start();
    pair.traffic(3 * SECOND);
    set_groups(&mut pair.b_config, groups);
    pair.start_b();
    pair
}

impl Pair {
    /// Returns our SPI of the CHILD_SA with which a node sends for a child.
    pub fn child(&self, node: usize, child: &str) -> Option<u32> {
        let peer = if node == self.a { &self.b_name } else { &self.a_name };
        let sas = self.network.nodes[node].host.kernel.tunnels[peer].outbound.iter();
        let mut of_child = sas.filter(|(purpose, _)| purpose.child == ChildName::new(child));
        of_child.next().map(|(_, sa)| sa.inbound_spi)
    }

    pub fn last_error(&self, node: usize) -> String {
        let status = &self.network.nodes[node].endpoint.snapshot()[0];
        status.last_error.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    fn failures(&self, node: usize) -> usize {
        let failed = |(_, event): &&(_, Event)| matches!(event, Event::PeerFailed { .. });
        self.network.nodes[node].events.iter().filter(failed).count()
    }

    pub fn ike_sas_up(&self, node: usize) -> usize {
        let up = |(_, event): &&(_, Event)| matches!(event, Event::IkeUp { .. });
        self.network.nodes[node].events.iter().filter(up).count()
    }

    pub fn assert_says(&self, node: usize, words: &[&str]) {
        let error = self.last_error(node);
        let missing: Vec<_> = words.iter().filter(|word| !error.contains(**word)).collect();
        assert!(missing.is_empty(), "the status of node {node} does not say {missing:?}: {error:?}");
    }
}

#[test]
fn an_additional_child_whose_rekey_is_refused_goes_on_until_its_lifetime_ends() {
    //= RFC 7296 1.3.1 SHOULD NOT 3: a refusal ends no IKE SA
    for b_rekeys in [false, true] {
        let mut pair = changed_after_start([Group::X25519, Group::P256], b_rekeys);
        let nodes = [pair.a, pair.b];
        let of_both = |pair: &Pair, child: &str| nodes.map(|node| pair.child(node, child));
        let before = ["net0", "net1"].map(|child| of_both(&pair, child));
        // Packets of both children have to arrive.
        pair.traffic((LIFETIME * 4 / 3) * SECOND);
        let now = ["net0", "net1"].map(|child| of_both(&pair, child));
        assert!(now[0] != before[0] && now[0][0].is_some(), "net0 was not rekeyed: {}", pair.network.history());
        assert_eq!(now[1], before[1], "{}", pair.network.history());
        let [rekeying, other] = if b_rekeys { [pair.b, pair.a] } else { nodes };
        // The first child's success does not hide the failure of the other one.
        pair.assert_says(rekeying, &["child net1", "none of our proposals", "until its lifetime ends", "every 10s"]);
        pair.assert_says(other, &["child net1", "none of the peer's ESP proposals", "compare"]);
        for node in nodes {
            let failures = pair.failures(node);
            assert!((1..=5).contains(&failures), "{failures} at node {node}: {}", pair.network.history());
        }

        pair.network.run_for((LIFETIME / 3) * SECOND);
        assert_eq!(of_both(&pair, "net1"), [None, None], "{}", pair.network.history());
        assert!(of_both(&pair, "net0").iter().all(Option::is_some), "{}", pair.network.history());
        // The end that wants the child asks for it.
        pair.assert_says(pair.a, &["child net1", "none of our proposals", "it is tried again every 10s"]);
        assert_eq!(pair.ike_sas_up(pair.a), 1, "a new IKE SA does not help: {}", pair.network.history());

        set_groups(&mut pair.b_config, [Group::X25519, Group::X25519]);
        pair.start_b();
        pair.network.run_for(15 * SECOND);
        assert!(of_both(&pair, "net1").iter().all(Option::is_some), "{}", pair.network.history());
        assert_eq!(nodes.map(|node| pair.last_error(node)), ["", ""]);
    }
}

#[test]
fn a_new_ike_sa_for_the_first_child_ends_the_additional_one_that_it_cannot_have_and_the_error_names_it() {
    for b_rekeys in [false, true] {
        let mut pair = changed_after_start([Group::P256, Group::P256], b_rekeys);
        let nodes = [pair.a, pair.b];
        pair.network.run_for((LIFETIME * 5 / 3) * SECOND);
        assert!(pair.ike_sas_up(pair.a) > 1, "no new IKE SA has brought net0: {}", pair.network.history());
        // Either end may ask for the child on the new IKE SA.
        pair.assert_says(pair.a, &["child net1", "compare"]);
        for node in nodes {
            assert!(pair.child(node, "net0").is_some(), "{}", pair.network.history());
            assert_eq!(pair.child(node, "net1"), None, "{}", pair.network.history());
            assert_eq!(pair.network.nodes[node].host.kernel.ike_sas.len(), 1, "{}", pair.network.history());
        }
        set_groups(&mut pair.b_config, [Group::X25519, Group::X25519]);
        pair.start_b();
        pair.network.run_for(15 * SECOND);
        for node in nodes {
            assert!(pair.child(node, "net1").is_some(), "{}", pair.network.history());
            assert_eq!(pair.last_error(node), "");
        }
    }
}

/// Makes a pair with three CHILD_SAs. The ends have these groups for the additional ones.
fn with_groups_of_additional(a: [Group; 2], b: [Group; 2]) -> Pair {
    let mut pair = Pair::new(3, LinkQuality::RELIABLE).one_sided().both(|config| with_children(config, 3));
    for (config, groups) in [(&mut pair.a_config, a), (&mut pair.b_config, b)] {
        config.child.proposals[0].groups = vec![Group::X25519];
        for (child, group) in config.additional_children.iter_mut().zip(groups) {
            child.proposals[0].groups = vec![group];
        }
    }
    pair.start();
    pair.network.run_for(3 * SECOND);
    pair
}

#[test]
fn each_child_that_is_missing_stands_in_the_status_until_it_is_negotiated() {
    let mut pair = with_groups_of_additional([Group::X25519; 2], [Group::P256; 2]);
    let nodes = [pair.a, pair.b];
    let name = pair.b_name.clone();
    // Neither another request for one of them hides the other one, nor a rekey of the first child,
    // nor a rekey of the IKE SA, nor a new IKE SA.
    let last = pair.last_error(pair.a);
    for what in 0..4 {
        assert!(pair.network.call(pair.a, |endpoint, now, env| match what {
            0 => true,
            1 => endpoint.rekey_children_named(&name, &ChildName::new("net0"), now, env),
            2 => endpoint.rekey_ike(&name, now, env),
            _ => endpoint.reauthenticate(&name, now, env),
        }));
        // Less than a round trip, in which a new IKE SA asks for the children.
        let step = SECOND / 500;
        for _ in 0..25 * 500 {
            pair.network.run_for(step);
            for node in nodes {
                pair.assert_says(node, &["child net1", "also failed: net2"]);
            }
        }
        assert_eq!(pair.last_error(pair.a), last, "the status changes from one attempt to the next");
    }
    for (index, words) in [(0, &["child net2", "none of our proposals"][..]), (1, &[])] {
        pair.b_config.additional_children[index].proposals[0].groups = vec![Group::X25519];
        pair.start_b();
        pair.network.run_for(15 * SECOND);
        pair.assert_says(pair.a, words);
        let error = pair.last_error(pair.a);
        assert!(!error.contains("net1") && error.is_empty() == words.is_empty(), "{error}");
    }
    assert_eq!(nodes.map(|node| pair.last_error(node)), ["", ""]);
}

#[test]
fn the_error_about_a_child_shows_the_proposals_of_this_child_alone() {
    let pair = with_groups_of_additional([Group::P384, Group::P521], [Group::P256, Group::P521]);
    for (node, words) in [(pair.a, "ESP: AES_GCM_16-256/ECP_384"), (pair.b, "configured here: AES_GCM_16-256/ECP_256")]
    {
        pair.assert_says(node, &["child net1", words]);
        let error = pair.last_error(node);
        assert!(!error.contains("25519") && !error.contains("521"), "{error}");
    }
}

#[test]
fn where_ike_auth_leaves_out_the_child_its_refusal_begins_no_new_ike_sa() {
    let mut pair = Pair::new(2, LinkQuality::RELIABLE).one_sided().both(|config| config.childless = Childless::Prefer);
    pair.a_config.child.proposals[0].groups = vec![Group::X25519];
    pair.b_config.child.proposals[0].groups = vec![Group::P256];
    pair.start();
    pair.network.run_for(LIFETIME * SECOND);
    assert_eq!(pair.ike_sas_up(pair.a), 1, "{}", pair.network.history());
    pair.assert_says(pair.a, &["none of our proposals", "it is tried again every 10s"]);
}

#[test]
fn where_the_peer_cannot_leave_it_out_a_new_ike_sa_brings_the_first_child_at_once() {
    let mut pair = Pair::new(5, LinkQuality::RELIABLE).one_sided().both(|config| {
        with_children(config, 2);
        config.timing.child_lifetime = LIFETIME * SECOND;
    });
    set_groups(&mut pair.a_config, [Group::X25519, Group::X25519]);
    set_groups(&mut pair.b_config, [Group::P256, Group::X25519]);
    // The first child of `b` is another one, so `b` does not begin.
    let b_config = &mut pair.b_config;
    std::mem::swap(&mut b_config.child, &mut b_config.additional_children[0]);
    (pair.a_config.childless, pair.b_config.childless) = (Childless::Prefer, Childless::Never);
    pair.b_config.timing.child_lifetime *= 10;
    pair.start();
    pair.traffic(3 * SECOND);
    let before = pair.child(pair.a, "net0");
    // The rekey is due at the end of the lifetime, and the CHILD_SA ends half a lifetime later.
    pair.traffic(LIFETIME * SECOND);
    let now = pair.child(pair.a, "net0");
    assert!(before.is_some() && now.is_some() && before != now, "{}", pair.network.history());
    assert_eq!(pair.ike_sas_up(pair.a), 2, "{}", pair.network.history());
}

/// Makes a foreign peer that has `net0` by IKE_AUTH and `net1` by CREATE_CHILD_SA. We want both.
fn foreign_with_two_children() -> Foreign {
    let mut foreign = Foreign::established(1, |config| {
        with_children(config, 2);
        config.initiate = true;
    });
    let answer = foreign.request(exchange::CREATE_CHILD_SA, &Foreign::child_parts(NET1, [1; 32])).remove(0);
    assert_eq!(answer.error(), None);
    foreign
}

/// What the foreign peer answers to our requests.
type Answer<'a> = &'a dyn Fn(&Message) -> Vec<Part>;

/// Refuses each CREATE_CHILD_SA.
fn refusing(kind: u16) -> impl Fn(&Message) -> Vec<Part> {
    move |request| match request.header.exchange {
        exchange::CREATE_CHILD_SA => vec![notification(kind, 0, &[], &[])],
        _ => Vec::new(),
    }
}

impl Foreign {
    /// Sends a datagram and answers all requests for a while. Returns how long it took until we
    /// began another IKE SA, if we did.
    fn begun_within(&mut self, time: Duration, datagram: Vec<u8>, answer: Answer<'_>) -> Option<Duration> {
        let start = self.network.now;
        let mut arrived = self.exchange(datagram);
        while self.network.now < start + time {
            for datagram in std::mem::take(&mut arrived) {
                if datagram[18] == exchange::IKE_SA_INIT {
                    return Some(self.network.now - start);
                }
                let message = self.open(&datagram);
                if !message.header.response() {
                    let parts = answer(&message);
                    let datagram = self.seal(message.header.exchange, true, message.header.id, &parts);
                    arrived.extend(self.exchange(datagram));
                }
            }
            self.network.run_for(SECOND / 50);
            arrived.extend(self.arrived());
        }
        None
    }

    /// Deletes `net0` after some time and refuses to create it again. Returns how long it took
    /// until we began another IKE SA, if we did within 15 s.
    fn deletes_first_child_after(&mut self, time: Duration, refusal: u16) -> Option<Duration> {
        let answer = refusing(refusal);
        let liveness = self.seal(exchange::INFORMATIONAL, false, self.next_id, &[]);
        self.next_id += 1;
        assert_eq!(self.begun_within(time, liveness, &answer), None, "both children are up");
        let deletion = self.seal(exchange::INFORMATIONAL, false, self.next_id, &[delete_child(self.child.0)]);
        self.next_id += 1;
        self.begun_within(15 * SECOND, deletion, &answer)
    }
}

#[test]
fn where_only_the_first_child_is_missing_and_refused_a_new_ike_sa_brings_it_at_once() {
    // The last one is pluto's answer to another group.
    for refusal in [NO_PROPOSAL_CHOSEN, notify::INVALID_KE_PAYLOAD, INVALID_SYNTAX] {
        let mut foreign = foreign_with_two_children();
        let begun = foreign.deletes_first_child_after(12 * SECOND, refusal);
        assert!(begun.is_some_and(|begun| begun < SECOND / 5), "refused by {refusal}: {begun:?}");
        let status = &foreign.network.nodes[0].endpoint.snapshot()[0];
        assert_eq!(status.children.len(), 1, "net1 goes on");
        assert!(status.last_error.as_ref().is_some_and(|error| error.to_string().contains("child net0")));
        // A peer that does so with each new IKE SA has ten seconds from one to the next.
        let begun = foreign_with_two_children().deletes_first_child_after(SECOND, refusal);
        assert!(begun.is_some_and(|begun| begun > 9 * SECOND), "refused by {refusal}: {begun:?}");
    }
}

#[test]
fn no_new_ike_sa_follows_a_refusal_that_it_would_not_overcome_or_if_other_children_might_not_come_again() {
    for refusal in [NO_ADDITIONAL_SAS, TS_UNACCEPTABLE] {
        let begun = foreign_with_two_children().deletes_first_child_after(12 * SECOND, refusal);
        assert_eq!(begun, None, "refused by {refusal}");
    }
    // The peer has refused to rekey net1.
    let mut foreign = foreign_with_two_children();
    let (name, child) = (foreign.config.name.clone(), ChildName::new("net1"));
    assert!(foreign.network.call(0, |endpoint, now, env| endpoint.rekey_children_named(&name, &child, now, env)));
    assert_eq!(foreign.deletes_first_child_after(12 * SECOND, NO_PROPOSAL_CHOSEN), None);
    let status = &foreign.network.nodes[0].endpoint.snapshot()[0];
    assert_eq!(status.children.len(), 1, "net1 goes on");
}

#[test]
fn a_new_ike_sa_that_does_not_bring_the_first_child_either_is_not_begun_again_and_again() {
    for b_rekeys in [false, true] {
        no_ike_sa_is_begun_again_and_again(b_rekeys);
    }
}

fn no_ike_sa_is_begun_again_and_again(b_rekeys: bool) {
    let mut pair = Pair::new(6, LinkQuality::RELIABLE).one_sided().both(|config| {
        with_children(config, 2);
        config.timing.child_lifetime = LIFETIME * SECOND;
    });
    // The first child of `b` is another one, so `b` does not begin.
    let b_config = &mut pair.b_config;
    std::mem::swap(&mut b_config.child, &mut b_config.additional_children[0]);
    let lifetimes = if b_rekeys { &mut pair.a_config.timing } else { &mut b_config.timing };
    lifetimes.child_lifetime *= 10;
    pair.start();
    pair.traffic(3 * SECOND);
    let net0 = &mut pair.b_config.additional_children[0].proposals[0];
    let ciphers = std::mem::replace(&mut net0.ciphers, vec![Cipher::ChaCha20Poly1305]);
    pair.start_b();
    pair.network.run_for((LIFETIME * 5 / 3) * SECOND);
    let before = pair.ike_sas_up(pair.a);
    pair.network.run_for(120 * SECOND);
    assert!(pair.ike_sas_up(pair.a) <= before + 1, "{}", pair.network.history());
    pair.assert_says(pair.a, &["child net0", "none of our proposals", "it is tried again every 10s"]);
    let nodes = [pair.a, pair.b];
    for node in nodes {
        assert!(pair.child(node, "net0").is_none() && pair.child(node, "net1").is_some());
        assert_eq!(pair.network.nodes[node].host.kernel.ike_sas.len(), 1, "{}", pair.network.history());
    }
    // IKE_AUTH would create it now, and CREATE_CHILD_SA does not. After a while IKE_AUTH is tried.
    let net0 = &mut pair.b_config.additional_children[0].proposals[0];
    (net0.ciphers, net0.groups) = (ciphers, vec![Group::P521]);
    pair.start_b();
    pair.network.run_for(660 * SECOND);
    assert!(nodes.iter().all(|node| pair.child(*node, "net0").is_some()), "{}", pair.network.history());
}

#[test]
fn a_single_child_comes_again_as_soon_as_ike_auth_creates_it_and_has_no_pause_before() {
    let mut pair = Pair::new(7, LinkQuality::RELIABLE).one_sided().both(|config| {
        config.child.proposals[0].groups = vec![Group::X25519];
        config.timing.child_lifetime = LIFETIME * SECOND;
    });
    pair.b_config.timing.child_lifetime *= 10;
    pair.start();
    pair.traffic(3 * SECOND);
    let of_b = &mut pair.b_config.child.proposals[0];
    let ciphers = std::mem::replace(&mut of_b.ciphers, vec![Cipher::ChaCha20Poly1305]);
    pair.start_b();
    pair.network.run_for(LIFETIME * 2 * SECOND);
    let nodes = [pair.a, pair.b];
    let has = |pair: &Pair| {
        nodes
            .iter()
            .all(|node| !pair.network.nodes[*node].host.kernel.tunnels.values().all(|it| it.outbound.is_empty()))
    };
    assert!(!has(&pair), "{}", pair.network.history());
    let of_b = &mut pair.b_config.child.proposals[0];
    (of_b.ciphers, of_b.groups) = (ciphers, vec![Group::P256]);
    pair.start_b();
    pair.network.run_for(15 * SECOND);
    assert!(has(&pair), "{}", pair.network.history());
}

/// The first child of each end is the additional one of the other end. `b` begins, so IKE_AUTH
/// creates `net1`, and the groups of `net0` differ.
#[test]
fn ends_with_different_first_children_do_not_end_each_others() {
    for groups_of_net1_differ in [false, true] {
        let of_b = if groups_of_net1_differ { Group::P256 } else { Group::X25519 };
        let mut pair = Pair::new(4, LinkQuality::RELIABLE).both(|config| with_children(config, 2));
        set_groups(&mut pair.a_config, [Group::X25519, Group::X25519]);
        set_groups(&mut pair.b_config, [Group::P256, of_b]);
        let b_config = &mut pair.b_config;
        std::mem::swap(&mut b_config.child, &mut b_config.additional_children[0]);
        pair.a_config.initiate = false;
        pair.start();
        pair.traffic(3 * SECOND);
        pair.a_config.initiate = true;
        pair.start_a();
        let nodes = [pair.a, pair.b];
        // Nothing shows yet that net1 can be created by CREATE_CHILD_SA too.
        pair.traffic(30 * SECOND);
        for node in nodes {
            pair.assert_says(node, &["child net0"]);
            assert!(pair.child(node, "net1").is_some() && pair.child(node, "net0").is_none());
        }
        assert_eq!(pair.ike_sas_up(pair.a), 1, "{}", pair.network.history());
        let (name, child) = (pair.b_name.clone(), ChildName::new("net1"));
        pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_children_named(&name, &child, now, env));
        // No packet of net1 is lost.
        pair.traffic(90 * SECOND);
        // IKE_AUTH has never created net0. A refused rekey of net1 makes `b` begin a new IKE SA.
        let expected = if groups_of_net1_differ { [2, 2] } else { [1, 1] };
        assert_eq!(nodes.map(|node| pair.ike_sas_up(node)), expected, "{}", pair.network.history());
        for node in nodes {
            assert!(pair.child(node, "net1").is_some(), "{}", pair.network.history());
            assert_eq!(pair.child(node, "net0"), None, "{}", pair.network.history());
        }
        pair.network.assert_tidy();
    }
}
