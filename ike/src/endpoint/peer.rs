//! A peer: its configuration, its CHILD_SAs, and the attempt to reach it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::attempt::Attempt;
use super::attempt_queue::Standing;
use crate::address_assignment::AddressAssignment;
use crate::auth::canonical_identity;
use crate::child_sas::{ChildSas, Spi};
use crate::config::{CertificateAuth, ChildConfig, Mode, NextLayer, PeerConfig, PeerName};
use crate::environment::Environment;
use crate::event::{Event, PeerError, PeerErrorKind};
use crate::output::{Context, Output};
use crate::purpose::ChildName;
use crate::sa::Profile;
use crate::sa::failure::IKE_SA_INIT;
use crate::time::Instant;

/// Maximum delay between two attempts that are caused by packets. If both ends initiate only on
/// demand, a peer that is reachable again does not initiate, so this delay must be shorter than the
/// time for which packets wait.
const MAX_ACQUIRE_RETRY: Duration = Duration::from_secs(30);

/// Age of an IKE SA from which it counts as one that the peer keeps.
const PROVEN: Duration = Duration::from_secs(10);
/// Upper limit of [`Peer::ended_soon`]. The delay has its longest value by then.
const MAX_ENDED_SOON: u8 = 16;

/// Time for which a failure delays attempts that are caused by later packets. It is longer than
/// [`MAX_ACQUIRE_RETRY`], so that packets at long intervals also cause few attempts.
const FAILURE_MEMORY: Duration = Duration::from_secs(120);
/// Minimum time between a failed attempt and the next one if an unauthenticated datagram triggers
/// the next attempt.
const UNPROVEN_WAIT: Duration = Duration::from_secs(10);
/// Number of times that a peer's new addresses are tried in a row. After that, they are tried once
/// in [`FOLLOW_PERIOD`].
const FOLLOW_BURST: u32 = 4;
/// See [`FOLLOW_BURST`].
const FOLLOW_PERIOD: Duration = Duration::from_secs(10);

#[cfg(test)]
thread_local! {
    /// Counts how often a peer's configuration was read.
    pub(super) static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A configured peer with its SAs and its attempts.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) profile: Arc<Profile>,
    pub(super) child_sas: ChildSas,
    /// Established IKE SAs by our SPIs, oldest first. IKE SAs that were reported down are not
    /// included.
    pub(super) sas: Vec<Spi>,
    pub(super) attempt: Option<Attempt>,
    /// When the next attempt starts.
    pub(super) retry_at: Option<Instant>,
    /// The delay after the next failure.
    backoff: Duration,
    /// The time at which new addresses of the peer may be tried [`FOLLOW_BURST`] times in a row
    /// again, because the address in use is no longer configured.
    follows_paid_at: Option<Instant>,
    /// When an attempt last failed. `None` after a success.
    failed_at: Option<Instant>,
    /// Whether an IKE SA was established since an attempt last failed.
    answered: bool,
    /// How many of the last IKE SAs have ended soon after the authentication, one after the other,
    /// at most [`MAX_ENDED_SOON`].
    ended_soon: u8,
    /// Whether our attempt was postponed because a request from the peer's address arrived. It is
    /// cleared when an attempt starts.
    pub(super) went_first: bool,
    /// The time until which a packet waits for a tunnel ([`super::Endpoint::acquire`]).
    pub(super) acquired_until: Option<Instant>,
    /// Whether the owner terminated the peer. While it is set, no attempt starts without a command
    /// of the owner.
    pub(super) terminated: bool,
    /// Whether a new IKE SA must replace the present one. False if there is none.
    pub(super) reauthenticate: bool,
    /// Whether the only reason for that is the first child, which one of the ends refuses on the
    /// present IKE SA. Without a meaning if none has to be replaced.
    pub(super) only_for_child: bool,
    pub(super) last_error: Option<PeerError>,
    /// The internal addresses that the peer gave us last. We ask for them again.
    pub(super) internal_addresses: Vec<IpAddr>,
}

impl Peer {
    pub(super) fn new(profile: Arc<Profile>) -> Self {
        let name = profile.config.name.clone();
        let backoff = profile.config.timing.retry;
        let child_sas = ChildSas::new(name);
        Self {
            profile,
            child_sas,
            sas: Vec::new(),
            attempt: None,
            retry_at: None,
            backoff,
            follows_paid_at: None,
            failed_at: None,
            answered: false,
            went_first: false,
            ended_soon: 0,
            acquired_until: None,
            terminated: false,
            reauthenticate: false,
            only_for_child: false,
            last_error: None,
            internal_addresses: Vec::new(),
        }
    }

    pub(super) fn name(&self) -> &PeerName {
        &self.profile.config.name
    }

    pub(super) fn config(&self) -> &PeerConfig {
        #[cfg(test)]
        LOOKS.set(LOOKS.get() + 1);
        &self.profile.config
    }

    /// Returns whether our IKE SA stays after a simultaneous initiation, that is, whether we have
    /// the smaller identity. Compares canonical forms, since the ends may write an identity
    /// differently. Returns `None` if both ends have the same identity.
    pub(super) fn our_initiation_wins(&self) -> Option<bool> {
        let ours = canonical_identity(&self.config().local_id);
        let theirs = canonical_identity(&self.config().remote_id);
        (ours != theirs).then_some(ours < theirs)
    }

    /// Returns whether attempts start without a command of the owner: if `initiate` is set, or if a
    /// packet waits.
    pub(super) fn should_initiate(&self, now: Instant) -> bool {
        let acquired = self.acquired_until.is_some_and(|until| now < until);
        (self.config().initiate || acquired) && !self.terminated
    }

    /// Returns whether an attempt must start now, if no other attempt is running.
    pub(super) fn needs_attempt(&self, now: Instant) -> bool {
        let waits = self.attempt.is_some() || self.retry_at.is_some_and(|at| at > now);
        !waits && (self.reauthenticate || (self.sas.is_empty() && self.should_initiate(now)))
    }

    /// Returns whether to schedule another attempt after a failure. If only packets cause attempts,
    /// the delay also applies to a packet that comes later.
    pub(super) fn should_retry(&self) -> bool {
        (self.config().initiate || self.acquired_until.is_some()) && !self.terminated || self.reauthenticate
    }

    /// Returns whether the peer gets its address from a pool of ours.
    pub(super) fn gives_addresses(&self) -> bool {
        matches!(self.config().address_assignment, AddressAssignment::Pool(_))
    }

    /// Returns what is known about whether the peer will answer an attempt.
    pub(super) fn standing(&self) -> Standing {
        if self.answered || !self.sas.is_empty() {
            Standing::Answered
        } else if self.failed_at.is_some() {
            Standing::Failed
        } else {
            Standing::Unknown
        }
    }

    /// Records that an attempt has ended without an IKE SA.
    pub(super) fn attempt_failed(&mut self) {
        self.answered = false;
    }

    /// Resets the delay to the shortest one if the last failure was long ago.
    pub(super) fn forget_old_failure(&mut self, now: Instant) {
        if self.failed_at.is_some_and(|failed| now >= failed + FAILURE_MEMORY) {
            self.forgive();
        }
    }

    /// Records the end of the last IKE SA, whose peer was authenticated at `authenticated` and kept
    /// it until `until`. Returns whether that was a while. If not, the peer may end each IKE SA at
    /// once, and the delay before the next one doubles each time.
    pub(super) fn ended(&mut self, authenticated: Instant, until: Instant) -> bool {
        let proven = until >= authenticated + PROVEN;
        self.ended_soon = if proven { 0 } else { self.ended_soon.saturating_add(1).min(MAX_ENDED_SOON) };
        proven
    }

    /// Returns the delay because the peer has ended IKE SAs soon. It responds, so a long delay, as
    /// for a silent peer, is not needed.
    fn wait_after_end(&self) -> Duration {
        let timing = &self.config().timing;
        let Some(doublings) = self.ended_soon.checked_sub(1) else { return Duration::ZERO };
        timing.retry.saturating_mul(1 << doublings).min(timing.child_retry_max())
    }

    fn longest_wait(&self) -> Duration {
        let longest = self.config().timing.retry_max;
        if self.config().initiate { longest } else { longest.min(MAX_ACQUIRE_RETRY) }
    }

    /// Shortens the delay after a failure, since the peer may be reachable again. The cause may be
    /// an unauthenticated datagram, so the delay remains at least [`UNPROVEN_WAIT`]. Otherwise any
    /// host could make us send more messages.
    pub(super) fn shorten_wait(&mut self, now: Instant) {
        if let (Some(at), Some(failed)) = (self.retry_at, self.failed_at) {
            self.retry_at = Some(at.min((failed + UNPROVEN_WAIT).max(now)));
        }
    }

    /// Returns whether the peer may be tried at new addresses now. The peer decides how often its
    /// addresses change, so this is limited ([`FOLLOW_BURST`]).
    pub(super) fn may_follow(&mut self, now: Instant) -> bool {
        let paid_at = self.follows_paid_at.map_or(now, |at| at.max(now));
        let may = paid_at <= now + FOLLOW_PERIOD.saturating_mul(FOLLOW_BURST.saturating_sub(1));
        if may {
            self.follows_paid_at = Some(paid_at + FOLLOW_PERIOD);
        }
        may
    }

    /// Adds an IKE SA, which is now the newest. There is usually one, so there is room for no more.
    pub(super) fn add_sa(&mut self, spi: Spi) {
        self.sas.reserve_exact(1);
        self.sas.push(spi);
        self.answered = true;
    }

    /// Removes an IKE SA. A new authentication that was to replace the last one is not needed any
    /// more.
    pub(super) fn remove_sa(&mut self, spi: Spi) {
        self.sas.retain(|known| *known != spi);
        self.reauthenticate &= !self.sas.is_empty();
    }

    /// Removes all IKE SAs, and returns them.
    pub(super) fn take_sas(&mut self) -> Vec<Spi> {
        self.reauthenticate = false;
        std::mem::take(&mut self.sas)
    }

    /// Returns a configured child that has no CHILD_SA with which we send.
    pub(super) fn missing_child(&self) -> Option<&ChildConfig> {
        self.config().children().find(|child| !self.child_sas.sends_for(&child.name))
    }

    /// Clears past failures: cancels a running delay, and sets the next delay to the shortest one.
    pub(super) fn reset_backoff(&mut self) {
        self.backoff = self.config().timing.retry;
        self.retry_at = None;
        self.failed_at = None;
        self.went_first = false;
    }

    /// Does the same as [`Self::reset_backoff`], and forgets that the peer has ended IKE SAs soon:
    /// that was long ago, or the owner has commanded an attempt.
    pub(super) fn forgive(&mut self) {
        self.reset_backoff();
        self.ended_soon = 0;
    }

    /// Records that a CHILD_SA was negotiated on an IKE SA: the next delay is the shortest one
    /// again. A running delay goes on. On a new IKE SA this shows nothing yet: the peer may close
    /// it because it has refused another child.
    pub(super) fn child_negotiated(&mut self, authenticated: Instant, now: Instant) {
        if now >= authenticated + PROVEN {
            self.backoff = self.config().timing.retry;
            self.failed_at = None;
            self.acquired_until = None;
        }
    }

    /// Schedules the next attempt after a failure. The delay doubles each time, up to the maximum.
    pub(super) fn schedule_retry(&mut self, cx: &mut Context<'_>) {
        let wait = self.backoff.max(self.wait_after_end());
        self.retry_at = Some(cx.now + cx.jittered(wait));
        self.failed_at = Some(cx.now);
        self.backoff = self.backoff.saturating_mul(2).min(self.longest_wait());
    }

    /// Reports a failure to the owner.
    pub(super) fn report_failure(&mut self, error: PeerError, out: &mut Output) {
        self.last_error = Some(error.clone());
        out.event(Event::PeerFailed { peer: self.name().clone(), error });
    }

    /// Returns the addresses to try: the `current` one if the peer is up, then the configured ones,
    /// likeliest first. Omits addresses of this node, since a peer in another network may have the
    /// same private address. Addresses without a route come last.
    pub(super) fn remotes(&self, current: Option<SocketAddr>, env: &mut dyn Environment) -> Vec<SocketAddr> {
        let mut remotes: Vec<SocketAddr> = Vec::new();
        let mut unroutable = Vec::new();
        for remote in current.into_iter().chain(self.config().remotes.iter().copied()) {
            // The current address may be a configured one with another port: the NAT traversal
            // port, or a port that a NAT has chosen.
            let is_current = current.is_some_and(|current| current != remote && current.ip() == remote.ip());
            if is_current || remotes.contains(&remote) || unroutable.contains(&remote) {
                continue;
            }
            match env.source_address(remote.ip()) {
                // The kernel chooses an address of this node as the source of packets to that same
                // address.
                Some(source) if source == remote.ip() => {}
                Some(_) => remotes.push(remote),
                None => unroutable.push(remote),
            }
        }
        remotes.append(&mut unroutable);
        remotes
    }

    /// Returns an error if every configured address belongs to this node.
    pub(super) fn only_own_addresses(&self) -> Option<PeerError> {
        let remotes = &self.config().remotes;
        if remotes.is_empty() {
            return None;
        }
        let list = remotes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let detail = format!(
            "every address of the peer ({list}) is one of this node, so nothing is sent to it; let the peer begin, or configure an address of its own \
             that can be reached from here"
        );
        Some(PeerError::new(IKE_SA_INIT, PeerErrorKind::Local, detail))
    }

    /// Returns the earliest deadline of this peer.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [self.child_sas.next_deadline(), self.retry_at].into_iter().flatten().min()
    }
}

/// The consequence of a changed configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConfigChange {
    /// The configuration is the same.
    None,
    /// Only the addresses changed. The peer chooses its addresses, so their change does not shorten
    /// a delay after a failure.
    Addresses,
    /// The change has no effect before the next negotiation.
    NextNegotiation,
    /// A new IKE SA replaces the present one.
    Reauthenticate,
    /// The identities changed, so the present IKE SA ends.
    Restart,
}

impl ConfigChange {
    pub(super) fn between(old: &PeerConfig, new: &PeerConfig) -> Self {
        if old == new {
            Self::None
        } else if old.local_id != new.local_id || old.remote_id != new.remote_id {
            Self::Restart
        } else if traffic_changed(old, new)
            || old.address_assignment != new.address_assignment
            || credentials_changed(old, new)
        {
            Self::Reauthenticate
        } else if *new == (PeerConfig { remotes: new.remotes.clone(), ..old.clone() }) {
            Self::Addresses
        } else {
            Self::NextNegotiation
        }
    }
}

/// Returns whether the traffic of the CHILD_SAs changed.
pub(super) fn traffic_changed(old: &PeerConfig, new: &PeerConfig) -> bool {
    fn traffic(child: &ChildConfig) -> (&ChildName, &[IpNetwork], &[IpNetwork], NextLayer, Mode) {
        (&child.name, &child.local, &child.remote, child.next_layer, child.mode)
    }
    !old.children().map(traffic).eq(new.children().map(traffic))
}

/// Returns whether the peer may no longer be able to authenticate as before: the pre-shared key or
/// the kind of authentication changed, a trust anchor was removed, or the certificate must have
/// another name or role, or revocation is checked more strictly. A renewal of our own certificate
/// and an added trust anchor do not count: they take effect with the next negotiation.
pub(super) fn credentials_changed(old: &PeerConfig, new: &PeerConfig) -> bool {
    use crate::config::Auth::{Certificate, Psk};
    match (&old.auth, &new.auth) {
        (Certificate(old), Certificate(new)) => {
            let policy = |auth: &CertificateAuth| auth.revocation.as_ref().map(|revocation| revocation.policy);
            old.remote_uri != new.remote_uri
                || policy(old) < policy(new)
                || old.remote_key_usages != new.remote_key_usages
                || old.trust_anchors.iter().any(|anchor| !new.trust_anchors.contains(anchor))
        }
        (Psk(old), Psk(new)) => old != new,
        _ => true,
    }
}
