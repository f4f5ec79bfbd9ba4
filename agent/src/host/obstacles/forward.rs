//! Adds accept rules for the cluster ranges to the `FORWARD` chain of iptables if the policy of the
//! chain is `DROP`, as flannel and kube-proxy do for their networks. The rules are appended, so
//! that other programs' rules come first, and have a comment by which the agent recognises them.

use std::path::Path;
use std::process::{Command, Stdio};

use ipnetwork::IpNetwork;
use serde_json::json;

use super::{Obstacle, PodRequirements};
use crate::host::firewall;

/// The comment of the agent's rules.
const COMMENT: &str = "edge-cni";

/// Maintains the rules in `ip filter FORWARD` and `ip6 filter FORWARD`, the chains of
/// `iptables-nft`.
pub(super) fn nft(needs: &PodRequirements, ipv4: bool, drops: bool) -> Option<Obstacle> {
    let program = if ipv4 { "iptables-nft" } else { "ip6tables-nft" };
    if available(program) {
        return reconcile(program, needs, ipv4, drops);
    }
    if !drops {
        return None;
    }
    // The chain was created without iptables, or iptables is in another mount namespace.
    let family = if ipv4 { "ip" } else { "ip6" };
    let listed =
        firewall::list(&["list", "chain", family, "filter", "FORWARD"]).ok().flatten().unwrap_or_default().to_string();
    let ranges: Vec<&IpNetwork> = needs.ranges.iter().filter(|range| range.is_ipv4() == ipv4).collect();
    let missing: Vec<&&IpNetwork> =
        ranges.iter().filter(|range| !listed.contains(&format!("\"{}\"", range.network()))).collect();
    if missing.is_empty() {
        return None;
    }
    let rule = |range: &IpNetwork, side: &str| {
        let prefix = json!({"prefix": {"addr": range.network().to_string(), "len": range.prefix()}});
        let matched =
            json!({"match": {"op": "==", "left": {"payload": {"protocol": family, "field": side}}, "right": prefix}});
        json!({"add": {"rule": {"family": family, "table": "filter", "chain": "FORWARD", "comment": COMMENT,
                                "expr": [matched, {"accept": null}]}}})
    };
    let commands: Vec<_> = missing.iter().flat_map(|range| ["saddr", "daddr"].map(|side| rule(range, side))).collect();
    let failure = if needs.accept {
        firewall::run(&json!({ "nftables": commands })).err().map(|error| format!("{error:#}"))?
    } else {
        "[firewall] accept_in_forward is false".into()
    };
    let by_hand = missing.iter().flat_map(|range| {
        ["saddr", "daddr"].map(|side| format!("nft add rule {family} filter FORWARD {family} {side} {range} accept"))
    });
    Some(Obstacle {
        what: format!(
            "the chain {family} filter FORWARD drops what is forwarded, and got no rule for pods ({failure}): pods are cut off"
        ),
        command: by_hand.collect::<Vec<_>>().join(" && "),
    })
}

/// Maintains the rules of `iptables-legacy`, which nftables does not show. Changes of these rules
/// cause no notifications, so the rules are read whenever nftables rules or interfaces change.
pub(super) fn legacy(needs: &PodRequirements) -> Vec<Obstacle> {
    let tables = [
        (true, "iptables-legacy", "/proc/thread-self/net/ip_tables_names"),
        (false, "ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"),
    ];
    // Running the program would load the kernel module, so this first checks whether the table
    // exists.
    let stands =
        |path: &str| std::fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "filter"));
    tables
        .into_iter()
        .filter(|(_, _, path)| stands(path))
        .filter_map(|(ipv4, program, _)| {
            if available(program) {
                let rules = match listed(program) {
                    Ok(rules) => rules,
                    Err(error) => {
                        let error = error.lines().next().unwrap_or_default();
                        return Some(Obstacle {
                            what: format!("rules of {program} cannot be read ({error}): whether they drop pods' packets is not known"),
                            command: format!("{program} -S FORWARD"),
                        });
                    }
                };
                let drops = rules.lines().any(|line| line == "-P FORWARD DROP");
                return reconcile(program, needs, ipv4, drops);
            }
            Some(Obstacle {
                what: format!("the kernel has rules of {program}, which is not installed: whether they drop pods' packets is not known"),
                command: "apt-get install iptables".into(),
            })
        })
        .collect()
}

/// Adds the agent's missing rules and deletes those that are no longer necessary.
fn reconcile(program: &str, needs: &PodRequirements, ipv4: bool, drops: bool) -> Option<Obstacle> {
    let ranges: Vec<&IpNetwork> = needs.ranges.iter().filter(|range| range.is_ipv4() == ipv4).collect();
    let needed: Vec<String> = ranges
        .iter()
        .flat_map(|range| {
            ["-s", "-d"].map(|side| format!("-A FORWARD {side} {range} -m comment --comment {COMMENT} -j ACCEPT"))
        })
        .collect();
    let found = match listed(program) {
        Ok(found) => found,
        Err(error) if drops => return Some(no_rule_obstacle(program, &needed, &error)),
        Err(_) => return None,
    };
    let ours: Vec<&str> = found.lines().filter(|line| is_ours(line)).collect();
    for stale in ours.iter().filter(|line| !(needs.accept && needed.iter().any(|rule| rule == *line))) {
        let _ = delete(program, stale);
    }
    let missing: Vec<String> = needed.into_iter().filter(|rule| !ours.contains(&rule.as_str())).collect();
    if !drops || missing.is_empty() {
        return None;
    }
    if !needs.accept {
        return Some(no_rule_obstacle(program, &missing, "[firewall] accept_in_forward is false"));
    }
    for rule in &missing {
        if let Err(error) = call(program, &rule.split(' ').collect::<Vec<_>>()) {
            return Some(no_rule_obstacle(program, &missing, &error));
        }
    }
    tracing::info!("{program}: FORWARD drops by policy; added accept rules for the cluster's ranges");
    None
}

fn no_rule_obstacle(program: &str, rules: &[String], why: &str) -> Obstacle {
    let commands: Vec<String> = rules.iter().map(|rule| format!("{program} {rule}")).collect();
    Obstacle {
        what: format!(
            "the FORWARD chain of {program} drops by policy, and got no rule for pods ({why}): pods are cut off"
        ),
        command: commands.join(" && "),
    }
}

/// Removes the agent's rules, for `down`. Returns the number of removed rules.
pub fn remove() -> anyhow::Result<usize> {
    let mut count = 0;
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        let names = if program.starts_with("ip6") {
            "/proc/thread-self/net/ip6_tables_names"
        } else {
            "/proc/thread-self/net/ip_tables_names"
        };
        if program.ends_with("legacy") && !Path::new(names).exists() {
            continue;
        }
        for rule in listed(program).unwrap_or_default().lines().filter(|line| is_ours(line)) {
            delete(program, rule).map_err(|error| anyhow::anyhow!("{program} {rule}: {error}"))?;
            count += 1;
        }
    }
    Ok(count + remove_nft()?)
}

/// Removes the rules that the agent has added through `nft` instead of iptables.
fn remove_nft() -> anyhow::Result<usize> {
    let mut count = 0;
    for family in ["ip", "ip6"] {
        let listed =
            firewall::list(&["-a", "list", "chain", family, "filter", "FORWARD"]).ok().flatten().unwrap_or_default();
        let rules =
            listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(|object| &object["rule"]);
        for rule in rules.filter(|rule| rule["comment"] == COMMENT) {
            let rule = json!({"family": family, "table": "filter", "chain": "FORWARD", "handle": rule["handle"]});
            firewall::run(&json!({"nftables": [{"delete": {"rule": rule}}]}))?;
            count += 1;
        }
    }
    Ok(count)
}

/// Returns whether a line of `iptables -S` is a rule of the agent, such as `-s 10.77.0.0/16 -m
/// comment --comment edge-cni -j ACCEPT`.
fn is_ours(line: &str) -> bool {
    line.starts_with("-A FORWARD ") && line.contains(&format!("--comment {COMMENT} "))
}

fn delete(program: &str, rule: &str) -> Result<(), String> {
    let words: Vec<&str> = ["-D"].into_iter().chain(rule.split(' ').skip(1)).collect();
    call(program, &words).map(drop)
}

fn listed(program: &str) -> Result<String, String> {
    // Some releases of iptables write quotation marks around the comment.
    call(program, &["-S", "FORWARD"]).map(|text| text.replace('"', ""))
}

fn available(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

fn call(program: &str, words: &[&str]) -> Result<String, String> {
    // `-w` waits for the xtables lock, which other programs may hold.
    let output = Command::new(program)
        .args(["-w", "5"])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
