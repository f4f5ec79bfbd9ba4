//! Decides which labels and addresses of a Node count. The node's kubelet can write both. Labels
//! put a node into communities only if kubelets cannot set them. The Node's addresses are limited
//! to the same rate of changes as those that the node reports.

use std::collections::BTreeSet;

use edge_controller_domain::node_addresses::AddressChangeLimits;
use edge_controller_domain::state::NodeObject;
use edge_types::{Communities, NodeName};
use tokio::sync::watch;

use super::events::{EventRecorder, Regarding};
use super::label_trust::{LabelEffect, LabelTrust, TrustNodeLabels};

/// The rules that decide which labels and addresses of Nodes count. Ignored labels are reported
/// once for each node.
pub struct NodeTrust {
    labels: watch::Receiver<LabelTrust>,
    address_changes: AddressChangeLimits,
    events: EventRecorder,
    /// Nodes whose ignored labels were reported.
    reported: BTreeSet<NodeName>,
    /// Nodes with changed addresses that wait for the rate limit.
    waiting: BTreeSet<NodeName>,
}

impl NodeTrust {
    /// Makes rules that accept no label that a kubelet can set.
    pub fn without_labels(address_changes: AddressChangeLimits, events: EventRecorder) -> Self {
        // The value in this channel never changes.
        let labels = watch::Sender::new(LabelTrust::at_start(TrustNodeLabels::Never)).subscribe();
        Self { labels, address_changes, events, reported: BTreeSet::new(), waiting: BTreeSet::new() }
    }

    /// Makes labels count according to the value of this receiver.
    pub fn with_labels(self, labels: watch::Receiver<LabelTrust>) -> Self {
        Self { labels, ..self }
    }

    /// Waits until the rule for labels changes, for all Nodes.
    pub async fn changed(&mut self) {
        if self.labels.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.reported.clear();
    }

    /// Returns the labels and addresses of a Node that count, given those that counted before.
    pub fn accepted(&mut self, name: &NodeName, said: NodeObject, before: Option<&NodeObject>) -> NodeObject {
        let before = before.filter(|before| before.uid == said.uid);
        let trust = self.labels.borrow().clone();
        let communities = communities(&said.communities, before, trust.effect);
        if trust.known {
            self.report_ignored(name, &said.communities, &communities, &trust);
        }
        let public_addresses = match before {
            Some(before) if before.public_addresses != said.public_addresses && !self.address_changes.take(name) => {
                self.waiting.insert(name.clone());
                before.public_addresses.clone()
            }
            _ => said.public_addresses,
        };
        NodeObject { communities, public_addresses, ..said }
    }

    /// Takes the names of the nodes that must be checked again.
    pub fn take_waiting(&mut self) -> BTreeSet<NodeName> {
        std::mem::take(&mut self.waiting)
    }

    fn report_ignored(&mut self, name: &NodeName, said: &Communities, counted: &Communities, trust: &LabelTrust) {
        let without: Vec<&str> = said.difference(counted).map(|community| community.as_str()).collect();
        if without.is_empty() || !self.reported.insert(name.clone()) {
            return;
        }
        let without = without.join(", ");
        tracing::warn!(node = %name, "its labels do not put it into {without}: {trust}");
        self.events.warning(
            Regarding::Node,
            name.as_str(),
            "LabelsDoNotCount",
            format!("not put into {without}: {trust}"),
        );
    }
}

/// Returns the communities that count, from labels that a kubelet can set.
fn communities(said: &Communities, before: Option<&NodeObject>, effect: LabelEffect) -> Communities {
    match effect {
        LabelEffect::Count => said.clone(),
        LabelEffect::Keep => {
            let held = before.into_iter().flat_map(|before| &before.communities);
            held.filter(|community| said.contains(*community)).cloned().collect()
        }
        LabelEffect::Ignore => Communities::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(communities: &str, restricted: &str, addresses: &[&str]) -> NodeObject {
        let read = |text: &str| text.split_whitespace().map(|name| name.parse().unwrap()).collect();
        NodeObject {
            uid: "u".into(),
            machine_id: String::new(),
            communities: read(communities),
            restricted_communities: read(restricted),
            public_addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod_networks: Vec::new(),
        }
    }

    fn node_trust(trust: &watch::Sender<LabelTrust>) -> NodeTrust {
        NodeTrust::without_labels(AddressChangeLimits::default(), EventRecorder::default())
            .with_labels(trust.subscribe())
    }

    #[test]
    fn labels_that_a_kubelet_may_set_add_no_member_and_what_they_gave_lasts_until_they_are_removed() {
        let trust = watch::Sender::new(LabelTrust::at_start(TrustNodeLabels::Auto));
        let (mut node_trust, name) = (node_trust(&trust), "n".parse().unwrap());
        let mut counted = |said: &NodeObject, before: Option<&NodeObject>, effect| {
            trust.send_modify(|trust| trust.effect = effect);
            node_trust.accepted(&name, said.clone(), before)
        };
        // If the policy does not prevent kubelets from setting the label, the label adds nothing.
        // The restricted label counts in any case.
        let said = says("alpha beta", "gamma", &[]);
        assert_eq!(counted(&said, None, LabelEffect::Keep), says("", "gamma", &[]));
        assert_eq!(counted(&said, None, LabelEffect::Ignore), says("", "gamma", &[]));
        let given = counted(&said, None, LabelEffect::Count);
        assert_eq!(given, said);
        // The policy disappears: a kubelet adds labels and removes another one. An ordinary label
        // does not keep a community that came from the restricted label.
        let held = counted(&says("beta delta gamma", "", &[]), Some(&given), LabelEffect::Keep);
        assert_eq!(held, says("beta", "", &[]));
        assert_eq!(
            counted(&said, Some(&held), LabelEffect::Keep),
            says("beta", "gamma", &[]),
            "what was given up is gone"
        );
        // Another Node of this name inherits nothing.
        let another = NodeObject { uid: "other".into(), ..given.clone() };
        assert_eq!(counted(&said, Some(&another), LabelEffect::Keep), says("", "gamma", &[]));
        assert_eq!(counted(&said, Some(&given), LabelEffect::Ignore), says("", "gamma", &[]));
    }

    #[test]
    fn an_annotation_that_changes_all_the_time_sends_peers_to_few_places() {
        let trust = watch::Sender::new(LabelTrust::at_start(TrustNodeLabels::Never));
        let (mut node_trust, name) = (node_trust(&trust), "n".parse().unwrap());
        let mut now = says("", "", &["203.0.113.0"]);
        let mut address_changes = 0;
        for n in 1..100 {
            let said = says("", "", &[&format!("203.0.113.{n}")]);
            let counted = node_trust.accepted(&name, said, Some(&now));
            address_changes += u32::from(counted != now);
            now = counted;
        }
        assert!((1..10).contains(&address_changes), "{address_changes} of a hundred");
        assert_eq!(node_trust.take_waiting(), [name].into(), "the last one waits");
    }
}
