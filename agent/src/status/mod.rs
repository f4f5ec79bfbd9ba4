//! The document of `status --json`, and the table for eyes.

mod table;

pub use table::render;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::host::firewall::Refused;
use crate::host::{HostState, Obstacle};
use crate::incidents;
use crate::membership::ControllerStatus;

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Name of this node in the cluster; absent without a view.
    pub node: Option<String>,
    /// Its role.
    pub role: Option<String>,
    /// Version of the view in force.
    pub view_version: Option<u64>,
    /// How it stands with the controller; absent on a plain IKEv2 daemon.
    #[serde(rename = "cloud")]
    pub controller: Option<ControllerStatus>,
    /// One a peer, by name.
    pub peers: Vec<PeerReport>,
    /// SAs that the kernel should have: what `ip xfrm state` shows with reqids from 0xec000000 to
    /// 0xecffffff, reservations (no algorithm) left out.
    pub states: Vec<StateEntry>,
    /// Policies that the kernel should have: what `ip xfrm policy` shows with such reqids, or with
    /// such an index.
    pub policies: Vec<PolicyEntry>,
    /// Routes, addresses, firewall.
    pub host: HostState,
    /// What stands in the way of pods' packets, with the command against it.
    #[serde(default)]
    pub obstacles: Vec<Obstacle>,
    /// What the firewall has dropped since it was last replaced.
    #[serde(default)]
    pub refused: Vec<Refused>,
    /// What had to be repaired, what is in the way, what went wrong; oldest first.
    pub journal: Vec<incidents::Entry>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Our name for it.
    pub name: String,
    /// `view` or `configuration`.
    pub origin: String,
    /// `idle`, `connecting`, `waiting` (for the next attempt) or `up`.
    pub phase: String,
    /// Joins its policies and SAs.
    pub reqid: Option<u32>,
    /// Where it is looked for.
    pub endpoints: Vec<String>,
    /// Its IKE SAs.
    pub ike_sas: Vec<IkeStatus>,
    /// Its CHILD_SAs.
    pub child_sas: Vec<ChildStatus>,
    /// The latest failure since the last success.
    pub last_error: Option<String>,
}

/// An IKE SA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeStatus {
    /// Initiator's SPI, 16 hexadecimal digits.
    pub initiator_spi: String,
    /// Responder's SPI, 16 hexadecimal digits.
    pub responder_spi: String,
    /// Our address and port.
    pub local: String,
    /// The peer's address and port.
    pub remote: String,
    /// Whether we began it.
    pub initiator: bool,
    /// What was negotiated.
    pub proposal: String,
    /// How the peer proved itself.
    pub authentication: String,
    /// A NAT (or forced detection) before us.
    pub nat_local: bool,
    /// A NAT before the peer.
    pub nat_remote: bool,
    /// RFC 3339.
    pub since: String,
    /// Since the last authentic message.
    pub heard_seconds_ago: u64,
    /// Until it is made anew.
    pub renewed_in_seconds: u64,
}

/// A CHILD_SA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildStatus {
    /// `0x` and 8 hexadecimal digits, as `ip xfrm state` writes it.
    pub inbound_spi: String,
    /// Likewise.
    pub outbound_spi: String,
    /// In the RFC's words.
    pub cipher: String,
    /// Extended sequence numbers.
    pub esn: bool,
    /// ESP travels in UDP.
    pub encapsulated: bool,
    /// Our end.
    pub local: String,
    /// The peer's end.
    pub remote: String,
    /// Negotiated for our side.
    pub local_selectors: Vec<IpNetwork>,
    /// Negotiated for the peer's side.
    pub remote_selectors: Vec<IpNetwork>,
    /// `in-use`, `successor` or `lingering`.
    pub usage: String,
    /// RFC 3339.
    pub since: String,
    /// Through the inbound SA; absent where the kernel has none.
    pub received: Option<Cell>,
    /// Through the outbound SA; absent where the kernel has none.
    pub sent: Option<Cell>,
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Packets.
    pub packets: u64,
    /// Bytes, without ESP's own.
    pub bytes: u64,
}

/// An SA that the kernel should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateEntry {
    /// Outer source.
    pub source: IpAddr,
    /// Outer destination.
    pub destination: IpAddr,
    /// `esp`.
    pub protocol: String,
    /// `0x` and 8 hexadecimal digits.
    pub spi: String,
    /// Its reqid.
    pub reqid: u32,
    /// `tunnel`.
    pub mode: String,
    /// `in` or `out`.
    pub direction: String,
    /// The kernel's name of the cipher.
    pub algorithm: Option<String>,
    /// UDP source and destination port.
    pub encap: Option<(u16, u16)>,
    /// Whether it was there when the status was made.
    pub in_kernel: bool,
}

/// A policy that the kernel should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyEntry {
    /// `in`, `out` or `fwd`.
    pub direction: String,
    /// Packets' source.
    pub source: IpNetwork,
    /// Packets' destination.
    pub destination: IpNetwork,
    /// The smaller number wins.
    pub priority: u32,
    /// `allow` or `block`.
    pub action: String,
    /// Absent on allows in clear.
    pub template: Option<TemplateEntry>,
}

/// A policy's template: ESP in tunnel mode, without SPI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateEntry {
    /// Reqid of the SAs.
    pub reqid: u32,
    /// Tunnel source; absent for any.
    pub source: Option<IpAddr>,
    /// Tunnel destination; absent for any.
    pub destination: Option<IpAddr>,
}
