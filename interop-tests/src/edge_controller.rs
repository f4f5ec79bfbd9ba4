//! Runs `edge-controller` on a host of the lab, and agents that join it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::topology::{Node, Pod, Process};
use crate::wait;

const CONFIG: &str = "/etc/edge-controller/controller.toml";
const TOKEN: &str = "/etc/edge-cni/token";
/// The setting with which an agent's sockets end with it.
const WITHOUT_HOLDER: &str = "hold_sockets = false\n";
const PORT: u16 = 8443;

/// The range from which segments are cut.
pub const CLUSTER_RANGE: &str = "10.64.0.0/10";

/// The range from which IPv6 segments are granted, if the controller has an IPv6 range.
pub const CLUSTER_RANGE_V6: &str = "fd77::/48";

/// Path of the controller's state directory.
pub const STATE_DIR: &str = "/var/lib/edge-controller";

/// A running controller with its own store.
///
/// The controller's node needs its own directory `/etc/edge-controller`
/// ([`NodePlan::own_directory`](crate::topology::NodePlan::own_directory)).
pub struct Controller<'a> {
    lab: &'a Lab,
    node: &'a Node,
    address: String,
    process: Process,
}

impl<'a> Controller<'a> {
    /// Starts a controller, which nodes reach at the IP address `address`. `more` is further
    /// configuration at the top of the controller's file.
    ///
    /// # Errors
    /// Returns an error if the controller does not answer.
    pub fn start(lab: &'a Lab, node: &'a Node, address: &str, more: &str) -> Result<Self> {
        Self::start_with_ranges(lab, node, address, more, &[CLUSTER_RANGE])
    }

    /// Starts a controller as [`Self::start`] does, with IPv4 and IPv6 segments.
    ///
    /// # Errors
    /// Returns an error if the controller does not answer.
    pub fn start_dual_stack(lab: &'a Lab, node: &'a Node, address: &str) -> Result<Self> {
        Self::start_with_ranges(lab, node, address, "", &[CLUSTER_RANGE, CLUSTER_RANGE_V6])
    }

    /// Starts a controller as [`Self::start`] does, with segments from these ranges.
    ///
    /// # Errors
    /// Returns an error if the controller does not answer.
    pub fn start_with_ranges(lab: &'a Lab, node: &'a Node, address: &str, more: &str, ranges: &[&str]) -> Result<Self> {
        let config = format!(
            "server_names = [{address:?}]\nlisten = [\"[::]:{PORT}\"]\n{more}\n\
             [segments]\ncluster_ranges = {ranges:?}\nv4_prefix = 26\n"
        );
        node.write(CONFIG, &config)?;
        let program = lab.program("edge-controller")?;
        let process = node.start("edge-controller", node.command(program).args(["run", "--config", CONFIG]))?;
        let controller = Self { lab, node, address: address.to_owned(), process };
        wait::for_event("the controller to answer", || controller.run(&["node", "list"]).map(drop))?;
        Ok(controller)
    }

    /// Runs a command of edge-controller, and returns its output.
    ///
    /// # Errors
    /// Returns an error if the command does not exit with status 0.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.node.run(self.node.command(self.lab.program("edge-controller")?).args(args))
    }

    /// Runs a command of edge-controller, and returns its output, whatever its exit status is.
    ///
    /// # Errors
    /// Returns an error if the command cannot be run.
    pub fn run_any(&self, args: &[&str]) -> Result<String> {
        let output = self.node.output(self.node.command(self.lab.program("edge-controller")?).args(args))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes a join token for `node` and starts its agent. `role` is `edge`, `hub` or `cloud`.
    ///
    /// # Errors
    /// Returns an error if the token is refused, or the agent cannot be started.
    pub fn join<'n>(&self, node: &'n Node, role: &str) -> Result<Agent<'n>> {
        self.join_with(node, role, "")
    }

    /// Starts an agent as [`Self::join`] does, with further tables of its configuration file.
    ///
    /// # Errors
    /// Returns an error if the token is refused, or the agent cannot be started.
    pub fn join_with<'n>(&self, node: &'n Node, role: &str, tables: &str) -> Result<Agent<'n>> {
        self.write_token(node, role)?;
        self.start_with(node, tables)
    }

    /// Starts an agent as [`Self::join`] does. Its sockets end with it, as in a pod.
    ///
    /// # Errors
    /// Returns an error if the token is refused, or the agent cannot be started.
    pub fn join_without_holder<'n>(&self, node: &'n Node, role: &str) -> Result<Agent<'n>> {
        self.write_token(node, role)?;
        self.start_configured(self.lab.program("edge-agent")?, node, WITHOUT_HOLDER, "")
    }

    fn write_token(&self, node: &Node, role: &str) -> Result<()> {
        let name = node.name();
        let printed = self.run(&["token", "create", "--role", role, "--node", name])?;
        let token =
            printed.split_whitespace().find(|word| word.starts_with("ecni1.")).context("no token was printed")?;
        node.write(TOKEN, token)?;
        node.sh(&format!("chmod 600 {TOKEN}"))?;
        Ok(())
    }

    /// Starts the agent of a node that has joined.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be started.
    pub fn start_again<'n>(&self, node: &'n Node) -> Result<Agent<'n>> {
        self.start_with(node, "")
    }

    /// Starts the agent of a node that has joined, from this program.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be started.
    pub fn start_program_again<'n>(&self, program: PathBuf, node: &'n Node) -> Result<Agent<'n>> {
        self.start_configured(program, node, "", "")
    }

    /// Starts the agent of a node that has joined as [`Self::join_without_holder`] does.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be started.
    pub fn start_again_without_holder<'n>(&self, node: &'n Node) -> Result<Agent<'n>> {
        self.start_configured(self.lab.program("edge-agent")?, node, WITHOUT_HOLDER, "")
    }

    /// Starts the agent of a node that has joined, with further tables of its configuration file.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be started.
    pub fn start_with<'n>(&self, node: &'n Node, tables: &str) -> Result<Agent<'n>> {
        self.start_configured(self.lab.program("edge-agent")?, node, "", tables)
    }

    fn start_configured<'n>(
        &self,
        program: PathBuf,
        node: &'n Node,
        settings: &str,
        tables: &str,
    ) -> Result<Agent<'n>> {
        let name = node.name();
        let host = if self.address.contains(':') { format!("[{}]", self.address) } else { self.address.clone() };
        let config = format!(
            "name = {name:?}\nbridge = \"ecni0\"\n{settings}[controller]\nurls = [\"https://{host}:{PORT}\"]\ntoken_file = {TOKEN:?}\n\
             rollover_spread = \"1s\"\n[cni]\nconf_dir = \"/etc/cni/net.d\"\nbin_dir = \"/etc/cni/bin\"\n{tables}"
        );
        Agent::start_program(program, node, &config, "info")
    }

    /// Makes a pod on an edge as a plugin would: with a port on the bridge and the first addresses
    /// in the edge's segment. Also returns the pod's address.
    ///
    /// # Errors
    /// Returns an error if the edge gets no segment, or an interface cannot be made.
    pub fn pod_of(&self, edge: &Node) -> Result<(Pod, String)> {
        let segment = wait::for_event("the edge's segment", || {
            let rows: serde_json::Value = serde_json::from_str(&self.run(&["segment", "list", "--json"])?)?;
            let rows = rows.as_array().context("no list")?;
            let held = rows.iter().find(|row| row["node"] == edge.name()).context("the edge has no segment")?;
            Ok(held["segment"].as_str().context("a segment without text")?.parse::<ipnetwork::Ipv4Network>()?)
        })?;
        let (gateway, address) = (segment.nth(1).context("too small")?, segment.nth(2).context("too small")?);
        let pod = edge.pod("p")?;
        edge.sh(&format!(
            "set -e
             ip link add ecni0 type bridge
             ip addr add {gateway}/26 dev ecni0
             ip link set ecni0 up
             ip link add veth-p type veth peer name eth0 netns p
             ip link set veth-p master ecni0 up
             ip -n p addr add {address}/26 dev eth0
             ip -n p link set eth0 up
             ip -n p route add default via {gateway}"
        ))?;
        Ok((pod, address.to_string()))
    }

    /// Returns the controller's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
