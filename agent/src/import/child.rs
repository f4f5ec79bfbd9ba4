//! Translates one child of a connection into one `[[peer.child]]`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::keys::ImportReport;
use super::proposals::proposals;
use super::swanctl_file::Section;
use super::traffic_selector::{self, NextLayer};
use crate::config::proposal;

/// The values of a `[[peer.child]]`.
pub(super) struct Child {
    pub(super) name: String,
    pub(super) local_subnets: Vec<IpNetwork>,
    pub(super) remote_subnets: Vec<IpNetwork>,
    /// ESP proposals; empty to use the agent's defaults.
    pub(super) esp_proposals: Vec<String>,
    /// The IP protocol that the child carries; `None` for all.
    pub(super) protocol: Option<u8>,
    /// The port on this node's side; `None` for all.
    pub(super) local_port: Option<u16>,
    /// The port on the peer's side; `None` for all.
    pub(super) remote_port: Option<u16>,
    /// Whether the child is in transport mode.
    pub(super) transport: bool,
}

impl Child {
    /// Returns whether the child needs a `[[peer.child]]`, because `[[peer]]` has no keys for its
    /// values.
    pub(super) fn needs_table(&self) -> bool {
        self.protocol.is_some() || self.transport
    }
}

/// The values of a connection that determine the ends of its children.
pub(super) struct ChildEnds {
    /// This node's address, if it is known.
    pub(super) local: Option<IpAddr>,
    /// The peer's address, if it is known.
    pub(super) remote: Option<IpAddr>,
}

/// Translates a child.
pub(super) fn translate(name: &str, child: &Section, ends: &ChildEnds, report: &mut ImportReport) -> Child {
    let (local_subnets, local) = selectors(child, "local_ts", ends.local, report);
    let (remote_subnets, remote) = selectors(child, "remote_ts", ends.remote, report);
    let protocol = match (local.protocol, remote.protocol) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            report.problems.push(format!("{}: not supported: local_ts and remote_ts of different protocols", child.at));
            None
        }
        (ours, theirs) => ours.or(theirs),
    };
    let transport = is_transport(child, &local_subnets, &remote_subnets, report);
    Child {
        name: name.to_owned(),
        local_subnets,
        remote_subnets,
        esp_proposals: proposals(child, "esp_proposals", |text| proposal::esp(text).map(drop), report),
        protocol,
        local_port: local.port,
        remote_port: remote.port,
        transport,
    }
}

fn is_transport(child: &Section, local: &[IpNetwork], remote: &[IpNetwork], report: &mut ImportReport) -> bool {
    match child.get("mode") {
        None | Some("tunnel") => return false,
        Some("transport") => {}
        Some(mode) => report.problems.push(format!("{}: not supported: mode {mode}", child.at)),
    }
    let is_address =
        |networks: &[IpNetwork]| matches!(networks, [one] if one.prefix() == if one.is_ipv4() { 32 } else { 128 });
    if !(is_address(local) && is_address(remote)) {
        report
            .problems
            .push(format!("{}: not supported: mode transport between others than one address at each end", child.at));
    }
    true
}

/// Returns the networks of one end, and the protocol and port, which must be the same in all
/// selectors of that end.
fn selectors(
    child: &Section,
    key: &str,
    dynamic: Option<IpAddr>,
    report: &mut ImportReport,
) -> (Vec<IpNetwork>, NextLayer) {
    let mut texts = child.list(key);
    if texts.is_empty() {
        texts.push("dynamic");
    }
    let (mut networks, mut next_layers) = (Vec::new(), Vec::new());
    for text in texts {
        match traffic_selector::parse(text, dynamic) {
            Ok((some, next_layer)) => {
                networks.extend(some);
                next_layers.push(next_layer);
            }
            Err(problem) => report.problems.push(format!("{}: {key} {text}: {problem}", child.at)),
        }
    }
    let first = next_layers.first().copied().unwrap_or_default();
    if next_layers.iter().any(|other| *other != first) {
        report.problems.push(format!(
            "{}: {key}: not supported: selectors of different protocols or ports in one child",
            child.at
        ));
    }
    (networks, first)
}
