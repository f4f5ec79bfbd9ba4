//! Tests what the plugin changes on the host, what it leaves unchanged, and what it refuses.

use std::process::Command;

use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::world::{PluginOutput, World, addresses, answer, ip, path, pings, sysctl, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("a_bridge_of_the_hosts_own_is_left_alone", a_bridge_of_the_hosts_own_is_left_alone),
    ("gateways_of_former_segments_and_prefix_lengths_leave_the_bridge", former_gateways_leave_the_bridge),
    ("pods_with_a_larger_mtu_than_the_nodes_are_named", pods_with_a_larger_mtu_are_named),
    ("up_attaches_pods_again_whose_bridge_was_deleted", up_attaches_pods_again_whose_bridge_was_deleted),
    ("the_bridge_has_the_mtu_of_pods_and_no_larger_one_than_a_port", the_bridge_has_the_pods_mtu),
    ("a_bridge_without_ports_and_those_of_earlier_releases_are_taken", {
        a_bridge_without_ports_and_those_of_earlier_releases_are_taken
    }),
    ("uplinks_alone_go_on_listening_to_routers", uplinks_alone_go_on_listening_to_routers),
    ("without_ipv6_pods_have_ipv4_and_one_sentence_says_why", without_ipv6_pods_have_ipv4_and_one_sentence_says_why),
    ("ranges_that_would_cut_the_host_off_are_refused", ranges_that_would_cut_the_host_off_are_refused),
    ("what_neighbours_announce_stops_no_node_that_is_guarded", what_neighbours_announce_stops_no_node_that_is_guarded),
    ("what_opens_the_guard_is_named_by_status", what_opens_the_guard_is_named_by_status),
    ("nothing_heeds_routers_where_the_cluster_has_no_ipv6", nothing_heeds_routers_where_the_cluster_has_no_ipv6),
];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

pub(crate) fn status(world: &World) -> PluginOutput {
    let mut config = world.config.borrow().clone();
    config["cniVersion"] = json!("1.1.0");
    world.run(&[("CNI_COMMAND", "STATUS")], &config.to_string())
}

/// Runs `edge-cni up`, and returns its JSON.
pub(crate) fn up(world: &World) -> PluginOutput {
    let file = world.folder.path().join("plugin.json");
    std::fs::write(&file, world.config.borrow().to_string()).unwrap();
    let program = ["netns", "exec", &world.host, env!("CARGO_BIN_EXE_edge-cni"), "up", file.to_str().unwrap()];
    let child = Command::new("ip")
        .args(program)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    answer(child)
}

fn set(world: &World, setting: &str) {
    succeed(Command::new("ip").args(["netns", "exec", &world.host, "sysctl", "-qw", setting]));
}

fn a_bridge_of_the_hosts_own_is_left_alone() {
    for foreign in ["a port", "an address"] {
        let world = World::new(DUAL);
        world.set("bridge", json!("br0"));
        world.ip("link add br0 address 52:54:00:aa:bb:cc type bridge");
        if foreign == "a port" {
            world.ip("link add nic0 type veth peer name lan0");
            world.ip("link set nic0 master br0");
        } else {
            world.ip("addr add 192.168.1.10/24 dev br0");
        }
        let look = || {
            let settings =
                ["accept_ra", "disable_ipv6"].map(|name| sysctl(&world.host, &format!("ipv6/conf/br0/{name}")));
            (world.ip("link show br0"), settings, sysctl(&world.host, "ipv4/conf/br0/send_redirects"))
        };
        let before = look();
        let message = world.add_fails(&world.pod(), 102);
        let named = if foreign == "a port" { "nic0" } else { "192.168.1.10" };
        assert!(message.contains("br0") && message.contains(named), "{message}");
        assert_eq!(up(&world).json["code"], 102);
        assert_eq!(before, look());
    }
}

fn a_bridge_without_ports_and_those_of_earlier_releases_are_taken() {
    let world = World::new(DUAL);
    world.ip("link add ecni0 type bridge");
    let first = world.pod();
    world.add(&first);
    assert!(pings(&first.netns, "10.77.3.1"));
    assert!(world.ip("link show ecni0").contains("alias edge-cni bridge"));
    // With the alias, the bridge keeps its MAC address, even if an agent in a container has another
    // machine ID.
    let mac = |text: &str| text.split("link/ether ").nth(1).unwrap()[..17].to_owned();
    let own = mac(&world.ip("link show ecni0"));
    world.ip("link set ecni0 address 02:00:00:00:00:88");
    world.add(&world.pod());
    assert_eq!(mac(&world.ip("link show ecni0")), "02:00:00:00:00:88");
    world.ip(&format!("link set ecni0 address {own}"));
    // An earlier release set no alias. Addresses that other programs add to the plugin's bridge
    // stay.
    let shown = world.ip("link show ecni0");
    world.ip("link set ecni0 alias x");
    world.ip("addr add 192.0.2.1/32 dev ecni0");
    world.add(&world.pod());
    assert!(world.ip("addr show ecni0").contains("192.0.2.1"));
    // The bridge was created with another machine ID, as by an agent in a container, and has only
    // pods as ports.
    world.ip("addr del 192.0.2.1/32 dev ecni0");
    world.ip("link set ecni0 alias x address 02:00:00:00:00:77");
    world.add(&world.pod());
    assert_eq!(world.ip("link show ecni0").replace("x", ""), shown.replace("x", ""));
}

fn uplinks_alone_go_on_listening_to_routers() {
    let world = World::new(DUAL);
    for (name, peer) in [("uplink0", "router0"), ("other0", "other1"), ("docker1", "container1")] {
        world.ip(&format!("link add {name} type veth peer name {peer}"));
        world.ip(&format!("link set {name} up"));
        world.ip(&format!("link set {peer} up"));
    }
    world.ip("link add docker0 type bridge");
    world.ip("link set docker1 master docker0");
    world.ip("-6 route add default via fe80::1 dev uplink0 proto ra");
    let names = ["uplink0", "other0", "docker0", "docker1", "default", "all"];
    let accept = || names.map(|name| sysctl(&world.host, &format!("ipv6/conf/{name}/accept_ra")));
    assert_eq!(accept()[..5], ["1"; 5]);
    let before = accept();
    world.add(&world.pod());
    assert_eq!(sysctl(&world.host, "ipv6/conf/all/forwarding"), "1");
    let after = accept();
    assert_eq!((after[0].as_str(), &after[1..]), ("2", &before[1..]));
    assert_eq!(sysctl(&world.host, "ipv6/conf/ecni0/accept_ra"), "0");
}

fn without_ipv6_pods_have_ipv4_and_one_sentence_says_why() {
    let world = World::new(DUAL);
    let pod = world.pod();
    let run = |verb: &str, config: &Value| {
        // Simulates a kernel with ipv6.disable=1.
        let script = format!(
            "mount -t tmpfs none /proc/sys/net/ipv6 && rmdir /proc/sys/net/ipv6/* 2>/dev/null; exec {}",
            env!("CARGO_BIN_EXE_edge-cni")
        );
        let mut child = Command::new("ip")
            .args(["netns", "exec", &world.host, "unshare", "-m", "sh", "-c", &script])
            .envs([
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", &pod.id),
                ("CNI_NETNS", &path(&pod)),
                ("CNI_IFNAME", "eth0"),
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.to_string().as_bytes()).unwrap();
        answer(child)
    };
    let mut config = world.config.borrow().clone();
    config["cniVersion"] = json!("1.1.0");
    let sentence = "this kernel has no IPv6";
    let status = run("STATUS", &config);
    assert!(status.ok && status.said.contains(sentence), "{} {}", status.json, status.said);
    let result = run("ADD", &config);
    assert!(result.ok, "{}", result.json);
    assert_eq!(addresses(&result.json), ["10.77.3.2"]);
    assert_eq!(result.said.matches(sentence).count(), 1, "{}", result.said);
    assert!(pings(&pod.netns, "10.77.3.1"));
    config["prevResult"] = result.json;
    let check = run("CHECK", &config);
    assert!(check.ok, "{}", check.json);
    config.as_object_mut().unwrap().remove("prevResult");
    assert!(run("DEL", &config).ok);
    // A node with only IPv6 segments has no segments left.
    std::fs::remove_file(world.state("segments.json")).unwrap();
    config["segments"] = json!(["fd77:0:0:3::/120"]);
    let refused = run("ADD", &config);
    assert!(refused.json["msg"].as_str().unwrap().contains("ipv6.disable=1"), "{}", refused.json);
    assert_eq!(run("STATUS", &config).json["code"], 50);
}

fn ranges_that_would_cut_the_host_off_are_refused() {
    // In the second case only the default route shows the conflict.
    for (arguments, named) in [
        (&["addr add 10.77.200.5/24 dev lan0"][..], "10.77.200.5 on lan0"),
        (&["addr add fd77::200:5/112 dev lan0 nodad"], "fd77::200:5 on lan0"),
        (
            &["addr add 192.0.2.5/32 dev lan0", "route add default via 10.77.200.1 dev lan0 onlink"],
            "gateway 10.77.200.1",
        ),
        (&["-6 route add default via fd77::200:1 dev lan0 onlink"], "gateway fd77::200:1"),
        (
            &[
                "addr add 192.0.2.5/24 dev lan0",
                "route add default nexthop via 192.0.2.1 dev lan0 nexthop via 10.77.9.1 dev lan0 onlink",
            ],
            "gateway 10.77.9.1",
        ),
    ] {
        let world = World::new(DUAL);
        world.ip("link add lan0 type veth peer name lan1");
        world.ip("link set lan0 up");
        world.ip("link set lan1 up");
        arguments.iter().for_each(|arguments| drop(world.ip(arguments)));
        let message = world.add_fails(&world.pod(), 7);
        assert!(message.contains(named) && (message.contains("/16") || message.contains("/48")), "{message}");
        for answer in [up(&world), status(&world)] {
            assert!(answer.json["msg"].as_str().unwrap().contains(named), "{}", answer.json);
        }
        // Nothing was installed.
        assert_eq!(world.ip("xfrm policy"), "");
        assert!(!world.ip("link").contains("ecni"));
        // A network that the hub fronts is exempt from the guard.
        if named.contains("200.5") {
            let segments = json!({"version": 1, "source": "agent", "segments": DUAL, "cluster_ranges": ["10.77.0.0/16"],
                "networks": ["10.77.200.0/24"]});
            std::fs::write(world.state("segments.json"), segments.to_string()).unwrap();
            world.add(&world.pod());
        }
    }
    let world = World::new(DUAL);
    let taken = with_resolvers(&world, "nameserver 127.0.0.53\nnameserver 10.78.0.53\n", || status(&world));
    assert!(taken.ok, "{}", taken.json);
    // A second resolver outside the ranges does not help, since programs query the first one.
    for text in [
        "nameserver 127.0.0.53\nnameserver 10.77.0.53\n",
        "nameserver 10.78.0.53\nnameserver 10.77.0.53\n",
        "search edge-cni.svc.cluster.local svc.cluster.local\nnameserver 10.77.0.53\nnameserver 10.78.0.53\n",
    ] {
        let refused = with_resolvers(&world, text, || world.verb("ADD", &world.pod()));
        let message = refused.json["msg"].as_str().unwrap();
        for named in ["resolver 10.77.0.53", "10.77.0.0/16", "resolversBehindTunnels"] {
            assert!(message.contains(named), "{text}: {message}");
        }
        assert_eq!(world.ip("xfrm policy"), "");
        assert!(!world.ip("link").contains("ecni"));
    }
    // The key exempts only these addresses.
    let both = "nameserver 10.77.0.53\nnameserver fd77::53\n";
    world.set("resolversBehindTunnels", json!(["10.77.0.53"]));
    let refused = with_resolvers(&world, both, || status(&world));
    assert!(refused.json["msg"].as_str().unwrap().contains("resolver fd77::53"), "{}", refused.json);
    world.set("resolversBehindTunnels", json!(["10.77.0.53", "fd77::53"]));
    let taken = with_resolvers(&world, both, || world.verb("ADD", &world.pod()));
    assert!(taken.ok && !taken.said.contains("53"), "{} {}", taken.json, taken.said);
}

/// Runs a closure while `ip netns exec` shows the files of this folder as those of /etc.
fn with_resolvers(world: &World, text: &str, run: impl FnOnce() -> PluginOutput) -> PluginOutput {
    let etc = std::path::Path::new("/etc/netns").join(&world.host);
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("resolv.conf"), text).unwrap();
    let answer = run();
    std::fs::remove_dir_all(&etc).unwrap();
    answer
}

fn what_neighbours_announce_stops_no_node_that_is_guarded() {
    let lan = |world: &World| {
        world.ip("link add lan0 type veth peer name lan1");
        world.ip("link set lan0 up");
        world.ip("link set lan1 up");
    };
    // Router advertisements and DHCP leases make the same changes.
    for (arguments, named) in [
        ("addr add 10.77.200.5/24 dev lan0", "10.77.200.5 on lan0"),
        ("addr add fd77:0:0:5::5/64 dev lan0 nodad", "fd77:0:0:5::5 on lan0"),
        ("route add default via 10.77.200.1 dev lan0 onlink", "gateway 10.77.200.1"),
        ("", "resolver fd77::53"),
    ] {
        let world = World::new(DUAL);
        lan(&world);
        world.add(&world.pod());
        let resolvers = if arguments.is_empty() { "nameserver fd77::53\n" } else { "" };
        if !arguments.is_empty() {
            world.ip(arguments);
        }
        let add = || world.verb("ADD", &world.pod());
        let verbs: [&dyn Fn() -> PluginOutput; 3] = [&add, &|| up(&world), &|| status(&world)];
        for verb in verbs {
            let answer = with_resolvers(&world, resolvers, verb);
            assert!(answer.ok, "{named}: {}", answer.json);
            assert_eq!(answer.said.matches(named).count(), 1, "{}", answer.said);
        }
        // The remaining parts of the guard show that it was installed before. The whole guard is
        // installed again.
        world.ip("link del ecni-guard");
        assert!(with_resolvers(&world, resolvers, add).ok);
        world.ip("xfrm policy flush");
        assert!(with_resolvers(&world, resolvers, add).ok);
        assert!(
            world.ip("xfrm policy").contains("dst 10.77.0.0/16") && world.ip("xfrm policy").contains("action block")
        );
        // The state is the same as after a reboot.
        world.ip("link del ecni-guard");
        world.ip("xfrm policy flush");
        for answer in [with_resolvers(&world, resolvers, add), with_resolvers(&world, resolvers, || status(&world))] {
            assert!(!answer.ok && answer.json["msg"].as_str().unwrap().contains(named), "{}", answer.json);
        }
        // Ranges from the agent are accepted, since the agent has already checked them.
        let path = world.state("segments.json");
        let mut segments: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        segments["source"] = json!("agent");
        segments["cluster_ranges"] = json!(["10.77.0.0/16", "fd77::/48"]);
        std::fs::write(&path, segments.to_string()).unwrap();
        let answer = with_resolvers(&world, resolvers, add);
        assert!(answer.ok && answer.said.contains(named), "{}", answer.json);
    }
    // A range that is added later is not guarded yet.
    let world = World::new(DUAL);
    lan(&world);
    world.add(&world.pod());
    world.ip("addr add 10.78.0.5/24 dev lan0");
    world.set("clusterRanges", json!(["10.77.0.0/16", "fd77::/48", "10.78.0.0/16"]));
    assert!(world.add_fails(&world.pod(), 7).contains("10.78.0.5 on lan0"));
    assert!(!world.ip("xfrm policy").contains("10.78"));
}

fn what_opens_the_guard_is_named_by_status() {
    let world = World::new(DUAL);
    world.ip("link add lan0 type veth peer name lan1");
    world.ip("link set lan0 up");
    world.ip("link set lan1 up");
    world.ip("addr add 192.0.2.5/24 dev lan0");
    world.ip("route add default via 192.0.2.1 dev lan0");
    assert!(status(&world).ok);
    for setting in ["ipv4.conf.all", "ipv4.conf.lan0", "ipv6.conf.all", "ipv6.conf.lan0"] {
        set(&world, &format!("net.{setting}.disable_policy=1"));
        let answer = status(&world);
        assert_eq!(answer.json["code"], 50, "{setting}");
        let command = format!("sysctl -w net.{setting}.disable_policy=0");
        assert!(answer.json["msg"].as_str().unwrap().contains(&command), "{}", answer.json);
        assert!(up(&world).json["obstacles"].to_string().contains(&command));
        set(&world, &format!("net.{setting}.disable_policy=0"));
    }
    set(&world, "net.ipv4.conf.lan1.disable_policy=1");
    set(&world, "net.ipv4.conf.all.disable_xfrm=1");
    let answer = status(&world);
    assert!(answer.ok, "{}", answer.json);
    assert!(
        answer.said.contains("net.ipv4.conf.all.disable_xfrm=0") && !answer.said.contains("lan1"),
        "{}",
        answer.said
    );
    if std::path::Path::new("/proc/sys/net/bridge").exists() {
        assert!(!answer.said.contains("net.bridge"), "{}", answer.said);
        set(&world, "net.bridge.bridge-nf-call-ip6tables=0");
        let answer = status(&world);
        assert!(
            answer.ok && answer.said.contains("sysctl -w net.bridge.bridge-nf-call-ip6tables=1"),
            "{}",
            answer.said
        );
    }
}

fn nothing_heeds_routers_where_the_cluster_has_no_ipv6() {
    let world = World::new(&DUAL[..1]);
    let pod = world.pod();
    world.add(&pod);
    for name in ["accept_ra", "autoconf"] {
        let port = &world.ports()[0];
        for (netns, interface) in [(&pod.netns, "eth0"), (&world.host, "ecni0"), (&world.host, port.as_str())] {
            assert_eq!(sysctl(netns, &format!("ipv6/conf/{interface}/{name}")), "0", "{interface}");
        }
    }
    assert!(ip(&pod.netns, "-6 route").lines().all(|line| line.contains("fe80::") || line.contains("ff00::")));
}

fn former_gateways_leave_the_bridge() {
    let world = World::new(&["10.77.3.0/24", "fd77:0:0:3::/120"]);
    let (old, new) = (world.pod(), world.pod());
    world.add(&old);
    let addresses =
        || world.ip("-br addr show ecni0").split_whitespace().skip(2).map(str::to_owned).collect::<Vec<_>>();
    let use_segments = |segments: Value| {
        let path = world.state("segments.json");
        let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        file["segments"] = segments;
        std::fs::write(path, file.to_string()).unwrap();
    };
    // Addresses that the operator has added stay.
    let operators = ["192.0.2.1/24", "10.77.50.5/24"];
    operators.iter().for_each(|address| drop(world.ip(&format!("addr add {address} dev ecni0"))));
    use_segments(json!(["10.77.9.0/24", "fd77:0:0:9::/120"]));
    world.add(&new);
    let gateways = ["10.77.3.1/24", "fd77:0:0:3::1/120", "10.77.9.1/24", "fd77:0:0:9::1/120"];
    let found = addresses();
    assert!(gateways.iter().chain(&operators).all(|address| found.contains(&(*address).to_owned())), "{found:?}");
    assert!(pings(&old.netns, "10.77.3.1"), "a pod still has an address of the former segment");
    world.del(&old);
    assert!(up(&world).ok);
    let found = addresses();
    assert!(!found.iter().any(|address| gateways[..2].contains(&address.as_str())), "{found:?}");
    assert!(gateways[2..].iter().chain(&operators).all(|address| found.contains(&(*address).to_owned())), "{found:?}");
    // The size of the node's segments changes.
    use_segments(json!(["10.77.9.0/26", "fd77:0:0:9::/112"]));
    assert!(up(&world).ok);
    let found = addresses();
    let gateways: Vec<&String> =
        found.iter().filter(|address| address.starts_with("10.77.9.") || address.starts_with("fd77")).collect();
    assert_eq!(gateways, ["10.77.9.1/26", "fd77:0:0:9::1/112"]);
    for gateway in ["10.77.9.1", "fd77:0:0:9::1"] {
        assert!(pings(&new.netns, gateway));
    }
}

fn pods_with_a_larger_mtu_are_named() {
    let world = World::new(&["10.77.3.0/24"]);
    world.set("cniVersion", json!("1.1.0"));
    world.set("mtu", json!(1400));
    let (large, small) = (world.pod(), world.pod());
    let result = world.verb("ADD", &large).json;
    assert_eq!(result["interfaces"][0]["mtu"], 1400, "the bridge follows its first port: {result}");
    assert!(!up(&world).json["obstacles"].to_string().contains("MTU"));
    world.set("mtu", json!(1300));
    world.add(&small);
    let obstacles = up(&world).json["obstacles"].to_string();
    assert!(obstacles.contains("1300") && obstacles.contains(&format!("default/web-{}", large.id)), "{obstacles}");
    assert!(!obstacles.contains(&format!("default/web-{}", small.id)), "{obstacles}");
}

fn up_attaches_pods_again_whose_bridge_was_deleted() {
    let world = World::new(DUAL);
    world.set("portIsolation", json!(false));
    let (one, other) = (world.pod(), world.pod());
    world.add(&one);
    let theirs = world.add(&other);
    let port = |id: &str| {
        let name = |link: &Value| link["ifname"].as_str().unwrap_or_default().to_owned();
        let links: Value = serde_json::from_str(&world.ip("-json -details link show type veth")).unwrap();
        let alias = format!("edge-cni {id} eth0");
        links.as_array().unwrap().iter().find(|link| link["ifalias"] == *alias).map(name).unwrap()
    };
    // A veth of another program is not changed.
    world.ip("link add other0 type veth peer name other1");
    for cut in ["link delete ecni0".to_owned(), format!("link set {} nomaster", port(&one.id))] {
        world.ip(&cut);
        for address in &theirs {
            assert!(!pings(&one.netns, address), "{cut}");
        }
        let attached = up(&world).json["attached"].as_array().unwrap().clone();
        assert!(attached.contains(&json!(port(&one.id))), "{cut}: {attached:?}");
        assert_eq!(attached.len(), if cut.contains("ecni0") { 2 } else { 1 }, "{cut}: {attached:?}");
        for address in theirs.iter().map(String::as_str).chain(["10.77.3.1", "fd77:0:0:3::1"]) {
            wait_for(&format!("the pod reaches {address} after {cut}"), || pings(&one.netns, address));
        }
    }
    assert!(!world.ip("link show other0").contains("master"));
    assert_eq!(up(&world).json["attached"], json!([]));
}

fn the_bridge_has_the_pods_mtu() {
    let world = World::new(&["10.77.3.0/24"]);
    world.set("cniVersion", json!("1.1.0"));
    let mtu = || world.ip("-o link show ecni0").split(" mtu ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    world.set("mtu", json!(1400));
    assert!(up(&world).ok);
    assert_eq!(mtu(), "1400");
    let (old, new) = (world.pod(), world.pod());
    world.add(&old);
    // A smaller MTU applies to packets from the host, although the pods keep their MTU.
    world.set("mtu", json!(1300));
    assert!(up(&world).ok);
    assert_eq!(mtu(), "1300");
    let result = world.verb("ADD", &new).json;
    assert_eq!((&result["interfaces"][0]["mtu"], &result["interfaces"][1]["mtu"]), (&json!(1300), &json!(1300)));
    // A larger MTU is not used until the pods with a smaller MTU are removed.
    world.set("mtu", json!(1450));
    let third = world.pod();
    let result = world.verb("ADD", &third).json;
    assert_eq!((&result["interfaces"][0]["mtu"], &result["interfaces"][1]["mtu"]), (&json!(1300), &json!(1450)));
    world.del(&new);
    assert!(up(&world).ok);
    assert_eq!(mtu(), "1400");
    world.del(&old);
    world.add(&world.pod());
    assert_eq!(mtu(), "1450");
}
