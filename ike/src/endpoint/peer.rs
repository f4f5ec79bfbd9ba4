//! A peer: its configuration, its CHILD_SAs, and where beginning with it stands.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::attempt::Attempt;
use crate::config::{PeerConfig, PeerName};
use crate::environment::Environment;
use crate::event::{Event, PeerError, PeerErrorKind};
use crate::output::{Context, Output};
use crate::sa::Profile;
use crate::sa::failure::IKE_SA_INIT;
use crate::time::Instant;
use crate::tunnel::{Spi, Tunnel};

/// See the module.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) profile: Arc<Profile>,
    pub(super) tunnel: Tunnel,
    /// Established IKE SAs, by our SPIs, oldest first. Those that are only leaving do not count.
    pub(super) sas: Vec<Spi>,
    pub(super) attempt: Option<Attempt>,
    /// When to begin again.
    pub(super) retry_at: Option<Instant>,
    /// The next wait after a failure.
    backoff: Duration,
    /// We were told not to begin.
    pub(super) terminated: bool,
    /// A new IKE SA is wanted although there is one.
    pub(super) reauthenticate: bool,
    pub(super) last_error: Option<PeerError>,
}

impl Peer {
    pub(super) fn new(profile: Arc<Profile>) -> Self {
        let name = profile.config.name.clone();
        let backoff = profile.config.timing.retry;
        let tunnel = Tunnel::new(name);
        Self {
            profile,
            tunnel,
            sas: Vec::new(),
            attempt: None,
            retry_at: None,
            backoff,
            terminated: false,
            reauthenticate: false,
            last_error: None,
        }
    }

    pub(super) fn name(&self) -> &PeerName {
        &self.profile.config.name
    }

    pub(super) fn config(&self) -> &PeerConfig {
        &self.profile.config
    }

    /// Of two IKE SAs begun by both ends at once, ours stays: we are the smaller identity.
    pub(super) fn our_initiation_wins(&self) -> bool {
        self.config().local_id < self.config().remote_id
    }

    /// Whether to begin with it by ourselves.
    pub(super) fn should_initiate(&self) -> bool {
        self.config().initiate && !self.terminated
    }

    /// Forgets past failures.
    pub(super) fn reset_backoff(&mut self) {
        self.backoff = self.config().timing.retry;
        self.retry_at = None;
    }

    /// Waits before beginning again; longer each time.
    pub(super) fn schedule_retry(&mut self, cx: &mut Context<'_>) {
        self.retry_at = Some(cx.now + cx.jittered(self.backoff));
        self.backoff = self.backoff.saturating_mul(2).min(self.config().timing.retry_max);
    }

    /// Tells of a failure.
    pub(super) fn report_failure(&mut self, error: PeerError, out: &mut Output) {
        self.last_error = Some(error.clone());
        out.event(Event::PeerFailed { peer: self.name().clone(), error });
    }

    /// Where to find it: where it is now, if it is up, then where it may be, likeliest first. Never
    /// an address of this node: a peer in another network may have the same private address.
    /// Addresses to which there is no route come last.
    pub(super) fn remotes(&self, current: Option<SocketAddr>, env: &mut dyn Environment) -> Vec<SocketAddr> {
        let mut remotes: Vec<SocketAddr> = Vec::new();
        let mut unroutable = Vec::new();
        for remote in current.into_iter().chain(self.config().remotes.iter().copied()) {
            if remotes.iter().chain(&unroutable).any(|known: &SocketAddr| known.ip() == remote.ip()) {
                continue;
            }
            match env.source_address(remote.ip()) {
                // The kernel speaks to an address of its own from that address.
                Some(source) if source == remote.ip() => {}
                Some(_) => remotes.push(remote),
                None => unroutable.push(remote),
            }
        }
        remotes.append(&mut unroutable);
        remotes
    }

    /// Why there is nothing to dial although addresses are configured.
    pub(super) fn only_own_addresses(&self) -> Option<PeerError> {
        let remotes = &self.config().remotes;
        if remotes.is_empty() {
            return None;
        }
        let list = remotes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let detail = format!(
            "every address of the peer ({list}) is one of this node, which is never dialled; the peer must come to us, or give it an address of its own \
             that can be reached from here"
        );
        Some(PeerError::new(IKE_SA_INIT, PeerErrorKind::Local, detail))
    }

    /// When it wants to be looked at.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [self.tunnel.next_deadline(), self.retry_at].into_iter().flatten().min()
    }
}

/// What a new configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConfigChange {
    /// Nothing: it is the same.
    None,
    /// Other addresses alone. The peer itself decides what they are, so this shortens no wait after
    /// a failure.
    Addresses,
    /// Nothing for what is up: it counts from the next time on.
    NextNegotiation,
    /// A new IKE SA in the place of the one that is up.
    Reauthenticate,
    /// An end of the IKE SA that is up: it is somebody else's.
    Restart,
}

impl ConfigChange {
    pub(super) fn between(old: &PeerConfig, new: &PeerConfig) -> Self {
        if old == new {
            Self::None
        } else if old.local_id != new.local_id || old.remote_id != new.remote_id {
            Self::Restart
        } else if old.child.local != new.child.local || old.child.remote != new.child.remote || psk_changed(old, new) {
            Self::Reauthenticate
        } else if *new == (PeerConfig { remotes: new.remotes.clone(), ..old.clone() }) {
            Self::Addresses
        } else {
            Self::NextNegotiation
        }
    }
}

/// Renewed certificates speak for the same key or the same CA and wait until the next time; another
/// PSK, or another kind of proof, does not.
fn psk_changed(old: &PeerConfig, new: &PeerConfig) -> bool {
    use crate::config::Auth::{Certificate, Psk};
    match (&old.auth, &new.auth) {
        (Certificate(_), Certificate(_)) => false,
        (Psk(old), Psk(new)) => old != new,
        _ => true,
    }
}
