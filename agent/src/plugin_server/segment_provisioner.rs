//! When to apply for a segment. A pod that waits is served first; several that wait for the same
//! are served by one application. Beside that the keeper holds `spare` segments' worth of addresses
//! free, so that pods seldom wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use edge_types::agent_protocol::{APPLICATION_TIMEOUT_SECONDS, AgentResponse, Stock};
use edge_types::api::Family;
use edge_types::store::{SegmentsFile, pod_capacity};
use edge_types::{IpNetwork, NodeView, Role};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::socket::Asked;
use crate::controller_client::{Cloud, CloudError};
use crate::state_dir::segments_file::capacity;

/// A pod is told what stands in the way before the plugin stops listening.
const PATIENCE: Duration = Duration::from_millis(APPLICATION_TIMEOUT_SECONDS * 1000 - 700);
/// Wait before a spare is applied for again after a failure; doubled each time.
const RETRY: Duration = Duration::from_secs(4);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

type Outcome = Result<SegmentsFile, CloudError>;
type Application = Pin<Box<dyn Future<Output = (Family, Outcome)> + Send>>;

/// A pod that waits.
struct Waiting {
    stock: Vec<Stock>,
    answer: oneshot::Sender<AgentResponse>,
    until: Instant,
}

/// How it stands with a family.
#[derive(Default)]
struct Standing {
    /// Addresses that pods have, as the plugin said last.
    leased: u64,
    /// Why the last application failed.
    failure: Option<Failure>,
}

struct Failure {
    error: CloudError,
    /// Not before then is a spare applied for.
    again: Instant,
    /// How long it was waited for that.
    wait: Duration,
}

struct Keeper {
    cloud: Arc<Cloud>,
    waiting: Vec<Waiting>,
    families: BTreeMap<Family, Standing>,
}

/// Runs until the agent ends.
pub(super) async fn run(cloud: Arc<Cloud>, mut queue: mpsc::Receiver<Asked>) {
    let mut membership = cloud.membership();
    let mut status = cloud.status();
    let mut connected = false;
    let mut keeper = Keeper { cloud, waiting: Vec::new(), families: BTreeMap::new() };
    let mut application: Option<Application> = None;
    loop {
        if application.is_none() {
            application = keeper.next_application().await;
        }
        let wake = keeper.next_moment(application.is_none());
        tokio::select! {
            asked = queue.recv() => match asked {
                Some(asked) => keeper.take(asked).await,
                None => return,
            },
            (family, outcome) = progress(&mut application) => {
                application = None;
                keeper.finished(family, outcome);
            }
            Ok(()) = membership.changed() => membership.mark_unchanged(),
            Ok(()) = status.changed() => {
                let now = status.borrow_and_update().connected;
                if now && !connected {
                    // What failed without the controller need not wait any longer.
                    keeper.families.values_mut().for_each(|standing| {
                        standing.failure.take_if(|failure| failure.error.is_temporary());
                    });
                }
                connected = now;
            }
            () = until(wake) => keeper.give_up_on_the_late(),
        }
    }
}

async fn progress(application: &mut Option<Application>) -> (Family, Outcome) {
    match application {
        Some(application) => application.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Keeper {
    async fn take(&mut self, asked: Asked) {
        match asked {
            Asked::Taken(stock) => self.note(&stock),
            Asked::Apply { stock, answer } => {
                self.note(&stock);
                self.waiting.push(Waiting { stock, answer, until: Instant::now() + PATIENCE });
                if let Some(file) = self.segments().await {
                    self.answer_the_served(&file);
                }
            }
        }
    }

    fn note(&mut self, stock: &[Stock]) {
        for stock in stock {
            self.families.entry(stock.family).or_default().leased = stock.leased;
        }
    }

    /// When something is to be done if nothing happens before.
    fn next_moment(&self, may_apply: bool) -> Option<Instant> {
        let late = self.waiting.iter().map(|waiting| waiting.until);
        let now = Instant::now();
        let again =
            self.families.values().filter_map(|standing| standing.failure.as_ref().map(|failure| failure.again));
        late.chain(again.filter(|again| may_apply && *again > now)).min()
    }

    /// What is to be applied for next: first what pods wait for, then what an earlier run has asked
    /// for, then spares. One family at a time, since the controller grants all of an application or
    /// nothing, and one family may be full.
    async fn next_application(&mut self) -> Option<Application> {
        let file = self.segments().await;
        let short = |stock: &&Stock| !file.as_ref().is_some_and(|file| has_grown(file, stock));
        let awaited = self.waiting.iter().flat_map(|waiting| &waiting.stock).filter(short);
        let family = match awaited.map(|stock| stock.family).min() {
            Some(family) => family,
            None => {
                let view = self.cloud.membership().borrow().as_ref()?.view.clone();
                let families = match self.cloud.unanswered_application() {
                    Some(families) => families,
                    None => {
                        let spare = self.cloud.config().controller.as_ref().map_or(0, |controller| controller.spare);
                        let leased = |family| self.families.get(&family).map_or(0, |standing| standing.leased);
                        wanted(&view, file.as_ref(), leased, spare)
                    }
                };
                let now = Instant::now();
                let family = families.into_iter().find(|family| {
                    let failure = self.families.get(family).and_then(|standing| standing.failure.as_ref());
                    failure.is_none_or(|failure| failure.again <= now)
                })?;
                debug!(?family, "applying for a segment before it is needed");
                family
            }
        };
        let cloud = self.cloud.clone();
        Some(Box::pin(async move {
            let outcome = cloud.apply(&[family]).await;
            (family, outcome)
        }))
    }

    fn finished(&mut self, family: Family, outcome: Outcome) {
        let standing = self.families.entry(family).or_default();
        match outcome {
            Ok(file) => {
                if let Some(failure) = standing.failure.take() {
                    self.cloud.forget_error(&failure.error);
                }
                self.answer_the_served(&file);
            }
            Err(error) => {
                self.cloud.note_error(&error);
                let (reason, temporary) = (format!("no further segment: {error}"), error.is_temporary());
                let wait = standing.failure.as_ref().map_or(RETRY, |before| (before.wait * 2).min(LONGEST_RETRY));
                standing.failure = Some(Failure { error, again: Instant::now() + wait, wait });
                // One failure answers all who wait for it; they come again with the next ADD.
                let (told, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
                    .into_iter()
                    .partition(|waiting| waiting.stock.iter().any(|stock| stock.family == family));
                self.waiting = waiting;
                for waiting in told {
                    let _ = waiting.answer.send(AgentResponse::Failed { reason: reason.clone(), temporary });
                }
            }
        }
    }

    /// Answers those for whom segments have come since they looked.
    fn answer_the_served(&mut self, file: &SegmentsFile) {
        let (served, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.stock.iter().all(|stock| has_grown(file, stock)));
        self.waiting = waiting;
        for waiting in served {
            let _ = waiting.answer.send(AgentResponse::Done);
        }
    }

    fn give_up_on_the_late(&mut self) {
        let now = Instant::now();
        let status = self.cloud.status().borrow().clone();
        let (late, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.until <= now);
        self.waiting = waiting;
        for waiting in late {
            let why = status.last_error.clone().unwrap_or_else(|| "the controller is slow".into());
            let reason = format!("no further segment within {PATIENCE:?}: {why}; the application goes on");
            let _ = waiting.answer.send(AgentResponse::Failed { reason, temporary: true });
        }
    }

    async fn segments(&self) -> Option<SegmentsFile> {
        self.cloud.segments().await.unwrap_or_else(|error| {
            warn!(%error, "segments cannot be read");
            None
        })
    }
}

/// Whether there are more addresses than the plugin saw.
fn has_grown(file: &SegmentsFile, stock: &Stock) -> bool {
    capacity(file, stock.family) > stock.free.saturating_add(stock.leased)
}

/// Families in which a spare is missing. Edges get a first segment of every family of the cluster;
/// hubs only if they are to hold a spare (it gives their own traffic to remote pods a source that
/// peers know); cloud nodes, whose pods are the cloud CNI's, only what their plugin asks for.
fn wanted(view: &NodeView, file: Option<&SegmentsFile>, leased: impl Fn(Family) -> u64, spare: u32) -> Vec<Family> {
    [Family::V4, Family::V6]
        .into_iter()
        .filter(|family| view.cluster_ranges.iter().any(|range| Family::of(range) == *family))
        .filter(|family| {
            let capacity = file.map_or(0, |file| capacity(file, *family));
            if capacity == 0 {
                // What the view shows already is only yet to be written.
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

/// Pods that one segment of a family holds.
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
    use edge_types::store::SegmentsSource;

    fn view(role: Role, ranges: &[&str]) -> NodeView {
        NodeView {
            version: 1,
            node: "edge-1".parse().unwrap(),
            role,
            communities: Default::default(),
            cluster_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
            segments: vec![],
            networks: vec![],
            peers: vec![],
            trust_anchors: vec![],
            segment_prefix: Default::default(),
        }
    }

    fn file(segments: &[&str]) -> SegmentsFile {
        SegmentsFile {
            version: 1,
            source: SegmentsSource::Agent,
            segments: segments.iter().map(|text| text.parse().unwrap()).collect(),
            cluster_ranges: vec![],
            mtu: 0,
            networks: vec![],
        }
    }

    const BOTH: &[&str] = &["10.77.0.0/16", "fd77::/48"];

    #[test]
    fn an_edge_gets_a_first_segment_of_each_family_and_others_only_on_demand() {
        let none = |_| 0;
        assert_eq!(wanted(&view(Role::Edge, BOTH), None, none, 0), [Family::V4, Family::V6]);
        assert_eq!(wanted(&view(Role::Edge, &["10.77.0.0/16"]), None, none, 0), [Family::V4]);
        assert_eq!(wanted(&view(Role::Edge, BOTH), Some(&file(&["fd77::/120"])), none, 1), [Family::V4]);
        assert_eq!(wanted(&view(Role::Hub, BOTH), None, none, 0), []);
        assert_eq!(wanted(&view(Role::Hub, BOTH), None, none, 1), [Family::V4, Family::V6]);
        assert_eq!(wanted(&view(Role::Cloud, BOTH), None, none, 1), []);
    }

    #[test]
    fn a_spare_is_wanted_once_less_than_a_segments_worth_is_free() {
        let view = view(Role::Edge, &["10.77.0.0/16"]);
        let one = file(&["10.77.0.0/26"]);
        let leased = |count| move |_| count;
        assert_eq!(wanted(&view, Some(&one), leased(0), 1), []);
        assert_eq!(wanted(&view, Some(&one), leased(1), 1), [Family::V4]);
        assert_eq!(wanted(&view, Some(&one), leased(61), 0), [], "spare = 0 applies only on demand");
        let two = file(&["10.77.0.0/26", "10.77.0.64/26"]);
        assert_eq!(wanted(&view, Some(&two), leased(61), 1), []);
        assert_eq!(wanted(&view, Some(&two), leased(62), 1), [Family::V4]);
        assert_eq!(wanted(&view, Some(&two), leased(1), 2), [Family::V4]);
    }

    #[test]
    fn a_plugin_that_saw_fewer_segments_than_there_are_is_served_already() {
        let two = file(&["10.77.0.0/26", "10.77.0.64/26"]);
        assert!(has_grown(&two, &Stock { family: Family::V4, free: 0, leased: 61 }));
        assert!(!has_grown(&two, &Stock { family: Family::V4, free: 0, leased: 122 }));
    }
}
