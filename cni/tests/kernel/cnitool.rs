//! Tests the plugin with libcni, CNI's own library, which containerd, CRI-O, Multus and podman use.
//! `cnitool` runs the plugin alone and with other plugins after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use interop_tests::netns;
use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::loopback::{fetch, serve};
use crate::world::{Pod, World, addresses, path, pings, sysctl, tc};

/// Tests that need only `cnitool`.
pub(crate) const TESTS: &[Test] =
    &[("cnitool_adds_checks_and_deletes_a_pod_in_every_version", cnitool_runs_every_version)];

/// Tests that also need other plugins.
pub(crate) const CHAINED: &[Test] =
    &[("plugins_chained_after_this_one_get_its_result_and_all_work", chained_plugins_work)];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

/// The plugins that run after this one.
const OTHERS: [&str; 4] = ["tuning", "bandwidth", "firewall", "portmap"];

/// The directory into which `.ci/install test` installs cnitool and crictl.
pub(crate) const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/cni-plugins");

pub(crate) fn find(program: &str, directories: &[&str]) -> Option<PathBuf> {
    let named = std::env::var_os("CNI_PATH").unwrap_or_default();
    let all = std::env::split_paths(&named).chain(directories.iter().map(PathBuf::from));
    all.map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn cnitool() -> Option<PathBuf> {
    find("cnitool", &[INSTALLED, "/usr/local/bin", "/usr/bin"])
}

pub(crate) fn plugin(name: &str) -> Option<PathBuf> {
    find(name, &["/usr/lib/cni", "/opt/cni/bin"])
}

/// Returns the reason why the tests cannot run on this machine. `None` if they can.
pub(crate) fn unavailable() -> Option<String> {
    match cnitool() {
        None => Some(format!("`cnitool` is in no directory of CNI_PATH, nor in {INSTALLED}; run `.ci/install test`")),
        Some(_) => netns::unavailable(),
    }
}

/// Returns the reason why the tests with other plugins cannot run on this machine. `None` if they
/// can.
pub(crate) fn unavailable_chained() -> Option<String> {
    let missing = OTHERS.into_iter().find(|name| plugin(name).is_none());
    if let Some(name) = missing {
        return Some(format!("the plugin `{name}` (containernetworking-plugins) is not installed"));
    }
    if !Command::new("iptables").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Some("`iptables`, which firewall and portmap run, cannot be run".into());
    }
    unavailable().or_else(|| {
        let world = World::new(DUAL);
        let shaped = ["link add probe type ifb", "link set probe up"].map(|arguments| try_ip(&world.host, arguments));
        let queue = Command::new("tc")
            .args(["-n", &world.host, "qdisc", "add", "dev", "probe", "root", "tbf"])
            .args(["rate", "1mbit", "burst", "10kb", "latency", "10ms"])
            .output();
        let works = shaped == [true; 2] && queue.is_ok_and(|output| output.status.success());
        (!works).then(|| "`bandwidth` needs a kernel with ifb and sch_tbf, and `tc`".into())
    })
}

fn try_ip(netns: &str, arguments: &str) -> bool {
    let output = Command::new("ip").args(["-n", netns]).args(arguments.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}

/// Runs cnitool on the host. libcni stores results below /var/lib/cni, which is replaced by a
/// directory of the test.
fn run(world: &World, verb: &str, pod: &Pod, capabilities: &Value) -> Output {
    let folder = world.folder.path();
    fs::create_dir_all(folder.join("var-lib")).unwrap();
    let directories = [
        Path::new(env!("CARGO_BIN_EXE_edge-cni")).parent().unwrap().to_owned(),
        plugin("tuning").map_or_else(PathBuf::new, |file| file.parent().unwrap().to_owned()),
    ];
    let script = r#"mount --bind "$1" /var/lib && shift && exec "$@""#;
    Command::new("ip")
        .args(["netns", "exec", &world.host, "sh", "-c", script, "sh"])
        .arg(folder.join("var-lib"))
        .arg(cnitool().unwrap())
        .args([verb, "pods", &path(pod)])
        .env("NETCONFPATH", folder.join("net.d"))
        .env("CNI_PATH", std::env::join_paths(directories).unwrap())
        .env("CAP_ARGS", capabilities.to_string())
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web")
        .output()
        .unwrap()
}

/// Runs cnitool, which must succeed. Returns the result.
fn cnitool_runs(world: &World, verb: &str, pod: &Pod, capabilities: &Value) -> Value {
    let Output { status, stdout, stderr } = run(world, verb, pod, capabilities);
    let (printed, said) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "cnitool {verb}: {printed}{said}");
    serde_json::from_str(&printed).unwrap_or_default()
}

fn write_list(world: &World, version: &str, others: &[Value]) {
    let mut own = world.config.borrow().clone();
    let keys = own.as_object_mut().unwrap();
    keys.remove("name");
    keys.remove("cniVersion");
    let plugins = [&[own], others].concat();
    let list = json!({ "cniVersion": version, "name": "pods", "plugins": plugins });
    let folder = world.folder.path().join("net.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("10-pods.conflist"), list.to_string()).unwrap();
}

fn cnitool_runs_every_version() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let world = World::new(DUAL);
        let pod = world.pod();
        write_list(&world, version, &[]);
        let result = cnitool_runs(&world, "add", &pod, &Value::Null);
        assert_eq!(result["cniVersion"], version, "{result}");
        assert!(pings(&pod.netns, "10.77.3.1"), "{version}");
        if version >= "0.4.0" {
            cnitool_runs(&world, "check", &pod, &Value::Null);
        }
        if version >= "1.1.0" {
            cnitool_runs(&world, "status", &pod, &Value::Null);
            // cnitool passes no valid attachments, so libcni runs DEL for all attachments that it
            // has cached.
            cnitool_runs(&world, "gc", &pod, &Value::Null);
            assert!(world.ports().is_empty() && world.leased().is_empty());
        }
        cnitool_runs(&world, "del", &pod, &Value::Null);
        cnitool_runs(&world, "del", &pod, &Value::Null);
        assert!(world.ports().is_empty() && world.leased().is_empty(), "{version}");
    }
}

fn chained_plugins_work() {
    let world = World::new(DUAL);
    let (pod, other) = (world.pod(), world.pod());
    let others = [
        json!({ "type": "tuning", "sysctl": { "net.ipv4.ip_default_ttl": "77" } }),
        json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
        json!({ "type": "firewall", "backend": "iptables" }),
        json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }),
    ];
    write_list(&world, "1.0.0", &others);
    let capabilities = json!({
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000, "egressBurst": 8_000_000 },
    });
    let result = cnitool_runs(&world, "add", &pod, &capabilities);
    let own = addresses(&result);
    assert_eq!(own.len(), 2, "{result}");
    cnitool_runs(&world, "add", &other, &Value::Null);
    // Without the plugins whose CHECK fails in release 1.1.1: the CHECK of bandwidth crashes
    // without a limit, and the CHECK of portmap looks for IPv4 rules among the IPv6 rules.
    write_list(&world, "1.0.0", &[others[0].clone(), others[2].clone()]);
    cnitool_runs(&world, "check", &pod, &Value::Null);
    write_list(&world, "1.0.0", &others);
    assert_eq!(sysctl(&pod.netns, "ipv4/ip_default_ttl"), "77");
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    assert!(tc(&world.host, &format!("qdisc show dev {port}")).contains("tbf"));
    let rules = || netns::succeed(Command::new("ip").args(["netns", "exec", &world.host, "iptables-save"]));
    assert!(rules().contains(&own[0]), "{}", rules());
    assert!(pings(&other.netns, &own[0]) && pings(&other.netns, &own[1]));
    serve(&pod.netns, 80);
    for from in [&other.netns, &world.host] {
        assert!(fetch(from, "10.77.3.1", 8080, Duration::from_secs(60)).is_some(), "the host's port from {from}");
    }
    cnitool_runs(&world, "del", &pod, &capabilities);
    assert!(!rules().contains(&own[0]), "{}", rules());
    assert_eq!((world.ports().len(), world.leased().len()), (1, 1));
    cnitool_runs(&world, "del", &other, &Value::Null);
    assert!(world.ports().is_empty() && world.leased().is_empty());
}
