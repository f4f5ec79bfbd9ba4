//! A peer: its configuration, its CHILD_SAs, and where beginning with it stands.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{PeerConfig, PeerName};
use crate::event::{Event, PeerError, PeerErrorKind};
use crate::output::{Context, Output};
use crate::sa::Profile;
use crate::time::Instant;
use crate::tunnel::{Spi, Tunnel};

/// Most answers without proof that are told of in one attempt.
const MOST_TOLD: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) profile: Arc<Profile>,
    pub(super) tunnel: Tunnel,
    /// Established IKE SAs, by our SPIs, oldest first. Those that are only leaving do not count.
    pub(super) sas: Vec<Spi>,
    pub(super) attempt: Option<Attempt>,
    /// When to begin again.
    pub(super) wait: Option<Instant>,
    /// The next wait after a failure.
    backoff: Duration,
    /// We were told not to begin.
    pub(super) held: bool,
    /// A new IKE SA is wanted although there is one.
    pub(super) replace: bool,
    pub(super) last_error: Option<PeerError>,
}

/// IKE_SA_INITs to all addresses of a peer, of which at most one is in IKE_AUTH.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) dialing: Vec<Spi>,
    pub(super) authenticating: Option<Spi>,
    errors: Vec<PeerError>,
    told: Vec<PeerError>,
}

impl Attempt {
    /// Takes note of why one address failed.
    pub(super) fn fail(&mut self, spi: Spi, error: PeerError) {
        self.dialing.retain(|dialing| *dialing != spi);
        self.authenticating = self.authenticating.filter(|authenticating| *authenticating != spi);
        self.errors.push(error);
    }

    /// Takes note of what is wrong.
    pub(super) fn note(&mut self, error: PeerError) {
        self.errors.push(error);
    }

    /// Takes note of an answer that nobody vouches for. True: it is to be told, which is done once only, and not for ever new ones.
    pub(super) fn tell(&mut self, error: PeerError) -> bool {
        let new = self.told.len() < MOST_TOLD && !self.told.contains(&error);
        if new {
            self.told.push(error);
        }
        new
    }

    /// Whether every address has failed.
    pub(super) fn is_over(&self) -> bool {
        self.dialing.is_empty() && self.authenticating.is_none()
    }

    /// What is still to be told: an answer says more than silence, and what was told already is not told again.
    pub(super) fn verdict(self) -> Option<PeerError> {
        let answered = self.errors.iter().position(|error| error.kind != PeerErrorKind::Timeout);
        match answered {
            Some(position) => self.errors.into_iter().nth(position),
            None if self.told.is_empty() => self.errors.into_iter().next(),
            None => None,
        }
    }
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
            wait: None,
            backoff,
            held: false,
            replace: false,
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
    pub(super) fn ours_stays(&self) -> bool {
        self.config().local_id < self.config().remote_id
    }

    /// Whether to begin with it by ourselves.
    pub(super) fn wanted(&self) -> bool {
        self.config().initiate && !self.held
    }

    /// Forgets past failures.
    pub(super) fn encourage(&mut self) {
        self.backoff = self.config().timing.retry;
        self.wait = None;
    }

    /// Waits before beginning again; longer each time.
    pub(super) fn begin_later(&mut self, cx: &mut Context<'_>) {
        self.wait = Some(cx.now + cx.jittered(self.backoff));
        self.backoff = self.backoff.saturating_mul(2).min(self.config().timing.retry_max);
    }

    /// Tells of a failure.
    pub(super) fn report(&mut self, error: PeerError, out: &mut Output) {
        self.last_error = Some(error.clone());
        out.event(Event::PeerFailed { peer: self.name().clone(), error });
    }

    /// Where to find it: where it is now, if it is up, then where it may be.
    pub(super) fn remotes(&self, current: Option<SocketAddr>) -> Vec<SocketAddr> {
        let mut remotes: Vec<SocketAddr> = Vec::new();
        for remote in current.into_iter().chain(self.config().remotes.iter().copied()) {
            if !remotes.iter().any(|known| known.ip() == remote.ip()) {
                remotes.push(remote);
            }
        }
        remotes
    }

    /// When it wants to be looked at.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [self.tunnel.next_deadline(), self.wait].into_iter().flatten().min()
    }
}

/// What a new configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing: it is the same.
    None,
    /// Nothing for what is up: it counts from the next time on.
    Later,
    /// A new IKE SA in the place of the one that is up.
    Replace,
    /// An end of the IKE SA that is up: it is somebody else's.
    Restart,
}

impl Change {
    pub(super) fn between(old: &PeerConfig, new: &PeerConfig) -> Self {
        if old == new {
            Self::None
        } else if old.local_id != new.local_id || old.remote_id != new.remote_id {
            Self::Restart
        } else if old.child.local != new.child.local || old.child.remote != new.child.remote || psk_changed(old, new) {
            Self::Replace
        } else {
            Self::Later
        }
    }
}

/// Renewed certificates speak for the same key or the same CA and wait until the next time; another PSK, or another kind of proof, does not.
fn psk_changed(old: &PeerConfig, new: &PeerConfig) -> bool {
    use crate::config::Auth::{Certificate, Psk};
    match (&old.auth, &new.auth) {
        (Certificate(_), Certificate(_)) => false,
        (Psk(old), Psk(new)) => old != new,
        _ => true,
    }
}
