//! Counts allocations: what an established tunnel keeps, and what datagrams of strangers cost.
#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};

use edge_ike::config::{AgentNotifications, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer, Prf, Timing};
use edge_ike::{
    AddressAssignment, Auth, ChildConfig, ChildName, Childless, Endpoint, EndpointConfig, Environment, Event, Identity,
    Instant, PeerConfig, PeerName, Secret, Transmit,
};

thread_local! {
    /// Bytes that this thread has allocated and not freed, and the number of its allocations.
    static HEAP: Cell<(isize, usize)> = const { Cell::new((0, 0)) };
}

/// Counts what each thread allocates. The tests run on threads of their own.
struct Counting;

fn count(bytes: isize, allocations: usize) {
    // During the end of a thread there is no counter any more.
    let _ = HEAP.try_with(|heap| {
        let (live, number) = heap.get();
        heap.set((live + bytes, number + allocations));
    });
}

// SAFETY: all calls go to the system's allocator unchanged. Counting does not allocate: the counter
// is a constant thread local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize, 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize), 0);
        // SAFETY: `at` comes from `System`, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the bytes that `work` leaves on the heap, and the number of its allocations.
fn heap_of(work: impl FnOnce()) -> (isize, usize) {
    let (live, allocations) = HEAP.get();
    work();
    let (live_after, allocations_after) = HEAP.get();
    (live_after - live, allocations_after - allocations)
}

struct Kernel {
    drawn: u64,
    next: u32,
}

impl Environment for Kernel {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.drawn = self.drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = self.drawn.to_be_bytes()[0];
        }
    }
    fn unix_time(&self) -> u64 {
        1_800_000_000
    }
    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        self.next += 1;
        Some(self.next)
    }
    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}

fn now() -> Instant {
    Instant::new(std::time::Duration::from_secs(1000))
}

fn address(number: u32) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), 500)
}

/// The hub's address. Edge `n` has the address with the number `n`.
const HUB: u32 = 0x00ff_ffff;

fn config(ours: &str, theirs: &str, remotes: Vec<SocketAddr>) -> PeerConfig {
    let everything = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    PeerConfig {
        name: PeerName::new(theirs),
        local: None,
        initiate: !remotes.is_empty(),
        remotes,
        local_id: Identity::Fqdn(ours.into()),
        remote_id: Identity::Fqdn(theirs.into()),
        auth: Auth::Psk(Secret::new(b"known to both".to_vec())),
        ike_proposals: vec![IkeProposal {
            ciphers: vec![Cipher::Aes256Gcm16],
            prfs: vec![Prf::HmacSha256],
            groups: vec![Group::X25519],
        }],
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: vec![EspProposal { ciphers: vec![Cipher::Aes256Gcm16], groups: vec![], esn: true }],
            local: everything.clone(),
            remote: everything,
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        force_encapsulation: true,
        mobike: true,
        keep_existing: false,
        agent_notifications: AgentNotifications::Exchange,
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: Timing::default(),
    }
}

/// A hub, and the kernel of all ends.
struct Hub {
    endpoint: Endpoint,
    kernel: Kernel,
}

impl Hub {
    fn new(config: EndpointConfig, edges: u32) -> Self {
        let (mut endpoint, mut kernel) = (Endpoint::new(config), Kernel { drawn: 1, next: 0x1000 });
        for edge in 1..=edges {
            endpoint.set_peer(self::config("hub", &format!("edge-{edge}"), vec![]), now(), &mut kernel).unwrap();
        }
        Self { endpoint, kernel }
    }

    /// Hands a datagram to the hub. The answers are dropped.
    fn take(&mut self, datagram: &[u8], local: SocketAddr, remote: SocketAddr) {
        self.endpoint.handle(datagram, local, remote, now(), &mut self.kernel);
        while self.endpoint.poll_event().is_some() {}
        while self.endpoint.poll_transmit().is_some() {}
    }

    /// An edge comes up. Returns its last datagram.
    fn connect(&mut self, edge: u32) -> Transmit {
        self.connect_and_keep(edge).1
    }

    /// An edge comes up. Returns its endpoint and its last datagram.
    fn connect_and_keep(&mut self, edge: u32) -> (Endpoint, Transmit) {
        let mut endpoint = Endpoint::new(EndpointConfig::default());
        let mut last = None;
        let mut up = false;
        endpoint.set_peer(config(&format!("edge-{edge}"), "hub", vec![address(HUB)]), now(), &mut self.kernel).unwrap();
        while let Some(sent) = endpoint.poll_transmit() {
            let from = SocketAddr::new(address(edge).ip(), sent.local.port());
            self.endpoint.handle(&sent.payload, sent.remote, from, now(), &mut self.kernel);
            last = Some(Transmit { local: from, ..sent });
            while let Some(event) = self.endpoint.poll_event() {
                up |= matches!(event, Event::ChildUp { .. });
            }
            while let Some(answer) = self.endpoint.poll_transmit() {
                endpoint.handle(&answer.payload, answer.remote, answer.local, now(), &mut self.kernel);
            }
            while endpoint.poll_event().is_some() {}
        }
        assert!(up, "edge {edge} is up");
        (endpoint, last.expect("an edge sends something"))
    }

    /// Delivers all datagrams between the hub and edge 1, and those that follow.
    fn exchange(&mut self, edge: &mut Endpoint, now: Instant) {
        loop {
            while self.endpoint.poll_event().is_some() || edge.poll_event().is_some() {}
            if let Some(sent) = edge.poll_transmit() {
                let from = SocketAddr::new(address(1).ip(), sent.local.port());
                self.endpoint.handle(&sent.payload, sent.remote, from, now, &mut self.kernel);
            } else if let Some(sent) = self.endpoint.poll_transmit() {
                edge.handle(&sent.payload, sent.remote, sent.local, now, &mut self.kernel);
            } else {
                break;
            }
        }
    }
}

/// Makes an IKE_SA_INIT request as an honest endpoint sends it.
fn first_request(initiator: u64) -> Vec<u8> {
    let mut kernel = Kernel { drawn: initiator, next: 1 };
    let mut endpoint = Endpoint::new(EndpointConfig::default());
    endpoint.set_peer(config("stranger", "hub", vec![address(HUB)]), now(), &mut kernel).unwrap();
    endpoint.poll_transmit().expect("IKE_SA_INIT").payload
}

#[test]
fn an_established_tunnel_takes_little_memory() {
    const EDGES: u32 = 256;
    let mut hub = Hub::new(EndpointConfig::default(), 2 * EDGES);
    // The tables of the endpoint grow in steps, which these edges have paid for.
    (1..=EDGES).for_each(|edge| drop(hub.connect(edge)));
    let (bytes, _) = heap_of(|| (EDGES + 1..=2 * EDGES).for_each(|edge| drop(hub.connect(edge))));
    let each = bytes / EDGES as isize;
    println!("{each} bytes for each tunnel");
    assert!(each <= LIMIT, "{each} bytes for each tunnel");
}

/// Maximum size of an IKE SA with one CHILD_SA on the heap of the responder, bytes. It may only
/// become less.
const LIMIT: isize = 2048;

#[test]
fn a_tunnel_that_was_rekeyed_takes_no_more_memory_than_a_new_one() {
    let mut hub = Hub::new(EndpointConfig::default(), 1);
    let (mut edge, _) = hub.connect_and_keep(1);
    let (at_hub, at_edge) = (PeerName::new("edge-1"), PeerName::new("hub"));
    let mut now = now();
    // Longer than an old CHILD_SA lingers, and until liveness has been checked.
    let mut wait = |hub: &mut Hub, edge: &mut Endpoint| {
        for _ in 0..60 {
            hub.exchange(edge, now);
            now = now + std::time::Duration::from_secs(1);
            hub.endpoint.handle_timeout(now, &mut hub.kernel);
            edge.handle_timeout(now, &mut hub.kernel);
        }
        hub.exchange(edge, now);
        now
    };
    let mut round = |hub: &mut Hub, edge: &mut Endpoint| {
        let now = wait(hub, edge);
        assert!(hub.endpoint.rekey_children(&at_hub, now, &mut hub.kernel));
        let now = wait(hub, edge);
        assert!(edge.rekey_ike(&at_edge, now, &mut hub.kernel));
        wait(hub, edge)
    };
    round(&mut hub, &mut edge);
    let (more, _) = heap_of(|| {
        for _ in 0..10 {
            round(&mut hub, &mut edge);
        }
    });
    assert!(more <= 0, "{more} bytes more after ten rekeys");
    // What goes with the tunnel is what it had. The tables of the endpoints stay.
    let now = round(&mut hub, &mut edge);
    let (left, _) = heap_of(|| {
        edge.terminate(&at_edge, now, &mut hub.kernel);
        let_it_go(&mut hub, &mut edge, now);
    });
    println!("{} bytes for each end of a tunnel that was rekeyed", -left / 2);
    assert!(-left / 2 <= LIMIT, "{} bytes for both ends", -left);
}

/// Lets the time pass that endpoints keep the last response of a deleted IKE SA.
fn let_it_go(hub: &mut Hub, edge: &mut Endpoint, now: Instant) {
    hub.exchange(edge, now);
    let later = now + std::time::Duration::from_secs(60);
    hub.endpoint.handle_timeout(later, &mut hub.kernel);
    edge.handle_timeout(later, &mut hub.kernel);
    hub.exchange(edge, later);
    assert!(hub.endpoint.snapshot()[0].ike_sas.is_empty() && edge.snapshot()[0].ike_sas.is_empty());
}

#[test]
fn a_datagram_that_is_dropped_allocates_nothing() {
    let mut hub = Hub::new(EndpointConfig::default(), 1);
    let last = hub.connect(1);
    let of_nobody = {
        let mut message = last.payload[4..].to_vec();
        message[..16].fill(0x77);
        message
    };
    let request = first_request(1);
    let dropped: [(&str, &[u8]); 6] = [
        ("nothing", &[]),
        ("a NAT keepalive", &[0xff]),
        ("noise", &[0xa5; 200]),
        ("half a header", &request[..20]),
        ("a message of no IKE SA", &of_nobody),
        ("a response to IKE_SA_INIT that nobody asked for", &[&request[..19], &[0x20], &request[20..]].concat()),
    ];
    for (what, datagram) in dropped {
        let (bytes, allocations) = heap_of(|| hub.take(datagram, address(HUB), address(99)));
        assert_eq!((bytes, allocations), (0, 0), "{what}");
    }
}

#[test]
fn first_requests_with_forged_sources_leave_nothing_behind_while_cookies_are_asked_for() {
    let config = EndpointConfig { cookie_threshold: 0, ..EndpointConfig::default() };
    let mut hub = Hub::new(config, 1);
    let request = first_request(1);
    let mut send = |sources: std::ops::Range<u32>| {
        heap_of(|| sources.for_each(|source| hub.take(&request, address(HUB), address(source)))).0
    };
    // The first ones fill the table of those who get an answer, which has a limit.
    let first = send(1..10_000);
    assert!(first < 512 << 10, "{first} bytes");
    assert_eq!(send(10_000..50_000), 0);
}
