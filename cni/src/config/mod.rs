//! The network configuration that the runtime passes on standard input.
//!
//! - `keys`: the keys that a configuration may have.
//! - `segments`: the formats of an entry in the key `segments`.
//! - `state_dir`: the check of the directory for the plugin's state.

mod keys;
mod segments;
mod state_dir;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use edge_types::network::{BRIDGE_NAME, MAX_RESOLVERS_BEHIND_TUNNELS, is_bridge_name, overlap, special_use};
use edge_types::shared_files::SegmentsFile;
use edge_types::{IpNetwork, pods};
use serde::Deserialize;
use serde_json::{Map, Value};

use self::segments::SegmentEntry;

use crate::error::{Code, Error, Result};
use crate::pod_route::{MAX_ROUTES, PodRoute};
use crate::requested_addresses::RequestedAddresses;
use crate::reserved::Reserved;
use crate::version::Version;

/// Minimum MTU, bytes. IPv6 needs at least this (RFC 8200 section 5).
const MIN_MTU: u32 = 1280;

/// The network's name if the name in the configuration is invalid and the verb does not need the
/// name.
const UNNAMED: &str = "unnamed";

/// Maximum length of a network's name, bytes. Each lease contains the name.
const MAX_NAME: usize = 253;

/// Maximum number of entries of `reserved`.
const MAX_RESERVED: usize = 256;

/// Maximum number of entries of `clusterRanges`. The guard has three policies and a route for each,
/// and every ADD compares them.
const MAX_CLUSTER_RANGES: usize = 128;

/// Maximum number of entries of `segments`.
const MAX_SEGMENTS: usize = 128;

/// A valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) version: Version,
    /// The network's name.
    pub(crate) name: String,
    /// Name of the pods' bridge.
    pub(crate) bridge: String,
    /// Directory of the leases, and of the segments that the agent writes.
    pub(crate) state_dir: PathBuf,
    /// Path of the agent's socket.
    pub(crate) agent_socket: PathBuf,
    /// The cluster ranges. No packet to or from these ranges may travel in clear.
    pub(crate) cluster_ranges: Vec<IpNetwork>,
    /// The node's segments until the agent provides segments.
    pub(crate) segments: Vec<IpNetwork>,
    /// Addresses that are not given to pods.
    pub(crate) reserved: Reserved,
    /// MTU of pods' interfaces, bytes. Without it, the agent's value applies, or else the kernel's
    /// default.
    pub(crate) mtu: Option<u32>,
    /// Minimum number of free addresses in a family. If there are fewer, ADD requests another
    /// segment.
    pub(crate) low_water: u64,
    /// DNS settings that are copied into the result.
    pub(crate) dns: Option<Value>,
    /// A file in the form of resolv.conf(5) from which the result's `dns` is taken if the key `dns`
    /// is absent.
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Patterns of pods that the bridge's filter does not restrict.
    pub(crate) unfiltered_pods: Vec<String>,
    /// Sources outside the cluster that may reach pods in clear.
    pub(crate) lan_to_pods: Vec<IpNetwork>,
    /// Ranges of Services (ClusterIPs). Packets from outside hosts to these ranges are not sent to
    /// a published port.
    pub(crate) service_ranges: Vec<IpNetwork>,
    /// Whether this host also forwards between its other networks, even if forwarding was turned on
    /// only for pods.
    pub(crate) forward_others: bool,
    /// This host's resolvers that may be within the cluster ranges.
    pub(crate) resolvers_behind_tunnels: Vec<IpAddr>,
    /// Whether the bridge sends a pod's packets back to it.
    pub(crate) hairpin_mode: bool,
    /// Whether pods of this node are prevented from reaching each other over the bridge.
    pub(crate) port_isolation: bool,
    /// Whether a pod's IPv6 addresses wait for duplicate address detection.
    pub(crate) detect_duplicates: bool,
    /// Whether pods get a default route.
    pub(crate) is_default_gateway: bool,
    /// Additional routes of pods.
    pub(crate) routes: Vec<PodRoute>,
    /// The result of an earlier plugin, or with CHECK the result of this plugin's ADD.
    pub(crate) previous: Option<Value>,
    /// The addresses that `runtimeConfig` and `args` request for the pod.
    pub(crate) requested: RequestedAddresses,
    /// The attachments that the runtime still has, for GC.
    pub(crate) valid_attachments: Option<Value>,
    /// Keys that have no effect.
    unknown_keys: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    #[serde(default)]
    name: String,
    #[serde(default = "default_bridge")]
    bridge: String,
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default = "default_agent_socket")]
    agent_socket: PathBuf,
    #[serde(default)]
    cluster_ranges: Vec<IpNetwork>,
    #[serde(default)]
    segments: Vec<SegmentEntry>,
    #[serde(default)]
    reserved: Vec<String>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default = "default_low_water")]
    low_water: u64,
    #[serde(default)]
    dns: Option<Value>,
    #[serde(default)]
    resolv_conf: Option<PathBuf>,
    #[serde(default)]
    unfiltered_pods: Vec<String>,
    #[serde(default)]
    lan_to_pods: Vec<IpNetwork>,
    #[serde(default)]
    service_ranges: Vec<IpNetwork>,
    #[serde(default)]
    forward_others: bool,
    #[serde(default)]
    resolvers_behind_tunnels: Vec<String>,
    #[serde(default = "default_true")]
    hairpin_mode: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default, rename = "enabledad")]
    detect_duplicates: bool,
    #[serde(default = "default_true")]
    is_gateway: bool,
    #[serde(default = "default_true")]
    is_default_gateway: bool,
    #[serde(default)]
    routes: Vec<PodRoute>,
}

fn default_true() -> bool {
    true
}
fn default_bridge() -> String {
    "ecni0".into()
}
fn default_state_dir() -> PathBuf {
    edge_types::shared_files::STATE_DIR.into()
}
fn default_agent_socket() -> PathBuf {
    edge_types::agent_protocol::AGENT_SOCKET.into()
}
fn default_low_water() -> u64 {
    1
}

/// Reads only the version, for errors about a configuration that is otherwise unreadable.
pub(crate) fn version_of(json: &Map<String, Value>) -> Result<Version> {
    match json.get("cniVersion") {
        Some(Value::String(text)) => Version::parse(text),
        Some(other) => Err(invalid(format!("cniVersion is {other}; expected a text such as \"1.0.0\""))),
        None => Ok(Version::UNNAMED),
    }
}

/// Parses standard input into an object.
pub(crate) fn parse_object(text: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            Err(Error::new(Code::Decode, format!("the configuration is not a JSON object but begins with {other:.40}")))
        }
        Err(error) => Err(Error::new(
            Code::Decode,
            format!("the configuration on standard input is not JSON: {error}; correct the file in /etc/cni/net.d"),
        )),
    }
}

impl Config {
    /// Reads and checks the configuration of one plugin.
    pub(crate) fn from_object(json: Map<String, Value>) -> Result<Self> {
        let version = version_of(&json)?;
        let unknown_keys = keys::unknown_keys(&json)?;
        let previous = json.get("prevResult").filter(|result| !result.is_null()).cloned();
        let requested = RequestedAddresses::of_config(&json).map_err(invalid)?;
        let valid_attachments = json.get("cni.dev/valid-attachments").cloned();
        let raw: RawConfig = serde_json::from_value(Value::Object(json)).map_err(|error| invalid(error.to_string()))?;
        if !raw.is_gateway {
            return Err(invalid(
                "isGateway is false, but pods reach other nodes through the bridge's address; leave it out, and set isDefaultGateway to false if pods \
                 need no default route"
                    .into(),
            ));
        }
        let reserved = reserved(&raw)?;
        let resolvers_behind_tunnels = resolvers_behind_tunnels(&raw)?;
        let config = Self {
            version,
            name: raw.name,
            bridge: raw.bridge,
            state_dir: raw.state_dir,
            agent_socket: raw.agent_socket,
            cluster_ranges: raw.cluster_ranges.iter().map(canonical).collect(),
            segments: raw.segments.iter().map(|entry| canonical(entry.network())).collect(),
            reserved,
            mtu: raw.mtu,
            low_water: raw.low_water,
            dns: raw.dns,
            resolv_conf: raw.resolv_conf,
            unfiltered_pods: raw.unfiltered_pods,
            lan_to_pods: raw.lan_to_pods.iter().map(canonical).collect(),
            service_ranges: raw.service_ranges.iter().map(canonical).collect(),
            forward_others: raw.forward_others,
            resolvers_behind_tunnels,
            hairpin_mode: raw.hairpin_mode,
            port_isolation: raw.port_isolation,
            detect_duplicates: raw.detect_duplicates,
            is_default_gateway: raw.is_default_gateway,
            routes: raw.routes,
            previous,
            requested,
            valid_attachments,
            unknown_keys,
        };
        config.check()?;
        Ok(config)
    }

    /// Reads a configuration for a verb that needs only some keys. Other keys must not cause a
    /// failure, since a runtime calls DEL with the configuration of the ADD, which may be written
    /// for another release. Other keys that are invalid are reported on standard error and ignored.
    pub(crate) fn lenient(json: Map<String, Value>, needed: &[&str]) -> Result<Self> {
        let error = match Self::from_object(json.clone()) {
            Ok(config) => return Ok(config),
            Err(error) => error,
        };
        if let Some(missing) = needed.iter().find(|key| **key == "name" && !json.contains_key(**key)) {
            return Err(invalid(format!("{missing} is missing")));
        }
        let mut passed_over = 0;
        let version = version_of(&json).unwrap_or(Version::CURRENT);
        let mut right = Map::new();
        right.insert("cniVersion".into(), version.as_str().into());
        right.insert("name".into(), UNNAMED.into());
        for (key, value) in json {
            let mut alone = right.clone();
            alone.insert(key.clone(), value);
            match Self::from_object(alone.clone()) {
                Ok(_) => right = alone,
                Err(error) if needed.contains(&key.as_str()) => return Err(error),
                Err(error) => {
                    passed_over += 1;
                    eprintln!("edge-cni: the key {key:?} is ignored: {error}");
                }
            }
        }
        if passed_over == 0 {
            eprintln!("edge-cni: {error}; continuing without it");
        }
        Self::from_object(right)
    }

    fn check(&self) -> Result<()> {
        // The specification, "Network configuration": the same characters as in a container's ID.
        let good_name = self.name.len() <= MAX_NAME
            && self.name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && self.name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !good_name {
            return Err(invalid(format!(
                "name is {:?}; expected 1 to {MAX_NAME} letters, digits, '_', '.' and '-', the first a letter or digit",
                self.name
            )));
        }
        if !is_bridge_name(&self.bridge) {
            return Err(invalid(format!("bridge is {:?}; {BRIDGE_NAME}", self.bridge)));
        }
        let paths = [("stateDir", &self.state_dir), ("agentSocket", &self.agent_socket)];
        for (key, path) in paths.into_iter().chain(self.resolv_conf.iter().map(|path| ("resolvConf", path))) {
            if !path.is_absolute() {
                return Err(invalid(format!("{key} is {path:?}; expected an absolute path")));
            }
        }
        state_dir::check(&self.state_dir).map_err(invalid)?;
        if let Some(mtu) = self.mtu
            && !(MIN_MTU..=65535).contains(&mtu)
        {
            return Err(invalid(format!("mtu is {mtu}; expected {MIN_MTU} to 65535 bytes, or leave it out")));
        }
        for (key, networks, limit) in [
            ("clusterRanges", &self.cluster_ranges, MAX_CLUSTER_RANGES),
            ("segments", &self.segments, MAX_SEGMENTS),
            ("lanToPods", &self.lan_to_pods, pods::MAX_LAN_TO_PODS),
            ("serviceRanges", &self.service_ranges, pods::MAX_SERVICE_RANGES),
        ] {
            let count = networks.len();
            if count > limit {
                return Err(invalid(format!("{key} has {count} networks; expected at most {limit}, merge some")));
            }
        }
        check_segments(&self.segments).map_err(|why| invalid(format!("segments: {why}")))?;
        for (key, networks) in [("clusterRanges", &self.cluster_ranges), ("serviceRanges", &self.service_ranges)] {
            if let Some((network, special)) = networks.iter().find_map(|network| Some((network, special_use(network)?)))
            {
                return Err(invalid(format!(
                    "{key} has {network}, which contains {special}: this host would be cut off"
                )));
            }
        }
        if self.dns.as_ref().is_some_and(|dns| !dns.is_object()) {
            return Err(invalid("dns is not an object".into()));
        }
        if let Some(pattern) = self.unfiltered_pods.iter().find(|pattern| !pods::is_pattern(pattern)) {
            return Err(invalid(format!("unfilteredPods has {pattern:?}; expected {}", pods::EXPECTED)));
        }
        if self.routes.len() > MAX_ROUTES {
            return Err(invalid(format!("routes has {} routes; expected at most {MAX_ROUTES}", self.routes.len())));
        }
        self.routes.iter().try_for_each(PodRoute::check).map_err(|why| invalid(format!("routes: {why}")))?;
        Ok(())
    }

    /// Reports on standard error which keys have no effect.
    pub(crate) fn report_unknown_keys(&self) {
        for key in &self.unknown_keys {
            eprintln!("edge-cni: the configuration's key {key:?} is not known and has no effect");
        }
    }

    /// Returns the MTU of pods' interfaces, in bytes. `None` if neither the configuration nor the
    /// agent sets it, so that the kernel's default applies.
    pub(crate) fn pod_mtu(&self, segments: &SegmentsFile) -> Option<u32> {
        self.mtu.or((segments.mtu > 0).then_some(segments.mtu))
    }

    /// Returns the directory of the agent's sockets, which is in memory.
    pub(crate) fn run_dir(&self) -> &Path {
        self.agent_socket.parent().unwrap_or(&self.state_dir)
    }

    /// Returns whether the operator has exempted a pod, `namespace/name`, from the bridge's filter.
    /// `None` means all pods.
    pub(crate) fn excepts(&self, pod: Option<&str>) -> bool {
        self.unfiltered_pods.iter().any(|pattern| pods::matches(pattern, pod))
    }
}

/// Returns the addresses in `reserved`, and those that `rangeStart` and `rangeEnd` of segments
/// exclude.
fn reserved(raw: &RawConfig) -> Result<Reserved> {
    if raw.reserved.len() > MAX_RESERVED {
        return Err(invalid(format!("reserved has {} entries; expected at most {MAX_RESERVED}", raw.reserved.len())));
    }
    let mut ranges = Vec::new();
    for text in &raw.reserved {
        ranges.push(text.parse().map_err(|why: String| invalid(format!("reserved has {why}")))?);
    }
    for entry in &raw.segments {
        ranges.extend(entry.left_out().map_err(|why| invalid(format!("segments: {why}")))?);
    }
    Ok(Reserved::new(ranges))
}

/// Returns the addresses in `resolversBehindTunnels`.
fn resolvers_behind_tunnels(raw: &RawConfig) -> Result<Vec<IpAddr>> {
    let texts = &raw.resolvers_behind_tunnels;
    if texts.len() > MAX_RESOLVERS_BEHIND_TUNNELS {
        return Err(invalid(format!(
            "resolversBehindTunnels has {} addresses; expected at most {MAX_RESOLVERS_BEHIND_TUNNELS}",
            texts.len()
        )));
    }
    let address = |text: &String| {
        text.parse().map_err(|_| {
            invalid(format!(
                "resolversBehindTunnels has {text:?}; expected the address of one resolver, as in /etc/resolv.conf"
            ))
        })
    };
    texts.iter().map(address).collect()
}

/// Refuses segments that pods cannot use: too small for a gateway and a pod, too large for one
/// node, with special addresses, or overlapping. The error describes the defect.
pub(crate) fn check_segments(segments: &[IpNetwork]) -> Result<(), String> {
    for (index, segment) in segments.iter().enumerate() {
        let spare_bits = if segment.is_ipv4() { 32 } else { 128 } - segment.prefix();
        if spare_bits < 2 {
            return Err(format!("{segment} is too small: it must hold a gateway and a pod; use a shorter prefix"));
        }
        if spare_bits > 120 || (segment.is_ipv4() && segment.prefix() < 8) {
            return Err(format!("{segment} is too large to belong to one node; use a longer prefix"));
        }
        if let Some(special) = special_use(segment) {
            return Err(format!("{segment} cannot be a range for pods: it contains {special}"));
        }
        if let Some(other) = segments.iter().take(index).find(|other| overlap(other, segment)) {
            return Err(format!("{segment} overlaps {other}"));
        }
    }
    Ok(())
}

/// Returns the network with its host bits cleared.
fn canonical(network: &IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(*network)
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidConfig, format!("the configuration is wrong: {message}"))
}
