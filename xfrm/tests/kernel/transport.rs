//! Tests transport mode (RFC 4301 4.1): SAs and policies between the addresses of two hosts.

use edge_xfrm::{Direction, Mode, Policy, SaDirection, SaParams, Xfrm};

use crate::Needs::Esp;
use crate::Test;
use crate::namespace::{receive, sa};
use crate::pair::{Pair, pair, read, reversed};
use crate::policies::selector;

pub(crate) const TESTS: &[Test] = &[
    ("transport_mode_protects_what_two_hosts_send_each_other_and_nothing_else", Esp, two_hosts),
    ("packets_of_a_tunnel_are_refused_where_transport_mode_is_wanted", Esp, other_mode),
    ("a_policy_in_transport_mode_is_found_as_it_was_installed", Esp, found_again),
];

fn policies(sa: &SaParams, direction: Direction) -> [Policy; 1] {
    let selector = selector(&sa.source.to_string(), &sa.destination.to_string());
    [Policy::protect_transport(direction, selector, sa.reqid)]
}

/// Installs the SAs for both directions, and the policies, at both hosts.
fn connect(pair: &Pair, forth: &SaParams, spi: u32) {
    let back = reversed(forth, spi);
    for (namespace, outbound, inbound) in [(&pair.a, forth, &back), (&pair.b, &back, forth)] {
        let outbound = SaParams { direction: SaDirection::Out, ..outbound.clone() };
        let inbound = SaParams { direction: SaDirection::In, ..inbound.clone() };
        namespace.run(move || {
            let mut xfrm = Xfrm::open().unwrap();
            xfrm.install_inbound(&inbound).unwrap();
            xfrm.add_sa(&outbound).unwrap();
            for policy in [policies(&outbound, Direction::Out), policies(&inbound, Direction::In)].concat() {
                xfrm.install_policy(&policy).unwrap();
            }
        });
    }
}

fn two_hosts() {
    for (a, b, server) in [("192.0.2.1", "192.0.2.2", "192.0.2.2:7"), ("2001:db8::1", "2001:db8::2", "[2001:db8::2]:7")]
    {
        let pair = pair();
        let forth = SaParams { mode: Mode::Transport, ..sa(SaDirection::Out, a, b, 0x1000, 1) };
        // Let neighbour discovery happen before the policies require ESP.
        let listener = pair.b.listen(server);
        pair.a.send(a, server, "clear");
        assert_eq!(receive(&listener), "clear");
        connect(&pair, &forth, 0x1001);
        pair.a.send(a, server, "protected");
        assert_eq!(receive(&listener), "protected");
        let seen = read(&pair.b, forth.id());
        assert_eq!((seen.mode, seen.counters.packets), (0, 1), "{seen:?}");
        // The policy does not match another address of the host.
        let other = if a.contains(':') { "fd77::1" } else { "10.77.0.1" };
        pair.b.ip(&format!("route add {other} via {a}"));
        pair.a.send(other, server, "in clear");
        assert_eq!(receive(&listener), "in clear");
        assert_eq!(read(&pair.b, forth.id()).counters.packets, 1);
    }
}

fn other_mode() {
    let pair = pair();
    let forth = SaParams { mode: Mode::Transport, ..sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1) };
    connect(&pair, &forth, 0x1001);
    let tunnel = SaParams { mode: Mode::Tunnel, spi: 0x2000, ..forth.clone() };
    let out = Policy::protect_out(selector("192.0.2.1", "192.0.2.2"), tunnel.reqid, tunnel.source, tunnel.destination);
    let (inbound, outbound) = (SaParams { direction: SaDirection::In, ..tunnel.clone() }, tunnel);
    pair.b.run(move || Xfrm::open().unwrap().install_inbound(&inbound).unwrap());
    pair.a.run(move || {
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.add_sa(&outbound).unwrap();
        assert!(xfrm.install_policy(&out).unwrap(), "it replaces the one in transport mode");
    });
    let _listener = pair.b.listen("192.0.2.2:7");
    pair.a.send("192.0.2.1", "192.0.2.2:7", "in a tunnel");
    pair.b.await_counter("XfrmInTmplMismatch", 1);
}

fn found_again() {
    let pair = pair();
    let forth = SaParams { mode: Mode::Transport, ..sa(SaDirection::Out, "2001:db8::1", "2001:db8::2", 0x1000, 1) };
    let [policy] = policies(&forth, Direction::Out);
    pair.a.run(move || {
        let mut xfrm = Xfrm::open().unwrap();
        assert!(xfrm.install_policy(&policy).unwrap());
        let seen = xfrm.policy(&policy).unwrap().unwrap();
        assert!(seen.is_ours() && seen.matches(&policy), "{seen:?}");
        assert!(!xfrm.install_policy(&policy).unwrap(), "it is the same");
        // The switch replaces the policy by an identical one, so that the kernel looks up the new
        // SA.
        xfrm.add_sa(&forth).unwrap();
        let new = SaParams { spi: 0x1002, ..forth.clone() };
        assert!(xfrm.begin_switch_under(&new, forth.id(), &[policy]).unwrap());
        assert!(xfrm.policy(&policy).unwrap().unwrap().matches(&policy));
    });
}
