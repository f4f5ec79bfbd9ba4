//! Decides how to handle IKE_SA_INIT requests, which any host can send: whether the initiator must
//! return a cookie first, and whether the limits allow the request.

use std::net::SocketAddr;
use std::time::Duration;

use super::half_open::HalfOpenTable;
use crate::child_sas::Spi;
use crate::config::{EndpointConfig, Group};
use crate::crypto::Cookies;
use crate::output::Context;
use crate::time::Instant;
use crate::wire::{Message, Notify, NotifyType, Payload, Payloads};

/// Maximum time for which an IKE SA may be half-open. Initiators stop retransmitting earlier.
pub(super) const HALF_OPEN_LIFETIME: Duration = Duration::from_secs(30);
/// Maximum number of unauthenticated messages that are reported or answered in each
/// [`REPORT_PERIOD`]. Without this limit, a flood could fill the network or the log.
const MAX_REPORTS: u32 = 16;
const REPORT_PERIOD: Duration = Duration::from_secs(1);
/// Maximum work for expensive key exchanges ([`Group::expense`]) that unauthenticated initiators
/// may cause in each [`WORK_PERIOD`], microseconds. Further IKE_SA_INIT requests with such a share
/// are dropped. An honest initiator sends its request again.
const MAX_WORK: u32 = 250_000;
/// Amount of such work in a period, microseconds, above which an initiator with such a share must
/// return a cookie.
const MAX_WORK_WITHOUT_COOKIE: u32 = 25_000;
const WORK_PERIOD: Duration = Duration::from_secs(1);

/// The state about unauthenticated initiators.
#[derive(Debug, Default)]
pub(super) struct InitRequestGuard {
    cookies: Option<Cookies>,
    pub(super) half_open: HalfOpenTable,
    reports_left: u32,
    period_ends: Instant,
    /// Work in the period that ends at `work_period_ends`, microseconds.
    work: u32,
    work_period_ends: Instant,
}

/// How to handle an IKE_SA_INIT request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InitDecision {
    /// The request is a retransmission. This half-open IKE SA has the response.
    Retransmission(Spi),
    /// The request may create a half-open IKE SA.
    Accept,
    /// Nothing more is done: a cookie was sent back, or there are too many half-open IKE SAs in
    /// total or from this source, or too many expensive key exchanges.
    Discard,
}

impl InitRequestGuard {
    /// Decides how to handle an IKE_SA_INIT request. Sends a cookie back if one is required (RFC
    /// 7296 2.6).
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
        let full = self.half_open.len() >= config.half_open_limit && !mutation!("no_half_open_limit");
        if full || !self.half_open.has_room(request_len) {
            return InitDecision::Discard;
        }
        let work = self.work_with(message, cx.now);
        if work.is_some_and(|work| work > MAX_WORK) {
            tracing::trace!(%remote, "too many expensive key exchanges");
            return InitDecision::Discard;
        }
        //= RFC 7296 2.6 SHOULD 4: cookies against floods
        let busy = self.half_open.len() >= config.cookie_threshold;
        let expensive = work.is_some_and(|work| work > MAX_WORK_WITHOUT_COOKIE);
        if !(busy || expensive) || mutation!("no_cookies") {
            return InitDecision::Accept;
        }
        let Ok(nonce) = message.payloads.nonce() else {
            return InitDecision::Discard;
        };
        let cookies = match &mut self.cookies {
            Some(cookies) => cookies,
            None => self.cookies.insert(Cookies::new(cx.env, cx.now)),
        };
        //= RFC 7296 2.6 MUST 7: a wrong cookie is none
        if has_good_cookie(cookies, message, remote, cx) {
            let full = self.half_open.is_full_for(remote);
            return if full { InitDecision::Discard } else { InitDecision::Accept };
        }
        let cookie = Notify::with_data(NotifyType::Cookie, cookies.cookie(cx.env, cx.now, nonce, remote.ip(), spi));
        //= RFC 7296 2.6 REQUIRED 3: SPI zero before there is one
        let answer = Message::response(&message.header, 0, Payloads::from(vec![Payload::Notify(cookie)]));
        cx.out.message(local, remote, cx.config.nat_port, &answer.encode());
        InitDecision::Discard
    }

    /// Returns the work of this period including the answer to this request. Returns `None` if the
    /// answer needs no work that counts.
    fn work_with(&mut self, message: &Message, now: Instant) -> Option<u32> {
        if self.work_period_ends <= now {
            self.work_period_ends = now + WORK_PERIOD;
            self.work = 0;
        }
        let share = message.payloads.key_exchange().ok()?;
        let expense = Group::from_number(share.group)?.expense();
        (expense > 0).then(|| self.work.saturating_add(expense))
    }

    /// Counts the work for an IKE_SA_INIT request that was answered with a key exchange of this
    /// method.
    pub(super) fn count_work(&mut self, group: Group) {
        self.work = self.work.saturating_add(group.expense());
    }

    /// Returns whether an IKE_SA_INIT request returns a cookie that we have sent to this initiator.
    pub(super) fn returns_cookie(&mut self, message: &Message, remote: SocketAddr, cx: &mut Context<'_>) -> bool {
        self.cookies.as_mut().is_some_and(|cookies| has_good_cookie(cookies, message, remote, cx))
    }

    /// Returns whether an unauthenticated message may be reported or answered now. Each `true`
    /// counts towards [`MAX_REPORTS`].
    //= RFC 7296 2.4 MUST 5: rate of what unprotected messages cause
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

fn has_good_cookie(cookies: &mut Cookies, message: &Message, remote: SocketAddr, cx: &mut Context<'_>) -> bool {
    let (Some(cookie), Ok(nonce)) = (message.payloads.notify(NotifyType::Cookie), message.payloads.nonce()) else {
        return false;
    };
    let spi = message.header.initiator_spi;
    mutation!("any_cookie_accepted") || cookies.accepts(cx.env, cx.now, &cookie.data, nonce, remote.ip(), spi)
}
