//! The seam between the cloud's side of the agent and the node's side.
//!
//! The cloud's side joins, keeps certificate and view, and publishes a [`Membership`] whenever
//! either changes, also from disk when the cloud cannot be reached. The node's side makes tunnels,
//! policies and routes of it, and publishes [`Uplink`], from which the cloud's side reports this
//! node's addresses and writes the pods' MTU.

use std::net::IpAddr;
use std::sync::Arc;

use edge_ike::Secret;
use edge_types::NodeView;
use edge_types::api::TunnelCount;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::WorldClock;
use crate::config::Config;
use crate::underlay::Surroundings;

/// What the controller says of this node, and how it proves who it is. Complete in itself.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The last view, from the stream or from disk.
    pub view: Arc<NodeView>,
    /// The certificate that is in force now.
    pub credentials: Arc<Credentials>,
}

/// This node's certificate and key, and whom it trusts.
#[derive(Clone)]
pub struct Credentials {
    /// Certificate and intermediates, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Private key, PKCS#8 DER.
    pub key: Secret,
    /// Trust anchors for peers, DER certificates.
    pub trust_anchors: Vec<Vec<u8>>,
    /// End of the certificate, seconds since 1970-01-01 UTC.
    pub not_after: i64,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("chain", &self.chain.len())
            .field("key", &self.key)
            .field("trust_anchors", &self.trust_anchors.len())
            .field("not_after", &self.not_after)
            .finish()
    }
}

/// What the node's side knows of its uplinks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplink {
    /// Global addresses of the interfaces that carry a default route first, then of the others;
    /// never those of our bridge or of pods.
    pub addresses: Vec<IpAddr>,
    /// MTU for pods, bytes: the smallest uplink MTU less what ESP in UDP adds; 0 while no uplink is
    /// there.
    pub pod_mtu: u32,
    /// What this node needs outside of every tunnel.
    pub surroundings: Surroundings,
}

/// How it stands with the controller, for `edge-agent status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudStatus {
    /// The controller in use.
    pub url: Option<String>,
    /// The view stream is open.
    pub connected: bool,
    /// Since when it has been so, seconds since 1970-01-01 UTC.
    pub since: Option<i64>,
    /// Where the view in force came from: `controller` or `disk`.
    pub view_source: Option<String>,
    /// End of this node's certificate, seconds since 1970-01-01 UTC.
    pub certificate_not_after: Option<i64>,
    /// The last error, with what to do.
    pub last_error: Option<String>,
    /// Why the controller's latest view is not in force, if it is not.
    #[serde(default)]
    pub refused_view: Option<String>,
    /// What this node needs and the view in force takes into tunnels, the first few.
    #[serde(default)]
    pub conflicts: Vec<String>,
}

/// The cloud's side's end of the seam.
#[derive(Debug)]
pub struct CloudSide {
    /// The agent's configuration; `[controller]` is there.
    pub config: Arc<Config>,
    /// To judge certificates by, and to raise its floor.
    pub clock: Arc<WorldClock>,
    /// What to report and to write as the pods' MTU; changes when the uplink does.
    pub uplink: watch::Receiver<Uplink>,
    /// How the tunnels are, for the controller to show; `None` before that is known.
    pub tunnels: watch::Receiver<Option<TunnelCount>>,
    /// Where to publish view and credentials; `None` until there is a first.
    pub membership: watch::Sender<Option<Membership>>,
    /// Where to say how it goes.
    pub status: watch::Sender<CloudStatus>,
    /// Cancelled when the agent is to end.
    pub stop: CancellationToken,
}

/// The node's side's end of the seam.
#[derive(Debug)]
pub struct NodeSide {
    /// The agent's configuration.
    pub config: Arc<Config>,
    /// For certificates.
    pub clock: Arc<WorldClock>,
    /// Where to publish addresses and MTU.
    pub uplink: watch::Sender<Uplink>,
    /// Where to publish how the tunnels are.
    pub tunnels: watch::Sender<Option<TunnelCount>>,
    /// View and credentials, as they change.
    pub membership: watch::Receiver<Option<Membership>>,
    /// How it goes with the controller.
    pub cloud: watch::Receiver<CloudStatus>,
    /// Cancelled when the agent is to end.
    pub stop: CancellationToken,
}

/// Makes both ends.
pub fn seam(config: Arc<Config>, clock: Arc<WorldClock>, stop: CancellationToken) -> (CloudSide, NodeSide) {
    let (membership_tx, membership) = watch::channel(None);
    let (status_tx, cloud) = watch::channel(CloudStatus::default());
    let (uplink_tx, uplink) = watch::channel(Uplink::default());
    let (tunnels_tx, tunnels) = watch::channel(None);
    let cloud_side = CloudSide {
        config: config.clone(),
        clock: clock.clone(),
        uplink,
        tunnels,
        membership: membership_tx,
        status: status_tx,
        stop: stop.clone(),
    };
    (cloud_side, NodeSide { config, clock, uplink: uplink_tx, tunnels: tunnels_tx, membership, cloud, stop })
}
