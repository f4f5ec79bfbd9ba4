//! The agent's TOML file. `docs/configuration.md` lists every key with its default; unknown keys
//! are refused.

mod child;
mod contradictions;
mod distinguished_name;
mod duration;
mod encap;
mod firewall;
mod host_address;
mod identity;
mod observe;
mod on_demand;
mod path_mtu;
mod peer;
mod peer_collisions;
pub(crate) mod proposal;
mod relay;
mod remote;
mod secret;
mod tcp;
mod timing;

pub use child::{ChildMode, ChildSection, DEFAULT_CHILD};
pub(crate) use child::{has_ports, protocol_named};
pub(crate) use duration::{EXPECTED as EXPECTED_DURATION, parse as parse_duration};
pub use encap::Encap;
pub use firewall::FirewallSection;
pub(crate) use identity::parse as parse_identity;
pub use observe::ObserveSection;
pub use on_demand::OnDemandSection;
pub use path_mtu::PathMtuSection;
pub use peer::{ChildlessSetting, PeerSection, RevocationSetting, Start};
pub use relay::RelaySection;
pub use remote::{Remote, RemoteHost};
pub use secret::SecretText;
pub use tcp::TcpSection;
pub use timing::TimingSection;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_types::network::{BRIDGE_NAME, MAX_RESOLVERS_BEHIND_TUNNELS, is_bridge_name, special_use};
use edge_types::{NodeName, Role, pods, shared_files};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::socket_holder::{DIRECTORY, LISTENER};

/// Path of the file, unless `--config` names another.
pub const DEFAULT_PATH: &str = "/etc/edge-cni/agent.toml";

/// Name of the socket for `edge-agent status` and other commands, in `run_dir`.
pub(crate) const ADMIN_SOCKET: &str = "admin.sock";

/// Maximum number of transmissions of one request. With a first delay of half a second that doubles
/// each time, 20 transmissions take three days.
const MAX_TRANSMISSIONS: u32 = 20;

/// The content of the agent's TOML file, with defaults for missing keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this node; the host name if not set. The controller decides whether the node may use
    /// the name.
    pub name: Option<NodeName>,
    /// Expected role of this node. The certificate decides the role; the agent refuses to join if
    /// it differs.
    pub role: Option<Role>,
    /// State directory; must survive reboots.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Directory of the sockets; other programs may wipe it at any time.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// Interface name of the pods' bridge.
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// UDP port for IKE.
    #[serde(default = "default_port")]
    pub port: u16,
    /// UDP port for IKE behind NATs and for ESP in UDP.
    #[serde(default = "default_nat_port")]
    pub nat_port: u16,
    /// Whether a separate process keeps the UDP sockets open while no agent runs, unless systemd
    /// does.
    #[serde(default = "default_hold_sockets")]
    pub hold_sockets: bool,
    /// Whether the kernel finds policies by a hash of the remote network.
    #[serde(default = "default_hash_policies")]
    pub hash_policies: bool,
    /// Whether ESP between our own nodes is always encapsulated in UDP.
    #[serde(default)]
    pub encap: Encap,
    /// MTU of pods, bytes; derived from the uplink if not set.
    pub mtu: Option<u32>,
    /// Name servers of this node that may lie within a view's networks, because the node reaches
    /// them through the tunnels.
    #[serde(default)]
    pub resolvers_behind_tunnels: Vec<IpAddr>,
    /// Timers of all tunnels.
    #[serde(default)]
    pub timing: TimingSection,
    /// Directories and plugins of the container runtime.
    #[serde(default)]
    pub cni: CniSection,
    /// Options of the table `inet edge-cni`.
    #[serde(default)]
    pub firewall: FirewallSection,
    /// Metrics and probes.
    #[serde(default)]
    pub observe: ObserveSection,
    /// Tunnels that are set up by the first packet.
    #[serde(default)]
    pub on_demand: OnDemandSection,
    /// Relays between two nodes that find no direct path to each other.
    #[serde(default)]
    pub relay: RelaySection,
    /// IKE and ESP in TCP, for networks that block UDP.
    #[serde(default)]
    pub tcp: TcpSection,
    /// Probes that find the path MTU of tunnels.
    #[serde(default)]
    pub path_mtu: PathMtuSection,
    /// The controller; `None` if the agent runs only as an IKEv2 daemon for static peers.
    pub controller: Option<ControllerSection>,
    /// The `[[peer]]` tables: peers that do not come from the controller.
    #[serde(default, rename = "peer")]
    pub peers: Vec<PeerSection>,
    /// The file's directory, to which paths in the file are relative.
    #[serde(skip)]
    directory: PathBuf,
}

/// The table `[controller]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerSection {
    /// URLs `https://HOST:PORT` of the controllers, tried in order.
    pub urls: Vec<String>,
    /// File with the join token; needed until the node has a certificate.
    pub token_file: Option<PathBuf>,
    /// File with the service account token of the agent's pod, for the audience `edge-cni`;
    /// replaces `token_file`.
    pub service_account_token_file: Option<PathBuf>,
    /// File with the controller's CA certificates, PEM; needed with a service account token.
    pub ca_file: Option<PathBuf>,
    /// Number of unused segments to hold, so that a pod rarely waits for the controller. With 0, a
    /// segment is requested only when few addresses are left.
    #[serde(default = "default_spare")]
    pub spare: u32,
    /// Addresses at which peers can reach this node, for example that of a load balancer or of a
    /// router that forwards a port. They are reported before the addresses of the node's
    /// interfaces.
    #[serde(default)]
    pub advertise: Vec<IpAddr>,
    /// After a rollover of the controller's authority, the certificate is renewed at a random
    /// moment within this time, so that not all nodes renew at the same time.
    #[serde(default, with = "duration::optional")]
    pub rollover_spread: Option<Duration>,
    /// Timeout for a view that adds networks to the tunnels. If the agent receives nothing from the
    /// controller for this time after applying such a view, it restores the previous view.
    #[serde(default, with = "duration::optional")]
    pub take_back: Option<Duration>,
}

/// Name of the plugin's conflist. The runtime uses the file whose name sorts first.
pub const CONFLIST: &str = "10-edge-cni.conflist";

/// The table `[cni]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CniSection {
    /// Directory of network configurations. k3s and other distributions do not use the default.
    pub conf_dir: PathBuf,
    /// Directory of plugin programs.
    pub bin_dir: PathBuf,
    /// Plugins after `edge-cni` in the conflist, with the keys of their JSON configuration. If not
    /// set: `portmap`, provided that it is in `bin_dir`.
    pub plugins: Option<Vec<toml::Table>>,
    /// Pods that may send from any address (the plugin's `unfilteredPods`).
    pub unfiltered_pods: Vec<String>,
}

impl Default for CniSection {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            plugins: None,
            unfiltered_pods: Vec::new(),
        }
    }
}

impl CniSection {
    /// Returns the path of the plugin's conflist.
    pub fn conflist(&self) -> PathBuf {
        self.conf_dir.join(CONFLIST)
    }

    fn check(&self) -> Result<(), String> {
        for plugin in self.plugins.iter().flatten() {
            match plugin.get("type").and_then(toml::Value::as_str) {
                None => return Err("[cni] plugins: an entry has no type; write { type = \"bandwidth\", .. }".into()),
                Some("edge-cni") => {
                    return Err(
                        "[cni] plugins: edge-cni itself comes first by itself; list only what comes after it".into()
                    );
                }
                Some(kind) if kind.is_empty() || kind.contains('/') => {
                    return Err(format!("[cni] plugins: type {kind:?} is not the name of a program in bin_dir"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Returns the directory of the file at `path` as an absolute path. Paths in the file are relative
/// to it.
pub(crate) fn directory_of(path: &Path) -> std::io::Result<PathBuf> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::path::absolute(directory)
}

fn default_state_dir() -> PathBuf {
    shared_files::STATE_DIR.into()
}

/// Returns the default of `run_dir`.
pub(crate) fn default_run_dir() -> PathBuf {
    "/run/edge-cni".into()
}

fn default_bridge() -> String {
    "ecni0".into()
}

fn default_port() -> u16 {
    500
}

fn default_hold_sockets() -> bool {
    true
}

fn default_hash_policies() -> bool {
    true
}

fn default_nat_port() -> u16 {
    4500
}

fn default_spare() -> u32 {
    1
}

/// The reason why the file cannot be used. The error never shows the text of a line, which may
/// contain a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// The file is not TOML, or has an unknown key or value.
    #[error("{path}, line {line}, column {column}: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What was expected, and what was found.
        problem: String,
    },
    /// Each value is well-formed, but the values contradict each other, or one is out of range.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// The key, what was expected, and the remedy.
        problem: String,
    },
}

impl Config {
    /// Reads and checks the file, and makes the directories that it names absolute: relative ones
    /// count from the file's directory. Also fails if the file contains a pre-shared key and other
    /// users may access it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read_error = |error| ConfigError::Read { path: path.to_owned(), error };
        let text = Zeroizing::new(fs::read_to_string(path).map_err(read_error)?);
        let mode = fs::metadata(path).map_err(read_error)?.permissions().mode();
        let mut config = Self::parse(&text, path)?;
        config.directory = directory_of(path).map_err(read_error)?;
        // Commands run in different working directories, and the runtime gives these paths to the
        // plugin.
        let Self { directory, state_dir, run_dir, cni, .. } = &mut config;
        for path in [state_dir, run_dir, &mut cni.conf_dir, &mut cni.bin_dir] {
            *path = directory.join(&path);
        }
        contradictions::check_directories(&config.state_dir, &config.run_dir)
            .map_err(|problem| config.content(path, problem))?;
        if mode & 0o077 != 0 && config.peers.iter().any(|peer| peer.psk.is_some()) {
            return Err(config.content(
                path,
                format!(
                    "it holds a psk and others may read it (mode {:04o}): chmod 600, or keep the key in a file of its own with psk_file",
                    mode & 0o7777
                ),
            ));
        }
        Ok(config)
    }

    /// Parses and checks the text of the file at `path`. Errors contain this path.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            // The `Display` implementation of `error` shows the line, which may contain a key.
            let before = &text[..error.span().map_or(0, |span| text.floor_char_boundary(span.start))];
            ConfigError::Syntax {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.rsplit('\n').next().unwrap_or("").chars().count() + 1,
                problem: error.message().to_owned(),
            }
        })?;
        config.check().map_err(|problem| config.content(path, problem))?;
        Ok(config)
    }

    /// Returns the configuration in which no key is set. No agent can run with it, but it has the
    /// directories of an agent whose file sets none.
    pub(crate) fn with_defaults() -> Result<Self, ConfigError> {
        toml::from_str("")
            .map_err(|error| ConfigError::Content { path: DEFAULT_PATH.into(), problem: error.message().to_owned() })
    }

    /// Resolves a path that the file contains, relative to the file's directory.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    /// Returns this node's name: the configured one, otherwise the host name. Fails if the host
    /// name is not a valid node name.
    pub fn node_name(&self) -> Result<NodeName, edge_types::NameError> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => {
                fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_ascii_lowercase().parse()
            }
        }
    }

    /// Returns the path of the socket for `edge-agent status` and other commands.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join(ADMIN_SOCKET)
    }

    /// Returns the path of the socket on which the holder of the UDP sockets in a pod listens.
    pub fn holder_socket(&self) -> PathBuf {
        self.run_dir.join(DIRECTORY).join(LISTENER)
    }

    /// Returns the path of the socket for the CNI plugin.
    pub fn plugin_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Returns section and text of each value that can never do what the operator wants, but that
    /// earlier releases accepted. `edge-agent check` reports errors for them. The agent starts with
    /// them and logs warnings, since an upgrade must not leave a node without its agent. At most
    /// one for each peer, for each address of the node, and for each kind of contradiction.
    pub fn deprecated(&self) -> Vec<(String, String)> {
        let mut found = vec![];
        let mut add = |section: &str, checked: Result<(), String>| {
            found.extend(checked.err().map(|problem| (section.to_owned(), problem)));
        };
        for address in &self.resolvers_behind_tunnels {
            add("resolvers_behind_tunnels", host_address::check_host("resolvers_behind_tunnels", address));
        }
        for address in self.controller.iter().flat_map(|controller| &controller.advertise) {
            add("[controller]", host_address::check_host("advertise", address));
        }
        add("[observe]", contradictions::check_listeners(&self.observe.listen, self.tcp.listen_port));
        add("[timing]", contradictions::check_timing(&self.timing));
        add("[on_demand]", contradictions::check_idle_timeout(self.on_demand.idle_timeout()));
        for peer in &self.peers {
            add(&peer.name, peer.check_addresses());
        }
        found
    }

    fn content(&self, path: &Path, problem: String) -> ConfigError {
        ConfigError::Content { path: path.to_owned(), problem }
    }

    fn check(&self) -> Result<(), String> {
        if let Some(pattern) = self.cni.unfiltered_pods.iter().find(|pattern| !pods::is_pattern(pattern)) {
            return Err(format!("[cni]: unfiltered_pods has {pattern:?}; expected {}", pods::EXPECTED));
        }
        // The plugin refuses lists that are longer than these limits.
        for (key, networks, limit) in [
            ("lan_to_pods", &self.firewall.lan_to_pods, pods::MAX_LAN_TO_PODS),
            ("service_ranges", &self.firewall.service_ranges, pods::MAX_SERVICE_RANGES),
        ] {
            let count = networks.len();
            if count > limit {
                return Err(format!("[firewall]: {key} has {count} networks; expected at most {limit}, merge some"));
            }
        }
        for range in &self.firewall.service_ranges {
            if let Some(special) = special_use(range) {
                return Err(format!(
                    "[firewall]: service_ranges has {range}, which holds {special}: no Service is there"
                ));
            }
        }
        let count = self.resolvers_behind_tunnels.len();
        if count > MAX_RESOLVERS_BEHIND_TUNNELS {
            return Err(format!(
                "resolvers_behind_tunnels has {count} addresses; expected at most {MAX_RESOLVERS_BEHIND_TUNNELS}"
            ));
        }
        if self.controller.is_none() && self.peers.is_empty() {
            return Err("neither [controller] nor any [[peer]]: there is nothing to do; add one of them".into());
        }
        if let Some(controller) = &self.controller {
            if controller.urls.is_empty() {
                return Err("[controller]: urls is empty; add \"https://HOST:PORT\"".into());
            }
            if let Some(url) = controller.urls.iter().find(|url| !url.starts_with("https://")) {
                // What stands before an at sign may be a password.
                let shown = if url.contains('@') { "a URL with a user or password" } else { url };
                return Err(format!("[controller]: {shown:?} is not an https:// URL"));
            }
            let account = controller.service_account_token_file.is_some();
            if account && controller.token_file.is_some() {
                return Err(
                    "[controller]: token_file and service_account_token_file exclude each other; leave one out".into(),
                );
            }
            if account != controller.ca_file.is_some() {
                return Err(
                    "[controller]: service_account_token_file and ca_file belong together; set both, or neither".into(),
                );
            }
        }
        self.cni.check()?;
        if self.port == self.nat_port {
            return Err(format!("port and nat_port are both {}; they need two", self.port));
        }
        for (key, port) in [("port", self.port), ("nat_port", self.nat_port)] {
            if port == 0 {
                return Err(format!("{key} is 0, and peers must know it; leave it out for the default"));
            }
        }
        self.relay.check([self.port, self.nat_port])?;
        self.tcp.check()?;
        if !is_bridge_name(&self.bridge) {
            return Err(format!("bridge {:?} is not an interface name: {BRIDGE_NAME}", self.bridge));
        }
        if self.mtu.is_some_and(|mtu| !(576..=65535).contains(&mtu)) {
            return Err("mtu must lie between 576 and 65535; leave it out to derive it from the uplink".into());
        }
        if let Some(count) = self.timing.transmissions.filter(|count| !(1..=MAX_TRANSMISSIONS).contains(count)) {
            return Err(format!(
                "[timing]: transmissions is {count}; expected 1 to {MAX_TRANSMISSIONS}, since the wait doubles each time"
            ));
        }
        for peer in &self.peers {
            peer.check().map_err(|problem| format!("[[peer]] {:?}: {problem}", peer.name))?;
        }
        peer_collisions::check_distinct(self.peers.iter().map(PeerSection::ends))
    }
}

#[cfg(test)]
mod tests;
