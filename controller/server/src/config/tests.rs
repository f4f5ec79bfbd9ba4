use super::*;

const SMALLEST: &str = "server_names = [\"cloud\"]\n[segments]\ncluster_ranges = [\"10.77.0.0/16\"]\n";

fn load(text: &str) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("controller.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).map_err(|e| e.to_string())
}

#[test]
fn the_smallest_file_gets_defaults() {
    let config = load(SMALLEST).unwrap();
    assert_eq!(config.listen, ["[::]:8443".parse().unwrap()]);
    assert_eq!(config.segments.v4_prefix, 26);
}

#[test]
fn unknown_keys_are_refused_by_name() {
    let error = load(&format!("quarantine = 3\n{SMALLEST}")).unwrap_err();
    assert!(error.contains("quarantine"), "{error}");
}

#[test]
fn values_that_make_no_sense_are_refused_with_their_key() {
    for (bad, key) in [
        ("server_names = []\n[segments]\ncluster_ranges = [\"10.0.0.0/8\"]", "server_names"),
        ("server_names = [\"a b\"]\n[segments]\ncluster_ranges = [\"10.0.0.0/8\"]", "server_names"),
        ("server_names = [\"a\"]\n[segments]\ncluster_ranges = []", "cluster_ranges"),
        (
            "server_names = [\"a\"]\n[segments]\ncluster_ranges = [\"10.77.0.0/16\"]\n[certificates]\nca_key = \"k\"",
            "ca_certificate",
        ),
        ("server_names = [\"a\"]\n[segments]\ncluster_ranges = [\"10.77.0.1/16\"]", "cluster_ranges"),
        ("server_names = [\"a\"]\n[segments]\ncluster_ranges = [\"10.77.0.0/28\"]", "v4_prefix"),
        ("server_names = [\"a\"]\n[segments]\ncluster_ranges = [\"10.0.0.0/8\", \"10.1.0.0/16\"]", "cluster_ranges"),
        (
            "server_names = [\"a\"]\n[segments]\ncluster_ranges = [\"10.77.0.0/16\"]\n[kubernetes]\nhub_selector = \"\"",
            "hub_selector",
        ),
        (
            "server_names = [\"a\"]\nnetworks = [\"10.77.1.0/24\"]\n[segments]\ncluster_ranges = [\"10.77.0.0/16\"]",
            "networks",
        ),
    ] {
        let error = load(bad).unwrap_err();
        assert!(error.contains(key), "{bad}: {error}");
    }
}

#[test]
fn ranges_and_networks_with_addresses_that_every_host_needs_are_refused() {
    for special in
        ["127.0.0.0/8", "224.0.0.0/4", "169.254.0.0/16", "0.0.0.0/0", "fe80::/10", "ff00::/8", "::/64", "::/0"]
    {
        let range = format!("server_names = [\"a\"]\n[segments]\nv4_prefix = 26\ncluster_ranges = [\"{special}\"]");
        let small = "[segments]\ncluster_ranges = [\"10.77.0.0/16\", \"fd77::/64\"]";
        let networks = format!("server_names = [\"a\"]\nnetworks = [\"{special}\"]\n{small}");
        let hub = format!("server_names = [\"a\"]\n{small}\n[hub.h]\nnetworks = [\"{special}\"]");
        for (text, key) in [(range, "segments.cluster_ranges"), (networks, "networks"), (hub, "networks")] {
            let error = load(&text).unwrap_err();
            assert!(error.contains(key) && error.contains(special) && error.contains("address"), "{text}: {error}");
        }
    }
}

#[test]
fn endpoints_and_limits_that_no_node_can_use_are_refused() {
    let endpoint = |text: &str| format!("{SMALLEST}[hub.h]\nendpoints = [\"203.0.113.1:4500\", \"{text}\"]");
    for text in [
        "0.0.0.0:4500",
        "[::]:4500",
        "127.0.0.1:4500",
        "[::1]:4500",
        "224.0.0.1:4500",
        "[ff02::1]:4500",
        "255.255.255.255:4500",
        "203.0.113.1:0",
        "[::ffff:127.0.0.1]:4500",
    ] {
        let error = load(&endpoint(text)).unwrap_err();
        assert!(error.contains("hub.h.endpoints") && error.contains(text), "{text}: {error}");
    }
    load(&endpoint("[2001:db8::1]:4500")).unwrap();
    for (keys, key) in [("min_per_node = 65", "min_per_node"), ("min_per_node = 3\nmax_per_node = 2", "min_per_node")] {
        let error = load(&format!("{SMALLEST}{keys}")).unwrap_err();
        assert!(error.contains(key), "{keys}: {error}");
    }
    load(&format!("{SMALLEST}min_per_node = 64")).unwrap();
    let everything = "cluster_ranges = [\"10.77.0.0/16\", \"fd77::/112\"]\nreserved = [\"10.77.0.0/17\", \"10.77.128.0/17\", \"fd77::/64\"]\n";
    let reserved = |keys: &str| load(&format!("server_names = [\"cloud\"]\n[segments]\n{keys}"));
    let error = reserved(everything).unwrap_err();
    assert!(error.contains("reserved") && error.contains("leaves no segment"), "{error}");
    reserved(&everything.replace("10.77.128.0/17", "10.77.128.0/18")).unwrap();
    reserved(&everything.replace(", \"fd77::/64\"", "")).unwrap();
    for name in ["0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1"] {
        let error = load(&SMALLEST.replace("cloud", name)).unwrap_err();
        assert!(error.contains("server_names") && error.contains(name), "{name}: {error}");
    }
    load(&SMALLEST.replace("cloud", "127.0.0.1")).unwrap();
}

#[test]
fn listeners_that_would_take_each_others_port_are_refused() {
    let listeners = |listen: &str, observe: &str, page: &str| {
        load(&format!("listen = [{listen}]\n{SMALLEST}[observe]\nlisten = [{observe}]\n[page]\nlisten = [{page}]\n"))
    };
    let usual = "\"[::]:8443\"";
    for (listen, observe, page, words) in [
        ("\"127.0.0.1:1\", \"127.0.0.1:1\"", "", "", "listen: 127.0.0.1:1 is there twice"),
        (usual, "\"[::1]:2\", \"[::1]:2\"", "", "observe.listen: [::1]:2 is there twice"),
        (usual, "\"127.0.0.1:8443\"", "", "observe.listen: 127.0.0.1:8443 is taken by [::]:8443 of listen"),
        ("\"10.0.0.1:7\"", "\"0.0.0.0:7\"", "", "0.0.0.0:7 is taken by 10.0.0.1:7 of listen"),
        (
            usual,
            "\"127.0.0.1:9\"",
            "\"127.0.0.1:9\"",
            "page.listen: 127.0.0.1:9 is taken by 127.0.0.1:9 of observe.listen",
        ),
        ("\"224.0.0.1:8443\"", "", "", "listen: 224.0.0.1:8443 is no address of a host"),
        (usual, "\"255.255.255.255:9\"", "", "observe.listen: 255.255.255.255:9 is no address"),
    ] {
        let error = listeners(listen, observe, page).unwrap_err();
        assert!(error.contains(words), "{words}: {error}");
    }
    // [::] leaves IPv4 to another address of its list, and port 0 is any free port.
    listeners("\"[::]:8443\", \"0.0.0.0:8443\", \"127.0.0.1:8443\"", "\"127.0.0.1:0\"", "\"127.0.0.1:0\"").unwrap();
    listeners("\"0.0.0.0:8443\"", "\"[::1]:8443\"", "").unwrap();
    listeners("\"127.0.0.1:8443\"", "\"127.0.0.2:8443\"", "").unwrap();
}

#[test]
fn values_that_work_otherwise_than_intended_are_warnings() {
    let warnings = |text: &str| load(text).unwrap().warnings();
    let segments = |keys: &str| warnings(&format!("server_names = [\"cloud\"]\n[segments]\n{keys}\n"));
    let ranges = "cluster_ranges = [\"10.77.0.0/16\", \"fd77::/64\"]";
    for (keys, words) in [
        (format!("{ranges}\nreserved = [\"10.78.0.0/24\"]"), "segments.reserved: 10.78.0.0/24 lies outside"),
        (format!("{ranges}\nv4_prefix = 16"), "segments.v4_prefix: cluster_ranges hold a single segment of /16"),
        (format!("{ranges}\nv4_prefix = 30"), "a segment of /30 has room for 1 pods, and a node for 64"),
        (format!("{ranges}\nv6_prefix = 64"), "segments.v6_prefix: cluster_ranges hold a single segment of /64"),
        (format!("{ranges}\nv6_prefix = 126"), "a segment of /126 has room for 2 pods"),
        (format!("{ranges}\nquarantine_seconds = 0"), "segments.quarantine_seconds: with 0"),
    ] {
        let found = segments(&keys);
        assert!(found.len() == 1 && found[0].contains(words), "{keys}: {found:?}");
    }
    let none: Vec<String> = vec![];
    for keys in [
        ranges.to_owned(),
        format!("{ranges}\nreserved = [\"10.77.9.0/24\", \"fd00::/8\"]\nv4_prefix = 29\nv6_prefix = 125"),
        "cluster_ranges = [\"10.77.0.0/24\"]\nv6_prefix = 126".to_owned(),
    ] {
        assert_eq!(segments(&keys), none, "{keys}");
    }
    for (names, count) in [("\"localhost\", \"127.0.0.1\"", 1), ("\"::1\"", 1), ("\"127.0.0.1\", \"cloud\"", 0)] {
        let found = warnings(&SMALLEST.replace("\"cloud\"", names));
        assert_eq!(found.len(), count, "{names}: {found:?}");
    }
    for (keys, words) in [
        ("edge_selector = \"\"", "every Node is an edge"),
        ("hub_selector = \"a=b\"\nedge_selector = \"a=b\"", "kubernetes.hub_selector: it is \"a=b\""),
    ] {
        let found = warnings(&format!("{SMALLEST}[kubernetes]\n{keys}\n"));
        assert!(found.len() == 1 && found[0].contains(words), "{keys}: {found:?}");
    }
}

#[test]
fn the_documented_example_is_accepted() {
    let document = include_str!("../../../../docs/configuration.md");
    let section = document.split("## edge-controller").nth(1).expect("a section for edge-controller");
    let example = section.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    assert_eq!(load(example).unwrap().warnings(), Vec::<String>::new());
}

#[test]
fn the_manifests_configuration_is_accepted() {
    let manifest = include_str!("../../../../deploy/kubernetes/20-controller.yaml");
    let (_, rest) = manifest.split_once("\n  controller.toml: |\n").expect("a ConfigMap with the file");
    let lines = rest.lines().map_while(|line| if line.is_empty() { Some("") } else { line.strip_prefix("    ") });
    load(&lines.collect::<Vec<_>>().join("\n")).unwrap();
}

#[test]
fn the_network_policy_opens_the_deployments_ports_one_for_all_and_the_other_for_monitoring() {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    let manifest = include_str!("../../../../deploy/kubernetes/20-controller.yaml");
    let text = manifest.split("---\n").find(|part| part.contains("kind: Deployment")).expect("a Deployment");
    let pods = serde_saphyr::from_str::<Deployment>(text).unwrap().spec.template;
    let text = include_str!("../../../../deploy/kubernetes/60-networkpolicy.yaml");
    let policy = serde_saphyr::from_str::<NetworkPolicy>(text).unwrap().spec.unwrap();
    let selected = policy.pod_selector.unwrap_or_default().match_labels;
    assert_eq!(selected, pods.metadata.unwrap_or_default().labels, "it selects the controller's pods");
    let container = pods.spec.unwrap().containers.remove(0);
    let ports: Vec<String> = container.ports.unwrap().into_iter().map(|port| port.name.unwrap()).collect();
    let rules = policy.ingress.unwrap().into_iter().map(|rule| {
        let port = rule.ports.unwrap().remove(0).port.unwrap();
        (serde_json::to_value(port).unwrap(), rule.from.is_some())
    });
    let rules: Vec<_> = rules.collect();
    assert_eq!(ports, ["nodes", "observe"]);
    assert_eq!(rules, [("nodes".into(), false), ("observe".into(), true)], "by the names of its ports");
}
