//! Decides how to handle IKE_SA_INIT requests, which any host can send: whether the initiator must
//! return a cookie first, and whether the limits allow the request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::answer_limit::AnswerLimit;
use super::half_open::HalfOpenTable;
use super::key_exchange_budget::{KeyExchangeBudget, Work};
use super::source::Source;
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
/// Maximum number of refused IKE_AUTH requests of one source in each [`REFUSAL_PERIOD`]. Each costs
/// a key exchange and up to eight certificates. Further messages of its half-open IKE SAs are
/// dropped until the period ends. An honest initiator sends its request again.
const MAX_REFUSALS: u32 = 16;
const REFUSAL_PERIOD: Duration = Duration::from_secs(1);
/// Maximum number of sources whose refused requests are counted in a period. Each has completed an
/// IKE_SA_INIT exchange, so it cannot forge addresses. Refusals of further sources do not count.
const MAX_REFUSED_SOURCES: usize = 4096;

/// The state about unauthenticated initiators.
#[derive(Debug, Default)]
pub(super) struct InitRequestGuard {
    cookies: Option<Cookies>,
    pub(super) half_open: HalfOpenTable,
    pub(super) answer_limit: AnswerLimit,
    reports_left: u32,
    period_ends: Instant,
    pub(super) key_exchanges: KeyExchangeBudget,
    /// Refused IKE_AUTH requests in the period that ends at `refusals_end`.
    refusals: HashMap<Source, u32>,
    refusals_end: Instant,
}

/// How to handle an IKE_SA_INIT request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InitDecision {
    /// The request is a retransmission. This half-open IKE SA has the response.
    Retransmission(Spi),
    /// The request may create a half-open IKE SA.
    Accept,
    /// Nothing more is done: a cookie was sent back, or enough of them were, or there are too many
    /// half-open IKE SAs from configured addresses, or too many expensive key exchanges.
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
        (remote, source): (SocketAddr, Source),
        config: &EndpointConfig,
        cx: &mut Context<'_>,
    ) -> InitDecision {
        let spi = message.header.initiator_spi;
        if let Some(known) = self.half_open.get(remote, spi) {
            return InitDecision::Retransmission(known);
        }
        // Another half-open IKE SA makes room only for an initiator whose address is not forged.
        let full = self.half_open.is_full(request_len, config);
        if full && !self.half_open.can_make_room_for(source) {
            return InitDecision::Discard;
        }
        self.forget_refusals(cx.now);
        let group = message.payloads.key_exchange().ok().and_then(|share| Group::from_number(share.group));
        let work = group.map_or(Work::Free, |group| self.key_exchanges.check(group, source, cx.now));
        if work == Work::TooMuch {
            tracing::trace!(%remote, "too many expensive key exchanges");
            return InitDecision::Discard;
        }
        //= RFC 7296 2.6 SHOULD 4: cookies against floods
        let busy = full || self.half_open.len() >= config.cookie_threshold;
        let expensive = work == Work::NeedsCookie;
        let refused = self.refusals.contains_key(&source);
        if !(busy || expensive || refused) || mutation!("no_cookies") {
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
            return InitDecision::Accept;
        }
        if !self.answer_limit.may_answer(source, cx.now) {
            return InitDecision::Discard;
        }
        let cookie = Notify::with_data(NotifyType::Cookie, cookies.cookie(cx.env, cx.now, nonce, remote.ip(), spi));
        //= RFC 7296 2.6 REQUIRED 3: SPI zero before there is one
        let answer = Message::response(&message.header, 0, Payloads::from(vec![Payload::Notify(cookie)]));
        cx.out.message(local, remote, cx.config.nat_port, &answer.encode());
        InitDecision::Discard
    }

    fn forget_refusals(&mut self, now: Instant) {
        // A clock that was set back does not prolong the period.
        if self.refusals_end <= now || self.refusals_end.saturating_since(now) > REFUSAL_PERIOD {
            self.refusals_end = now + REFUSAL_PERIOD;
            self.refusals.clear();
        }
    }

    /// Returns whether to handle a message of a half-open IKE SA. Afterwards, call
    /// [`Self::count_refusal`] if it was refused.
    pub(super) fn may_authenticate(&mut self, source: Source, now: Instant) -> bool {
        self.forget_refusals(now);
        self.refusals.get(&source).is_none_or(|refused| *refused < MAX_REFUSALS)
    }

    /// Counts an IKE_AUTH request that was refused. `source` is the one of IKE_SA_INIT: it has been
    /// shown to be real, since the sender knows what was sent to it.
    pub(super) fn count_refusal(&mut self, source: Source) {
        if self.refusals.len() < MAX_REFUSED_SOURCES || self.refusals.contains_key(&source) {
            let refused = self.refusals.entry(source).or_default();
            *refused = refused.saturating_add(1);
        }
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
