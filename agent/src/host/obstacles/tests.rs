use serde_json::json;

use super::*;

fn needs() -> PodRequirements {
    PodRequirements {
        bridge: "ecni0".into(),
        ranges: vec!["10.77.0.0/16".parse().unwrap(), "fd77::/64".parse().unwrap()],
        elsewhere: vec![],
        accept: true,
    }
}

fn rule(statements: Value) -> Value {
    json!({ "expr": statements })
}

fn fib(right: Value) -> Value {
    json!({"match": {"op": "==", "left": {"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}, "right": right}})
}

fn of_one(rule: &Value, chain: &Chain) -> Option<Vec<bool>> {
    checks_reverse_path(std::slice::from_ref(rule), chain)
}

fn chain(family: &str, drops: bool) -> Chain {
    Chain { family: family.into(), drops, ..Chain::default() }
}

#[test]
fn chains_of_others_are_found_with_hook_and_policy() {
    let listed = json!({"nftables": [
        {"metainfo": {}},
        {"chain": {"family": "inet", "table": "edge-cni", "name": "forward", "type": "filter", "hook": "forward", "prio": -150, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}},
        {"chain": {"family": "ip", "table": "nat", "name": "PREROUTING", "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}},
    ]});
    let found = chains(&listed);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].title().as_str(), found[0].drops), ("ip filter FORWARD", true));
}

#[test]
fn a_reverse_path_check_is_known_by_what_it_does() {
    let firewalld = rule(
        json!([{"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv6"}}, fib(json!(false)), {"drop": null}]),
    );
    assert_eq!(of_one(&firewalld, &chain("inet", false)), Some(vec![false]));
    let both = rule(json!([fib(json!(false)), {"drop": null}]));
    assert_eq!(of_one(&both, &chain("inet", false)), Some(vec![true, false]));
    assert_eq!(of_one(&both, &chain("ip", false)), Some(vec![true]));
    // As on NixOS: packets whose source has a route back are accepted, and the chain's policy drops
    // all other packets.
    let exists = rule(json!([fib(json!(true)), {"accept": null}]));
    assert_eq!(of_one(&exists, &chain("inet", true)), Some(vec![true, false]));
    assert_eq!(of_one(&exists, &chain("inet", false)), None);
    let spared =
        rule(json!([{"match": {"op": "==", "left": {"meta": {"key": "ipsec"}}, "right": true}}, {"accept": null}]));
    assert_eq!(checks_reverse_path(&[spared.clone(), both.clone()], &chain("inet", false)), None);
    assert_eq!(checks_reverse_path(&[both, spared], &chain("inet", false)), Some(vec![true, false]), "too late");
}

#[test]
fn a_chain_that_ends_in_a_reject_lets_nothing_pass() {
    assert!(refuses_everything(&rule(
        json!([{"counter": {"packets": 0, "bytes": 0}}, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}])
    )));
    assert!(!refuses_everything(&rule(json!([fib(json!(false)), {"drop": null}]))));
    assert!(!refuses_everything(&rule(json!([{"accept": null}]))));
}

#[test]
fn a_chain_that_speaks_of_pods_is_left_to_its_author() {
    let of_range = rule(
        json!([{"match": {"op": "==", "left": {}, "right": {"prefix": {"addr": "10.77.0.0", "len": 16}}}}, {"accept": null}]),
    );
    assert!(mentions(&[of_range], &needs()));
    assert!(mentions(&[rule(json!([{"match": {"right": "ecni0"}}, {"accept": null}]))], &needs()));
    assert!(!mentions(&[rule(json!([{"match": {"right": "ecni00"}}, {"accept": null}]))], &needs()));
}

#[test]
fn commands_by_hand_fit_the_chain() {
    let inet = Chain { table: "filter".into(), name: "forward".into(), ..chain("inet", true) };
    let command = accept_by_hand(&inet, &needs().ranges);
    assert_eq!(command.matches(" && ").count(), 3);
    assert!(command.starts_with("nft insert rule inet filter forward ip saddr 10.77.0.0/16 accept"), "{command}");
    let ip = Chain { family: "ip".into(), ..inet };
    assert!(!accept_by_hand(&ip, &needs().ranges).contains("fd77"));
}
