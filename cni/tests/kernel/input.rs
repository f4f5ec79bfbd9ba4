//! Tests invalid input, and the plugin's errors about it.

use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::world::{World, addresses, answer, ip, path, pings};

pub(crate) const TESTS: &[Test] = &[
    ("version_is_told_with_and_without_input", version_is_told_with_and_without_input),
    ("wrong_variables_are_named_with_code_4", wrong_variables_are_named_with_code_4),
    (
        "wrong_configurations_are_explained_with_the_specifications_codes",
        wrong_configurations_are_explained_with_the_specifications_codes,
    ),
    ("verbs_newer_than_the_configuration_are_refused", verbs_newer_than_the_configuration_are_refused),
    ("status_is_well_while_an_add_could_be_served", status_is_well_while_an_add_could_be_served),
    ("a_second_add_is_refused_and_the_first_stays", a_second_add_is_refused_and_the_first_stays),
    (
        "of_two_adds_of_one_container_at_once_one_attaches_it_and_the_other_is_refused",
        of_two_adds_of_one_container_at_once_one_attaches_it_and_the_other_is_refused,
    ),
    (
        "a_path_that_leads_to_the_host_is_refused_and_hurts_nothing",
        a_path_that_leads_to_the_host_is_refused_and_hurts_nothing,
    ),
    ("a_name_that_is_taken_is_refused_and_left_alone", a_name_that_is_taken_is_refused_and_left_alone),
    ("without_any_segment_add_says_what_to_do", without_any_segment_add_says_what_to_do),
    ("people_get_help", people_get_help),
    ("people_see_leases_segments_and_what_the_node_lacks", people_see_leases_segments_and_lacks),
];

const SEGMENT: &[&str] = &["10.77.3.0/24"];

fn version_is_told_with_and_without_input() {
    let world = World::new(SEGMENT);
    for (input, expected) in
        [("", "1.1.0"), (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), (r#"{"cniVersion":"7.0.0"}"#, "7.0.0")]
    {
        let answer = world.run(&[("CNI_COMMAND", "VERSION")], input);
        assert!(answer.ok, "{}", answer.json);
        assert_eq!(answer.json["cniVersion"], expected);
        assert_eq!(
            answer.json["supportedVersions"],
            json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
        );
    }
}

fn wrong_variables_are_named_with_code_4() {
    let world = World::new(SEGMENT);
    let pod = world.pod();
    let netns = path(&pod);
    let good =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a"), ("CNI_NETNS", netns.as_str()), ("CNI_IFNAME", "eth0")];
    for (name, value) in [
        ("CNI_COMMAND", ""),
        ("CNI_COMMAND", "add"),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "../../etc/passwd"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "an/other"),
        ("CNI_IFNAME", "sixteen-letters-"),
        ("CNI_IFNAME", "eth%d"),
        ("CNI_NETNS", ""),
        ("CNI_NETNS", "/no/such/netns"),
        ("CNI_NETNS", "/etc/hostname"),
        ("CNI_ARGS", "NONSENSE"),
        ("CNI_ARGS", "UNKNOWN=1"),
    ] {
        let mut variables: Vec<_> = good.iter().copied().filter(|(other, _)| *other != name).collect();
        variables.push((name, value));
        let answer = world.run(&variables, &world.config.borrow().to_string());
        assert!(!answer.ok, "{name}={value}");
        assert_eq!(answer.json["code"], 4, "{}", answer.json);
        assert!(answer.json["msg"].as_str().unwrap().contains(name), "{}", answer.json);
    }
    assert!(world.ports().is_empty() && !world.state("leases").exists());
}

fn wrong_configurations_are_explained_with_the_specifications_codes() {
    let world = World::new(SEGMENT);
    let pod = world.pod();
    let good = world.config.borrow().clone();
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config.to_string()
    };
    for (input, code, named) in [
        (String::new(), 6, "JSON"),
        ("{\"cniVersion\":".into(), 6, "JSON"),
        ("[1]".into(), 6, "object"),
        (format!("{{{}}}", " ".repeat((1 << 20) - 1)), 6, "larger than 1048576 bytes"),
        (with("cniVersion", json!("0.0.9")), 1, "0.0.9"),
        (with("cniVersion", json!("2.0.0")), 1, "2.0.0"),
        (with("resolvConf", json!("/nonexistent/resolv.conf")), 5, "/nonexistent/resolv.conf"),
        (with("ipMasq", json!(true)), 2, "ipMasq"),
        (with("ipam", json!({"type": "host-local"})), 2, "ipam"),
        (with("segments", json!(["10.77.3.0/33"])), 7, "10.77.3.0/33"),
        (with("segments", json!(["10.77.3.0/31"])), 7, "10.77.3.0/31"),
        (with("bridge", json!("../x")), 7, "../x"),
        (with("stateDir", json!("state")), 7, "state"),
        (with("name", json!("a b")), 7, "a b"),
        (with("mtu", json!(68)), 7, "68"),
        (with("prevResult", json!({"cniVersion": "1.0.0", "ips": []})), 7, "prevResult"),
    ] {
        let netns = path(&pod);
        let variables =
            [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a"), ("CNI_NETNS", netns.as_str()), ("CNI_IFNAME", "eth0")];
        let answer = world.run(&variables, &input);
        assert!(!answer.ok, "{input}");
        assert_eq!(answer.json["code"], code, "{input}: {}", answer.json);
        assert!(answer.json["msg"].as_str().unwrap().contains(named), "{input}: {}", answer.json);
    }
    assert!(world.ports().is_empty());
    // A key of a later specification does not cause a failure.
    world.set("cni.dev/later", json!("x".repeat(5000)));
    let answer = world.verb("ADD", &pod);
    assert!(answer.ok && answer.said.contains("cni.dev/later"), "{answer:?}");
}

fn status_is_well_while_an_add_could_be_served() {
    let world = World::new(SEGMENT);
    world.set("cniVersion", json!("1.1.0"));
    let status = || world.run(&[("CNI_COMMAND", "STATUS")], &world.config.borrow().to_string());
    assert!(status().ok, "nothing is there yet, but the configuration has a segment");
    world.add(&world.pod());
    assert!(status().ok);
    let leases = std::fs::read(world.state("leases")).unwrap();
    std::fs::write(world.state("leases"), "").unwrap();
    assert_eq!(status().json["code"], 50);
    std::fs::write(world.state("leases"), leases).unwrap();
    assert!(status().ok);
    std::fs::remove_file(world.state("segments.json")).unwrap();
    world.set("segments", json!([]));
    let answer = status();
    assert_eq!(answer.json["code"], 50, "{}", answer.json);
    assert!(answer.json["msg"].as_str().unwrap().contains("edge-agent"), "{}", answer.json);
}

fn verbs_newer_than_the_configuration_are_refused() {
    let world = World::new(SEGMENT);
    let pod = world.pod();
    for (version, verb) in [("1.0.0", "STATUS"), ("1.0.0", "GC"), ("0.3.1", "CHECK")] {
        world.set("cniVersion", json!(version));
        let answer = world.verb(verb, &pod);
        assert_eq!(answer.json["code"], 1, "{}", answer.json);
        assert!(answer.json["msg"].as_str().unwrap().contains(verb), "{}", answer.json);
    }
}

fn a_second_add_is_refused_and_the_first_stays() {
    let world = World::new(SEGMENT);
    let (pod, neighbour) = (world.pod(), world.pod());
    world.add(&neighbour);
    let got = world.add(&pod);
    let message = world.add_fails(&pod, 101);
    assert!(message.contains(&got[0]) && message.contains("DEL"), "{message}");
    assert!(pings(&neighbour.netns, &got[0]));
    world.del(&pod);
    world.add(&pod);
}

fn of_two_adds_of_one_container_at_once_one_attaches_it_and_the_other_is_refused() {
    let world = World::new(SEGMENT);
    for _ in 0..20 {
        let pod = world.pod();
        let [one, other] = [0, 1].map(|_| world.start_verb("ADD", &pod)).map(answer);
        let (attached, refused) = if one.ok { (one, other) } else { (other, one) };
        assert!(attached.ok && !refused.ok, "{} and {}", attached.json, refused.json);
        assert_eq!(refused.json["code"], 101, "{}", refused.json);
        assert!(refused.json["msg"].as_str().unwrap().contains("DEL"), "{}", refused.json);
        assert!(pings(&world.host, &addresses(&attached.json)[0]));
        assert_eq!((world.ports().len(), world.leased()), (1, vec![pod.id.clone()]));
        world.del(&pod);
    }
}

fn a_path_that_leads_to_the_host_is_refused_and_hurts_nothing() {
    let world = World::new(SEGMENT);
    let pod = world.pod();
    world.add(&pod);
    // Without the state of links and of their own addresses, which still changes after an ADD.
    let shown = || (world.ports(), world.ip("-o addr show scope global"));
    let before = shown();
    for path in ["/proc/self/ns/net", &format!("/run/netns/{}", world.host)] {
        for (verb, ok) in [("ADD", false), ("DEL", true)] {
            let variables =
                [("CNI_COMMAND", verb), ("CNI_CONTAINERID", "other"), ("CNI_NETNS", path), ("CNI_IFNAME", "ecni0")];
            let answer = world.run(&variables, &world.config.borrow().to_string());
            assert_eq!(answer.ok, ok, "{verb}: {}", answer.json);
            if !ok {
                assert_eq!(answer.json["code"], 4, "{}", answer.json);
            }
        }
    }
    assert_eq!(shown(), before);
}

fn a_name_that_is_taken_is_refused_and_left_alone() {
    let world = World::new(SEGMENT);
    let pod = world.pod();
    ip(&pod.netns, "link add eth0 type veth peer name other");
    let message = world.add_fails(&pod, 102);
    assert!(message.contains("eth0"), "{message}");
    assert!(ip(&pod.netns, "link show eth0").contains("other"));
    world.ip("link add taken type veth peer name peer");
    world.set("bridge", json!("taken"));
    let message = world.add_fails(&world.pod(), 102);
    assert!(message.contains("taken") && message.contains("veth"), "{message}");
}

fn without_any_segment_add_says_what_to_do() {
    let world = World::new(&[]);
    let message = world.add_fails(&world.pod(), 11);
    assert!(message.contains("segment") && message.contains("edge-agent"), "{message}");
}

fn people_get_help() {
    let run = |argument: &str| {
        interop_tests::netns::succeed(std::process::Command::new(env!("CARGO_BIN_EXE_edge-cni")).arg(argument))
    };
    assert!(run("--help").contains("CNI_COMMAND") && run("--version").contains("1.1.0"));
    let wrong = std::process::Command::new(env!("CARGO_BIN_EXE_edge-cni")).arg("--hlep").output().unwrap();
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stdout).contains("--help"));
}

fn people_see_leases_segments_and_lacks() {
    let world = World::new(&["10.77.3.0/29", "fd77:0:0:3::/120"]);
    let file = world.folder.path().join("plugin.json");
    let run = |arguments: &[&str]| {
        std::fs::write(&file, world.config.borrow().to_string()).unwrap();
        let program = ["netns", "exec", &world.host, env!("CARGO_BIN_EXE_edge-cni")];
        let output = std::process::Command::new("ip").args(program).args(arguments).arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    // Before the first pod, there is no journal, and these commands do not create one.
    assert_eq!(run(&["leases", "--json"]), (true, "[]\n".into()));
    assert_eq!(run(&["segments", "--json"]), (true, "[]\n".into()));
    assert!(!world.state("leases").exists());
    let granted = r#"{"version":1,"source":"agent","segments":["10.77.3.0/29","fd77:0:0:3::/120"]}"#;
    std::fs::create_dir_all(world.state("")).unwrap();
    std::fs::write(world.state("segments.json"), granted).unwrap();
    assert!(run(&["segments"]).1.contains("10.77.3.0/29"));
    assert!(!world.state("leases").exists());
    let pod = world.pod();
    world.add(&pod);
    let json = |arguments: &[&str]| serde_json::from_str::<Value>(&run(arguments).1).unwrap();
    assert_eq!(
        json(&["leases", "--json"]),
        json!([{"addresses": ["10.77.3.2", "fd77:0:0:3::2"], "pod": "default/web-container0", "network": "pods",
                "container": "container0", "interface": "eth0"}])
    );
    let table = run(&["leases"]).1;
    assert!(
        table.starts_with("ADDRESSES") && table.contains("10.77.3.2,fd77:0:0:3::2  default/web-container0"),
        "{table}"
    );
    assert_eq!(
        json(&["segments", "--json"])[0],
        json!({"segment": "10.77.3.0/29", "gateway": "10.77.3.1", "leased": 1, "free": 4, "source": "agent"})
    );
    let (good, text) = run(&["check"]);
    assert!(good && text.ends_with("pods can be attached\n"), "{text}");
    // There are two problems at the same time.
    interop_tests::netns::succeed(std::process::Command::new("ip").args([
        "netns",
        "exec",
        &world.host,
        "sysctl",
        "-qw",
        "net.ipv4.conf.all.disable_policy=1",
    ]));
    let mut owner = crate::filter_table::nft_session(
        &world,
        "delete table inet edge-cni-pods; add table inet edge-cni-pods { flags owner; }\n",
    );
    crate::world::wait_for("the other's table", || run(&["check"]).1.contains("edge-cni-pods"));
    let (good, text) = run(&["check"]);
    assert!(!good && text.matches("failure: ").count() == 2 && text.contains("disable_policy"), "{text}");
    drop(owner.stdin.take());
    owner.wait().unwrap();
}
