//! The CHILD_SAs of one peer, under all of its IKE SAs: with which of them we send, which of them
//! linger, and the events that update the kernel without interrupting traffic. This module does not
//! handle messages.
//!
//! The events keep at most one outbound SA of each purpose in the kernel. There may be several
//! inbound SAs of one purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use litemap::LiteMap;

use crate::config::PeerName;
use crate::create_child_rate::CreateChildRate;
use crate::event::{ChildId, ChildSa, DownReason, Event, OutboundSwitch};
use crate::output::Output;
use crate::purpose::{ChildName, Purpose};
use crate::time::Instant;

/// Our SPI of an IKE SA. It identifies the IKE SA within this endpoint.
pub(crate) type Spi = u64;

/// Maximum number of lingering CHILD_SAs of one purpose. An honest peer has one or two. At the
/// limit, the oldest CHILD_SA is removed.
const MAX_LINGERING: usize = 8;

/// A CHILD_SA with its deadlines and state.
#[derive(Debug)]
pub(crate) struct Child {
    /// SPIs, keys, addresses and selectors.
    pub(crate) sa: Arc<ChildSa>,
    /// Our SPI of the IKE SA that the CHILD_SA belongs to.
    pub(crate) owner: Spi,
    /// When the CHILD_SA was established.
    pub(crate) established: Instant,
    /// When to rekey the CHILD_SA. `None` if it is never rekeyed, or if a replacement is already
    /// being made.
    pub(crate) rekey: Option<Instant>,
    /// When the CHILD_SA expires if it has not been rekeyed.
    pub(crate) end: Instant,
    /// Whether this is the redundant CHILD_SA of two simultaneous rekeys (RFC 7296 2.8.1). It stays
    /// until its initiator deletes it.
    pub(crate) redundant: bool,
    /// Set when the IKE SA of the CHILD_SA has released it.
    lingering: Option<Lingering>,
}

#[derive(Debug)]
struct Lingering {
    until: Instant,
    reason: DownReason,
}

/// When to rekey a CHILD_SA, and when it expires if the rekey fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildLifetime {
    pub(crate) rekey: Instant,
    pub(crate) end: Instant,
}

/// How a CHILD_SA is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChildUse {
    /// Both directions. Its outbound SA is installed in the kernel.
    InUse,
    /// Inbound only. We send with it once the peer is known to be ready.
    Successor,
    /// Inbound only, for packets that are still in the network.
    Lingering,
}

/// How a CHILD_SA is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// With a new IKE SA, and the peer is ready. We send with the CHILD_SA from now on.
    Ready,
    /// With a new IKE SA, but the peer is not ready yet or the IKE SA is redundant. We continue to
    /// send with another CHILD_SA of the same purpose, if there is one.
    Waiting,
    /// In place of another CHILD_SA, by an exchange that we initiated. We send with the new
    /// CHILD_SA from now on.
    RekeyedByUs(ChildId),
    /// In place of another CHILD_SA, by an exchange that the peer initiated. We switch to the new
    /// CHILD_SA later.
    RekeyedByPeer(ChildId),
}

/// All CHILD_SAs of a peer.
#[derive(Debug)]
pub(crate) struct ChildSas {
    peer: PeerName,
    /// Usually one, and a second one while it is rekeyed. A node of a `BTreeMap` has room for
    /// eleven, which is most of a kilobyte for each of many peers.
    children: LiteMap<ChildId, Child>,
    /// For each purpose, the CHILD_SA with which we send.
    outbound: LiteMap<Purpose, ChildId>,
    /// The peer's requests for CHILD_SAs and rekeys.
    pub(crate) requests: CreateChildRate,
}

impl ChildSas {
    /// Creates an empty set of CHILD_SAs for a peer.
    pub(crate) fn new(peer: PeerName) -> Self {
        Self { peer, children: LiteMap::new(), outbound: LiteMap::new(), requests: CreateChildRate::default() }
    }

    /// Returns the CHILD_SA of this purpose with which we send.
    pub(crate) fn outbound(&self, purpose: &Purpose) -> Option<ChildId> {
        self.outbound.get(purpose).copied()
    }

    /// Returns the CHILD_SAs with which we send, one of each purpose.
    pub(crate) fn all_outbound(&self) -> impl Iterator<Item = ChildId> {
        self.outbound.values().copied()
    }

    /// Returns the CHILD_SAs of this configured child with which we send: one for all of its
    /// traffic, or one for each part.
    pub(crate) fn outbound_named(&self, child: &ChildName) -> impl Iterator<Item = ChildId> {
        self.outbound.iter().filter(move |(purpose, _)| purpose.child == *child).map(|(_, id)| *id)
    }

    /// Returns whether we send with any CHILD_SA of this peer.
    pub(crate) fn sends(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Returns whether we send with a CHILD_SA of this configured child, either for all of its
    /// traffic or for a part.
    pub(crate) fn sends_for(&self, child: &ChildName) -> bool {
        self.outbound.keys().any(|purpose| purpose.child == *child)
    }

    fn is_outbound(&self, id: ChildId) -> bool {
        self.children.get(&id).is_some_and(|child| self.outbound(&child.sa.purpose) == Some(id))
    }

    /// Returns a CHILD_SA if it is live, that is, if its IKE SA has not released it.
    pub(crate) fn live(&self, id: ChildId) -> Option<&Child> {
        self.children.get(&id).filter(|child| child.lingering.is_none())
    }

    /// Returns the CHILD_SA of [`Self::live`] as mutable.
    pub(crate) fn live_mut(&mut self, id: ChildId) -> Option<&mut Child> {
        self.children.get_mut(&id).filter(|child| child.lingering.is_none())
    }

    /// Returns the live CHILD_SAs of an IKE SA.
    pub(crate) fn children_of(&self, owner: Spi) -> impl Iterator<Item = (ChildId, &Child)> {
        self.children
            .iter()
            .filter(move |(_, child)| child.owner == owner && child.lingering.is_none())
            .map(|(id, child)| (*id, child))
    }

    /// Returns the identifiers of the live CHILD_SAs of an IKE SA.
    pub(crate) fn ids_of(&self, owner: Spi) -> Vec<ChildId> {
        self.children_of(owner).map(|(id, _)| id).collect()
    }

    /// Returns the identifiers of the live CHILD_SAs of an IKE SA that have this purpose.
    pub(crate) fn ids_for(&self, owner: Spi, purpose: &Purpose) -> Vec<ChildId> {
        self.children_of(owner).filter(|(_, child)| child.sa.purpose == *purpose).map(|(id, _)| id).collect()
    }

    /// Returns whether an IKE SA has a live CHILD_SA that serves this purpose.
    pub(crate) fn serves(&self, owner: Spi, purpose: &Purpose) -> bool {
        self.children_of(owner).any(|(_, child)| child.sa.purpose.serves(purpose))
    }

    /// Returns the purposes of the live CHILD_SAs of an IKE SA.
    pub(crate) fn purposes_of(&self, owner: Spi) -> BTreeSet<&Purpose> {
        self.children_of(owner).map(|(_, child)| &child.sa.purpose).collect()
    }

    /// Returns the identifiers of all CHILD_SAs of an IKE SA, including those that linger.
    pub(crate) fn ids_with_lingering(&self, owner: Spi) -> Vec<ChildId> {
        self.children.iter().filter(|(_, child)| child.owner == owner).map(|(id, _)| *id).collect()
    }

    /// Returns the live CHILD_SA of an IKE SA that has this outbound SPI.
    pub(crate) fn by_outbound_spi(&self, owner: Spi, spi: u32) -> Option<ChildId> {
        self.children_of(owner).find(|(_, child)| child.sa.outbound_spi == spi).map(|(id, _)| id)
    }

    /// Returns all CHILD_SAs, including those that linger, with their use.
    pub(crate) fn all(&self) -> impl Iterator<Item = (ChildUse, &Child)> {
        self.children.iter().map(|(id, child)| {
            let usage = match (&child.lingering, self.outbound(&child.sa.purpose) == Some(*id)) {
                (Some(_), _) => ChildUse::Lingering,
                (None, true) => ChildUse::InUse,
                (None, false) => ChildUse::Successor,
            };
            (usage, child)
        })
    }

    /// Adds a new CHILD_SA and reports it.
    pub(crate) fn add(
        &mut self,
        sa: ChildSa,
        owner: Spi,
        arrival: Arrival,
        lifetime: ChildLifetime,
        now: Instant,
        out: &mut Output,
    ) -> ChildId {
        let id = sa.id;
        let sa = Arc::new(sa);
        let child = Child {
            sa: Arc::clone(&sa),
            owner,
            established: now,
            rekey: Some(lifetime.rekey),
            end: lifetime.end,
            redundant: false,
            lingering: None,
        };
        insert(&mut self.children, id, child);
        let peer = self.peer.clone();
        let purpose = if mutation!("purposes_mixed_up") { self.outbound.keys().next() } else { None };
        let purpose = purpose.unwrap_or(&sa.purpose).clone();
        let old = self.outbound(&purpose);
        let ready = match arrival {
            Arrival::Ready => true,
            Arrival::Waiting => false,
            // Normally we send with the replaced CHILD_SA and switch to the new one. If the
            // replaced CHILD_SA belongs to a redundant IKE SA, we do not send with it, and do not
            // switch.
            Arrival::RekeyedByUs(replaced) => old == Some(replaced),
            //= RFC 7296 2.8 REQUIRED 11: the responder sends on the old SA
            Arrival::RekeyedByPeer(_) => mutation!("sent_before_peer_is_ready"),
        };
        let rekeyed = matches!(arrival, Arrival::RekeyedByUs(_) | Arrival::RekeyedByPeer(_));
        let event = match old {
            None => Event::ChildUp { peer, child: sa, replaces: None },
            Some(old) if ready && !rekeyed => Event::ChildUp { peer, child: sa, replaces: Some(old) },
            Some(old) => {
                let switch = if ready { OutboundSwitch::Now } else { OutboundSwitch::Later };
                Event::ChildRekeyed { peer, old, new: sa, switch }
            }
        };
        if old.is_none() || ready {
            insert(&mut self.outbound, purpose, id);
        }
        out.event(event);
        id
    }

    /// Starts sending with this live CHILD_SA.
    pub(crate) fn switch_to(&mut self, id: ChildId, out: &mut Output) {
        let Some(new) = self.live(id).map(|child| Arc::clone(&child.sa)).filter(|_| !self.is_outbound(id)) else {
            return;
        };
        if let Some(old) = insert(&mut self.outbound, new.purpose.clone(), id) {
            out.event(Event::OutboundSwitch { peer: self.peer.clone(), old, new });
        }
    }

    /// Handles the release of this CHILD_SA by its IKE SA. If we can send with another CHILD_SA, we
    /// switch to it, and the released one lingers so that packets in the network still arrive.
    /// Otherwise, or if `linger` is zero, the released one is removed immediately.
    pub(crate) fn retire(&mut self, id: ChildId, linger: Duration, reason: DownReason, now: Instant, out: &mut Output) {
        if self.live(id).is_none() {
            return;
        }
        if self.is_outbound(id)
            && let Some(successor) = self.successor(id)
        {
            self.switch_to(successor, out);
        }
        if self.is_outbound(id) || linger.is_zero() || mutation!("nothing_lingers") {
            self.remove(id, reason, out);
        } else if let Some(child) = self.children.get_mut(&id) {
            //= RFC 7296 2.8.1 MUST 2: packets come through either SA
            child.lingering = Some(Lingering { until: now + linger, reason });
            let purpose = child.sa.purpose.clone();
            self.limit_lingering(&purpose, out);
        }
    }

    /// Removes the CHILD_SAs that have lingered longest, down to [`MAX_LINGERING`], so that a peer
    /// that rekeys without pause cannot fill the memory.
    fn limit_lingering(&mut self, purpose: &Purpose, out: &mut Output) {
        let mut lingering: Vec<(Instant, ChildId, DownReason)> = self
            .children
            .iter()
            .filter(|(_, child)| child.sa.purpose == *purpose)
            .filter_map(|(id, child)| {
                child.lingering.as_ref().map(|lingering| (lingering.until, *id, lingering.reason))
            })
            .collect();
        lingering.sort_by_key(|(until, id, _)| (*until, *id));
        let excess = lingering.len().saturating_sub(MAX_LINGERING);
        for (_, id, reason) in lingering.into_iter().take(excess) {
            self.remove(id, reason, out);
        }
    }

    /// Removes this CHILD_SA immediately, whether it is live or lingers. If we sent with it,
    /// switches to another one if possible.
    pub(crate) fn remove_at_once(&mut self, id: ChildId, reason: DownReason, out: &mut Output) {
        if self.is_outbound(id)
            && let Some(successor) = self.successor(id)
        {
            self.switch_to(successor, out);
        }
        if self.children.contains_key(&id) {
            self.remove(id, reason, out);
        }
    }

    /// Returns the live CHILD_SA of the same purpose with which to send when `leaving` is removed.
    /// Prefers CHILD_SAs that are not redundant, then those of the same IKE SA, then the newest.
    fn successor(&self, leaving: ChildId) -> Option<ChildId> {
        let Child { owner, sa, .. } = self.children.get(&leaving)?;
        let living = self.children.iter().filter(|(id, child)| **id != leaving && child.lingering.is_none());
        let same = living.filter(|(_, child)| child.sa.purpose == sa.purpose);
        same.max_by_key(|(_, child)| (!child.redundant, child.owner == *owner, child.established)).map(|(id, _)| *id)
    }

    fn remove(&mut self, id: ChildId, reason: DownReason, out: &mut Output) {
        //= RFC 7296 1.4.1 MUST 1: both directions go
        self.children.remove(&id);
        self.outbound.retain(|_, outbound| *outbound != id);
        shrink(&mut self.children);
        shrink(&mut self.outbound);
        out.event(Event::ChildDown { peer: self.peer.clone(), child: id, reason });
    }

    /// Removes all CHILD_SAs immediately, including those that linger.
    pub(crate) fn clear(&mut self, reason: DownReason, out: &mut Output) {
        let ids: Vec<ChildId> = self.children.keys().copied().collect();
        for id in ids {
            self.remove(id, reason, out);
        }
    }

    /// Returns the newest live CHILD_SA of each purpose of an IKE SA. Redundant CHILD_SAs do not
    /// count.
    pub(crate) fn newest_of(&self, owner: Spi) -> Vec<ChildId> {
        let mut newest: BTreeMap<&Purpose, (Instant, ChildId)> = BTreeMap::new();
        for (id, child) in self.children_of(owner).filter(|(_, child)| !child.redundant) {
            let known = newest.entry(&child.sa.purpose).or_insert((child.established, id));
            *known = (child.established, id).max(*known);
        }
        newest.into_values().map(|(_, id)| id).collect()
    }

    /// Moves the live CHILD_SAs of one IKE SA to the IKE SA that replaces it (RFC 7296 2.18). If a
    /// CHILD_SA was being rekeyed on the old IKE SA, its rekey starts again at `rekey`.
    pub(crate) fn move_to(&mut self, from: Spi, to: Spi, rekey: Instant) {
        let moving = self.ids_of(from);
        for id in &moving {
            if let Some(child) = self.children.get_mut(id) {
                //= RFC 7296 2.8 REQUIRED 5: CHILD_SAs move
                child.owner = to;
            }
        }
        for id in self.newest_of(to) {
            if let Some(child) = self.children.get_mut(&id).filter(|_| moving.contains(&id)) {
                child.rekey.get_or_insert(rekey);
            }
        }
    }

    /// Returns the earliest time at which a CHILD_SA has lingered long enough.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.children.values().filter_map(|child| child.lingering.as_ref().map(|lingering| lingering.until)).min()
    }

    /// Removes the CHILD_SAs that have lingered long enough.
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Output) {
        let over = |(id, child): (&ChildId, &Child)| {
            child.lingering.as_ref().filter(|lingering| lingering.until <= now).map(|lingering| (*id, lingering.reason))
        };
        let over: Vec<(ChildId, DownReason)> = self.children.iter().filter_map(over).collect();
        for (id, reason) in over {
            self.remove(id, reason, out);
        }
    }
}

/// Adds an entry to a map that usually has one entry. It then has room for no more.
fn insert<K: Ord, V>(map: &mut LiteMap<K, V>, key: K, value: V) -> Option<V> {
    if map.is_empty() {
        *map = LiteMap::with_capacity(1);
    }
    map.insert(key, value)
}

/// Gives back the room for further entries if at most one is left.
fn shrink<K: Ord, V>(map: &mut LiteMap<K, V>) {
    if map.len() <= 1 {
        let mut exact = LiteMap::with_capacity(map.len());
        for (key, value) in std::mem::take(map) {
            exact.insert(key, value);
        }
        *map = exact;
    }
}
