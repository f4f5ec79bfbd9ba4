//! Holds the health of this process, apart from the registry's state.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use edge_controller_domain::clock::Seconds;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The tasks of this process, whether the process is stopping, and when its own certificate
/// expires.
#[derive(Debug, Default)]
pub struct Health {
    /// Tasks that run as long as the server does.
    tasks: Mutex<Vec<(&'static str, AbortHandle)>>,
    /// Whether this replica leads; `None` if there is no leader.
    leading: OnceLock<watch::Receiver<bool>>,
    stopping: AtomicBool,
    server_certificate_end: AtomicI64,
}

/// The name of a check and its error.
pub(super) type Check = (&'static str, Result<(), String>);

impl Health {
    /// Adds a task that must run as long as the server does.
    pub(crate) fn watch(&self, name: &'static str, task: &AbortHandle) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push((name, task.clone()));
    }

    /// Sets the receiver whose value is true while this replica leads.
    pub(crate) fn follow_leadership(&self, leading: watch::Receiver<bool>) {
        // This method is called only once.
        let _ = self.leading.set(leading);
    }

    /// Returns whether this replica leads.
    pub(super) fn leads(&self) -> bool {
        self.leading.get().is_some_and(|leading| *leading.borrow())
    }

    /// Records that the server is stopping and no longer ready.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Records when the certificate that nodes now receive expires.
    pub(crate) fn server_certificate(&self, not_after: Seconds) {
        self.server_certificate_end.store(not_after, Ordering::Relaxed);
    }

    /// Returns when the certificate that nodes now receive expires; `None` before there is a
    /// certificate.
    pub(super) fn server_certificate_end(&self) -> Option<Seconds> {
        Some(self.server_certificate_end.load(Ordering::Relaxed)).filter(|end| *end != 0)
    }

    /// Returns whether the server is stopping.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Makes one check for each task.
    pub(super) fn tasks(&self) -> Vec<Check> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // When the server stops, the tasks end as intended.
        let stopping = self.is_stopping();
        let state = |task: &AbortHandle| match task.is_finished() && !stopping {
            true => Err("it ended; its last words are in the log".to_owned()),
            false => Ok(()),
        };
        tasks.iter().map(|(name, task)| (*name, state(task))).collect()
    }
}
