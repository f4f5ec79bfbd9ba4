//! Tests which data the agent reads about its uplinks before its first report, and how often it
//! reads them while they change.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_agent::config::Config;
use edge_agent::desired::{Desired, RoutedNetworks};
use edge_agent::host::reconciler::{DesiredReceivers, HostReconciler};
use edge_agent::host::{HostState, read_uplink};
use edge_agent::incidents::Incidents;
use edge_agent::membership::UplinkFacts;
use interop_tests::netns::{UnnamedNamespace, enter, is_root_or_skips, run};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Timeout after which a test fails.
const HANG: Duration = Duration::from_secs(60);

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

/// Runs the reconciler in a namespace while `change` changes it, until the node has `last`. Returns
/// how often the addresses were published since the first time, and the time that it took.
fn published_while(change: fn(), last: &'static str) -> (usize, Duration) {
    let namespace = UnnamedNamespace::new();
    let in_namespace = move || {
        enter(Path::new(&namespace.path()));
        run("ip link add uplink type veth peer name far");
        for line in ["link set far up", "link set uplink up", "addr add 192.0.2.1/24 dev uplink"] {
            run(&format!("ip {line}"));
        }
        run("ip route add default dev uplink");
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "state_dir = {0:?}\nrun_dir = {0:?}\n[controller]\nurls = [\"https://203.0.113.1:8443\"]\ntoken_file = \"token\"\n",
            directory.path()
        );
        let config = Arc::new(Config::parse(&text, &directory.path().join("agent.toml")).unwrap());
        let (_desired, whole) = watch::channel(Arc::new(Desired::default()));
        let desired = DesiredReceivers { whole, routed: watch::channel(RoutedNetworks::default()).1 };
        let (state, mut host) = watch::channel(HostState::default());
        let (uplink, mut facts) = watch::channel(UplinkFacts::default());
        let (internal, path_mtus) = (watch::channel(Default::default()).1, watch::channel(Default::default()).1);
        let incidents = Incidents::default();
        let reconciler = HostReconciler::new(config, incidents, desired, state, uplink, internal, path_mtus);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stop = CancellationToken::new();
            let running = tokio::spawn(reconciler.run(stop.clone()));
            let first: IpAddr = "192.0.2.1".parse().unwrap();
            let known = host.wait_for(|state| state.local_addresses.contains(&first));
            tokio::time::timeout(HANG, known).await.expect("the first address").unwrap();
            facts.mark_unchanged();
            let (began, last) = (Instant::now(), last.parse().unwrap());
            let changing = tokio::task::spawn_blocking(change);
            let mut count = 0;
            while !facts.borrow_and_update().addresses.contains(&last) {
                tokio::time::timeout(HANG, facts.changed()).await.expect("the last address").unwrap();
                count += 1;
            }
            let took = began.elapsed();
            assert!(host.borrow().local_addresses.contains(&last), "both are published together");
            changing.await.unwrap();
            stop.cancel();
            running.await.unwrap().unwrap();
            (count, took)
        })
    };
    std::thread::spawn(in_namespace).join().unwrap()
}

#[test]
fn a_hundred_addresses_that_come_one_after_the_other_are_published_a_few_times_a_second() {
    if !is_root_or_skips() {
        return;
    }
    let add = || (2..=101).for_each(|host| run(&format!("ip addr add 192.0.2.{host}/24 dev uplink")));
    let (count, took) = published_while(add, "192.0.2.101");
    // Four changes wait 20 ms, two wait longer, and all others 160 ms.
    let most = 7 + took.as_millis() / 160;
    assert!((1..=most).contains(&(count as u128)), "{count} times in {took:?}");
}

#[test]
fn while_an_address_is_added_and_removed_again_and_again_the_node_is_not_read_each_time() {
    if !is_root_or_skips() {
        return;
    }
    let flap = || {
        for _ in 0..100 {
            run("ip addr add 192.0.2.9/24 dev uplink");
            run("ip addr del 192.0.2.9/24 dev uplink");
        }
        run("ip addr add 192.0.2.2/24 dev uplink");
    };
    let (count, took) = published_while(flap, "192.0.2.2");
    let most = 7 + took.as_millis() / 160;
    assert!((1..=most).contains(&(count as u128)), "{count} times in {took:?}");
}
