//! The timers of IKE.

use std::time::Duration;

use edge_ike::config::Timing;
use serde::Deserialize;

use super::duration;

/// The table `[timing]`: each key overrides a default of [`Timing`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingSection {
    /// Time without any packet from the peer, although this node sends to it, after which the
    /// peer's liveness is checked.
    #[serde(with = "duration::optional")]
    pub liveness: Option<Duration>,
    /// Time without an IKE message after which an idle peer's liveness is checked.
    #[serde(with = "duration::optional")]
    pub idle_liveness: Option<Duration>,
    /// Delay before the first retransmission; doubled each time.
    #[serde(with = "duration::optional")]
    pub retransmit: Option<Duration>,
    /// Transmissions of one request before the IKE SA counts as dead.
    pub transmissions: Option<u32>,
    /// Soft lifetime of a CHILD_SA.
    #[serde(with = "duration::optional")]
    pub child_lifetime: Option<Duration>,
    /// Lifetime of the keys of an IKE SA, after which it is rekeyed.
    #[serde(with = "duration::optional")]
    pub ike_lifetime: Option<Duration>,
    /// Time for which a peer's authentication is valid, no matter how often the IKE SA is rekeyed.
    #[serde(with = "duration::optional")]
    pub authentication_lifetime: Option<Duration>,
    /// Time for which the old inbound SA stays after a rekey.
    #[serde(with = "duration::optional")]
    pub linger: Option<Duration>,
    /// Delay before the next attempt after a failure; doubled after each further failure, up to
    /// `retry_max`.
    #[serde(with = "duration::optional")]
    pub retry: Option<Duration>,
    /// Maximum delay between attempts.
    #[serde(with = "duration::optional")]
    pub retry_max: Option<Duration>,
    /// Interval of NAT keepalives.
    #[serde(with = "duration::optional")]
    pub nat_keepalive: Option<Duration>,
}

impl TimingSection {
    /// Returns the timers, with defaults for the keys that are not set.
    pub fn resolve(&self) -> Timing {
        let default = Timing::default();
        Timing {
            liveness: self.liveness.unwrap_or(default.liveness),
            idle_liveness: self.idle_liveness.unwrap_or(default.idle_liveness),
            idle_share: default.idle_share,
            retransmit: self.retransmit.unwrap_or(default.retransmit),
            transmissions: self.transmissions.unwrap_or(default.transmissions),
            patient: default.patient,
            child_lifetime: self.child_lifetime.unwrap_or(default.child_lifetime),
            ike_lifetime: self.ike_lifetime.unwrap_or(default.ike_lifetime),
            authentication_lifetime: self.authentication_lifetime.unwrap_or(default.authentication_lifetime),
            linger: self.linger.unwrap_or(default.linger),
            retry: self.retry.unwrap_or(default.retry),
            retry_max: self.retry_max.unwrap_or(default.retry_max),
            nat_keepalive: self.nat_keepalive.unwrap_or(default.nat_keepalive),
        }
    }
}
