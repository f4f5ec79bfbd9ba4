//! What is left over, and nobody needs: the leader's work.
//!
//! A segment that is held by a node which is not registered is the remainder of a join or of a deregistration that a replica did not live to
//! complete. It is released when it has been so for a while, and then waits out its quarantine as any other.

use std::collections::HashMap;
use std::time::Duration;

use edge_types::IpNetwork;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::registry::Registry;
use crate::segments::Row;
use crate::state::{Change, State};
use crate::store::kubernetes::is_blocked;
use crate::tokens;

/// A segment is held by nobody for so long before it is released: whoever is about to complete a join has done so.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Looks for what is left over while it leads.
pub struct Garbage {
    registry: Registry,
    patience: Duration,
    /// Segments of nodes that are not registered, and since when.
    orphans: HashMap<IpNetwork, Instant>,
}

impl Garbage {
    /// Releases after `patience`.
    pub fn new(registry: Registry, patience: Duration) -> Self {
        Self { registry, patience, orphans: HashMap::new() }
    }

    /// Does it; ends never.
    pub async fn run(mut self, mut leading: watch::Receiver<bool>) {
        // Several times within the patience.
        let mut look = tokio::time::interval((self.patience / 10).max(Duration::from_millis(100)));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if leading.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            look.tick().await;
            self.collect().await;
        }
    }

    async fn collect(&mut self) {
        let (now, due, forgotten) = {
            let view = self.registry.read().await;
            let state = view.state();
            let held = state.ledger().rows().filter(|row| is_orphan(state, row));
            let orphans: HashMap<IpNetwork, Instant> =
                held.map(|row| (row.network, *self.orphans.get(&row.network).unwrap_or(&Instant::now()))).collect();
            self.orphans = orphans;
            let due: Vec<IpNetwork> = self
                .orphans
                .iter()
                .filter(|(_, since)| since.elapsed() >= self.patience)
                .map(|(network, _)| *network)
                .collect();
            let now = self.registry.clock.now();
            (now, due, tokens::forgotten(state, now))
        };
        for network in due {
            let released = self.registry.change(move |state| {
                let row = state.ledger().row(&network).filter(|row| is_orphan(state, row)).cloned();
                let row = row.map(|row| Row { released_at: Some(now), ..row });
                Ok((row.clone(), row.into_iter().map(Change::PutSegment).collect()))
            });
            match released.await {
                Ok(Some(row)) => {
                    tracing::warn!(segment = %network, node = %row.node, "released: its node is not registered")
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(segment = %network, %error, "not released yet, though its node is not registered")
                }
            }
        }
        if !forgotten.is_empty() {
            let deletions: Vec<Change> = forgotten.into_iter().map(Change::DeleteToken).collect();
            if let Err(error) = self.registry.change(move |_| Ok(((), deletions.clone()))).await {
                tracing::warn!(%error, "expired tokens are not deleted yet");
            }
        }
    }
}

fn is_orphan(state: &State, row: &Row) -> bool {
    row.released_at.is_none() && state.node(&row.node).is_none() && !is_blocked(row)
}
