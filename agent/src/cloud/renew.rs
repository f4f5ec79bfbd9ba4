//! The certificate is renewed in place when half of its life is over: a new key, asked for with the old certificate, stored as one file with its new
//! certificate. No tunnel notices.

use std::time::Duration;

use edge_types::api::{CertificateRequest, CertificateResponse};
use hyper::Method;
use tokio::time::sleep;
use tracing::{info, warn};

use super::backoff::{Backoff, jitter};
use super::error::CloudError;
use super::identity::{self, Identity};
use super::tls::date;
use super::{Cloud, Member};

/// Longest sleep between two looks at the clock, which may be set while we sleep; the known time is kept on disk as often.
const LOOK: Duration = Duration::from_secs(600);
/// Wait after a refusal.
const SLOW: Duration = Duration::from_secs(300);

/// Runs until the agent ends.
pub(super) async fn run(cloud: &Cloud) {
    let mut backoff = Backoff::default();
    let mut members = cloud.member.subscribe();
    loop {
        let member = members.borrow_and_update().clone();
        let wait = match member {
            None => LOOK,
            Some(member) => match remaining(cloud, &member.identity) {
                // Whoever has another certificate half a life later shall not come with all others: the wait is cut by up to a tenth.
                Some(left) => (left - left / 10 + jitter(left / 10)).min(LOOK),
                None => match renew(cloud, &member).await {
                    Ok(()) => {
                        backoff.reset();
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
fn remaining(cloud: &Cloud, identity: &Identity) -> Option<Duration> {
    let left = identity.renew_at().checked_sub(cloud.clock.unix_time())?;
    (left > 0).then(|| Duration::from_secs(left))
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
    cloud.become_member(renewed).await?;
    Ok(())
}
