//! The demo's network, the captures on its routers, and the programs that run in it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use rustix::process::Signal;

use super::api_server::Kubernetes;
use super::captured_frames::{ExpectedTraffic, FrameCounts, Kind};
use super::check_runner::Checks;
use super::layout::{DEMO, Layout, site};
use crate::scenario::Lab;
use crate::topology::{Capture, Net, Node, Process};

/// The cluster ranges, from which segments are cut. The upper half of each range is reserved for
/// pods that exist before any agent runs.
pub(super) const CLUSTER_RANGES: [&str; 2] = ["10.77.0.0/24", "fd77::/112"];

/// The networks of the cloud's own CNI, which the hub fronts.
pub(super) const CLOUD_NETWORKS: [&str; 2] = ["10.244.0.0/16", "fd44::/64"];

/// The controller's port.
pub(super) const CONTROLLER_PORT: u16 = 8443;

/// The port of a second replica, if there is one.
pub(super) const REPLICA_PORT: u16 = 8444;

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
    /// The nodes and sites of the network.
    pub(super) layout: &'static Layout,
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
    /// Builds the demo's network and starts the captures.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses a command.
    pub(super) fn build(lab: &'lab Lab) -> Result<Self> {
        Self::build_with(lab, &DEMO)
    }

    /// Builds a network with this layout and starts the captures.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses a command.
    pub(super) fn build_with(lab: &'lab Lab, layout: &'static Layout) -> Result<Self> {
        let net = lab.build(&layout.plan())?;
        let mut captures = Vec::new();
        for (router, interface, beyond) in layout.watched() {
            let capture = net.node(router).capture(&interface)?;
            captures.push(CapturedWire { router, beyond, capture, read: 0 });
        }
        let guarded =
            CLUSTER_RANGES.iter().chain(&CLOUD_NETWORKS).map(|range| range.parse()).collect::<Result<_, _>>()?;
        Ok(Self {
            lab,
            layout,
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
        for other in self.layout.edges().chain(["cloud-1"]) {
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
