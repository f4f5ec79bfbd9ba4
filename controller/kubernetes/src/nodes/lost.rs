//! Nodes that are registered and have no Node object any more, or another one.
//!
//! One or two such Nodes were deleted by somebody, and that deregisters the nodes. Many at once, or
//! a list without any Node, deregister nobody: the operator is asked. And nothing is believed of
//! another cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use edge_controller_domain::absence::SETTLE;
use edge_types::NodeName;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use tokio::time::Instant;

use super::{NodeWatch, WHAT};
use crate::client::{REQUEST, explain};
use crate::events::About;
use crate::identity::Doubt;

/// Nodes that the API server is asked for at once.
const LOOK_UPS: usize = 32;
/// Nodes that are named in full.
const NAMED: usize = 10;

/// Registered nodes of which the operator is asked whether they shall be deregistered. As many as
/// there are nodes, at most.
#[derive(Debug, Clone, Default)]
pub struct Asked(Arc<Mutex<BTreeSet<NodeName>>>);

impl Asked {
    /// Whether the operator is asked about this one.
    pub fn contains(&self, node: &NodeName) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    /// For people: who it is, and what to do; `None` where nobody is asked anything.
    pub fn note(&self) -> Option<String> {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named: Vec<&str> = asked.iter().take(NAMED).map(NodeName::as_str).collect();
        let more = if asked.len() > NAMED { ", ..." } else { "" };
        (!asked.is_empty()).then(|| {
            format!(
                "{} registered node(s) have no Node object any more ({}{more}), too many at once to believe it: they stay; to deregister them, \
                 edge-controller node deregister --confirm",
                asked.len(),
                named.join(", ")
            )
        })
    }

    fn set(&self, nodes: BTreeSet<NodeName>) -> Vec<NodeName> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = nodes.difference(&asked).cloned().collect();
        *asked = nodes;
        new
    }
}

/// A node that lost its Node object.
#[derive(Debug)]
pub(super) struct Lost {
    /// Of the object.
    pub(super) uid: String,
    pub(super) since: Instant,
    /// Another Node has its name.
    pub(super) replaced: bool,
    /// The API server has said so of it by name.
    pub(super) certain: bool,
}

impl Lost {
    pub(super) fn new(uid: String) -> Self {
        Self { uid, since: Instant::now(), replaced: false, certain: false }
    }

    pub(super) fn replaced(uid: String) -> Self {
        Self { replaced: true, certain: true, ..Self::new(uid) }
    }
}

/// All of them.
pub(super) type AllLost = BTreeMap<NodeName, Lost>;

impl NodeWatch {
    /// Notes that the Node of this name is gone. It need not be the Node of which the record is:
    /// that one may be gone for longer.
    pub(super) async fn lose(&mut self, name: NodeName) {
        self.known.remove(&name);
        self.unnamed.remove(&name);
        let view = self.registry.read().await;
        if let Some(object) = view.state().node(&name).and_then(|record| record.object.as_ref()) {
            self.lost.insert(name, Lost::new(object.uid.clone()));
        }
    }

    /// Whether somebody is lost of whom nothing is decided yet.
    pub(super) fn is_undecided(&self) -> bool {
        self.lost.iter().any(|(name, lost)| !lost.certain || !self.asked.contains(name))
    }

    /// Looks again at those of whom the operator was asked.
    pub(super) fn look_again(&mut self) {
        self.lost.values_mut().filter(|lost| !lost.replaced).for_each(|lost| lost.certain = false);
    }

    /// Decides about those that are lost.
    ///
    /// # Errors
    /// Where it is not certain that it is our cluster which answers.
    pub(super) async fn judge(&mut self) -> Result<(), Doubt> {
        self.make_certain().await;
        self.forget_deregistered().await;
        let certain: Vec<NodeName> =
            self.lost.iter().filter(|(_, lost)| lost.certain).map(|(name, _)| name.clone()).collect();
        let (asked, new): (BTreeSet<NodeName>, BTreeSet<NodeName>) =
            certain.iter().cloned().partition(|name| self.asked.contains(name));
        // Those that are only looked at again are still asked about.
        let asked: BTreeSet<NodeName> =
            asked.into_iter().chain(self.lost.keys().filter(|name| self.asked.contains(name)).cloned()).collect();
        if new.is_empty() {
            self.asked.set(asked);
            return Ok(());
        }
        let newest = self.lost.iter().filter(|(name, _)| new.contains(*name)).map(|(_, lost)| lost.since).max();
        if newest.is_some_and(|newest| newest.elapsed() < SETTLE) {
            return Ok(());
        }
        self.identity.check().await?;
        let registered = {
            let view = self.registry.read().await;
            view.state().nodes().filter(|record| record.object.is_some()).count()
        };
        let too_much = self.recent.is_too_much(certain.len(), registered, Instant::now());
        if self.confirm && (too_much || self.none_listed) {
            self.ask(asked, new);
            return Ok(());
        }
        for name in new {
            let Some(lost) = self.lost.remove(&name) else { continue };
            let why = match lost.replaced {
                true => "its Node object was deleted, and another one has its name",
                false => "its Node object was deleted",
            };
            match self.deregister(&name, &lost.uid, why).await {
                true => self.recent.note(1, Instant::now()),
                false => drop(self.lost.insert(name, lost)),
            }
        }
        Ok(())
    }

    fn ask(&self, asked: BTreeSet<NodeName>, new: BTreeSet<NodeName>) {
        let count = asked.len() + new.len();
        for name in self.asked.set(asked.into_iter().chain(new).collect()) {
            let note = format!(
                "its Node object is gone, as are those of {count} nodes in all, too many at once to believe it: it stays registered; to deregister \
                 it, edge-controller node deregister {name}, and all of them, edge-controller node deregister --confirm"
            );
            tracing::warn!(node = %name, "{note}");
            self.events.warning(About::EdgeNode, name.as_str(), "NodeMissing", note);
        }
    }

    /// Asks the API server for each by its name, many at once: news of other Nodes wait meanwhile.
    async fn make_certain(&mut self) {
        let uncertain = self.lost.iter().filter(|(_, lost)| !lost.certain);
        let uncertain: Vec<NodeName> = uncertain.map(|(name, _)| name.clone()).collect();
        let api = self.api.clone();
        let ask = |name: NodeName| {
            let api = api.clone();
            async move { (look_up(&api, &name).await, name) }
        };
        let mut answers = stream::iter(uncertain).map(ask).buffer_unordered(LOOK_UPS);
        while let Some((found, name)) = answers.next().await {
            match found {
                Ok(None) => {
                    self.known.remove(&name);
                    if let Some(lost) = self.lost.get_mut(&name) {
                        lost.certain = true;
                    }
                }
                Ok(Some(metadata)) => {
                    self.lost.remove(&name);
                    self.learn(metadata);
                }
                // The others would wait for the same; they are looked up later.
                Err(why) => {
                    self.obstacles.fails("a deleted node", why);
                    return;
                }
            }
        }
        self.obstacles.works("a deleted node");
    }

    /// Drops those of which there is nothing to decide any more.
    async fn forget_deregistered(&mut self) {
        let view = self.registry.read().await;
        let (asked, recent, now) = (&self.asked, &mut self.recent, Instant::now());
        self.lost.retain(|name, lost| {
            let record = view.state().node(name);
            let Some(object) = record.and_then(|record| record.object.as_ref()) else {
                // Another replica deregistered the node, or the operator did after being asked.
                if record.is_none() && !asked.contains(name) {
                    recent.note(1, now);
                }
                return false;
            };
            let of_another = lost.uid != object.uid;
            if of_another && !lost.replaced {
                // Another replica recorded a later Node meanwhile. The API server says whether that
                // one is there.
                *lost = Lost::new(object.uid.clone());
            }
            !(of_another && lost.replaced)
        });
    }
}

/// Asks for one Node: `None` only where the API server says that there is none.
async fn look_up(api: &Api<Node>, name: &NodeName) -> Result<Option<ObjectMeta>, String> {
    match tokio::time::timeout(REQUEST, api.get_metadata_opt(name.as_str())).await {
        Ok(Ok(node)) => Ok(node.map(|node| node.metadata)),
        Ok(Err(error)) => Err(explain(WHAT, &error)),
        Err(_) => {
            Err(format!("the API server did not say within {} s whether Node {name} is there", REQUEST.as_secs()))
        }
    }
}
