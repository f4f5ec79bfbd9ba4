//! Tests that the host reconciler turns forwarding on only after its nftables table is in place,
//! and that `down` turns it off again. The reconciler runs in a separate network namespace, once
//! with `nft` and once without.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edge_agent::config::Config;
use edge_agent::desired::{Desired, RoutedNetworks};
use edge_agent::host::HostState;
use edge_agent::host::reconciler::{DesiredReceivers, HostReconciler};
use edge_agent::incidents::Incidents;
use edge_agent::membership::UplinkFacts;
use edge_types::Role;
use edge_xfrm::guard::GuardConfig;
use interop_tests::netns::{ignored_test, is_in_namespaces, run, succeed, unavailable_with_nft};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Timeout after which a test fails.
const HANG: Duration = Duration::from_secs(60);
const SETTINGS: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

fn forwards() -> [bool; 2] {
    SETTINGS.map(|setting| fs::read_to_string(setting).unwrap().trim() == "1")
}

/// Runs the reconciler for an edge with a segment in each family until the host's state satisfies
/// `until`.
fn reconcile(directory: &Path, until: impl FnMut(&HostState) -> bool) -> HostState {
    run("ip link set lo up");
    // Links with a default route count as uplinks, whatever their kind.
    for (link, peer, metric) in [("uplink", "far", 1), ("lan", "host", 2)] {
        run(&format!("ip link add {link} type veth peer name {peer}"));
        run(&format!("ip link set {peer} up"));
        run(&format!("ip link set {link} up"));
        run(&format!("ip route add default dev {link} metric {metric}"));
    }
    SETTINGS.iter().for_each(|setting| fs::write(setting, "0").unwrap());
    let text = format!(
        "name = \"edge-1\"\nstate_dir = {:?}\nrun_dir = {:?}\n[controller]\nurls = [\"https://203.0.113.1:8443\"]\n\
         token_file = \"token\"\n",
        directory.join("state"),
        directory.join("run")
    );
    fs::write(directory.join("token"), "t").unwrap();
    let file = directory.join("agent.toml");
    fs::write(&file, text).unwrap();
    let config = Arc::new(Config::load(&file).unwrap());
    let desired = Desired {
        role: Some(Role::Edge),
        guard: GuardConfig {
            cluster_ranges: ["10.77.0.0/16", "fd77::/64"].map(|range| range.parse().unwrap()).to_vec(),
            segments: ["10.77.1.0/26", "fd77::1:0/112"].map(|segment| segment.parse().unwrap()).to_vec(),
            ..GuardConfig::default()
        },
        ..Desired::default()
    };
    let (_desired, desired) = watch::channel(Arc::new(desired));
    let (state, mut observed) = watch::channel(HostState::default());
    let (uplink, _uplink) = watch::channel(UplinkFacts::default());
    let (internal, path_mtus) = (watch::channel(Default::default()).1, watch::channel(Default::default()).1);
    let routed = watch::channel(RoutedNetworks::default()).1;
    let desired = DesiredReceivers { whole: desired, routed };
    let reconciler = HostReconciler::new(config, Incidents::default(), desired, state, uplink, internal, path_mtus);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let running = tokio::spawn(reconciler.run(stop.clone()));
        let state = tokio::time::timeout(HANG, observed.wait_for(until)).await.expect("a state").unwrap().clone();
        stop.cancel();
        running.await.unwrap().unwrap();
        state
    })
}

fn passes(name: &str, path: Option<&Path>) {
    let mut test = ignored_test(&["unshare", "--net"], name);
    // With this search path, the reconciler finds no `nft`.
    if let Some(path) = path {
        test.env("PATH", path);
    }
    let output = succeed(&mut test);
    assert!(output.contains("1 passed"), "{output}");
}

#[test]
fn forwarding_is_turned_on_once_the_table_is_in_place() {
    if let Some(why) = unavailable_with_nft() {
        eprintln!("skipped: {why}");
        return;
    }
    passes("with_nft", None);
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn with_nft() {
    if !is_in_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let state = reconcile(directory.path(), |state| state.firewall);
    assert_eq!(forwards(), [true, true], "{:?}", state.obstacles);
    let table = succeed(std::process::Command::new("nft").args(["list", "table", "inet", "edge-cni"]));
    assert!(table.contains("\"lan\"") && table.contains("\"uplink\""), "the table isolates the node's links: {table}");

    // `down` removes the table, and turns off forwarding, since forwarding must not be on without
    // the table.
    let file = directory.path().join("agent.toml");
    let down =
        succeed(std::process::Command::new(env!("CARGO_BIN_EXE_edge-agent")).args(["down", "--config"]).arg(&file));
    assert_eq!(forwards(), [false, false], "{down}");
    assert!(down.contains("sysctl -w net.ipv4.ip_forward=1"), "{down}");
}

#[test]
fn without_the_table_the_node_does_not_forward_and_status_says_so() {
    if let Some(why) = unavailable_with_nft() {
        eprintln!("skipped: {why}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for program in ["ip", "unshare"] {
        let found = succeed(std::process::Command::new("sh").args(["-c", &format!("command -v {program}")]));
        std::os::unix::fs::symlink(found.trim(), directory.path().join(program)).unwrap();
    }
    passes("without_nft", Some(directory.path()));
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn without_nft() {
    if !is_in_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let state = reconcile(directory.path(), |state| !state.obstacles.is_empty());
    assert_eq!(forwards(), [false, false]);
    assert!(!state.firewall);
    let what: Vec<&str> = state.obstacles.iter().map(|obstacle| obstacle.what.as_str()).collect();
    assert!(what.iter().any(|what| what.contains("forwarding stays off")), "{what:?}");
}
