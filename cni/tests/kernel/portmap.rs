//! Tests hostPorts with the real `portmap` (containernetworking-plugins), which a runtime runs
//! after this plugin. The tests look for it in `CNI_PATH`, /usr/lib/cni and /opt/cni/bin.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use interop_tests::netns;
use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::ingress::{HOST, NEIGHBOUR, is_closed, neighbour};
use crate::loopback::{fetch, is_kept_out, send_loopback_by, serve, set_br_netfilter};
use crate::world::{Pod, World, addresses, answer, path, sysctl};

pub(crate) const TESTS: &[Test] = &[(
    "a_host_port_of_portmap_is_reached_from_everywhere_and_opens_nothing_else",
    a_host_port_is_reached_from_everywhere,
)];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

fn plugin() -> Option<PathBuf> {
    let named = std::env::var_os("CNI_PATH").unwrap_or_default();
    let directories = std::env::split_paths(&named).chain(["/usr/lib/cni".into(), "/opt/cni/bin".into()]);
    directories.map(|directory| directory.join("portmap")).find(|file| file.is_file())
}

/// Returns the reason why the tests cannot run on this machine. `None` if they can.
pub(crate) fn unavailable() -> Option<String> {
    if plugin().is_none() {
        return Some("`portmap` (containernetworking-plugins) is not installed".into());
    }
    for program in ["iptables", "ip6tables"] {
        if !Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success()) {
            return Some(format!("`{program}`, which portmap runs, cannot be run"));
        }
    }
    netns::unavailable()
}

/// Runs `portmap` for a pod with this result of the plugin.
fn portmap(world: &World, verb: &str, pod: &Pod, result: &Value) {
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "portmap",
        "snat": true,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": result,
    });
    let program = plugin().unwrap();
    let netns = path(pod);
    let variables = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", &pod.id),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    let answer = answer(world.start_program(&program, &variables, config.to_string().as_bytes()));
    assert!(answer.ok, "{verb}: {} {}", answer.json, answer.said);
}

fn a_host_port_is_reached_from_everywhere() {
    let world = World::new(DUAL);
    let (lan, pod, other) = (neighbour(&world), world.pod(), world.pod());
    let result = world.verb("ADD", &pod);
    assert!(result.ok, "{}", result.json);
    let own = addresses(&result.json);
    world.add(&other);
    serve(&pod.netns, 80);
    serve(&world.host, 81);
    portmap(&world, "ADD", &pod, &result.json);
    assert_eq!(sysctl(&world.host, "ipv4/conf/ecni0/route_localnet"), "1", "portmap opens the loopback addresses");
    send_loopback_by(&other.netns, ["10.77.3.1", "fd77:0:0:3::1"]);
    let seen = |netns: &str, address: &str| fetch(netns, address, 8080, Duration::from_secs(5));
    let bridge = ["10.77.3.1", "fd77:0:0:3::1"];
    for mode in set_br_netfilter(&world) {
        for (family, host) in HOST.into_iter().enumerate() {
            assert_eq!(seen(&lan.netns, host).as_deref(), Some(NEIGHBOUR[family]), "from the LAN, {mode}");
            assert_eq!(seen(&pod.netns, host).as_deref(), Some(bridge[family]), "from the pod itself, {mode}");
            assert!(seen(&world.host, host).is_some(), "from the host, {mode}");
            // portmap also masquerades packets from a neighbour on the same bridge.
            assert!(seen(&other.netns, host).is_some(), "from a neighbour, {mode}");
        }
        assert_eq!(seen(&world.host, "127.0.0.1").as_deref(), Some(bridge[0]), "from the host by 127.0.0.1, {mode}");
        assert!(is_kept_out(&other.netns, "127.0.0.1", 81), "{mode}");
        is_closed(&world, &lan, &own);
    }
    portmap(&world, "DEL", &pod, &result.json);
    world.del(&pod);
    assert!(is_kept_out(&lan.netns, HOST[0], 8080));
}
