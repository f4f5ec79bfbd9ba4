//! Tests with a real kernel and real IKE responders, in separate namespaces.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use edge_ike::config::{AgentNotifications, Mode, NextLayer, Timing};
use edge_ike::{
    AddressAssignment, Auth, ChildConfig, ChildName, Childless, Endpoint, EndpointConfig, Environment, Identity,
    PeerConfig, PeerName, Secret,
};
use interop_tests::netns::{
    KilledOnDrop, add_far_host, enter, is_in_namespaces, is_root_or_skips, passes_in_namespaces, run, succeed,
};
use interop_tests::wait;
use ring::rand::{SecureRandom, SystemRandom};

use super::*;
use crate::config::proposal::{node_esp, node_ike};
use crate::desired::HubException;
use crate::incidents::IncidentKind;

const TEST: &str = "host::hub_routes::tests::a_cloud_node_with_two_hubs";
/// Timeout after which a test fails.
const HANG: Duration = Duration::from_secs(60);

#[test]
fn routes_follow_the_first_hub_whose_machine_and_agent_answer_and_are_replaced_in_place() {
    if is_root_or_skips() {
        passes_in_namespaces(TEST);
    }
}

/// The environment of the responder, which needs only random numbers because it stops at
/// IKE_SA_INIT.
struct Responder(SystemRandom);

impl Environment for Responder {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes).unwrap();
    }

    fn unix_time(&self) -> u64 {
        0
    }

    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        None
    }

    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}

/// A hub's IKE responder at one of its addresses.
struct HubAgent {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl HubAgent {
    /// Starts the responder in the namespace `far`, where new addresses can be used immediately.
    fn start(address: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            enter(Path::new("/run/netns/far"));
            serve(&UdpSocket::bind((address, 4500)).unwrap(), &stopped)
        });
        Self { stop, thread }
    }

    /// Stops the responder. Returns the number of its events, plus 1 if the probes have left a
    /// half-open IKE SA.
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn serve(socket: &UdpSocket, stop: &AtomicBool) -> usize {
    let mut environment = Responder(SystemRandom::new());
    let mut endpoint = Endpoint::new(EndpointConfig::default());
    let any = vec!["0.0.0.0/0".parse().unwrap()];
    let edge = PeerConfig {
        name: PeerName::new("edge"),
        local: None,
        remotes: vec![],
        local_id: Identity::Fqdn("hub.example".into()),
        remote_id: Identity::Fqdn("edge.example".into()),
        auth: Auth::Psk(Secret::new(b"a secret of the test".to_vec())),
        ike_proposals: node_ike(),
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: node_esp(),
            local: any.clone(),
            remote: any,
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        initiate: false,
        force_encapsulation: false,
        mobike: true,
        keep_existing: false,
        agent_notifications: AgentNotifications::Off,
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: Timing::default(),
    };
    let now = edge_ike::Instant::default();
    endpoint.set_peer(edge, now, &mut environment).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let local = socket.local_addr().unwrap();
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        endpoint.handle(&buffer[..length], local, from, now, &mut environment);
        while let Some(transmit) = endpoint.poll_transmit() {
            socket.send_to(&transmit.payload, transmit.remote).unwrap();
        }
    }
    let events = std::iter::from_fn(|| endpoint.poll_event()).count();
    // A half-open IKE SA has a deadline.
    usize::from(endpoint.poll_timeout().is_some()) + events
}

fn gateway(hub: &str, address: &str) -> HubGateway {
    HubGateway { hub: hub.parse().unwrap(), address: format!("{address}:4500").parse().unwrap() }
}

fn routes(family: &str, network: &str) -> Vec<String> {
    let shown = succeed(Command::new("ip").args([family, "route", "show", network]));
    shown.lines().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect()
}

/// Waits until the only route to a network leads through an address.
fn wait_route(family: &str, network: &str, via: &str) {
    wait::expect(&format!("the route to {network} through {via}"), HANG, || {
        (routes(family, network) == [format!("{network} via {via}")]).then_some(())
    });
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn a_cloud_node_with_two_hubs() {
    if !is_in_namespaces() {
        return;
    }
    add_far_host();
    for line in [
        "sysctl -qw net.ipv6.conf.uplink.accept_dad=0",
        // One hour, so that the kernel keeps neighbours reachable during the whole test.
        "sysctl -qw net.ipv4.neigh.uplink.base_reachable_time_ms=3600000",
        "sysctl -qw net.ipv6.neigh.uplink.base_reachable_time_ms=3600000",
        "ip addr add 192.0.2.10/24 dev uplink",
        "ip addr add 2001:db8::10/64 dev uplink nodad",
        "ip -n far addr add 192.0.2.1/24 dev far",
        "ip -n far addr add 192.0.2.2/24 dev far",
        "ip -n far addr add 2001:db8::1/64 dev far nodad",
        "ip -n far addr add 2001:db8::2/64 dev far nodad",
        // The agent's routes through a hub that the view no longer has, and another program's
        // route.
        &format!("ip route add 10.77.0.0/16 via 192.0.2.99 proto {ROUTE_PROTOCOL}"),
        &format!("ip route add fd77::/48 via 2001:db8::99 proto {ROUTE_PROTOCOL}"),
        "ip route add 10.88.0.0/16 via 192.0.2.98 proto static",
    ] {
        run(line);
    }
    let hub_1 = HubAgent::start("192.0.2.1");
    let _hub_2 = HubAgent::start("192.0.2.2");
    let directory = tempfile::tempdir().unwrap();
    let seen = directory.path().join("routes");
    let mut monitor = Command::new("ip");
    monitor.args(["-o", "monitor", "route"]).stdin(Stdio::null()).stdout(std::fs::File::create(&seen).unwrap());
    let _monitor = KilledOnDrop(monitor.spawn().unwrap());
    let incidents = Incidents::default();
    let (_runtime, desired) = start(incidents.clone());

    wait_route("-4", "10.77.0.0/16", "192.0.2.1");
    wait_route("-6", "fd77::/48", "2001:db8::1");
    // The task handles this range after the two others.
    let foreign = wait::expect("the incident about another program's route", HANG, || {
        incidents.latest().into_iter().find(|incident| incident.kind == IncidentKind::Foreign)
    });
    assert!(foreign.what.contains("10.88.0.0/16 through 192.0.2.98"), "{foreign:?}");
    assert_eq!(routes("-4", "10.88.0.0/16"), ["10.88.0.0/16 via 192.0.2.98"]);

    // The view says which edges hub-1 lacks, then that it lacks too many of them.
    let lacks = |networks: &[&str]| {
        let exceptions = networks.iter().map(|network| HubException {
            network: network.parse().unwrap(),
            not_through: vec!["hub-1".parse().unwrap()],
        });
        let exceptions: Vec<HubException> = exceptions.collect();
        desired.send_modify(|desired| desired.hub_exceptions = exceptions);
    };
    lacks(&["10.77.9.0/26", "fd77::9:0/112"]);
    wait_route("-4", "10.77.9.0/26", "192.0.2.2");
    wait_route("-6", "fd77::9:0/112", "2001:db8::2");
    assert_eq!(routes("-4", "10.77.0.0/16"), ["10.77.0.0/16 via 192.0.2.1"]);
    lacks(&["10.77.0.0/16", "fd77::/48"]);
    wait_route("-4", "10.77.0.0/16", "192.0.2.2");
    wait_route("-6", "fd77::/48", "2001:db8::2");
    lacks(&[]);
    wait_route("-4", "10.77.0.0/16", "192.0.2.1");
    wait_route("-6", "fd77::/48", "2001:db8::1");

    // The agent of hub-1 ends, but its machine stays up.
    assert_eq!(hub_1.stop(), 0, "no half-open IKE SA, and no line in the hub's log");
    wait_route("-4", "10.77.0.0/16", "192.0.2.2");
    assert_eq!(routes("-6", "fd77::/48"), ["fd77::/48 via 2001:db8::1"], "nobody ever answered IKE over IPv6");

    // First hub-2's IPv4 address disappears, then hub-1's IPv6 address.
    run("ip -n far addr del 192.0.2.2/24 dev far");
    wait_route("-4", "10.77.0.0/16", "192.0.2.1");
    run("ip -n far addr del 2001:db8::1/64 dev far");
    wait_route("-6", "fd77::/48", "2001:db8::2");
    assert!(
        !std::fs::read_to_string(&seen).unwrap().contains("Deleted"),
        "every route is replaced in place:\n{}",
        std::fs::read_to_string(&seen).unwrap()
    );

    run("ip route del 10.77.0.0/16");
    wait_route("-4", "10.77.0.0/16", "192.0.2.1");
    let repaired = |incident: &crate::incidents::Incident| {
        incident.kind == IncidentKind::Repaired && incident.what.contains("10.77.0.0/16 through 192.0.2.1 was missing")
    };
    wait::expect("the incident", HANG, || incidents.latest().iter().any(repaired).then_some(()));
    assert_eq!(incidents.latest().len(), 2, "{:?}", incidents.latest());
}

/// Starts the task and another task that observes the kernel. Returns the sender of the desired
/// state.
fn start(incidents: Incidents) -> (tokio::runtime::Runtime, watch::Sender<RoutedNetworks>) {
    let networks = ["10.77.0.0/16", "fd77::/48", "10.88.0.0/16"];
    let desired = RoutedNetworks {
        hub_routes: networks.map(|text| text.parse().unwrap()).to_vec(),
        hub_gateways: vec![
            gateway("hub-1", "203.0.113.1"),
            gateway("hub-1", "192.0.2.1"),
            gateway("hub-1", "[2001:db8::1]"),
            gateway("hub-2", "192.0.2.2"),
            gateway("hub-2", "[2001:db8::2]"),
        ],
        ..RoutedNetworks::default()
    };
    let (to_task, desired) = watch::channel(desired);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.spawn(async move {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let (routes, _installed) = watch::channel(vec![]);
        let (observe, observed) = watch::channel(Arc::default());
        tokio::spawn(HubRoutes::new(handle.clone(), incidents, routes).run(
            desired,
            observed,
            CancellationToken::new(),
        ));
        let mut pace = tokio::time::interval(Duration::from_millis(200));
        loop {
            pace.tick().await;
            observe.send_replace(Arc::new(NetworkState::read(&handle).await.unwrap()));
        }
    });
    (runtime, to_task)
}
