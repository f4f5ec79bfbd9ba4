//! The responses to `/healthz` and `/readyz`. `/healthz` shows whether the agent's parts work; if
//! not, a restart may help. `/readyz` shows whether the node has everything that its pods need.

use std::fmt::Write as _;

use super::observer::{NO_STATUS, Observer};

pub(super) async fn healthz(observer: &Observer) -> Result<String, String> {
    match observer.health().await {
        Some(_) => Ok("ok\n".into()),
        None => Err(format!("{NO_STATUS}\n")),
    }
}

/// Checks readiness. The response lists obstacles, but they do not make the node unready: pods that
/// are not affected by an obstacle work.
pub(super) async fn readyz(observer: &Observer) -> Result<String, String> {
    let health = observer.health().await.ok_or_else(|| format!("{NO_STATUS}\n"))?;
    let mut text = String::new();
    let mut ready = true;
    if observer.needs_view && health.view_version.is_none() {
        ready = false;
        text += "no view: this node has not joined, or its controller has not sent a view yet\n";
    }
    if observer.needs_view && !health.firewall {
        ready = false;
        text += "the table inet edge-cni does not stand\n";
    }
    for obstacle in &health.obstacles {
        let _ = writeln!(text, "note: {}", obstacle.what);
    }
    if ready { Ok(format!("ready\n{text}")) } else { Err(text) }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::admin::server::{AdminCall, Reply};
    use crate::admin::{AdminRequest, AdminResponse, Health};
    use crate::host::Obstacle;

    /// Returns an observer of a node with a controller, whose agent answers probes alone: a request
    /// for the status of all peers fails the test.
    fn observer(health: Option<Health>) -> Observer {
        let (to, mut requests) = mpsc::channel::<AdminCall>(1);
        tokio::spawn(async move {
            while let Some((request, respond_to)) = requests.recv().await {
                assert_eq!(request, AdminRequest::Health);
                let ending = AdminResponse::Failed { reason: "the agent is ending".into() };
                let response = health.clone().map_or(ending, |health| AdminResponse::Health { health });
                let _ = respond_to.send(Reply::Response(response));
            }
        });
        Observer::new(to, 10, true)
    }

    fn health(view_version: Option<u64>, firewall: bool) -> Health {
        Health { view_version, firewall, obstacles: vec![] }
    }

    #[tokio::test]
    async fn probes_ask_for_nothing_that_grows_with_the_number_of_peers() {
        let well = observer(Some(health(Some(7), true)));
        assert_eq!(healthz(&well).await, Ok("ok\n".into()));
        assert_eq!(readyz(&well).await, Ok("ready\n".into()));
        let obstacle = Obstacle { what: "FORWARD drops".into(), command: "nft".into() };
        let obstructed = observer(Some(Health { obstacles: vec![obstacle], ..health(Some(7), true) }));
        assert_eq!(readyz(&obstructed).await, Ok("ready\nnote: FORWARD drops\n".into()));
    }

    #[tokio::test]
    async fn a_node_without_view_or_firewall_is_healthy_and_not_ready() {
        for (health, word) in [(health(None, true), "no view"), (health(Some(7), false), "does not stand")] {
            let observer = observer(Some(health));
            assert!(healthz(&observer).await.is_ok());
            assert!(readyz(&observer).await.unwrap_err().contains(word), "{word}");
        }
        let silent = observer(None);
        assert!(healthz(&silent).await.is_err() && readyz(&silent).await.is_err());
    }
}
