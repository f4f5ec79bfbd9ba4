//! The SAs and policies that the kernel should have, and their form in the status.

use std::collections::HashMap;
use std::sync::Arc;

use edge_xfrm::sa::Counters;
use edge_xfrm::{Action, Encap, Policy, Sa, SaDirection, SaId, Xfrm};
use serde::{Serialize, Serializer};

use super::installed_sa::InstalledSa;
use crate::status::{IkeCounters, PolicyEntry, Refusal, SocketHolding, StateEntry, TemplateEntry};

/// Maximum number of SAs that are read one by one, because they were installed after all SAs were
/// read. The counters of further ones are left out.
const MAX_NEWER: usize = 64;

/// The SAs in the kernel, of all programs.
pub(super) type KernelSas = HashMap<SaId, KernelSa>;

/// What the status shows of an SA in the kernel.
#[derive(Debug)]
pub struct KernelSa {
    /// The kernel's name of the algorithm.
    algorithm: Option<String>,
    /// Packets and bytes that the SA has processed.
    pub(super) counters: Counters,
}

impl From<Sa> for KernelSa {
    fn from(sa: Sa) -> Self {
        Self { algorithm: sa.algorithm, counters: sa.counters }
    }
}

/// What all peers have in common, and what the kernel should have.
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
    /// What keeps the UDP sockets open when the agent ends.
    pub(super) sockets: SocketHolding,
}

/// Reads the SAs in the kernel; none if that fails.
pub(super) fn kernel_sas() -> KernelSas {
    let sas = Xfrm::open().and_then(|mut xfrm| xfrm.sas()).unwrap_or_default();
    sas.into_iter().map(|sa| (sa.id, sa.into())).collect()
}

/// Reads those of `installed` that are not in `known`.
pub(super) fn newer_sas<'a>(
    xfrm: &mut Xfrm,
    installed: impl Iterator<Item = &'a InstalledSa>,
    known: &KernelSas,
) -> KernelSas {
    let newer = installed.map(|installed| installed.id).filter(|id| !known.contains_key(id)).take(MAX_NEWER);
    newer.filter_map(|id| Some((id, xfrm.sa(id).ok()??.into()))).collect()
}

/// The SAs that the kernel should have. Their entries are made when they are written, so that those
/// of many peers are never in memory together.
#[derive(Debug)]
pub struct StateList {
    installed: Vec<InstalledSa>,
    /// The SAs that were in the kernel a short time ago.
    sas: Arc<KernelSas>,
    /// SAs that were installed since.
    newer: KernelSas,
}

impl StateList {
    /// Makes the list, and reads the SAs that are not in `sas` from the kernel.
    pub(super) fn new(mut installed: Vec<InstalledSa>, sas: Arc<KernelSas>) -> Self {
        installed.sort_by_key(|sa| (sa.reqid.raw(), sa.direction == SaDirection::Out, sa.id.spi));
        let newer = if installed.iter().all(|sa| sas.contains_key(&sa.id)) {
            KernelSas::new()
        } else {
            Xfrm::open().map(|mut xfrm| newer_sas(&mut xfrm, installed.iter(), &sas)).unwrap_or_default()
        };
        Self { installed, sas, newer }
    }

    /// Returns the entries, in the order of reqids, directions and SPIs.
    pub fn entries(&self) -> impl Iterator<Item = StateEntry> {
        let in_kernel = |id: &SaId| self.sas.get(id).or_else(|| self.newer.get(id));
        self.installed.iter().map(move |installed| state(installed, in_kernel(&installed.id)))
    }
}

impl Serialize for StateList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.entries())
    }
}

/// The policies that the kernel should have. Their entries are made when they are written.
#[derive(Debug)]
pub struct PolicyList(pub(super) Vec<Policy>);

impl PolicyList {
    /// Returns the entries.
    pub fn entries(&self) -> impl Iterator<Item = PolicyEntry> {
        self.0.iter().map(policy)
    }
}

impl Serialize for PolicyList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.entries())
    }
}

fn state(installed: &InstalledSa, found: Option<&KernelSa>) -> StateEntry {
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
