//! Tests the rate at which a peer that has authenticated may rekey and create SAs.

use edge_ike::event::PeerErrorKind;

use crate::foreign::{Foreign, delete_child};
use crate::network::LinkQuality;
use crate::oracle::octets::{exchange, notify, payload};
use crate::peers::{Pair, SECOND, with_children};

/// A foreign peer that rekeys without pause.
struct Restless {
    foreign: Foreign,
    /// The peer's inbound SPI of the CHILD_SA.
    child: u32,
    /// The peer's SPI of the next IKE SA.
    ike: u64,
}

impl Restless {
    /// Rekeys the CHILD_SA and deletes the old one. Returns whether the rekey was refused.
    fn rekey_child(&mut self) -> bool {
        let new = self.child + 1;
        let rekey = Foreign::rekey_parts(self.child, new);
        let answer = self.foreign.request(exchange::CREATE_CHILD_SA, &rekey).remove(0);
        if answer.error().is_some() {
            assert_eq!(answer.error(), Some(notify::TEMPORARY_FAILURE));
            return true;
        }
        self.foreign.request(exchange::INFORMATIONAL, &[delete_child(self.child)]);
        self.child = new;
        false
    }

    /// Rekeys the IKE SA. Returns whether the rekey was refused.
    fn rekey_ike(&mut self) -> bool {
        self.ike += 1;
        let parts = self.foreign.rekey_ike_parts(self.ike);
        let answer = self.foreign.request(exchange::CREATE_CHILD_SA, &parts).remove(0);
        if answer.error().is_some() {
            assert_eq!(answer.error(), Some(notify::TEMPORARY_FAILURE));
            return true;
        }
        self.foreign.request(exchange::INFORMATIONAL, &[(payload::DELETE, vec![1, 0, 0, 0])]);
        self.foreign.take_rekeyed(&answer, self.ike);
        false
    }

    /// Sends nothing but liveness checks for 20 s.
    fn pause(&mut self) {
        for _ in 0..20 {
            self.foreign.network.run_for(SECOND);
            self.foreign.arrived();
            self.foreign.request(exchange::INFORMATIONAL, &[]);
        }
    }

    /// Returns the number of requests that the endpoint says it has refused.
    fn refused(&self) -> u32 {
        self.foreign.network.nodes[0].endpoint.snapshot()[0].requests_refused
    }

    /// Returns how often the endpoint has reported the limit.
    fn reports(&self) -> usize {
        let errors = self.foreign.network.nodes[0].errors();
        errors.iter().filter(|kind| **kind == PeerErrorKind::TooManyRequests).count()
    }
}

#[test]
pub fn a_peer_that_rekeys_in_a_loop_is_made_to_wait_and_keeps_its_tunnel() {
    //= RFC 7296 2.25 SHOULD 1: TEMPORARY_FAILURE
    let foreign = Foreign::established(1, |_| {});
    let mut peer = Restless { child: foreign.child.0, foreign, ike: 0x7000 };
    // A rekey takes two exchanges of 20 ms here, so about every second one is beyond the rate.
    let mut refused = 0;
    for round in 0..600 {
        // The limit outlives the IKE SA: a new one does not begin with a new burst.
        refused += u32::from(if round % 100 == 99 { peer.rekey_ike() } else { peer.rekey_child() });
        assert!(round > 150 || refused == 0, "round {round}");
    }
    assert!(refused > 150, "{refused}");
    assert_eq!((peer.refused(), peer.reports()), (refused, 1));
    let kernel = &peer.foreign.network.nodes[0].host.kernel;
    assert_eq!(kernel.tunnels[&peer.foreign.config.name].sole_outbound().unwrap().outbound_spi, peer.child);
    assert_eq!(kernel.reserved.len(), 0);
    // After a pause the peer may rekey again, and the next excess is reported again.
    peer.pause();
    let rounds = (0..400).take_while(|_| !peer.rekey_child()).count();
    assert!((150..400).contains(&rounds), "{rounds}");
    assert_eq!((peer.refused(), peer.reports()), (refused + 1, 2));
}

#[test]
fn both_ends_that_rekey_64_child_sas_and_the_ike_sa_at_once_are_not_refused() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).both(|config| with_children(config, 64));
    pair.start();
    pair.traffic(15 * SECOND);
    for _ in 0..2 {
        for (node, peer) in [(pair.a, pair.b_name.clone()), (pair.b, pair.a_name.clone())] {
            pair.network.call(node, |endpoint, now, env| endpoint.rekey_children(&peer, now, env));
        }
        pair.traffic(10 * SECOND);
        let peer = pair.b_name.clone();
        pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_ike(&peer, now, env));
        pair.traffic(10 * SECOND);
    }
    for (node, peer) in [(pair.a, &pair.b_name), (pair.b, &pair.a_name)] {
        let node = &pair.network.nodes[node];
        assert_eq!(node.host.kernel.tunnels[peer].outbound.len(), 64);
        assert_eq!(node.endpoint.snapshot()[0].requests_refused, 0);
        assert!(!node.errors().contains(&PeerErrorKind::TooManyRequests));
    }
}
