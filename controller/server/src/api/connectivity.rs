//! Checks for the operator whether nodes reach each other, and receives the reports of the nodes
//! that measure.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use edge_controller_domain::connectivity::{MeasureError, Measurers, Path, Plan, judge, unknown};
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::registry::{Registry, StateGuard};
use edge_controller_domain::text;
use edge_controller_domain::views;
use edge_types::api::Family;
use edge_types::connectivity::{
    ConnectivityEvent, ConnectivityRequest, MOST_ADDRESSES, MOST_ECHO_REQUESTS, MOST_PATHS, MOST_TARGETS,
    MeasurementReport, MeasurementTarget,
};
use edge_types::{IpNetwork, NodeName};
use futures_util::StreamExt;
use hyper::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::body::{Json, Node};
use super::caller::Caller;
use super::error::ApiError;
use super::single_view::SLOWEST_READER;
use super::state::{CheckPermit, from_substates};
use crate::live_config::LiveConfig;

/// Number of nodes that measure at the same time.
const AT_ONCE: usize = 8;
/// Number of nodes that are asked for their addresses at the same time.
const ASKED_AT_ONCE: usize = 64;
/// Time limit for a check. Paths that have not been measured by then get the verdict `unknown`.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Maximum number of lines that wait for the operator's command. At the limit, the check waits.
const QUEUE: usize = 64;
/// Maximum length of a reason that a node reports, in characters.
const LONGEST_REASON: usize = 300;

/// The parts of the server that a check needs.
#[derive(Clone)]
pub(super) struct Checks {
    registry: Registry,
    live: Arc<LiveConfig>,
    reports: NodeReports,
    measurers: Measurers,
    stopping: CancellationToken,
}

from_substates!(Checks { registry, live, reports, measurers, stopping });

/// Receives the report of a node.
pub(super) async fn report(
    State(registry): State<Registry>,
    State(measurers): State<Measurers>,
    caller: Caller,
    Node(node): Node,
    Json(report): Json<MeasurementReport>,
) -> Result<StatusCode, ApiError> {
    caller.require_node_now(&registry, &node).await?;
    match measurers.reported(&node, report) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::NoSuchMeasurement),
    }
}

/// Runs a check. The response is a stream that gets a line for each result as soon as the result is
/// known.
pub(super) async fn check(
    State(checks): State<Checks>,
    State(CheckPermit(permits)): State<CheckPermit>,
    caller: Caller,
    Json(request): Json<ConnectivityRequest>,
) -> Result<Response, ApiError> {
    caller.require_operator()?;
    let ConnectivityRequest { most_paths, count, .. } = request;
    if !(1..=MOST_PATHS).contains(&most_paths) {
        return Err(ApiError::BadValue(format!("most_paths is {most_paths}; expected 1 to {MOST_PATHS}")));
    }
    if !(1..=MOST_ECHO_REQUESTS).contains(&count) {
        return Err(ApiError::BadValue(format!("count is {count}; expected 1 to {MOST_ECHO_REQUESTS}")));
    }
    let permit = permits.try_acquire_owned().map_err(|_| ApiError::CheckRunning)?;
    let plan = Plan::new(&*checks.registry.read().await, &request)?;
    tracing::info!(paths = plan.extent.paths, "checking connectivity");
    let (lines, taken) = mpsc::channel(QUEUE);
    let work = async move {
        let stopping = checks.stopping.clone();
        tokio::select! {
            () = checks.run(plan, count, &lines, permit) => {}
            // The operator's command has ended, or the server stops.
            () = lines.closed() => {}
            () = stopping.cancelled() => {}
        }
    };
    tokio::spawn(work.in_current_span());
    let body = futures_util::stream::unfold(taken, async |mut taken| {
        taken.recv().await.map(|line: Bytes| (Ok::<_, Infallible>(line), taken))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

/// What is known about a node before paths are measured.
struct Facts {
    /// The node's own addresses, as it reports them. In a family in which it reports none, the
    /// expected address of its bridge.
    addresses: Vec<IpAddr>,
    /// The reason why the node cannot measure.
    unable: Option<String>,
}

/// The limits of a check.
#[derive(Clone, Copy)]
struct Extent {
    /// Number of echo requests to each address.
    count: u16,
    /// When the check ends.
    deadline: Instant,
}

impl Checks {
    async fn run(&self, plan: Plan, count: u16, lines: &mpsc::Sender<Bytes>, _permit: OwnedSemaphorePermit) {
        let deadline = Instant::now() + LONGEST;
        if send(lines, &ConnectivityEvent::Plan(plan.extent)).await.is_err() {
            return;
        }
        let nodes: BTreeSet<NodeName> = plan.paths.iter().flat_map(|path| [&path.from, &path.to]).cloned().collect();
        let facts = futures_util::stream::iter(nodes.into_iter().map(|node| self.facts(node)));
        let facts: BTreeMap<NodeName, Facts> = facts.buffer_unordered(ASKED_AT_ONCE).collect().await;
        let mut by_source: BTreeMap<NodeName, Vec<Path>> = BTreeMap::new();
        for path in plan.paths {
            by_source.entry(path.from.clone()).or_default().push(path);
        }
        let work = by_source
            .into_iter()
            .map(|(from, paths)| self.measure_all(from, paths, &facts, Extent { count, deadline }, lines));
        let work = futures_util::stream::iter(work);
        let results: Vec<Result<(), ReaderGone>> = work.buffer_unordered(AT_ONCE).collect().await;
        if results.iter().all(Result::is_ok) {
            // If the reader is gone, it does not need the last line.
            let _ = send(lines, &ConnectivityEvent::End).await;
        }
    }

    /// Asks a node for its addresses. Returns the node's name with the response.
    async fn facts(&self, node: NodeName) -> (NodeName, Facts) {
        let report = self.measurers.measure(&node, vec![], 1).await;
        let state = self.registry.read().await;
        let networks = self.networks(&state, &node);
        // Reported addresses outside of the node's networks are ignored: other nodes would send
        // packets to them.
        let own = |address: &IpAddr| networks.iter().any(|network| network.contains(*address));
        let facts = match report {
            Ok(report) => {
                let mut addresses: Vec<IpAddr> =
                    report.addresses.into_iter().filter(own).take(MOST_ADDRESSES).collect();
                // A node may not leave a family out: that of a broken bridge would not be checked.
                for expected in expected_addresses(&views::segments(&state, &node)) {
                    if !addresses.iter().any(|address| address.is_ipv4() == expected.is_ipv4()) {
                        addresses.push(expected);
                    }
                }
                let unable = report.refused.map(|why| format!("{node}: {}", text::shown(&why, LONGEST_REASON)));
                Facts { addresses, unable }
            }
            Err(error) => Facts {
                addresses: expected_addresses(&views::segments(&state, &node)),
                unable: Some(self.unable(&state, &node, error)),
            },
        };
        (node, facts)
    }

    /// Returns the networks that are reached through a node; none if it has no view.
    fn networks(&self, state: &StateGuard<'_>, node: &NodeName) -> Vec<IpNetwork> {
        let view = self.live.now().views.view(state, node, 0);
        view.map(|view| view.local_networks().collect()).unwrap_or_default()
    }

    /// Returns the reason why a node cannot measure, in words.
    fn unable(&self, state: &StateGuard<'_>, node: &NodeName, error: MeasureError) -> String {
        match error {
            MeasureError::NoStream if state.is_connected(node) => {
                let release = self.reports.of(node).and_then(|report| report.version);
                let release = release.map_or(String::new(), |release| format!(" ({release})"));
                format!("the agent of {node} is too old to measure{release}; upgrade it")
            }
            MeasureError::NoStream => format!(
                "{node} is not connected to this controller; of several replicas, ask the one that `edge-controller \
                 node show {node}` names"
            ),
            error => format!("{node}: {error}"),
        }
    }

    /// Has one node measure its paths, a few at a time, and sends the results.
    async fn measure_all(
        &self,
        from: NodeName,
        paths: Vec<Path>,
        facts: &BTreeMap<NodeName, Facts>,
        extent: Extent,
        lines: &mpsc::Sender<Bytes>,
    ) -> Result<(), ReaderGone> {
        let mut silent: Option<String> = None;
        for some in paths.chunks(MOST_TARGETS) {
            // A node that did not answer once would take a timeout for each of its paths.
            let events = match &silent {
                Some(why) => unmeasured(some, why),
                None => match self.measure(&from, some, facts, extent).await {
                    Ok(events) => events,
                    Err(why) => {
                        let events = unmeasured(some, &why);
                        silent = Some(why);
                        events
                    }
                },
            };
            for event in events {
                send(lines, &event).await?;
            }
        }
        Ok(())
    }

    /// Has one node measure some paths, and judges them. Fails with the reason if the node does not
    /// measure.
    async fn measure(
        &self,
        from: &NodeName,
        paths: &[Path],
        facts: &BTreeMap<NodeName, Facts>,
        Extent { count, deadline }: Extent,
    ) -> Result<Vec<ConnectivityEvent>, String> {
        if let Some(why) = facts.get(from).and_then(|facts| facts.unable.as_deref()) {
            return Err(why.to_owned());
        }
        let over = || format!("the check's {} minutes were over", LONGEST.as_secs() / 60);
        // A request that is sent now would be measured although nothing waits for it.
        if Instant::now() >= deadline {
            return Err(over());
        }
        let addresses = |node| facts.get(node).map_or(Vec::new(), |facts| facts.addresses.clone());
        let targets =
            paths.iter().map(|path| MeasurementTarget { node: path.to.clone(), addresses: addresses(&path.to) });
        let targets: Vec<MeasurementTarget> = targets.collect();
        let asked = tokio::time::timeout_at(deadline, self.measurers.measure(from, targets.clone(), count));
        let report = match asked.await {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => return Err(self.unable(&self.registry.read().await, from, error)),
            Err(_) => return Err(over()),
        };
        if let Some(why) = report.refused {
            return Err(format!("{from}: {why}"));
        }
        let own = facts.get(from).map_or(&[][..], |facts| &facts.addresses);
        let mut events = Vec::new();
        for (path, target) in paths.iter().zip(&targets) {
            let asked: Vec<Option<IpAddr>> = match target.addresses.is_empty() {
                true => vec![None],
                false => target.addresses.iter().copied().map(Some).collect(),
            };
            // A node measures only in the families in which it has an address of its own.
            let in_family =
                |address: &Option<IpAddr>| address.is_none_or(|to| own.iter().any(|own| own.is_ipv4() == to.is_ipv4()));
            let any_family = !asked.iter().any(in_family);
            for address in &asked {
                let measured = report.paths.iter().find(|m| m.node == path.to && m.address == *address);
                match measured {
                    Some(measured) if measured.sent > 0 || any_family || in_family(address) => {
                        events.push(event(judge(path, measured.clone())));
                    }
                    None if any_family || in_family(address) => {
                        events.push(event(unknown(path, &format!("the report of {from} lacks it"))));
                    }
                    _ => {}
                }
            }
        }
        Ok(events)
    }
}

/// Returns the events of paths that a node did not measure, for this reason.
fn unmeasured(paths: &[Path], why: &str) -> Vec<ConnectivityEvent> {
    paths.iter().map(|path| event(unknown(path, why))).collect()
}

fn event(result: edge_types::connectivity::PathResult) -> ConnectivityEvent {
    ConnectivityEvent::Path(Box::new(result))
}

/// Returns, for each family, the lowest first address of the segments. The node's bridge probably
/// has it.
fn expected_addresses(segments: &[IpNetwork]) -> Vec<IpAddr> {
    let first = |network: &IpNetwork| match network.network() {
        IpAddr::V4(first) => first.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(first) => first.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    };
    let of = |family| segments.iter().filter(move |network| Family::of(network) == family).filter_map(first).min();
    [of(Family::V4), of(Family::V6)].into_iter().flatten().collect()
}

/// The reader of the results has closed the connection, or takes no results any more.
struct ReaderGone;

async fn send(lines: &mpsc::Sender<Bytes>, event: &ConnectivityEvent) -> Result<(), ReaderGone> {
    // Serialising these events never fails.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    // A command that is suspended must not keep all others from checking.
    lines.send_timeout(line.into(), SLOWEST_READER).await.map_err(|_| ReaderGone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_of_a_node_has_the_first_address_of_a_segment_of_each_family() {
        let segments = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let found = expected_addresses(&segments(&["10.77.0.64/26", "fd77::100/120", "10.77.0.0/26"]));
        assert_eq!(found, ["10.77.0.1".parse::<IpAddr>().unwrap(), "fd77::101".parse().unwrap()]);
        assert!(expected_addresses(&[]).is_empty());
    }
}
