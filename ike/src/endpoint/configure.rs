//! Adds, changes and removes peers.

use std::net::IpAddr;
use std::sync::Arc;

use super::peer::{ConfigChange, Peer, credentials_changed, traffic_changed};
use super::state::{DeadlineOwner, Endpoint, SaState, context, peer_span};
use crate::address_assignment::{AddressAssignment, as_networks};
use crate::auth::CredentialError;
use crate::child_sas::ChildSas;
use crate::config::{PeerConfig, PeerName};
use crate::environment::Environment;
use crate::event::{DownReason, Event};
use crate::sa::Profile;
use crate::sa::failure::auth;
use crate::time::Instant;

impl Endpoint {
    /// Adds a peer, or updates the peer of this name. An identical configuration has no effect. If
    /// only `remotes` differ, a delay after a failure is shortened to ten seconds. If the address
    /// that a tunnel uses is no longer in `remotes`, the other addresses are tried immediately, and
    /// the tunnel stays up in the meantime. An established tunnel stays up, except in these cases:
    /// - Identities changed: the tunnel is closed and set up again.
    /// - The pre-shared key or selectors changed, and we initiate: a new IKE SA replaces the
    ///   present one without interrupting traffic.
    /// - Credentials changed, or a CHILD_SA has traffic that is no longer configured: within a
    ///   minute a new IKE SA replaces the present one, if we know an address of the peer. If the
    ///   peer has not authenticated again after 5 minutes, the tunnel is closed.
    /// - The configuration revokes the peer's certificate: the tunnel is closed.
    ///
    /// # Errors
    /// Returns an error if the credentials cannot be used. In that case the previous configuration
    /// remains in use.
    pub fn set_peer(
        &mut self,
        config: impl Into<Arc<PeerConfig>>,
        now: Instant,
        env: &mut dyn Environment,
    ) -> Result<(), CredentialError> {
        let config = config.into();
        let name = config.name.clone();
        let _span = peer_span(&name).entered();
        let Some(peer) = self.peers.get(&name) else {
            let mut peer = Peer::new(Arc::new(Profile::new(config)?));
            self.jitter.seed(env);
            self.take_former_addresses(&mut peer);
            self.peer_index.add(&peer.profile);
            let begin = peer.should_initiate(now);
            self.peers.insert(name.clone(), peer);
            if begin {
                self.start_or_queue_attempt(&name, now, env);
            }
            return Ok(());
        };
        let change = ConfigChange::between(peer.config(), &config);
        if change == ConfigChange::None {
            return Ok(());
        }
        let remotes_before = peer.config().remotes.clone();
        let profile = Arc::new(Profile::new(config)?);
        if change == ConfigChange::Restart {
            self.delete_peer(&name, now, env);
            return self.set_peer(profile.config.clone(), now, env);
        }
        self.set_profile(&name, profile, now, env);
        self.delete_revoked_sas(&name, now, env);
        let Some(peer) = self.peers.get_mut(&name) else {
            return Ok(());
        };
        peer.terminated = false;
        if change == ConfigChange::Addresses {
            self.addresses_changed(&name, &remotes_before, now, env);
            return Ok(());
        }
        peer.forgive();
        peer.only_for_child = false;
        peer.reauthenticate =
            change == ConfigChange::Reauthenticate && peer.should_initiate(now) && !peer.sas.is_empty();
        if peer.should_initiate(now) && (peer.reauthenticate || peer.sas.is_empty()) {
            self.cancel_attempt(&name, now, env);
            self.start_or_queue_attempt(&name, now, env);
        }
        Ok(())
    }

    /// Restores the internal addresses that a peer had in an earlier run of the owner
    /// ([`crate::event::IkeDetails::internal_addresses`]). Call it before [`Self::set_peer`] adds
    /// the peer; it has no effect on a peer that exists. Addresses that the peer gave us are asked
    /// for again. Addresses from our pool are kept for the peer, unless the pool no longer has
    /// them, another peer has them, or the pool has no other address left for somebody.
    pub fn restore_internal_addresses(&mut self, peer: &PeerName, addresses: &[IpAddr]) {
        if !addresses.is_empty() && !self.peers.contains_key(peer) {
            self.former_addresses.insert(peer.clone(), addresses.to_vec());
        }
    }

    fn take_former_addresses(&mut self, peer: &mut Peer) {
        let addresses = self.former_addresses.remove(peer.name()).unwrap_or_default();
        match peer.config().address_assignment {
            AddressAssignment::Off => {}
            AddressAssignment::Request => peer.internal_addresses = addresses,
            AddressAssignment::Pool(_) => self.address_leases.restore(peer.name(), &addresses),
        }
    }

    pub(super) fn set_profile(
        &mut self,
        name: &PeerName,
        profile: Arc<Profile>,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let old = std::mem::replace(&mut peer.profile, Arc::clone(&profile));
        self.peer_index.remove(&old);
        self.peer_index.add(&profile);
        let credentials_changed = credentials_changed(&old.config, &profile.config);
        let traffic_changed = traffic_changed(&old.config, &profile.config);
        let assignment = &profile.config.address_assignment;
        let assignment_changed = old.config.address_assignment != *assignment;
        // A pool that still has the peer's addresses takes nothing from the peer.
        let keeps = |addresses: &[IpAddr]| match assignment {
            AddressAssignment::Pool(pool) => {
                !addresses.is_empty() && as_networks(addresses, pool).len() == addresses.len()
            }
            AddressAssignment::Off | AddressAssignment::Request => false,
        };
        for spi in peer.sas.clone() {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi) {
                let mut cx = context!(self, now, env);
                sa.set_profile(Arc::clone(&profile), &mut cx);
                let child_sas = self.peers.get(name).map(|peer| &peer.child_sas);
                if credentials_changed
                    || (assignment_changed && !keeps(&sa.negotiated.internal_addresses))
                    || (traffic_changed && child_sas.is_some_and(|child_sas| sa.exceeds_configuration(child_sas)))
                {
                    sa.require_reauthentication(&mut cx);
                }
            }
            self.schedule(spi);
        }
    }

    /// Removes a peer. Reports its SAs down immediately, and sends DELETE to the peer.
    pub fn remove_peer(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let _span = peer_span(name).entered();
        self.delete_peer(name, now, env);
    }

    pub(super) fn delete_peer(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        self.cancel_attempt(name, now, env);
        self.leave_queues(name);
        self.delete_all_sas(name, now, env);
        if let Some(peer) = self.peers.remove(name) {
            self.peer_index.remove(&peer.profile);
        }
        self.address_leases.forget(name);
        self.deadlines.set(DeadlineOwner::Peer(name.clone()), None);
    }

    /// Ends all IKE SAs of a peer. Reports them down immediately, and sends DELETE.
    pub(super) fn delete_all_sas(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.child_sas.clear(DownReason::DeletedByUs, &mut self.out);
        for spi in peer.take_sas() {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi) {
                let event = Event::IkeDown { peer: name.clone(), ike: sa.ike(), reason: DownReason::DeletedByUs };
                let mut cx = context!(self, now, env);
                cx.out.event(event);
                sa.delete_reported_down(&mut ChildSas::new(name.clone()), &mut cx);
            }
            self.schedule(spi);
        }
    }

    /// Ends the IKE SAs in which the peer used a certificate that is now revoked, and reports them
    /// down. The other IKE SAs of the peer stay.
    pub(super) fn delete_revoked_sas(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get(name) else {
            return;
        };
        let mut revoked = Vec::new();
        for spi in &peer.sas {
            if let Some(SaState::Established(_, sa)) = self.sas.get(spi)
                && let Some(shown) = &sa.negotiated.certificate
                && let Err(error) = peer.profile.auth.check_not_revoked(shown, &peer.profile.config.remote_id)
            {
                revoked.push((*spi, auth(&error)));
            }
        }
        for (spi, error) in revoked {
            self.end_sa(name, spi, DownReason::DeletedByUs, error, now, env);
        }
    }
}
