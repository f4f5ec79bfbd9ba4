//! Deletes objects that no node needs any more. Only the leader does this; every replica looks for
//! them.
//!
//! A segment whose holder is not registered is left over from a join or a deregistration that a
//! replica did not complete, or from an EdgeNode that somebody deleted at the API server. The
//! segment is released after a grace period, if the API server confirms that the EdgeNode does not
//! exist: a node keeps its segments if its EdgeNode merely cannot be read or listed. The released
//! segment then goes through its quarantine like any other.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::{Change, NodeRecord, State};
use edge_controller_domain::store::StoreError;
use edge_controller_domain::tokens;
use edge_types::{IpNetwork, NodeName};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{REQUEST, explain, is_absent};
use super::resources::EdgeNode;
use crate::certificate_grace::{CertificateGrace, no_grace};
use crate::resources::kinds::is_blocked;

/// Time for which an unregistered node holds a segment before the segment is released. A join that
/// is in progress completes within this time.
pub const GRACE_PERIOD: Duration = Duration::from_secs(600);
/// Grace period if the node was registered before. Its deregistration normally releases the
/// segments within moments.
const AFTER_DEREGISTRATION: Duration = Duration::from_secs(30);
/// Number of checks in one grace period.
const LOOKS_PER_GRACE_PERIOD: u32 = 60;

/// A task that releases orphaned segments and deletes long-expired tokens while this replica leads.
pub struct OrphanCollector {
    registry: Registry,
    edge_nodes: Api<EdgeNode>,
    grace_period: Duration,
    /// Grants to nodes that are not registered, each with the time of its release.
    orphans: HashMap<OrphanedSegment, Instant>,
    /// Nodes that were registered at the last check, and nodes of `orphans` that were registered at
    /// an earlier check. The value is the end of the grace after the latest certificate of a node
    /// that had a Node object: until then, its pods may use the segments. `None` for other nodes.
    registered: HashMap<NodeName, Option<Seconds>>,
    grace: CertificateGrace,
}

/// A segment and the time of its grant. A later grant of the same segment counts as a different
/// grant.
type OrphanedSegment = (IpNetwork, Seconds);

/// What is due for deletion at a time.
struct Due {
    now: Seconds,
    segments: HashMap<NodeName, Vec<OrphanedSegment>>,
    /// Ids of tokens that expired long ago.
    tokens: Vec<String>,
}

impl OrphanCollector {
    /// Makes a collector that releases segments after this period.
    pub fn new(client: &Client, registry: Registry, grace_period: Duration) -> Self {
        let edge_nodes = Api::all(client.clone());
        Self {
            registry,
            edge_nodes,
            grace_period,
            orphans: HashMap::new(),
            registered: HashMap::new(),
            grace: no_grace(),
        }
    }

    /// Sets the time for which nodes' certificates are accepted after their end.
    pub fn with_grace(self, grace: CertificateGrace) -> Self {
        Self { grace, ..self }
    }

    /// Looks for orphans, and releases them while `leading` is true. A replica that does not lead
    /// looks too: when it begins to lead it knows since when segments have been orphaned, and until
    /// when the machines of deleted nodes may use them. Returns when the sender of `leading` is
    /// dropped.
    pub async fn run(mut self, mut leading: watch::Receiver<bool>) {
        let mut look =
            tokio::time::interval((self.grace_period / LOOKS_PER_GRACE_PERIOD).max(Duration::from_millis(100)));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                changed = leading.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
            let found = self.look().await;
            if *leading.borrow() {
                self.collect(found).await;
            }
        }
    }

    /// Looks for orphans and remembers them. Returns what is due for deletion.
    async fn look(&mut self) -> Due {
        let state = self.registry.read().await;
        let at = Instant::now();
        let due_at = |row: &SegmentRecord| {
            let grant = (row.network, row.granted_at);
            let grace_period = match self.registered.contains_key(&row.node) {
                true => AFTER_DEREGISTRATION.min(self.grace_period),
                false => self.grace_period,
            };
            (grant, self.orphans.get(&grant).copied().unwrap_or(at + grace_period))
        };
        let orphans = state.ledger().rows().filter(|row| is_orphan(&state, row));
        let mut due: HashMap<NodeName, Vec<OrphanedSegment>> = HashMap::new();
        let orphans: HashMap<OrphanedSegment, Instant> = orphans
            .map(|row| {
                let (grant, due_at) = due_at(row);
                if due_at <= at {
                    due.entry(row.node.clone()).or_default().push(grant);
                }
                (grant, due_at)
            })
            .collect();
        // If somebody deleted an EdgeNode, only `registered` still has the end of the certificate.
        // A deregistration wrote it into the segments first.
        let waiting: HashSet<&NodeName> = state
            .ledger()
            .rows()
            .filter(|row| orphans.contains_key(&(row.network, row.granted_at)))
            .map(|row| &row.node)
            .collect();
        self.registered.retain(|node, _| waiting.contains(node));
        let grace = (self.grace)();
        self.registered.extend(state.nodes().map(|record| (record.name.clone(), may_use_until(record, grace))));
        self.orphans = orphans;
        let now = self.registry.clock.now();
        Due { now, segments: due, tokens: tokens::forgotten(&state, now) }
    }

    async fn collect(&self, Due { now, segments, tokens }: Due) {
        for (node, grants) in segments {
            match self.exists(&node).await {
                Ok(false) => {
                    let kept_until = self.registered.get(&node).copied().flatten();
                    self.release(&grants, now, kept_until).await;
                }
                Ok(true) => {
                    tracing::warn!(%node, "its segments are not released: it is not registered here, and its EdgeNode is there");
                }
                Err(why) => {
                    tracing::warn!(%node, why, "its segments are not released yet, though it is not registered")
                }
            }
        }
        if !tokens.is_empty() {
            let deletions: Vec<Change> = tokens.into_iter().map(Change::DeleteToken).collect();
            if let Err(error) = self.registry.change(move |_| Ok::<_, StoreError>(((), deletions.clone()))).await {
                tracing::warn!(%error, "expired tokens are not deleted yet");
            }
        }
    }

    /// Returns whether the EdgeNode exists, whatever its content is.
    async fn exists(&self, node: &NodeName) -> Result<bool, String> {
        match tokio::time::timeout(REQUEST, self.edge_nodes.get_metadata(node.as_str())).await {
            Ok(Ok(_)) => Ok(true),
            // If the definition of the kind has been deleted, the response is another 404.
            Ok(Err(error)) if is_absent(&error) => Ok(false),
            Ok(Err(error)) => Err(explain("edgenodes.edge-cni.io", &error)),
            Err(_) => Err(format!("the API server did not answer within {} s", REQUEST.as_secs())),
        }
    }

    async fn release(&self, grants: &[OrphanedSegment], now: Seconds, kept_until: Option<Seconds>) {
        for (network, granted_at) in grants.iter().copied() {
            let released = self.registry.change(move |state| -> Result<_, StoreError> {
                let row = state.ledger().row(&network);
                let row = row.filter(|row| is_orphan(state, row) && row.granted_at == granted_at).cloned();
                let row = row.map(|row| {
                    let kept_until = kept_until.max(row.kept_until).filter(|until| *until > now);
                    SegmentRecord { released_at: Some(now), kept_until, ..row }
                });
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

/// Returns the time until which a machine may use the segments of its node after the Node object
/// was deleted, by the same rule as [`State::deregistration_keeping_segments`]; `None` for a node
/// without such an object.
fn may_use_until(record: &NodeRecord, grace: Seconds) -> Option<Seconds> {
    record.object.as_ref()?;
    record.accepted_until(grace)
}

fn is_orphan(state: &State, row: &SegmentRecord) -> bool {
    row.released_at.is_none() && state.node(&row.node).is_none() && !is_blocked(row)
}
