use std::path::Path;

use edge_xfrm::guard::GuardConfig;

use edge_types::Role;
use ipnetwork::IpNetwork;

use super::contents::controller_ports;
use super::*;
use crate::config::Config;
use crate::desired::{Desired, RemoteNetworks};

fn networks(list: &[&str]) -> Vec<IpNetwork> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn config(keys: &str) -> Config {
    Config::parse(&format!("{keys}\n[controller]\nurls = [\"https://c\"]"), Path::new("agent.toml")).unwrap()
}

fn of_role(role: Role) -> Desired {
    Desired {
        role: Some(role),
        guard: GuardConfig {
            cluster_ranges: networks(&["10.77.0.0/16"]),
            segments: networks(&["10.77.1.0/26"]),
            networks: if role == Role::Hub { networks(&["10.244.0.0/16"]) } else { vec![] },
            bridge_addresses: vec![],
            sources: Vec::new(),
        },
        remote_networks: RemoteNetworks::new(networks(&["10.77.2.0/26"]), &[]),
        ..Desired::default()
    }
}

fn table(keys: &str, desired: &Desired) -> Firewall {
    let links = FirewallLinks {
        pod_bridges: vec!["ecni0".into()],
        isolated: [vec!["eth0".into()], vec![]],
        ..FirewallLinks::default()
    };
    Firewall::desired(&config(keys), desired, vec![], links, 1418)
}

#[test]
fn edges_masquerade_unless_configured_otherwise_and_hubs_only_if_configured() {
    assert!(table("", &of_role(Role::Edge)).masquerade);
    assert!(!table("", &of_role(Role::Hub)).masquerade);
    assert!(!table("[firewall]\nmasquerade = false", &of_role(Role::Edge)).masquerade);
    assert!(table("[firewall]\nmasquerade = true", &of_role(Role::Hub)).masquerade);
}

#[test]
fn a_hub_knows_the_clouds_networks_and_a_cloud_node_gets_the_edges_in_clear() {
    let hub = table("", &of_role(Role::Hub));
    assert_eq!((hub.fronted, hub.remote_in_clear), (networks(&["10.244.0.0/16"]), false));
    let cloud = Desired {
        role: Some(Role::Cloud),
        hub_routes: networks(&["10.77.0.0/16"]),
        cloud_networks: networks(&["10.244.0.0/16"]),
        ..Desired::default()
    };
    let cloud = table("", &cloud);
    assert_eq!((cloud.remote.to_vec(), cloud.fronted), (networks(&["10.77.0.0/16"]), networks(&["10.244.0.0/16"])));
    assert!(cloud.own.is_empty() && cloud.remote_in_clear && !cloud.masquerade);
}

#[test]
fn the_controllers_ports_are_those_of_its_urls() {
    assert_eq!(table("", &of_role(Role::Edge)).controller_ports, [443]);
    let urls = r#"urls = ["https://c:8443", "https://[2001:db8::1]:7443", "https://d:8443", "https://e/"]"#;
    let config = Config::parse(&format!("[controller]\n{urls}"), Path::new("agent.toml")).unwrap();
    assert_eq!(controller_ports(&config), [443, 7443, 8443]);
}

#[test]
fn networks_are_kept_apart_unless_the_operator_wants_a_router() {
    assert_eq!(table("", &of_role(Role::Edge)).isolated, [vec!["eth0".to_owned()], vec![]]);
    assert!(table("[firewall]\nforward_others = true", &of_role(Role::Edge)).isolated.iter().all(Vec::is_empty));
}

#[test]
fn without_a_view_no_table_is_wanted() {
    assert!(table("", &Desired::default()).is_empty());
    assert!(!table("", &of_role(Role::Edge)).is_empty());
    // The first edge of a cluster has no peer. It still needs a table, so that its pods can reach
    // hosts outside of the cluster.
    assert!(!table("", &Desired { remote_networks: RemoteNetworks::default(), ..of_role(Role::Edge) }).is_empty());
}

/// Returns the statements of all rules in a chain, as text.
fn rules(firewall: &Firewall, chain: &str) -> Vec<String> {
    let commands = firewall.commands();
    let all = commands["nftables"].as_array().unwrap().iter().map(|command| &command["add"]["rule"]);
    all.filter(|rule| rule["chain"] == chain).map(|rule| rule["expr"].to_string()).collect()
}

#[test]
fn what_is_dropped_is_dropped_after_all_that_is_accepted_and_counted() {
    let firewall = table("", &of_role(Role::Edge));
    for chain in ["in-clear", "to-tunnels", "to-pods", "between-uplinks", "to-containers"] {
        let rules = rules(&firewall, chain);
        let (last, before) = rules.split_last().unwrap();
        assert!(last.contains("drop") && last.contains("counter"), "{chain}: {last}");
        // Before this rule, only redirected connections to a network behind a tunnel may be
        // dropped.
        let accepts = |rule: &String| rule.contains("accept") || rule.contains("original") && rule.contains("counter");
        assert!(before.iter().all(accepts), "{chain}: {before:?}");
    }
}

#[test]
fn a_network_within_another_is_no_element_of_its_own() {
    let firewall =
        Firewall { own: networks(&["10.77.1.0/26", "10.77.0.0/16", "10.77.1.64/26"]), ..Firewall::default() };
    let commands = firewall.commands();
    let sets = commands["nftables"].as_array().unwrap().iter().map(|command| &command["add"]["set"]);
    let own = sets.into_iter().find(|set| set["name"] == "own4").unwrap();
    assert_eq!(own["elem"], serde_json::json!([{"prefix": {"addr": "10.77.0.0", "len": 16}}]));
}

#[test]
fn pods_datagrams_get_the_widest_range_of_ports_without_those_of_ike() {
    for (ike_ports, range) in [
        ([500, 4500], (4501, 65535)),
        ([4500, 500], (4501, 65535)),
        ([20500, 45000], (20501, 44999)),
        ([60000, 65535], (1024, 59999)),
        ([1, 1], (1024, 65535)),
        ([1023, 1024], (1025, 65535)),
        ([0, 65535], (1024, 65534)),
    ] {
        assert_eq!(Firewall { ike_ports, ..Firewall::default() }.ports_without_ike(), range, "{ike_ports:?}");
    }
}
