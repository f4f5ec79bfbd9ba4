//! The requests that `edge-agent` commands send to the driver.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tokio::sync::oneshot;

use super::capture::CaptureReader;
use crate::status::TunnelsReport;

/// A request to the driver.
#[derive(Debug)]
pub enum DriverRequest {
    /// Reports the state of all tunnels.
    Report(oneshot::Sender<TunnelsReport>),
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
