//! Whether this process is alive, and whether it can serve. Both answers are lists of checks, as
//! Kubernetes' own programs give them.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use edge_controller_domain::clock::{Seconds, rfc3339};
use edge_controller_domain::store::StoreError;
use tokio::task::AbortHandle;

use super::Observed;

/// Time within which the store must have carried out a plan that changes nothing, behind those that
/// wait already.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of this process' state beyond the registry's.
#[derive(Debug, Default)]
pub struct Health {
    /// Loops that run as long as the server does.
    loops: Mutex<Vec<(&'static str, AbortHandle)>>,
    stopping: AtomicBool,
    server_certificate_end: AtomicI64,
}

/// One check: what is looked at, and what is wrong.
pub(super) type Check = (&'static str, Result<(), String>);

impl Health {
    /// A loop that must run as long as the server does.
    pub(crate) fn watch(&self, name: &'static str, task: &AbortHandle) {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).push((name, task.clone()));
    }

    /// The server is about to stop: not ready any more.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The end of the certificate that nodes now see.
    pub(crate) fn server_certificate(&self, not_after: Seconds) {
        self.server_certificate_end.store(not_after, Ordering::Relaxed);
    }

    pub(super) fn server_certificate_end(&self) -> Option<Seconds> {
        Some(self.server_certificate_end.load(Ordering::Relaxed)).filter(|end| *end != 0)
    }

    fn loops(&self) -> Vec<Check> {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        // When the server stops, they end as they should.
        let stopping = self.stopping.load(Ordering::Relaxed);
        let state = |task: &AbortHandle| match task.is_finished() && !stopping {
            true => Err("it ended; its last words are in the log".to_owned()),
            false => Ok(()),
        };
        loops.iter().map(|(name, task)| (*name, state(task))).collect()
    }
}

/// `/healthz`: a process that fails this is not going to recover by itobserved.health.
pub(super) async fn alive(observed: &Observed) -> Vec<Check> {
    let mut checks = vec![("registry", still(observed).await.map(drop))];
    checks.extend(observed.health.loops());
    checks
}

/// `/readyz`: whether nodes should be sent here.
pub(super) async fn ready(observed: &Observed) -> Vec<Check> {
    let store = still(observed).await.and_then(|answered| match answered {
        true => Ok(()),
        false => Err(format!("it has not carried out a plan for {} s; is its disk stuck?", PATIENCE.as_secs())),
    });
    let socket = match std::fs::symlink_metadata(&observed.live.now().config.admin_socket) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(format!("{}: {error}; restart to open it again", observed.live.now().config.admin_socket.display()))
        }
    };
    let not_stopping =
        if observed.health.stopping.load(Ordering::Relaxed) { Err("a signal asked to end".to_owned()) } else { Ok(()) };
    let now = observed.registry.clock.now();
    let ends = [
        ("authority", Some(observed.ca.not_after())),
        ("server-certificate", observed.health.server_certificate_end()),
    ];
    let ends = ends.into_iter().map(|(name, end)| match end {
        None => (name, Err("there is none yet".to_owned())),
        Some(end) if now >= end => (name, Err(format!("its certificate ended at {}", rfc3339(end)))),
        Some(_) => (name, Ok(())),
    });
    let mut checks = vec![("store", store), ("admin-socket", socket), ("not-stopping", not_stopping)];
    if observed.live.now().config.kubernetes.is_some() {
        checks.push(("kubernetes", observed.obstacles.all().map_or(Ok(()), Err)));
    }
    checks.extend(ends);
    checks.extend(observed.health.loops());
    checks
}

/// What an operator should know, though nodes are served as ever: `[!]` where something is
/// asked of the operator, `[i]` otherwise.
pub(super) async fn notes(observed: &Observed) -> Vec<String> {
    let (now, settings) = (observed.registry.clock.now(), observed.live.now());
    let withheld = observed.registry.read().await.state().may_grant(&settings.policy, now).err();
    let missed = observed.obstacles.aside().map(|why| format!("[!]kubernetes: {why}"));
    let withheld = withheld.map(|withheld| format!("[!]restore: {}", withheld.for_the_operator()));
    let watched = observed.live.now().config.kubernetes.is_some();
    let labels = watched.then(|| format!("[i]node-labels: {}", *observed.label_trust.borrow()));
    observed
        .asked
        .note()
        .map(|note| format!("[!]{note}"))
        .into_iter()
        .chain(withheld)
        .chain(missed)
        .chain(labels)
        .collect()
}

/// Whether plans are still carried out: that none comes back in time is said apart from that none
/// ever will.
async fn still(observed: &Observed) -> Result<bool, String> {
    let nothing = observed.registry.change(|_| Ok::<_, StoreError>(((), Vec::new())));
    match tokio::time::timeout(PATIENCE, nothing).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Ok(false),
    }
}

/// 200 when nothing is wrong, 503 otherwise; a line a check, and a line a note that people should
/// know beside them.
pub(super) fn answer(checks: Vec<Check>, notes: Vec<String>) -> Response {
    let failed = checks.iter().any(|(_, outcome)| outcome.is_err());
    let mut text = String::new();
    for (name, outcome) in checks {
        match outcome {
            Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
            Err(why) => text.push_str(&format!("[-]{name} failed: {why}\n")),
        }
    }
    notes.iter().for_each(|note| text.push_str(&format!("{note}\n")));
    text.push_str(if failed { "not ok\n" } else { "ok\n" });
    let status = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, text).into_response()
}
