//! Decides when to request a segment. Waiting pods take precedence. One request serves all pods
//! that wait for the same family. In addition, the provisioner keeps as many addresses free as
//! `spare` segments contain, so that pods rarely wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use edge_types::agent_protocol::{AgentResponse, SEGMENT_REQUEST_TIMEOUT_SECONDS, Stock};
use edge_types::api::Family;
use edge_types::shared_files::{SegmentsFile, pod_capacity};
use edge_types::{IpNetwork, NodeView, Role};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::socket::PluginRequest;
use crate::controller_client::{ControllerClient, ControllerError};
use crate::state_dir::segments_file::capacity;

/// Maximum time until a waiting pod receives a response. It is shorter than the plugin's timeout.
const RESPONSE_DEADLINE: Duration = Duration::from_millis(SEGMENT_REQUEST_TIMEOUT_SECONDS * 1000 - 700);
/// Delay before a spare segment is requested again after a failure; doubled up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_secs(4);
const MAX_RETRY: Duration = Duration::from_secs(60);

type SegmentRequestResult = Result<SegmentsFile, ControllerError>;
type SegmentRequestFuture = Pin<Box<dyn Future<Output = (Family, SegmentRequestResult)> + Send>>;

/// A pod that waits for an address.
struct WaitingPod {
    stock: Vec<Stock>,
    response: oneshot::Sender<AgentResponse>,
    deadline: Instant,
}

/// State of an address family.
#[derive(Default)]
struct FamilyState {
    /// Number of addresses that pods hold, from the plugin's last report.
    leased: u64,
    /// The reason why the last request failed.
    failure: Option<Failure>,
}

struct Failure {
    error: ControllerError,
    /// The time from which a spare segment may be requested again.
    retry_at: Instant,
    /// The delay that led to `retry_at`.
    wait: Duration,
}

struct SegmentProvisioner {
    controller: Arc<ControllerClient>,
    waiting: Vec<WaitingPod>,
    families: BTreeMap<Family, FamilyState>,
}

/// Runs until the agent ends.
pub(super) async fn run(controller: Arc<ControllerClient>, mut queue: mpsc::Receiver<PluginRequest>) {
    let mut inputs = controller.segment_inputs();
    let mut status = controller.status();
    let mut connected = false;
    let mut provisioner = SegmentProvisioner { controller, waiting: Vec::new(), families: BTreeMap::new() };
    let mut request: Option<SegmentRequestFuture> = None;
    loop {
        if request.is_none() {
            request = provisioner.next_request().await;
        }
        let wake = provisioner.next_wake(request.is_none());
        tokio::select! {
            plugin_request = queue.recv() => match plugin_request {
                Some(plugin_request) => provisioner.handle(plugin_request).await,
                None => return,
            },
            (family, outcome) = progress(&mut request) => {
                request = None;
                provisioner.finished(family, outcome);
            }
            // A view that differs only in peers does not end the wait.
            Ok(()) = inputs.changed() => {}
            Ok(()) = status.changed() => {
                let now = status.borrow_and_update().connected;
                if now && !connected {
                    // After a temporary failure the request is repeated as soon as the controller
                    // is back.
                    provisioner.families.values_mut().for_each(|family| {
                        family.failure.take_if(|failure| failure.error.is_temporary());
                    });
                }
                connected = now;
            }
            () = until(wake) => provisioner.respond_to_late(),
        }
    }
}

async fn progress(request: &mut Option<SegmentRequestFuture>) -> (Family, SegmentRequestResult) {
    match request {
        Some(request) => request.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl SegmentProvisioner {
    async fn handle(&mut self, request: PluginRequest) {
        match request {
            PluginRequest::AddressesTaken(stock) => self.record_leased(&stock),
            PluginRequest::Segment { stock, response } => {
                self.record_leased(&stock);
                self.waiting.push(WaitingPod { stock, response, deadline: Instant::now() + RESPONSE_DEADLINE });
                if let Some(file) = self.segments().await {
                    self.respond_to_served(&file);
                }
            }
        }
    }

    fn record_leased(&mut self, stock: &[Stock]) {
        for stock in stock {
            self.families.entry(stock.family).or_default().leased = stock.leased;
        }
    }

    /// Returns the next deadline of a waiting pod, or the next time at which a spare segment may be
    /// requested again.
    fn next_wake(&self, may_request: bool) -> Option<Instant> {
        let deadlines = self.waiting.iter().map(|waiting| waiting.deadline);
        let now = Instant::now();
        let retries =
            self.families.values().filter_map(|family| family.failure.as_ref().map(|failure| failure.retry_at));
        deadlines.chain(retries.filter(|retry_at| may_request && *retry_at > now)).min()
    }

    /// Returns the next request: one for waiting pods, otherwise the unanswered request of an
    /// earlier run, otherwise one for a spare segment. A request names one family, since the
    /// controller grants a request as a whole or not at all, and the range of one family may be
    /// full.
    async fn next_request(&mut self) -> Option<SegmentRequestFuture> {
        let file = self.segments().await;
        let short = |stock: &&Stock| !file.as_ref().is_some_and(|file| has_grown(file, stock));
        let awaited = self.waiting.iter().flat_map(|waiting| &waiting.stock).filter(short);
        let family = match awaited.map(|stock| stock.family).min() {
            Some(family) => family,
            None => {
                let view = self.controller.membership().borrow().as_ref()?.view.clone();
                let families = match self.controller.unanswered_request_families() {
                    Some(families) => families,
                    None => {
                        let spare =
                            self.controller.config().controller.as_ref().map_or(0, |controller| controller.spare);
                        let leased = |family| self.families.get(&family).map_or(0, |state| state.leased);
                        families_to_request(&view, file.as_ref(), leased, spare)
                    }
                };
                let now = Instant::now();
                let family = families.into_iter().find(|family| {
                    let failure = self.families.get(family).and_then(|state| state.failure.as_ref());
                    failure.is_none_or(|failure| failure.retry_at <= now)
                })?;
                debug!(?family, "requesting a segment before it is needed");
                family
            }
        };
        let controller = self.controller.clone();
        Some(Box::pin(async move {
            let outcome = controller.request_segments(&[family]).await;
            (family, outcome)
        }))
    }

    fn finished(&mut self, family: Family, outcome: SegmentRequestResult) {
        let state = self.families.entry(family).or_default();
        match outcome {
            Ok(file) => {
                if let Some(failure) = state.failure.take() {
                    self.controller.clear_error(&failure.error.to_string());
                }
                self.respond_to_served(&file);
            }
            Err(error) => {
                self.controller.record_error(&error);
                let (reason, temporary) = (format!("no further segment: {error}"), error.is_temporary());
                let wait = state.failure.as_ref().map_or(RETRY, |before| (before.wait * 2).min(MAX_RETRY));
                state.failure = Some(Failure { error, retry_at: Instant::now() + wait, wait });
                // All pods that wait for this family receive the failure. The runtime repeats their
                // ADD.
                let (failed, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
                    .into_iter()
                    .partition(|waiting| waiting.stock.iter().any(|stock| stock.family == family));
                self.waiting = waiting;
                for waiting in failed {
                    let _ = waiting.response.send(AgentResponse::Failed { reason: reason.clone(), temporary });
                }
            }
        }
    }

    /// Responds to the pods for which there are now more addresses than the plugin counted.
    fn respond_to_served(&mut self, file: &SegmentsFile) {
        let (served, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.stock.iter().all(|stock| has_grown(file, stock)));
        self.waiting = waiting;
        for waiting in served {
            let _ = waiting.response.send(AgentResponse::Done);
        }
    }

    fn respond_to_late(&mut self) {
        let now = Instant::now();
        let status = self.controller.status().borrow().clone();
        let (late, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.deadline <= now);
        self.waiting = waiting;
        for waiting in late {
            let why = status.last_error.as_deref().or(status.refused_view.as_deref());
            let why = why.unwrap_or("the controller is slow");
            let reason = format!("no further segment within {RESPONSE_DEADLINE:?}: {why}; the request goes on");
            let _ = waiting.response.send(AgentResponse::Failed { reason, temporary: true });
        }
    }

    async fn segments(&self) -> Option<SegmentsFile> {
        self.controller.segments().await.unwrap_or_else(|error| {
            warn!(%error, "segments cannot be read");
            None
        })
    }
}

/// Returns whether there are more addresses than the plugin counted.
fn has_grown(file: &SegmentsFile, stock: &Stock) -> bool {
    capacity(file, stock.family) > stock.free.saturating_add(stock.leased)
}

/// Returns the families that have too few spare addresses. Edges get a first segment in every
/// family of the cluster. Hubs get one only if `spare` is above 0. It gives a hub's own traffic to
/// remote pods a source address that peers accept. Cloud nodes get segments only on demand, since
/// their pods belong to the cloud's CNI.
fn families_to_request(
    view: &NodeView,
    file: Option<&SegmentsFile>,
    leased: impl Fn(Family) -> u64,
    spare: u32,
) -> Vec<Family> {
    [Family::V4, Family::V6]
        .into_iter()
        .filter(|family| view.cluster_ranges.iter().any(|range| Family::of(range) == *family))
        .filter(|family| {
            let capacity = file.map_or(0, |file| capacity(file, *family));
            if capacity == 0 {
                // If the view already contains a segment, none is requested, because that segment
                // will soon be on disk.
                let shown = view.segments.iter().any(|segment| Family::of(segment) == *family);
                let entitled = match view.role {
                    Role::Edge => true,
                    Role::Hub => spare > 0,
                    Role::Cloud => false,
                };
                return entitled && !shown;
            }
            let free = capacity.saturating_sub(leased(*family));
            free < one_segment(view, *family).saturating_mul(spare.into())
        })
        .collect()
}

/// Returns the number of pods that one segment of a family can hold.
fn one_segment(view: &NodeView, family: Family) -> u64 {
    let network = match family {
        Family::V4 => IpNetwork::new(std::net::Ipv4Addr::UNSPECIFIED.into(), view.segment_prefix.v4),
        Family::V6 => IpNetwork::new(std::net::Ipv6Addr::UNSPECIFIED.into(), view.segment_prefix.v6),
    };
    network.map_or(0, |network| pod_capacity(&network))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_view::empty_view;
    use edge_types::shared_files::SegmentsSource;

    fn view(role: Role, ranges: &[&str]) -> NodeView {
        NodeView { role, cluster_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(), ..empty_view() }
    }

    fn file(segments: &[&str]) -> SegmentsFile {
        SegmentsFile {
            version: 1,
            source: SegmentsSource::Agent,
            segments: segments.iter().map(|text| text.parse().unwrap()).collect(),
            cluster_ranges: vec![],
            mtu: 0,
            networks: vec![],
            hub_networks: vec![],
            bridge: None,
        }
    }

    const BOTH: &[&str] = &["10.77.0.0/16", "fd77::/48"];

    #[test]
    fn an_edge_gets_a_first_segment_of_each_family_and_others_only_on_demand() {
        let none = |_| 0;
        assert_eq!(families_to_request(&view(Role::Edge, BOTH), None, none, 0), [Family::V4, Family::V6]);
        assert_eq!(families_to_request(&view(Role::Edge, &["10.77.0.0/16"]), None, none, 0), [Family::V4]);
        assert_eq!(families_to_request(&view(Role::Edge, BOTH), Some(&file(&["fd77::/120"])), none, 1), [Family::V4]);
        assert_eq!(families_to_request(&view(Role::Hub, BOTH), None, none, 0), []);
        assert_eq!(families_to_request(&view(Role::Hub, BOTH), None, none, 1), [Family::V4, Family::V6]);
        assert_eq!(families_to_request(&view(Role::Cloud, BOTH), None, none, 1), []);
    }

    #[test]
    fn a_spare_is_wanted_once_less_than_a_segments_worth_is_free() {
        let view = view(Role::Edge, &["10.77.0.0/16"]);
        let one = file(&["10.77.0.0/26"]);
        let leased = |count| move |_| count;
        assert_eq!(families_to_request(&view, Some(&one), leased(0), 1), []);
        assert_eq!(families_to_request(&view, Some(&one), leased(1), 1), [Family::V4]);
        assert_eq!(families_to_request(&view, Some(&one), leased(61), 0), [], "spare = 0 applies only on demand");
        let two = file(&["10.77.0.0/26", "10.77.0.64/26"]);
        assert_eq!(families_to_request(&view, Some(&two), leased(61), 1), []);
        assert_eq!(families_to_request(&view, Some(&two), leased(62), 1), [Family::V4]);
        assert_eq!(families_to_request(&view, Some(&two), leased(1), 2), [Family::V4]);
    }

    #[test]
    fn a_plugin_that_saw_fewer_segments_than_there_are_is_served_already() {
        let two = file(&["10.77.0.0/26", "10.77.0.64/26"]);
        assert!(has_grown(&two, &Stock { family: Family::V4, free: 0, leased: 61 }));
        assert!(!has_grown(&two, &Stock { family: Family::V4, free: 0, leased: 122 }));
    }
}
