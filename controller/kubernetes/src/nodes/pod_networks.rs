//! Says which networks of their pods hubs do not get.

use std::sync::Arc;

use edge_controller_domain::networks::ClusterNetworks;
use edge_controller_domain::state::NodeRecord;
use edge_types::network::overlap;
use edge_types::{IpNetwork, NodeName, Role};

use super::watch::NodeWatch;
use crate::events::Regarding;

/// Returns the networks in force.
pub type NetworksInForce = Arc<dyn Fn() -> ClusterNetworks + Send + Sync>;

impl NodeWatch {
    /// Notes which of these nodes are hubs whose Node names no networks of pods yet. Reports
    /// networks that are refused, and those that two hubs have.
    pub(super) async fn note_pod_networks(&mut self, recorded: Vec<NodeName>) {
        let state = self.registry.read().await;
        let networks = (self.networks)();
        for name in recorded {
            let hub = state.node(&name).filter(|record| record.role == Role::Hub);
            let Some(hub) = hub.filter(|hub| hub.object.is_some()) else {
                self.without_pod_networks.remove(&name);
                continue;
            };
            if hub.pod_networks().is_empty() {
                self.without_pod_networks.insert(name);
                continue;
            }
            self.without_pod_networks.remove(&name);
            if !networks.hub_pod_networks {
                continue;
            }
            let report = |hub: &NodeName, reason: &'static str, note: String| {
                tracing::warn!(node = %hub, "{note}");
                self.events.warning(Regarding::Node, hub.as_str(), reason, note);
            };
            for (network, fault) in refused(&networks, hub) {
                let note = format!("its spec.podCIDRs ({network}) do not count: {fault}");
                report(&name, "PodNetworkRefused", note);
            }
            let others = state.nodes_of_role(Role::Hub).filter(|other| other.name != name);
            for overlap in others.filter_map(|other| Overlap::of(&networks, hub, other)) {
                let Overlap { loser, lost, winner, taken } = overlap;
                let note = format!(
                    "its spec.podCIDRs ({lost}) overlap those of hub {winner} ({taken}): the hub that joined first has its network, the other one does not"
                );
                report(loser, "PodNetworkTaken", note);
            }
        }
    }
}

/// Returns the networks of a hub's pods that cannot be those of one node, with the reason.
fn refused(networks: &ClusterNetworks, hub: &NodeRecord) -> Vec<(IpNetwork, String)> {
    let all = hub.pod_networks().iter();
    all.filter_map(|network| Some((*network, networks.pod_network_fault(network)?))).collect()
}

/// Two hubs name networks that overlap.
#[derive(Debug, PartialEq, Eq)]
struct Overlap<'a> {
    /// The hub that does not get its network.
    loser: &'a NodeName,
    lost: IpNetwork,
    winner: &'a NodeName,
    taken: IpNetwork,
}

impl<'a> Overlap<'a> {
    /// Returns the first overlap between two hubs. A network that is refused takes nothing.
    fn of(networks: &ClusterNetworks, one: &'a NodeRecord, other: &'a NodeRecord) -> Option<Self> {
        let (winner, loser) = if one.seniority() < other.seniority() { (one, other) } else { (other, one) };
        let valid = |network: &&IpNetwork| networks.pod_network_fault(network).is_none();
        let pairs = loser.pod_networks().iter().filter(valid).flat_map(|lost| {
            let taken = winner.pod_networks().iter().filter(valid);
            taken.map(move |taken| (*lost, *taken))
        });
        let (lost, taken) = pairs.into_iter().find(|(lost, taken)| overlap(lost, taken))?;
        Some(Self { loser: &loser.name, lost, winner: &winner.name, taken })
    }
}

#[cfg(test)]
mod tests {
    use edge_controller_domain::state::NodeObject;

    use super::*;

    fn hub(name: &str, joined_at: i64, networks: &[&str]) -> NodeRecord {
        let mut record = NodeRecord::new(name.parse().unwrap(), Role::Hub, joined_at);
        let pod_networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        record.object = Some(NodeObject { uid: "u".into(), pod_networks, ..NodeObject::default() });
        record
    }

    #[test]
    fn of_two_hubs_with_one_network_the_one_that_joined_later_loses_it_whichever_is_looked_at() {
        let networks = ClusterNetworks::default();
        let (first, second) = (hub("z", 1, &["10.244.4.0/24"]), hub("a", 2, &["10.244.9.0/24", "10.244.4.128/25"]));
        for (one, other) in [(&first, &second), (&second, &first)] {
            let overlap = Overlap::of(&networks, one, other).unwrap();
            assert_eq!((overlap.loser.as_str(), overlap.winner.as_str()), ("a", "z"));
            assert_eq!(
                (overlap.lost.to_string(), overlap.taken.to_string()),
                ("10.244.4.128/25".into(), "10.244.4.0/24".into())
            );
        }
        assert_eq!(Overlap::of(&networks, &first, &hub("b", 1, &["10.244.4.0/26"])).unwrap().loser.as_str(), "z");
        assert_eq!(Overlap::of(&networks, &first, &hub("b", 3, &["10.244.5.0/24"])), None);
    }

    #[test]
    fn a_network_that_is_too_wide_is_refused_and_takes_nothing_from_another_hub() {
        let networks = ClusterNetworks::default();
        let greedy = hub("greedy", 1, &["0.0.0.0/0"]);
        let refused = refused(&networks, &greedy);
        assert!(refused.len() == 1 && refused[0].1 == "it is wider than /16", "{refused:?}");
        assert_eq!(Overlap::of(&networks, &greedy, &hub("b", 2, &["10.244.5.0/24"])), None);
    }
}
