//! Tests the table of the bridge's filter: its content, and how it is created, kept and replaced.

use std::io::Write;
use std::process::{Command, Stdio};

use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use serde_json::json;

use crate::frames::{self, Wire, arp, mac_text};
use crate::node::status;
use crate::spoof::{Attached, DUAL, attach, except, marker};
use crate::world::{Pod, World, ip, pings, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("the_filter_is_the_one_that_the_documentation_prints", the_filter_is_the_one_that_the_documentation_prints),
    ("a_lost_filter_comes_back_with_every_pod", a_lost_filter_comes_back_with_every_pod),
    ("a_filter_of_another_version_is_replaced", a_filter_of_another_version_is_replaced),
    ("without_the_filter_no_pod_is_attached_unless_excepted", without_the_filter_no_pod_is_attached_unless_excepted),
    ("adds_at_once_make_one_filter", adds_at_once_make_one_filter),
    ("a_pod_that_goes_leaves_nothing_in_the_filter", a_pod_that_goes_leaves_nothing_in_the_filter),
];

pub(crate) fn table(world: &World) -> String {
    let nft = ["netns", "exec", &world.host, "nft", "list", "table", "bridge", "edge-cni"];
    let output = Command::new("ip").args(nft).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn nft(world: &World, arguments: &[&str]) {
    succeed(Command::new("ip").args(["netns", "exec", &world.host, "nft"]).args(arguments));
}

fn the_filter_is_the_one_that_the_documentation_prints() {
    let world = World::new(DUAL);
    let pod = attach(&world);
    world.del(&pod.pod);
    let document = include_str!("../../../docs/cni.md");
    let printed = document.split("```nft\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a table");
    let words = |text: &str| {
        let lines = text.lines().map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            // Removes the numbers from `counter packets 0 bytes 0`, since a pod without elements
            // may have sent packets.
            if let Some(counter) = words.iter().position(|word| *word == "counter") {
                let count = words.get(counter + 1..counter + 5).is_some_and(|count| count[0] == "packets");
                words.drain(counter + 1..counter + if count { 5 } else { 1 });
            }
            words.join(" ")
        });
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect::<Vec<_>>()
    };
    assert_eq!(words(&table(&world)), words(printed));
    // Operators save their rules in this way, and load them at boot.
    let file = world.folder.path().join("saved.nft");
    std::fs::write(&file, table(&world)).unwrap();
    nft(&world, &["delete", "table", "bridge", "edge-cni"]);
    nft(&world, &["-f", file.to_str().unwrap()]);
    assert_eq!(words(&table(&world)), words(printed));
    let pods = [attach(&world), attach(&world)];
    assert!(pings(&pods[0].pod.netns, &pods[1].v4.to_string()) && pings(&pods[0].pod.netns, &pods[1].v6.to_string()));
}

pub(crate) fn up(world: &World) {
    let path = world.folder.path().join("plugin.json");
    std::fs::write(&path, world.config.borrow().to_string()).unwrap();
    let program = ["netns", "exec", &world.host, env!("CARGO_BIN_EXE_edge-cni"), "up", path.to_str().unwrap()];
    succeed(Command::new("ip").args(program));
}

/// Asserts that pods reach each other in both families, and that no pod can use the addresses of
/// another pod.
pub(crate) fn stands(pods: &[&Attached]) {
    for (from, to) in pods.iter().zip(pods.iter().cycle().skip(1)) {
        // The neighbour entries are flushed, since with earlier entries, the test would pass
        // without new packets.
        ip(&from.pod.netns, "neigh flush all");
        assert!(pings(&from.pod.netns, &to.v4.to_string()) && pings(&from.pod.netns, &to.v6.to_string()));
        let mut tap = Wire::open(&to.pod.netns, "eth0");
        let mut wire = Wire::open(&from.pod.netns, "eth0");
        let forged = arp(from.mac, 2, (from.mac, "10.77.3.1".parse().unwrap()), to.v4);
        wire.send(&forged);
        wire.send(&marker(from, to, 3));
        assert!(!tap.until(&marker(from, to, 3)).contains(&forged));
    }
}

fn a_lost_filter_comes_back_with_every_pod() {
    let world = World::new(DUAL);
    let mut pods = vec![attach(&world), attach(&world)];
    stands(&pods.iter().collect::<Vec<_>>());
    nft(&world, &["flush", "ruleset"]);
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
    // The ADD of the next pod also restores the filter, even if only elements are missing.
    nft(&world, &["flush", "ruleset"]);
    pods.push(attach(&world));
    stands(&pods.iter().collect::<Vec<_>>());
    nft(&world, &["flush", "chain", "bridge", "edge-cni", "pod"]);
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
    nft(&world, &["flush", "set", "bridge", "edge-cni", "macs"]);
    assert!(!pings(&pods[0].pod.netns, "10.77.3.1"), "what the filter does not know may not send");
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
    // The pair of a pod of an earlier release has MAC addresses that the kernel chose.
    let old = &mut pods[0];
    let port = host_end(&world, &old.pod);
    world.ip(&format!("link set {port} address 72:01:02:03:04:05"));
    ip(&old.pod.netns, "link set eth0 address 72:0a:0b:0c:0d:0e");
    old.mac = frames::mac("72:0a:0b:0c:0d:0e");
    succeed(Command::new("bridge").args(["-n", &world.host, "link", "set", "dev", &port, "hairpin", "off"]));
    world.ip(&format!("link set {port} type bridge_slave group_fwd_mask 0"));
    nft(&world, &["flush", "ruleset"]);
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
    let shown = world.ip(&format!("-d link show {port}"));
    assert!(shown.contains("hairpin on") && shown.contains("group_fwd_mask 0xfffd"), "{shown}");
    // A pod of this release sets another MAC address before the filter is created again. That
    // address must not be accepted.
    ip(&pods[1].pod.netns, &format!("link set eth0 address {}", mac_text(pods[2].mac)));
    nft(&world, &["flush", "ruleset"]);
    up(&world);
    assert!(!pings(&pods[1].pod.netns, "10.77.3.1"));
}

pub(crate) fn host_end(world: &World, pod: &Pod) -> String {
    let all = world.ip("-o link show type veth");
    let line = all.lines().find(|line| line.contains(&format!("alias edge-cni {} eth0", pod.id))).unwrap();
    line.split([' ', '@']).nth(1).unwrap().to_owned()
}

fn a_filter_of_another_version_is_replaced() {
    let world = World::new(DUAL);
    let pods = [attach(&world), attach(&world)];
    nft(&world, &["flush", "ruleset"]);
    nft(&world, &["add table bridge edge-cni { set macs { type ifname . ether_addr; }; chain old { }; }"]);
    let third = attach(&world);
    assert!(!table(&world).contains("chain old"));
    stands(&[&pods[0], &pods[1], &third]);
}

fn without_the_filter_no_pod_is_attached_unless_excepted() {
    let world = World::new(DUAL);
    // STATUS tries to add the elements of a pod, and leaves nothing behind.
    let answer = status(&world);
    assert!(answer.ok && table(&world).is_empty(), "{} {}", answer.json, table(&world));
    // Another program owns a table of this name, so the kernel allows no other process to change it
    // (NFT_TABLE_F_OWNER, 5.12).
    let mut owner = nft_session(&world, "add table bridge edge-cni { flags owner; }\n");
    wait_for("the other's table", || table(&world).contains("edge-cni"));
    let pod = world.pod();
    let message = world.add_fails(&pod, 107);
    assert!(message.contains("table bridge edge-cni"), "{message}");
    let message = status_fails(&world);
    assert!(message.contains("table bridge edge-cni"), "{message}");
    // Only some pods are exempt, and the next pod may not be exempt.
    except(&world, true);
    status_fails(&world);
    world.set("unfilteredPods", json!(["*"]));
    let answer = status(&world);
    assert!(answer.ok, "{}", answer.json);
    except(&world, true);
    let answer = world.verb("ADD", &pod);
    assert!(answer.ok && answer.said.contains("without a filter"), "{} {}", answer.json, answer.said);
    // Hairpin mode is off, since without the filter, the pod would receive its own broadcasts.
    let port = host_end(&world, &pod);
    assert!(world.ip(&format!("-d link show {port}")).contains("hairpin off"));
    assert!(pings(&pod.netns, "10.77.3.1"));
    world.del(&pod);
    drop(owner.stdin.take());
    owner.wait().unwrap();
    except(&world, false);
    let pods = [attach(&world), attach(&world)];
    stands(&[&pods[0], &pods[1]]);
    let before = table(&world);
    assert!(status(&world).ok);
    assert_eq!(table(&world).matches("\" . \"ecni").count(), before.matches("\" . \"ecni").count());
    // The table exists with the plugin's sets, but another program owns it.
    nft(&world, &["delete", "table", "bridge", "edge-cni"]);
    let mut owner =
        nft_session(&world, "add table bridge edge-cni { flags owner; set ports-v3 { type ifname . ifname; }; }\n");
    wait_for("the other's table", || table(&world).contains("ports-v3"));
    status_fails(&world);
    drop(owner.stdin.take());
    owner.wait().unwrap();
}

fn status_fails(world: &World) -> String {
    let answer = status(world);
    assert_eq!(answer.json["code"], 50, "{}", answer.json);
    answer.json["msg"].as_str().unwrap().to_owned()
}

/// Starts `nft` with this command. The process runs until its standard input ends.
pub(crate) fn nft_session(world: &World, order: &str) -> std::process::Child {
    let program = ["netns", "exec", &world.host, "nft", "-i"];
    let mut session = Command::new("ip").args(program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    session.stdin.as_mut().unwrap().write_all(order.as_bytes()).unwrap();
    session
}

fn adds_at_once_make_one_filter() {
    for _ in 0..5 {
        let world = World::new(DUAL);
        let pods: Vec<_> = (0..12).map(|_| world.pod()).collect();
        let started: Vec<_> = pods.iter().map(|pod| world.start_verb("ADD", pod)).collect();
        for child in started {
            let answer = crate::world::answer(child);
            assert!(answer.ok, "{}", answer.json);
        }
        for pod in &pods {
            assert!(pings(&pod.netns, "10.77.3.1") && pings(&pod.netns, "fd77:0:0:3::1"), "{}", pod.id);
        }
        // No ADD had to restore the elements of another pod.
        let known = table(&world).lines().filter(|line| line.contains("\" . \"ecni")).count();
        assert_eq!(known, pods.len());
    }
}

fn a_pod_that_goes_leaves_nothing_in_the_filter() {
    let world = World::new(DUAL);
    let empty = |world: &World| !table(world).contains("\"ecni") || !table(world).contains("elements");
    let pods = [attach(&world), attach(&world), attach(&world)];
    pods.iter().for_each(|attached| world.del(&attached.pod));
    assert!(empty(&world), "{}", table(&world));
    // If the container's namespace was removed without a DEL, GC removes the elements.
    world.set("cniVersion", json!("1.1.0"));
    let attached = attach(&world);
    world.destroy(&attached.pod);
    wait_for("the kernel's removal of the pair", || world.ports().is_empty());
    assert!(!empty(&world));
    world.set("cni.dev/valid-attachments", json!([]));
    assert!(world.run(&[("CNI_COMMAND", "GC")], &world.config.borrow().to_string()).ok);
    assert!(empty(&world), "{}", table(&world));
    // A failed ADD leaves no elements either.
    world.set("cni.dev/valid-attachments", serde_json::Value::Null);
    let pod = world.pod();
    world.set("routes", json!([{"dst": "192.0.2.0/24", "gw": "172.31.0.1"}]));
    world.add_fails(&pod, 103);
    assert!(empty(&world), "{}", table(&world));
}
