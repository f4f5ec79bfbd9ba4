//! The channels that connect the controller client with the rest of the agent.
//!
//! At start the controller client publishes the [`Membership`] on disk, and later a new one
//! whenever the view or the certificate changes. The rest of the agent derives tunnels, policies
//! and routes from the membership. In the other direction, it publishes [`UplinkFacts`], from which
//! the controller client takes the addresses that it reports, and the pods' MTU, which it writes to
//! `segments.json`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use edge_ike::Secret;
use edge_types::api::TunnelCount;
use edge_types::connectivity::{MeasurementReport, MeasurementRequest};
use edge_types::traffic::TunnelTraffic;
use edge_types::{IpNetwork, NodeName, NodeView};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::{BootTime, CertificateClock};
use crate::config::Config;
use crate::underlay::Underlay;

/// This node's view and its credentials.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The current view, which the agent applies. It comes from the controller or from disk.
    pub view: Arc<NodeView>,
    /// The current certificate with its key.
    pub credentials: Arc<NodeCredentials>,
    /// Hub networks that the view no longer names. No packet to these networks leaves unencrypted.
    pub former_networks: Arc<Vec<FormerNetwork>>,
}

/// A hub network that the view no longer names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerNetwork {
    /// The hub to which the network belonged.
    pub hub: NodeName,
    /// Network that the hub fronted, according to the last view that named the hub.
    pub network: IpNetwork,
    /// Time at which the hub disappeared from the view, seconds since 1970-01-01 UTC. Used only
    /// after a reboot.
    pub since: u64,
    /// The same time, measured by the boot-time clock, which cannot be set.
    #[serde(default)]
    pub boot_time: Option<BootTime>,
}

/// This node's certificate, key and trust anchors.
#[derive(Clone)]
pub struct NodeCredentials {
    /// Certificate and intermediates, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Private key, PKCS#8 DER.
    pub key: Secret,
    /// Trust anchors for peers, DER certificates.
    pub trust_anchors: Vec<Vec<u8>>,
    /// notAfter of the certificate, seconds since 1970-01-01 UTC.
    pub not_after: i64,
}

impl std::fmt::Debug for NodeCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCredentials")
            .field("chain", &self.chain.len())
            .field("key", &self.key)
            .field("trust_anchors", &self.trust_anchors.len())
            .field("not_after", &self.not_after)
            .finish()
    }
}

/// Addresses and MTU that follow from this node's uplinks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UplinkFacts {
    /// Global addresses, starting with those on interfaces with a default route. Addresses of the
    /// bridge and of pods are left out.
    pub addresses: Vec<IpAddr>,
    /// MTU for pods, bytes: the smallest MTU of the uplinks minus the overhead of ESP in UDP; 0
    /// without an uplink.
    pub pod_mtu: u32,
    /// Addresses that this node needs outside of every tunnel.
    pub underlay: Underlay,
}

/// Connection, certificate and view, for `edge-agent status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerStatus {
    /// URL of the controller in use.
    pub url: Option<String>,
    /// Whether the view stream is open.
    pub connected: bool,
    /// The time of the last change of `connected`, in seconds since 1970-01-01 UTC.
    pub since: Option<i64>,
    /// Source of the current view: `controller` or `disk`.
    pub view_source: Option<String>,
    /// notAfter of this node's certificate, seconds since 1970-01-01 UTC.
    pub certificate_not_after: Option<i64>,
    /// Time for which that certificate is accepted after its end, seconds.
    #[serde(default)]
    pub certificate_grace_seconds: u64,
    /// Since when the certificate has ended, how long it is still accepted, and what to do; `None`
    /// if it has not ended.
    #[serde(default)]
    pub certificate_ended: Option<String>,
    /// The last error, and how to correct it.
    pub last_error: Option<String>,
    /// Whether that error is the controller's refusal of this node. Its peers then refuse it too.
    #[serde(default)]
    pub refused: bool,
    /// The reason why the controller's latest view is refused; `None` if it is not refused.
    #[serde(default)]
    pub refused_view: Option<String>,
    /// Addresses that this node needs outside of every tunnel, but that the current view takes into
    /// tunnels; at most eight.
    #[serde(default)]
    pub conflicts: Vec<String>,
}

/// Maximum number of the controller's requests for measurements that wait. At the limit, further
/// requests are refused.
const MEASUREMENTS: usize = 2;

/// A request of the controller to measure paths to other nodes.
#[derive(Debug)]
pub struct Measurement {
    /// The request.
    pub request: MeasurementRequest,
    /// The channel for the report.
    pub report: oneshot::Sender<MeasurementReport>,
}

/// The controller client's ends of the channels.
#[derive(Debug)]
pub struct ControllerChannels {
    /// The agent's configuration, which has a `[controller]` table.
    pub config: Arc<Config>,
    /// Clock for checking certificates, whose baseline the controller client raises.
    pub clock: Arc<CertificateClock>,
    /// Addresses to report, and the pods' MTU.
    pub uplink: watch::Receiver<UplinkFacts>,
    /// Number of tunnels that are up, for the report; `None` before the first count.
    pub tunnels: watch::Receiver<Option<TunnelCount>>,
    /// The traffic of the tunnels, for the report; `None` before the first count.
    pub traffic: watch::Receiver<Option<TunnelTraffic>>,
    /// The obstacles that keep pods' packets from arriving, for the report.
    pub obstacles: watch::Receiver<Vec<String>>,
    /// This node's mapped addresses as the hubs say, for the report.
    pub mapped: watch::Receiver<Option<Vec<SocketAddr>>>,
    /// The hubs to which this node has no tunnel, for the report.
    pub unreached_hubs: watch::Receiver<Option<Vec<NodeName>>>,
    /// Requests for measurements.
    pub measurements: mpsc::Sender<Measurement>,
    /// View and credentials; `None` before the first view.
    pub membership: watch::Sender<Option<Membership>>,
    /// Connection, certificate and view, for `edge-agent status`.
    pub status: watch::Sender<ControllerStatus>,
    /// Cancelled when the agent ends.
    pub stop: CancellationToken,
}

/// The ends of the channels for the rest of the agent: tunnels, host and status.
#[derive(Debug)]
pub struct NodeChannels {
    /// The agent's configuration.
    pub config: Arc<Config>,
    /// Clock for checking certificates.
    pub clock: Arc<CertificateClock>,
    /// Addresses and MTU.
    pub uplink: watch::Sender<UplinkFacts>,
    /// Number of tunnels that are up.
    pub tunnels: watch::Sender<Option<TunnelCount>>,
    /// The traffic of the tunnels.
    pub traffic: watch::Sender<Option<TunnelTraffic>>,
    /// The obstacles that keep pods' packets from arriving, one sentence each.
    pub obstacles: watch::Sender<Vec<String>>,
    /// This node's mapped addresses as the hubs report them, at most one of each family; `None`
    /// until a hub has reported one.
    pub mapped: watch::Sender<Option<Vec<SocketAddr>>>,
    /// The hubs to which this node has no tunnel, while it has one to another hub; `None` until it
    /// has a tunnel to a hub.
    pub unreached_hubs: watch::Sender<Option<Vec<NodeName>>>,
    /// The controller's requests for measurements.
    pub measurements: mpsc::Receiver<Measurement>,
    /// View and credentials.
    pub membership: watch::Receiver<Option<Membership>>,
    /// Connection, certificate and view, for `edge-agent status`.
    pub controller_status: watch::Receiver<ControllerStatus>,
    /// Cancelled when the agent ends.
    pub stop: CancellationToken,
}

/// Creates the channels between the controller client and the rest of the agent.
pub fn channels(
    config: Arc<Config>,
    clock: Arc<CertificateClock>,
    stop: CancellationToken,
) -> (ControllerChannels, NodeChannels) {
    let (membership_tx, membership) = watch::channel(None);
    let (status_tx, controller_status) = watch::channel(ControllerStatus::default());
    let (uplink_tx, uplink) = watch::channel(UplinkFacts::default());
    let (tunnels_tx, tunnels) = watch::channel(None);
    let (traffic_tx, traffic) = watch::channel(None);
    let (obstacles_tx, obstacles) = watch::channel(Vec::new());
    let (mapped_tx, mapped) = watch::channel(None);
    let (unreached_tx, unreached_hubs) = watch::channel(None);
    let (measurements_tx, measurements) = mpsc::channel(MEASUREMENTS);
    let controller_channels = ControllerChannels {
        config: config.clone(),
        clock: clock.clone(),
        uplink,
        tunnels,
        traffic,
        obstacles,
        mapped,
        unreached_hubs,
        measurements: measurements_tx,
        membership: membership_tx,
        status: status_tx,
        stop: stop.clone(),
    };
    (
        controller_channels,
        NodeChannels {
            config,
            clock,
            uplink: uplink_tx,
            tunnels: tunnels_tx,
            traffic: traffic_tx,
            obstacles: obstacles_tx,
            mapped: mapped_tx,
            unreached_hubs: unreached_tx,
            measurements,
            membership,
            controller_status,
            stop,
        },
    )
}
