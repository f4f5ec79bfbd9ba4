//! One attempt to reach a peer: the addresses that are tried, and what each came to.

use std::net::{IpAddr, SocketAddr};

use crate::event::{PeerError, PeerErrorKind};
use crate::tunnel::Spi;

/// Most unverified_errors without proof that are remembered in one attempt, and most other addresses that its
/// error names.
const MAX_UNVERIFIED_ERRORS: usize = 4;

/// Addresses that become known during an attempt join it up to this number in all, so that a peer
/// whose addresses change all the time makes us send no more than this to anybody.
const MAX_CANDIDATES: usize = 8;

/// IKE_SA_INITs to the candidate addresses of a peer, of which at most one is in IKE_AUTH.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) initiating: Vec<Spi>,
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
    unverified_errors: Vec<UnverifiedError>,
    /// Why it failed.
    failure: Option<PeerError>,
}

/// An answer without proof.
#[derive(Debug)]
struct UnverifiedError {
    error: PeerError,
    reported: bool,
}

/// What came of an attempt that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AttemptFailure {
    pub(super) error: PeerError,
    /// It was reported while the attempt went on.
    pub(super) reported: bool,
}

impl Attempt {
    /// Takes in an address that is dialled; the likeliest comes first.
    pub(super) fn add_candidate(&mut self, spi: Spi, remote: SocketAddr) {
        self.initiating.push(spi);
        self.candidates.push(Candidate { spi: Some(spi), remote, unverified_errors: Vec::new(), failure: None });
    }

    /// Takes in an address that cannot be dialled.
    pub(super) fn add_failed_candidate(&mut self, remote: SocketAddr, error: PeerError) {
        self.candidates.push(Candidate { spi: None, remote, unverified_errors: Vec::new(), failure: Some(error) });
    }

    /// Whether an address is part of it.
    pub(super) fn includes(&self, address: IpAddr) -> bool {
        self.candidates.iter().any(|candidate| candidate.remote.ip() == address)
    }

    /// So many addresses may still join it.
    pub(super) fn remaining_candidates(&self) -> usize {
        MAX_CANDIDATES.saturating_sub(self.candidates.len())
    }

    /// Takes note of why one address failed.
    pub(super) fn fail_candidate(&mut self, spi: Spi, error: PeerError) {
        self.initiating.retain(|init| *init != spi);
        self.authenticating = self.authenticating.filter(|authenticating| *authenticating != spi);
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.spi == Some(spi)) {
            candidate.failure = Some(error);
        }
    }

    /// Takes note of an answer that nobody vouches for. True: it is to be reported now. That is
    /// done once for each, not for ever new ones, and only where no likelier address may still do
    /// better.
    pub(super) fn add_unverified_error(&mut self, spi: Spi, error: &PeerError) -> bool {
        let unverified_errors: usize = self.candidates.iter().map(|candidate| candidate.unverified_errors.len()).sum();
        let likeliest = self.candidates.iter().find(|candidate| candidate.failure.is_none());
        let reported = likeliest.is_some_and(|candidate| candidate.spi == Some(spi));
        let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.spi == Some(spi)) else {
            return false;
        };
        let new = unverified_errors < MAX_UNVERIFIED_ERRORS
            && !candidate.unverified_errors.iter().any(|answer| answer.error == *error);
        if new {
            candidate.unverified_errors.push(UnverifiedError { error: error.clone(), reported });
        }
        new && reported
    }

    /// Whether every address has failed.
    pub(super) fn is_over(&self) -> bool {
        self.initiating.is_empty() && self.authenticating.is_none()
    }

    /// Why it failed: the error of the likeliest address. Anybody may be at the others (a private
    /// address is another host's in another network), so what they answered is only added to it.
    pub(super) fn into_failure(self) -> Option<AttemptFailure> {
        let mut outcomes =
            self.candidates.into_iter().filter_map(|candidate| Some((candidate.remote, candidate.into_failure()?)));
        let (_, mut first) = outcomes.next()?;
        let others: Vec<String> = outcomes
            .filter(|(_, other)| other.error.kind != first.error.kind)
            .map(|(remote, AttemptFailure { error, .. })| format!("{remote} ({}: {})", error.exchange, error.kind))
            .take(MAX_UNVERIFIED_ERRORS)
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
    fn into_failure(mut self) -> Option<AttemptFailure> {
        let failure = self.failure?;
        match self.unverified_errors.pop() {
            Some(UnverifiedError { error, reported }) if failure.kind == PeerErrorKind::Timeout => {
                Some(AttemptFailure { error, reported })
            }
            _ => Some(AttemptFailure { error: failure, reported: false }),
        }
    }
}
