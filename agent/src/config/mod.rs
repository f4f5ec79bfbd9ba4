//! The agent's TOML file. Every key, with its default, stands in `docs/configuration.md`; unknown
//! keys are refused.

mod duration;
mod firewall;
mod identity;
mod peer;
pub(crate) mod proposal;
mod secret;

pub use firewall::FirewallSection;
pub use peer::{PeerSection, Start};
pub use secret::SecretText;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_ike::config::Timing;
use edge_types::{NodeName, Role, pods, store};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Where the file is looked for unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/edge-cni/agent.toml";

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this node; the host name unless set. The controller decides whether it may be used.
    pub name: Option<NodeName>,
    /// What this node believes to be. Checked against the certificate, which alone decides.
    pub role: Option<Role>,
    /// Folder that survives reboots.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Folder of the sockets; may be wiped at any time.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// The pods' bridge.
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// UDP port for IKE.
    #[serde(default = "default_port")]
    pub port: u16,
    /// UDP port for IKE behind NATs and for ESP in UDP.
    #[serde(default = "default_nat_port")]
    pub nat_port: u16,
    /// Whether ESP between our own nodes always travels in UDP.
    #[serde(default)]
    pub encap: Encap,
    /// MTU of pods, bytes; found out from the uplink unless set.
    pub mtu: Option<u32>,
    /// Timers of all tunnels.
    #[serde(default)]
    pub timing: TimingSection,
    /// Where the container runtime looks for CNI.
    #[serde(default)]
    pub cni: CniSection,
    /// What the firewall does beyond what the cluster asks for.
    #[serde(default)]
    pub firewall: FirewallSection,
    /// The controller; absent on a plain IKEv2 daemon.
    pub controller: Option<ControllerSection>,
    /// Static peers.
    #[serde(default, rename = "peer")]
    pub peers: Vec<PeerSection>,
    /// The file's folder: relative paths in the file start here.
    #[serde(skip)]
    folder: PathBuf,
}

/// `encap`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encap {
    /// Always in UDP: firewalls that pass IKE and drop ESP are common.
    #[default]
    Force,
    /// Only where a NAT is seen.
    Auto,
}

/// `[controller]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerSection {
    /// `https://HOST:PORT`, tried in order.
    pub urls: Vec<String>,
    /// File with the join token; needed until the node has its certificate.
    pub token_file: Option<PathBuf>,
    /// In its place: file with the service account token of this node's pod, for the audience
    /// `edge-cni`.
    pub service_account_token_file: Option<PathBuf>,
    /// The controller's CA certificates, PEM; a service account token does not name them.
    pub ca_file: Option<PathBuf>,
    /// Unused segments to hold, so that a pod seldom waits for the cloud; 0 applies only when
    /// addresses run short.
    #[serde(default = "default_spare")]
    pub spare: u32,
    /// Addresses at which peers find this node, reported before those of its interfaces (a port
    /// forwarding, an address of a balancer).
    #[serde(default)]
    pub advertise: Vec<IpAddr>,
    /// When the controller has rolled over to a new authority, the certificate is renewed at some
    /// moment within so long, so that not all nodes come at once.
    #[serde(default, with = "duration::optional")]
    pub rollover_spread: Option<Duration>,
    /// A view that takes more networks into tunnels, and under which the controller is not heard
    /// for so long, is taken back.
    #[serde(default, with = "duration::optional")]
    pub take_back: Option<Duration>,
}

/// `[cni]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CniSection {
    /// Folder of network configurations; k3s and others differ from the default.
    pub conf_dir: PathBuf,
    /// Folder of plugins.
    pub bin_dir: PathBuf,
    /// Plugins that come after `edge-cni` in the list, as the runtime's JSON has them. Unless set:
    /// `portmap`, if it is in `bin_dir`.
    pub plugins: Option<Vec<toml::Table>>,
    /// Pods that may send with any address (the plugin's `unfilteredPods`).
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

/// `[timing]`: each key overrides one of [`Timing`]'s defaults.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingSection {
    /// Silence after which liveness is checked.
    #[serde(with = "duration::optional")]
    pub liveness: Option<Duration>,
    /// First retransmission after this; doubled each time.
    #[serde(with = "duration::optional")]
    pub retransmit: Option<Duration>,
    /// Transmissions of one request before the IKE SA is given up.
    pub transmissions: Option<u32>,
    /// Soft lifetime of a CHILD_SA.
    #[serde(with = "duration::optional")]
    pub child_lifetime: Option<Duration>,
    /// Lifetime of an IKE SA.
    #[serde(with = "duration::optional")]
    pub ike_lifetime: Option<Duration>,
    /// How long an old inbound SA lingers after a rekey.
    #[serde(with = "duration::optional")]
    pub linger: Option<Duration>,
    /// Wait before beginning again after a failure; doubled up to `retry_max`.
    #[serde(with = "duration::optional")]
    pub retry: Option<Duration>,
    /// Longest wait between beginnings.
    #[serde(with = "duration::optional")]
    pub retry_max: Option<Duration>,
    /// NAT keepalive interval.
    #[serde(with = "duration::optional")]
    pub nat_keepalive: Option<Duration>,
}

impl TimingSection {
    /// The timers, with defaults where the file is silent.
    pub fn resolve(&self) -> Timing {
        let default = Timing::default();
        Timing {
            liveness: self.liveness.unwrap_or(default.liveness),
            retransmit: self.retransmit.unwrap_or(default.retransmit),
            transmissions: self.transmissions.unwrap_or(default.transmissions),
            child_lifetime: self.child_lifetime.unwrap_or(default.child_lifetime),
            ike_lifetime: self.ike_lifetime.unwrap_or(default.ike_lifetime),
            linger: self.linger.unwrap_or(default.linger),
            retry: self.retry.unwrap_or(default.retry),
            retry_max: self.retry_max.unwrap_or(default.retry_max),
            nat_keepalive: self.nat_keepalive.unwrap_or(default.nat_keepalive),
        }
    }
}

fn default_state_dir() -> PathBuf {
    store::STATE_DIR.into()
}

fn default_run_dir() -> PathBuf {
    "/run/edge-cni".into()
}

fn default_bridge() -> String {
    "ecni0".into()
}

fn default_port() -> u16 {
    500
}

fn default_nat_port() -> u16 {
    4500
}

fn default_spare() -> u32 {
    1
}

/// Why the file cannot be used. Never shows the line it speaks of: it may hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{path}: cannot be read: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not TOML, or has a key or value that is not known.
    #[error("{path}, line {line}, column {column}: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What was expected and what came.
        problem: String,
    },
    /// Each value is well-formed, but together they make no sense.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Where, what was expected, what to do.
        problem: String,
    },
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read_error = |error| ConfigError::Read { path: path.to_owned(), error };
        let text = Zeroizing::new(fs::read_to_string(path).map_err(read_error)?);
        let mode = fs::metadata(path).map_err(read_error)?.permissions().mode();
        let mut config = Self::parse(&text, path)?;
        config.folder = path.parent().unwrap_or(Path::new("")).to_owned();
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

    /// Reads and checks a text; `path` is for errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            // The error's own Display would print the line, and with it perhaps a key.
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

    /// A path of the file: relative ones start at the file's folder.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// This node's name: as configured, else the host name.
    pub fn node_name(&self) -> Result<NodeName, edge_types::NameError> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => {
                fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_ascii_lowercase().parse()
            }
        }
    }

    /// The socket on which `status` and others ask the running agent.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }

    /// The socket on which the CNI plugin applies for segments.
    pub fn plugin_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    fn content(&self, path: &Path, problem: String) -> ConfigError {
        ConfigError::Content { path: path.to_owned(), problem }
    }

    fn check(&self) -> Result<(), String> {
        if let Some(pattern) = self.cni.unfiltered_pods.iter().find(|pattern| !pods::is_pattern(pattern)) {
            return Err(format!("[cni]: unfiltered_pods has {pattern:?}; expected {}", pods::EXPECTED));
        }
        // The plugin refuses more.
        let (count, limit) = (self.firewall.lan_to_pods.len(), pods::MAX_LAN_TO_PODS);
        if count > limit {
            return Err(format!("[firewall]: lan_to_pods has {count} networks; expected at most {limit}, merge some"));
        }
        if self.controller.is_none() && self.peers.is_empty() {
            return Err("neither [controller] nor any [[peer]]: there is nothing to do; add one of them".into());
        }
        if let Some(controller) = &self.controller {
            if controller.urls.is_empty() {
                return Err("[controller]: urls is empty; add \"https://HOST:PORT\"".into());
            }
            if let Some(url) = controller.urls.iter().find(|url| !url.starts_with("https://")) {
                return Err(format!("[controller]: {url:?} is not an https:// URL"));
            }
        }
        if let Some(controller) = &self.controller {
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
        if self.bridge.is_empty() || self.bridge.len() > 15 || self.bridge.contains(['/', ' ']) {
            return Err(format!(
                "bridge {:?} is not an interface name: 1 to 15 characters, no '/' or space",
                self.bridge
            ));
        }
        if self.mtu.is_some_and(|mtu| !(576..=65535).contains(&mtu)) {
            return Err("mtu must lie between 576 and 65535; leave it out to have it found out".into());
        }
        for (at, peer) in self.peers.iter().enumerate() {
            peer.check().map_err(|problem| format!("[[peer]] {:?}: {problem}", peer.name))?;
            if self.peers[..at].iter().any(|other| other.name == peer.name) {
                return Err(format!("two [[peer]] have the name {:?}; names must differ", peer.name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
