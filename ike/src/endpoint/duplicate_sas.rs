//! A new IKE SA among those that there are, and what is left when one goes.

use super::state::{Endpoint, SaState, context};
use crate::config::PeerName;
use crate::environment::Environment;
use crate::event::{ChildSa, DownReason, Event, PeerError};
use crate::sa::{IkeSa, Lifecycle, Task};
use crate::time::Instant;
use crate::tunnel::{Arrival, Spi};

/// How a new IKE SA stands to those that there are.
#[derive(Debug, Default)]
struct Duplicates {
    /// The peer has forgotten them (INITIAL_CONTACT).
    forgotten: Vec<Spi>,
    /// It replaces them.
    replaced: Vec<Spi>,
    /// This one stays instead of it.
    survivor: Option<Spi>,
}

impl Endpoint {
    /// Takes a new IKE SA with its CHILD_SA.
    pub(super) fn add_established(
        &mut self,
        name: &PeerName,
        mut sa: Box<IkeSa>,
        child: Result<ChildSa, PeerError>,
        initial_contact: bool,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let duplicates = self.find_duplicates(name, &sa, initial_contact);
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
                    |child| matches!(self.sas.get(&child.owner), Some(SaState::Established(_, owner)) if !owner.is_confirmed()),
                );
                // As responder we know that the peer is ready only when it speaks; unless there is
                // nothing else to send with.
                let ready = match (sa.initiator(), duplicates.survivor) {
                    (true, None) => true,
                    (true, Some(_)) => unconfirmed,
                    (false, _) => {
                        !duplicates.forgotten.is_empty()
                            && duplicates.replaced.is_empty()
                            && duplicates.survivor.is_none()
                    }
                };
                let arrival = if ready { Arrival::Ready } else { Arrival::Waiting };
                let rekey = Some(sa.profile().rekey_at(&mut cx));
                let id = peer.tunnel.add(child, spi, arrival, rekey, now, cx.out);
                if peer.tunnel.outbound() != Some(id) && duplicates.survivor.is_none() {
                    sa.begin(Task::Liveness, &mut peer.tunnel, &mut cx);
                }
                peer.reset_backoff();
                peer.last_error = None;
                peer.reauthenticate &= !sa.initiator();
                true
            }
            Err(error) => {
                peer.report_failure(error, cx.out);
                false
            }
        };
        self.sas.insert(spi, SaState::Established(name.clone(), sa));
        self.schedule(spi);
        for forgotten in &duplicates.forgotten {
            self.remove_forgotten(name, *forgotten, spi, now, env);
        }
        if up {
            self.resolve_duplicates(name, spi, &duplicates, now, env);
        } else {
            self.established_without_child(name, spi, now, env);
        }
        // It was judged by the configuration with which it began; a newer one may have come
        // meanwhile.
        self.delete_revoked_sas(name, now, env);
        self.schedule_peer(name);
    }

    fn find_duplicates(&self, name: &PeerName, new: &IkeSa, initial_contact: bool) -> Duplicates {
        let mut duplicates = Duplicates::default();
        let Some(peer) = self.peers.get(name) else {
            return duplicates;
        };
        for spi in &peer.sas {
            let Some(SaState::Established(_, other)) = self.sas.get(spi) else {
                continue;
            };
            let before = other.established() < new.initiation().at();
            // Initiation by different ends while neither was established.
            let crossing = other.initiation().by_us() != new.initiation().by_us() && !before;
            let ours = other.initiation().by_us();
            if initial_contact && before {
                duplicates.forgotten.push(*spi);
            } else if other.lifecycle() != Lifecycle::Active {
                // It has been decided about.
            } else if crossing
                && peer.config().local_id != peer.config().remote_id
                && ours == peer.our_initiation_wins()
            {
                duplicates.survivor = Some(*spi);
            } else {
                duplicates.replaced.push(*spi);
            }
        }
        duplicates
    }

    /// Decides between a new IKE SA with a CHILD_SA and those that there were, and whether what we
    /// are beginning goes on.
    fn resolve_duplicates(
        &mut self,
        name: &PeerName,
        new: Spi,
        duplicates: &Duplicates,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        match duplicates.survivor {
            Some(survivor) => self.supersede(name, new, survivor, now, env),
            None => {
                for old in &duplicates.replaced {
                    self.supersede(name, *old, new, now, env);
                }
            }
        }
        let Some(peer) = self.peers.get(name) else {
            return;
        };
        // It would lose, or win for nothing: nobody else has one that would.
        let early = peer.attempt.as_ref().is_some_and(|attempt| attempt.authenticating.is_none());
        if early && !peer.our_initiation_wins() {
            self.cancel_attempt(name, now, env);
        }
    }

    fn supersede(&mut self, name: &PeerName, redundant: Spi, survivor: Spi, now: Instant, env: &mut dyn Environment) {
        let Some((by, ours)) = self.established(survivor).map(|sa| (sa.ike(), sa.initiation().by_us())) else {
            return;
        };
        if let (Some(SaState::Established(_, sa)), Some(peer)) =
            (self.sas.get_mut(&redundant), self.peers.get_mut(name))
        {
            sa.supersede(by, ours, &mut peer.tunnel, &mut context!(self, now, env));
        }
        self.schedule(redundant);
    }

    fn established(&self, spi: Spi) -> Option<&IkeSa> {
        match self.sas.get(&spi) {
            Some(SaState::Established(_, sa)) => Some(sa),
            _ => None,
        }
    }

    /// The peer has no such IKE SA any more; nobody is told.
    fn remove_forgotten(&mut self, name: &PeerName, old: Spi, new: Spi, now: Instant, env: &mut dyn Environment) {
        let by = self.established(new).map(IkeSa::ike);
        let Some(SaState::Established(_, sa)) = self.sas.remove(&old) else {
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
        sa.release(&mut context!(self, now, env));
        self.schedule(old);
    }

    /// A new IKE SA without a CHILD_SA. Its initiator ends it and tries again later; its responder
    /// waits for what the initiator does.
    fn established_without_child(&mut self, name: &PeerName, spi: Spi, now: Instant, env: &mut dyn Environment) {
        let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi) else {
            return;
        };
        if !sa.initiator() {
            sa.schedule_child_creation(&mut context!(self, now, env));
            self.schedule(spi);
            return;
        }
        if let Some(peer) = self.peers.get_mut(name) {
            let event = Event::IkeDown { peer: name.clone(), ike: sa.ike(), reason: DownReason::Failed };
            let mut cx = context!(self, now, env);
            cx.out.event(event);
            sa.delete_reported_down(&mut crate::tunnel::Tunnel::new(name.clone()), &mut cx);
            peer.sas.retain(|known| *known != spi);
            if peer.should_initiate() || peer.reauthenticate {
                peer.schedule_retry(&mut cx);
            }
        }
        self.schedule(spi);
    }

    /// Whoever was to make room for an IKE SA that is gone serves again.
    pub(super) fn reinstate(&mut self, name: &PeerName, gone: crate::event::IkeId) {
        let Some(peer) = self.peers.get(name) else {
            return;
        };
        for spi in &peer.sas {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(spi) {
                sa.reinstate(gone);
            }
        }
    }
}
