//! Finds rules of other programs that drop pods' packets, and determines the command that removes
//! each such obstacle. The rules are read when rules or interfaces change, not periodically. If the
//! policy of `FORWARD` is `DROP` (Docker, ufw), two accept rules are added for each range. All
//! other obstacles are only reported.

mod forward;

pub use forward::remove as remove_accepts;

use std::fs;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::firewall::{self, TABLE};

/// An obstacle to pods' packets: another program's rule or setting, or a failure of the agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Obstacle {
    /// The obstacle and its consequence, in one sentence.
    pub what: String,
    /// The command that removes the obstacle.
    pub command: String,
}

/// Maximum number of other programs' chains that are read, because a ruleset may contain thousands.
const MAX_CHAINS: usize = 32;

/// Packets that other programs' rules must accept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRequirements {
    /// Name of the pods' bridge.
    pub bridge: String,
    /// Addresses of pods: the cluster ranges and this node's segments.
    pub ranges: Vec<IpNetwork>,
    /// Networks outside of `ranges` that exchange packets with pods, such as the cloud's networks.
    pub elsewhere: Vec<IpNetwork>,
    /// Whether accept rules may be added to `FORWARD`.
    pub accept: bool,
}

/// Checks other programs' rules, adds the accept rules, and returns the obstacles. Blocks the
/// calling thread.
#[must_use]
pub fn check(needs: &PodRequirements) -> Vec<Obstacle> {
    if needs.ranges.is_empty() {
        return vec![];
    }
    let mut obstacles = Vec::new();
    match firewall::list(&["list", "chains"]) {
        Ok(listed) => {
            let chains = chains(&listed.unwrap_or_default());
            forward_chains(needs, &chains, &mut obstacles);
            reverse_path(needs, &chains, &mut obstacles);
        }
        Err(error) => obstacles.push(Obstacle {
            what: format!("other programs' firewall rules cannot be read ({error:#}): what they drop is not known"),
            command: "nft list ruleset".into(),
        }),
    }
    obstacles.extend(forward::legacy(needs));
    obstacles.extend(bridge_calls(needs));
    obstacles
}

/// A base chain of another program, and whether its policy is `drop`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: String,
    drops: bool,
}

impl Chain {
    fn title(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.name)
    }

    /// Reads the chain's rules.
    fn rules(&self) -> Vec<Value> {
        let listed = firewall::list(&["list", "chain", &self.family, &self.table, &self.name]);
        let objects = listed.ok().flatten().unwrap_or_default()["nftables"].take();
        let rules = objects.as_array().cloned().unwrap_or_default();
        rules.into_iter().map(|mut object| object["rule"].take()).filter(|rule| !rule.is_null()).collect()
    }
}

/// Returns other programs' filter chains from the output of `nft -j list chains`.
fn chains(listed: &Value) -> Vec<Chain> {
    let objects = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let word = |chain: &Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    objects
        .iter()
        .map(|object| &object["chain"])
        .filter(|chain| chain["type"] == "filter" && chain["table"] != TABLE)
        .filter(|chain| matches!(chain["family"].as_str(), Some("ip" | "ip6" | "inet")))
        .map(|chain| Chain {
            family: word(chain, "family"),
            table: word(chain, "table"),
            name: word(chain, "name"),
            hook: word(chain, "hook"),
            drops: chain["policy"] == "drop",
        })
        .collect()
}

/// Finds chains that drop forwarded packets. Docker and ufw set the policy of the `FORWARD` chain
/// of iptables. In firewalld, the last rule of its chain drops. Other programs set the policy of
/// their own chain.
fn forward_chains(needs: &PodRequirements, chains: &[Chain], obstacles: &mut Vec<Obstacle>) {
    for chain in chains.iter().filter(|chain| chain.hook == "forward").take(MAX_CHAINS) {
        let iptables =
            matches!(chain.family.as_str(), "ip" | "ip6") && chain.table == "filter" && chain.name == "FORWARD";
        if iptables {
            // Called even if the policy is ACCEPT, because rules that were added earlier must be
            // adapted when the ranges change.
            obstacles.extend(forward::nft(needs, chain.family == "ip", chain.drops));
            continue;
        }
        let rules = chain.rules();
        let refuses_the_rest = rules.last().is_some_and(refuses_everything);
        if !(chain.drops || refuses_the_rest) {
            continue;
        }
        let obstacle = if chain.table == "firewalld" {
            let missing = unknown_to_firewalld(&chain.family, needs);
            if missing.is_empty() {
                continue;
            }
            let list = |before: &str, between: &str| {
                let items: Vec<String> = missing.iter().map(|network| format!("{before}{network}")).collect();
                items.join(between)
            };
            Obstacle {
                what: format!(
                    "firewalld rejects what it forwards from {}: it reaches neither pods nor the outside",
                    list("", ", ")
                ),
                command: format!(
                    "firewall-cmd --permanent --zone=trusted {} && firewall-cmd --reload",
                    list("--add-source=", " ")
                ),
            }
        } else if mentions(&rules, needs) {
            continue;
        } else {
            let bridge = &needs.bridge;
            Obstacle {
                what: format!(
                    "the chain {} drops what is forwarded and has no rule for {bridge} or the cluster's ranges: pods reach neither other \
                     nodes' pods nor the outside",
                    chain.title()
                ),
                command: accept_by_hand(chain, &needs.ranges),
            }
        };
        obstacles.push(obstacle);
    }
}

fn accept_by_hand(chain: &Chain, ranges: &[IpNetwork]) -> String {
    let fits = |range: &&IpNetwork| chain.family == "inet" || (chain.family == "ip") == range.is_ipv4();
    let rules = ranges.iter().filter(fits).flat_map(|range| {
        let family = if range.is_ipv4() { "ip" } else { "ip6" };
        ["saddr", "daddr"].map(|side| format!("nft insert rule {} {family} {side} {range} accept", chain.title()))
    });
    rules.collect::<Vec<_>>().join(" && ")
}

/// Returns whether a rule drops or rejects every packet.
fn refuses_everything(rule: &Value) -> bool {
    let statements = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
    let verdict = |statement: &Value| statement.get("drop").is_some() || statement.get("reject").is_some();
    statements.iter().any(verdict)
        && statements.iter().all(|one| verdict(one) || one.get("counter").is_some() || one.get("log").is_some())
}

/// Returns whether rules name the bridge or pods' ranges, so that they were written with pods in
/// mind.
fn mentions(rules: &[Value], needs: &PodRequirements) -> bool {
    let text = Value::from(rules.to_vec()).to_string();
    text.contains(&format!("\"{}\"", needs.bridge))
        || needs.ranges.iter().any(|range| text.contains(&format!("\"{}\"", range.network())))
}

/// Returns networks that no firewalld rule names, so that firewalld checks packets from these
/// networks in the zone of the incoming link. Each network must be a source of a zone, because
/// packets from a tunnel arrive over an uplink. If a rule names the bridge, returns none, since the
/// operator has already configured firewalld for pods.
fn unknown_to_firewalld(family: &str, needs: &PodRequirements) -> Vec<IpNetwork> {
    // In firewalld, separate chains select the zone by the packet's source.
    let Ok(Some(listed)) = firewall::list(&["list", "table", family, "firewalld"]) else { return vec![] };
    if listed.to_string().contains(&format!("\"{}\"", needs.bridge)) {
        return vec![];
    }
    let mut known = Vec::new();
    prefixes(&listed, &mut known);
    let is_known = |network: &&IpNetwork| {
        known.iter().any(|known: &IpNetwork| known.contains(network.ip()) && known.prefix() <= network.prefix())
    };
    needs.ranges.iter().chain(&needs.elsewhere).filter(|network| !is_known(network)).copied().collect()
}

/// Collects all prefixes in rules and sets from the output of `nft -j`.
fn prefixes(value: &Value, found: &mut Vec<IpNetwork>) {
    match value {
        Value::Object(fields) => {
            let prefix = &value["prefix"];
            let address = prefix["addr"].as_str().and_then(|address| address.parse().ok());
            let length = prefix["len"].as_u64().and_then(|length| u8::try_from(length).ok());
            if let (Some(address), Some(length)) = (address, length) {
                found.extend(IpNetwork::new(address, length));
            }
            fields.values().for_each(|field| prefixes(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| prefixes(item, found)),
        _ => {}
    }
}

/// Finds chains that check the reverse path. A decapsulated packet has the uplink as its input
/// interface, while the route to its source leads to the guard's device. The kernel's `rp_filter`
/// makes an exception for IPsec, but `fib saddr . iif oif missing drop` does not.
fn reverse_path(needs: &PodRequirements, chains: &[Chain], obstacles: &mut Vec<Obstacle>) {
    let early = chains.iter().filter(|chain| chain.hook == "prerouting");
    for chain in early.take(MAX_CHAINS) {
        let rules = chain.rules();
        let Some(families) = checks_reverse_path(&rules, chain) else { continue };
        if !needs.ranges.iter().any(|range| families.contains(&range.is_ipv4())) {
            continue;
        }
        let command = if chain.table == "firewalld" {
            "sed -i s/^IPv6_rpfilter=.*/IPv6_rpfilter=no/ /etc/firewalld/firewalld.conf && firewall-cmd --reload".into()
        } else {
            format!("nft insert rule {} meta ipsec exists accept", chain.title())
        };
        obstacles.push(Obstacle {
            what: format!(
                "the reverse path check in the chain {} drops what comes out of the tunnels: pods get nothing from other nodes{}",
                chain.title(),
                if families == [false] { " by IPv6" } else { "" }
            ),
            command,
        });
    }
}

/// Returns the families (`true` for IPv4) whose packets a reverse path check in these rules drops.
/// `None` if no rule checks the reverse path, or if an earlier rule accepts packets from tunnels.
fn checks_reverse_path(rules: &[Value], chain: &Chain) -> Option<Vec<bool>> {
    let matches = |rule: &Value| -> Vec<Value> {
        let statements = rule["expr"].as_array().cloned().unwrap_or_default();
        statements.iter().map(|statement| statement["match"].clone()).filter(|found| !found.is_null()).collect()
    };
    let of_ipsec = |found: &Value| found["left"]["meta"]["key"] == "ipsec";
    let mut drops = |rule: &Value| {
        let found = matches(rule);
        let fib = found.iter().find(|one| {
            one["left"]["fib"]["result"] == "oif" && one["left"]["fib"]["flags"].to_string().contains("saddr")
        });
        let verdict =
            |name: &str| rule["expr"].as_array().is_some_and(|all| all.iter().any(|one| one.get(name).is_some()));
        // `oif missing drop`; or `oif exists accept` in a chain with the policy `drop`.
        let missing = fib.is_some_and(|fib| fib["right"] == false || fib["right"] == 0 || fib["right"] == "");
        fib.is_some()
            && (if missing { verdict("drop") } else { chain.drops && verdict("accept") })
            && !found.iter().any(of_ipsec)
    };
    let at = rules.iter().position(&mut drops)?;
    let excepted = rules.iter().take(at).any(|rule| {
        let found = matches(rule);
        let accepts = rule["expr"].as_array().is_some_and(|all| all.iter().any(|one| one.get("accept").is_some()));
        accepts && found.len() == 1 && found.iter().all(|one| of_ipsec(one) && one["right"] == true)
    });
    if excepted {
        return None;
    }
    let only = rules.get(at).map(matches).unwrap_or_default();
    let of = |family: &str| only.iter().any(|one| one["left"]["meta"]["key"] == "nfproto" && one["right"] == family);
    Some(match chain.family.as_str() {
        "ip" => vec![true],
        "ip6" => vec![false],
        _ if of("ipv6") => vec![false],
        _ if of("ipv4") => vec![true],
        _ => vec![true, false],
    })
}

/// Reports that bridged packets do not pass iptables. Without `br_netfilter`, the response of a
/// Service endpoint to a pod on the same node crosses the bridge without connection tracking, so
/// its source is not translated back.
fn bridge_calls(needs: &PodRequirements) -> Option<Obstacle> {
    if !std::path::Path::new("/sys/class/net").join(&needs.bridge).exists() {
        return None;
    }
    let settings = [(true, "iptables"), (false, "ip6tables")];
    let needed = settings.iter().filter(|(ipv4, _)| needs.ranges.iter().any(|range| range.is_ipv4() == *ipv4));
    let off: Vec<String> = needed
        .map(|(_, name)| format!("net.bridge.bridge-nf-call-{name}"))
        .filter(|name| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            !fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
        })
        .collect();
    (!off.is_empty()).then(|| Obstacle {
        what: format!(
            "{} is off or br_netfilter is not loaded: a pod that calls a Service whose endpoint is on this node gets no answer, where kube-proxy \
             translates it",
            off.join(" and ")
        ),
        command: format!(
            "modprobe br_netfilter && sysctl -w {}",
            off.iter().map(|name| format!("{name}=1")).collect::<Vec<_>>().join(" ")
        ),
    })
}

#[cfg(test)]
mod tests;
