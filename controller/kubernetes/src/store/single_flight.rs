//! Shares one result among concurrent callers. The result is never older than the call.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// A counter of calls, with the last result.
pub(super) struct SingleFlight<T> {
    calls: AtomicU64,
    /// The last result, and the number of the last call before the work for that result began.
    result: Mutex<Option<(u64, T)>>,
}

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        Self { calls: AtomicU64::new(0), result: Mutex::default() }
    }
}

impl<T: Clone> SingleFlight<T> {
    /// Returns a result of work that began after this call: the work of another caller, or `work`.
    pub(super) async fn run(&self, work: impl AsyncFnOnce() -> T) -> T {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let mut result = self.result.lock().await;
        if let Some((up_to, known)) = &*result
            && *up_to >= call
        {
            return known.clone();
        }
        let up_to = self.calls.load(Ordering::SeqCst);
        let new = work().await;
        *result = Some((up_to, new.clone()));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;

    #[tokio::test]
    async fn concurrent_calls_share_a_result_that_is_newer_than_they_are() {
        let (flight, count) = (SingleFlight::default(), AtomicU64::new(0));
        let start = || {
            flight.run(async || {
                tokio::task::yield_now().await;
                count.fetch_add(1, Ordering::SeqCst) + 1
            })
        };
        let mut results = join_all((0..10).map(|_| start())).await;
        results.sort_unstable();
        // The first call does its own work. All other calls came before the second work began, so
        // they share its result.
        assert!(results.iter().all(|result| *result <= 2), "{results:?}");
        assert_eq!(start().await, results[9] + 1, "a later call does not get an old result");
    }
}
