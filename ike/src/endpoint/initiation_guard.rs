//! Guards IKE_SA_INIT requests, which anybody can send: cookies, limits, and what a request is
//! answered with before the initiator is known.

use std::net::SocketAddr;
use std::time::Duration;

use super::half_open::HalfOpenTable;
use crate::config::{EndpointConfig, IkeProposal};
use crate::crypto::Cookies;
use crate::output::Context;
use crate::sa::Profile;
use crate::time::Instant;
use crate::tunnel::Spi;
use crate::wire::{CertificateRequest, Message, Notify, NotifyType, Payload, Payloads};

/// How long an IKE SA may stay half-open: longer than an initiator retransmits.
pub(super) const HALF_OPEN_LIFETIME: Duration = Duration::from_secs(30);
/// Most unauthenticated messages that are reported or answered in each [`REPORT_PERIOD`]. A flood
/// must fill neither the wire nor a log.
const MAX_REPORTS: u32 = 16;
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// Half-open IKE SAs, and what all peers' configurations allow before it is known which peer
/// begins.
#[derive(Debug, Default)]
pub(super) struct InitiationGuard {
    cookies: Option<Cookies>,
    pub(super) half_open: HalfOpenTable,
    proposals: Vec<(IkeProposal, usize)>,
    certificate_requests: Vec<(CertificateRequest, usize)>,
    force_encapsulation: usize,
    reports_left: u32,
    period_ends: Instant,
}

/// What to do with an IKE_SA_INIT request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InitDecision {
    /// It is a retransmission: this half-open IKE SA has the response.
    Retransmission(Spi),
    /// It may make a half-open IKE SA.
    Accept,
    /// Do nothing more: a cookie was sent back, or there are too many half-open IKE SAs, of all or
    /// of this source.
    Discard,
}

impl InitiationGuard {
    /// Adds a configured peer.
    pub(super) fn add_peer(&mut self, profile: &Profile) {
        for proposal in &profile.config.ike_proposals {
            count(&mut self.proposals, proposal);
        }
        if let Some(request) = profile.auth.certificate_request() {
            count(&mut self.certificate_requests, &request);
        }
        self.force_encapsulation =
            self.force_encapsulation.saturating_add(usize::from(profile.config.force_encapsulation));
    }

    /// Takes back what [`Self::add_peer`] added.
    pub(super) fn remove_peer(&mut self, profile: &Profile) {
        for proposal in &profile.config.ike_proposals {
            discount(&mut self.proposals, proposal);
        }
        if let Some(request) = profile.auth.certificate_request() {
            discount(&mut self.certificate_requests, &request);
        }
        self.force_encapsulation =
            self.force_encapsulation.saturating_sub(usize::from(profile.config.force_encapsulation));
    }

    /// Proposals of all peers.
    pub(super) fn proposals(&self) -> Vec<IkeProposal> {
        self.proposals.iter().map(|(proposal, _)| proposal.clone()).collect()
    }

    /// The trust anchors of all peers, as one CERTREQ.
    pub(super) fn certificate_request(&self) -> Option<CertificateRequest> {
        let mut requests = self.certificate_requests.iter().map(|(request, _)| request);
        let mut all = requests.next()?.clone();
        for request in requests {
            all.authorities.extend_from_slice(&request.authorities);
        }
        Some(all)
    }

    /// Whether any peer's configuration forces NAT detection.
    pub(super) fn force_encapsulation(&self) -> bool {
        self.force_encapsulation > 0
    }

    /// Decides about an IKE_SA_INIT request. Sends a cookie back if one is needed (RFC 7296 2.6).
    pub(super) fn check(
        &mut self,
        message: &Message,
        request_len: usize,
        local: SocketAddr,
        remote: SocketAddr,
        config: &EndpointConfig,
        cx: &mut Context<'_>,
    ) -> InitDecision {
        let spi = message.header.initiator_spi;
        if let Some(known) = self.half_open.get(remote, spi) {
            return InitDecision::Retransmission(known);
        }
        if self.half_open.len() >= config.half_open_limit || !self.half_open.has_room(request_len) {
            return InitDecision::Discard;
        }
        if self.half_open.len() < config.cookie_threshold {
            return InitDecision::Accept;
        }
        let Ok(nonce) = message.payloads.nonce() else {
            return InitDecision::Discard;
        };
        let cookies = match &mut self.cookies {
            Some(cookies) => cookies,
            None => self.cookies.insert(Cookies::new(cx.env, cx.now)),
        };
        let cookie = message.payloads.notify(NotifyType::Cookie);
        if cookie.is_some_and(|cookie| cookies.accepts(cx.env, cx.now, &cookie.data, nonce, remote.ip(), spi)) {
            let full = self.half_open.is_full_for(remote);
            return if full { InitDecision::Discard } else { InitDecision::Accept };
        }
        let cookie = Notify::with_data(NotifyType::Cookie, cookies.cookie(cx.env, cx.now, nonce, remote.ip(), spi));
        let answer = Message::response(&message.header, 0, Payloads::from(vec![Payload::Notify(cookie)]));
        cx.out.message(local, remote, cx.config.nat_port, &answer.encode());
        InitDecision::Discard
    }

    /// Whether an unauthenticated message may be reported or answered now. Counts towards
    /// [`MAX_REPORTS`].
    pub(super) fn may_report(&mut self, now: Instant) -> bool {
        if self.period_ends <= now {
            self.period_ends = now + REPORT_PERIOD;
            self.reports_left = MAX_REPORTS;
        }
        let may = self.reports_left > 0;
        self.reports_left = self.reports_left.saturating_sub(1);
        may
    }
}

fn count<T: PartialEq + Clone>(counted: &mut Vec<(T, usize)>, item: &T) {
    match counted.iter_mut().find(|(other, _)| other == item) {
        Some((_, times)) => *times = times.saturating_add(1),
        None => counted.push((item.clone(), 1)),
    }
}

fn discount<T: PartialEq>(counted: &mut Vec<(T, usize)>, item: &T) {
    if let Some((_, times)) = counted.iter_mut().find(|(other, _)| other == item) {
        *times = times.saturating_sub(1);
    }
    counted.retain(|(_, times)| *times > 0);
}
