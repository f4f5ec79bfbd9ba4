//! Sends requests to the nodes that can measure, over their view streams, and waits for the
//! reports.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use edge_types::NodeName;
use edge_types::connectivity::{MeasurementReport, MeasurementRequest, MeasurementTarget};
use tokio::sync::{mpsc, oneshot};

use crate::random;

/// Time limit for a report. The longest measurement takes about half a minute.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of requests that wait for one stream. At the limit, [`MeasureError::Busy`] is
/// returned.
const QUEUE: usize = 1;

/// The nodes that can measure and have a view stream at this replica. Clones share the nodes.
#[derive(Debug, Clone, Default)]
pub struct Measurers(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// The streams of each node, the newest last. The code that opens streams limits their number
    /// for each node.
    streams: HashMap<NodeName, Vec<(u64, RequestSender)>>,
    opened: u64,
    /// The requests that have no report yet, by identifier. There are only a few, because a caller
    /// waits for each.
    waiting: HashMap<String, (NodeName, oneshot::Sender<MeasurementReport>)>,
}

/// Requests are boxed, because each stream has a queue and nearly all queues are always empty.
type RequestSender = mpsc::Sender<Box<MeasurementRequest>>;

/// The reason why a node sent no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// No stream of the node offers to measure.
    #[error("no stream of it offers to measure")]
    NoStream,
    /// Another request to the node still waits in the queue of its stream.
    #[error("it is busy with another measurement")]
    Busy,
    /// The node sent no report within the time limit.
    #[error("it sent no report within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The operating system provided no random identifier for the request.
    #[error(transparent)]
    Random(#[from] random::NoRandomness),
}

/// A registered view stream of a node that can measure. Dropping this value ends the registration.
#[derive(Debug)]
pub struct Measurer {
    measurers: Measurers,
    node: NodeName,
    number: u64,
    requests: mpsc::Receiver<Box<MeasurementRequest>>,
}

impl Measurer {
    /// Waits for the next request to this node and returns it. This method is cancel safe.
    pub async fn next(&mut self) -> Box<MeasurementRequest> {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Measurer {
    fn drop(&mut self) {
        let mut inner = self.measurers.inner();
        if let Some(streams) = inner.streams.get_mut(&self.node) {
            streams.retain(|(number, _)| *number != self.number);
            if streams.is_empty() {
                inner.streams.remove(&self.node);
            }
        }
    }
}

impl Measurers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a view stream of a node that can measure.
    #[must_use]
    pub fn register(&self, node: &NodeName) -> Measurer {
        let (to, requests) = mpsc::channel(QUEUE);
        let mut inner = self.inner();
        inner.opened += 1;
        let number = inner.opened;
        inner.streams.entry(node.clone()).or_default().push((number, to));
        Measurer { measurers: self.clone(), node: node.clone(), number, requests }
    }

    /// Returns whether a stream of the node at this replica offers to measure.
    #[must_use]
    pub fn can_measure(&self, node: &NodeName) -> bool {
        self.inner().streams.contains_key(node)
    }

    /// Asks a node to measure, and waits for its report for at most a minute.
    ///
    /// # Errors
    /// Returns an error if the node cannot measure, is busy, or sends no report in time, or if
    /// there is no randomness for the identifier.
    pub async fn measure(
        &self,
        node: &NodeName,
        targets: Vec<MeasurementTarget>,
        count: u16,
    ) -> Result<MeasurementReport, MeasureError> {
        self.measure_within(TIMEOUT, node, targets, count).await
    }

    async fn measure_within(
        &self,
        limit: Duration,
        node: &NodeName,
        targets: Vec<MeasurementTarget>,
        count: u16,
    ) -> Result<MeasurementReport, MeasureError> {
        let id = HEXLOWER.encode(&random::octets(16)?);
        let (to, report) = oneshot::channel();
        let stream = {
            let mut inner = self.inner();
            let newest = inner.streams.get(node).and_then(|streams| streams.last());
            let stream = newest.map(|(_, stream)| stream.clone()).ok_or(MeasureError::NoStream)?;
            inner.waiting.insert(id.clone(), (node.clone(), to));
            stream
        };
        let _waiting = Waiting { measurers: self, id: id.clone() };
        let request = Box::new(MeasurementRequest { id, count, targets });
        stream.try_send(request).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => MeasureError::Busy,
            mpsc::error::TrySendError::Closed(_) => MeasureError::NoStream,
        })?;
        match tokio::time::timeout(limit, report).await {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(_)) | Err(_) => Err(MeasureError::Timeout),
        }
    }

    /// Passes a report to the caller that waits for it. Returns `false` if no caller waits for a
    /// report of this node with this identifier.
    pub fn reported(&self, node: &NodeName, report: MeasurementReport) -> bool {
        let mut inner = self.inner();
        if inner.waiting.get(&report.id).is_none_or(|(expected, _)| expected != node) {
            return false;
        }
        let waiting = inner.waiting.remove(&report.id);
        waiting.is_some_and(|(_, to)| to.send(report).is_ok())
    }
}

/// Removes a request from `waiting` when it is dropped.
struct Waiting<'a> {
    measurers: &'a Measurers,
    id: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.measurers.inner().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn report(id: &str) -> MeasurementReport {
        MeasurementReport { id: id.into(), addresses: vec![], paths: vec![], refused: None }
    }

    #[tokio::test]
    async fn the_newest_stream_gets_the_request_and_only_that_node_may_report() {
        let measurers = Measurers::default();
        let (one, other) = (name("one"), name("other"));
        assert_eq!(measurers.measure(&one, vec![], 1).await, Err(MeasureError::NoStream));
        let mut old = measurers.register(&one);
        let mut new = measurers.register(&one);
        let asked = measurers.measure(&one, vec![], 1);
        let answer = async {
            let request = new.next().await;
            assert!(!measurers.reported(&other, report(&request.id)), "another node");
            assert!(!measurers.reported(&one, report("another")), "another request");
            assert!(measurers.reported(&one, report(&request.id)));
            assert!(!measurers.reported(&one, report(&request.id)), "a second time");
        };
        let (found, ()) = tokio::join!(asked, answer);
        assert!(found.is_ok());
        drop(new);
        let (found, ()) = tokio::join!(measurers.measure(&one, vec![], 1), async {
            let request = old.next().await;
            measurers.reported(&one, report(&request.id));
        });
        assert!(found.is_ok(), "the older stream is still there");
        drop(old);
        assert!(!measurers.can_measure(&one) && measurers.inner().streams.is_empty());
    }

    #[tokio::test]
    async fn a_node_that_never_reports_holds_nothing() {
        let measurers = Measurers::default();
        let node = name("one");
        let _stream = measurers.register(&node);
        let never = measurers.measure_within(Duration::ZERO, &node, vec![], 1).await;
        assert_eq!(never, Err(MeasureError::Timeout));
        // The first request is still in the queue.
        assert_eq!(measurers.measure(&node, vec![], 1).await, Err(MeasureError::Busy));
        assert!(measurers.inner().waiting.is_empty());
    }
}
