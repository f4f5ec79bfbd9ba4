//! The responses to `/healthz` and `/readyz`. `/healthz` shows whether the agent's parts work; if
//! not, a restart may help. `/readyz` shows whether the node has everything that its pods need.

use std::fmt::Write as _;

use super::observer::{NO_STATUS, Observer};

pub(super) async fn healthz(observer: &Observer) -> Result<String, String> {
    match observer.status().await {
        Some(_) => Ok("ok\n".into()),
        None => Err(format!("{NO_STATUS}\n")),
    }
}

/// Checks readiness. The response lists obstacles, but they do not make the node unready: pods that
/// are not affected by an obstacle work.
pub(super) async fn readyz(observer: &Observer) -> Result<String, String> {
    let status = observer.status().await.ok_or_else(|| format!("{NO_STATUS}\n"))?;
    let mut text = String::new();
    let mut ready = true;
    if observer.needs_view && status.view_version.is_none() {
        ready = false;
        text += "no view: this node has not joined, or its controller has not sent a view yet\n";
    }
    if observer.needs_view && !status.host.firewall {
        ready = false;
        text += "the table inet edge-cni does not stand\n";
    }
    for obstacle in &status.obstacles {
        let _ = writeln!(text, "note: {}", obstacle.what);
    }
    if ready { Ok(format!("ready\n{text}")) } else { Err(text) }
}
