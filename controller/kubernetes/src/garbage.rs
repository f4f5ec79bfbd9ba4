//! What is left over, and nobody needs: the leader's work.
//!
//! A segment that is held by a node which is not registered is the remainder of a join or of a
//! deregistration that a replica did not live to complete, or of an EdgeNode that someone has
//! deleted at the API server. It is released when it has been so for a while, and when the API
//! server says that there is no such EdgeNode: one that merely cannot be read or listed keeps what
//! it holds. Then it waits out its quarantine as any other.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::Row;
use edge_controller_domain::state::{Change, State};
use edge_controller_domain::store::StoreError;
use edge_controller_domain::tokens;
use edge_types::{IpNetwork, NodeName};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{REQUEST, explain, is_absent};
use super::resources::EdgeNode;
use crate::store::is_blocked;

/// A segment is held by nobody for so long before it is released: whoever is about to complete a
/// join has done so.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// The same where the node was registered before: who deregisters it releases its segments within
/// moments.
const AFTER_DEREGISTRATION: Duration = Duration::from_secs(30);
/// How often is looked within the patience.
const LOOKS: u32 = 60;

/// Looks for what is left over while it leads.
pub struct Garbage {
    registry: Registry,
    edge_nodes: Api<EdgeNode>,
    patience: Duration,
    /// Grants to nodes that are not registered, and when they are due.
    orphans: HashMap<Grant, Instant>,
    /// Nodes that were registered at the last look.
    registered: HashSet<NodeName>,
}

/// A segment, and since when it is granted: one that is granted anew is another grant.
type Grant = (IpNetwork, Seconds);

impl Garbage {
    /// Releases after `patience`.
    pub fn new(client: &Client, registry: Registry, patience: Duration) -> Self {
        let edge_nodes = Api::all(client.clone());
        Self { registry, edge_nodes, patience, orphans: HashMap::new(), registered: HashSet::new() }
    }

    /// Does it; ends never.
    pub async fn run(mut self, mut leading: watch::Receiver<bool>) {
        let mut look = tokio::time::interval((self.patience / LOOKS).max(Duration::from_millis(100)));
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
            let at = Instant::now();
            let due_at = |row: &Row| {
                let grant = (row.network, row.granted_at);
                let patience = match self.registered.contains(&row.node) {
                    true => AFTER_DEREGISTRATION.min(self.patience),
                    false => self.patience,
                };
                (grant, self.orphans.get(&grant).copied().unwrap_or(at + patience))
            };
            let orphans = state.ledger().rows().filter(|row| is_orphan(state, row));
            let mut due: HashMap<NodeName, Vec<Grant>> = HashMap::new();
            let orphans: HashMap<Grant, Instant> = orphans
                .map(|row| {
                    let (grant, due_at) = due_at(row);
                    if due_at <= at {
                        due.entry(row.node.clone()).or_default().push(grant);
                    }
                    (grant, due_at)
                })
                .collect();
            self.orphans = orphans;
            self.registered = state.nodes().map(|record| record.name.clone()).collect();
            let now = self.registry.clock.now();
            (now, due, tokens::forgotten(state, now))
        };
        for (node, grants) in due {
            match self.is_there(&node).await {
                Ok(false) => self.release(&grants, now).await,
                Ok(true) => {
                    tracing::warn!(%node, "its segments are not released: it is not registered here, and its EdgeNode is there");
                }
                Err(why) => {
                    tracing::warn!(%node, why, "its segments are not released yet, though it is not registered")
                }
            }
        }
        if !forgotten.is_empty() {
            let deletions: Vec<Change> = forgotten.into_iter().map(Change::DeleteToken).collect();
            if let Err(error) = self.registry.change(move |_| Ok::<_, StoreError>(((), deletions.clone()))).await {
                tracing::warn!(%error, "expired tokens are not deleted yet");
            }
        }
    }

    /// Whether the API server knows the EdgeNode, whatever is in it.
    async fn is_there(&self, node: &NodeName) -> Result<bool, String> {
        match tokio::time::timeout(REQUEST, self.edge_nodes.get_metadata(node.as_str())).await {
            Ok(Ok(_)) => Ok(true),
            // Not where the API server does not know the kind any more.
            Ok(Err(error)) if is_absent(&error) => Ok(false),
            Ok(Err(error)) => Err(explain("edgenodes.edge-cni.io", &error)),
            Err(_) => Err(format!("the API server did not answer within {} s", REQUEST.as_secs())),
        }
    }

    async fn release(&self, grants: &[Grant], now: Seconds) {
        for (network, granted_at) in grants.iter().copied() {
            let released = self.registry.change(move |state| -> Result<_, StoreError> {
                let row = state.ledger().row(&network);
                let row = row.filter(|row| is_orphan(state, row) && row.granted_at == granted_at).cloned();
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
    }
}

fn is_orphan(state: &State, row: &Row) -> bool {
    row.released_at.is_none() && state.node(&row.node).is_none() && !is_blocked(row)
}
