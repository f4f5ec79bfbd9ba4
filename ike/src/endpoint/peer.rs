//! A peer: its configuration, its CHILD_SAs, and where beginning with it stands.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::Environment;
use crate::config::{PeerConfig, PeerName};
use crate::event::{Event, PeerError, PeerErrorKind};
use crate::output::{Context, Output};
use crate::sa::Profile;
use crate::sa::failure::IKE_SA_INIT;
use crate::time::Instant;
use crate::tunnel::{Spi, Tunnel};

/// Most answers without proof that are remembered in one attempt, and most other addresses that its
/// error names.
const MOST_TOLD: usize = 4;
/// Addresses that become known during an attempt join it up to this number in all, so that a peer
/// whose addresses change all the time makes us send no more than this to anybody.
const MOST_CANDIDATES: usize = 8;

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

/// IKE_SA_INITs to the candidate addresses of a peer, of which at most one is in IKE_AUTH.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) dialing: Vec<Spi>,
    pub(super) authenticating: Option<Spi>,
    candidates: Vec<Candidate>,
}

/// One address in an attempt.
#[derive(Debug)]
struct Candidate {
    /// `None`: nothing could be sent.
    spi: Option<Spi>,
    remote: SocketAddr,
    /// What it answered without proof, the latest last.
    answers: Vec<Answer>,
    /// Why it failed.
    failure: Option<PeerError>,
}

/// An answer without proof.
#[derive(Debug)]
struct Answer {
    error: PeerError,
    reported: bool,
}

/// What came of an attempt that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) error: PeerError,
    /// It was reported while the attempt went on.
    pub(super) reported: bool,
}

impl Attempt {
    /// Takes in an address that is dialled; the likeliest comes first.
    pub(super) fn dial(&mut self, spi: Spi, remote: SocketAddr) {
        self.dialing.push(spi);
        self.candidates.push(Candidate { spi: Some(spi), remote, answers: Vec::new(), failure: None });
    }

    /// Takes in an address that cannot be dialled.
    pub(super) fn note(&mut self, remote: SocketAddr, error: PeerError) {
        self.candidates.push(Candidate { spi: None, remote, answers: Vec::new(), failure: Some(error) });
    }

    /// Whether an address is part of it.
    pub(super) fn includes(&self, address: IpAddr) -> bool {
        self.candidates.iter().any(|candidate| candidate.remote.ip() == address)
    }

    /// So many addresses may still join it.
    pub(super) fn room(&self) -> usize {
        MOST_CANDIDATES.saturating_sub(self.candidates.len())
    }

    /// Takes note of why one address failed.
    pub(super) fn fail(&mut self, spi: Spi, error: PeerError) {
        self.dialing.retain(|dialing| *dialing != spi);
        self.authenticating = self.authenticating.filter(|authenticating| *authenticating != spi);
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.spi == Some(spi)) {
            candidate.failure = Some(error);
        }
    }

    /// Takes note of an answer that nobody vouches for. True: it is to be reported now. That is
    /// done once for each, not for ever new ones, and only where no likelier address may still do
    /// better.
    pub(super) fn answered(&mut self, spi: Spi, error: &PeerError) -> bool {
        let answers: usize = self.candidates.iter().map(|candidate| candidate.answers.len()).sum();
        let likeliest = self.candidates.iter().find(|candidate| candidate.failure.is_none());
        let reported = likeliest.is_some_and(|candidate| candidate.spi == Some(spi));
        let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.spi == Some(spi)) else {
            return false;
        };
        let new = answers < MOST_TOLD && !candidate.answers.iter().any(|answer| answer.error == *error);
        if new {
            candidate.answers.push(Answer { error: error.clone(), reported });
        }
        new && reported
    }

    /// Whether every address has failed.
    pub(super) fn is_over(&self) -> bool {
        self.dialing.is_empty() && self.authenticating.is_none()
    }

    /// Why it failed: the error of the likeliest address. Anybody may be at the others (a private
    /// address is another host's in another network), so what they answered is only added to it.
    pub(super) fn outcome(self) -> Option<Outcome> {
        let mut outcomes =
            self.candidates.into_iter().filter_map(|candidate| Some((candidate.remote, candidate.outcome()?)));
        let (_, mut first) = outcomes.next()?;
        let others: Vec<String> = outcomes
            .filter(|(_, other)| other.error.kind != first.error.kind)
            .map(|(remote, Outcome { error, .. })| format!("{remote} ({}: {})", error.exchange, error.kind))
            .take(MOST_TOLD)
            .collect();
        if !others.is_empty() {
            first.error.detail.push_str("; also tried: ");
            first.error.detail.push_str(&others.join(", "));
        }
        Some(first)
    }
}

impl Candidate {
    /// An answer says more than the silence after it.
    fn outcome(mut self) -> Option<Outcome> {
        let failure = self.failure?;
        match self.answers.pop() {
            Some(Answer { error, reported }) if failure.kind == PeerErrorKind::Timeout => {
                Some(Outcome { error, reported })
            }
            _ => Some(Outcome { error: failure, reported: false }),
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
    pub(super) fn all_are_ours(&self) -> Option<PeerError> {
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
        [self.tunnel.next_deadline(), self.wait].into_iter().flatten().min()
    }
}

/// What a new configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing: it is the same.
    None,
    /// Other addresses alone. The peer itself decides what they are, so this shortens no wait after
    /// a failure.
    Addresses,
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
        } else if *new == (PeerConfig { remotes: new.remotes.clone(), ..old.clone() }) {
            Self::Addresses
        } else {
            Self::Later
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
