//! Tests that CHECK finds missing parts of a pod's connection, and that GC removes attachments that
//! the runtime no longer lists.

use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::world::{PluginOutput, Pod, World, ip, path, pings};

pub(crate) const TESTS: &[Test] = &[
    ("check_finds_each_thing_that_was_lost", check_finds_each_thing_that_was_lost),
    (
        "gc_removes_what_the_runtime_no_longer_knows_and_nothing_else",
        gc_removes_what_the_runtime_no_longer_knows_and_nothing_else,
    ),
    ("gc_without_a_list_removes_nothing", gc_without_a_list_removes_nothing),
    ("del_and_gc_find_a_host_end_that_was_renamed", del_and_gc_find_a_renamed_host_end),
    ("gc_removes_pairs_whose_bridge_is_gone", gc_removes_pairs_whose_bridge_is_gone),
];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

fn check(world: &World, pod: &Pod, result: &Value) -> PluginOutput {
    world.set("prevResult", result.clone());
    let answer = world.verb("CHECK", pod);
    world.set("prevResult", Value::Null);
    answer
}

fn check_finds_each_thing_that_was_lost() {
    let world = World::new(DUAL);
    for (what, named) in [
        ("nothing", ""),
        ("addr del 10.77.3.2/24 dev eth0", "10.77.3.2"),
        ("addr del fd77:0:0:3::2/120 dev eth0", "fd77:0:0:3::2"),
        ("route del default", "default route by 10.77.3.1"),
        ("link set eth0 down", "down"),
        ("link del eth0", "missing"),
        ("link set eth0 address 02:12:34:56:78:9a", "MAC address"),
        ("nft flush set bridge edge-cni ipv4", "ipv4"),
        ("nft delete table bridge edge-cni", "is gone"),
        ("host addr del 10.77.3.1/24 dev ecni0", "10.77.3.1"),
        ("host link set HOST nomaster", "not a port"),
        // The address is removed and added again, because the kernel cannot change the prefix
        // length of an address.
        ("readdress 10.77.3.2/24 10.77.3.2/25", "prefix length 25, not 24"),
        ("readdress fd77:0:0:3::2/120 fd77:0:0:3::2/112", "prefix length 112, not 120"),
        ("host addr del fd77:0:0:3::1/120 dev ecni0", "fd77:0:0:3::1"),
        ("host addr change fd77:0:0:3::1/112", "another prefix length"),
        ("link set eth0 mtu 1300", "MTU of 1300"),
        ("mtu", "one of 1400"),
        ("host xfrm policy deleteall", "guard"),
        ("host link del ecni-guard", "guard"),
        ("nft delete table inet edge-cni-pods", "edge-cni-pods"),
        ("lease", "no lease"),
    ] {
        let world = if what == "nothing" { &world } else { &World::new(DUAL) };
        let pod = world.pod();
        let result = world.verb("ADD", &pod).json;
        let answer = check(world, &pod, &result);
        assert!(answer.ok && answer.json == Value::Null, "{}", answer.json);
        match what {
            "nothing" => continue,
            "lease" => {
                let name = &world.ports()[0];
                world.ip(&format!("link set {name} alias renamed"));
                world.ip(&format!("link set {name} name elsewhere"));
                world.del(&pod);
                world.ip(&format!("link set elsewhere name {name}"));
            }
            "mtu" => world.set("mtu", json!(1400)),
            "host addr change fd77:0:0:3::1/112" => {
                world.ip("addr del fd77:0:0:3::1/120 dev ecni0");
                world.ip("addr add fd77:0:0:3::1/112 dev ecni0 nodad");
            }
            other => match other.split_once(' ') {
                Some(("readdress", addresses)) => {
                    let (old, new) = addresses.split_once(' ').unwrap();
                    ip(&pod.netns, &format!("addr del {old} dev eth0"));
                    ip(&pod.netns, &format!("addr add {new} dev eth0"));
                    if !old.contains(':') {
                        ip(&pod.netns, "route replace default via 10.77.3.1");
                    }
                }
                Some(("host", arguments)) => drop(world.ip(&arguments.replace("HOST", &world.ports()[0]))),
                Some(("nft", _)) => drop(world.ip(&format!("netns exec {} {other}", world.host))),
                _ => drop(ip(&pod.netns, other)),
            },
        }
        let answer = check(world, &pod, &result);
        assert_eq!(answer.json["code"], 106, "{what}: {}", answer.json);
        assert!(answer.json["msg"].as_str().unwrap().contains(named), "{what}: {}", answer.json);
    }
    let answer = world.verb("CHECK", &world.pod());
    assert_eq!(answer.json["code"], 7, "{}", answer.json);
}

fn gc(world: &World, valid: &[&Pod]) -> PluginOutput {
    let list: Vec<Value> = valid.iter().map(|pod| json!({"containerID": pod.id, "ifname": "eth0"})).collect();
    world.set("cni.dev/valid-attachments", json!(list));
    world.run(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")], &world.config.borrow().to_string())
}

fn gc_removes_what_the_runtime_no_longer_knows_and_nothing_else() {
    let world = World::new(DUAL);
    world.set("cniVersion", json!("1.1.0"));
    let pods: Vec<Pod> = (0..4).map(|_| world.pod()).collect();
    pods[..3].iter().for_each(|pod| drop(world.add(pod)));
    // There is another network on the same bridge and journal, and a veth pair of another program.
    world.set("name", json!("others"));
    world.add(&pods[3]);
    world.set("name", json!("pods"));
    world.ip("link add foreign type veth peer name foreign1");
    world.ip("link set foreign master ecni0");
    let answer = gc(&world, &[&pods[1]]);
    assert!(answer.ok && answer.json == Value::Null, "{}", answer.json);
    assert_eq!(world.leased(), [pods[1].id.as_str(), pods[3].id.as_str()]);
    assert_eq!(world.ports().len(), 4, "{:?}", world.ports());
    assert!(pings(&pods[1].netns, "10.77.3.5") && pings(&pods[1].netns, "10.77.3.1"));
    assert!(gc(&world, &[&pods[1]]).ok);
    world.del(&pods[0]);
}

fn gc_removes_pairs_whose_bridge_is_gone() {
    let world = World::new(DUAL);
    world.set("cniVersion", json!("1.1.0"));
    let pods = [world.pod(), world.pod()];
    pods.iter().for_each(|pod| drop(world.add(pod)));
    let ends = || world.ip("-o link show type veth").matches("ecni").count();
    world.ip("link delete ecni0");
    assert_eq!(ends(), 2);
    let answer = gc(&world, &[&pods[1]]);
    assert!(answer.ok, "{}", answer.json);
    assert_eq!((ends(), world.leased()), (1, vec![pods[1].id.clone()]));
}

fn gc_without_a_list_removes_nothing() {
    let world = World::new(DUAL);
    world.set("cniVersion", json!("1.1.0"));
    let pod = world.pod();
    world.add(&pod);
    let input = world.config.borrow().to_string();
    // `cnitool gc` sends this input, and must not fail.
    let answer = world.run(&[("CNI_COMMAND", "GC"), ("CNI_NETNS", &path(&pod))], &input);
    assert!(answer.ok && answer.said.contains("valid-attachments"), "{answer:?}");
    world.set("cni.dev/valid-attachments", json!({}));
    let answer = world.run(&[("CNI_COMMAND", "GC")], &world.config.borrow().to_string());
    assert_eq!(answer.json["code"], 7, "{}", answer.json);
    assert!(world.verb("STATUS", &pod).ok);
    assert!(pings(&pod.netns, "10.77.3.1"));
    assert_eq!(world.leased().len(), 1);
}

fn del_and_gc_find_a_renamed_host_end() {
    let world = World::new(DUAL);
    world.set("cniVersion", json!("1.1.0"));
    let pods = [world.pod(), world.pod()];
    for (pod, name) in pods.iter().zip(["mine", "yours"]) {
        world.add(pod);
        let port = world.ports().into_iter().find(|port| port.starts_with("ecni")).unwrap();
        world.ip(&format!("link set {port} name {name}"));
    }
    world.del(&pods[0]);
    assert_eq!(world.ports(), ["yours"]);
    assert!(gc(&world, &[]).ok);
    assert!(world.ports().is_empty() && world.leased().is_empty(), "{:?}", world.ports());
}
