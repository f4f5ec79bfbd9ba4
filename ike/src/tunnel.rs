//! The CHILD_SAs of one peer, whichever IKE SA they belong to: which one is sent with, which ones
//! linger, and the events that keep the kernel in step without a gap. Knows nothing of messages.
//!
//! At any time at most one outbound SA of a peer is in the kernel; inbound ones may be several.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::PeerName;
use crate::event::{ChildId, ChildSa, DownReason, Event, OutboundSwitch};
use crate::output::Output;
use crate::time::Instant;

/// Names an IKE SA within this endpoint: our SPI.
pub(crate) type Spi = u64;

/// A CHILD_SA.
#[derive(Debug)]
pub(crate) struct Child {
    /// What was negotiated.
    pub(crate) sa: Arc<ChildSa>,
    /// Our SPI of the IKE SA that it belongs to.
    pub(crate) owner: Spi,
    /// Since when.
    pub(crate) established: Instant,
    /// When it is to be rekeyed; `None`: never, or it is being replaced already.
    pub(crate) rekey: Option<Instant>,
    /// It lost against another of the same age and is only there until its initiator deletes it.
    pub(crate) redundant: bool,
    /// Set when the IKE SA has no more part in it.
    lingering: Option<Lingering>,
}

#[derive(Debug)]
struct Lingering {
    until: Instant,
    reason: DownReason,
}

/// What a CHILD_SA is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChildUse {
    /// Both directions: its outbound SA is the one in the kernel.
    InUse,
    /// Inbound only: outbound follows when the peer is known to be ready.
    Successor,
    /// Inbound only, for packets still under way.
    Lingering,
}

/// How a CHILD_SA comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// With a new IKE SA, the peer being ready for it: it is sent with from now on.
    Ready,
    /// With a new IKE SA, the peer not being ready yet (or the IKE SA being the redundant of two):
    /// another goes on being sent with, if there is one.
    Waiting,
    /// Instead of another, by an exchange that we began: it is sent with from now on.
    RekeyedByUs(ChildId),
    /// Instead of another, by an exchange that the peer began: the switch follows.
    RekeyedByPeer(ChildId),
}

/// All CHILD_SAs of a peer.
#[derive(Debug)]
pub(crate) struct Tunnel {
    peer: PeerName,
    children: BTreeMap<ChildId, Child>,
    outbound: Option<ChildId>,
}

impl Tunnel {
    /// None.
    pub(crate) fn new(peer: PeerName) -> Self {
        Self { peer, children: BTreeMap::new(), outbound: None }
    }

    /// The CHILD_SA that is sent with.
    pub(crate) fn outbound(&self) -> Option<ChildId> {
        self.outbound
    }

    /// A CHILD_SA that an IKE SA still has part in.
    pub(crate) fn live(&self, id: ChildId) -> Option<&Child> {
        self.children.get(&id).filter(|child| child.lingering.is_none())
    }

    /// As [`Self::live`].
    pub(crate) fn live_mut(&mut self, id: ChildId) -> Option<&mut Child> {
        self.children.get_mut(&id).filter(|child| child.lingering.is_none())
    }

    /// All that an IKE SA has part in.
    pub(crate) fn children_of(&self, owner: Spi) -> impl Iterator<Item = (ChildId, &Child)> {
        self.children
            .iter()
            .filter(move |(_, child)| child.owner == owner && child.lingering.is_none())
            .map(|(id, child)| (*id, child))
    }

    /// Names of all that an IKE SA has part in.
    pub(crate) fn ids_of(&self, owner: Spi) -> Vec<ChildId> {
        self.children_of(owner).map(|(id, _)| id).collect()
    }

    /// Names of all that came with an IKE SA, those that linger included.
    pub(crate) fn ids_with_lingering(&self, owner: Spi) -> Vec<ChildId> {
        self.children.iter().filter(|(_, child)| child.owner == owner).map(|(id, _)| *id).collect()
    }

    /// The live CHILD_SA of an IKE SA that the peer receives with this SPI.
    pub(crate) fn by_outbound_spi(&self, owner: Spi, spi: u32) -> Option<ChildId> {
        self.children_of(owner).find(|(_, child)| child.sa.outbound_spi == spi).map(|(id, _)| id)
    }

    /// All, those that linger included, with their use.
    pub(crate) fn all(&self) -> impl Iterator<Item = (ChildUse, &Child)> {
        self.children.iter().map(|(id, child)| {
            let usage = match (&child.lingering, self.outbound == Some(*id)) {
                (Some(_), _) => ChildUse::Lingering,
                (None, true) => ChildUse::InUse,
                (None, false) => ChildUse::Successor,
            };
            (usage, child)
        })
    }

    /// Takes a new CHILD_SA.
    pub(crate) fn add(
        &mut self,
        sa: ChildSa,
        owner: Spi,
        arrival: Arrival,
        rekey: Option<Instant>,
        now: Instant,
        out: &mut Output,
    ) -> ChildId {
        let id = sa.id;
        let sa = Arc::new(sa);
        let child = Child { sa: Arc::clone(&sa), owner, established: now, rekey, redundant: false, lingering: None };
        self.children.insert(id, child);
        let peer = self.peer.clone();
        let (old, ready) = match arrival {
            Arrival::Ready => (self.outbound, true),
            Arrival::Waiting => (self.outbound, false),
            // What is replaced is what is sent with, unless it belongs to the redundant of two IKE SAs:
            // then nothing is switched.
            Arrival::RekeyedByUs(old) => (self.outbound, self.outbound == Some(old)),
            Arrival::RekeyedByPeer(_) => (self.outbound, false),
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
            self.outbound = Some(id);
        }
        out.event(event);
        id
    }

    /// Sends with this live CHILD_SA from now on.
    pub(crate) fn switch_to(&mut self, id: ChildId, out: &mut Output) {
        if self.outbound == Some(id) {
            return;
        }
        let Some(new) = self.live(id).map(|child| Arc::clone(&child.sa)) else {
            return;
        };
        if let Some(old) = self.outbound {
            out.event(Event::OutboundSwitch { peer: self.peer.clone(), old, new });
        }
        self.outbound = Some(id);
    }

    /// The IKE SA has no more part in this CHILD_SA. Where another can be sent with, that is done,
    /// and this one lingers so that what is under way still arrives; otherwise it goes at once.
    /// `linger` of zero: it goes at once in any case.
    pub(crate) fn retire(&mut self, id: ChildId, linger: Duration, reason: DownReason, now: Instant, out: &mut Output) {
        if self.live(id).is_none() {
            return;
        }
        if self.outbound == Some(id)
            && let Some(successor) = self.successor(id)
        {
            self.switch_to(successor, out);
        }
        if self.outbound == Some(id) || linger.is_zero() {
            self.remove(id, reason, out);
        } else if let Some(child) = self.children.get_mut(&id) {
            child.lingering = Some(Lingering { until: now + linger, reason });
        }
    }

    /// This CHILD_SA goes at once, whether it lives or lingers; another is sent with where there is
    /// one.
    pub(crate) fn remove_at_once(&mut self, id: ChildId, reason: DownReason, out: &mut Output) {
        if self.outbound == Some(id)
            && let Some(successor) = self.successor(id)
        {
            self.switch_to(successor, out);
        }
        if self.children.contains_key(&id) {
            self.remove(id, reason, out);
        }
    }

    /// Who is sent with when `leaving` goes: of those that live, one that has not lost, of the same
    /// IKE SA, the newest.
    fn successor(&self, leaving: ChildId) -> Option<ChildId> {
        let owner = self.children.get(&leaving)?.owner;
        let living = self.children.iter().filter(|(id, child)| **id != leaving && child.lingering.is_none());
        living.max_by_key(|(_, child)| (!child.redundant, child.owner == owner, child.established)).map(|(id, _)| *id)
    }

    fn remove(&mut self, id: ChildId, reason: DownReason, out: &mut Output) {
        self.children.remove(&id);
        if self.outbound == Some(id) {
            self.outbound = None;
        }
        out.event(Event::ChildDown { peer: self.peer.clone(), child: id, reason });
    }

    /// Everything goes at once, that which lingers included.
    pub(crate) fn clear(&mut self, reason: DownReason, out: &mut Output) {
        let ids: Vec<ChildId> = self.children.keys().copied().collect();
        for id in ids {
            self.remove(id, reason, out);
        }
    }

    /// Hands the live CHILD_SAs of one IKE SA to the one that replaces it (RFC 7296 2.18).
    pub(crate) fn move_to(&mut self, from: Spi, to: Spi) {
        for child in self.children.values_mut().filter(|child| child.owner == from && child.lingering.is_none()) {
            child.owner = to;
        }
    }

    /// When the next one has lingered long enough.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.children.values().filter_map(|child| child.lingering.as_ref().map(|lingering| lingering.until)).min()
    }

    /// Ends what has lingered long enough.
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
