//! Measures paths to other nodes at the controller's request (`edge-controller
//! check-connectivity`). The targets are nodes that this node may reach, and nodes that it must not
//! reach.

use std::net::IpAddr;
use std::time::Duration;

use edge_types::NodeView;
use edge_types::connectivity::{
    MOST_ADDRESSES, MOST_ECHO_REQUESTS, MOST_TARGETS, MeasurementReport, MeasurementRequest, MeasurementTarget,
    PathMeasurement, RoundTrip,
};
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::destination::Destination;
use super::echo::{self, Answers, PingOptions};
use super::path;
use crate::admin::server::{AdminCall, Reply};
use crate::admin::{AdminRequest, AdminResponse};
use crate::membership::{Measurement, Membership};
use crate::status::Status;

/// Time between two requests to one address.
const INTERVAL: Duration = Duration::from_millis(50);
/// Timeout for replies after the last request.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for replies if the tunnel to a target is not up. The first packet sets an on-demand
/// tunnel up; where it needs a relay, a hub is asked after 3 s.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum time between the starts of two measurements. Each one needs a status document, which on
/// a hub lists thousands of tunnels.
const PACE: Duration = Duration::from_secs(1);
/// Timeout for the status document from the tunnels' thread.
const STATUS_TIMEOUT: Duration = Duration::from_secs(8);
/// Largest MTU that is tried if the pods' MTU is unknown, in bytes: the MTU of Ethernet.
const UNKNOWN_MTU: u32 = 1500;

/// Carries out the requests one at a time, until the agent ends.
pub async fn serve(
    mut measurements: mpsc::Receiver<Measurement>,
    membership: watch::Receiver<Option<Membership>>,
    requests: mpsc::Sender<AdminCall>,
    stop: CancellationToken,
) {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while let Some(Measurement { request, report }) = measurements.recv().await {
        pace.tick().await;
        let view = membership.borrow().as_ref().map(|membership| membership.view.clone());
        debug!(targets = request.targets.len(), "measuring for the controller");
        let id = request.id.clone();
        let found = match view {
            None => refused(id, "this node has no view yet"),
            Some(view) => match timeout(STATUS_TIMEOUT, status(&requests)).await {
                Ok(Some(status)) => measure(request, &view, &status, &stop).await,
                Ok(None) | Err(_) => refused(id, "the agent does not report its state in time"),
            },
        };
        // The controller may no longer wait for the report.
        let _ = report.send(found);
    }
}

fn refused(id: String, why: &str) -> MeasurementReport {
    MeasurementReport { id, addresses: Vec::new(), paths: Vec::new(), refused: Some(why.to_owned()) }
}

async fn status(requests: &mpsc::Sender<AdminCall>) -> Option<Status> {
    let (to, response) = oneshot::channel();
    requests.send((AdminRequest::Status, to)).await.ok()?;
    match response.await.ok()? {
        Reply::Response(AdminResponse::Status { status }) => Some(*status),
        Reply::Response(_) | Reply::StatusInParts(_) | Reply::Capture(_) => None,
    }
}

/// A path to one address of a target.
struct MeasuredPath {
    tunnel: Option<String>,
    /// `None` if no packet can be sent. `error` then has the reason, if it is known.
    destination: Option<Destination>,
    error: Option<String>,
    measurement: PathMeasurement,
}

async fn measure(
    request: MeasurementRequest,
    view: &NodeView,
    status: &Status,
    stop: &CancellationToken,
) -> MeasurementReport {
    let addresses = own_addresses(view, status);
    let targets = request.targets.iter().take(MOST_TARGETS);
    let mut paths: Vec<MeasuredPath> = targets.flat_map(|target| prepare(target, view, status, &addresses)).collect();
    let all_up = paths.iter().all(|path| path.tunnel.as_deref().is_none_or(|phase| phase == "up"));
    let timeout = if all_up { REPLY_TIMEOUT } else { SETUP_TIMEOUT };
    let options = PingOptions { count: request.count.clamp(1, MOST_ECHO_REQUESTS), interval: INTERVAL, timeout };
    let largest = if status.host.pod_mtu == 0 { UNKNOWN_MTU } else { status.host.pod_mtu };
    join_all(paths.iter_mut().map(|path| async move {
        let Some(destination) = path.destination.clone() else { return };
        let answers = echo::ask(&destination, options, stop).await;
        path.record(&answers);
        if path.measurement.received > 0 {
            path.measurement.mtu = path::mtu(&destination, largest, stop).await;
        }
    }))
    .await;
    // The trains are sent one after the other, because they share the uplink.
    for path in &mut paths {
        if let (Some(destination), Some(mtu)) = (&path.destination, path.measurement.mtu) {
            path.measurement.bits_per_second = path::throughput(destination, mtu, stop).await;
        }
    }
    let paths = paths.into_iter().map(|path| path.measurement).collect();
    MeasurementReport { id: request.id, addresses, paths, refused: None }
}

/// Returns the addresses at which peers reach this host itself: at most one of each family,
/// preferably on the bridge. An address that peers may have as well is not among them.
fn own_addresses(view: &NodeView, status: &Status) -> Vec<IpAddr> {
    let all = || status.host.bridge_addresses.iter().chain(&status.host.local_addresses);
    let own = |address: &&IpAddr| {
        !status.host.shared_addresses.contains(*address)
            && view.local_networks().any(|network| network.contains(**address))
    };
    let of_family = |is_v4: bool| all().filter(own).find(|address| address.is_ipv4() == is_v4).copied();
    [true, false].into_iter().filter_map(of_family).take(MOST_ADDRESSES).collect()
}

fn prepare(target: &MeasurementTarget, view: &NodeView, status: &Status, own: &[IpAddr]) -> Vec<MeasuredPath> {
    let peer = status.peers.iter().find(|peer| peer.name == target.node.as_str() && peer.origin == "view");
    let (tunnel, failure) = (peer.map(|peer| peer.phase.clone()), peer.and_then(|peer| peer.last_error.clone()));
    let path = |address: Option<IpAddr>| {
        let (destination, error) = match address.map(|address| destination(target, address, view, status, own)) {
            None => (None, failure.clone()),
            Some(Ok(destination)) => (Some(destination), failure.clone()),
            Some(Err(why)) => (None, Some(why)),
        };
        let measurement = PathMeasurement {
            node: target.node.clone(),
            tunnel: tunnel.clone(),
            address,
            sent: 0,
            received: 0,
            round_trip: None,
            mtu: None,
            bits_per_second: None,
            error: error.clone(),
        };
        MeasuredPath { tunnel: tunnel.clone(), destination, error, measurement }
    };
    if target.addresses.is_empty() {
        return vec![path(None)];
    }
    target.addresses.iter().take(MOST_ADDRESSES).map(|address| path(Some(*address))).collect()
}

/// Returns the source and destination addresses of the packets. Fails if `address` is outside of
/// the cluster's networks, or if this host has no address of its family.
fn destination(
    target: &MeasurementTarget,
    address: IpAddr,
    view: &NodeView,
    status: &Status,
    own: &[IpAddr],
) -> Result<Destination, String> {
    // For example a ClusterIP, which kube-proxy in IPVS mode gives to every node. An address of a
    // node that is no peer is asked nevertheless: this host must not have it.
    let is_peer = view.peers.iter().any(|peer| peer.name == target.node);
    let mut held = status.host.local_addresses.iter().chain(&status.host.bridge_addresses);
    if is_peer && held.any(|held| *held == address) {
        return Err(format!("this host has {address} too, so an answer would be its own"));
    }
    let peers_networks = view.peers.iter().flat_map(|peer| peer.networks.iter());
    if !view.cluster_ranges.iter().chain(peers_networks).any(|network| network.contains(address)) {
        return Err(format!("{address} is in no network of the cluster, so nothing was sent to it"));
    }
    let source = own.iter().find(|own| own.is_ipv4() == address.is_ipv4()).copied();
    let source = source.ok_or_else(|| {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        format!("this host has no {family} address in its segments or networks, so only pods can reach {address}")
    })?;
    Ok(Destination { peer: target.node.to_string(), address, source })
}

impl MeasuredPath {
    /// Records the answers to echo requests.
    fn record(&mut self, answers: &Answers) {
        let measurement = &mut self.measurement;
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        measurement.sent = answers.sent;
        measurement.received = u16::try_from(answers.round_trips.len()).unwrap_or(answers.sent).min(answers.sent);
        let times = || answers.round_trips.iter().copied();
        measurement.round_trip = times().min().zip(times().max()).map(|(min, max)| RoundTrip {
            min_us: micros(min),
            average_us: micros(times().sum::<Duration>()) / u64::from(measurement.received.max(1)),
            max_us: micros(max),
        });
        measurement.error = match (&answers.error, measurement.received, &self.tunnel) {
            (_, 1.., _) => None,
            // The reason why there is no tunnel explains more than the kernel's error about it.
            (error, 0, Some(tunnel)) if tunnel != "up" => {
                let why = self.error.as_ref().or(error.as_ref()).map_or("nothing came back", String::as_str);
                Some(format!("the tunnel is {tunnel}: {why}"))
            }
            (error, 0, _) => error.clone(),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use edge_types::{Peer, Role, SharedPeer};

    use super::*;
    use crate::membership::NodeCredentials;
    use crate::test_view;

    /// Returns the status of a node whose bridge has the address 127.7.0.1, which also exists on
    /// this host.
    fn status() -> Status {
        let peer = |name: &str, phase: &str, error: Option<&str>| {
            serde_json::json!({
                "name": name, "origin": "view", "phase": phase, "reqid": 1, "endpoints": [], "ike_sas": [],
                "child_sas": [], "last_error": error,
            })
        };
        serde_json::from_value(serde_json::json!({
            "version": "1", "pid": 1, "node": "a", "role": "edge", "view_version": 7, "cloud": null,
            "peers": [peer("b", "up", None), peer("c", "waiting", Some("AUTHENTICATION_FAILED"))],
            "states": [], "policies": [],
            "host": {
                "local_addresses": ["192.168.1.5", "127.7.0.1"], "bridge_addresses": ["127.7.0.1"],
                "pod_mtu": 1400, "routes": [], "firewall": true,
            },
            "journal": [],
        }))
        .unwrap()
    }

    fn view() -> NodeView {
        let mut view = test_view::empty_view();
        view.cluster_ranges = vec!["127.7.0.0/16".parse().unwrap(), "fd77::/16".parse().unwrap()];
        view.segments = vec!["127.7.0.0/26".parse().unwrap()];
        view
    }

    fn request(targets: &[(&str, &[&str])], count: u16) -> MeasurementRequest {
        let target = |(node, addresses): &(&str, &[&str])| MeasurementTarget {
            node: node.parse().unwrap(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        MeasurementRequest { id: "1".into(), count, targets: targets.iter().map(target).collect() }
    }

    async fn measured(request: MeasurementRequest) -> MeasurementReport {
        measure(request, &view(), &status(), &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn without_targets_a_node_reports_its_own_addresses_alone() {
        let report = measured(request(&[], 1)).await;
        assert_eq!(report.addresses, ["127.7.0.1".parse::<IpAddr>().unwrap()]);
        assert!(report.paths.is_empty() && report.refused.is_none());
    }

    #[test]
    fn a_hub_names_no_cluster_ip_as_its_own_address() {
        // kube-proxy in IPVS mode has given the hub the ClusterIPs of all Services.
        let mut status = status();
        let addresses = ["10.96.0.1", "10.96.0.10", "10.244.1.1"].map(|text| text.parse::<IpAddr>().unwrap());
        status.host.bridge_addresses.clear();
        status.host.local_addresses = addresses.to_vec();
        let mut view = view();
        view.networks = ["10.96.0.0/12", "10.244.0.0/16"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(own_addresses(&view, &status), addresses[..1], "without knowing it");
        status.host.shared_addresses = addresses[..2].to_vec();
        assert_eq!(own_addresses(&view, &status), addresses[2..]);
        status.host.shared_addresses = addresses.to_vec();
        assert!(own_addresses(&view, &status).is_empty());
    }

    #[tokio::test]
    async fn nothing_is_sent_to_addresses_outside_of_the_cluster_or_of_a_family_without_a_source() {
        let report = measured(request(&[("b", &["192.0.2.1", "fd77::1"]), ("x", &[])], 1)).await;
        let errors: Vec<&str> = report.paths.iter().map(|path| path.error.as_deref().unwrap_or("-")).collect();
        assert!(report.paths.iter().all(|path| path.sent == 0));
        assert!(errors[0].contains("in no network of the cluster"), "{errors:?}");
        assert!(errors[1].contains("no IPv6 address"), "{errors:?}");
        assert_eq!((errors[2], &report.paths[2].tunnel), ("-", &None));
    }

    #[tokio::test]
    async fn more_targets_or_requests_than_allowed_are_reduced() {
        let many: Vec<(&str, &[&str])> = vec![("b", &[]); MOST_TARGETS + 5];
        assert_eq!(measured(request(&many, 1)).await.paths.len(), MOST_TARGETS);
        let three: &[&str] = &["192.0.2.1", "192.0.2.2", "192.0.2.3"];
        assert_eq!(measured(request(&[("b", three)], 1)).await.paths.len(), MOST_ADDRESSES);
    }

    #[tokio::test]
    async fn an_address_that_this_host_has_too_proves_nothing() {
        let mut view = view();
        view.peers.push(SharedPeer::from(Peer {
            name: "b".parse().unwrap(),
            role: Role::Edge,
            endpoints: vec![],
            mapped: vec![],
            tcp_port: None,
            on_demand_in: Default::default(),
            segments: vec![],
            networks: vec![],
            certificates_from: 0,
        }));
        let request = request(&[("b", &["127.7.0.1"])], 1);
        let report = measure(request, &view, &status(), &CancellationToken::new()).await;
        assert_eq!((report.paths[0].sent, report.paths[0].received), (0, 0));
        assert!(report.paths[0].error.as_ref().unwrap().contains("this host has 127.7.0.1 too"), "{report:?}");
    }

    /// Measures on the loopback interface, where the kernel answers for all addresses in
    /// 127.0.0.0/8.
    #[tokio::test]
    async fn an_address_that_answers_has_times_an_mtu_and_a_rate() {
        if !interop_tests::netns::is_root_or_skips() {
            return;
        }
        let report = measured(request(&[("b", &["127.7.1.1"]), ("c", &[])], 0)).await;
        let [b, c] = &report.paths[..] else { panic!("{report:?}") };
        assert_eq!((b.sent, b.received, b.mtu, &b.error), (1, 1, Some(1400), &None));
        assert!(b.round_trip.is_some() && b.bits_per_second.is_some(), "{b:?}");
        assert_eq!(
            (c.sent, c.tunnel.as_deref(), c.error.as_deref()),
            (0, Some("waiting"), Some("AUTHENTICATION_FAILED"))
        );
    }

    #[test]
    fn a_missing_reply_is_explained_by_the_tunnel_or_by_the_kernel() {
        let explained = |node: &str, error: Option<&str>| {
            let target = &request(&[(node, &["127.7.1.1"])], 1).targets[0];
            let mut path = prepare(target, &view(), &status(), &["127.7.0.1".parse().unwrap()]).remove(0);
            path.record(&Answers { sent: 1, round_trips: vec![], error: error.map(Into::into) });
            path.measurement.error
        };
        assert_eq!(explained("b", None), None);
        assert_eq!(explained("b", Some("denied")).unwrap(), "denied");
        assert_eq!(explained("c", Some("denied")).unwrap(), "the tunnel is waiting: AUTHENTICATION_FAILED");
        assert_eq!(explained("x", Some("denied")).unwrap(), "denied");
    }

    #[tokio::test]
    async fn a_node_without_a_view_refuses() {
        let (to, measurements) = mpsc::channel(1);
        let (_membership, view) = watch::channel(None::<Membership>);
        let (requests, _handler) = mpsc::channel(1);
        tokio::spawn(serve(measurements, view, requests, CancellationToken::new()));
        let (report, found) = oneshot::channel();
        to.send(Measurement { request: request(&[], 1), report }).await.unwrap();
        // No status arrives either, but the missing view is noticed first.
        let refused = found.await.unwrap().refused.unwrap();
        assert!(refused.contains("no view"), "{refused}");
    }

    #[tokio::test]
    async fn requests_are_served_one_after_the_other_with_the_status_of_that_moment() {
        let (to, measurements) = mpsc::channel(1);
        let credentials =
            NodeCredentials { chain: vec![], key: edge_ike::Secret::new(vec![]), trust_anchors: vec![], not_after: 0 };
        let membership =
            Membership { view: Arc::new(view()), credentials: Arc::new(credentials), former_networks: Arc::default() };
        let (_membership, membership) = watch::channel(Some(membership));
        let (requests, mut handler) = mpsc::channel::<AdminCall>(1);
        tokio::spawn(serve(measurements, membership, requests, CancellationToken::new()));
        for _ in 0..2 {
            let (report, found) = oneshot::channel();
            to.send(Measurement { request: request(&[], 1), report }).await.unwrap();
            let (asked, respond) = handler.recv().await.unwrap();
            assert_eq!(asked, AdminRequest::Status);
            let status = AdminResponse::Status { status: Box::new(status()) };
            assert!(respond.send(Reply::Response(status)).is_ok());
            assert_eq!(found.await.unwrap().addresses.len(), 1);
        }
    }
}
