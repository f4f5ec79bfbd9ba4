//! Implements the checks for `/healthz` and `/readyz`. Each check gives one line, in the format
//! that Kubernetes' own programs use.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use edge_controller_domain::clock::{DAY, MOST_AHEAD, rfc3339};
use edge_controller_domain::store::StoreError;

use super::health::Check;
use super::server_parts::ServerParts;
use crate::state_disk;

/// Time limit for a plan that changes nothing, including the wait for earlier plans.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the checks for `/healthz`. A process that fails one of them does not recover without a
/// restart.
pub(super) async fn healthz(server: &ServerParts) -> Vec<Check> {
    let mut checks = vec![("registry", registry_works(server).await.map(drop))];
    checks.extend(server.health.tasks());
    checks
}

/// Runs the checks for `/readyz`, which decide whether nodes should be sent to this replica.
/// Returns them with the notes.
pub(super) async fn readyz(server: &ServerParts) -> (Vec<Check>, Vec<String>) {
    let at_api_server = server.live.now().config.kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.store);
    let (store, waiting) = match registry_works(server).await {
        Ok(true) => (Ok(()), None),
        // The API server keeps all replicas waiting alike, so this one stays ready.
        Ok(false) if at_api_server => (Ok(()), Some(unanswered())),
        Ok(false) => {
            let why = format!("it has not carried out a plan for {} s; is its disk stuck?", PATIENCE.as_secs());
            (Err(why), None)
        }
        Err(error) => (Err(error), None),
    };
    let socket = match std::fs::symlink_metadata(&server.live.now().config.admin_socket) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(format!("{}: {error}; restart to open it again", server.live.now().config.admin_socket.display()))
        }
    };
    let not_stopping = if server.health.is_stopping() { Err("a signal asked to end".to_owned()) } else { Ok(()) };
    let now = server.registry.clock.now();
    let ends =
        [("authority", Some(server.ca.not_after())), ("server-certificate", server.health.server_certificate_end())];
    let ends = ends.into_iter().map(|(name, end)| match end {
        None => (name, Err("there is none yet".to_owned())),
        Some(end) if now >= end => (name, Err(format!("its certificate ended at {}", rfc3339(end)))),
        Some(_) => (name, Ok(())),
    });
    let mut checks = vec![("store", store), ("admin-socket", socket), ("not-stopping", not_stopping)];
    if server.live.now().config.kubernetes.is_some() {
        checks.push(("kubernetes", server.api_failures.unready_reasons().map_or(Ok(()), Err)));
    }
    checks.extend(ends);
    checks.extend(server.health.tasks());
    let notes = waiting.into_iter().chain(notes(server).await).collect();
    (checks, notes)
}

/// Returns a note about a store at the API server that keeps plans waiting.
fn unanswered() -> String {
    format!("[!]store: the API server has not answered for {} s; changes wait for it", PATIENCE.as_secs())
}

/// Returns facts that the operator should know although nodes are served: `[!]` if the operator
/// must act, `[i]` otherwise.
async fn notes(server: &ServerParts) -> Vec<String> {
    let (now, in_force) = (server.registry.clock.now(), server.live.now());
    let paused = server.registry.read().await.may_grant(&in_force.policy, now).err();
    let missed = server.api_failures.other_reasons().map(|why| format!("[!]kubernetes: {why}"));
    let paused = paused.map(|paused| format!("[!]restore: {}", paused.for_the_operator()));
    let watched = server.live.now().config.kubernetes.is_some();
    let labels = watched.then(|| format!("[i]node-labels: {}", *server.label_trust.borrow()));
    let asked = server.asked.note().map(|note| format!("[!]{note}"));
    let disk = state_disk::problem(&in_force.config).await.map(|why| format!("[!]disk: {why}"));
    disk.into_iter().chain(asked).chain(paused).chain(missed).chain(clock_note(server)).chain(labels).collect()
}

/// Returns a note if this replica's time is so far ahead of the machine's clock that the next start
/// refuses it.
fn clock_note(server: &ServerParts) -> Option<String> {
    let ahead = server.registry.clock.ahead();
    (ahead > MOST_AHEAD).then(|| {
        format!(
            "[!]clock: this replica's time is {} days ahead of the machine's clock, which was ahead and was set back, or is behind now; \
             certificates that end within that time are refused, and the next start asks which of the two is wrong (accept_clock)",
            ahead / DAY
        )
    })
}

/// Returns whether the registry still carries out plans: `false` if it does not answer in time, an
/// error if the registry has ended.
async fn registry_works(server: &ServerParts) -> Result<bool, String> {
    let nothing = server.registry.change(|_| Ok::<_, StoreError>(((), Vec::new())));
    match tokio::time::timeout(PATIENCE, nothing).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Ok(false),
    }
}

/// Returns 200 if no check fails, 503 otherwise, with one line for each check and each note.
pub(super) fn response(checks: Vec<Check>, notes: Vec<String>) -> Response {
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
