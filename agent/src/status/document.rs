//! The document of `status --json`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::clock::ClockReadings;
use crate::host::firewall::DroppedPackets;
use crate::host::{HostState, Obstacle};
use crate::incidents::Incident;
use crate::membership::ControllerStatus;
use crate::path_mtu::encapsulation::IPV6_MIN_MTU;

/// The document of `status --json`. The types of the three long lists are lists of entries, or
/// types that make the entries only when they are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status<P = Vec<PeerReport>, S = Vec<StateEntry>, O = Vec<PolicyEntry>> {
    /// Version of the agent.
    pub version: String,
    /// Process ID of the agent.
    pub pid: u32,
    /// Name of this node; absent without a view.
    pub node: Option<String>,
    /// Role of this node; absent without a view.
    pub role: Option<String>,
    /// Version of the current view.
    pub view_version: Option<u64>,
    /// Connection, certificate and view; absent without `[controller]`.
    #[serde(rename = "cloud")]
    pub controller: Option<ControllerStatus>,
    /// The system clock beside the controller's.
    #[serde(default)]
    pub clock: Option<ClockReadings>,
    /// Peers, in the order of their names.
    pub peers: P,
    /// SAs that the kernel should have. `ip xfrm state` shows them with reqids from 0xec000000 to
    /// 0xecffffff; reservations, which have no algorithm, are left out.
    pub states: S,
    /// Policies that the kernel should have. `ip xfrm policy` shows them with such a reqid or such
    /// an index.
    pub policies: O,
    /// Number of pairs of nodes between which this node relays, as a hub.
    #[serde(default)]
    pub relayed_pairs: usize,
    /// What IKE has done since the agent started.
    #[serde(default)]
    pub ike: IkeCounters,
    /// The latest initiators that were refused before they were known as a peer, at most 20, oldest
    /// first.
    #[serde(default)]
    pub refusals: Vec<Refusal>,
    /// Ciphers of peers that this kernel lacks, as CHILD_SAs name them. Peers are not offered them.
    #[serde(default)]
    pub missing_ciphers: Vec<String>,
    /// What keeps the UDP sockets open when the agent ends; absent with an earlier agent.
    #[serde(default)]
    pub sockets: Option<SocketHolding>,
    /// Routes, addresses and firewall.
    pub host: HostState,
    /// Obstacles that keep pods' packets from arriving, each with the command that removes it.
    #[serde(default)]
    pub obstacles: Vec<Obstacle>,
    /// Packets that the firewall has dropped since its table was created.
    #[serde(default, rename = "refused")]
    pub dropped: Vec<DroppedPackets>,
    /// The latest incidents, oldest first.
    #[serde(rename = "journal")]
    pub incidents: Vec<Incident>,
}

impl<P, S, O> Status<P, S, O> {
    /// Replaces the lists.
    pub fn with_lists<Q, T, U>(self, lists: impl FnOnce(P, S, O) -> (Q, T, U)) -> Status<Q, T, U> {
        let (peers, states, policies) = lists(self.peers, self.states, self.policies);
        Status {
            version: self.version,
            pid: self.pid,
            node: self.node,
            role: self.role,
            view_version: self.view_version,
            controller: self.controller,
            clock: self.clock,
            peers,
            states,
            policies,
            relayed_pairs: self.relayed_pairs,
            ike: self.ike,
            refusals: self.refusals,
            missing_ciphers: self.missing_ciphers,
            sockets: self.sockets,
            host: self.host,
            obstacles: self.obstacles,
            dropped: self.dropped,
            incidents: self.incidents,
        }
    }
}

/// What keeps the UDP sockets open when the agent ends. Without it, ESP in UDP is lost until the
/// next agent has opened its sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketHolding {
    /// The holder; absent if the sockets end with the agent.
    #[serde(rename = "held_by")]
    pub holder: Option<SocketHolder>,
    /// Why nothing holds them.
    pub problem: Option<String>,
}

/// What keeps the UDP sockets open when the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketHolder {
    /// The socket units of systemd.
    Systemd,
    /// A process that an agent started.
    Process,
    /// `edge-agent hold-sockets --listen`, in Kubernetes a pod.
    Pod,
}

impl SocketHolding {
    /// Sockets that stay open.
    #[must_use]
    pub fn by(holder: SocketHolder) -> Self {
        Self { holder: Some(holder), problem: None }
    }

    /// Sockets that end with the agent.
    pub fn none(problem: impl Into<String>) -> Self {
        Self { holder: None, problem: Some(problem.into()) }
    }
}

impl fmt::Display for SocketHolding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.holder {
            Some(SocketHolder::Systemd) => "systemd",
            Some(SocketHolder::Process) => "a process",
            Some(SocketHolder::Pod) => "edge-agent hold-sockets",
            None => {
                let problem = self.problem.as_deref().unwrap_or("nothing holds them");
                return write!(f, "end with the agent, so packets are lost while it restarts: {problem}");
            }
        };
        write!(f, "stay open while the agent restarts: {by} holds them")
    }
}

/// Refusals of an initiator that is not known as a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Time of the last refusal, RFC 3339.
    pub at: String,
    /// The initiator's address.
    pub from: SocketAddr,
    /// The identity that the initiator sent, if it sent IKE_AUTH.
    pub identity: Option<String>,
    /// The reason.
    pub error: String,
    /// Number of refusals with this identity and reason from this address.
    pub times: u32,
}

/// What IKE has done since the agent started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IkeCounters {
    /// CHILD_SAs that were replaced by another one of the same purpose.
    pub child_rekeys: u64,
    /// IKE SAs that were replaced, by a rekey or by a new authentication.
    pub ike_rekeys: u64,
    /// Requests that were sent again, since no response came.
    pub retransmissions: u64,
    /// Requests that asked whether the peer is there.
    pub liveness_checks: u64,
    /// Failures of peers and refused initiators, by kind. There are as many kinds as kinds of
    /// [`edge_ike::event::PeerErrorKind`].
    pub failures: BTreeMap<String, u64>,
}

/// State of a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// The peer's name: its node name, or the name in the `[[peer]]` table.
    pub name: String,
    /// Source of the peer: `view` or `configuration`.
    pub origin: String,
    /// `idle`, `on-demand` (the next packet sets up the tunnel), `connecting`, `waiting` (for the
    /// next attempt) or `up` (an inbound and an outbound SA are in the kernel).
    pub phase: String,
    /// Reqid of the policies and SAs of the peer's first child.
    pub reqid: Option<u32>,
    /// Candidate addresses, with ports.
    pub endpoints: Vec<String>,
    /// The established IKE SAs with the peer: usually one; two while one replaces the other.
    pub ike_sas: Vec<IkeStatus>,
    /// The CHILD_SAs with the peer.
    pub child_sas: Vec<ChildStatus>,
    /// Pairs of configured networks that no CHILD_SA carries although the peer is up: the peer has
    /// narrowed the selectors, or refuses a child. Empty for peers in the view.
    #[serde(default)]
    pub not_carried: Vec<NotCarried>,
    /// Networks of a peer in the view to which packets are dropped, because the tunnel was never
    /// up. Empty for on-demand tunnels, which a packet sets up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked: Vec<IpNetwork>,
    /// The hub that relays the tunnel; absent if the path is direct, or the peer is not up.
    #[serde(default)]
    pub relayed_by: Option<String>,
    /// The hub that refused the last request for a relay to the peer, and why; absent while none is
    /// needed.
    #[serde(default)]
    pub relay_refused: Option<String>,
    /// Whether the tunnel travels in a TCP connection, since UDP does not pass.
    #[serde(default)]
    pub tcp: bool,
    /// Why the hub cannot be reached by TCP either; absent unless UDP does not pass.
    #[serde(default)]
    pub tcp_problem: Option<String>,
    /// Where a hub sees this node; absent for other peers, by TCP, and until the hub has said it.
    #[serde(default)]
    pub mapping: Option<NatMapping>,
    /// What is known about the path MTU; absent without traffic, for static peers, and with
    /// `[path_mtu] probe = false`.
    #[serde(default)]
    pub path_mtu: Option<PathMtuStatus>,
    /// The latest error since the last success.
    pub last_error: Option<String>,
    /// Number of the peer's rekeys and requests for CHILD_SAs that were refused since the peer was
    /// configured, because there were too many in a short time.
    #[serde(default)]
    pub requests_refused: u32,
}

/// The address and port of this node as a hub sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatMapping {
    /// This node's address and port on the path to the hub.
    pub local: SocketAddr,
    /// The address and port from which this node's datagrams come to the hub. The same as `local`
    /// if no NAT is on the path.
    pub mapped: SocketAddr,
}

/// The path MTU of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathMtuStatus {
    /// The largest packet that the path carries in the tunnel, in bytes, at most the MTU of pods.
    pub bytes: u32,
    /// Whether that is less than the MTU of pods.
    pub limited: bool,
    /// Whether the peer answered none of the last probes, so that `bytes` may be too large.
    pub unanswered: bool,
    /// Whether larger IPv6 packets, of up to 1280 bytes, travel in fragments. Otherwise they are
    /// lost if `bytes` is below 1280.
    #[serde(default)]
    pub ipv6_in_fragments: bool,
}

impl fmt::Display for PathMtuStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up to {} bytes", self.bytes)?;
        if self.ipv6_in_fragments {
            write!(f, "; IPv6 needs {IPV6_MIN_MTU}, so large IPv6 packets travel in fragments (Linux 5.19 and later)")?;
        } else if self.bytes < IPV6_MIN_MTU {
            write!(f, "; IPv6 needs {IPV6_MIN_MTU}, so large IPv6 packets are lost")?;
        }
        if self.unanswered {
            f.write_str("; not confirmed, since the peer does not answer probes")?;
        }
        Ok(())
    }
}

/// A pair of configured networks between which no packet passes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCarried {
    /// Name of the configured child.
    pub child: String,
    /// Network of this node.
    pub local: IpNetwork,
    /// Network of the peer.
    pub remote: IpNetwork,
}

/// State of an IKE SA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeStatus {
    /// Initiator's SPI, 16 hexadecimal digits.
    pub initiator_spi: String,
    /// Responder's SPI, 16 hexadecimal digits.
    pub responder_spi: String,
    /// This node's address and port.
    pub local: String,
    /// The peer's address and port.
    pub remote: String,
    /// Whether this node is the original initiator.
    pub initiator: bool,
    /// Negotiated encryption, PRF, integrity and key exchange, as `edge-agent` logs them.
    pub proposal: String,
    /// The peer's authentication method.
    pub authentication: String,
    /// Whether this node is behind a NAT, or a NAT is assumed because encapsulation in UDP is
    /// forced.
    pub nat_local: bool,
    /// Whether the peer is behind a NAT, or pretends to be because it forces encapsulation in UDP.
    pub nat_remote: bool,
    /// Whether this node forces encapsulation in UDP, so that both ends report a NAT where there
    /// may be none.
    #[serde(default)]
    pub nat_assumed: bool,
    /// Whether both ends use MOBIKE (RFC 4555), so that the tunnel follows address changes.
    #[serde(default)]
    pub mobike: bool,
    /// The addresses in the tunnel that one end has given the other one: with `address_pool` this
    /// node gave them to the peer, with `request_address` the peer gave them to this node.
    #[serde(default)]
    pub internal_addresses: Vec<IpAddr>,
    /// What the peer has asked for and does not get: one sentence for each request.
    #[serde(default)]
    pub not_served: Vec<String>,
    /// The time at which the IKE SA was established, RFC 3339.
    pub since: String,
    /// Seconds since the last authentic message.
    pub heard_seconds_ago: u64,
    /// Seconds until the IKE SA is rekeyed or re-authenticated.
    pub renewed_in_seconds: u64,
}

impl IkeStatus {
    /// Returns in words what NAT detection has found (RFC 7296 2.23).
    pub fn nat(&self) -> &'static str {
        match (self.nat_assumed, self.nat_local, self.nat_remote) {
            (true, ..) => "encapsulation in UDP without asking for NATs",
            (false, false, false) => "no NAT",
            (false, true, false) => "NAT at our end",
            (false, false, true) => "NAT at the peer's end",
            (false, true, true) => "NAT at both ends",
        }
    }
}

/// State of a CHILD_SA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildStatus {
    /// Name of the configured child.
    #[serde(default)]
    pub child: String,
    /// Reqid of the CHILD_SA's policies and SAs.
    #[serde(default)]
    pub reqid: Option<u32>,
    /// SPI of the inbound SA: `0x` and 8 hexadecimal digits, as `ip xfrm state` writes it.
    pub inbound_spi: String,
    /// SPI of the outbound SA, in the same form.
    pub outbound_spi: String,
    /// Negotiated cipher for ESP.
    pub cipher: String,
    /// Whether the CHILD_SA uses extended sequence numbers.
    pub esn: bool,
    /// `tunnel` or `transport`.
    #[serde(default = "tunnel")]
    pub mode: String,
    /// Whether ESP is encapsulated in UDP.
    pub encapsulated: bool,
    /// This node's address and port.
    pub local: String,
    /// The peer's address and port.
    pub remote: String,
    /// Negotiated traffic selectors of this node.
    pub local_selectors: Vec<IpNetwork>,
    /// Negotiated traffic selectors of the peer.
    pub remote_selectors: Vec<IpNetwork>,
    /// IP protocol of the selectors, 0 for any.
    #[serde(default)]
    pub protocol: u8,
    /// Port of this node's selectors; absent for any.
    #[serde(default)]
    pub local_port: Option<u16>,
    /// Port of the peer's selectors; absent for any.
    #[serde(default)]
    pub remote_port: Option<u16>,
    /// `in-use`, `successor` or `lingering`.
    pub usage: String,
    /// The time at which the CHILD_SA was established, RFC 3339.
    pub since: String,
    /// Counters of the inbound SA; absent if the kernel does not have the SA.
    pub received: Option<Counters>,
    /// Counters of the outbound SA; absent if the kernel does not have the SA.
    pub sent: Option<Counters>,
}

/// Returns the mode of CHILD_SAs in a report from an older agent.
fn tunnel() -> String {
    "tunnel".to_owned()
}

/// Counters of an SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Number of packets since the SA was installed.
    pub packets: u64,
    /// Number of bytes, without the overhead of ESP.
    pub bytes: u64,
}

/// An SA that the kernel should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateEntry {
    /// Source address of the ESP packets.
    pub source: IpAddr,
    /// Destination address of the ESP packets.
    pub destination: IpAddr,
    /// Always `esp`.
    pub protocol: String,
    /// SPI: `0x` and 8 hexadecimal digits.
    pub spi: String,
    /// Reqid, which is also in the templates of the SA's policies.
    pub reqid: u32,
    /// `tunnel` or `transport`.
    pub mode: String,
    /// Direction: `in` or `out`.
    pub direction: String,
    /// The kernel's name of the algorithm; absent if the SA is not in the kernel.
    pub algorithm: Option<String>,
    /// UDP source and destination port; absent if ESP is not encapsulated in UDP.
    pub encap: Option<(u16, u16)>,
    /// Whether the kernel has the SA.
    pub in_kernel: bool,
}

/// A policy that the kernel should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyEntry {
    /// The direction: `in`, `out` or `fwd`.
    pub direction: String,
    /// Network of the packets' sources.
    pub source: IpNetwork,
    /// Network of the packets' destinations.
    pub destination: IpNetwork,
    /// Priority; the policy with the smallest number applies.
    pub priority: u32,
    /// `allow` or `block`.
    pub action: String,
    /// The template; absent from policies that allow unencrypted packets.
    pub template: Option<TemplateEntry>,
}

/// Template of a policy: ESP, without SPI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateEntry {
    /// Reqid of the SAs.
    pub reqid: u32,
    /// Tunnel source; absent for any, and in transport mode.
    pub source: Option<IpAddr>,
    /// Tunnel destination; absent for any, and in transport mode.
    pub destination: Option<IpAddr>,
}
