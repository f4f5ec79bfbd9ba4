//! Reads the data for a diagnosis, without changing anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use edge_types::error::with_causes;
use tokio::time::{Instant, sleep_until};

use super::ike_probe::{self, ProbedAddress};
use super::port_holders::{self, HeldPort};
use super::route::{self, Route};
use super::target::Target;
use crate::admin;
use crate::check;
use crate::clock::{CertificateClock, ClockReadings};
use crate::config::Config;
use crate::status::{ChildStatus, Counters, PeerReport, Status};

/// Maximum number of peers whose addresses are probed.
pub(super) const MAX_PROBED_PEERS: usize = 16;
/// Maximum number of addresses that are probed for each peer.
const MAX_ADDRESSES: usize = 8;
/// Maximum number of peers of which the agent is asked twice for the packets that its tunnels
/// carry.
pub(super) const MAX_WATCHED_PEERS: usize = 1000;
/// Minimum time between both questions.
const WATCHED: Duration = Duration::from_secs(1);
/// UDP ports for IKE (RFC 7296 section 2, RFC 3948).
const PORTS: [u16; 2] = [500, 4500];

/// The data that `judgement` evaluates.
#[derive(Debug)]
pub(super) struct Facts {
    /// Findings about the configuration and its files.
    pub(super) configuration: check::Report,
    /// The readings of the clocks; absent if the agent is too old to report them.
    pub(super) clock: Option<ClockReadings>,
    /// The running agent's status, or the reason why it is not available.
    pub(super) status: Result<Box<Status>, String>,
    /// The agent's UDP ports that other programs hold. Empty if an agent answers.
    pub(super) held_ports: Vec<HeldPort>,
    /// The peer or address about which the operator asked.
    pub(super) target: Option<Target>,
    pub(super) disk: Result<Disk, String>,
    /// The results of the probes, by peer.
    pub(super) probes: BTreeMap<String, Vec<ProbedAddress>>,
    /// The routes to the probed addresses, or the reason why there is none.
    pub(super) routes: BTreeMap<IpAddr, Result<Route, String>>,
    /// What the agent saw while the diagnosis ran; `None` if no agent answers.
    pub(super) watch: Option<Watch>,
    /// XFRM's counters of dropped packets, or the reason why they cannot be read.
    pub(super) drops: Result<Vec<Drops>, String>,
}

/// A comparison of two statuses, at least [`WATCHED`] apart.
#[derive(Debug)]
pub(super) enum Watch {
    Seen {
        /// The packets that tunnels carried in between, by the inbound SPI of the CHILD_SA.
        carried: BTreeMap<String, Carried>,
        dropped: Vec<FirewallDrops>,
    },
    /// There are more than [`MAX_WATCHED_PEERS`].
    TooManyPeers,
    /// The agent did not answer again.
    Failed(String),
}

/// A counter of the firewall that is not 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FirewallDrops {
    pub(super) packets: u64,
    /// Number of packets that were dropped while the diagnosis ran.
    pub(super) now: u64,
    /// Description of these packets.
    pub(super) what: String,
}

/// The packets that a CHILD_SA carried while the diagnosis ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// The free space in the file system of the state directory.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) directory: PathBuf,
    pub(super) free_bytes: u64,
    pub(super) read_only: bool,
}

/// A counter in `/proc/net/xfrm_stat` that is not 0.
#[derive(Debug, Clone)]
pub(super) struct Drops {
    pub(super) counter: String,
    pub(super) packets: u64,
    /// Number of packets that were dropped while the diagnosis ran.
    pub(super) now: u64,
}

/// Reads the data. `about` is a peer's name or an address.
///
/// # Errors
/// If the agent runs and has no such peer.
pub(super) async fn gather(config: &Config, about: Option<&str>) -> Result<Facts, String> {
    let (begun, before) = (Instant::now(), edge_xfrm::stat::read());
    let status = admin::client::request_status(&config.admin_socket()).map_err(|error| with_causes(error.as_ref()));
    let target = match (about, &status) {
        (Some(about), Ok(status)) => Some(Target::find(about, status, &config.peers)?),
        _ => None,
    };
    let probed = status.as_ref().map_or(vec![], |status| to_probe(status, target.as_ref()));
    let mut probes = BTreeMap::new();
    let addresses: Vec<SocketAddr> = probed.iter().flat_map(|(_, addresses)| addresses.clone()).collect();
    let mut outcomes = ike_probe::probe(&addresses).await.into_iter();
    let remotes: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect::<BTreeSet<_>>().into_iter().collect();
    let routes = remotes.iter().copied().zip(route::routes(&remotes).await).collect();
    for (peer, addresses) in probed {
        probes.insert(peer, outcomes.by_ref().take(addresses.len()).collect());
    }
    let watch = match &status {
        Err(_) => None,
        Ok(status) if status.peers.len() > MAX_WATCHED_PEERS => Some(Watch::TooManyPeers),
        Ok(status) => {
            sleep_until(begun + WATCHED).await;
            let after = admin::client::request_status(&config.admin_socket());
            Some(after.map_or_else(
                |error| Watch::Failed(with_causes(error.as_ref())),
                |after| Watch::Seen { carried: carried(status, &after), dropped: dropped(status, &after) },
            ))
        }
    };
    let drops = match (before, edge_xfrm::stat::read()) {
        (Ok(before), Ok(after)) => Ok(drops(&before, after)),
        (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
    };
    let clock = status.as_ref().map_or_else(|_| Some(clock_without_agent(config)), |status| status.clock);
    Ok(Facts {
        clock,
        held_ports: if status.is_err() { port_holders::held([config.port, config.nat_port]) } else { vec![] },
        configuration: check::report(config, &CertificateClock::default()),
        status,
        target,
        disk: disk(config),
        probes,
        routes,
        watch,
        drops,
    })
}

/// Returns the packets that each CHILD_SA carried from one status to the other.
fn carried(before: &Status, after: &Status) -> BTreeMap<String, Carried> {
    let children = |status: &'_ Status| -> Vec<ChildStatus> {
        status.peers.iter().flat_map(|peer| peer.child_sas.iter().cloned()).collect()
    };
    let before: BTreeMap<String, ChildStatus> =
        children(before).into_iter().map(|child| (child.inbound_spi.clone(), child)).collect();
    let carried = children(after).into_iter().filter_map(|child| {
        let earlier = before.get(&child.inbound_spi)?;
        let more =
            |after: Option<Counters>, before: Option<Counters>| Some(after?.packets.saturating_sub(before?.packets));
        let received = more(child.received, earlier.received)?;
        let sent = more(child.sent, earlier.sent)?;
        Some((child.inbound_spi, Carried { received, sent }))
    });
    carried.collect()
}

/// Returns the firewall's counters in the later status, and by how much each has grown.
fn dropped(before: &Status, after: &Status) -> Vec<FirewallDrops> {
    let before: BTreeMap<&str, u64> =
        before.dropped.iter().map(|dropped| (dropped.counter.as_str(), dropped.packets)).collect();
    let grown = after.dropped.iter().map(|dropped| {
        let earlier = before.get(dropped.counter.as_str()).copied().unwrap_or(0);
        let now = dropped.packets.saturating_sub(earlier);
        FirewallDrops { packets: dropped.packets, now, what: dropped.what.clone() }
    });
    grown.collect()
}

/// Returns the peers to probe and their addresses: the target's peer, otherwise the peers that are
/// not up.
fn to_probe(status: &Status, target: Option<&Target>) -> Vec<(String, Vec<SocketAddr>)> {
    let chosen: Vec<&PeerReport> = match target {
        Some(target) => status.peers.iter().filter(|peer| target.peer() == Some(&peer.name)).collect(),
        None => status.peers.iter().filter(|peer| peer.phase != "up").collect(),
    };
    chosen.into_iter().take(MAX_PROBED_PEERS).map(|peer| (peer.name.clone(), addresses(peer))).collect()
}

/// Returns the addresses of a peer, each with both IKE ports, unless the peer uses other ports.
fn addresses(peer: &PeerReport) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for known in peer.endpoints.iter().filter_map(|endpoint| endpoint.parse::<SocketAddr>().ok()) {
        let both = PORTS.contains(&known.port());
        let ports: &[u16] = if both { &PORTS } else { &[known.port()] };
        for &port in ports {
            let address = SocketAddr::new(known.ip(), port);
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

/// Reads the clocks while no agent answers: the controller's time is not known then, but the time
/// in the state directory is a lower bound.
fn clock_without_agent(config: &Config) -> ClockReadings {
    let clock = CertificateClock::default();
    // The agent ignores a damaged file too.
    let _ = clock.read_floor(&config.state_dir);
    clock.readings()
}

fn disk(config: &Config) -> Result<Disk, String> {
    let directory = config.state_dir.clone();
    let found = rustix::fs::statvfs(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(Disk {
        directory,
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        read_only: found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

fn drops(before: &BTreeMap<String, u64>, after: BTreeMap<String, u64>) -> Vec<Drops> {
    let counted = after.into_iter().filter(|(_, packets)| *packets > 0);
    let drops = counted.map(|(counter, packets)| {
        let now = packets.saturating_sub(before.get(&counter).copied().unwrap_or(0));
        Drops { counter, packets, now }
    });
    drops.collect()
}
