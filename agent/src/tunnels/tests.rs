//! Tests of the driver with the kernel: its start with what an earlier run left, and what other
//! programs do to SAs.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;

use edge_ike::config::{Cipher, Mode, NextLayer};
use edge_ike::{ChildId, ChildName, ChildSa, IkeId, Instant, PeerName, Purpose, Secret};
use edge_xfrm::events::Event;
use edge_xfrm::{
    Algorithm, Encap, Error, EspKey, Limits, Policy, PolicyHash, Replay, Reqid, SaDirection, SaParams, Selector,
    Threshold, Xfrm,
};
use interop_tests::netns::{
    UnnamedNamespace, add_far_host, enter, is_in_namespaces, is_root_or_skips, passes_in_namespaces, run, within,
};
use ipnetwork::IpNetwork;
use tokio::sync::watch;

use super::reqids::Reqids;
use super::sa_table::SaTable;
use super::source_ports::SourcePorts;
use super::*;
use crate::clock::CertificateClock;
use crate::config::{Config, DEFAULT_CHILD};
use crate::desired::{ChildEnds, Desired, PeerReqids, TunnelEnds, tunnel_policies};
use crate::host::TunnelsToHost;
use crate::incidents::Incidents;

const DOWN: &str = "tunnels::tests::policies_of_tunnels_that_were_down";
const NEVER_UP: &str = "tunnels::tests::a_tunnel_that_was_never_up";
const SAS: &str = "tunnels::tests::an_sa_of_a_child";
const BEGINS: &str = "tunnels::tests::a_responder_with_inherited_sas";

#[test]
fn a_restart_keeps_the_policies_of_tunnels_that_are_down_so_that_nothing_leaves_in_clear() {
    if is_root_or_skips() {
        passes_in_namespaces(DOWN);
    }
}

#[test]
fn nothing_leaves_in_clear_while_a_tunnel_that_was_never_up_is_tried() {
    if is_root_or_skips() {
        passes_in_namespaces(NEVER_UP);
    }
}

#[test]
fn an_sa_that_another_program_changes_is_rekeyed_and_the_kernel_is_asked_whether_one_is_gone() {
    if !is_root_or_skips() {
        return;
    }
    let namespace = UnnamedNamespace::new();
    let probe = move || {
        enter(Path::new(&namespace.path()));
        Xfrm::open().unwrap().add_sa(&inbound_sa(Reqid::tunnel(1).unwrap()))
    };
    match std::thread::spawn(probe).join().unwrap() {
        Err(Error::Unsupported { .. }) => eprintln!("skipped: this kernel has no ESP"),
        outcome => {
            outcome.unwrap();
            passes_in_namespaces(SAS);
        }
    }
}

#[test]
fn a_responder_that_has_restarted_begins_to_where_its_sas_send_until_they_are_gone() {
    if is_root_or_skips() {
        passes_in_namespaces(BEGINS);
    }
}

fn config(directory: &Path, peers: &str) -> Config {
    let text = format!(
        "state_dir = {:?}\nrun_dir = {:?}\nhold_sockets = false\n{peers}",
        directory.join("state"),
        directory.join("run")
    );
    fs::create_dir_all(directory.join("state")).unwrap();
    Config::parse(&text, &directory.join("agent.toml")).unwrap()
}

fn peer(name: &str, keys: &str) -> String {
    format!(
        "[[peer]]\nname = '{name}'\nremote = '192.0.2.1'\nlocal_id = 'sun'\nremote_id = '{name}'\npsk = 'secret'\n{keys}\n"
    )
}

fn desired(config: &Config) -> Desired {
    let peers: Vec<_> = config
        .peers
        .iter()
        .map(|peer| peer.resolve(config, &mut crate::crl_files::CrlFiles::default()).unwrap())
        .collect();
    Desired::compute(config, &peers, None)
}

/// Starts a driver, which applies the desired state, and ends it after `work`.
fn start(config: &Config, work: impl FnOnce(&mut Driver)) {
    start_with(config, |_| {}, work);
}

/// Starts a driver, which applies the desired state after `prepare`, and ends it after `work`.
fn start_with(config: &Config, prepare: impl FnOnce(&mut Driver), work: impl FnOnce(&mut Driver)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let clock = CertificateClock::default();
        let host = watch::channel(Default::default()).1;
        let to_controller = TunnelsToController::default();
        let to_host = TunnelsToHost { internal: watch::Sender::default(), path_mtus: watch::Sender::default() };
        let handle = tokio::runtime::Handle::current();
        let mut driver =
            Driver::open(config, clock.into(), Incidents::default(), host, to_host, to_controller, handle).unwrap();
        prepare(&mut driver);
        driver.apply_desired(desired(config).into());
        work(&mut driver);
    });
}

fn networks(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A node with the network 10.1.0.0/24, whose default route leads to a host that takes every packet
/// for its own.
fn add_networks() {
    add_far_host();
    for line in [
        "ip addr add 192.0.2.7/24 dev uplink",
        "ip addr add 10.1.0.1/32 dev lo",
        "ip route add default via 192.0.2.9",
        "ip -n far addr add 192.0.2.9/24 dev far",
        "ip -n far route add 10.1.0.0/24 via 192.0.2.7",
        "ip -n far route add local 198.51.100.0/24 dev lo",
    ] {
        run(line);
    }
}

/// Sends a datagram from `source`, which XFRM may refuse.
fn send(source: &str, destination: &str, text: &str) {
    let socket = UdpSocket::bind((source, 0)).unwrap();
    let _ = socket.send_to(text.as_bytes(), (destination, 7));
}

/// Fails if a datagram from `source` arrives at the far host.
fn assert_nothing_leaves(far: &UdpSocket, source: &str, destination: &str) {
    send(source, destination, "in clear");
    // A datagram in clear that was sent before this one would have arrived before it.
    send("192.0.2.7", "192.0.2.9", "marker");
    let mut buffer = [0; 32];
    let (length, from) = far.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"marker", "from {from}");
}

fn listen_far() -> UdpSocket {
    let socket = within("far", || UdpSocket::bind("0.0.0.0:7").unwrap());
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    socket
}

#[test]
fn policies_are_hashed_unless_the_configuration_or_somebody_else_says_otherwise() {
    if is_root_or_skips() {
        passes_in_namespaces("tunnels::tests::policies_are_hashed");
    }
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn policies_are_hashed() {
    if !is_in_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let hash = || Xfrm::open().unwrap().policy_hash().unwrap();
    let peer = peer("moon", "local_subnets = ['10.1.0.0/24']\nremote_subnets = ['10.2.0.0/24']\nstart = 'respond'");
    let not_hashed = config(directory.path(), &format!("hash_policies = false\n{peer}"));
    start(&not_hashed, |_| assert_eq!(hash(), PolicyHash::DEFAULT));
    let usual = config(directory.path(), &peer);
    for _ in 0..2 {
        start(&usual, |_| assert_eq!(hash(), PolicyHash::BY_REMOTE));
    }
    let of_others = PolicyHash { v4: Threshold { local: 16, remote: 20 }, ..PolicyHash::BY_REMOTE };
    Xfrm::open().unwrap().set_policy_hash(of_others).unwrap();
    start(&usual, |_| assert_eq!(hash(), of_others));
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn policies_of_tunnels_that_were_down() {
    if !is_in_namespaces() {
        return;
    }
    add_networks();
    let far = listen_far();
    send("10.1.0.1", "198.51.100.7", "in clear");
    let mut buffer = [0; 32];
    assert_eq!(far.recv_from(&mut buffer).unwrap().0, 8, "without policies packets leave in clear");

    let directory = tempfile::tempdir().unwrap();
    let all = "local_subnets = ['10.1.0.0/24']\nremote_subnets = ['0.0.0.0/0']\nstart = 'respond'";
    let asks = "remote_subnets = ['10.20.0.0/16']\nrequest_address = true";
    let ssh = "start = 'respond'\n[[peer.child]]\nname = 'net'\nlocal_subnets = ['10.1.0.0/24']\nremote_subnets = ['10.3.0.0/16']\n\
               protocol = 'tcp'\nremote_port = 22";
    let lent = "address_pool = ['10.8.0.0/24']\nlocal_subnets = ['10.1.0.0/24']\nstart = 'respond'";
    let peers = [("all", all), ("asks", asks), ("lent", lent), ("ssh", ssh)];
    let text: String = peers.map(|(name, keys)| peer(name, keys)).concat();
    let config = config(directory.path(), &text);
    let wanted = desired(&config);
    let child = ChildName::new(DEFAULT_CHILD);
    let mut reqids = Reqids::load(&config.state_dir);
    let children = wanted.tunnels.keys().map(|name| (name, &child));
    reqids.assign_changes(children, &[], Instant::default()).unwrap();
    // What an earlier run, which has negotiated these selectors, left.
    let ssh = NextLayer { protocol: 6, local_port: None, remote_port: Some(22) };
    let mut xfrm = Xfrm::open().unwrap();
    let mut install = |name: &str, local: &str, remote: &str, next_layer: NextLayer| -> Vec<Policy> {
        let name = PeerName::new(name);
        let tunnel = &wanted.tunnels[&name];
        let outbound = reqids.of_purpose(&name, &Purpose::whole(&child)).unwrap();
        let ends = TunnelEnds {
            local: "192.0.2.7".parse().unwrap(),
            remote: "192.0.2.1".parse().unwrap(),
            local_selectors: networks(&[local]),
            remote_selectors: networks(&[remote]),
            next_layer,
            mode: tunnel.peer.child.mode,
            up: false,
        };
        let reqids = PeerReqids { outbound, inbound: outbound };
        let (policies, problems) =
            tunnel_policies(tunnel, &[], &[ChildEnds { child: child.clone(), reqids, ends: Some(ends) }]);
        assert!(problems.is_empty() && !policies.is_empty(), "{problems:?}");
        for policy in &policies {
            assert!(xfrm.install_policy(policy).unwrap(), "{policy}");
        }
        policies
    };
    let mut former = install("all", "10.1.0.0/24", "0.0.0.0/0", NextLayer::ANY);
    former.extend(install("asks", "10.20.9.1/32", "10.20.0.0/16", NextLayer::ANY));
    former.extend(install("ssh", "10.1.0.0/24", "10.3.0.0/16", ssh));
    let of_lent = install("lent", "10.1.0.0/24", "10.8.0.3/32", NextLayer::ANY);
    let nobody = Reqid::tunnel(
        reqids.of_purpose(&PeerName::new("all"), &Purpose::whole(&child)).unwrap().tunnel_number().unwrap() ^ 1,
    )
    .unwrap();
    let stray = Policy::protect_out(
        Selector::new("10.1.0.0/24".parse().unwrap(), "10.99.0.0/16".parse().unwrap()).unwrap(),
        nobody,
        "192.0.2.7".parse().unwrap(),
        "192.0.2.1".parse().unwrap(),
    );
    xfrm.install_policy(&stray).unwrap();
    let before = xfrm.holders(&former).unwrap();
    assert_nothing_leaves(&far, "10.1.0.1", "198.51.100.7");

    start(&config, |_| {});
    assert_eq!(xfrm.holders(&former).unwrap(), before, "the policies are the same, none was deleted and added again");
    assert_eq!(xfrm.holders(&[stray]).unwrap(), [None], "the driver has compared the policies");
    assert!(xfrm.holders(&of_lent).unwrap().iter().all(Option::is_none), "another peer may get the address");
    assert_nothing_leaves(&far, "10.1.0.1", "198.51.100.7");
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn a_tunnel_that_was_never_up() {
    if !is_in_namespaces() {
        return;
    }
    add_networks();
    let far = listen_far();
    let directory = tempfile::tempdir().unwrap();
    let keys = "local_subnets = ['10.1.0.0/24']\nremote_subnets = ['0.0.0.0/0']";
    start(&config(directory.path(), &peer("moon", keys)), |_| {});
    assert_nothing_leaves(&far, "10.1.0.1", "198.51.100.7");
    assert_nothing_leaves(&far, "10.1.0.1", "192.0.2.9");
    // The site itself is reached.
    run("ip addr add 10.1.0.2/32 dev lo");
    let near = UdpSocket::bind("10.1.0.2:7").unwrap();
    near.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    send("10.1.0.1", "10.1.0.2", "near");
    assert_eq!(near.recv_from(&mut [0; 32]).unwrap().0, 4);
}

const SPI: u32 = 0xc001_0203;
const KEY: [u8; 20] = [7; 20];
const ENCAP: Encap = Encap::udp(4500, 4500);

fn inbound_sa(reqid: Reqid) -> SaParams {
    SaParams {
        direction: SaDirection::In,
        source: "192.0.2.1".parse().unwrap(),
        destination: "192.0.2.7".parse().unwrap(),
        spi: SPI,
        reqid,
        mode: edge_xfrm::Mode::Tunnel,
        key: EspKey::new(Algorithm::Aes128Gcm16, &KEY).unwrap(),
        encap: Some(ENCAP),
        replay: Replay::ESN,
        selector: None,
        limits: Limits::default(),
    }
}

fn outbound_sa_of_another() -> SaParams {
    SaParams {
        direction: SaDirection::Out,
        source: "192.0.2.7".parse().unwrap(),
        destination: "192.0.2.1".parse().unwrap(),
        spi: 0x100,
        ..inbound_sa(Reqid::tunnel(99).unwrap())
    }
}

/// A CHILD_SA with the peer `moon`, for both networks of the tests.
fn child_sa() -> ChildSa {
    ChildSa {
        id: ChildId(SPI),
        ike: IkeId { initiator: 1, responder: 2 },
        purpose: Purpose::whole(&ChildName::new(DEFAULT_CHILD)),
        inbound_spi: SPI,
        outbound_spi: 0x100,
        cipher: Cipher::Aes128Gcm16,
        inbound_key: Secret::new(KEY.to_vec()),
        outbound_key: Secret::new(KEY.to_vec()),
        esn: true,
        local: "192.0.2.7:4500".parse().unwrap(),
        remote: "192.0.2.1:4500".parse().unwrap(),
        encapsulated: true,
        local_selectors: networks(&["10.1.0.0/24"]),
        remote_selectors: networks(&["10.2.0.0/24"]),
        next_layer: NextLayer::ANY,
        mode: Mode::Tunnel,
        initiator: false,
    }
}

/// The kernel refuses the first SAs of a tunnel.
#[test]
fn a_tunnel_whose_first_sas_are_refused_is_not_taken_for_one_that_stands() {
    let (moon, child) = (PeerName::new("moon"), Arc::new(child_sa()));
    let reqid = Reqid::tunnel(1).unwrap();
    let reqids = PeerReqids { outbound: reqid, inbound: reqid };
    let begun = || {
        let mut sas = SaTable::new(crate::tcp_encapsulation::Connections::new(4500), SourcePorts::new(4500));
        let first = sas.begin_first(&moon, reqids, &child).unwrap().expect("there are no others");
        assert!(sas.stands(&moon) && sas.is_complete(child.id));
        (sas, first)
    };
    // Without its outbound SA, the CHILD_SA receives, and a rekey must replace it.
    let (mut sas, first) = begun();
    let (inbound, outbound) = (first.inbound.id(), first.outbound.id());
    sas.first_refused(child.id, first, true);
    assert!(!sas.stands(&moon) && !sas.sends(&moon) && sas.child(child.id).is_some());
    assert_eq!((sas.owner(inbound), sas.owner(outbound)), (Some(&moon), None));
    assert!(sas.ends(&moon).is_empty(), "the tunnel has never been up");
    // Without its inbound SA, nothing is left of it, and the next CHILD_SA is the first one again.
    let (mut sas, first) = begun();
    sas.first_refused(child.id, first, false);
    assert!(!sas.stands(&moon) && !sas.sends(&moon) && sas.child(child.id).is_none());
    assert_eq!((sas.owner(inbound), sas.owner(outbound)), (None, None));
    assert!(sas.ends(&moon).is_empty());
    let next = Arc::new(ChildSa { id: ChildId(SPI + 1), inbound_spi: SPI + 1, outbound_spi: 0x101, ..child_sa() });
    assert!(sas.begin_first(&moon, reqids, &next).unwrap().is_some());
    assert!(sas.stands(&moon));
    // The ends of a tunnel that was up before stay, so that its packets do not leave in clear.
    let (mut sas, first) = begun();
    let ends = sas.ends(&moon).remove(0).1;
    sas.first_refused(child.id, first, false);
    sas.use_former_ends(&moon, child.purpose.clone(), None, ends.clone());
    let first = sas.begin_first(&moon, reqids, &child).unwrap().unwrap();
    sas.first_refused(child.id, first, false);
    assert_eq!(sas.ends(&moon), [(&child.purpose, TunnelEnds { up: false, ..ends })]);
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn an_sa_of_a_child() {
    if !is_in_namespaces() {
        return;
    }
    add_networks();
    let directory = tempfile::tempdir().unwrap();
    let keys = "local_subnets = ['10.1.0.0/24']\nremote_subnets = ['10.2.0.0/24']\nstart = 'respond'";
    let moon = PeerName::new("moon");
    let child = child_sa();
    start(&config(directory.path(), &peer("moon", keys)), |driver| {
        let reqids = driver.environment.reqids_of_sas(&moon, &child.purpose).unwrap();
        let reqid = reqids.inbound;
        driver.sas.install_inbound(&mut driver.environment.xfrm, &moon, reqids, &child.into()).unwrap();
        // The SPI of the outbound SA is taken, as if two peers behind one NAT had chosen it.
        let taken = outbound_sa_of_another();
        driver.environment.xfrm.add_sa(&taken).unwrap();
        driver.switch_outbound(&moon, ChildId(SPI));
        assert!(!driver.sas.stands(&moon), "the tunnel cannot send");
        assert!(driver.kernel_refusals.reason(&moon).unwrap().contains("exists already"));
        assert_eq!(std::mem::take(&mut driver.to_rekey), [moon.clone()].into(), "another CHILD_SA replaces it");
        driver.switch_outbound(&moon, ChildId(SPI));
        assert!(driver.to_rekey.is_empty(), "not again and again");
        driver.check_kernel();
        assert_eq!(std::mem::take(&mut driver.to_rekey), [moon.clone()].into(), "at the next comparison");
        // The comparison may have deleted it, since no peer has its reqid.
        let _ = driver.environment.xfrm.delete_sa(taken.id());
        driver.switch_outbound(&moon, ChildId(SPI));
        assert!(driver.sas.stands(&moon) && driver.kernel_refusals.reason(&moon).is_none());
        let id = inbound_sa(reqid).id();
        // A reservation with this SPI has expired, or an SA of another protocol was deleted.
        for event in
            [Event::Expire { id, reqid: reqid.raw(), hard: true }, Event::SaDeleted { id, reqid: Some(reqid.raw()) }]
        {
            driver.handle_kernel_events(vec![event]);
            assert!(driver.sas.find(id).is_some() && driver.to_rekey.is_empty(), "the SA is there");
        }

        let mut other = Xfrm::open().unwrap();
        let moved = Encap { source_port: 61_000, ..ENCAP };
        other.update_sa(&SaParams { encap: Some(moved), ..inbound_sa(reqid) }).unwrap();
        let found = other.sa(id).unwrap().unwrap();
        assert_eq!(found.encap, Some(moved));
        driver.handle_kernel_events(vec![Event::SaChanged(found.into())]);
        assert!(driver.to_rekey.is_empty(), "one attempt at each comparison");
        driver.check_kernel();
        assert_eq!(std::mem::take(&mut driver.to_rekey), [moon.clone()].into());

        other.delete_sa(id).unwrap();
        driver.handle_kernel_events(vec![Event::SaDeleted { id, reqid: Some(reqid.raw()) }]);
        assert_eq!(driver.sas.find(id), None);
        assert_eq!(driver.to_rekey, [moon].into());
        // Nothing is known of the SA any more.
        driver.handle_kernel_events(vec![Event::Expire { id, reqid: reqid.raw(), hard: true }]);
        assert_eq!(driver.to_rekey.len(), 1);
    });
}

/// Returns to where the driver sends IKE_SA_INIT requests from `now` on, for five minutes in which
/// nobody answers. Returns the end of these minutes, too.
fn attempts(driver: &mut Driver, now: edge_ike::Instant) -> (Vec<String>, edge_ike::Instant) {
    let end = now + std::time::Duration::from_secs(300);
    let mut remotes = Vec::new();
    loop {
        while let Some(transmit) = driver.endpoint.poll_transmit() {
            remotes.push(transmit.remote.to_string());
        }
        match driver.endpoint.poll_timeout() {
            Some(at) if at < end => driver.endpoint.handle_timeout(at, &mut driver.environment),
            _ => break,
        }
    }
    remotes.sort_unstable();
    remotes.dedup();
    (remotes, end)
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn a_responder_with_inherited_sas() {
    if !is_in_namespaces() {
        return;
    }
    add_networks();
    let keys = "local_subnets = ['10.1.0.0/24']\nremote_subnets = ['10.2.0.0/24']\nstart = 'respond'";
    let moved = Some(Encap::udp(4500, 61_000));
    for (encap, remotes) in
        [(moved, ["192.0.2.1:500", "198.51.100.7:61000"]), (None, ["192.0.2.1:500", "198.51.100.7:500"])]
    {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), &peer("moon", keys));
        start(&config, |driver| {
            let (tried, _) = attempts(driver, driver.now());
            assert!(tried.is_empty(), "without SAs the peer begins: {tried:?}");
        });
        let (moon, child) = (PeerName::new("moon"), ChildName::new(DEFAULT_CHILD));
        let reqid = Reqids::load(&config.state_dir).of_purpose(&moon, &Purpose::whole(&child)).unwrap();
        let sa = |source: &str, destination: &str, spi| {
            let id = edge_xfrm::SaId { destination: destination.parse().unwrap(), spi };
            edge_xfrm::Sa {
                id,
                source: source.parse().unwrap(),
                protocol: 50,
                reqid: reqid.raw(),
                mode: 1,
                direction: None,
                algorithm: Some("rfc4106(gcm(aes))".into()),
                encap,
                selector: None,
                replay_window: 0,
                esn: true,
                flags: 0,
                if_id: 0,
                counters: Default::default(),
            }
        };
        let (inbound, outbound) = (sa("198.51.100.7", "192.0.2.7", SPI), sa("192.0.2.7", "198.51.100.7", SPI));
        let left = vec![inbound.clone(), outbound.clone()];
        let prepare = |driver: &mut Driver| {
            let ours: std::net::IpAddr = "192.0.2.7".parse().unwrap();
            driver.sas.inherit(left, |address| address == ours, driver.now() + std::time::Duration::from_secs(3600));
        };
        start_with(&config, prepare, |driver| {
            let (tried, now) = attempts(driver, driver.now());
            assert_eq!(tried, remotes);
            let (tried, now) = attempts(driver, now);
            assert_eq!(tried, remotes, "as long as the SAs are there");
            // The kernel has none of these SAs.
            for gone in [inbound.id, outbound.id] {
                driver.handle_kernel_events(vec![Event::SaDeleted { id: gone, reqid: Some(reqid.raw()) }]);
            }
            // What has begun may go on.
            let (_, now) = attempts(driver, now);
            let (tried, _) = attempts(driver, now);
            assert!(tried.is_empty(), "nothing is left that the peer could miss: {tried:?}");
        });
    }
}
