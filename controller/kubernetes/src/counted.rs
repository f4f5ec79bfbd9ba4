//! What counts of what a Node says. Its kubelet writes there too: labels put it into communities
//! only where that is kept from kubelets, and its addresses change no more often than those that it
//! reports.

use std::collections::BTreeSet;

use edge_controller_domain::endpoints::Changes;
use edge_controller_domain::state::NodeObject;
use edge_types::{Communities, NodeName};
use tokio::sync::watch;

use super::events::{About, Events};
use super::label_trust::{Counting, LabelTrust, TrustNodeLabels};

/// Says what counts, and tells people once a node what does not.
pub struct Judge {
    labels: watch::Receiver<LabelTrust>,
    moves: Changes,
    events: Events,
    /// Nodes of which it was told that labels of theirs do not count.
    told: BTreeSet<NodeName>,
    /// Nodes with addresses that wait for their turn.
    waiting: BTreeSet<NodeName>,
}

impl Judge {
    /// Nothing that a kubelet may set counts.
    pub fn strict(moves: Changes, events: Events) -> Self {
        // It says the same for ever.
        let labels = watch::Sender::new(LabelTrust::at_start(TrustNodeLabels::Never)).subscribe();
        Self { labels, moves, events, told: BTreeSet::new(), waiting: BTreeSet::new() }
    }

    /// Labels count as this says.
    pub fn counting(self, labels: watch::Receiver<LabelTrust>) -> Self {
        Self { labels, ..self }
    }

    /// Waits until something else counts of all Nodes.
    pub async fn changed(&mut self) {
        if self.labels.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.told.clear();
    }

    /// What counts of what the Node of a registered node says, given what counted before.
    pub fn counted(&mut self, name: &NodeName, said: NodeObject, before: Option<&NodeObject>) -> NodeObject {
        let before = before.filter(|before| before.uid == said.uid);
        let trust = self.labels.borrow().clone();
        let communities = communities(&said.communities, before, trust.counting);
        if trust.known {
            self.tell(name, &said.communities, &communities, &trust);
        }
        let public_addresses = match before {
            Some(before) if before.public_addresses != said.public_addresses && !self.moves.take(name) => {
                self.waiting.insert(name.clone());
                before.public_addresses.clone()
            }
            _ => said.public_addresses,
        };
        NodeObject { communities, public_addresses, ..said }
    }

    /// Nodes that are to be looked at again.
    pub fn waiting(&mut self) -> BTreeSet<NodeName> {
        std::mem::take(&mut self.waiting)
    }

    fn tell(&mut self, name: &NodeName, said: &Communities, counted: &Communities, trust: &LabelTrust) {
        let without: Vec<&str> = said.difference(counted).map(|community| community.as_str()).collect();
        if without.is_empty() || !self.told.insert(name.clone()) {
            return;
        }
        let without = without.join(", ");
        tracing::warn!(node = %name, "its labels do not put it into {without}: {trust}");
        self.events.warning(About::Node, name.as_str(), "LabelsDoNotCount", format!("not put into {without}: {trust}"));
    }
}

/// Communities that labels give which a kubelet may set.
fn communities(said: &Communities, before: Option<&NodeObject>, counting: Counting) -> Communities {
    match counting {
        Counting::Yes => said.clone(),
        Counting::Held => {
            let held = before.into_iter().flat_map(|before| &before.communities);
            held.filter(|community| said.contains(*community)).cloned().collect()
        }
        Counting::No => Communities::new(),
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
        }
    }

    fn judge(trust: &watch::Sender<LabelTrust>) -> Judge {
        Judge::strict(Changes::default(), Events::default()).counting(trust.subscribe())
    }

    #[test]
    fn labels_that_a_kubelet_may_set_add_no_member_and_what_they_gave_lasts_until_they_are_removed() {
        let trust = watch::Sender::new(LabelTrust::at_start(TrustNodeLabels::Auto));
        let (mut judge, name) = (judge(&trust), "n".parse().unwrap());
        let mut counted = |said: &NodeObject, before: Option<&NodeObject>, counting| {
            trust.send_modify(|trust| trust.counting = counting);
            judge.counted(&name, said.clone(), before)
        };
        // Where nothing keeps a kubelet from it, nothing is added; whatever is configured, the
        // restricted label counts.
        let said = says("alpha beta", "gamma", &[]);
        assert_eq!(counted(&said, None, Counting::Held), says("", "gamma", &[]));
        assert_eq!(counted(&said, None, Counting::No), says("", "gamma", &[]));
        let given = counted(&said, None, Counting::Yes);
        assert_eq!(given, said);
        // The policy vanishes: a kubelet adds labels and takes another one away. What a label gave
        // that no kubelet sets is not kept by one of these.
        let held = counted(&says("beta delta gamma", "", &[]), Some(&given), Counting::Held);
        assert_eq!(held, says("beta", "", &[]));
        assert_eq!(
            counted(&said, Some(&held), Counting::Held),
            says("beta", "gamma", &[]),
            "what was given up is gone"
        );
        // Another Node of this name inherits nothing.
        let another = NodeObject { uid: "other".into(), ..given.clone() };
        assert_eq!(counted(&said, Some(&another), Counting::Held), says("", "gamma", &[]));
        assert_eq!(counted(&said, Some(&given), Counting::No), says("", "gamma", &[]));
    }

    #[test]
    fn an_annotation_that_changes_all_the_time_sends_peers_to_few_places() {
        let trust = watch::Sender::new(LabelTrust::at_start(TrustNodeLabels::Never));
        let (mut judge, name) = (judge(&trust), "n".parse().unwrap());
        let mut now = says("", "", &["203.0.113.0"]);
        let mut moves = 0;
        for n in 1..100 {
            let said = says("", "", &[&format!("203.0.113.{n}")]);
            let counted = judge.counted(&name, said, Some(&now));
            moves += u32::from(counted != now);
            now = counted;
        }
        assert!((1..10).contains(&moves), "{moves} of a hundred");
        assert_eq!(judge.waiting(), [name].into(), "the last one waits");
    }
}
