//! Holds the Nodes that have a community label, to find those on which it has no effect.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use edge_types::NodeName;

/// Maximum number of nodes that a message names.
const NAMED: usize = 10;

/// Nodes with a community label, each with whether the selector of edges selects it. There are at
/// most as many as Nodes.
#[derive(Debug, Clone, Default)]
pub struct LabelledNodes(Arc<Mutex<BTreeMap<NodeName, bool>>>);

impl LabelledNodes {
    /// Records a Node. `selected` is `None` if it has no community label.
    pub(super) fn set(&self, node: &NodeName, selected: Option<bool>) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match selected {
            Some(selected) => drop(nodes.insert(node.clone(), selected)),
            None => drop(nodes.remove(node)),
        }
    }

    /// Forgets all Nodes except these.
    pub(super) fn retain(&self, is_there: impl Fn(&NodeName) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| is_there(node));
    }

    /// Returns a message about the Nodes that have not joined, and one about those that are no
    /// edges. `edge_selector` selects edges.
    pub fn notes(&self, has_joined: impl Fn(&NodeName) -> bool, edge_selector: &str) -> Vec<String> {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = nodes.iter().filter(|(node, selected)| **selected && !has_joined(node));
        let no_edges = nodes.iter().filter(|(_, selected)| !**selected);
        let absent = listed(absent.map(|(node, _)| node)).map(|nodes| {
            format!("{nodes} with a community label have not joined: the agent does not run there, or its log says why it cannot join")
        });
        let no_edges = listed(no_edges.map(|(node, _)| node)).map(|nodes| {
            format!("{nodes} with a community label are no edges, so the label has no effect: edge_selector ({edge_selector}) does not select them")
        });
        absent.into_iter().chain(no_edges).collect()
    }
}

/// Returns the number of these nodes and the names of the first ones; `None` if there are none.
fn listed<'a>(nodes: impl Iterator<Item = &'a NodeName>) -> Option<String> {
    let nodes: Vec<&str> = nodes.map(NodeName::as_str).collect();
    let more = if nodes.len() > NAMED { ", ..." } else { "" };
    let named = nodes.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    (!nodes.is_empty()).then(|| format!("{} Node(s) ({named}{more})", nodes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_whose_community_label_has_no_effect_are_named_with_the_reason() {
        let (nodes, name) = (LabelledNodes::default(), |name: &str| name.parse::<NodeName>().unwrap());
        assert_eq!(nodes.notes(|_| false, "edge"), Vec::<String>::new());
        nodes.set(&name("here"), Some(true));
        nodes.set(&name("away"), Some(true));
        nodes.set(&name("cloud"), Some(false));
        let notes = nodes.notes(|node| node.as_str() == "here", "edge");
        assert_eq!(notes.len(), 2);
        assert!(notes[0].starts_with("1 Node(s) (away) with a community label have not joined"), "{notes:?}");
        assert!(notes[1].starts_with("1 Node(s) (cloud)") && notes[1].contains("edge_selector (edge)"), "{notes:?}");
        nodes.set(&name("cloud"), None);
        nodes.retain(|node| node.as_str() != "away");
        assert_eq!(nodes.notes(|node| node.as_str() == "here", "edge"), Vec::<String>::new());
    }

    #[test]
    fn a_message_about_many_nodes_names_ten() {
        let nodes = LabelledNodes::default();
        for number in 10..30 {
            nodes.set(&format!("edge-{number}").parse().unwrap(), Some(true));
        }
        let note = nodes.notes(|_| false, "edge").remove(0);
        assert!(note.starts_with("20 Node(s) (edge-10, ") && note.contains("edge-19, ...)"), "{note}");
    }
}
