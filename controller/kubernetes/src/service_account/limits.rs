//! Limits how many service account tokens are reviewed at the same time, so that callers with wrong
//! tokens neither overload the API server nor block other clients.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_controller_domain::source_shares;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Maximum number of concurrent reviews.
const AT_ONCE: usize = 8;
/// Maximum number of concurrent reviews for one source. The next free review goes to another
/// source, however many requests from this source wait.
const OF_ONE_SOURCE: usize = 4;
/// Maximum number of reviews for one source that run or wait, with their request bodies. Further
/// reviews are refused at once.
const OF_ONE_SOURCE_IN_ALL: usize = 32;
/// Maximum wait for a review.
const PATIENCE: Duration = Duration::from_secs(10);

/// The limits for all sources.
#[derive(Debug)]
pub struct ReviewLimits {
    all: Arc<Semaphore>,
    /// The limits for sources with reviews that run or wait.
    sources: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// Permission for one review. The permission ends when this value is dropped.
pub struct ReviewPermit<'a> {
    limits: &'a ReviewLimits,
    source: IpAddr,
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Default for ReviewLimits {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE)), sources: Mutex::default() }
    }
}

impl ReviewLimits {
    /// Waits for permission to review a token from this address; `None` if too many reviews are
    /// waiting, or if the permission does not come in time.
    pub async fn acquire(&self, from: Option<IpAddr>) -> Option<ReviewPermit<'_>> {
        let source = source_shares::source(from.unwrap_or(Ipv6Addr::UNSPECIFIED.into()));
        let of_source = self.sources().entry(source).or_insert_with(|| Arc::new(Semaphore::new(OF_ONE_SOURCE))).clone();
        // The map, this call and every other running or waiting review hold a reference to the
        // source's limits.
        if Arc::strong_count(&of_source) > OF_ONE_SOURCE_IN_ALL + 1 {
            return None;
        }
        // The permit is made first, so that the entry of a caller that stops waiting is also
        // removed.
        let mut permit = ReviewPermit { limits: self, source, permits: None };
        let both = async {
            let own = of_source.acquire_owned().await?;
            Ok::<_, AcquireError>((own, self.all.clone().acquire_owned().await?))
        };
        permit.permits = Some(tokio::time::timeout(PATIENCE, both).await.ok()?.ok()?);
        Some(permit)
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ReviewPermit<'_> {
    fn drop(&mut self) {
        let mut sources = self.limits.sources();
        self.permits = None;
        // Every running or waiting review holds a reference to the source's limits.
        if sources.get(&self.source).is_some_and(|source| Arc::strong_count(source) == 1) {
            sources.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn one_source_does_not_hold_all_permits_and_none_is_remembered() {
        let limits = ReviewLimits::default();
        let (greedy, other) = (Some("192.0.2.1".parse().unwrap()), Some("198.51.100.1".parse().unwrap()));
        let mut held = Vec::new();
        for _ in 0..OF_ONE_SOURCE {
            held.push(limits.acquire(greedy).await.unwrap());
        }
        assert!(limits.acquire(greedy).now_or_never().is_none(), "it waits");
        for _ in 0..AT_ONCE - OF_ONE_SOURCE {
            held.push(limits.acquire(other).await.unwrap());
        }
        assert_eq!(limits.all.available_permits(), 0);
        held.truncate(1);
        assert!(limits.acquire(greedy).await.is_some());
        drop(held);
        assert_eq!((limits.sources().len(), limits.all.available_permits()), (0, AT_ONCE));
    }

    #[tokio::test]
    async fn few_of_one_source_wait_and_the_rest_are_refused_at_once() {
        let limits = ReviewLimits::default();
        let source = Some("192.0.2.1".parse().unwrap());
        let mut held = Vec::new();
        for _ in 0..OF_ONE_SOURCE {
            held.push(limits.acquire(source).await.unwrap());
        }
        let mut waiting: Vec<_> =
            (OF_ONE_SOURCE..OF_ONE_SOURCE_IN_ALL).map(|_| Box::pin(limits.acquire(source))).collect();
        assert!(waiting.iter_mut().all(|permit| permit.now_or_never().is_none()));
        assert!(limits.acquire(source).await.is_none(), "one too many");
        drop((waiting, held));
        assert!(limits.sources().is_empty());
    }
}
