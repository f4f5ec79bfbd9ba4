//! The table's named sets, the networks in each, and the commands that change the sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::contents::{Firewall, TABLE};
use super::expressions::{FAMILIES, constant_network, prefix};

/// The networks in each set, by the set's name. No network contains another network in the same
/// set.
pub(super) type Sets = BTreeMap<String, BTreeSet<IpNetwork>>;

impl Firewall {
    /// Returns the sets of the table.
    pub(super) fn sets(&self) -> Sets {
        let unspecified: [IpNetwork; 3] = [
            constant_network(IpAddr::from([0; 4]), 32),
            constant_network(IpAddr::from([0; 16]), 128),
            constant_network(IpAddr::from([0xfe80_u16, 0, 0, 0, 0, 0, 0, 0]), 10),
        ];
        let bridged = || self.own.iter().chain(&self.pod_networks);
        let mut sets = Sets::new();
        add(&mut sets, "own", self.own.iter());
        add(&mut sets, "bridged", bridged());
        add(&mut sets, "pods", bridged().chain(&self.pod_sources).chain(&unspecified));
        add(&mut sets, "fronted", self.fronted.iter());
        add(&mut sets, "remote", self.remote.iter());
        add(&mut sets, "services", self.remote.iter().chain(&self.service_ranges));
        add(&mut sets, "ranges", self.ranges.iter());
        add(&mut sets, "inside", {
            let cluster = self.ranges.iter().chain(self.remote.iter()).chain(&self.own).chain(&self.fronted);
            cluster.chain(&self.former).chain(&self.masquerade_except)
        });
        add(&mut sets, "lan-to-pods", self.lan_to_pods.iter());
        add(&mut sets, "lan-to-tunnels", self.lan_to_tunnels.iter());
        sets
    }
}

/// Adds a set for each family.
fn add<'a>(sets: &mut Sets, name: &str, networks: impl Iterator<Item = &'a IpNetwork>) {
    let (v4, v6): (Vec<_>, Vec<_>) = networks.partition(|network| network.is_ipv4());
    for (family, networks) in FAMILIES.into_iter().zip([v4, v6]) {
        sets.insert(format!("{name}{}", family.suffix), without_inner(networks));
    }
}

/// Removes networks that lie within other networks, because the elements of an interval set must
/// not overlap.
pub(super) fn without_inner(mut networks: Vec<&IpNetwork>) -> BTreeSet<IpNetwork> {
    networks.sort_by_key(|network| (network.network(), network.prefix()));
    let mut kept: Vec<IpNetwork> = Vec::new();
    for network in networks {
        // Since the networks are sorted, only the last kept network can contain this one.
        if !kept.last().is_some_and(|outer| outer.contains(network.network())) {
            kept.push(constant_network(network.network(), network.prefix()));
        }
    }
    kept.into_iter().collect()
}

/// Returns the command that creates a set.
pub(super) fn make(name: &str, networks: &BTreeSet<IpNetwork>) -> Value {
    let ipv4 = name.ends_with(FAMILIES[0].suffix);
    let mut set = json!({"family": "inet", "table": TABLE, "name": name,
                         "type": if ipv4 { "ipv4_addr" } else { "ipv6_addr" }, "flags": ["interval"]});
    if !networks.is_empty() {
        set["elem"] = networks.iter().map(prefix).collect();
    }
    json!({"add": {"set": set}})
}

/// Returns the commands that change the sets from one state to another. Their size is proportional
/// to the difference. Sets that are only in `from` stay.
pub(super) fn changes(from: &Sets, to: &Sets) -> Vec<Value> {
    let (mut deleted, mut added) = (Vec::new(), Vec::new());
    for (name, networks) in to {
        let Some(known) = from.get(name) else {
            added.push(make(name, networks));
            continue;
        };
        let gone = ElementChange::new(name, false, known.difference(networks));
        let new = ElementChange::new(name, true, networks.difference(known));
        deleted.extend(gone.as_ref().map(ElementChange::command));
        added.extend(new.as_ref().map(ElementChange::command));
    }
    // Elements are deleted first, since a new element may overlap a deleted one.
    deleted.extend(added);
    deleted
}

/// Networks that a set gains or loses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) struct ElementChange {
    /// Name of the set.
    pub(super) set: String,
    /// Whether the networks are added; otherwise they are deleted.
    pub(super) added: bool,
    /// The networks, of the set's family.
    pub(super) networks: Vec<IpNetwork>,
}

impl ElementChange {
    /// Returns the change; `None` if there are no networks.
    pub(super) fn new<'a>(set: &str, added: bool, networks: impl Iterator<Item = &'a IpNetwork>) -> Option<Self> {
        let networks: Vec<IpNetwork> = networks.copied().collect();
        (!networks.is_empty()).then(|| Self { set: set.to_owned(), added, networks })
    }

    /// Returns the command that makes the change.
    pub(super) fn command(&self) -> Value {
        let command = if self.added { "add" } else { "delete" };
        let elements: Vec<Value> = self.networks.iter().map(prefix).collect();
        json!({command: {"element": {"family": "inet", "table": TABLE, "name": self.set, "elem": elements}}})
    }
}

/// Parses the elements that `nft -j` lists. `None` if one of them is not a network.
pub(super) fn parse(elements: &Value) -> Option<BTreeSet<IpNetwork>> {
    let Some(elements) = elements.as_array() else { return elements.is_null().then(BTreeSet::new) };
    let network = |element: &Value| match element.as_str() {
        Some(address) => address.parse::<IpAddr>().ok().map(IpNetwork::from),
        None => {
            let prefix = &element["prefix"];
            let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
            IpNetwork::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
        }
    };
    elements.iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(list: &[(&str, &[&str])]) -> Sets {
        let parse = |networks: &[&str]| networks.iter().map(|text| text.parse().unwrap()).collect();
        list.iter().map(|(name, networks)| ((*name).to_owned(), parse(networks))).collect()
    }

    #[test]
    fn a_peer_that_goes_costs_one_element_of_each_set_that_has_it() {
        let many = (0..10_000_u32).map(|index| {
            let address = std::net::Ipv4Addr::from(0x0a40_0000 + (index << 6));
            constant_network(address.into(), 26)
        });
        let before = Firewall { remote: many.collect::<Vec<_>>().into(), ..Firewall::default() };
        let mut after = before.clone();
        let gone = before.remote[5000];
        after.remote.remove(&gone);
        let commands = changes(&before.sets(), &after.sets());
        let of = |name: &str| json!({"family": "inet", "table": TABLE, "name": name, "elem": [prefix(&gone)]});
        let wanted = ["inside4", "remote4", "services4"].map(|name| json!({"delete": {"element": of(name)}}));
        assert_eq!(commands, wanted);
        assert_eq!(changes(&before.sets(), &before.sets()), Vec::<Value>::new());
    }

    #[test]
    fn what_a_new_element_may_overlap_is_deleted_before() {
        let before = sets(&[("inside4", &["10.0.0.0/8"]), ("remote4", &[])]);
        let after = sets(&[("inside4", &["10.77.1.0/26"]), ("remote4", &["10.77.1.0/26"])]);
        let commands = changes(&before, &after);
        let kinds: Vec<_> =
            commands.iter().map(|command| command.as_object().unwrap().keys().next().unwrap()).collect();
        assert_eq!(kinds, ["delete", "add", "add"]);
    }

    #[test]
    fn a_listed_element_is_an_address_or_a_network() {
        let listed = json!(["10.77.1.9", {"prefix": {"addr": "10.77.2.0", "len": 26}}, "fd77::9"]);
        let wanted = sets(&[("", &["10.77.1.9/32", "10.77.2.0/26", "fd77::9/128"])]);
        assert_eq!(parse(&listed).as_ref(), wanted.get(""));
        assert_eq!(parse(&Value::Null), Some(BTreeSet::new()));
        assert_eq!(parse(&json!([{"range": ["10.77.1.9", "10.77.1.12"]}])), None);
        assert_eq!(parse(&json!([{"prefix": {"addr": "10.77.2.0", "len": 200}}])), None);
    }
}
