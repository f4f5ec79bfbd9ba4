//! The requests that `edge-agent` commands send to the driver.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use edge_ike::PeerName;
use tokio::sync::oneshot;

use super::capture::CaptureReader;
use super::overview::{KernelSas, TunnelsOverview};
use crate::status::PeerReport;

/// A request to the driver.
#[derive(Debug)]
pub enum DriverRequest {
    /// Reports some peers: those whose names come after `after`, at most a few hundred. None are
    /// left if the answer is empty. `sas` are the SAs in the kernel.
    ReportPeers {
        /// The last peer of the part before; `None` for the first part.
        after: Option<PeerName>,
        /// The SAs in the kernel.
        sas: Arc<KernelSas>,
        /// The channel for the answer.
        to: oneshot::Sender<Vec<PeerReport>>,
    },
    /// Reports the SAs and policies that the kernel should have, and what all peers have in common.
    Overview(oneshot::Sender<TunnelsOverview>),
    /// Reports the version of the view in force. The answer shows that the driver works.
    Health(oneshot::Sender<Option<u64>>),
    /// Rekeys SAs with the named peer.
    Rekey(String, SasToRekey, oneshot::Sender<Result<(), String>>),
    /// Copies the messages to and from these addresses until the reader is dropped. Ends an earlier
    /// capture.
    Capture(BTreeSet<IpAddr>, oneshot::Sender<CaptureReader>),
}

/// The SAs with a peer that are rekeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SasToRekey {
    /// All CHILD_SAs.
    AllChildren,
    /// The CHILD_SAs of the configured child with this name.
    ChildrenNamed(String),
    /// The IKE SA.
    Ike,
}
