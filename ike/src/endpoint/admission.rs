//! A new IKE SA among those that there are, and what is left when one goes.

use super::{Context, Endpoint, Environment, Slot, context};
use crate::config::PeerName;
use crate::event::{ChildSa, DownReason, Event, PeerError};
use crate::sa::{Begun, Closed, IkeSa, Standing, Task, Verdict};
use crate::time::Instant;
use crate::tunnel::{Arrival, Spi};

impl Begun {
    fn at(self) -> Instant {
        match self {
            Self::ByUs(at) | Self::ByPeer(at) => at,
        }
    }

    fn by_us(self) -> bool {
        matches!(self, Self::ByUs(_))
    }
}

/// How a new IKE SA stands to those that there are.
#[derive(Debug, Default)]
struct Relations {
    /// The peer has forgotten them (INITIAL_CONTACT).
    forgotten: Vec<Spi>,
    /// It replaces them.
    replaced: Vec<Spi>,
    /// This one stays instead of it.
    survivor: Option<Spi>,
}

impl Endpoint {
    /// Takes a new IKE SA with its CHILD_SA.
    pub(super) fn admit(
        &mut self,
        name: &PeerName,
        mut sa: Box<IkeSa>,
        child: Result<ChildSa, PeerError>,
        initial_contact: bool,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let relations = self.relations(name, &sa, initial_contact);
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let spi = sa.spi();
        let (local, remote) = sa.addresses();
        let mut cx = context!(self, now, env);
        cx.out.event(Event::IkeUp {
            peer: name.clone(),
            ike: sa.ike(),
            local,
            remote,
            initiator: sa.initiator(),
            details: sa.details().clone(),
        });
        peer.sas.push(spi);
        let up = match child {
            Ok(child) => {
                let unconfirmed = peer.tunnel.outbound().and_then(|id| peer.tunnel.live(id)).is_some_and(
                    |child| matches!(self.slots.get(&child.owner), Some(Slot::Up(_, owner)) if !owner.is_confirmed()),
                );
                // As responder we know that the peer is ready only when it speaks; unless there is
                // nothing else to send with.
                let ready = match (sa.initiator(), relations.survivor) {
                    (true, None) => true,
                    (true, Some(_)) => unconfirmed,
                    (false, _) => {
                        !relations.forgotten.is_empty() && relations.replaced.is_empty() && relations.survivor.is_none()
                    }
                };
                let arrival = if ready { Arrival::Ready } else { Arrival::Waiting };
                let rekey = Some(sa.profile().rekey_at(&mut cx));
                let id = peer.tunnel.add(child, spi, arrival, rekey, now, cx.out);
                if peer.tunnel.outbound() != Some(id) && relations.survivor.is_none() {
                    sa.begin(Task::Liveness, &mut peer.tunnel, &mut cx);
                }
                peer.encourage();
                peer.last_error = None;
                peer.replace &= !sa.initiator();
                true
            }
            Err(error) => {
                peer.report(error, cx.out);
                false
            }
        };
        self.slots.insert(spi, Slot::Up(name.clone(), sa));
        self.schedule(spi);
        for forgotten in &relations.forgotten {
            self.forget(name, *forgotten, spi, now, env);
        }
        if up {
            self.settle(name, spi, &relations, now, env);
        } else {
            self.childless(name, spi, now, env);
        }
        // It was judged by the configuration with which it began; a newer one may have come
        // meanwhile.
        self.end_revoked(name, now, env);
        self.schedule_peer(name);
    }

    fn relations(&self, name: &PeerName, new: &IkeSa, initial_contact: bool) -> Relations {
        let mut relations = Relations::default();
        let Some(peer) = self.peers.get(name) else {
            return relations;
        };
        for spi in &peer.sas {
            let Some(Slot::Up(_, other)) = self.slots.get(spi) else {
                continue;
            };
            let before = other.established() < new.begun().at();
            // Begun by different ends while neither was established.
            let crossing = other.begun().by_us() != new.begun().by_us() && !before;
            let ours = other.begun().by_us();
            if initial_contact && before {
                relations.forgotten.push(*spi);
            } else if other.standing() != Standing::Serving {
                // It has been decided about.
            } else if crossing && peer.config().local_id != peer.config().remote_id && ours == peer.ours_stays() {
                relations.survivor = Some(*spi);
            } else {
                relations.replaced.push(*spi);
            }
        }
        relations
    }

    /// Decides between a new IKE SA with a CHILD_SA and those that there were, and whether what we
    /// are beginning goes on.
    fn settle(&mut self, name: &PeerName, new: Spi, relations: &Relations, now: Instant, env: &mut dyn Environment) {
        match relations.survivor {
            Some(survivor) => self.supersede(name, new, survivor, now, env),
            None => {
                for old in &relations.replaced {
                    self.supersede(name, *old, new, now, env);
                }
            }
        }
        let Some(peer) = self.peers.get(name) else {
            return;
        };
        // It would lose, or win for nothing: nobody else has one that would.
        let early = peer.attempt.as_ref().is_some_and(|attempt| attempt.authenticating.is_none());
        if early && !peer.ours_stays() {
            self.cancel_attempt(name, now, env);
        }
    }

    fn supersede(&mut self, name: &PeerName, loser: Spi, survivor: Spi, now: Instant, env: &mut dyn Environment) {
        let Some((by, ours)) = self.up(survivor).map(|sa| (sa.ike(), sa.begun().by_us())) else {
            return;
        };
        if let (Some(Slot::Up(_, sa)), Some(peer)) = (self.slots.get_mut(&loser), self.peers.get_mut(name)) {
            sa.supersede(by, ours, &mut peer.tunnel, &mut context!(self, now, env));
        }
        self.schedule(loser);
    }

    fn up(&self, spi: Spi) -> Option<&IkeSa> {
        match self.slots.get(&spi) {
            Some(Slot::Up(_, sa)) => Some(sa),
            _ => None,
        }
    }

    /// The peer has no such IKE SA any more; nobody is told.
    fn forget(&mut self, name: &PeerName, old: Spi, new: Spi, now: Instant, env: &mut dyn Environment) {
        let by = self.up(new).map(IkeSa::ike);
        let Some(Slot::Up(_, sa)) = self.slots.remove(&old) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(name) {
            for id in peer.tunnel.ids_of(old) {
                peer.tunnel.retire(id, std::time::Duration::ZERO, DownReason::Replaced, now, &mut self.out);
            }
            peer.sas.retain(|spi| *spi != old);
        }
        if let Some(new) = by {
            self.out.event(Event::IkeReplaced { peer: name.clone(), old: sa.ike(), new });
        }
        sa.abandon(&mut context!(self, now, env));
        self.schedule(old);
    }

    /// A new IKE SA without a CHILD_SA. Its initiator ends it and tries again later; its responder
    /// waits for what the initiator does.
    fn childless(&mut self, name: &PeerName, spi: Spi, now: Instant, env: &mut dyn Environment) {
        let Some(Slot::Up(_, sa)) = self.slots.get_mut(&spi) else {
            return;
        };
        if !sa.initiator() {
            sa.without_child(&mut context!(self, now, env));
            self.schedule(spi);
            return;
        }
        if let Some(peer) = self.peers.get_mut(name) {
            let event = Event::IkeDown { peer: name.clone(), ike: sa.ike(), reason: DownReason::Failed };
            let mut cx = context!(self, now, env);
            cx.out.event(event);
            sa.leave(&mut crate::tunnel::Tunnel::new(name.clone()), &mut cx);
            peer.sas.retain(|known| *known != spi);
            if peer.wanted() || peer.replace {
                peer.begin_later(&mut cx);
            }
        }
        self.schedule(spi);
    }

    /// What came of a step of an established IKE SA.
    pub(super) fn verdict(
        &mut self,
        name: PeerName,
        sa: Box<IkeSa>,
        verdict: Verdict,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let spi = sa.spi();
        match verdict {
            Verdict::Continue => {
                self.slots.insert(spi, Slot::Up(name, sa));
                self.schedule(spi);
            }
            Verdict::Renew => {
                self.slots.insert(spi, Slot::Up(name.clone(), sa));
                self.schedule(spi);
                if let Some(peer) = self.peers.get_mut(&name) {
                    peer.replace = true;
                    self.begin_attempt(&name, now, env);
                }
            }
            Verdict::Rekeyed(new) => self.rekeyed(name, sa, new),
            Verdict::Closed(closed) => self.over(&name, sa, closed, now, env),
        }
    }

    fn rekeyed(&mut self, name: PeerName, old: Box<IkeSa>, new: Box<IkeSa>) {
        let (local, remote) = new.addresses();
        let (spi, ike, details) = (new.spi(), new.ike(), new.details().clone());
        let event = Event::IkeUp { peer: name.clone(), ike, local, remote, initiator: new.initiator(), details };
        self.out.event(event);
        if let Some(peer) = self.peers.get_mut(&name) {
            peer.sas.push(spi);
        }
        let replaced = old.spi();
        self.slots.insert(replaced, Slot::Up(name.clone(), old));
        self.slots.insert(spi, Slot::Up(name, new));
        self.schedule(replaced);
        self.schedule(spi);
    }

    /// An IKE SA is gone.
    fn over(&mut self, name: &PeerName, sa: Box<IkeSa>, closed: Closed, now: Instant, env: &mut dyn Environment) {
        let (spi, ike, standing) = (sa.spi(), sa.ike(), sa.standing());
        let linger = sa.profile().config.timing.linger;
        let answered = sa.abandon(&mut context!(self, now, env));
        self.bury(spi, answered, now);
        if standing == Standing::Leaving {
            return;
        }
        self.reinstate(name, ike);
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.sas.retain(|known| *known != spi);
        let other = match standing {
            Standing::Superseded(by) => Some(by),
            _ => peer.sas.iter().rev().find_map(|spi| match self.slots.get(spi) {
                Some(Slot::Up(_, other)) => Some(other.ike()),
                _ => None,
            }),
        };
        let mut cx = context!(self, now, env);
        let reason = match (&closed, other) {
            (Closed::ByPeer | Closed::ByUs, Some(_)) => DownReason::Replaced,
            (_, Some(_)) if standing != Standing::Serving => DownReason::Replaced,
            (Closed::ByPeer, None) => DownReason::DeletedByPeer,
            (Closed::ByUs, None) => DownReason::DeletedByUs,
            (Closed::Timeout, _) => DownReason::Timeout,
            (Closed::Failed(_), _) => DownReason::Failed,
        };
        for id in peer.tunnel.ids_of(spi) {
            peer.tunnel.retire(id, linger, reason, now, cx.out);
        }
        match other {
            Some(new) if reason == DownReason::Replaced => {
                cx.out.event(Event::IkeReplaced { peer: name.clone(), old: ike, new });
            }
            _ => cx.out.event(Event::IkeDown { peer: name.clone(), ike, reason }),
        }
        let timeout = matches!(closed, Closed::Timeout);
        if let Closed::Failed(error) = closed {
            peer.report(error, cx.out);
        }
        if peer.sas.is_empty() && peer.attempt.is_none() && peer.wanted() {
            if timeout {
                // It was there until lately: no need to be shy.
                peer.encourage();
                self.begin_attempt(name, now, env);
            } else {
                peer.begin_later(&mut cx);
            }
        }
        self.schedule_peer(name);
    }

    /// Whoever was to make room for an IKE SA that is gone serves again.
    pub(super) fn reinstate(&mut self, name: &PeerName, gone: crate::event::IkeId) {
        let Some(peer) = self.peers.get(name) else {
            return;
        };
        for spi in &peer.sas {
            if let Some(Slot::Up(_, sa)) = self.slots.get_mut(spi) {
                sa.reinstate(gone);
            }
        }
    }
}
