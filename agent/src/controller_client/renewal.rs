//! The certificate is renewed in place when half of its life is over, or soon after the controller
//! began to sign with another authority: a new key, asked for with the old certificate, stored as
//! one file with its new certificate. No tunnel notices.

use std::time::{Duration, Instant};

use edge_types::api::{CertificateRequest, CertificateResponse};
use edge_types::jitter::between;
use hyper::Method;
use tokio::time::sleep;
use tracing::{info, warn};

use super::backoff::{Backoff, jitter};
use super::error::CloudError;
use super::identity::{self, Identity};
use super::tls::date;
use super::{Cloud, Connection, Member};

/// Longest sleep between two looks at the clock, which may be set while we sleep; the known time is
/// kept on disk as often.
const LOOK: Duration = Duration::from_secs(600);
/// Wait after a refusal, and after a renewal that did not bring what it was for.
const SLOW: Duration = Duration::from_secs(300);
/// After a rollover of the authority nodes renew at any moment within so long, unless configured
/// otherwise: ten thousand come at 17 a second.
const ROLLOVER_SPREAD: Duration = Duration::from_secs(600);

/// Runs until the agent ends.
pub(super) async fn run(cloud: &Cloud) {
    let mut backoff = Backoff::default();
    let mut members = cloud.member.subscribe();
    let mut rollover = Rollover::default();
    loop {
        let member = members.borrow_and_update().clone();
        let wait = match member {
            None => LOOK,
            Some(member) => match remaining(cloud, &member.identity, &mut rollover) {
                Some(left) => left.min(LOOK),
                None => match renew(cloud, &member).await {
                    Ok(()) => {
                        backoff.reset();
                        rollover.attempted();
                        continue;
                    }
                    Err(error) => {
                        cloud.note_error(&error);
                        if error.is_temporary() { backoff.next() } else { jitter(SLOW) }
                    }
                },
            },
        };
        tokio::select! {
            () = sleep(wait) => {
                if let Err(error) = cloud.clock.keep(&cloud.state) {
                    warn!(%error, "the time is not kept");
                }
            }
            _ = members.changed() => {}
        }
    }
}

/// Until renewal is due; `None` if it is.
fn remaining(cloud: &Cloud, identity: &Identity, rollover: &mut Rollover) -> Option<Duration> {
    let left = identity.renew_at().checked_sub(cloud.clock.unix_time()).filter(|left| *left > 0)?;
    let left = Duration::from_secs(left);
    // Whoever has another certificate half a life later shall not come with all others: the wait is
    // cut by up to a tenth.
    let half_life = left - left / 10 + jitter(left / 10);
    let spread = cloud.config.controller.as_ref().and_then(|controller| controller.rollover_spread);
    match rollover.remaining(identity, spread.unwrap_or(ROLLOVER_SPREAD)) {
        Some(left) if left.is_zero() => None,
        Some(left) => Some(half_life.min(left)),
        None => Some(half_life),
    }
}

/// When to renew because another authority signs now.
#[derive(Debug, Default)]
struct Rollover {
    /// The authority that signs now, DER, and when.
    due: Option<(Vec<u8>, Instant)>,
}

impl Rollover {
    /// Until then; `None` where the certificate is of the authority that signs.
    fn remaining(&mut self, identity: &Identity, spread: Duration) -> Option<Duration> {
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

    /// A renewal succeeded. Should its certificate be of another authority still (a replica of the
    /// controller that has not heard), there is time.
    fn attempted(&mut self) {
        if let Some((_, due)) = &mut self.due {
            *due = Instant::now() + SLOW;
        }
    }
}

async fn renew(cloud: &Cloud, member: &Member) -> Result<(), CloudError> {
    let key = identity::pending_key(&cloud.state)?;
    let request = CertificateRequest { csr: identity::request(&key, member.node())? };
    let path = format!("/v1/nodes/{}/certificate", member.node());
    let answer: CertificateResponse = member.client.call(Method::POST, &path, &request).await?;
    let renewed =
        Identity::accept(&answer, &key, member.node(), member.role(), &member.identity.token_id, &cloud.clock)?;
    renewed.store(&cloud.state)?;
    identity::forget_pending_key(&cloud.state)?;
    info!(node = %member.node(), not_after = date(renewed.credentials.not_after), "certificate renewed");
    cloud.become_member(renewed, Connection::Anew).await?;
    Ok(())
}
