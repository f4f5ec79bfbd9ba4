//! Decides whether a view may replace the current one. A view determines which nodes this node
//! trusts and which it removes, so a view that contradicts itself is refused as a whole.

use std::sync::PoisonError;

use edge_types::{IpNetwork, NodeName, NodeView, Role};

use super::client::ControllerClient;
use super::unconfirmed_view::{TAKEN_BACK_FILE, TakenBackView};
use super::view_consistency::check_whole;
use crate::underlay::AddressConflict;

/// The reason why a view is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ViewRefusal {
    /// The view belongs to another node.
    #[error("it is for node {found}, but this node is {expected}")]
    Node {
        /// This node.
        expected: NodeName,
        /// The node in the view.
        found: NodeName,
    },
    /// The view's role differs from the certificate's role.
    #[error(
        "it says role {found}, this node's certificate says {expected}: to change it, deregister the node and let it join with a new token"
    )]
    Role {
        /// Role in the certificate.
        expected: Role,
        /// Role in the view.
        found: Role,
    },
    /// The view is older than the current view.
    #[error(
        "its version {found} is older than version {expected} in force: was the controller restored from a backup? \
         To take it nevertheless, stop the agent, remove view.json from the state directory, and start it again"
    )]
    Older {
        /// Version of the current view.
        expected: u64,
        /// Version of the refused view.
        found: u64,
    },
    /// A network in the view contains an address that this node needs outside of tunnels.
    #[error("{0}")]
    CutsOff(AddressConflict),
    /// The view adds the same networks as the view that was taken back, which may have cut this
    /// node off.
    #[error(
        "it adds {}, as version {version} did, under which the controller was not heard; it is judged when the controller is reached again",
         .added.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Undecided {
        /// Version of the view that was taken back.
        version: u64,
        /// Networks that the view that was taken back added.
        added: Vec<IpNetwork>,
    },
    /// The view adds the same networks as the view that was taken back, which cut this node off.
    #[error(
        "it adds {}, as version {version} did, under which the controller could not be reached: correct ranges and networks at the controller, or \
         whatever of this node's network lies within them; to take it nevertheless, stop the agent, remove {}, and start it again",
         .added.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
         .file.display()
    )]
    TakenBack {
        /// Version of the view that was taken back.
        version: u64,
        /// Networks that the view that was taken back added.
        added: Vec<IpNetwork>,
        /// The file that contains the refused networks.
        file: std::path::PathBuf,
    },
    /// The view contradicts itself.
    #[error("{0}")]
    Invalid(String),
}

/// Outcome of [`validate`] for a view that is not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Validated {
    /// The view may replace the current view.
    New,
    /// The view equals the current view.
    Unchanged,
}

/// Validates `new` against this node's name and role, and the current view.
pub(super) fn validate(
    node: &NodeName,
    role: Role,
    current: Option<&NodeView>,
    new: &NodeView,
) -> Result<Validated, ViewRefusal> {
    validate_with(node, role, current, new, || check_whole(new))
}

/// Validates as [`validate`] does. `check_consistency` fails if `new` contradicts itself.
pub(super) fn validate_with(
    node: &NodeName,
    role: Role,
    current: Option<&NodeView>,
    new: &NodeView,
    check_consistency: impl FnOnce() -> Result<(), String>,
) -> Result<Validated, ViewRefusal> {
    if new.node != *node {
        return Err(ViewRefusal::Node { expected: node.clone(), found: new.node.clone() });
    }
    if new.role != role {
        return Err(ViewRefusal::Role { expected: role, found: new.role });
    }
    match current {
        // After an update of this program, the content of the same version may differ, because the
        // new release reads more fields.
        Some(current) if new == current => return Ok(Validated::Unchanged),
        Some(current) if new.version < current.version => {
            return Err(ViewRefusal::Older { expected: current.version, found: new.version });
        }
        _ => {}
    }
    check_consistency().map_err(ViewRefusal::Invalid)?;
    Ok(Validated::New)
}

impl ControllerClient {
    /// Checks whether the view would cut this host off. Fails if a network of the view contains an
    /// address that this host needs and that no network of the current view contains, or if the
    /// view adds the networks of a view that was taken back.
    pub(super) fn check_against_host(&self, current: Option<&NodeView>, view: &NodeView) -> Result<(), ViewRefusal> {
        let controllers = self.bypass.controller_addresses(self.urls());
        if let Some(conflict) = self.uplink.borrow().underlay.conflict(current, view, &controllers) {
            return Err(ViewRefusal::CutsOff(conflict));
        }
        let taken_back = self.taken_back.lock().unwrap_or_else(PoisonError::into_inner);
        match taken_back.as_ref().filter(|taken_back| !taken_back.allows(view, self.clock.unix_time())) {
            Some(TakenBackView { version, added, blamed: false, .. }) => {
                Err(ViewRefusal::Undecided { version: *version, added: added.clone() })
            }
            Some(TakenBackView { version, added, .. }) => Err(ViewRefusal::TakenBack {
                version: *version,
                added: added.clone(),
                file: self.state.path().join(TAKEN_BACK_FILE),
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_view::{anchor, empty_view};
    use edge_types::{Peer, SharedList, SharedPeer};

    fn view(version: u64) -> NodeView {
        NodeView {
            version,
            cluster_ranges: vec!["10.77.0.0/16".parse().unwrap(), "fd77::/48".parse().unwrap()],
            segments: vec!["10.77.0.0/26".parse().unwrap()],
            peers: vec![peer("edge-2", &["10.77.0.64/26", "fd77::100/120"])].into(),
            trust_anchors: vec![anchor()],
            ..empty_view()
        }
    }

    fn peer(name: &str, segments: &[&str]) -> SharedPeer {
        SharedPeer::from(Peer {
            name: name.parse().unwrap(),
            role: Role::Edge,
            endpoints: vec![],
            segments: segments.iter().map(|text| text.parse().unwrap()).collect(),
            networks: vec![],
            mapped: vec![],
            tcp_port: None,
            on_demand_in: Default::default(),
            certificates_from: 0,
        })
    }

    fn validate_for_edge_1(current: Option<&NodeView>, new: &NodeView) -> Result<Validated, ViewRefusal> {
        validate(&"edge-1".parse().unwrap(), Role::Edge, current, new)
    }

    #[test]
    fn a_newer_view_is_taken_and_the_same_one_changes_nothing() {
        let old = view(4);
        assert_eq!(validate_for_edge_1(None, &old), Ok(Validated::New));
        assert_eq!(validate_for_edge_1(Some(&old), &old), Ok(Validated::Unchanged));
        let new = NodeView { version: 5, peers: SharedList::default(), ..old.clone() };
        assert_eq!(validate_for_edge_1(Some(&old), &new), Ok(Validated::New), "a view without peers is a view");
    }

    #[test]
    fn older_foreign_and_contradictory_versions_are_refused() {
        let current = view(4);
        let older = NodeView { version: 3, ..current.clone() };
        assert_eq!(validate_for_edge_1(Some(&current), &older), Err(ViewRefusal::Older { expected: 4, found: 3 }));
        let foreign = NodeView { version: 9, node: "edge-9".parse().unwrap(), ..current.clone() };
        assert!(validate_for_edge_1(Some(&current), &foreign).unwrap_err().to_string().contains("edge-9"));
        let promoted = NodeView { version: 9, role: Role::Hub, ..current.clone() };
        assert!(validate_for_edge_1(Some(&current), &promoted).unwrap_err().to_string().contains("role hub"));
    }

    #[test]
    fn a_view_that_contradicts_itself_is_refused_as_a_whole() {
        let good = view(4);
        type Spoil = Box<dyn Fn(&mut NodeView)>;
        let cases: [(&str, Spoil); 8] = [
            ("cluster range", Box::new(|view| view.cluster_ranges.clear())),
            ("trust anchor", Box::new(|view| view.trust_anchors.clear())),
            ("not PEM", Box::new(|view| view.trust_anchors = vec!["-----BEGIN CERTIFICATE-----\n%%".into()])),
            ("edge-2 twice", Box::new(|view| view.peers.push(peer("edge-2", &[])))),
            ("edge-1 twice", Box::new(|view| view.peers.push(peer("edge-1", &[])))),
            ("overlaps", Box::new(|view| view.peers.push(peer("edge-3", &["10.77.0.0/27"])))),
            ("outside", Box::new(|view| view.peers.push(peer("edge-3", &["10.78.0.0/26"])))),
            ("beyond its prefix", Box::new(|view| view.segments = vec!["10.77.0.1/26".parse().unwrap()])),
        ];
        for (expected, spoil) in cases {
            let mut bad = good.clone();
            spoil(&mut bad);
            let refusal = validate_for_edge_1(None, &bad).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{expected}: {refusal}");
        }
    }
}
