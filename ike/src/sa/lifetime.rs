//! The lifetime of an IKE SA (RFC 7296 2.8: an IKE SA MUST NOT be used beyond its lifetime). There
//! are two lifetimes: that of the keys, which a rekey replaces, and that of the peer's
//! authentication, which only IKE_AUTH renews. The authentication also ends when the grace after
//! the end of the peer's certificate is over, or the configuration changes. Its lifetime is counted
//! from IKE_AUTH, so a rekey of the IKE SA does not prolong it.

use std::time::Duration;

use super::failure::{self, IKE_AUTH};
use super::initiation::Initiation;
use super::profile::Profile;
use crate::auth::AuthError;
use crate::event::{PeerError, PeerErrorKind};
use crate::output::Context;
use crate::time::Instant;

/// Time for which an IKE SA continues after the configured credentials have changed, or after the
/// configuration has taken traffic from it. Within this time, the operator must also change the
/// credentials at the peer.
const CONFIGURATION_CHANGE_GRACE: Duration = Duration::from_secs(300);
/// Time over which the new authentications are spread after such a change. There is one with each
/// peer for which we are the initiator.
const CONFIGURATION_CHANGE_SPREAD: Duration = Duration::from_secs(60);
/// Minimum time between two authentications of a peer, even if a certificate expires earlier.
const MIN_RENEWAL: Duration = Duration::from_secs(60);

/// The times at which an IKE SA ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetime {
    /// When the peer was authenticated.
    authenticated: Instant,
    /// When the IKE SA ends because the peer has not authenticated again.
    authentication_end: Instant,
    /// When the keys were made.
    keyed: Instant,
    /// When the IKE SA ends because it has not been rekeyed.
    keys_end: Instant,
    /// notAfter of the peer's certificate, seconds since 1970-01-01 UTC.
    certificate: Option<u64>,
    /// When the IKE SA ends because the credentials or the traffic selectors changed and the peer
    /// has not authenticated again.
    configuration_changed: Option<Instant>,
}

impl Lifetime {
    /// Starts the lifetime at the peer's authentication, which is now.
    pub(super) fn begin(profile: &Profile, certificate: Option<u64>, now: Instant) -> Self {
        let timing = profile.config.timing;
        Self {
            authenticated: now,
            authentication_end: now + timing.authentication_hard_lifetime(),
            keyed: now,
            keys_end: now + timing.ike_hard_lifetime(),
            certificate,
            configuration_changed: None,
        }
    }

    /// Returns the lifetime of the IKE SA that replaces this one by a rekey at `now`. The keys are
    /// new, but the peer has not authenticated again.
    pub(super) fn rekeyed(&self, profile: &Profile, now: Instant) -> Self {
        Self { keyed: now, keys_end: now + profile.config.timing.ike_hard_lifetime(), ..*self }
    }

    /// Returns the time at which the peer was authenticated.
    pub(super) fn authenticated(&self) -> Instant {
        self.authenticated
    }

    /// Returns the time at which to rekey the IKE SA.
    pub(super) fn rekey(&self, profile: &Profile, initiation: Initiation, cx: &mut Context<'_>) -> Instant {
        self.keyed + soft(profile.config.timing.ike_lifetime, initiation, cx)
    }

    /// Returns the time at which the peer should authenticate again.
    pub(super) fn reauthentication(&self, profile: &Profile, initiation: Initiation, cx: &mut Context<'_>) -> Instant {
        let by_lifetime = soft(profile.config.timing.authentication_lifetime, initiation, cx);
        // A certificate is renewed before it expires, and the peer must receive the new certificate
        // before that.
        let now = cx.env.unix_time();
        let grace = profile.auth.certificate_grace();
        let ends = self.certificate.into_iter().chain(profile.auth.not_after());
        // After its end, a certificate is renewed before the grace ends. If ours has no grace left
        // either, another IKE_AUTH does not help: the peer accepts the certificate or does not.
        let ends = ends.map(|end| if end > now { end } else { end.saturating_add(grace) }).filter(|end| *end > now);
        let by_certificate = ends.min().map(|end| {
            // From the authentication on, like the result.
            let since = cx.now.saturating_since(self.authenticated);
            let whole = Duration::from_secs(end.saturating_sub(now)).saturating_add(since);
            match initiation {
                Initiation::ByUs(_) => cx.jittered(whole / 4 * 3),
                Initiation::ByPeer(_) => whole / 8 * 7,
            }
        });
        let wait = by_certificate.map_or(by_lifetime, |wait| wait.max(MIN_RENEWAL).min(by_lifetime));
        self.authenticated + wait
    }

    /// Applies a change of a configured lifetime. The IKE SA continues for at least
    /// [`CONFIGURATION_CHANGE_GRACE`], even if the new lifetime has already ended, so that it can
    /// be replaced.
    pub(super) fn change(&mut self, profile: &Profile, now: Instant) {
        let (timing, grace) = (profile.config.timing, now + CONFIGURATION_CHANGE_GRACE);
        self.authentication_end = (self.authenticated + timing.authentication_hard_lifetime()).max(grace);
        self.keys_end = (self.keyed + timing.ike_hard_lifetime()).max(grace);
    }

    /// Applies a change of the configured credentials or traffic selectors. Returns the time at
    /// which to authenticate the peer again.
    pub(super) fn configuration_changed(&mut self, cx: &mut Context<'_>) -> Instant {
        let end = cx.now + CONFIGURATION_CHANGE_GRACE;
        self.configuration_changed = Some(self.configuration_changed.map_or(end, |earlier| earlier.min(end)));
        let tenth = CONFIGURATION_CHANGE_SPREAD.saturating_sub(cx.jittered(CONFIGURATION_CHANGE_SPREAD));
        cx.now + tenth.saturating_mul(10)
    }

    /// Returns whether [`Self::configuration_changed`] was called.
    pub(super) fn must_be_replaced(&self) -> bool {
        self.configuration_changed.is_some()
    }

    /// Returns the time at which to call [`Self::over`].
    pub(super) fn check_at(&self, profile: &Profile, cx: &Context<'_>) -> Instant {
        let certificate = self.certificate.map(|not_after| {
            let end = not_after.saturating_add(profile.auth.certificate_grace());
            // The certificate expires in the second after notAfter (RFC 5280 4.1.2.5).
            let left = end.saturating_add(1).saturating_sub(cx.env.unix_time());
            cx.now + Duration::from_secs(left)
        });
        let end = self.authentication_end.min(self.keys_end);
        [certificate, self.configuration_changed].into_iter().flatten().fold(end, Instant::min)
    }

    /// Returns the reason if the lifetime has ended. The wall clock may have been stepped, so call
    /// this at every deadline.
    //= RFC 7296 2.8 MUST NOT 1: nothing lives beyond its lifetime
    pub(super) fn over(&self, profile: &Profile, cx: &Context<'_>) -> Option<PeerError> {
        let now = cx.env.unix_time();
        let grace = profile.auth.certificate_grace();
        if let Some(not_after) = self.certificate.filter(|not_after| not_after.saturating_add(grace) < now) {
            return Some(failure::auth(&AuthError::Expired { not_after, now }));
        }
        let expired = |detail: &str| Some(PeerError::new(IKE_AUTH, PeerErrorKind::Expired, detail.to_owned()));
        if self.configuration_changed.is_some_and(|end| end <= cx.now) {
            return expired(
                "the credentials or networks configured here changed, and the peer has not authenticated anew within 5 minutes; \
                 if credentials changed, change them at the peer too",
            );
        }
        if self.authentication_end <= cx.now {
            return expired(
                "the peer has not authenticated again within one and a half of the lifetime of its authentication; earlier errors say why, and if \
                 there are none, this node knows no address to begin with and the peer did not begin",
            );
        }
        if self.keys_end <= cx.now {
            return expired(
                "the IKE SA was neither rekeyed nor replaced within one and a half of its lifetime; earlier errors say why, and if there are none, \
                 this node knows no address to begin with and the peer did not begin",
            );
        }
        None
    }
}

/// Returns the time after which an SA is renewed. Normally the end that initiated the IKE SA renews
/// it. The other end waits longer, and renews it only if the initiator did not.
//= RFC 7296 2.8 REQUIRED 8: rekey in time
fn soft(lifetime: Duration, initiation: Initiation, cx: &mut Context<'_>) -> Duration {
    match initiation {
        Initiation::ByUs(_) => cx.jittered(lifetime),
        Initiation::ByPeer(_) => lifetime.saturating_add(lifetime / 4),
    }
}
