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
fn the_documented_example_is_accepted() {
    let document = include_str!("../../../../docs/configuration.md");
    let section = document.split("## edge-controller").nth(1).expect("a section for edge-controller");
    let example = section.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    load(example).unwrap();
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
