//! Tests which data the agent reads about its uplinks before its first report.

use std::net::IpAddr;
use std::path::Path;

use edge_agent::config::Config;
use edge_agent::desired::Desired;
use edge_agent::host::read_uplink;
use edge_agent::membership::UplinkFacts;
use interop_tests::netns::{UnnamedNamespace, enter, is_root_or_skips};

/// Returns what the agent reads about its uplinks in a namespace that `ip` has set up.
fn facts(lines: &[&str]) -> UplinkFacts {
    let namespace = UnnamedNamespace::new();
    for line in lines {
        assert!(namespace.command("ip").args(line.split(' ')).status().unwrap().success(), "{line}");
    }
    let path = namespace.path();
    let facts = std::thread::spawn(move || {
        enter(Path::new(&path));
        let text = "[controller]\nurls = [\"https://cloud.example:8443\"]\ntoken_file = \"token\"\n";
        let config = Config::parse(text, Path::new("agent.toml")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(read_uplink(&config, &Desired::default())).unwrap()
    });
    facts.join().unwrap()
}

#[test]
fn a_veth_with_both_ends_on_the_node_is_no_uplink_and_one_that_leads_elsewhere_may_be() {
    if !is_root_or_skips() {
        return;
    }
    let elsewhere = UnnamedNamespace::new();
    let facts = facts(&[
        "link add uplink type veth peer name far",
        "link set far up",
        "link set uplink up",
        "addr add 192.0.2.10/24 dev uplink",
        "route add default via 192.0.2.1",
        // As Cilium makes them.
        "link add cilium_net type veth peer name cilium_host",
        "link set cilium_net up",
        "link set cilium_host up",
        "addr add 10.244.2.7/32 dev cilium_host",
        &format!("link add second type veth peer name far netns {}", elsewhere.pid()),
        "link set second up",
        "addr add 192.0.2.77/24 dev second",
    ]);
    let expected: Vec<IpAddr> = ["192.0.2.10", "192.0.2.77"].iter().map(|text| text.parse().unwrap()).collect();
    assert_eq!(facts.addresses, expected, "{facts:?}");
}

#[test]
fn addresses_of_both_families_and_the_mtu_are_there_before_the_first_report() {
    if !is_root_or_skips() {
        return;
    }
    let facts = facts(&[
        "link add uplink type veth peer name far",
        "link set far up",
        "link set uplink up",
        "addr add 192.0.2.10/24 dev uplink",
        "addr add 2001:db8::10/64 dev uplink nodad",
        "route add default via 192.0.2.1",
        "-6 route add default via 2001:db8::1",
    ]);
    let expected = ["192.0.2.10", "2001:db8::10"].map(|text| text.parse().unwrap());
    assert!(expected.iter().all(|address| facts.addresses.contains(address)), "{facts:?}");
    assert!((1280..1500).contains(&facts.pod_mtu), "{facts:?}");
    assert_eq!(facts.underlay.gateways.len(), 2, "{facts:?}");
}

#[test]
fn both_next_hops_of_a_multipath_default_route_are_uplinks_whose_gateways_are_known() {
    if !is_root_or_skips() {
        return;
    }
    let facts = facts(&[
        "link add wan1 type veth peer name far1",
        "link add wan2 mtu 1400 type veth peer name far2",
        "link set far1 up",
        "link set far2 up",
        "link set wan1 up",
        "link set wan2 up",
        "addr add 192.0.2.10/24 dev wan1",
        "addr add 198.51.100.10/24 dev wan2",
        "addr add 2001:db8:1::10/64 dev wan1 nodad",
        "addr add 2001:db8:2::10/64 dev wan2 nodad",
        "route add default nexthop via 192.0.2.1 nexthop via 198.51.100.1",
        "-6 route add default nexthop via 2001:db8:1::1 nexthop via 2001:db8:2::1",
    ]);
    let mut gateways: Vec<String> = facts.underlay.gateways.iter().map(ToString::to_string).collect();
    gateways.sort();
    assert_eq!(gateways, ["192.0.2.1", "198.51.100.1", "2001:db8:1::1", "2001:db8:2::1"]);
    assert!(facts.underlay.uplink_v4.is_some() && facts.underlay.uplink_v6.is_some(), "{facts:?}");
    assert!((1280..1400).contains(&facts.pod_mtu), "pods' packets fit both: {facts:?}");
}
