//! The session with the controller: joins if this node is not a member yet, reports this node's
//! addresses, and follows the view stream. When the stream ends, the session starts again.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use edge_types::IpNetwork;
use edge_types::api::{LONGEST_VERSION, NodeReport, VIEW_SILENCE_SECONDS, ViewEvent};
use edge_types::shared_files::SegmentsSource;
use edge_types::view_frames::NodeFrame;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, info, warn};

use super::backoff::{Backoff, jitter};
use super::client::{ControllerClient, Member, ViewError};
use super::error::ControllerError;
use super::join_credential::JoinCredential;
use super::stream_state::StreamState;
use super::view_connection::ViewConnection;
use super::view_file::ViewStep;
use super::view_lines::NdjsonLines;
use super::{admission, measurement};
use crate::membership::ControllerStatus;
use crate::source_address::is_local;
use crate::{candidate_addresses, tcp_encapsulation};

/// Time without a view or a heartbeat after which the controller counts as unreachable.
const SILENCE: Duration = Duration::from_secs(VIEW_SILENCE_SECONDS);
/// Delay after an error that the operator must resolve, such as a controller that does not accept
/// this node as a member.
const REFUSED_WAIT: Duration = Duration::from_secs(60);
/// Maximum time until a report is repeated while this node does not reach a hub, at least half of
/// it.
const UNREACHED_AGAIN: Duration = Duration::from_secs(120);
/// If two controllers send a goodbye within this time, the node waits before it tries the next one,
/// as after a failure.
const GOODBYE_INTERVAL: Duration = Duration::from_secs(10);
/// If a stream that lasted this long breaks, the next controller is tried without a delay.
const ESTABLISHED: Duration = Duration::from_secs(5);
/// Maximum number of segments in a report, because the size of a request is limited.
const MAX_REPORTED_SEGMENTS: usize = 1000;

/// Runs until the agent ends.
pub(super) async fn run(controller: &ControllerClient) {
    let mut backoff = Backoff::default();
    let mut uplink = controller.uplink.clone();
    let mut refused = false;
    let mut last_goodbye: Option<Instant> = None;
    let mut stream = Stream::default();
    loop {
        uplink.mark_unchanged();
        let known = credential_id(controller);
        let ended = follow_stream(controller, refused, &mut backoff, &mut stream).await;
        let opened = stream.opened.take();
        let was_established = opened.is_some_and(|opened| opened.elapsed() >= ESTABLISHED);
        if opened.is_some() {
            stream.ended_early = ended.as_ref().err().filter(|_| !was_established).map(ToString::to_string);
        }
        controller.status.send_if_modified(|status| {
            if status.connected {
                status.since = i64::try_from(controller.clock.unix_time()).ok();
            }
            std::mem::take(&mut status.connected)
        });
        refused = false;
        let wait = match ended {
            Ok(Reopen::Now) => continue,
            Ok(Reopen::AtAnotherController) => match last_goodbye.replace(Instant::now()) {
                Some(before) if before.elapsed() < GOODBYE_INTERVAL => backoff.next(),
                _ => continue,
            },
            Err(error) => {
                controller.record_error(&error);
                refused = error.is_refusal_of_this_node();
                if error.is_temporary() && was_established && controller.urls().len() > 1 {
                    continue;
                }
                if error.is_temporary() { backoff.next() } else { jitter(REFUSED_WAIT) }
            }
        };
        debug!(?wait, "waiting before trying the controller again");
        tokio::select! {
            () = sleep(wait) => {}
            // With a new address, the controller may become reachable.
            Ok(()) = uplink.changed() => {}
            () = new_credential(controller, known) => {}
        }
    }
}

/// Where the stream is opened again after it has ended without a failure.
enum Reopen {
    /// At the same controller: this node's address or certificate has changed.
    Now,
    /// At the next controller: this one shuts down.
    AtAnotherController,
}

/// The result of handling an event of the stream.
enum EventOutcome {
    /// No further action is necessary.
    Handled,
    /// An event refers to a view version that this node does not have. The stream is opened again
    /// and begins with the whole view.
    OutOfSync { received: String, expected: &'static str },
    /// The controller shuts down, for the contained reason.
    Goodbye(String),
}

/// The view stream. `state` is kept across connections.
#[derive(Default)]
struct Stream {
    state: Option<StreamState>,
    /// When the current connection's stream was opened.
    opened: Option<Instant>,
    /// The error that ended the last stream, if that stream lasted less than [`ESTABLISHED`]. Until
    /// an event of a later stream has been handled, the waits keep growing and the error stays in
    /// `status`. Otherwise, a node that cannot use what it gets would open the stream several times
    /// a second.
    ended_early: Option<String>,
}

/// Opens the stream and follows it. Returns where to open the stream again, or an error.
async fn follow_stream(
    controller: &ControllerClient,
    refused: bool,
    backoff: &mut Backoff,
    stream: &mut Stream,
) -> Result<Reopen, ControllerError> {
    let member = admission::member(controller, refused).await?;
    let mut identity = controller.member.subscribe();
    identity.mark_unchanged();
    let http = &member.http;
    let connection = ViewConnection::open(http).await?;
    let (mut uplink, mut tunnels) = (controller.uplink.clone(), controller.tunnels.clone());
    let mut traffic = controller.traffic.clone();
    let (mut obstacles, mut mapped) = (controller.obstacles.clone(), controller.mapped.clone());
    let mut unreached_hubs = controller.unreached_hubs.clone();
    let mut refused_view = RefusedViewChanges {
        status: controller.status.subscribe(),
        reported: controller.status.borrow().refused_view.clone(),
    };
    tunnels.mark_unchanged();
    traffic.mark_unchanged();
    obstacles.mark_unchanged();
    mapped.mark_unchanged();
    unreached_hubs.mark_unchanged();
    let mut unreached_again = Instant::now() + jitter(UNREACHED_AGAIN);
    let url = connection.url.clone();
    let (connection, mut lines) = match open(controller, &member, connection, &mut uplink, stream.state.as_ref()).await
    {
        Ok(opened) => opened,
        Err(error) => {
            // A controller that answers with another problem serves this node, or all refuse it.
            if !matches!(&error, ControllerError::Problem(problem) if problem.status < 500) {
                http.try_next_after(&url).await;
            }
            return Err(error);
        }
    };
    controller.controller_reached().await;
    let url = connection.url.to_string();
    info!(%url, node = %member.node(), "following the controller's view");
    controller.status.send_modify(|status| {
        status.url = Some(url);
        status.connected = true;
        status.since = i64::try_from(controller.clock.unix_time()).ok();
        // Of the errors before, only the one with which a stream ended early may come again.
        if status.last_error != stream.ended_early {
            status.last_error = None;
            status.refused = false;
        }
    });
    if stream.ended_early.is_none() {
        backoff.reset();
    }
    stream.opened = Some(Instant::now());
    // Over HTTP the stream may come from another replica than that to which the report went.
    let mut reports = Reports { is_due: !connection.has_left_http(), sending: None };
    loop {
        reports.send(controller, &member, &connection).await;
        tokio::select! {
            line = timeout(SILENCE, lines.next(&connection.url)) => {
                let line = line.unwrap_or_else(|_| {
                    Err(ControllerError::Unreachable {
                        url: connection.url.to_string(),
                        why: format!("neither view nor heartbeat for {SILENCE:?}"),
                    })
                });
                match line {
                    Ok(Some(line)) => {
                        let event = match serde_json::from_str::<ViewEvent>(&line) {
                            Ok(event) => event,
                            Err(error) => {
                                // A later release may send events that this release does not
                                // support.
                                debug!(%error, bytes = line.len(), "a line of the view stream is unknown and skipped");
                                continue;
                            }
                        };
                        // Only an event proves that the controller was reached.
                        controller.confirm_view();
                        match handle(controller, &member, &connection, event, &mut stream.state).await? {
                            EventOutcome::Handled => {
                                if let Some(error) = stream.ended_early.take() {
                                    backoff.reset();
                                    controller.clear_error(&error);
                                }
                            }
                            EventOutcome::OutOfSync { received, expected } => {
                                stream.state = None;
                                http.disconnect().await;
                                return Err(ControllerError::UnexpectedResponse { url: connection.url.to_string(), received, expected });
                            }
                            EventOutcome::Goodbye(reason) => {
                                info!(url = %connection.url, reason, "the controller is stopping; connecting to another one");
                                http.try_next_after(&connection.url).await;
                                return Ok(Reopen::AtAnotherController);
                            }
                        }
                    }
                    Ok(None) => {
                        // The controller either shuts down or refuses this node. The next attempt
                        // shows which of the two is the case.
                        http.try_next_after(&connection.url).await;
                        return Err(ControllerError::Unreachable { url: connection.url.to_string(), why: "it ended the stream".into() });
                    }
                    Err(error) => {
                        http.try_next_after(&connection.url).await;
                        return Err(error);
                    }
                }
            }
            () = address_lost(controller, &connection) => {
                debug!(local = %connection.local, "the address of the connection is gone");
                http.disconnect().await;
                return Ok(Reopen::Now);
            }
            // Reports are sent while lines are read, because the answer to a report may come after
            // a long line.
            outcome = reports.sent() => match outcome {
                // The lines end with the reason.
                Err(_) if connection.has_ended() => {}
                outcome => outcome?,
            },
            Ok(()) = uplink.changed() => reports.is_due = true,
            // Reported because the controller shows the operator why a view is refused.
            () = refused_view.changed() => reports.is_due = true,
            // The driver changes the count at most every few seconds.
            Ok(()) = tunnels.changed() => reports.is_due = true,
            // The driver publishes the traffic at most every `TunnelTraffic::INTERVAL_SECONDS`.
            Ok(()) = traffic.changed() => reports.is_due = true,
            // The obstacles change at most every few seconds.
            Ok(()) = obstacles.changed() => reports.is_due = true,
            // The controller limits how often it passes other addresses on.
            Ok(()) = mapped.changed() => reports.is_due = true,
            // Cloud nodes wait for this to route through another hub.
            Ok(()) = unreached_hubs.changed() => reports.is_due = true,
            // The controller records a limited number of edges for each hub. When there is room
            // again, it learns of this one.
            () = sleep_until(unreached_again), if is_any_unreached(controller) => {
                unreached_again = Instant::now() + jitter(UNREACHED_AGAIN);
                reports.is_due = true;
            }
            // After a renewal the node reconnects, so that the controller receives the new
            // certificate.
            Ok(()) = identity.changed() => {
                let now = identity.borrow_and_update();
                let shown = &member.identity.credentials.chain;
                if now.as_ref().is_none_or(|now| now.identity.credentials.chain != *shown) {
                    return Ok(Reopen::Now);
                }
            }
        }
    }
}

/// The reports on one connection. One report is sent at a time, by a task. What changes meanwhile
/// is in the next one.
struct Reports {
    is_due: bool,
    sending: Option<AbortOnDropHandle<Result<(), ControllerError>>>,
}

impl Reports {
    /// Starts to send a report if one is due, and the one before was answered.
    async fn send(&mut self, controller: &ControllerClient, member: &Member, connection: &ViewConnection) {
        if self.sending.is_none() && std::mem::take(&mut self.is_due) {
            let report = report(controller, connection.local).await;
            let (member, connection) = (member.clone(), connection.clone());
            // The session does not run this future itself: while it waits for a lock, this future
            // would keep its place in the queue for a lock, and nothing would run it.
            let sending =
                async move { connection.request(&member.http, NodeFrame::Report, member.node(), &report).await };
            self.sending = Some(AbortOnDropHandle::new(tokio::spawn(sending.in_current_span())));
        }
    }

    /// Returns when the controller has answered the report. Never returns while none is sent. This
    /// method is cancel safe.
    async fn sent(&mut self) -> Result<(), ControllerError> {
        let Some(sending) = &mut self.sending else { return std::future::pending().await };
        let outcome = sending.await;
        self.sending = None;
        outcome.unwrap_or_else(|error| Err(ControllerError::Unacceptable(format!("the report failed: {error}"))))
    }
}

fn is_any_unreached(controller: &ControllerClient) -> bool {
    controller.unreached_hubs.borrow().as_ref().is_some_and(|hubs| !hubs.is_empty())
}

/// Returns when the local address of a connection is gone.
async fn address_lost(controller: &ControllerClient, connection: &ViewConnection) {
    let mut uplink = controller.uplink.clone();
    if uplink.wait_for(|uplink| is_lost(connection.local, &uplink.addresses)).await.is_err() {
        std::future::pending().await
    }
}

/// Returns whether a connection's local address is gone. An address that is on no uplink may still
/// belong to this node: a connection to a ClusterIP that kube-proxy keeps on a device (IPVS) has
/// that ClusterIP at both ends.
fn is_lost(local: IpAddr, uplinks: &[IpAddr]) -> bool {
    !uplinks.is_empty() && !local.is_loopback() && !uplinks.contains(&local) && !is_local(local)
}

/// Reports this node's addresses and requests the view stream. Returns its lines, and the
/// connection on which they come.
async fn open(
    controller: &ControllerClient,
    member: &Member,
    connection: ViewConnection,
    uplink: &mut tokio::sync::watch::Receiver<crate::membership::UplinkFacts>,
    state: Option<&StreamState>,
) -> Result<(ViewConnection, NdjsonLines), ControllerError> {
    uplink.mark_unchanged();
    let report = report(controller, connection.local).await;
    tokio::select! {
        outcome = connection.request(&member.http, NodeFrame::Report, member.node(), &report) => outcome?,
        // Nothing more arrives on the connection.
        () = address_lost(controller, &connection) => {
            let why = "this node's address on the connection is gone".into();
            return Err(ControllerError::Unreachable { url: connection.url.to_string(), why });
        }
    }
    let held = controller.view.lock().await.clone();
    let query = StreamState::query(state, held.as_deref());
    let path = format!("/v1/nodes/{}/view?watch=true&changes=true&measures=true{query}", member.node());
    connection.follow(&member.http, &path).await
}

/// Handles an event of the stream: applies it to `state` and takes the resulting view.
async fn handle(
    controller: &ControllerClient,
    member: &Member,
    connection: &ViewConnection,
    event: ViewEvent,
    state: &mut Option<StreamState>,
) -> Result<EventOutcome, ControllerError> {
    let mut step = None;
    match event {
        ViewEvent::View { epoch, view } => *state = Some(StreamState::new(epoch, *view)),
        ViewEvent::Change(change) => {
            let from = change.from;
            let before = state.as_ref().map(|state| state.view().clone());
            step = before.map(|before| ViewStep { before, change: change.clone() });
            *state = state.take().and_then(|state| state.apply(change));
            if state.is_none() {
                let received = format!("changes since version {from} of the view");
                return Ok(EventOutcome::OutOfSync {
                    received,
                    expected: "changes since the version that it sent last",
                });
            }
        }
        ViewEvent::Measure(request) => {
            measurement::start(controller, member, connection, request);
            return Ok(EventOutcome::Handled);
        }
        ViewEvent::Goodbye { reason } => return Ok(EventOutcome::Goodbye(reason)),
        ViewEvent::Heartbeat { version } => {
            let held = controller.view.lock().await.as_ref().map(|view| view.version);
            let latest = held.max(state.as_ref().map(|state| state.view().version));
            if latest.unwrap_or(0) < version {
                let received = format!("a heartbeat of version {version} without the view of that version");
                return Ok(EventOutcome::OutOfSync { received, expected: "the view first" });
            }
            return Ok(EventOutcome::Handled);
        }
    }
    if let Some(state) = state {
        match controller.take_view(state.view().clone(), step).await {
            Ok(()) => {}
            Err(ViewError::Refused(refusal)) => controller.record_error(&ControllerError::Unacceptable(format!(
                "the controller's view of version {} is refused: {refusal}",
                state.view().version
            ))),
            // `status` and the next report say it, and the view is tried again.
            Err(ViewError::Store(_)) => {}
            Err(ViewError::Controller(error)) => return Err(error),
        }
    }
    Ok(EventOutcome::Handled)
}

/// Makes a report of addresses, ports, tunnels, traffic, segments, the refused view, version,
/// obstacles, mapped addresses and unreached hubs.
async fn report(controller: &ControllerClient, local: IpAddr) -> NodeReport {
    let own = controller.uplink.borrow().addresses.clone();
    let advertised = controller.config.controller.as_ref().map_or(&[][..], |controller| &controller.advertise);
    let ranges = controller.view.lock().await.as_ref().map_or(vec![], |view| view.cluster_ranges.clone());
    let (addresses, left_out) = candidate_addresses::addresses_to_report(advertised, local, &own, &ranges);
    if controller.left_out.swap(left_out, Ordering::Relaxed) != left_out && left_out != 0 {
        info!(
            reported = ?addresses,
            left_out,
            "this node has more addresses than peers try; set [controller] advertise to those at which peers reach it"
        );
    }
    let refused_view = controller.status.borrow().refused_view.clone();
    let (port, tunnels) = (controller.config.nat_port, controller.tunnels.borrow().clone());
    let traffic = *controller.traffic.borrow();
    let version = env!("CARGO_PKG_VERSION").chars().take(LONGEST_VERSION).collect();
    let report = NodeReport {
        addresses,
        port,
        tunnels,
        traffic,
        refused_view,
        segments: granted(controller).await,
        version: Some(version),
        obstacles: controller.obstacles.borrow().clone(),
        mapped: controller.mapped.borrow().clone(),
        unreached_hubs: controller.unreached_hubs.borrow().clone(),
        tcp_port: controller.config.tcp.listen_port.filter(|_| tcp_encapsulation::support().is_ok()),
    };
    debug!(?report, "reporting");
    report
}

/// Returns the granted segments from `segments.json`; `None` if the file cannot be read. In that
/// case the report is sent without the segments.
async fn granted(controller: &ControllerClient) -> Option<Vec<IpNetwork>> {
    match controller.segments().await {
        // Segments from the plugin's configuration were not granted by the controller.
        Ok(file) => {
            let granted = file.filter(|file| file.source == SegmentsSource::Agent).map(|file| file.segments);
            Some(granted.into_iter().flatten().take(MAX_REPORTED_SEGMENTS).collect())
        }
        Err(error) => {
            warn!(%error, "cannot read this node's segments; the report to the controller leaves them out");
            None
        }
    }
}

/// Returns when the token file holds another credential than `known`. Reads the file every two
/// seconds.
async fn new_credential(controller: &ControllerClient, known: Option<String>) {
    loop {
        let found = credential_id(controller);
        if found.is_some() && found != known {
            return;
        }
        sleep(Duration::from_secs(2)).await;
    }
}

fn credential_id(controller: &ControllerClient) -> Option<String> {
    JoinCredential::read(&controller.config).ok().flatten().map(|credential| credential.id().to_owned())
}

/// Watches [`ControllerStatus::refused_view`] for changes since the last report.
struct RefusedViewChanges {
    status: tokio::sync::watch::Receiver<ControllerStatus>,
    reported: Option<String>,
}

impl RefusedViewChanges {
    /// Returns when the refused view differs from the reported one.
    async fn changed(&mut self) {
        let reported = &self.reported;
        let found = self.status.wait_for(|status| status.refused_view != *reported).await;
        match found.map(|status| status.refused_view.clone()) {
            Ok(refused) => self.reported = refused,
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use interop_tests::netns::{is_in_namespaces, is_root_or_skips, passes_in_namespaces, run};

    use super::*;

    const LOST: &str = "controller_client::session::tests::the_address_of_a_connection";

    #[test]
    fn a_connection_is_lost_with_its_address_and_not_while_any_device_has_it() {
        if is_root_or_skips() {
            passes_in_namespaces(LOST);
        }
    }

    #[test]
    #[ignore = "it changes the network; another test runs it in a namespace"]
    fn the_address_of_a_connection() {
        if !is_in_namespaces() {
            return;
        }
        let uplinks: [IpAddr; 2] = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        for line in [
            "ip link set lo up",
            "ip link add uplink type veth peer name far",
            "ip link set far up",
            "ip link set uplink up",
            "ip addr add 192.0.2.7/24 dev uplink",
            "ip addr add 2001:db8::7/64 dev uplink nodad",
            "ip route add default dev uplink",
            "ip -6 route add default dev uplink",
            // As kube-proxy does for IPVS, with another kind of device: it stays down.
            "ip link add kube-ipvs0 type bridge",
            "ip addr add 10.96.0.10/32 dev kube-ipvs0",
        ] {
            run(line);
        }
        assert!(!is_lost("10.96.0.10".parse().unwrap(), &uplinks), "a device has it");
        run("ip link del kube-ipvs0");
        for gone in ["10.96.0.10", "192.0.2.8", "2001:db8::8"] {
            assert!(is_lost(gone.parse().unwrap(), &uplinks), "{gone}");
        }
        assert!(!uplinks.iter().any(|address| is_lost(*address, &uplinks)));
        assert!(!is_lost("192.0.2.8".parse().unwrap(), &[]), "the uplinks are not known");
        assert!(!is_lost("127.0.0.1".parse().unwrap(), &uplinks));
    }
}
