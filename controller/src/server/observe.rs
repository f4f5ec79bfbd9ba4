//! The listener for health and metrics. It outlives the others: a server that stops says so there until the end.

use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::connections::{self, Open};
use crate::api::caller::Identity;

/// Connections at once: a few probes and scrapers.
const CONNECTIONS: usize = 64;

/// Accepts until told to stop.
pub(super) async fn serve(listener: TcpListener, router: Router, open: Open) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = open.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    tracing::warn!(%from, "refused: too many connections for health and metrics");
                    continue;
                };
                let (router, stopping) = (router.clone(), open.stopping.clone());
                open.tasks.spawn(async move {
                    let caller = connections::caller(Identity::Nobody, Some(from.ip().to_canonical()));
                    connections::serve(stream, caller, router, stopping).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for health and metrics");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}
