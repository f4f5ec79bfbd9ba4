//! Renews the certificate when half of its lifetime is over, or soon after the controller has begun
//! to sign with another authority. The node generates a new key and sends the request over a
//! connection that the old certificate authenticates. Tunnels are not affected.

use std::time::{Duration, Instant};

use edge_types::api::{CertificateResponse, RenewalRequest};
use edge_types::jitter::between;
use hyper::Method;
use tokio::time::sleep;
use tracing::{info, warn};

use super::backoff::{Backoff, jitter};
use super::client::{ControllerClient, Member};
use super::error::ControllerError;
use super::http::Reconnect;
use super::node_identity::{self, NodeIdentity};
use super::tls::date;

/// Maximum time between two checks of the clock, because the clock may be set at any time. After
/// each sleep, the latest known time is written to disk (see [`crate::clock`]).
const CHECK_INTERVAL: Duration = Duration::from_secs(600);
/// Delay after a refusal, and after a renewal if the new certificate is still from the old
/// authority or is already due for renewal.
const REFUSED_WAIT: Duration = Duration::from_secs(300);
/// Default of `rollover_spread`. After a rollover each node renews its certificate at a random
/// moment within this time, so that ten thousand nodes cause 17 renewals per second.
const ROLLOVER_SPREAD: Duration = Duration::from_secs(600);

/// Runs until the agent ends.
pub(super) async fn run(controller: &ControllerClient) {
    let mut backoff = Backoff::default();
    let mut members = controller.member.subscribe();
    let mut rollover = Rollover::default();
    // The time of the last renewal, until a check finds that the certificate is not due for
    // renewal. While it is due, renewals are at least `REFUSED_WAIT` apart.
    let mut renewed: Option<Instant> = None;
    let mut logged_end: Option<String> = None;
    loop {
        let member = members.borrow_and_update().clone();
        log_end(controller, &mut logged_end);
        let wait = match member {
            None => CHECK_INTERVAL,
            Some(member) => match remaining(controller, &member.identity, &mut rollover) {
                Some(left) => {
                    renewed = None;
                    left.min(CHECK_INTERVAL)
                }
                None => match renewed.map_or(Duration::ZERO, |at| REFUSED_WAIT.saturating_sub(at.elapsed())) {
                    Duration::ZERO => match renew(controller, &member).await {
                        Ok(()) => {
                            backoff.reset();
                            rollover.attempted();
                            renewed = Some(Instant::now());
                            continue;
                        }
                        Err(error) => {
                            controller.record_error(&error);
                            if error.is_temporary() { backoff.next() } else { jitter(REFUSED_WAIT) }
                        }
                    },
                    left => {
                        warn!(
                            not_after = date(member.identity.credentials.not_after),
                            "half of the new certificate's lifetime is already over: compare this node's clock with the \
                             controller's, and see whether the controller's authority ends soon (edge-controller ca list)"
                        );
                        left
                    }
                },
            },
        };
        tokio::select! {
            () = sleep(wait) => {
                if let Err(error) = controller.clock.save_floor(&controller.state) {
                    warn!(%error, "cannot store the last known time");
                }
            }
            _ = members.changed() => {}
        }
    }
}

/// Returns the time until the renewal is due; `None` if it is due now.
fn remaining(controller: &ControllerClient, identity: &NodeIdentity, rollover: &mut Rollover) -> Option<Duration> {
    let left = identity.renew_at().checked_sub(controller.clock.unix_time()).filter(|left| *left > 0)?;
    let left = Duration::from_secs(left);
    // Up to a tenth of the time is subtracted at random, so that nodes that joined together do not
    // renew together.
    let half_life = left - left / 10 + jitter(left / 10);
    let spread = controller.config.controller.as_ref().and_then(|controller| controller.rollover_spread);
    match rollover.remaining(identity, spread.unwrap_or(ROLLOVER_SPREAD)) {
        Some(left) if left.is_zero() => None,
        Some(left) => Some(half_life.min(left)),
        None => Some(half_life),
    }
}

/// The time of a renewal that is due because of a new signing authority.
#[derive(Debug, Default)]
struct Rollover {
    /// The signing authority, DER, and the time at which this node renews.
    due: Option<(Vec<u8>, Instant)>,
}

impl Rollover {
    /// Returns the time until the renewal; `None` if the signing authority issued the certificate.
    fn remaining(&mut self, identity: &NodeIdentity, spread: Duration) -> Option<Duration> {
        if identity.is_of_signing_authority() {
            self.due = None;
            return None;
        }
        let signing = identity.credentials.trust_anchors.first().cloned().unwrap_or_default();
        let known = self.due.take().filter(|(known, _)| *known == signing);
        let (signing, due) = known.unwrap_or_else(|| (signing, Instant::now() + between(Duration::ZERO, spread)));
        self.due = Some((signing, due));
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Records that a renewal succeeded. If the new certificate is still not from the signing
    /// authority (because a replica of the controller still signs with the former authority), the
    /// next attempt is postponed.
    fn attempted(&mut self) {
        if let Some((_, due)) = &mut self.due {
            *due = Instant::now() + REFUSED_WAIT;
        }
    }
}

/// Logs once that the certificate has ended, and once that its grace has ended.
fn log_end(controller: &ControllerClient, logged: &mut Option<String>) {
    let ended = controller.certificate_ended();
    if ended != *logged {
        if let Some(ended) = &ended {
            warn!("{ended}");
        }
        *logged = ended;
    }
}

/// Renews the certificate of `member`, unless that was done in the meantime.
pub(super) async fn renew(controller: &ControllerClient, member: &Member) -> Result<(), ControllerError> {
    let _one = controller.renewing.lock().await;
    let present = controller.member.borrow().as_ref().map(|member| member.identity.credentials.not_after);
    if present != Some(member.identity.credentials.not_after) {
        return Ok(());
    }
    let key = node_identity::pending_key(&controller.state)?;
    let request = RenewalRequest { csr: node_identity::request(&key, member.node())? };
    let path = format!("/v1/nodes/{}/certificate", member.node());
    let response: CertificateResponse = member.http.call(Method::POST, &path, &request).await?;
    let renewed = NodeIdentity::accept(
        &response,
        &key,
        member.node(),
        member.role(),
        &member.identity.token_id,
        &controller.clock,
    )?;
    renewed.store(&controller.state)?;
    node_identity::forget_pending_key(&controller.state)?;
    info!(node = %member.node(), not_after = date(renewed.credentials.not_after), "certificate renewed");
    controller.become_member(renewed, Reconnect::Yes).await?;
    Ok(())
}
