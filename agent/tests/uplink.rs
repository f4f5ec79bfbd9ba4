//! Tests which data the agent reads about its uplinks before its first report.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use edge_agent::config::Config;
use edge_agent::host::read_uplink;
use interop_tests::netns::{UnnamedNamespace, enter, is_root_or_skips};

#[test]
fn addresses_of_both_families_and_the_mtu_are_there_before_the_first_report() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, elsewhere) = (UnnamedNamespace::new(), UnnamedNamespace::new());
    for line in [
        "link add uplink type veth peer name far",
        "link set far up",
        "link set uplink up",
        "addr add 192.0.2.10/24 dev uplink",
        "addr add 2001:db8::10/64 dev uplink nodad",
        "route add default via 192.0.2.1",
        "-6 route add default via 2001:db8::1",
        // As Cilium makes them. A link that leads to another namespace may be an uplink.
        "link add cilium_net type veth peer name cilium_host",
        "link set cilium_net up",
        "link set cilium_host up",
        "addr add 10.244.2.7/32 dev cilium_host",
        &format!("link add second type veth peer name far netns {}", elsewhere.pid()),
        "link set second up",
        "addr add 192.0.2.77/24 dev second",
    ] {
        assert!(namespace.command("ip").args(line.split(' ')).status().unwrap().success(), "{line}");
    }
    let path = namespace.path();
    let facts = std::thread::spawn(move || {
        enter(Path::new(&path));
        let text = "[controller]\nurls = [\"https://cloud.example:8443\"]\ntoken_file = \"token\"\n";
        let config = Config::parse(text, Path::new("agent.toml")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(read_uplink(&config)).unwrap()
    });
    let facts = facts.join().unwrap();
    let expected: [IpAddr; 3] = ["192.0.2.10", "2001:db8::10", "192.0.2.77"].map(|text| text.parse().unwrap());
    let found: BTreeSet<IpAddr> = facts.addresses.iter().copied().collect();
    assert_eq!(found, BTreeSet::from(expected), "{facts:?}");
    assert!((1280..1500).contains(&facts.pod_mtu), "{facts:?}");
    assert_eq!(facts.underlay.gateways.len(), 2, "{facts:?}");
}
