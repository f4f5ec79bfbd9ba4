//! Acts as an operator: configures and starts the controller and the agents, runs their commands,
//! and reads their status.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnetwork::IpNetwork;
use rustix::process::Signal;
use serde_json::Value;

use super::api_server::Kubernetes;
use super::layout::site;
use super::world::{CLOUD_NETWORKS, CLUSTER_RANGES, CONTROLLER_PORT, REPLICA_PORT, World};

/// Quarantine: how long the segments of a deregistered node are granted to no other node.
pub(super) const QUARANTINE: Duration = Duration::from_secs(10);

const CONTROLLER_CONFIG: &str = "/etc/edge-controller/controller.toml";

/// Path of the agents' configuration.
pub(super) const AGENT_CONFIG: &str = "/etc/edge-cni/agent.toml";

/// A row of the controller's segment ledger.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    /// The node that holds the segment.
    pub(super) node: String,
    /// The segment, of either family.
    pub(super) segment: IpNetwork,
}

impl World<'_> {
    /// Writes the controller's configuration and starts it on cloud-1.
    ///
    /// # Errors
    /// Returns an error if the controller does not come up.
    pub(super) fn start_controller(&self) -> Result<()> {
        self.node("cloud-1").write(CONTROLLER_CONFIG, &self.controller_config(CONTROLLER_PORT))?;
        self.start("controller", "cloud-1", "edge-controller", &["run", "--config", CONTROLLER_CONFIG])?;
        crate::wait::for_event("the controller to answer", || self.controller(&["node", "list"]).map(drop))
    }

    /// Starts a second replica on the same host, which shares only the cluster with the first
    /// replica.
    ///
    /// # Errors
    /// Returns an error if the controller does not come up.
    pub(super) fn start_replica(&self) -> Result<()> {
        let (config, socket) = ("/etc/edge-controller/replica.toml", "/run/edge-controller-2/admin.sock");
        let own = format!(
            "state_dir = \"/var/lib/edge-controller-2\"\nadmin_socket = \"{socket}\"\nobserve.listen = [\"127.0.0.1:9644\"]\n{}",
            self.controller_config(REPLICA_PORT),
        );
        let host = self.node("cloud-1");
        host.write(config, &own)?;
        self.start("replica", "cloud-1", "edge-controller", &["run", "--config", config])?;
        crate::wait::for_event("the replica to answer", || {
            host.run(host.command(self.lab.program("edge-controller")?).args(["node", "list", "--socket", socket]))
                .map(drop)
        })
    }

    fn controller_config(&self, port: u16) -> String {
        let list = |items: &[&str]| items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", ");
        format!(
            "server_names = [\"198.51.100.11\", \"2001:db8:c::11\"]\n\
             listen = [\"[::]:{port}\"]\n\
             networks = [{}]\n\
             heartbeat_seconds = 1\n\
             [segments]\n\
             cluster_ranges = [{}]\n\
             reserved = [\"10.77.0.128/25\", \"fd77::8000/113\"]\n\
             v4_prefix = 29\n\
             v6_prefix = 120\n\
             quarantine_seconds = {}\n\
             {}{}",
            list(&CLOUD_NETWORKS),
            list(&CLUSTER_RANGES),
            QUARANTINE.as_secs(),
            self.kubernetes.as_ref().map(Kubernetes::controller_config).unwrap_or_default(),
            self.layout.own_networks_of_hubs(),
        )
    }

    /// Runs a command of edge-controller, and returns its output.
    ///
    /// # Errors
    /// Returns an error if the command does not exit with status 0.
    pub(super) fn controller(&self, args: &[&str]) -> Result<String> {
        let host = self.node("cloud-1");
        host.run(host.command(self.lab.program("edge-controller")?).args(args))
    }

    /// Returns all segments that are held.
    ///
    /// # Errors
    /// Returns an error if the controller does not list them.
    pub(super) fn ledger(&self) -> Result<Vec<Row>> {
        let text = self.controller(&["segment", "list", "--json"])?;
        let rows: Value = serde_json::from_str(&text)?;
        let mut ledger = Vec::new();
        for row in rows.as_array().context("the ledger is no list")? {
            let field = |key: &str| row[key].as_str().with_context(|| format!("no {key} in {row}"));
            if field("state")? == "held" {
                ledger.push(Row { node: field("node")?.to_owned(), segment: field("segment")?.parse()? });
            }
        }
        ledger.sort();
        Ok(ledger)
    }

    /// Returns the segments of one node and family.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::ledger`].
    pub(super) fn segments_of(&self, node: &str, v6: bool) -> Result<Vec<IpNetwork>> {
        let rows = self.ledger()?;
        Ok(rows
            .into_iter()
            .filter(|row| row.node == node && row.segment.is_ipv6() == v6)
            .map(|row| row.segment)
            .collect())
    }

    /// Adds routes for all segments towards their nodes to the routers, so that unencrypted packets
    /// would be forwarded.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses a route.
    pub(super) fn route_ledger_in_clear(&self) -> Result<()> {
        self.ledger()?.into_iter().try_for_each(|row| self.route_in_clear(row.segment, &row.node))
    }

    /// Sets or (`key-`) removes a node's label, in Kubernetes if the controller reads labels there.
    ///
    /// # Errors
    /// Returns an error if the request is refused.
    pub(super) fn label(&self, node: &str, label: &str) -> Result<()> {
        match &self.kubernetes {
            Some(kubernetes) => kubernetes.label(node, label),
            None => self.controller(&["node", "label", node, label]).map(drop),
        }
    }

    /// Writes a node's configuration and, with `join`, a new join token.
    ///
    /// # Errors
    /// Returns an error if the controller refuses a token.
    pub(super) fn configure_agent(&self, node: &str, role: &str, spare: u32, join: bool) -> Result<()> {
        let host = self.node(node);
        let cloud = site("cloud-1").inside;
        let reached = if site(node).inside[0].is_some() { cloud[0] } else { cloud[1].map(|_| "[2001:db8:c::11]") };
        let reached = reached.context("the cloud has an address")?;
        let ports = if self.kubernetes.is_some() { &[CONTROLLER_PORT, REPLICA_PORT][..] } else { &[CONTROLLER_PORT] };
        let urls: Vec<String> = ports.iter().map(|port| format!("\"https://{reached}:{port}\"")).collect();
        let config = format!(
            "name = \"{node}\"\nbridge = \"ecni0\"\n[controller]\nurls = [{}]\n\
             token_file = \"/etc/edge-cni/token\"\nspare = {spare}\nrollover_spread = \"1s\"\n\
             [cni]\nconf_dir = \"/etc/cni/net.d\"\nbin_dir = \"/etc/cni/bin\"\n",
            urls.join(", "),
        );
        host.write(AGENT_CONFIG, &config)?;
        if !join {
            return Ok(());
        }
        let token = self.controller(&["token", "create", "--role", role, "--node", node])?;
        let word = token.split_whitespace().find(|word| word.starts_with("ecni1.")).context("no token was printed")?;
        host.write("/run/join-token", word)?;
        self.join(node, "--timeout 0").map(drop)
    }

    /// Runs `edge-agent join` with the node's join token. Returns the output.
    ///
    /// # Errors
    /// Returns an error if the join fails.
    pub(super) fn join(&self, node: &str, options: &str) -> Result<String> {
        let program = self.lab.program("edge-agent")?;
        // The configuration contains the controller URLs.
        self.node(node).sh(&format!(
            "{} join --config {AGENT_CONFIG} {options} $(grep -o 'https://[^\"]*' {AGENT_CONFIG}) - </run/join-token",
            program.display()
        ))
    }

    /// Starts a node's agent.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be run.
    pub(super) fn start_agent(&self, node: &str) -> Result<()> {
        self.start(node, node, "edge-agent", &["run", "--config", AGENT_CONFIG])
    }

    /// Restarts a node's agent with another number of spare segments.
    ///
    /// # Errors
    /// Returns an error if the agent does not end or cannot be started.
    pub(super) fn restart_agent_with_spare(&self, node: &str, spare: u32) -> Result<()> {
        self.configure_agent(node, "edge", spare, false)?;
        self.restart_agent(node)
    }

    /// Restarts a node's agent.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::restart_agent_with_spare`].
    pub(super) fn restart_agent(&self, node: &str) -> Result<()> {
        self.end(node, Signal::TERM)?;
        self.start_agent(node)?;
        crate::wait::for_event("the agent to answer", || self.status(node).map(drop))
    }

    /// Returns the output of `edge-agent status --json` on a node.
    ///
    /// # Errors
    /// Returns an error if the agent does not run.
    pub(super) fn status(&self, node: &str) -> Result<Value> {
        let host = self.node(node);
        let text = host.run(host.command(self.lab.program("edge-agent")?).args([
            "status",
            "--json",
            "--config",
            AGENT_CONFIG,
        ]))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Runs a command of edge-agent.
    ///
    /// # Errors
    /// Returns an error if the command does not exit with status 0.
    pub(super) fn agent(&self, node: &str, args: &[&str]) -> Result<String> {
        let host = self.node(node);
        host.run(host.command(self.lab.program("edge-agent")?).args(args).args(["--config", AGENT_CONFIG]))
    }

    /// Returns the conclusion of `edge-agent diagnose` on a node, about everything or about one
    /// subject.
    ///
    /// # Errors
    /// Returns an error if the agent does not run.
    pub(super) fn diagnosis(&self, node: &str, about: Option<&str>) -> Result<String> {
        let host = self.node(node);
        let mut command = host.command(self.lab.program("edge-agent")?);
        let output = command.args(["diagnose", "--json", "--config", AGENT_CONFIG]).args(about).output()?;
        let diagnosis: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("diagnose says {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(diagnosis["conclusion"].as_str().context("no conclusion")?.to_owned())
    }

    /// Checks that `node` reports that its tunnel to `peer` is up.
    ///
    /// # Errors
    /// Returns an error if the tunnel is not reported as up.
    pub(super) fn tunnel_is_up(&self, node: &str, peer: &str) -> Result<()> {
        let status = self.status(node)?;
        let entry = super::status::peer(&status, peer).with_context(|| format!("{node} does not know {peer}"))?;
        ensure!(super::status::is_up(entry), "{node} says of {peer}: {entry}");
        Ok(())
    }
}
