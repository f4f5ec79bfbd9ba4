//! Tests addresses that a runtime requests for a pod, in `CNI_ARGS`, `runtimeConfig` and `args`.

use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::ingress::nft;
use crate::node::up;
use crate::world::{PluginOutput, Pod, World, addresses, ip, path, pings};

pub(crate) const TESTS: &[Test] = &[
    ("a_pod_gets_the_addresses_that_its_runtime_requests", a_pod_gets_the_addresses_that_its_runtime_requests),
    ("a_requested_address_that_a_pod_cannot_have_is_refused", refused_addresses),
    ("a_requested_mac_address_holds_in_the_filter_and_after_its_loss", requested_mac),
];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

/// Runs ADD with these additional `CNI_ARGS`.
fn add_with(world: &World, pod: &Pod, arguments: &str) -> PluginOutput {
    let netns = path(pod);
    let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-{};{arguments}", pod.id);
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", pod.id.as_str()),
        ("CNI_NETNS", netns.as_str()),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", arguments.as_str()),
    ];
    world.run(&variables, &world.config.borrow().to_string())
}

fn mac(result: &Value) -> &str {
    result["interfaces"][2]["mac"].as_str().unwrap()
}

fn a_pod_gets_the_addresses_that_its_runtime_requests() {
    let world = World::new(DUAL);
    // The other family has the next free address.
    let first = world.pod();
    let answer = add_with(&world, &first, "IP=10.77.3.5");
    assert!(answer.ok, "{}", answer.json);
    assert_eq!(addresses(&answer.json), ["10.77.3.5", "fd77:0:0:3::2"]);
    let second = world.pod();
    world.set("runtimeConfig", json!({"ips": ["fd77:0:0:3::9/120", "10.77.3.9"], "mac": "02:12:34:56:78:9a"}));
    let answer = world.verb("ADD", &second);
    assert!(answer.ok, "{}", answer.json);
    assert_eq!(addresses(&answer.json), ["10.77.3.9", "fd77:0:0:3::9"]);
    assert_eq!(mac(&answer.json), "02:12:34:56:78:9a");
    world.set("runtimeConfig", Value::Null);
    let third = world.pod();
    world.set("args", json!({"cni": {"ips": ["10.77.3.7"]}}));
    assert_eq!(world.add(&third)[0], "10.77.3.7");
    world.set("args", Value::Null);
    for address in ["10.77.3.5", "10.77.3.9", "fd77:0:0:3::9", "10.77.3.1"] {
        assert!(pings(&third.netns, address), "{address}");
    }
    // Other pods do not get these addresses, and they can be requested again immediately.
    assert_eq!(world.add(&world.pod())[0], "10.77.3.2");
    world.del(&first);
    let again = world.pod();
    assert_eq!(addresses(&add_with(&world, &again, "IP=10.77.3.5;MAC=").json)[0], "10.77.3.5");
}

fn refused_addresses() {
    let world = World::new(DUAL);
    world.set("reserved", json!(["10.77.3.200"]));
    let (owner, pod) = (world.pod(), world.pod());
    let owned = add_with(&world, &owner, "IP=10.77.3.5;MAC=02:12:34:56:78:9a");
    assert!(owned.ok, "{}", owned.json);
    let bridge = world.ip("-br link show ecni0").split_whitespace().nth(2).unwrap().to_owned();
    let host = world.verb("ADD", &world.pod()).json["interfaces"][2]["mac"].as_str().unwrap().to_owned();
    for (arguments, code, named) in [
        ("IP=10.77.9.5", 7, "10.77.3.0/24"),
        ("IP=10.77.3.1", 7, "10.77.3.1"),
        ("IP=10.77.3.255", 7, "10.77.3.255"),
        ("IP=10.77.3.200", 7, "reserved"),
        ("IP=10.77.3.5", 11, owner.id.as_str()),
        ("IP=10.77.3", 4, "10.77.3"),
        ("IP=10.77.3.6,10.77.3.7", 4, "10.77.3.7"),
        ("MAC=01:00:5e:00:00:01", 4, "01:00:5e:00:00:01"),
        ("MAC=02:12:34:56:78:9a", 11, owner.id.as_str()),
        (&format!("MAC={bridge}"), 11, "ecni0"),
        (&format!("MAC={host}"), 11, &host),
    ] {
        let before = (world.ports(), world.leased());
        let answer = add_with(&world, &pod, arguments);
        assert_eq!(answer.json["code"], code, "{arguments}: {}", answer.json);
        assert!(answer.json["msg"].as_str().unwrap().contains(named), "{arguments}: {}", answer.json);
        assert_eq!(before, (world.ports(), world.leased()), "{arguments}");
    }
    // The two sources request different addresses.
    world.set("runtimeConfig", json!({"ips": ["10.77.3.7"]}));
    let answer = add_with(&world, &pod, "IP=10.77.3.8");
    assert_eq!(answer.json["code"], 7, "{}", answer.json);
    world.set("runtimeConfig", json!({"portMappings": []}));
    world.add(&pod);
}

fn requested_mac() {
    let world = World::new(DUAL);
    let (one, two) = (world.pod(), world.pod());
    world.add(&two);
    let result = add_with(&world, &one, "MAC=02-12-34-56-78-9A").json;
    assert_eq!(mac(&result), "02:12:34:56:78:9a", "{result}");
    assert!(ip(&one.netns, "link show eth0").contains("02:12:34:56:78:9a"));
    let reaches = || ["10.77.3.2", "fd77:0:0:3::2", "10.77.3.1"].iter().all(|address| pings(&one.netns, address));
    assert!(reaches());
    let check = || {
        world.set("prevResult", result.clone());
        let answer = world.verb("CHECK", &one);
        world.set("prevResult", Value::Null);
        answer
    };
    assert!(check().ok, "{}", check().json);
    // The requested MAC address is restored from the journal.
    nft(&world, &["flush", "ruleset"]);
    assert!(up(&world).ok);
    assert!(reaches());
    ip(&one.netns, "link set eth0 address 02:12:34:56:78:9b");
    assert_eq!(check().json["code"], 106);
    ip(&one.netns, "link set eth0 address 02:12:34:56:78:9a");
    world.del(&one);
    assert!(add_with(&world, &world.pod(), "MAC=02:12:34:56:78:9a").ok);
}
