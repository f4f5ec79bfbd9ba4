//! Defines the configuration keys with their defaults and the checks of their values. A new key
//! only needs a new field here.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use edge_controller_domain::ca::OperatorCa;
use edge_controller_domain::clock::{Seconds, parse_rfc3339};
use edge_controller_domain::networks::{ClusterNetworks, HubNetworks};
use edge_controller_domain::node_addresses::is_of_a_host;
use edge_controller_domain::segments::{Ledger, SegmentPolicy, free_segments, overlap};
use edge_controller_kubernetes::label_trust::TrustNodeLabels;
use edge_controller_kubernetes::selector::NodeSelector;
use edge_controller_kubernetes::service_account::{JoinAccounts, RoleSelectors};
use edge_types::api::{Family, VIEW_SILENCE_SECONDS};
use edge_types::network::special_use;
use edge_types::view::SegmentPrefix;
use edge_types::{IpNetwork, NodeName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Path of the admin socket, unless configured otherwise.
pub const ADMIN_SOCKET: &str = "/run/edge-controller/admin.sock";

/// Port on which nodes reach the controller, unless configured otherwise.
pub const PORT: u16 = 8443;

/// Address at which health and metrics are served, unless configured otherwise.
const OBSERVE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9643);

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses on which nodes are served.
    #[serde(default = "default_listen")]
    pub listen: Vec<SocketAddr>,
    /// Directory of the CA and the store.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Unix socket of the operator's commands.
    #[serde(default = "default_admin_socket")]
    pub admin_socket: PathBuf,
    /// Names and addresses under which nodes reach this controller; its certificate contains them.
    pub server_names: Vec<String>,
    /// Seconds between heartbeats on a view stream.
    #[serde(default = "default_heartbeat")]
    pub heartbeat_seconds: u64,
    /// Latest time in the store that is dropped at the start, RFC 3339: a time of a controller
    /// whose machine's clock was ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_clock: Option<String>,
    /// Ranges, sizes and limits of segments.
    pub segments: Segments,
    /// Validity of certificates, and an authority from the operator.
    #[serde(default)]
    pub certificates: Certificates,
    /// Health and metrics.
    #[serde(default)]
    pub observe: Observe,
    /// The operator's page.
    #[serde(default)]
    pub page: Page,
    /// Cloud networks (pods and services of the cloud's own CNI) that every hub fronts.
    #[serde(default)]
    #[schemars(with = "Vec<String>", extend("x-reload" = "views"))]
    pub networks: Vec<IpNetwork>,
    /// Kubernetes, as the source of nodes' labels and as the store. If absent, Kubernetes is not
    /// used.
    #[serde(default)]
    pub kubernetes: Option<Kubernetes>,
    /// Settings of individual hubs, by node name.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Hub>", extend("x-reload" = "views"))]
    pub hub: BTreeMap<NodeName, Hub>,
}

/// `[segments]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segments {
    /// Ranges from which segments are allocated.
    #[schemars(with = "Vec<String>", extend("x-reload" = "views"))]
    pub cluster_ranges: Vec<IpNetwork>,
    /// Prefix length of an IPv4 segment.
    #[serde(default = "default_v4_prefix")]
    pub v4_prefix: u8,
    /// Prefix length of an IPv6 segment.
    #[serde(default = "default_v6_prefix")]
    pub v6_prefix: u8,
    /// Parts of the ranges that are never granted.
    #[serde(default)]
    #[schemars(with = "Vec<String>", extend("x-reload" = "quiet"))]
    pub reserved: Vec<IpNetwork>,
    /// Number of segments of each configured family that an edge gets when it joins, without a
    /// request.
    #[serde(default = "default_min")]
    #[schemars(extend("x-reload" = "quiet"))]
    pub min_per_node: u32,
    /// Maximum number of segments of one family that a node may hold.
    #[serde(default = "default_max")]
    #[schemars(extend("x-reload" = "quiet"))]
    pub max_per_node: u32,
    /// Quarantine of a released segment, seconds: it is granted to no node during this time.
    #[serde(default = "default_quarantine")]
    #[schemars(extend("x-reload" = "quiet"))]
    pub quarantine_seconds: u64,
    /// Time after a restore, seconds, during which no segment is granted until every edge has
    /// reported which segments it uses.
    #[serde(default = "default_restore_grace")]
    #[schemars(extend("x-reload" = "quiet"))]
    pub restore_grace_seconds: u64,
}

/// `[certificates]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Certificates {
    /// Validity of a node's certificate, days. A node renews its certificate after half of it, so
    /// a site works without the cloud for at least half of this time, and at most for all of it.
    pub node_days: u32,
    /// Time after the end of a node's certificate, days, for which its peers still accept the
    /// certificate and the controller still renews it, for nodes that were away from the
    /// controller for too long. Not for a node that was deregistered or whose certificate was
    /// revoked. With 0, tunnels end with the certificate, and the node must join again.
    #[schemars(extend("x-reload" = "views"))]
    pub grace_days: u32,
    /// Validity of the controller's own certificate, days; it is renewed without a restart.
    pub server_days: u32,
    /// Certificate (PEM) of an authority that the operator supplies. If absent, the controller
    /// generates an authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificate: Option<PathBuf>,
    /// Private key of `ca_certificate` (PKCS #8 in PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_key: Option<PathBuf>,
}

/// `[observe]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Observe {
    /// Addresses on which health and metrics are served over plain HTTP; an empty list turns them
    /// off.
    pub listen: Vec<SocketAddr>,
}

/// `[page]`
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Page {
    /// Loopback addresses on which the operator's page is served over plain HTTP; an empty list
    /// turns it off.
    pub listen: Vec<SocketAddr>,
}

/// `[kubernetes]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Kubeconfig file for access to the API server. Leave it out in a pod, which uses its service
    /// account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the controller's own objects: tokens, authority, lease.
    pub namespace: String,
    /// Whether nodes, segments, communities and tokens are kept at the API server, shared by all
    /// replicas, instead of in the state directory.
    pub store: bool,
    /// Label selector of the Node objects that are edges; community labels of other Node objects
    /// are ignored.
    #[schemars(with = "String")]
    pub edge_selector: NodeSelector,
    /// Label selector of the Node objects that may join as hubs by service account; a kubelet must
    /// not be able to set its labels.
    #[schemars(with = "String")]
    pub hub_selector: NodeSelector,
    /// Label selector of the Node objects that may join as other cloud nodes by service account; a
    /// kubelet must not be able to set its labels.
    #[schemars(with = "String")]
    pub cloud_selector: NodeSelector,
    /// Whether labels of Node objects put nodes into communities, although a kubelet may be able to
    /// set them: "auto" if our admission policy prevents kubelets from setting them; true or false
    /// regardless of the policy.
    #[schemars(with = "String")]
    pub trust_node_labels: TrustNodeLabels,
    /// Whether each hub also fronts the networks in `spec.podCIDRs` of its Node object by itself,
    /// as far as it fronts them together with other hubs.
    pub hub_pod_networks: bool,
    /// Time after which another replica takes over the tasks of a leader that has stopped renewing
    /// its lease, seconds.
    pub lease_seconds: u32,
    /// Whether the operator must confirm before many nodes are deregistered at once because their
    /// Node or EdgeNode objects are gone.
    pub confirm_deregistrations: bool,
    /// UID of the namespace kube-system of another cluster, which the controller accepts in place
    /// of the cluster it knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_cluster: Option<String>,
    /// Service accounts with which nodes may join.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinAccounts>,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            namespace: "edge-cni".into(),
            store: true,
            edge_selector: NodeSelector::edges(),
            hub_selector: NodeSelector::hubs(),
            cloud_selector: NodeSelector::clouds(),
            trust_node_labels: TrustNodeLabels::Auto,
            hub_pod_networks: true,
            lease_seconds: 15,
            confirm_deregistrations: true,
            accept_cluster: None,
            join: None,
        }
    }
}

/// `[hub.NAME]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    /// Cloud networks that this hub fronts, instead of `networks` above.
    #[schemars(with = "Option<Vec<String>>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<IpNetwork>>,
    /// Addresses of this hub that peers try before the addresses that it reports: for example, a
    /// port that is forwarded to it.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
}

impl Default for Certificates {
    fn default() -> Self {
        Self { node_days: 7, grace_days: 7, server_days: 30, ca_certificate: None, ca_key: None }
    }
}

impl Default for Observe {
    fn default() -> Self {
        Self { listen: vec![OBSERVE] }
    }
}

fn default_listen() -> Vec<SocketAddr> {
    vec![SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PORT)]
}
fn default_state_dir() -> PathBuf {
    "/var/lib/edge-controller".into()
}
fn default_admin_socket() -> PathBuf {
    ADMIN_SOCKET.into()
}
fn default_heartbeat() -> u64 {
    5
}
fn default_v4_prefix() -> u8 {
    SegmentPrefix::default().v4
}
fn default_v6_prefix() -> u8 {
    SegmentPrefix::default().v6
}
fn default_min() -> u32 {
    1
}
fn default_max() -> u32 {
    64
}
fn default_quarantine() -> u64 {
    600
}
fn default_restore_grace() -> u64 {
    600
}
/// Converts seconds to the clock's type, up to the type's maximum.
fn seconds(configured: u64) -> i64 {
    i64::try_from(configured).unwrap_or(i64::MAX)
}

impl Config {
    /// Returns whether rows and authorities are stored at the Kubernetes API server, and nothing in
    /// `state_dir`.
    pub(crate) fn store_is_at_api_server(&self) -> bool {
        self.kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.store)
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.listen.is_empty() {
            return Err(("listen", "at least one address is needed".into()));
        }
        if self.server_names.is_empty() {
            return Err(("server_names", "name what the agents' `url` will hold, as DNS name or IP address".into()));
        }
        for name in &self.server_names {
            if rustls_pki_types::ServerName::try_from(name.as_str()).is_err() {
                return Err(("server_names", format!("{name:?} is neither a DNS name nor an IP address")));
            }
        }
        let nowhere = |name: &&String| {
            let address: Option<IpAddr> = name.parse().ok();
            address.is_some_and(|address| !address.is_loopback() && !is_of_a_host(&address))
        };
        if let Some(name) = self.server_names.iter().find(nowhere) {
            return Err(("server_names", format!("nobody can connect to {name}; name an address of this controller")));
        }
        if let Some(address) = self.page.listen.iter().find(|address| !address.ip().to_canonical().is_loopback()) {
            let why = format!(
                "the page is plain HTTP, so it is served on loopback addresses alone, and {address} is none; \
                 reach 127.0.0.1 from elsewhere by ssh -L, kubectl port-forward, or a proxy with TLS on this machine"
            );
            return Err(("page.listen", why));
        }
        self.check_listeners()?;
        if let Some(time) = &self.accept_clock
            && parse_rfc3339(time).is_none()
        {
            return Err(("accept_clock", format!("{time:?} is no time such as 2026-11-27T23:59:59Z")));
        }
        // One lost heartbeat must not make a node reconnect.
        let most = VIEW_SILENCE_SECONDS / 2;
        if self.heartbeat_seconds == 0 || self.heartbeat_seconds > most {
            return Err(("heartbeat_seconds", format!("{} is not within 1 to {most}", self.heartbeat_seconds)));
        }
        for (key, days) in [("node_days", self.certificates.node_days), ("server_days", self.certificates.server_days)]
        {
            if days == 0 || days > 825 {
                return Err((key, format!("{days} is not within 1 to 825 days")));
            }
        }
        if self.certificates.grace_days > 825 {
            return Err(("grace_days", format!("{} is not within 0 to 825 days", self.certificates.grace_days)));
        }
        if self.certificates.ca_certificate.is_some() != self.certificates.ca_key.is_some() {
            return Err(("ca_certificate", "ca_certificate and ca_key belong together; set both, or neither".into()));
        }
        if let Some(kubernetes) = &self.kubernetes {
            let namespace = &kubernetes.namespace;
            if namespace.contains('.') || namespace.parse::<NodeName>().is_err() {
                return Err(("kubernetes.namespace", format!("{namespace:?} is not the name of a namespace")));
            }
            if !(3..=600).contains(&kubernetes.lease_seconds) {
                let why = format!("{} is not within 3 to 600", kubernetes.lease_seconds);
                return Err(("kubernetes.lease_seconds", why));
            }
            for (key, selector) in
                [("hub_selector", &kubernetes.hub_selector), ("cloud_selector", &kubernetes.cloud_selector)]
            {
                if selector.as_str().trim().is_empty() {
                    return Err((key, "an empty selector would give this role to every Node that is no edge".into()));
                }
            }
            if let Some(accounts) = &kubernetes.join {
                accounts.check().map_err(|why| ("kubernetes.join", why))?;
            }
        }
        let Segments { min_per_node: min, max_per_node: max, .. } = self.segments;
        if min > max {
            return Err(("min_per_node", format!("{min} is more than max_per_node, {max}")));
        }
        self.segment_policy().check()?;
        self.check_reserved()?;
        self.check_networks()
    }

    /// Checks that at least one segment is not reserved. All ranges of one family may be reserved,
    /// so that no further segments are granted from them while nodes still hold some.
    fn check_reserved(&self) -> Result<(), (&'static str, String)> {
        let policy = self.segment_policy();
        let free = |family| free_segments(&Ledger::default(), &policy, family, 0);
        if free(Family::V4) == 0 && free(Family::V6) == 0 {
            return Err(("reserved", "it leaves no segment in any of cluster_ranges, so no node would get one".into()));
        }
        Ok(())
    }

    fn check_networks(&self) -> Result<(), (&'static str, String)> {
        for (name, hub) in &self.hub {
            let nowhere = |at: &&SocketAddr| at.port() == 0 || !is_of_a_host(&at.ip());
            if let Some(at) = hub.endpoints.iter().find(nowhere) {
                return Err((
                    "hub",
                    format!("hub.{name}.endpoints: no node can send to {at}; name address and port of the hub"),
                ));
            }
        }
        for network in self.cluster_networks().all_fronted() {
            if network.ip() != network.network() {
                return Err(("networks", format!("{network} has bits set beyond its prefix")));
            }
            if let Some(special) = special_use(network) {
                return Err(("networks", format!("{network} holds {special}, which every node needs for itself")));
            }
            if let Some(range) = self.segments.cluster_ranges.iter().find(|range| overlap(range, network)) {
                return Err(("networks", format!("{network} overlaps the cluster range {range}, which is the edges'")));
            }
        }
        Ok(())
    }

    /// Returns the service account of each role and the Nodes that may have it; `None` if nodes may
    /// not join by service account.
    pub fn joining(&self) -> Option<(JoinAccounts, RoleSelectors)> {
        let kubernetes = self.kubernetes.as_ref()?;
        let selectors = RoleSelectors {
            edge: kubernetes.edge_selector.clone(),
            hub: kubernetes.hub_selector.clone(),
            cloud: kubernetes.cloud_selector.clone(),
        };
        Some((kubernetes.join.clone()?, selectors))
    }

    /// Returns the rules for segments.
    pub fn segment_policy(&self) -> SegmentPolicy {
        SegmentPolicy {
            ranges: self.segments.cluster_ranges.clone(),
            reserved: self.segments.reserved.clone(),
            prefix: SegmentPrefix { v4: self.segments.v4_prefix, v6: self.segments.v6_prefix },
            max_per_node: self.segments.max_per_node,
            quarantine: seconds(self.segments.quarantine_seconds),
            restore_grace: seconds(self.segments.restore_grace_seconds),
            claims_after_restore: i64::from(self.certificates.node_days) * 24 * 3600 + self.certificate_grace(),
        }
    }

    /// Returns the time for which a node's certificate is accepted after its end, seconds.
    pub fn certificate_grace(&self) -> Seconds {
        i64::from(self.certificates.grace_days) * 24 * 3600
    }

    /// Returns the authority that the operator provides.
    pub fn operator_ca(&self) -> Option<OperatorCa> {
        let (certificate, key) = self.certificates.ca_certificate.clone().zip(self.certificates.ca_key.clone())?;
        Some(OperatorCa { certificate, key })
    }

    /// Returns the stored time, seconds since 1970-01-01 UTC, up to which the operator says that it
    /// is wrong.
    pub fn wrong_time(&self) -> Option<Seconds> {
        self.accept_clock.as_deref().and_then(parse_rfc3339)
    }

    /// Returns the time between heartbeats on a view stream.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat_seconds)
    }

    /// Returns the networks that nodes reach through tunnels.
    pub fn cluster_networks(&self) -> ClusterNetworks {
        let hub = |hub: &Hub| HubNetworks { fronted: hub.networks.clone(), endpoints: hub.endpoints.clone() };
        ClusterNetworks {
            ranges: self.segments.cluster_ranges.clone(),
            fronted: self.networks.clone(),
            hubs: self.hub.iter().map(|(name, differs)| (name.clone(), hub(differs))).collect(),
            hub_pod_networks: self.kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.hub_pod_networks),
            services: Vec::new(),
        }
    }
}
