//! Declares a network of nodes and wires.

/// The nodes and wires of a network. A wire exists as soon as a node names it.
///
/// ```
/// use interop_tests::topology::{Netem, NetworkPlan};
/// let mut plan = NetworkPlan::new();
/// plan.router("isp").on("internet", &["203.0.113.1/24"]).on("home", &["192.168.1.1/24"]).masquerade("internet");
/// plan.host("a").on("home", &["192.168.1.10/24"]).via("192.168.1.1");
/// plan.host("b").on("internet", &["203.0.113.10/24", "2001:db8::10/64"]).slow("internet", Netem::delay(20).loss(1.0));
/// ```
#[derive(Debug, Clone, Default)]
pub struct NetworkPlan {
    pub(super) nodes: Vec<NodePlan>,
}

impl NetworkPlan {
    /// Makes an empty network.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a host, an end system with forwarding off. Names have at most 15 characters.
    pub fn host(&mut self, name: &str) -> &mut NodePlan {
        self.node(name, false)
    }

    /// Adds a router, which forwards IPv4 and IPv6.
    pub fn router(&mut self, name: &str) -> &mut NodePlan {
        self.node(name, true)
    }

    fn node(&mut self, name: &str, forwards: bool) -> &mut NodePlan {
        self.nodes.push(NodePlan {
            name: name.to_owned(),
            forwards,
            ports: Vec::new(),
            routes: Vec::new(),
            masquerade: Vec::new(),
            private: Vec::new(),
        });
        let last = self.nodes.len() - 1;
        &mut self.nodes[last]
    }
}

/// One host or router of a [`NetworkPlan`].
#[derive(Debug, Clone)]
pub struct NodePlan {
    pub(super) name: String,
    pub(super) forwards: bool,
    pub(super) ports: Vec<WireEnd>,
    pub(super) routes: Vec<(String, String)>,
    pub(super) masquerade: Vec<String>,
    pub(super) private: Vec<String>,
}

/// A node's end of a wire; the interface has the wire's name.
#[derive(Debug, Clone)]
pub(super) struct WireEnd {
    pub(super) wire: String,
    pub(super) addresses: Vec<String>,
    pub(super) netem: Option<Netem>,
    pub(super) mtu: Option<u16>,
}

impl NodePlan {
    /// Connects the node to a wire, with addresses (`"203.0.113.1/24"`, IPv4 and IPv6). The
    /// interface gets the wire's name, which has at most 12 characters.
    pub fn on(&mut self, wire: &str, addresses: &[&str]) -> &mut Self {
        self.ports.push(WireEnd {
            wire: wire.to_owned(),
            addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
            netem: None,
            mtu: None,
        });
        self
    }

    /// Adds the default route, of the gateway's family.
    pub fn via(&mut self, gateway: &str) -> &mut Self {
        self.route("default", gateway)
    }

    /// Adds a static route.
    pub fn route(&mut self, to: &str, gateway: &str) -> &mut Self {
        self.routes.push((to.to_owned(), gateway.to_owned()));
        self
    }

    /// Masquerades packets that the node forwards to this wire (IPv4 and IPv6). On a router the
    /// rule acts as NAT, on a host as another program's masquerade rule.
    pub fn masquerade(&mut self, wire: &str) -> &mut Self {
        self.masquerade.push(wire.to_owned());
        self
    }

    /// Sets delay and loss between the node and this wire, in each direction.
    pub fn slow(&mut self, wire: &str, netem: Netem) -> &mut Self {
        for port in self.ports.iter_mut().filter(|port| port.wire == wire) {
            port.netem = Some(netem);
        }
        self
    }

    /// Sets the MTU of the interface on this wire (1500 otherwise).
    pub fn mtu(&mut self, wire: &str, bytes: u16) -> &mut Self {
        for port in self.ports.iter_mut().filter(|port| port.wire == wire) {
            port.mtu = Some(bytes);
        }
        self
    }

    /// Gives the node its own empty directory at this path. All nodes have their own `/run`,
    /// `/var/lib/edge-cni`, `/var/lib/edge-controller`, `/etc/edge-cni`, `/etc/cni` and
    /// `/etc/swanctl`.
    pub fn own_directory(&mut self, path: &str) -> &mut Self {
        self.private.push(path.to_owned());
        self
    }
}

/// Delay and loss of a wire, in each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Netem {
    pub(super) delay_ms: u32,
    pub(super) loss_percent: f32,
}

impl Netem {
    /// Delays every packet by this many milliseconds.
    #[must_use]
    pub fn delay(ms: u32) -> Self {
        Self { delay_ms: ms, loss_percent: 0.0 }
    }

    /// Drops this share of the packets, in percent.
    #[must_use]
    pub fn loss(self, percent: f32) -> Self {
        Self { loss_percent: percent, ..self }
    }

    pub(super) fn qdisc(&self) -> String {
        format!("netem delay {}ms loss {}%", self.delay_ms, self.loss_percent)
    }
}
