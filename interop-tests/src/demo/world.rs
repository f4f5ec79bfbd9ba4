//! The demo's network, with a cloud, four edge sites and the internet between them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use rustix::process::Signal;

use super::api_server::Kubernetes;
use super::captured_frames::{ExpectedTraffic, FrameCounts, Kind};
use super::check_runner::Checks;
use crate::scenario::Lab;
use crate::topology::{Capture, Net, NetworkPlan, Node, Process};

/// The edge nodes.
pub(super) const EDGES: [&str; 4] = ["edge-a1", "edge-a2", "edge-b1", "edge-c1"];

/// All nodes that run an agent.
pub(super) const NODES: [&str; 6] = ["cloud-1", "cloud-2", "edge-a1", "edge-a2", "edge-b1", "edge-c1"];

/// The cluster ranges, from which segments are cut. The upper half of each range is reserved for
/// pods that exist before any agent runs.
pub(super) const CLUSTER_RANGES: [&str; 2] = ["10.77.0.0/24", "fd77::/112"];

/// The networks of the cloud's own CNI, which the hub fronts.
pub(super) const CLOUD_NETWORKS: [&str; 2] = ["10.244.0.0/16", "fd44::/64"];

/// The controller's port.
pub(super) const CONTROLLER_PORT: u16 = 8443;

/// The port of a second replica, if there is one.
pub(super) const REPLICA_PORT: u16 = 8444;

/// Captured interfaces: router, interface, and an address behind it that answers pings.
const WATCHED: [(&str, &str, &str); 9] = [
    ("r-cloud", "isp", "203.0.113.11"),
    ("r-a1", "lan-a1", "192.0.2.10"),
    ("r-a1", "isp", "203.0.113.1"),
    ("r-a2", "lan-a2", "192.168.1.254"),
    ("r-a2", "isp", "203.0.113.1"),
    ("r-b1", "lan-b1", "2001:db8:b1::10"),
    ("r-b1", "isp", "2001:db8::1"),
    ("r-c1", "lan-c1", "192.168.1.10"),
    ("r-c1", "isp", "203.0.113.1"),
];

/// An edge node and its router, with the addresses of both, at most one of each family.
pub(super) struct Site {
    /// Name of the site's router.
    pub(super) router: &'static str,
    /// The router's addresses on the internet: IPv4, IPv6.
    pub(super) outside: [Option<&'static str>; 2],
    /// The node's addresses: IPv4, IPv6.
    pub(super) inside: [Option<&'static str>; 2],
}

/// Returns the site of a node.
pub(super) fn site(node: &str) -> Site {
    let (router, outside, inside) = match node {
        "edge-a1" => {
            ("r-a1", [Some("203.0.113.11"), Some("2001:db8::11")], [Some("192.0.2.10"), Some("2001:db8:a1::10")])
        }
        "edge-a2" => ("r-a2", [Some("203.0.113.12"), None], [Some("192.168.1.10"), None]),
        "edge-b1" => ("r-b1", [None, Some("2001:db8::13")], [None, Some("2001:db8:b1::10")]),
        "edge-c1" => ("r-c1", [Some("203.0.113.14"), None], [Some("192.168.1.10"), None]),
        _ => ("r-cloud", [Some("203.0.113.1"), Some("2001:db8::1")], [Some("198.51.100.11"), Some("2001:db8:c::11")]),
    };
    Site { router, outside, inside }
}

fn plan() -> NetworkPlan {
    let mut plan = NetworkPlan::new();
    plan.router("r-cloud")
        .on("isp", &["203.0.113.1/24", "2001:db8::1/64"])
        .on("cloud", &["198.51.100.1/24", "2001:db8:c::1/64"])
        .route("192.0.2.0/24", "203.0.113.11")
        .route("2001:db8:a1::/64", "2001:db8::11")
        .route("2001:db8:b1::/64", "2001:db8::13");
    for (name, v4, v6) in
        [("cloud-1", "198.51.100.11/24", "2001:db8:c::11/64"), ("cloud-2", "198.51.100.12/24", "2001:db8:c::12/64")]
    {
        plan.host(name)
            .on("cloud", &[v4, v6])
            .via("198.51.100.1")
            .via("2001:db8:c::1")
            .own_directory("/etc/edge-controller");
    }
    plan.router("r-a1")
        .on("isp", &["203.0.113.11/24", "2001:db8::11/64"])
        .on("lan-a1", &["192.0.2.1/24", "2001:db8:a1::1/64"])
        .via("203.0.113.1")
        .via("2001:db8::1");
    plan.router("r-a2")
        .on("isp", &["203.0.113.12/24"])
        .on("lan-a2", &["192.168.1.1/24"])
        .via("203.0.113.1")
        .masquerade("isp");
    plan.router("r-b1").on("isp", &["2001:db8::13/64"]).on("lan-b1", &["2001:db8:b1::1/64"]).via("2001:db8::1");
    plan.router("r-c1")
        .on("isp", &["203.0.113.14/24"])
        .on("lan-c1", &["192.168.1.1/24"])
        .via("203.0.113.1")
        .masquerade("isp");
    plan.host("edge-a1")
        .on("lan-a1", &["192.0.2.10/24", "2001:db8:a1::10/64"])
        .via("192.0.2.1")
        .via("2001:db8:a1::1")
        // A rule from another program on this host masquerades all packets that the host forwards.
        .masquerade("lan-a1");
    plan.host("edge-a2").on("lan-a2", &["192.168.1.10/24"]).via("192.168.1.1");
    plan.host("edge-b1").on("lan-b1", &["2001:db8:b1::10/64"]).via("2001:db8:b1::1");
    plan.host("edge-c1").on("lan-c1", &["192.168.1.10/24"]).via("192.168.1.1");
    // Neighbours of a1 and a2. The first neighbour is hostile. The second answers the marks on a2's
    // LAN, so that the marks do not depend on a2's address.
    plan.host("neighbour").on("lan-a1", &["192.0.2.66/24", "2001:db8:a1::66/64"]).via("192.0.2.1");
    plan.host("printer").on("lan-a2", &["192.168.1.254/24"]).via("192.168.1.1");
    // A hostile machine on the cloud's LAN.
    plan.host("cloud-neighbour").on("cloud", &["198.51.100.66/24", "2001:db8:c::66/64"]).via("198.51.100.1");
    plan
}

struct CapturedWire {
    router: &'static str,
    beyond: &'static str,
    capture: Capture,
    read: usize,
}

/// The network and the programs that run in it.
pub(super) struct World<'lab> {
    /// The tools of the scenario.
    pub(super) lab: &'lab Lab,
    /// The hosts and routers.
    pub(super) net: &'lab Net,
    /// The checks that have run so far.
    pub(super) checks: Checks,
    /// The running agents, keyed by `NODE`, and the controller, keyed by `controller`.
    pub(super) running: RefCell<BTreeMap<String, Process>>,
    /// The API server from which the controller reads nodes. Without one, the operator's commands
    /// configure the nodes.
    pub(super) kubernetes: Option<Kubernetes>,
    captures: RefCell<Vec<CapturedWire>>,
    known: ExpectedTraffic,
}

impl<'lab> World<'lab> {
    /// Builds the network and starts the captures.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses a command.
    pub(super) fn build(lab: &'lab Lab) -> Result<Self> {
        let net = lab.build(&plan())?;
        let mut captures = Vec::new();
        for (router, interface, beyond) in WATCHED {
            let capture = net.node(router).capture(interface)?;
            captures.push(CapturedWire { router, beyond, capture, read: 0 });
        }
        let guarded =
            CLUSTER_RANGES.iter().chain(&CLOUD_NETWORKS).map(|range| range.parse()).collect::<Result<_, _>>()?;
        Ok(Self {
            lab,
            net,
            checks: Checks::new(),
            running: RefCell::default(),
            kubernetes: None,
            captures: RefCell::new(captures),
            known: ExpectedTraffic { guarded, controller_ports: [CONTROLLER_PORT, REPLICA_PORT] },
        })
    }

    /// Returns a host or router.
    pub(super) fn node(&self, name: &str) -> &'lab Node {
        self.net.node(name)
    }

    /// Returns the frames that the routers captured since the last call, including all frames that
    /// were sent before this call.
    ///
    /// # Errors
    /// Returns an error if a mark is not answered, or a file cannot be read.
    pub(super) fn new_frames(&self) -> Result<FrameCounts> {
        let mut all = FrameCounts::default();
        for wire in self.captures.borrow_mut().iter_mut() {
            let router = self.node(wire.router);
            let mark = |seen: &FrameCounts| seen.count(|kind| *kind == Kind::Mark);
            let before = mark(&FrameCounts::read(wire.capture.file(), wire.read, &self.known)?);
            // The answer comes after all earlier frames on this wire.
            router.run(router.command("ping").args(["-n", "-q", "-c", "1", "-W", "5", wire.beyond]))?;
            let seen = crate::wait::for_event("a mark in the capture", || {
                let seen = FrameCounts::read(wire.capture.file(), wire.read, &self.known)?;
                anyhow::ensure!(
                    mark(&seen) >= before + 2,
                    "{} holds {} marks",
                    wire.capture.file().display(),
                    mark(&seen)
                );
                Ok(seen)
            })?;
            wire.read += seen.frames();
            all.join(seen);
        }
        Ok(all)
    }

    /// Ends the captures. Fails if a capture has missed a packet.
    ///
    /// # Errors
    /// Returns an error if a capture has missed a packet.
    pub(super) fn end_captures(&self) -> Result<()> {
        self.captures.borrow_mut().iter_mut().try_for_each(|wire| wire.capture.stop())
    }

    /// Starts a program on a node and stores it under `key`. Its log is `NODE.PROGRAM.log`.
    ///
    /// # Errors
    /// Returns an error if the program cannot be run.
    pub(super) fn start(&self, key: &str, node: &str, program: &str, args: &[&str]) -> Result<()> {
        let node = self.node(node);
        let process = node.start(program, node.command(self.lab.program(program)?).args(args))?;
        self.running.borrow_mut().insert(key.to_owned(), process);
        Ok(())
    }

    /// Ends a started program: with SIGKILL at once, as a power cut would, otherwise with SIGTERM.
    ///
    /// # Errors
    /// Returns an error if the program was not running.
    pub(super) fn end(&self, key: &str, signal: Signal) -> Result<()> {
        let mut process = self.running.borrow_mut().remove(key).with_context(|| format!("{key} is not running"))?;
        if signal == Signal::KILL {
            return process.kill();
        }
        let status = process.stop()?;
        anyhow::ensure!(
            status.success(),
            "{key}, asked to end, ended with {status}: see {}",
            process.log_path().display()
        );
        Ok(())
    }

    /// Makes every router that has an address of the segment's family forward packets for the
    /// segment towards `node`, which holds the segment. So only the agents' policies prevent
    /// packets from leaving unencrypted.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses a route.
    pub(super) fn route_in_clear(&self, segment: IpNetwork, node: &str) -> Result<()> {
        let family = usize::from(segment.is_ipv6());
        let home = site(node);
        let (Some(outside), Some(inside)) = (home.outside[family], home.inside[family]) else { return Ok(()) };
        for other in ["cloud-1", "edge-a1", "edge-a2", "edge-b1", "edge-c1"] {
            let there = site(other);
            let via = if there.router == home.router { inside } else { outside };
            if there.router == home.router || there.outside[family].is_some() {
                let router = self.node(there.router);
                router.run(router.command("ip").args(["route", "replace", &segment.to_string(), "via", via]))?;
            }
        }
        Ok(())
    }
}
