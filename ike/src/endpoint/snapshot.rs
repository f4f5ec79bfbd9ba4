//! A snapshot of all peers and SAs, for `status` and for comparison with the kernel.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::peer::Peer;
use super::state::{DeadlineOwner, Endpoint, SaState};
use crate::address_assignment::AddressAssignment;
use crate::child_sas::ChildUse;
use crate::config::PeerName;
use crate::event::{ChildSa, IkeDetails, IkeId, PeerError};
use crate::purpose::Purpose;
use crate::sa::{IkeSa, Lifecycle};
use crate::time::Instant;

/// The status of one peer and of everything negotiated with it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Our name for the peer.
    pub name: PeerName,
    /// Whether the peer is up.
    pub phase: Phase,
    /// The IKE SAs: usually one, or two for a short time while one replaces the other.
    pub ike_sas: Vec<IkeStatus>,
    /// The CHILD_SAs, including lingering ones.
    pub children: Vec<ChildStatus>,
    /// The latest failure. A success clears it, unless a configured child has failed and was not
    /// negotiated since.
    pub last_error: Option<PeerError>,
    /// Number of the peer's rekeys and requests for CHILD_SAs that we refused since the peer was
    /// configured, because there were too many in a short time.
    pub requests_refused: u32,
}

/// Whether a peer is up and, if not, what is happening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No attempt is running or scheduled: the peer must initiate, or the owner terminated it.
    Idle,
    /// IKE_SA_INIT, IKE_AUTH or the creation of a CHILD_SA is in progress, or an attempt starts as
    /// soon as enough others have ended ([`crate::EndpointConfig::attempt_limit`]).
    Connecting,
    /// An attempt or the creation of a CHILD_SA failed, and the next attempt is delayed.
    Waiting {
        /// When the next attempt starts.
        until: Instant,
    },
    /// A CHILD_SA is up.
    Up,
}

/// An established IKE SA.
#[derive(Debug, Clone)]
pub struct IkeStatus {
    /// SPIs of both ends.
    pub ike: IkeId,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Whether we are the initiator of the IKE SA.
    pub initiator: bool,
    /// The negotiated parameters.
    pub details: IkeDetails,
    /// When the IKE SA was established.
    pub established: Instant,
    /// When the peer's last authentic message arrived.
    pub last_received: Instant,
    /// When the IKE SA will be rekeyed. `None` if a rekey is in progress, or if the peer refuses
    /// rekeys.
    pub rekey_at: Option<Instant>,
    /// When a new IKE SA, in which both ends authenticate again, must replace this one.
    pub reauthenticate_at: Instant,
}

/// A CHILD_SA and how it is used.
#[derive(Debug, Clone)]
pub struct ChildStatus {
    /// The negotiated parameters (`Debug` never shows the keys).
    pub sa: Arc<ChildSa>,
    /// How the CHILD_SA is used.
    pub usage: ChildUse,
    /// When the CHILD_SA was established.
    pub established: Instant,
}

impl Endpoint {
    /// Returns the peer, our address and the peer's address for each established IKE SA, and for a
    /// path that it checks (RFC 4555 3.7). Copies nothing else, so it is cheaper than
    /// [`Self::snapshot`].
    pub fn ike_addresses(&self) -> impl Iterator<Item = (&PeerName, SocketAddr, SocketAddr)> {
        let spis = self.peers.values().flat_map(|peer| peer.sas.iter().map(move |spi| (peer.name(), spi)));
        let established = spis.filter_map(|(name, spi)| match self.sas.get(spi) {
            Some(SaState::Established(_, sa)) => Some((name, sa)),
            _ => None,
        });
        established.flat_map(|(name, sa)| {
            let (used, checked) = (sa.addresses(), sa.message_addresses());
            let checked = Some(checked).filter(|checked| *checked != used);
            std::iter::once(used).chain(checked).map(move |(local, remote)| (name, local, remote))
        })
    }

    /// Returns the internal addresses that a peer has given us
    /// ([`AddressAssignment::Request`](crate::AddressAssignment)), those of the newest IKE SA last.
    pub fn received_addresses(&self, peer: &PeerName) -> Vec<IpAddr> {
        let asks = |peer: &&Peer| peer.profile.config.address_assignment == AddressAssignment::Request;
        let sas = self.peers.get(peer).filter(asks).into_iter().flat_map(|peer| &peer.sas);
        let mut addresses = Vec::new();
        for spi in sas {
            if let Some(SaState::Established(_, sa)) = self.sas.get(spi) {
                let of_sa = &sa.negotiated.internal_addresses;
                addresses.retain(|address| !of_sa.contains(address));
                addresses.extend(of_sa);
            }
        }
        addresses
    }

    /// Returns the local and the remote address of the peer's newest established IKE SA.
    pub fn path(&self, name: &PeerName) -> Option<(SocketAddr, SocketAddr)> {
        self.newest_sa(name).map(IkeSa::addresses)
    }

    /// Returns whether there is an established IKE SA with the peer, and nothing is known to have
    /// arrived in the newest one after `at`. Reports of ESP may be about packets that arrived a
    /// second before ([`Self::esp_received`]).
    pub fn is_silent_since(&self, name: &PeerName, at: Instant) -> bool {
        self.newest_sa(name).is_some_and(|sa| sa.is_silent_since(at))
    }

    /// Returns whether there is an established IKE SA with the peer, and something has arrived in
    /// the newest one after `at`.
    pub fn is_heard_since(&self, name: &PeerName, at: Instant) -> bool {
        self.newest_sa(name).is_some_and(|sa| !sa.is_silent_since(at))
    }

    /// Returns the phase of a peer; `None` if there is no such peer.
    pub fn phase(&self, name: &PeerName) -> Option<Phase> {
        self.peers.get(name).map(|peer| self.phase_of(peer))
    }

    /// Returns all peers with their SAs, by name.
    pub fn snapshot(&self) -> Vec<PeerStatus> {
        self.peers.values().map(|peer| self.status(peer)).collect()
    }

    /// Returns one peer with its SAs; `None` if there is no such peer.
    pub fn peer_status(&self, name: &PeerName) -> Option<PeerStatus> {
        self.peers.get(name).map(|peer| self.status(peer))
    }

    /// Returns the peers with `initiate` set that lack a configured CHILD_SA, and for which nothing
    /// that would create it is in progress or scheduled. There must never be such a peer. Tests
    /// check this after each change.
    #[doc(hidden)]
    pub fn stranded_peers(&self) -> Vec<PeerName> {
        let wanted = |peer: &&Peer| peer.config().initiate && !peer.terminated && !peer.config().remotes.is_empty();
        let lacks = |peer: &&Peer| {
            let mut missing = peer.config().children().filter(|child| !peer.child_sas.sends_for(&child.name));
            missing.any(|child| !self.brings_child(peer, &Purpose::whole(&child.name)))
        };
        let stranded = self.peers.values().filter(wanted).filter(lacks);
        stranded.map(|peer| peer.name().clone()).collect()
    }

    /// Returns whether something with a deadline will create this CHILD_SA: an attempt that is
    /// running or scheduled, or an IKE SA of the peer that will request the CHILD_SA or is about to
    /// end.
    fn brings_child(&self, peer: &Peer, purpose: &Purpose) -> bool {
        let name = peer.name();
        if self.waits_for_place(peer)
            || (peer.retry_at.is_some() && self.deadlines.has(&DeadlineOwner::Peer(name.clone())))
        {
            return true;
        }
        let attempts = peer.attempt.iter().flat_map(|attempt| attempt.initiating.iter().chain(&attempt.authenticating));
        let sas = peer
            .sas
            .iter()
            .filter(|spi| matches!(self.sas.get(spi), Some(SaState::Established(_, sa)) if sa.brings(purpose)));
        attempts.chain(sas).any(|spi| self.deadlines.has(&DeadlineOwner::Sa(*spi)))
    }

    /// Returns the phase of a peer without an attempt and without a CHILD_SA. An IKE SA of the peer
    /// may still create a CHILD_SA.
    fn phase_without_attempt(&self, peer: &Peer) -> Phase {
        let sas = peer.sas.iter().filter_map(|spi| match self.sas.get(spi) {
            Some(SaState::Established(_, sa)) if sa.brings_child() && sa.lifecycle() == Lifecycle::Active => Some(sa),
            _ => None,
        });
        let mut phase = Phase::Idle;
        for sa in sas {
            phase = sa.create_child_at().map_or(Phase::Connecting, |until| Phase::Waiting { until });
        }
        phase
    }

    fn phase_of(&self, peer: &Peer) -> Phase {
        match (peer.child_sas.sends(), &peer.attempt, peer.retry_at) {
            (true, ..) => Phase::Up,
            (false, Some(_), _) => Phase::Connecting,
            (false, None, Some(until)) => Phase::Waiting { until },
            (false, None, None) if self.waits_for_place(peer) => Phase::Connecting,
            (false, None, None) => self.phase_without_attempt(peer),
        }
    }

    fn status(&self, peer: &Peer) -> PeerStatus {
        let sas = peer.sas.iter().filter_map(|spi| match self.sas.get(spi) {
            Some(SaState::Established(_, sa)) => Some(sa),
            _ => None,
        });
        let ike_sas = sas.map(|sa| {
            let (local, remote) = sa.addresses();
            IkeStatus {
                ike: sa.ike(),
                local,
                remote,
                initiator: sa.initiator(),
                details: sa.details(),
                established: sa.established(),
                last_received: sa.last_received(),
                rekey_at: sa.rekey_at(),
                reauthenticate_at: sa.reauthenticate_at(),
            }
        });
        let children = peer.child_sas.all().map(|(usage, child)| ChildStatus {
            sa: Arc::clone(&child.sa),
            usage,
            established: child.established,
        });
        PeerStatus {
            name: peer.name().clone(),
            phase: self.phase_of(peer),
            ike_sas: ike_sas.collect(),
            children: children.collect(),
            last_error: peer.last_error.clone(),
            requests_refused: peer.child_sas.requests.refused(),
        }
    }
}
