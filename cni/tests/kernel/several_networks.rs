//! Tests several networks on one host, each with a bridge, and pods with an interface in each.

use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::ingress::nft;
use crate::node::up;
use crate::world::{PluginOutput, Pod, World, ip, path, pings};

pub(crate) const TESTS: &[Test] = &[
    ("a_second_network_has_its_bridge_its_segments_and_the_same_state_directory", || a_second_network(false)),
    ("a_second_network_has_its_bridge_its_segments_and_a_state_directory_of_its_own", || a_second_network(true)),
    ("a_pod_has_an_interface_in_each_network", a_pod_has_an_interface_in_each_network),
    ("two_networks_without_default_routes_do_not_get_in_each_others_way", without_default_routes),
    ("a_gateway_is_on_one_bridge_alone", a_gateway_is_on_one_bridge_alone),
    ("a_second_network_is_beside_the_agents", a_second_network_is_beside_the_agents),
    ("the_leases_of_the_pods_on_a_bridge_are_in_one_state_directory", leases_in_one_state_directory),
];

const FIRST: &[&str] = &["10.77.3.0/29", "fd77:0:0:3::/120"];
const SECOND: &[&str] = &["10.78.0.0/29", "fd78::/120"];

/// Switches the configuration to the second network.
fn second(world: &World, own_state: bool) {
    world.set("name", json!("second"));
    world.set("bridge", json!("ecni1"));
    world.set("segments", json!(SECOND));
    if own_state {
        world.set("stateDir", json!(world.folder.path().join("second")));
    }
}

/// Switches the configuration to the first network.
fn first(world: &World) {
    world.set("name", json!("pods"));
    world.set("bridge", json!("ecni0"));
    world.set("segments", json!(FIRST));
    world.set("stateDir", json!(world.folder.path().join("state")));
}

fn interface(world: &World, verb: &str, pod: &Pod, ifname: &str) -> PluginOutput {
    let netns = path(pod);
    let variables =
        [("CNI_COMMAND", verb), ("CNI_CONTAINERID", pod.id.as_str()), ("CNI_NETNS", &netns), ("CNI_IFNAME", ifname)];
    world.run(&variables, &world.config.borrow().to_string())
}

fn a_second_network(own_state: bool) {
    let world = World::new(FIRST);
    let (one, two, three) = (world.pod(), world.pod(), world.pod());
    assert_eq!(world.add(&one), ["10.77.3.2", "fd77:0:0:3::2"]);
    second(&world, own_state);
    assert_eq!(world.add(&two), ["10.78.0.2", "fd78::2"]);
    assert_eq!(world.add(&three), ["10.78.0.3", "fd78::3"]);
    let everything_answers = || {
        for address in ["10.78.0.1", "10.78.0.3", "fd78::1", "fd78::3", "10.77.3.2", "fd77:0:0:3::2"] {
            assert!(pings(&two.netns, address), "{address}");
        }
        assert!(pings(&one.netns, "10.78.0.2") && pings(&one.netns, "10.77.3.1"));
    };
    everything_answers();
    let shown = |bridge: &str| world.ip(&format!("-br addr show {bridge}"));
    assert!(shown("ecni0").contains("10.77.3.1/29") && !shown("ecni0").contains("10.78"), "{}", shown("ecni0"));
    assert!(shown("ecni1").contains("10.78.0.1/29") && !shown("ecni1").contains("10.77"), "{}", shown("ecni1"));
    // The ADD of a pod of either network creates the tables again for both networks.
    for turn in [first, |world: &World| second(world, false)] {
        nft(&world, &["flush", "ruleset"]);
        turn(&world);
        if own_state && world.config.borrow()["name"] == "second" {
            second(&world, true);
        }
        assert!(up(&world).ok);
        everything_answers();
    }
    // The agent does not add segments to the second network.
    (0..3).for_each(|_| drop(world.add(&world.pod())));
    let full = world.verb("ADD", &world.pod()).json;
    assert_eq!(full["code"], 11, "{full}");
    assert!(own_state || full["msg"].as_str().unwrap().contains("network second"), "{full}");
    let mut listed = world.config.borrow().clone();
    listed["cniVersion"] = json!("1.1.0");
    listed["cni.dev/valid-attachments"] = json!([{"containerID": two.id, "ifname": "eth0"}]);
    let answer = world.run(&[("CNI_COMMAND", "GC")], &listed.to_string());
    assert!(answer.ok, "{}", answer.json);
    assert_eq!(world.ports().len(), 2, "{:?}", world.ports());
    assert!(pings(&one.netns, "10.78.0.2"));
    world.del(&two);
    first(&world);
    world.del(&one);
    assert!(world.ports().is_empty());
}

fn a_pod_has_an_interface_in_each_network() {
    for own_state in [false, true] {
        let world = World::new(FIRST);
        let (pod, neighbour) = (world.pod(), world.pod());
        let result = interface(&world, "ADD", &pod, "eth0").json;
        second(&world, own_state);
        world.add(&neighbour);
        let answer = interface(&world, "ADD", &pod, "net1");
        assert!(answer.ok, "{}", answer.json);
        // The cluster is reached through the first network.
        assert_eq!(answer.json["routes"], json!([]), "{}", answer.json);
        for (destination, device) in [("198.51.100.1", "eth0"), ("10.77.9.9", "eth0"), ("10.78.0.2", "net1")] {
            let route = ip(&pod.netns, &format!("route get {destination}"));
            assert!(route.contains(&format!("dev {device}")), "{route}");
        }
        for address in ["10.77.3.1", "10.78.0.1", "10.78.0.2", "fd78::2"] {
            assert!(pings(&pod.netns, address), "{address}");
        }
        let check = |result: &Value, ifname| {
            world.set("prevResult", result.clone());
            let answer = interface(&world, "CHECK", &pod, ifname);
            world.set("prevResult", Value::Null);
            assert!(answer.ok, "{}", answer.json);
        };
        check(&answer.json, "net1");
        assert!(interface(&world, "DEL", &pod, "net1").ok);
        first(&world);
        check(&result, "eth0");
        assert!(pings(&pod.netns, "10.77.3.1"));
        assert!(interface(&world, "DEL", &pod, "eth0").ok);
    }
}

fn without_default_routes() {
    let world = World::new(FIRST);
    world.set("isDefaultGateway", json!(false));
    let pod = world.pod();
    let result = interface(&world, "ADD", &pod, "eth0").json;
    assert_eq!(result["routes"][0]["dst"], "10.77.0.0/16", "{result}");
    second(&world, false);
    let answer = interface(&world, "ADD", &pod, "net1");
    assert!(answer.ok, "{}", answer.json);
    assert!(ip(&pod.netns, "route get 10.77.9.9").contains("dev eth0"));
}

fn a_gateway_is_on_one_bridge_alone() {
    let world = World::new(FIRST);
    world.add(&world.pod());
    world.set("bridge", json!("ecni1"));
    // The second network has the same segments as the first, or none.
    for segments in [json!(FIRST), json!([])] {
        world.set("segments", segments);
        let message = world.add_fails(&world.pod(), 7);
        assert!(message.contains("10.77.3.") && message.contains("bridge"), "{message}");
    }
    assert!(!world.ip("-br addr show ecni1 up").contains("10.77.3.1"));
}

fn a_second_network_is_beside_the_agents() {
    let world = World::new(SECOND);
    std::fs::create_dir(world.state("")).unwrap();
    let segments = json!({"version": 1, "source": "agent", "segments": FIRST, "cluster_ranges": ["10.77.0.0/16", "fd77::/48"], "mtu": 1380});
    std::fs::write(world.state("segments.json"), segments.to_string()).unwrap();
    second(&world, false);
    let two = world.pod();
    assert_eq!(world.add(&two), ["10.78.0.2", "fd78::2"]);
    assert!(ip(&two.netns, "link show eth0").contains("mtu 1380"));
    // The agent's network has no `segments` in its configuration.
    first(&world);
    world.set("segments", json!([]));
    let one = world.pod();
    assert_eq!(world.add(&one), ["10.77.3.2", "fd77:0:0:3::2"]);
    assert!(pings(&one.netns, "10.78.0.2") && pings(&two.netns, "10.77.3.2"));
}

fn leases_in_one_state_directory() {
    let world = World::new(FIRST);
    let elsewhere = |world: &World| {
        world.set("name", json!("second"));
        world.set("stateDir", json!(world.folder.path().join("second")));
    };
    // While the bridge has no pods, its state directory may change. Both have a journal then.
    elsewhere(&world);
    let before = world.pod();
    assert_eq!(world.add(&before), ["10.77.3.2", "fd77:0:0:3::2"]);
    world.del(&before);
    first(&world);
    let (one, two) = (world.pod(), world.pod());
    assert_eq!(world.add(&one), ["10.77.3.2", "fd77:0:0:3::2"]);
    let alias = || {
        let shown = world.ip("-d link show ecni0");
        shown.lines().find(|line| line.contains("alias")).expect("an alias").to_owned()
    };
    let before = alias();
    elsewhere(&world);
    let message = world.add_fails(&two, 7);
    for word in ["ecni0", "stateDir", "/state", "/second"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(!up(&world).ok);
    assert_eq!(alias(), before);
    assert_eq!(world.ports().len(), 1);
    // The filter still lets the pod send.
    assert!(pings(&one.netns, "10.77.3.1"));
    first(&world);
    assert!(up(&world).ok && pings(&one.netns, "10.77.3.1"));
    // What was refused is taken back, and takes nothing from the pod that is there.
    elsewhere(&world);
    world.del(&two);
    first(&world);
    assert!(pings(&one.netns, "10.77.3.1"));
    world.del(&one);
    elsewhere(&world);
    assert_eq!(world.add(&two)[1], "fd77:0:0:3::3", "the first address cools down");
}
