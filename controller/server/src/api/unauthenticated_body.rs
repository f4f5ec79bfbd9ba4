//! Reads the bodies of requests from callers without a certificate. All these bodies share one
//! memory budget.
//!
//! A body counts from its first octet on, with its present size in memory. When the budget is used
//! up, the oldest body from the network that sends the most is dropped ([`SourceShares`]). A
//! joining node sends its 2 KiB at once, so its body is complete before it becomes the oldest.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{FromRef, FromRequest, Request};
use edge_controller_domain::source_shares::{Share, SourceShares};
use http_body_util::BodyExt;
use zeroize::Zeroizing;

use super::body::check_media_type;
use super::caller::Caller;
use super::error::ApiError;

/// Memory budget for all bodies together, in octets.
const BUDGET: usize = 4 * 1024 * 1024;
/// Maximum size of a body, in octets. A join request takes 1 KiB, or 3 KiB with a service account
/// token.
const LIMIT: usize = 16 * 1024;
/// Octets by which the memory of a body grows. A body is counted with this much from the start,
/// which also covers the other memory of a request.
const STEP: usize = 4 * 1024;
/// Time limit for a body to arrive.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The free memory for bodies and the shares of the memory in use.
#[derive(Clone, Debug, Default)]
pub(super) struct BodyBudget(Arc<Mutex<SourceShares>>);

/// A body while it arrives.
struct Arriving<'a> {
    bodies: &'a BodyBudget,
    from: IpAddr,
    share: Share,
}

/// A complete body that is not parsed yet.
pub(super) struct UnauthenticatedBody(pub(super) Zeroizing<Vec<u8>>);

impl BodyBudget {
    fn shares(&self) -> MutexGuard<'_, SourceShares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops bodies until this many octets are free.
    fn make_room(shares: &mut SourceShares, from: IpAddr, octets: usize, now: Instant) {
        while shares.total() + octets > BUDGET {
            if shares.displace_for(from, octets, Duration::ZERO, now).is_none() {
                return;
            }
        }
    }

    async fn read(&self, from: IpAddr, body: axum::body::Body) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        let (share, displaced) = {
            let (mut shares, now) = (self.shares(), Instant::now());
            Self::make_room(&mut shares, from, STEP, now);
            shares.enter(from, STEP, now)
        };
        let arriving = Arriving { bodies: self, from, share };
        tokio::select! {
            biased;
            () = displaced.cancelled() => Err(ApiError::Crowded),
            read = tokio::time::timeout(TIMEOUT, arriving.take(body)) => {
                read.unwrap_or(Err(ApiError::TooSlow(TIMEOUT.as_secs())))
            }
        }
    }
}

impl Arriving<'_> {
    /// Copies the data as it arrives, because a small part of a frame would keep its whole buffer
    /// in memory.
    async fn take(&self, mut body: axum::body::Body) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(STEP));
        while let Some(frame) = body.frame().await {
            // The text of hyper's error contains no part of the body.
            let frame = frame.map_err(|error| ApiError::BadJson(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > LIMIT {
                return Err(ApiError::TooLarge(LIMIT));
            }
            if length > bytes.capacity() {
                let more = length.next_multiple_of(STEP) - bytes.capacity();
                self.grow(more)?;
                let mut larger = Zeroizing::new(Vec::with_capacity(bytes.capacity() + more));
                larger.extend_from_slice(&bytes);
                bytes = larger;
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    fn grow(&self, more: usize) -> Result<(), ApiError> {
        let mut shares = self.bodies.shares();
        BodyBudget::make_room(&mut shares, self.from, more, Instant::now());
        // The dropped body may be this one.
        if shares.grow(self.share, more) { Ok(()) } else { Err(ApiError::Crowded) }
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.bodies.shares().leave(self.share);
    }
}

impl<S: Send + Sync> FromRequest<S> for UnauthenticatedBody
where
    BodyBudget: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        check_media_type(request.headers())?;
        let address = request.extensions().get::<Caller>().and_then(|caller| caller.address);
        // This drops the headers, so that they are not kept while the body arrives.
        let body = request.into_body();
        BodyBudget::from_ref(state)
            .read(address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), body)
            .await
            .map(UnauthenticatedBody)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use futures_util::{FutureExt, StreamExt};
    use hyper::body::Bytes;

    /// Makes a body that starts with `part` and never ends.
    fn half(part: &'static [u8]) -> Body {
        let part = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(part))]);
        Body::from_stream(part.chain(futures_util::stream::pending()))
    }

    #[tokio::test]
    async fn bodies_that_never_end_stay_within_the_budget_and_keep_no_other_source_out() {
        let bodies = BodyBudget::default();
        let (attacker, other): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "198.51.100.1".parse().unwrap());
        let (ended, mut first) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..2 * BUDGET / STEP {
            let (of_task, ended) = (bodies.clone(), ended.clone());
            tokio::spawn(async move { ended.send(of_task.read(attacker, half(b"{")).await.map(drop)) });
            tokio::task::yield_now().await;
            assert!(bodies.shares().total() <= BUDGET);
        }
        assert!(matches!(first.recv().await, Some(Err(ApiError::Crowded))));
        let read = bodies.read(other, Body::from(vec![b' '; LIMIT])).await.unwrap();
        assert_eq!(read.len(), LIMIT);
        assert!(bodies.shares().total() <= BUDGET);
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_or_given_up_gives_back_what_it_had() {
        let bodies = BodyBudget::default();
        let from = "192.0.2.1".parse().unwrap();
        let large = bodies.read(from, Body::from(vec![b' '; LIMIT + 1])).await;
        assert!(matches!(large, Err(ApiError::TooLarge(LIMIT))));
        assert!(bodies.read(from, half(b"{")).now_or_never().is_none());
        assert_eq!(bodies.shares().total(), 0);
    }
}
