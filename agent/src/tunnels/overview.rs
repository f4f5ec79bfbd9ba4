//! The SAs and policies that the kernel should have, and their form in the status.

use std::collections::HashMap;

use edge_xfrm::{Action, Encap, Policy, Sa, SaDirection, SaId, Xfrm};

use super::installed_sa::InstalledSa;
use crate::status::{IkeCounters, PeerReport, PolicyEntry, Refusal, StateEntry, TemplateEntry, TunnelsReport};

/// Maximum number of SAs that are read one by one, because they were installed after all SAs were
/// read. The counters of further ones are left out.
const MAX_NEWER: usize = 64;

/// The SAs in the kernel, of all programs.
pub(super) type KernelSas = HashMap<SaId, Sa>;

/// The report without the peers, before it is brought into the document's form.
#[derive(Debug)]
pub struct TunnelsOverview {
    /// Name of this node; absent without a view.
    pub(super) node: Option<String>,
    /// Role of this node; absent without a view.
    pub(super) role: Option<String>,
    /// Version of the current view.
    pub(super) view_version: Option<u64>,
    /// SAs that the kernel should have.
    pub(super) installed: Vec<InstalledSa>,
    /// Policies that the kernel should have.
    pub(super) policies: Vec<Policy>,
    /// Number of pairs of nodes between which this node relays, as a hub.
    pub(super) relayed_pairs: usize,
    /// What IKE has done since the agent started.
    pub(super) ike: IkeCounters,
    /// The latest initiators that were refused before they were known as a peer, oldest first.
    pub(super) refusals: Vec<Refusal>,
    /// Ciphers of peers that the kernel lacks.
    pub(super) missing_ciphers: Vec<String>,
}

/// Reads the SAs in the kernel; none if that fails.
pub(super) fn kernel_sas() -> KernelSas {
    let sas = Xfrm::open().and_then(|mut xfrm| xfrm.sas()).unwrap_or_default();
    sas.into_iter().map(|sa| (sa.id, sa)).collect()
}

/// Reads those of `installed` that are not in `known`.
pub(super) fn newer_sas<'a>(
    xfrm: &mut Xfrm,
    installed: impl Iterator<Item = &'a InstalledSa>,
    known: &KernelSas,
) -> KernelSas {
    let newer = installed.map(|installed| installed.id).filter(|id| !known.contains_key(id)).take(MAX_NEWER);
    newer.filter_map(|id| Some((id, xfrm.sa(id).ok()??))).collect()
}

impl TunnelsOverview {
    /// Returns the report with these peers.
    pub(super) fn with_peers(self, peers: Vec<PeerReport>, sas: &KernelSas) -> TunnelsReport {
        let newer = Xfrm::open().map(|mut xfrm| newer_sas(&mut xfrm, self.installed.iter(), sas));
        let newer = newer.unwrap_or_default();
        let in_kernel = |id: &SaId| sas.get(id).or_else(|| newer.get(id));
        let mut states: Vec<StateEntry> =
            self.installed.iter().map(|installed| state(installed, in_kernel(&installed.id))).collect();
        states.sort_by(|one, other| {
            (one.reqid, &one.direction, &one.spi).cmp(&(other.reqid, &other.direction, &other.spi))
        });
        TunnelsReport {
            node: self.node,
            role: self.role,
            view_version: self.view_version,
            peers,
            states,
            policies: self.policies.iter().map(policy).collect(),
            relayed_pairs: self.relayed_pairs,
            ike: self.ike,
            refusals: self.refusals,
            missing_ciphers: self.missing_ciphers,
        }
    }
}

fn state(installed: &InstalledSa, found: Option<&Sa>) -> StateEntry {
    StateEntry {
        source: installed.source,
        destination: installed.id.destination,
        protocol: "esp".into(),
        spi: spi(installed.id.spi),
        reqid: installed.reqid.raw(),
        mode: installed.mode.to_string(),
        direction: match installed.direction {
            SaDirection::In => "in",
            SaDirection::Out => "out",
        }
        .into(),
        algorithm: found.and_then(|sa| sa.algorithm.clone()),
        encap: installed.encap.map(|Encap { source_port, destination_port, .. }| (source_port, destination_port)),
        in_kernel: found.is_some(),
    }
}

/// Returns an SPI as `ip xfrm state` writes it.
pub(super) fn spi(spi: u32) -> String {
    format!("{spi:#010x}")
}

fn policy(policy: &Policy) -> PolicyEntry {
    PolicyEntry {
        direction: policy.direction.to_string(),
        source: policy.selector.source(),
        destination: policy.selector.destination(),
        priority: policy.priority,
        action: match policy.action {
            Action::Block => "block",
            Action::Allow | Action::Protect(_) => "allow",
        }
        .into(),
        template: match policy.action {
            Action::Allow => None,
            Action::Block => {
                Some(TemplateEntry { reqid: edge_xfrm::Reqid::BLOCK.raw(), source: None, destination: None })
            }
            Action::Protect(template) => Some(TemplateEntry {
                reqid: template.reqid.raw(),
                source: template.outer.map(|(source, _)| source),
                destination: template.outer.map(|(_, destination)| destination),
            }),
        },
    }
}
