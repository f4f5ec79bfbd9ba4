//! Builds the network of a [`NetworkPlan`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Deref;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::namespace_holder::{Setup, feed};
use super::namespaces::Namespaces;
use super::plan::{Netem, NetworkPlan, NodePlan};

/// Directories that each node has for itself.
const PRIVATE: [&str; 6] =
    ["/run", "/var/lib/edge-cni", "/var/lib/edge-controller", "/etc/edge-cni", "/etc/cni", "/etc/swanctl"];

/// A running network, which ends with the scenario's process.
pub struct Net {
    nodes: BTreeMap<String, Node>,
}

/// A running host or router.
pub struct Node {
    namespaces: Namespaces,
    /// The wire's end of each veth pair of the node, by wire.
    ports: BTreeMap<String, String>,
    holder: NamespaceHolder,
}

/// A network namespace inside a node, as a container runtime makes one.
pub struct Pod {
    namespaces: Namespaces,
    path: String,
}

impl Deref for Node {
    type Target = Namespaces;
    fn deref(&self) -> &Namespaces {
        &self.namespaces
    }
}

impl Deref for Pod {
    type Target = Namespaces;
    fn deref(&self) -> &Namespaces {
        &self.namespaces
    }
}

impl Net {
    /// Builds the network in the calling process's namespaces, which must be private. Logs go to
    /// `out`.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses a command or the plan contradicts itself. Objects
    /// that were made end with the process.
    pub fn build(plan: &NetworkPlan, out: &Path) -> Result<Self> {
        let mut holders = Vec::new();
        for node in &plan.nodes {
            if node.name.len() > 15 {
                bail!("the node's name {:?} has more than 15 characters", node.name);
            }
            holders.push(NamespaceHolder::start().with_context(|| format!("starting {}", node.name))?);
        }
        let fabric = fabric(plan, &holders)?;
        feed("ip", &["-batch", "-"], &fabric.ip).context("laying the wires")?;
        feed("tc", &["-batch", "-"], &fabric.tc).context("slowing the wires")?;
        // All holders work at the same time, and after that all answers are read.
        for (node, holder) in plan.nodes.iter().zip(&mut holders) {
            holder.ask(&setup(node)?)?;
        }
        let mut nodes = BTreeMap::new();
        for ((node, mut holder), ports) in plan.nodes.iter().zip(holders).zip(fabric.ports) {
            holder.answer().with_context(|| format!("setting up {}", node.name))?;
            let namespaces = Namespaces::new(&node.name, holder.pid(), None, out);
            super::dump::register(&namespaces);
            let node = Node { namespaces, ports, holder };
            if nodes.insert(node.name().to_owned(), node).is_some() {
                bail!("two nodes have the same name");
            }
        }
        Ok(Self { nodes })
    }

    /// Returns a node by its name.
    ///
    /// # Panics
    /// Panics if the plan has no such node.
    #[must_use]
    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        match self.nodes.get(name) {
            Some(node) => node,
            None => panic!("the plan has no node {name:?}"),
        }
    }

    /// Returns all nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }
}

impl Node {
    /// Changes delay and loss between the node and a wire, in each direction. `None` removes both.
    ///
    /// # Errors
    /// Returns an error if the node is not on that wire.
    pub fn slow(&self, wire: &str, netem: Option<Netem>) -> Result<()> {
        let port = self.ports.get(wire).with_context(|| format!("{} is not on {wire}", self.name()))?;
        let order = |device: &str| match netem {
            Some(netem) => format!("tc qdisc replace dev {device} root {}", netem.qdisc()),
            None => format!("tc qdisc del dev {device} root 2>/dev/null || true"),
        };
        self.sh(&order(wire))?;
        let fabric = Command::new("sh").args(["-c", &order(port)]).status()?;
        anyhow::ensure!(fabric.success(), "slowing {port}: {fabric}");
        Ok(())
    }

    /// Connects the node to a wire, or disconnects it.
    ///
    /// # Errors
    /// Returns an error if the node is not on that wire.
    pub fn plug(&self, wire: &str, plugged: bool) -> Result<()> {
        let port = self.ports.get(wire).with_context(|| format!("{} is not on {wire}", self.name()))?;
        let state = if plugged { "up" } else { "down" };
        feed("ip", &["-batch", "-"], &format!("link set {port} {state}\n"))
    }

    /// Makes an empty network namespace, as a container runtime does before it calls the plugin.
    ///
    /// # Errors
    /// Returns an error if a namespace of that name already exists.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.sh(&format!("ip netns add {name} && ip -n {name} link set lo up"))?;
        let path = format!("/run/netns/{name}");
        let namespaces =
            Namespaces::new(&format!("{}.{name}", self.name()), self.holder.pid(), Some(path.clone()), self.out());
        super::dump::register(&namespaces);
        Ok(Pod { namespaces, path })
    }

    /// Makes a pod without a plugin: a veth pair with `address` in the pod (`eth0`), `gateway` on
    /// the host's end, and a default route. Both addresses have a prefix length and are of the same
    /// family. Also turns the host's forwarding on.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses a command.
    pub fn wired_pod(&self, name: &str, address: &str, gateway: &str) -> Result<Pod> {
        let pod = self.pod(name)?;
        let via = gateway.split('/').next().unwrap_or(gateway);
        let nodad = if gateway.contains(':') { "nodad" } else { "" };
        self.sh(&format!(
            "set -e
             ip link add veth-{name} type veth peer name eth0 netns {name}
             ip addr add {gateway} dev veth-{name} {nodad}
             ip link set veth-{name} up
             ip -n {name} addr add {address} dev eth0 {nodad}
             ip -n {name} link set eth0 up
             ip -n {name} route add default via {via}
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
        ))?;
        Ok(pod)
    }
}

impl Pod {
    /// Returns the namespace's path on its node, in the form of `CNI_NETNS`.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.path
    }
}

struct Fabric {
    ip: String,
    tc: String,
    ports: Vec<BTreeMap<String, String>>,
}

/// Makes the commands for the namespace with the wires: a bridge for each wire, and a veth pair for
/// each node on the wire.
fn fabric(plan: &NetworkPlan, holders: &[NamespaceHolder]) -> Result<Fabric> {
    let mut ip = String::new();
    let mut tc = String::new();
    let mut all_ports = Vec::new();
    let mut wires = BTreeSet::new();
    let mut count = 0;
    for (node, holder) in plan.nodes.iter().zip(holders) {
        let mut ports = BTreeMap::new();
        for port in &node.ports {
            let wire = &port.wire;
            if wire.len() > 12 {
                bail!("the wire's name {wire:?} has more than 12 characters");
            }
            if wires.insert(wire.clone()) {
                // Without spanning tree, snooping and addresses the bridge behaves like a wire.
                writeln!(ip, "link add br-{wire} type bridge mcast_snooping 0 forward_delay 0")?;
                writeln!(ip, "link set br-{wire} addrgenmode none up")?;
            }
            count += 1;
            let name = format!("p{count}");
            let mtu = port.mtu.unwrap_or(1500);
            writeln!(ip, "link add {name} type veth peer name {wire} mtu {mtu} netns {}", holder.pid())?;
            writeln!(ip, "link set {name} addrgenmode none master br-{wire} up")?;
            if let Some(netem) = port.netem {
                writeln!(tc, "qdisc add dev {name} root {}", netem.qdisc())?;
            }
            ports.insert(wire.clone(), name);
        }
        all_ports.push(ports);
    }
    Ok(Fabric { ip, tc, ports: all_ports })
}

/// Makes the commands that run inside a node.
fn setup(node: &NodePlan) -> Result<Setup> {
    let mut ip = String::from("link set lo up\n");
    let mut tc = String::new();
    let mut nft = String::new();
    for port in &node.ports {
        let wire = &port.wire;
        for address in &port.addresses {
            writeln!(ip, "addr add {address} dev {wire}")?;
        }
        writeln!(ip, "link set {wire} up")?;
        if let Some(netem) = port.netem {
            writeln!(tc, "qdisc add dev {wire} root {}", netem.qdisc())?;
        }
    }
    for (to, gateway) in &node.routes {
        let to = match to.as_str() {
            "default" if gateway.contains(':') => "::/0",
            to => to,
        };
        writeln!(ip, "route add {to} via {gateway}")?;
    }
    for wire in &node.masquerade {
        writeln!(
            nft,
            "add table inet lab\n\
             add chain inet lab postrouting {{ type nat hook postrouting priority srcnat; }}\n\
             add rule inet lab postrouting oifname \"{wire}\" masquerade"
        )?;
    }
    Ok(Setup {
        name: node.name.clone(),
        private: PRIVATE.into_iter().map(str::to_owned).chain(node.private.iter().cloned()).collect(),
        forwards: node.forwards,
        ip,
        tc,
        nft,
    })
}

/// The process that keeps a node's namespaces alive.
struct NamespaceHolder {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl NamespaceHolder {
    fn start() -> Result<Self> {
        // unshare executes the program in its own process, so this process is the holder.
        let mut child = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "--"])
            .arg(std::env::current_exe()?)
            .args(["guest", "namespace-holder"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare cannot be run")?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut holder = Self { child, stdin, stdout };
        // The holder's first line proves that the holder has left this process's namespaces. Before
        // that, its pid would lead to the namespaces of this process.
        holder.line()?;
        Ok(holder)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn ask(&mut self, setup: &Setup) -> Result<()> {
        let mut line = serde_json::to_vec(setup)?;
        line.push(b'\n');
        Ok(self.stdin.write_all(&line)?)
    }

    fn answer(&mut self) -> Result<()> {
        match self.line()?.as_str() {
            "ok" => Ok(()),
            error => bail!("{error}"),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the holder of its namespaces ended");
        }
        Ok(line.trim_end().to_owned())
    }
}
