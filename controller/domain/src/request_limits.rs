//! Limits how often one node makes an expensive request: for a certificate that is signed and
//! stored, or for a list of all segments. A node rarely needs such requests. Without a limit, one
//! node could keep the controller and the API server's store busy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge_types::NodeName;
use tokio::time::Instant;

/// Number of requests from a node that are served without delay.
const BURST: u32 = 16;
/// Length of the period in which, after the burst, one request is served.
const PERIOD: Duration = Duration::from_secs(10);
/// Number of nodes above which the counts of nodes whose whole burst is available again are
/// dropped.
const REMEMBERED: usize = 1024;

/// The reason why a request is not served now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("node {node} exceeds the limit for this request, a burst of {BURST} and then one every {} s; it may ask again in {seconds} s", PERIOD.as_secs())]
pub struct TooOften {
    /// Name of the node.
    pub node: NodeName,
    /// Seconds until the next request is served, at least 1.
    pub seconds: u32,
}

/// A limit on the requests of one kind from each node. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct RequestLimit(Arc<Mutex<HashMap<NodeName, Instant>>>);

impl RequestLimit {
    /// Counts a request from a node.
    ///
    /// # Errors
    /// Returns [`TooOften`] if the node has used its burst and the period since its last request is
    /// not over. In that case the request does not count.
    pub fn take(&self, node: &NodeName) -> Result<(), TooOften> {
        self.take_at(node, Instant::now())
    }

    /// Checks whether a request from a node would be served now, without counting it.
    ///
    /// # Errors
    /// Returns the same error as [`Self::take`].
    pub fn check(&self, node: &NodeName) -> Result<(), TooOften> {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(node).map_or(Ok(()), |due| allowed(node, *due, Instant::now()))
    }

    fn take_at(&self, node: &NodeName, now: Instant) -> Result<(), TooOften> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= REMEMBERED {
            nodes.retain(|_, due| *due > now);
        }
        // The theoretical arrival time of the generic cell rate algorithm.
        let due = nodes.entry(node.clone()).or_insert(now);
        allowed(node, *due, now)?;
        *due = (*due).max(now) + PERIOD;
        Ok(())
    }
}

/// Returns an error if a node with this theoretical arrival time must wait.
fn allowed(node: &NodeName, due: Instant, now: Instant) -> Result<(), TooOften> {
    let wait = due.saturating_duration_since(now).saturating_sub(PERIOD * (BURST - 1));
    if wait.is_zero() {
        return Ok(());
    }
    let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    Err(TooOften { node: node.clone(), seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_a_node_waits_and_others_do_not() {
        let (limit, mut now) = (RequestLimit::default(), Instant::now());
        let [one, other]: [NodeName; 2] = ["edge-1", "edge-2"].map(|name| name.parse().unwrap());
        for _ in 0..BURST {
            limit.take_at(&one, now).unwrap();
        }
        for _ in 0..1000 {
            assert_eq!(limit.take_at(&one, now).unwrap_err().seconds, 11, "refused requests do not count");
        }
        limit.take_at(&other, now).unwrap();
        now += PERIOD;
        limit.take_at(&one, now).unwrap();
        limit.take_at(&one, now).unwrap_err();
        now += PERIOD * BURST;
        for _ in 0..BURST {
            limit.take_at(&one, now).unwrap();
        }
        limit.take_at(&one, now).unwrap_err();
    }

    #[test]
    fn nodes_that_ask_no_more_are_forgotten() {
        let (limit, mut now) = (RequestLimit::default(), Instant::now());
        for number in 0..2 * REMEMBERED {
            limit.take_at(&format!("edge-{number}").parse().unwrap(), now).unwrap();
            now += PERIOD;
        }
        assert!(limit.0.lock().unwrap().len() <= REMEMBERED);
    }
}
