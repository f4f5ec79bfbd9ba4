//! Decides which IKE SA stays when a new one is established with a peer that already has one.

use super::state::{Endpoint, SaState, context};
use crate::child_sas::{Arrival, Spi};
use crate::config::PeerName;
use crate::environment::Environment;
use crate::event::{ChildSa, DownReason, Event, PeerError};
use crate::purpose::{ChildName, Purpose};
use crate::sa::{IkeSa, Lifecycle, QueuedRequest};
use crate::time::Instant;

/// Maximum number of IKE SAs with one peer. An honest peer has two for a short time, or three after
/// a simultaneous initiation. At the limit, the oldest ones are removed.
const MAX_IKE_SAS: usize = 8;

/// The existing IKE SAs with a peer, grouped by what happens to them when a new IKE SA is
/// established.
#[derive(Debug, Default)]
struct Duplicates {
    /// IKE SAs that the peer no longer has (INITIAL_CONTACT).
    forgotten: Vec<Spi>,
    /// IKE SAs that the new one replaces.
    replaced: Vec<Spi>,
    /// The existing IKE SA that stays instead of the new one.
    survivor: Option<Spi>,
}

impl Endpoint {
    /// Adds an established IKE SA and its CHILD_SA, if IKE_AUTH created one. If IKE_AUTH left it
    /// out (RFC 6023), the initiator requests it now, and the responder waits.
    pub(super) fn add_established(
        &mut self,
        name: &PeerName,
        mut sa: Box<IkeSa>,
        child: Result<Option<ChildSa>, PeerError>,
        initial_contact: bool,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let duplicates = self.find_duplicates(name, &sa, initial_contact);
        // As the initiator, with other children that the peer may accept.
        let first_refused = sa.initiator() && child.is_err() && sa.has_first_of_several_failed();
        let has_first = self.has_first_by_auth(name, &sa.profile().config.child.name);
        for old in duplicates.replaced.iter().filter_map(|old| self.established(*old)) {
            sa.take_failed_children_of(old, now);
        }
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
            details: sa.details(),
        });
        peer.add_sa(spi);
        if sa.initiator() && !sa.negotiated.internal_addresses.is_empty() {
            peer.internal_addresses = sa.negotiated.internal_addresses.to_vec();
        }
        // The purposes of the CHILD_SAs of the IKE SAs that the new one replaces.
        let replaced: Vec<Purpose> = (duplicates.replaced.iter().chain(&duplicates.forgotten))
            .flat_map(|old| peer.child_sas.purposes_of(*old))
            .cloned()
            .collect();
        let up = match child {
            Ok(None) => {
                sa.plan_children(&replaced, true, &peer.child_sas, &mut cx);
                if !sa.initiator() {
                    sa.schedule_child_creation(&mut cx);
                }
                peer.reset_backoff();
                peer.acquired_until = None;
                // An IKE SA that goes says nothing about those that stay.
                if duplicates.survivor.is_none() {
                    sa.negotiation_succeeded(None);
                }
                peer.reauthenticate &= !sa.initiator();
                true
            }
            Ok(Some(child)) => {
                let present = peer.child_sas.outbound(&child.purpose);
                let unconfirmed = present.and_then(|id| peer.child_sas.live(id)).is_some_and(
                    |child| matches!(self.sas.get(&child.owner), Some(SaState::Established(_, owner)) if !owner.is_confirmed()),
                );
                // As the responder, we know only after the peer's next message that the peer is
                // ready. If there is no other CHILD_SA with which to send, we send immediately.
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
                let lifetime = sa.profile().child_lifetime(&mut cx);
                let purpose = child.purpose.clone();
                let id = peer.child_sas.add(child, spi, arrival, lifetime, now, cx.out);
                sa.plan_children(&replaced, false, &peer.child_sas, &mut cx);
                if peer.child_sas.outbound(&purpose) != Some(id) && duplicates.survivor.is_none() {
                    sa.begin(QueuedRequest::Liveness, &mut peer.child_sas, &mut cx);
                }
                peer.reset_backoff();
                peer.acquired_until = None;
                sa.negotiated.has_created_first_child = purpose.child == sa.profile().config.child.name;
                if duplicates.survivor.is_none() {
                    sa.negotiation_succeeded(Some(&purpose.child));
                }
                // The peer's own IKE SA serves as well, unless it is the one that goes.
                peer.reauthenticate &= duplicates.survivor.is_some() && !sa.initiator();
                true
            }
            Err(error) => {
                peer.report_failure(error, cx.out);
                sa.plan_children(&replaced, false, &peer.child_sas, &mut cx);
                let only_for_child = peer.reauthenticate && peer.only_for_child;
                let keeps = first_refused && !only_for_child && !has_first && duplicates.survivor.is_none();
                if keeps && !mutation!("children_given_up_with_first") {
                    //= RFC 7296 1.2 REQUIRED 7: the IKE SA stays without a CHILD_SA
                    sa.first_child_refused_in_auth(now);
                    // The peer may delete it at once.
                    peer.schedule_retry(&mut cx);
                    peer.retry_at = None;
                    peer.reauthenticate = false;
                    true
                } else {
                    false
                }
            }
        };
        if !peer.reauthenticate {
            self.leave_queues(name);
        }
        self.sas.insert(spi, SaState::Established(name.clone(), sa));
        self.schedule(spi);
        for forgotten in &duplicates.forgotten {
            self.remove_forgotten(name, *forgotten, spi, now, env);
        }
        if up {
            self.resolve_duplicates(name, spi, &duplicates, now, env);
        } else {
            self.established_without_child(name, spi, first_refused, now, env);
        }
        self.limit_ike_sas(name, spi, now, env);
        // The peer was authenticated with the configuration that was in use when the exchange
        // began. A newer configuration may revoke its certificate.
        self.delete_revoked_sas(name, now, env);
        self.schedule_peer(name);
    }

    /// Removes the oldest IKE SAs of a peer that initiates again and again. Sends no DELETE, since
    /// a DELETE would have to be stored until it is answered.
    pub(super) fn limit_ike_sas(&mut self, name: &PeerName, new: Spi, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get(name) else {
            return;
        };
        let excess = peer.sas.len().saturating_sub(MAX_IKE_SAS);
        for old in peer.sas.iter().copied().filter(|spi| *spi != new).take(excess).collect::<Vec<_>>() {
            self.remove_forgotten(name, old, new, now, env);
        }
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
            // The time of the peer's authentication matters, even after a rekey.
            let before = other.authenticated() < new.initiation().at();
            // Whether different ends initiated the two IKE SAs, and neither was established at that
            // time.
            let crossing = other.initiation().by_us() != new.initiation().by_us() && !before;
            let ours = other.initiation().by_us();
            //= RFC 7296 2.4 MUST 4: a failure is silence or INITIAL_CONTACT
            if initial_contact && before {
                duplicates.forgotten.push(*spi);
            } else if other.lifecycle() != Lifecycle::Active {
                // The other IKE SA is already superseded.
            } else if crossing && peer.our_initiation_wins() == Some(ours) {
                duplicates.survivor = Some(*spi);
            } else {
                duplicates.replaced.push(*spi);
            }
        }
        duplicates
    }

    /// Deletes the duplicates of a new IKE SA that has a CHILD_SA. Stops our running attempt if its
    /// IKE SA would also be a duplicate.
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
        // The IKE SA of this attempt would be replaced by the new one.
        let early = peer.attempt.as_ref().is_some_and(|attempt| attempt.authenticating.is_none());
        if early && peer.our_initiation_wins() != Some(true) {
            self.cancel_attempt(name, now, env);
        }
    }

    fn supersede(&mut self, name: &PeerName, redundant: Spi, survivor: Spi, now: Instant, env: &mut dyn Environment) {
        if mutation!("second_ike_sa_kept") {
            return;
        }
        let Some(by) = self.established(survivor).map(IkeSa::as_survivor) else {
            return;
        };
        if let (Some(SaState::Established(_, sa)), Some(peer)) =
            (self.sas.get_mut(&redundant), self.peers.get_mut(name))
        {
            //= RFC 7296 2.8.3 REQUIRED 1: reauthentication is a new IKE SA
            sa.supersede_by_new_authentication(by, &mut peer.child_sas, &mut context!(self, now, env));
        }
        self.schedule(redundant);
    }

    /// Returns whether an IKE SA has a CHILD_SA of the first child and IKE_AUTH can be expected to
    /// create one: IKE_AUTH of this IKE SA has created one, that of another one has not failed to
    /// do so, and the peer is not silent on this one.
    fn has_first_by_auth(&self, name: &PeerName, first: &ChildName) -> bool {
        let Some(peer) = self.peers.get(name) else {
            return false;
        };
        let mut sas = peer.sas.iter().filter_map(|spi| self.established(*spi));
        sas.any(|sa| {
            let mut children = peer.child_sas.children_of(sa.spi());
            sa.may_expect_first_child_of_auth() && children.any(|(_, child)| child.sa.purpose.child == *first)
        })
    }

    fn established(&self, spi: Spi) -> Option<&IkeSa> {
        match self.sas.get(&spi) {
            Some(SaState::Established(_, sa)) => Some(sa),
            _ => None,
        }
    }

    /// Removes an IKE SA that the peer no longer has or is not allowed to have. Sends no DELETE.
    fn remove_forgotten(&mut self, name: &PeerName, old: Spi, new: Spi, now: Instant, env: &mut dyn Environment) {
        let by = self.established(new).map(IkeSa::ike);
        let Some(SaState::Established(_, sa)) = self.sas.remove(&old) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(name) {
            for id in peer.child_sas.ids_of(old) {
                peer.child_sas.retire(id, std::time::Duration::ZERO, DownReason::Replaced, now, &mut self.out);
            }
            peer.remove_sa(old);
        }
        if let Some(new) = by {
            self.out.event(Event::IkeReplaced { peer: name.clone(), old: sa.ike(), new });
        }
        sa.release(&mut context!(self, now, env));
        self.schedule(old);
    }

    /// Handles a new IKE SA without a CHILD_SA. As the initiator, deletes it and tries again later.
    /// As the responder, waits for the initiator. `first_refused` states that the peer has refused
    /// the first of several children.
    fn established_without_child(
        &mut self,
        name: &PeerName,
        spi: Spi,
        first_refused: bool,
        now: Instant,
        env: &mut dyn Environment,
    ) {
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
            sa.delete_reported_down(&mut crate::child_sas::ChildSas::new(name.clone()), &mut cx);
            peer.remove_sa(spi);
            for other in &peer.sas {
                if let Some(SaState::Established(_, other)) = self.sas.get_mut(other)
                    && (first_refused || (peer.reauthenticate && peer.only_for_child))
                    && other.first_child_refused_in_auth(now)
                {
                    peer.reauthenticate &= !peer.only_for_child;
                }
            }
            if peer.should_retry() {
                peer.schedule_retry(&mut context!(self, now, env));
            }
        }
        self.schedule(spi);
    }

    /// Supersedes the IKE SAs in use whose CHILD_SAs this later one has too. If IKE_AUTH of this
    /// one has created no CHILD_SA, it was not known at that time whether the peer keeps it. Now
    /// the peer may have lost the earlier ones.
    pub(super) fn supersede_earlier(&mut self, name: &PeerName, new: Spi, now: Instant, env: &mut dyn Environment) {
        let is_active = |sa: &&IkeSa| sa.lifecycle() == Lifecycle::Active;
        let Some(peer) = self.peers.get(name).filter(|peer| peer.sas.len() > 1) else {
            return;
        };
        let Some(new) = self.established(new).filter(is_active) else {
            return;
        };
        let (by, since) = (new.as_survivor(), new.authenticated());
        let has_all = |old: Spi| {
            let purposes = peer.child_sas.purposes_of(old);
            purposes.into_iter().all(|purpose| peer.child_sas.serves(by.spi, purpose))
        };
        let earlier = peer.sas.iter().filter_map(|spi| self.established(*spi)).filter(is_active);
        let earlier = earlier.filter(|old| old.authenticated() < since && has_all(old.spi()));
        for old in earlier.map(IkeSa::spi).collect::<Vec<_>>() {
            if let (Some(peer), Some(SaState::Established(_, old))) = (self.peers.get_mut(name), self.sas.get_mut(&old))
            {
                old.supersede_by_new_authentication(by, &mut peer.child_sas, &mut context!(self, now, env));
            }
            self.schedule(old);
        }
    }

    /// Reactivates the IKE SAs that the IKE SA `gone` had superseded. If another IKE SA had
    /// superseded `gone` (`lifecycle`), that IKE SA now supersedes them.
    pub(super) fn reinstate(
        &mut self,
        name: &PeerName,
        gone: crate::event::IkeId,
        lifecycle: Lifecycle,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let others = peer.sas.clone();
        for spi in &others {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(spi) {
                sa.reinstate(gone, lifecycle, &mut peer.child_sas, &mut context!(self, now, env));
            }
        }
        others.into_iter().for_each(|spi| self.schedule(spi));
    }
}
