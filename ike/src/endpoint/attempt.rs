//! One attempt to reach a peer: the addresses that are tried, and the result of each.

use std::net::SocketAddr;

use crate::child_sas::Spi;
use crate::event::{PeerError, PeerErrorKind};

/// Maximum number of unauthenticated errors that one attempt stores. It is also the maximum number
/// of further addresses that the error of the attempt names.
const MAX_UNVERIFIED_ERRORS: usize = 4;

/// Maximum number of addresses of one attempt, including those that become known while it runs. A
/// peer whose addresses keep changing must not make us send to more addresses.
const MAX_CANDIDATES: usize = 8;

/// The handshakes with the candidate addresses of a peer. All are in IKE_SA_INIT, except at most
/// one, which is in IKE_AUTH.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) initiating: Vec<Spi>,
    pub(super) authenticating: Option<Spi>,
    candidates: Vec<Candidate>,
}

/// One of the addresses that an attempt tries.
#[derive(Debug)]
struct Candidate {
    /// Our SPI in the IKE_SA_INIT to this address. `None` if no request could be sent.
    spi: Option<Spi>,
    remote: SocketAddr,
    /// Unauthenticated errors that came from this address, the latest last.
    unverified_errors: Vec<UnverifiedError>,
    /// The failure of this address, if it has failed.
    failure: Option<PeerError>,
}

/// An error in a message without authentication, which any host may have sent.
#[derive(Debug)]
struct UnverifiedError {
    error: PeerError,
    reported: bool,
}

/// The failure of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AttemptFailure {
    pub(super) error: PeerError,
    /// Whether the error was already reported during the attempt.
    pub(super) reported: bool,
}

impl Attempt {
    /// Adds an address to which IKE_SA_INIT was sent. Add the likeliest address first.
    pub(super) fn add_candidate(&mut self, spi: Spi, remote: SocketAddr) {
        self.initiating.push(spi);
        self.candidates.push(Candidate { spi: Some(spi), remote, unverified_errors: Vec::new(), failure: None });
    }

    /// Adds an address to which no IKE_SA_INIT could be sent.
    pub(super) fn add_failed_candidate(&mut self, remote: SocketAddr, error: PeerError) {
        self.candidates.push(Candidate { spi: None, remote, unverified_errors: Vec::new(), failure: Some(error) });
    }

    /// Returns whether this attempt tries this address and port.
    pub(super) fn includes(&self, remote: SocketAddr) -> bool {
        self.candidates.iter().any(|candidate| candidate.remote == remote)
    }

    /// Returns the number of addresses that may still be added.
    pub(super) fn remaining_candidates(&self) -> usize {
        MAX_CANDIDATES.saturating_sub(self.candidates.len())
    }

    /// Records the failure of one address.
    pub(super) fn fail_candidate(&mut self, spi: Spi, error: PeerError) {
        self.initiating.retain(|init| *init != spi);
        self.authenticating = self.authenticating.filter(|authenticating| *authenticating != spi);
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.spi == Some(spi)) {
            candidate.failure = Some(error);
        }
    }

    /// Records an unauthenticated error. Returns true if it should be reported now. Each error is
    /// reported once, at most [`MAX_UNVERIFIED_ERRORS`] in total, and only while no likelier
    /// address may still succeed.
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

    /// Returns whether every address has failed.
    pub(super) fn is_over(&self) -> bool {
        self.initiating.is_empty() && self.authenticating.is_none()
    }

    /// Returns the error of the likeliest address. The errors of the other addresses are only
    /// appended, since these addresses may belong to unrelated hosts: a private address belongs to
    /// different hosts in different networks.
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
    /// Returns an error that was received, if there is one, rather than the timeout that followed
    /// it, since the received error gives more information.
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
