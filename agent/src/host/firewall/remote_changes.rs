//! Changes the table's sets after a few networks behind tunnels came or went. The sets of a hub
//! with ten thousand peers are not built again for one of them. This module does no I/O.

use std::collections::BTreeSet;

use edge_types::SharedList;
use ipnetwork::IpNetwork;

use super::contents::Firewall;
use super::expressions::{FAMILIES, constant_network};
use super::sets::{ElementChange, Sets, without_inner};

/// Maximum number of networks that are changed one by one. If there are more, all sets are built
/// again.
const MAX_CHANGES: usize = 64;

/// Changes the sets of `before` to those of `after`, and returns the changes in the order in which
/// the kernel must make them. `None`, with unchanged sets, if more than a few networks in
/// [`Firewall::remote`] differ.
pub(super) fn follow(sets: &mut Sets, before: &Firewall, after: &Firewall) -> Option<Vec<ElementChange>> {
    if !before.is_same_except_remote(after) {
        return None;
    }
    let (gone, new) = differences(&before.remote, &after.remote)?;
    let cluster = || after.ranges.iter().chain(&after.own).chain(&after.fronted);
    // The lists beside `remote` from which each set is made, as in `Firewall::sets`.
    let with_remote: [(&str, Vec<&IpNetwork>); 3] = [
        ("remote", vec![]),
        ("services", after.service_ranges.iter().collect()),
        ("inside", cluster().chain(&after.former).chain(&after.masquerade_except).collect()),
    ];
    if !with_remote.iter().all(|(name, _)| FAMILIES.iter().all(|family| sets.contains_key(&of(name, family.suffix)))) {
        return None;
    }
    let (mut deleted, mut added) = (Vec::new(), Vec::new());
    for family in FAMILIES {
        let is_of_family = |network: &&IpNetwork| network.is_ipv4() == (family.suffix == FAMILIES[0].suffix);
        for (name, beside) in &with_remote {
            let name = of(name, family.suffix);
            let Some(set) = sets.get_mut(&name) else { continue };
            let mut change = SetChange { set, deleted: BTreeSet::new(), added: BTreeSet::new() };
            for network in gone.iter().filter(is_of_family) {
                change.remove(*network, &after.remote, beside);
            }
            for network in new.iter().filter(is_of_family) {
                change.add(*network);
            }
            deleted.extend(ElementChange::new(&name, false, change.deleted.iter()));
            added.extend(ElementChange::new(&name, true, change.added.iter()));
        }
    }
    // Elements are deleted first, since a new element may overlap a deleted one.
    deleted.extend(added);
    Some(deleted)
}

/// A set, and how it differs from the set in the kernel. No network contains another one.
struct SetChange<'a> {
    set: &'a mut BTreeSet<IpNetwork>,
    deleted: BTreeSet<IpNetwork>,
    added: BTreeSet<IpNetwork>,
}

impl SetChange<'_> {
    /// Removes a network that is no longer in `remote`. The networks within it appear.
    fn remove(&mut self, gone: IpNetwork, remote: &SharedList<IpNetwork>, beside: &[&IpNetwork]) {
        let canonical = |network: &&IpNetwork| constant_network(network.network(), network.prefix());
        // Another network covers it, or another list has it too.
        if !self.set.contains(&gone) || beside.iter().any(|other| canonical(other) == gone) {
            return;
        }
        let within = |other: &&IpNetwork| other.is_ipv4() == gone.is_ipv4() && gone.contains(other.network());
        let inner = remote.iter_from(&gone).take_while(within);
        // The same network with host bits covers it too.
        if inner.clone().any(|other| other.prefix() <= gone.prefix()) {
            return;
        }
        self.take(gone);
        let narrower = |other: &&IpNetwork| within(other) && other.prefix() > gone.prefix();
        let inner = inner.chain(beside.iter().copied().filter(narrower)).collect();
        for network in without_inner(inner) {
            self.put(network);
        }
    }

    /// Adds a network, unless another one covers it. The networks within it disappear.
    fn add(&mut self, new: IpNetwork) {
        let outer = self.set.range(..=new).next_back().filter(|outer| outer.is_ipv4() == new.is_ipv4());
        if outer.is_some_and(|outer| outer.contains(new.network())) {
            return;
        }
        let within = |other: &&IpNetwork| other.is_ipv4() == new.is_ipv4() && new.contains(other.network());
        let inner: Vec<IpNetwork> = self.set.range(new..).take_while(within).copied().collect();
        inner.into_iter().for_each(|network| self.take(network));
        self.put(new);
    }

    fn take(&mut self, network: IpNetwork) {
        self.set.remove(&network);
        if !self.added.remove(&network) {
            self.deleted.insert(network);
        }
    }

    fn put(&mut self, network: IpNetwork) {
        self.set.insert(network);
        if !self.deleted.remove(&network) {
            self.added.insert(network);
        }
    }
}

fn of(set: &str, suffix: &str) -> String {
    format!("{set}{suffix}")
}

/// Returns the networks that only one of the lists has: those of `before`, and those of `after`.
/// `None` if there are more than [`MAX_CHANGES`], a list is not ordered, or one of the networks has
/// host bits.
fn differences(
    before: &SharedList<IpNetwork>,
    after: &SharedList<IpNetwork>,
) -> Option<(Vec<IpNetwork>, Vec<IpNetwork>)> {
    let changes: Vec<_> = before.differences(after, IpNetwork::eq)?.take(MAX_CHANGES + 1).collect();
    let has_no_host_bits = |network: &IpNetwork| network.ip() == network.network();
    let networks = || changes.iter().flat_map(|(gone, new)| gone.iter().chain(new));
    let few = changes.len() <= MAX_CHANGES && networks().all(|network| has_no_host_bits(network));
    few.then(|| {
        let (gone, new): (Vec<_>, Vec<_>) = changes.iter().copied().unzip();
        (gone.into_iter().flatten().copied().collect(), new.into_iter().flatten().copied().collect())
    })
}

#[cfg(test)]
mod tests {
    use edge_types::shared_list::visits;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::sets::changes;
    use super::*;

    /// Networks that often contain each other. Some have host bits.
    fn any_networks() -> impl Strategy<Value = Vec<IpNetwork>> {
        let v4 = (0..64_u8, prop::sample::select(vec![24_u8, 26, 28, 32]));
        let v4 = v4.prop_map(|(host, prefix)| constant_network([10, 77, 0, host * 4].into(), prefix));
        let v6 = (0..16_u16, prop::sample::select(vec![112_u8, 124, 128]));
        let v6 = v6.prop_map(|(host, prefix)| constant_network([0xfd77_u16, 0, 0, 0, 0, 0, 0, host].into(), prefix));
        let canonical = |network: IpNetwork| constant_network(network.network(), network.prefix());
        let most = prop_oneof![v4, v6]
            .prop_flat_map(move |network| prop_oneof![4 => Just(canonical(network)), 1 => Just(network)]);
        prop::collection::vec(most, 0..12)
    }

    fn sorted(mut networks: Vec<IpNetwork>) -> Vec<IpNetwork> {
        networks.sort();
        networks.dedup();
        networks
    }

    proptest! {
        #[test]
        fn the_sets_are_those_that_are_built_anew(
            before in any_networks(), after in any_networks(), services in any_networks(), own in any_networks(),
        ) {
            let firewall = |remote| Firewall {
                remote: sorted(remote).into(),
                service_ranges: services.clone(),
                own: own.clone(),
                ..Firewall::default()
            };
            // A change of a network with host bits is left to the whole comparison.
            let has_no_host_bits = |network: &IpNetwork| network.ip() == network.network();
            let mut after: Vec<IpNetwork> = after.into_iter().filter(has_no_host_bits).collect();
            after.extend(before.iter().filter(|network| !has_no_host_bits(network)));
            let (before, after) = (firewall(before), firewall(after));
            let mut sets = before.sets();
            let changed = follow(&mut sets, &before, &after);
            let commands = changed.map(|changes| changes.iter().map(ElementChange::command).collect());
            prop_assert_eq!(&sets, &after.sets());
            prop_assert_eq!(before.rules(), after.rules());
            let sorted = |commands: Vec<Value>| {
                let mut texts: Vec<String> = commands.iter().map(Value::to_string).collect();
                texts.sort();
                texts
            };
            prop_assert_eq!(commands.map(sorted), Some(sorted(changes(&before.sets(), &after.sets()))));
        }
    }

    #[test]
    fn one_network_of_ten_thousand_is_found_at_the_cost_of_one_of_a_hundred() {
        let looks = |count: u32| {
            let network = |at: u32| constant_network(std::net::Ipv4Addr::from(0x0a40_0000 + (at << 6)).into(), 26);
            let before = Firewall { remote: (0..count).map(network).collect(), ..Firewall::default() };
            let (mut sets, mut after) = (before.sets(), before.clone());
            let (changes, looks) = visits::of(|| {
                after.remote.remove(&network(count / 2));
                assert!(before != after && before.has_rules_of(&after));
                follow(&mut sets, &before, &after)
            });
            assert_eq!((changes.unwrap().len(), sets), (3, after.sets()));
            looks
        };
        let (few, many) = (looks(100), looks(10_000));
        assert!(many <= 4 * few && many < 1000, "{few} of a hundred, {many} of ten thousand");
    }

    #[test]
    fn many_changes_and_changes_of_other_lists_are_left_to_the_whole_comparison() {
        let many: Vec<IpNetwork> = (0..=64_u8).map(|host| constant_network([10, 77, 0, host].into(), 32)).collect();
        let before = Firewall { remote: many.clone().into(), ..Firewall::default() };
        let mut sets = before.sets();
        let known = sets.clone();
        let other_list = Firewall { own: many.clone(), ..before.clone() };
        let unordered =
            Firewall { remote: many.iter().rev().copied().collect::<Vec<_>>().into(), ..Firewall::default() };
        for after in [Firewall::default(), other_list, unordered] {
            assert_eq!(follow(&mut sets, &before, &after), None);
            assert_eq!(sets, known);
        }
        let one_less = Firewall { remote: many[1..].to_vec().into(), ..Firewall::default() };
        assert!(follow(&mut sets, &before, &one_less).is_some());
    }
}
