//! Starts iked and asks it for its SAs.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

use super::sas::Sas;
use crate::scenario::skip;
use crate::strongswan::charon::Auth;
use crate::topology::{Node, Process};
use crate::{cache, suite, wait};

const CONFIG: &str = "/run/iked.conf";
const SOCKET: &str = "/run/iked.sock";
/// The directory of keys and certificates, which iked's programs do not let a caller choose.
const KEYS: &str = "/etc/iked";

/// The policy `edge` of `iked.conf`.
#[derive(Clone)]
pub struct Policy {
    /// Whether iked initiates.
    pub active: bool,
    /// Address of iked's host.
    pub local: String,
    /// The peer's address, or `any`.
    pub peer: String,
    /// Identity of iked's host.
    pub local_id: String,
    /// The peer's identity.
    pub remote_id: String,
    /// Authentication of iked and the peer.
    pub auth: Auth,
    /// Further words, such as `lifetime 10`, after the identities.
    pub more: String,
}

impl Policy {
    fn iked_conf(&self) -> String {
        let Self { local, peer, local_id, remote_id, more, .. } = self;
        let mode = if self.active { "active" } else { "passive" };
        let auth = match &self.auth {
            Auth::Psk(secret) => format!("psk {secret:?}"),
            // iked takes its own key and certificate by the identity.
            Auth::Certificate(..) => String::new(),
        };
        format!(
            "ikev2 \"edge\" {mode} esp from 10.2.0.0/24 to 10.1.0.0/24 local {local} peer {peer} \
             srcid {local_id} dstid {remote_id} {more} {auth}\n"
        )
    }
}

/// A running iked.
pub struct Iked<'a> {
    node: &'a Node,
    package: PathBuf,
    process: Process,
}

impl<'a> Iked<'a> {
    /// Starts iked on `node` with this policy. An active policy initiates at once.
    ///
    /// # Errors
    /// Returns a [`Skip`](crate::scenario::Skip) if OpenIKED is not on this machine, and an error
    /// if iked does not start.
    pub fn start(node: &'a Node, policy: &Policy) -> Result<Self> {
        let package = package()?;
        own_etc(node)?;
        Self::run(node, package, policy)
    }

    /// Ends iked, and starts it again with this policy.
    ///
    /// # Errors
    /// Returns an error if it does not end or does not start.
    pub fn restart(mut self, policy: &Policy) -> Result<Self> {
        self.process.stop()?;
        Self::run(self.node, self.package, policy)
    }

    fn run(node: &'a Node, package: PathBuf, policy: &Policy) -> Result<Self> {
        install(node, policy)?;
        let mut command = node.command(package.join("usr/sbin/iked"));
        command.args(["-d", "-v", "-f", CONFIG, "-s", SOCKET]);
        let process = node.start("iked", &mut command)?;
        let iked = Self { node, package, process };
        wait::for_event("iked to answer", || iked.sas().map(drop))?;
        Ok(iked)
    }

    /// Ends iked, which deletes its SAs.
    ///
    /// # Errors
    /// Returns an error if it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop().map(drop)
    }

    /// Returns the established SAs.
    ///
    /// # Errors
    /// Returns an error if iked does not answer.
    pub fn sas(&self) -> Result<Sas> {
        let mut command = self.node.command(self.package.join("usr/sbin/ikectl"));
        Sas::parse(&self.node.run(command.args(["-s", SOCKET, "show", "sa"]))?)
    }

    /// Waits until there is exactly one established IKE SA with exactly one CHILD_SA, and returns
    /// them.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
    pub fn wait_up(&self) -> Result<Sas> {
        wait::for_event(&format!("the tunnel of iked on {}", self.node.name()), || {
            let sas = self.sas()?;
            ensure!((sas.ike.len(), sas.spis_in.len(), sas.spis_out.len()) == (1, 1, 1), "it has {sas:x?}");
            Ok(sas)
        })
    }
}

/// Gives the host an `/etc` of its own: iked reads its keys in [`KEYS`], and runs its parts as the
/// user `_iked` in that user's home.
fn own_etc(node: &Node) -> Result<()> {
    node.sh(&format!(
        "mkdir -p /run/etc/upper /run/etc/work /run/iked-home && \
         mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc && \
         echo '_iked:x:990:990::/run/iked-home:/usr/sbin/nologin' >>/etc/passwd && echo '_iked:x:990:' >>/etc/group && \
         mkdir -p {KEYS}/ca {KEYS}/certs {KEYS}/crls {KEYS}/private {KEYS}/pubkeys"
    ))
    .map(drop)
}

/// Writes the policy and the keys where iked reads them.
fn install(node: &Node, policy: &Policy) -> Result<()> {
    node.write(CONFIG, &policy.iked_conf())?;
    let key = format!("{KEYS}/private/local.key");
    match &policy.auth {
        // iked wants a key of its own even if it proves itself by a secret.
        Auth::Psk(_) => {
            node.sh(&format!("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {key}"))?
        }
        Auth::Certificate(credentials, authority) => {
            node.write(&key, &credentials.key_pem)?;
            node.write(&format!("{KEYS}/certs/own.crt"), &credentials.certificate_pem)?;
            node.write(&format!("{KEYS}/ca/ca.crt"), authority)?;
            String::new()
        }
    };
    node.sh(&format!("chmod 600 {CONFIG} {key} && openssl pkey -in {key} -pubout -out {KEYS}/local.pub")).map(drop)
}

/// Returns the directory with the files of OpenIKED's package.
fn package() -> Result<PathBuf> {
    let package = cache::directory("openiked").context("the cache of packages")?;
    if package.join("usr/sbin/iked").is_file() {
        return Ok(package);
    }
    let why = format!("OpenIKED is not in {}; .ci/install unpacks Debian's package there", package.display());
    if suite::is_ci() { bail!(why) } else { skip(&why) }
}
