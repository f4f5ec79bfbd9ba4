//! Runs strongSwan's IKE daemon on a host of the lab and controls it with `swanctl`, as an operator
//! does.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;

use super::sas::{ChildSa, IkeSa, parse};
use super::{Authority, Credentials};
use crate::topology::{Node, Process};
use crate::wait;

const URI: &str = "unix:///run/charon.vici";

/// Logs what IKE and the kernel interface do.
const LOG: &str = "default = 1
      ike = 2
      knl = 2
      time_format = %H:%M:%S";

/// Logs keys, shared secrets and received messages.
const LOG_WITH_KEYS: &str = "default = 1
      ike = 4
      chd = 4
      net = 3";

/// Logs no success.
const QUIET_LOG: &str = "default = 0
      time_format = %H:%M:%S";

/// Settings for thousands of peers: a large table of IKE SAs, no cookies, and no limit of half-open
/// IKE SAs.
const MANY_PEERS: &str = "dos_protection = no
  ikesa_table_size = 4096
  ikesa_table_segments = 16";

/// Returns a `strongswan.conf` with these settings and this log. It lists the plugins to load: with
/// all plugins of Debian's packages charon crashes in a worker thread on the lab kernel.
fn strongswan_conf(settings: &str, log: &str) -> String {
    format!(
        "\
charon-systemd {{
  load = random nonce openssl pem x509 constraints pubkey pkcs1 pkcs8 sha1 sha2 hmac kdf aes gcm curve25519 chapoly \
kernel-netlink socket-default vici updown
  {settings}
  filelog {{
    stderr {{
      {log}
    }}
  }}
}}
"
    )
}

/// A running charon.
pub struct Charon<'a> {
    node: &'a Node,
    process: Process,
    loaded: String,
}

/// Authentication of charon and its peer.
#[derive(Clone)]
pub enum Auth {
    /// A pre-shared key.
    Psk(String),
    /// Certificates from one authority: charon's credentials and the authority's certificate.
    Certificate(Credentials, String),
}

impl Auth {
    /// Makes the variant with certificates from `authority`.
    #[must_use]
    pub fn certificate(credentials: Credentials, authority: &Authority) -> Self {
        Self::Certificate(credentials, authority.certificate_pem.clone())
    }
}

/// One connection of `swanctl.conf`, with one child called `net`.
#[derive(Clone)]
pub struct Connection {
    /// The connection's section name in `swanctl.conf`.
    pub name: String,
    /// Address of the node that runs charon; `%any` for any.
    pub local: String,
    /// The peer's address; `%any` for any.
    pub remote: String,
    /// Identity of the node that runs charon. If empty, charon uses its certificate's subject.
    pub local_id: String,
    /// The peer's identity.
    pub remote_id: String,
    /// Authentication of charon and the peer.
    pub auth: Auth,
    /// Networks behind charon, separated by commas.
    pub local_ts: String,
    /// Networks behind the peer, separated by commas.
    pub remote_ts: String,
    /// IKE proposals, in swanctl's form.
    pub ike: String,
    /// ESP proposals, in swanctl's form.
    pub esp: String,
    /// More lines for the connection, such as `fragmentation = force`.
    pub more: String,
    /// More lines for the child, such as `start_action = trap`.
    pub more_of_child: String,
}

impl Connection {
    /// Makes a connection between two addresses with AES-256-GCM and X25519.
    #[must_use]
    pub fn new(name: &str, auth: Auth) -> Self {
        Self {
            name: name.to_owned(),
            local: "%any".to_owned(),
            remote: "%any".to_owned(),
            local_id: String::new(),
            remote_id: String::new(),
            auth,
            local_ts: String::new(),
            remote_ts: String::new(),
            ike: "aes256gcm16-prfsha256-x25519".to_owned(),
            esp: "aes256gcm16".to_owned(),
            more: String::new(),
            more_of_child: String::new(),
        }
    }

    /// Sets charon's address, identity and networks.
    #[must_use]
    pub fn local(mut self, address: &str, id: &str, networks: &str) -> Self {
        (self.local, self.local_id, self.local_ts) = (address.to_owned(), id.to_owned(), networks.to_owned());
        self
    }

    /// Sets the peer's address, identity and networks.
    #[must_use]
    pub fn remote(mut self, address: &str, id: &str, networks: &str) -> Self {
        (self.remote, self.remote_id, self.remote_ts) = (address.to_owned(), id.to_owned(), networks.to_owned());
        self
    }

    /// Sets the proposals.
    #[must_use]
    pub fn proposals(mut self, ike: &str, esp: &str) -> Self {
        (self.ike, self.esp) = (ike.to_owned(), esp.to_owned());
        self
    }

    fn swanctl_conf(&self) -> Result<String> {
        let (auth, certs) = match self.auth {
            Auth::Psk(_) => ("psk", String::new()),
            Auth::Certificate(..) => ("pubkey", format!("certs = {}.pem", self.name)),
        };
        let local_id = match self.local_id.as_str() {
            "" => String::new(),
            id => format!("id = \"{id}\""),
        };
        let mut text = String::new();
        writeln!(
            text,
            "connections {{
  {name} {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = {ike}
    {more}
    local {{
      auth = {auth}
      {local_id}
      {certs}
    }}
    remote {{
      auth = {auth}
      id = \"{remote_id}\"
    }}
    children {{
      net {{
        local_ts = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = {esp}
        rekey_time = 0
        {more_of_child}
      }}
    }}
  }}
}}",
            name = self.name,
            local = self.local,
            remote = self.remote,
            ike = self.ike,
            more = self.more,
            more_of_child = self.more_of_child,
            remote_id = self.remote_id,
            local_ts = self.local_ts,
            remote_ts = self.remote_ts,
            esp = self.esp,
        )?;
        if let Auth::Psk(secret) = &self.auth {
            // The secret is written in hexadecimal, so that no byte of it has a special meaning.
            let hex = HEXLOWER.encode(secret.as_bytes());
            writeln!(
                text,
                "secrets {{
  ike-{} {{
    id-local = {}
    id-remote = {}
    secret = 0x{hex}
  }}
}}",
                self.name, self.local_id, self.remote_id
            )?;
        }
        Ok(text)
    }
}

impl<'a> Charon<'a> {
    /// Starts charon on `node` and loads the connection.
    ///
    /// # Errors
    /// Returns an error if charon does not start or refuses the configuration.
    pub fn start(node: &'a Node, connection: &Connection) -> Result<Self> {
        Self::start_with(node, &strongswan_conf("", LOG), connection)
    }

    /// Starts charon as [`Self::start`] does, with settings for thousands of peers and a quiet log.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::start`].
    pub fn start_for_many(node: &'a Node, connection: &Connection) -> Result<Self> {
        Self::start_with(node, &strongswan_conf(MANY_PEERS, QUIET_LOG), connection)
    }

    /// Starts charon as [`Self::start`] does. The SPIs of its inbound SAs are in this range.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::start`].
    pub fn start_with_spis(node: &'a Node, first: u32, last: u32, connection: &Connection) -> Result<Self> {
        let range = format!("spi_min = {first:#x}\n  spi_max = {last:#x}");
        Self::start_with(node, &strongswan_conf(&range, LOG), connection)
    }

    /// Starts charon as [`Self::start`] does. Its log has all keys, and the messages that it
    /// receives.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::start`].
    pub fn start_with_key_log(node: &'a Node, connection: &Connection) -> Result<Self> {
        Self::start_with(node, &strongswan_conf("", LOG_WITH_KEYS), connection)
    }

    /// Starts charon as [`Self::start`] does. When it authenticates again, it sets up the new IKE
    /// SA before it deletes the old one.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::start`].
    pub fn start_make_before_break(node: &'a Node, connection: &Connection) -> Result<Self> {
        Self::start_with(node, &strongswan_conf("make_before_break = yes", LOG), connection)
    }

    fn start_with(node: &'a Node, settings: &str, connection: &Connection) -> Result<Self> {
        let mut charon = Self::spawn(node, settings)?;
        charon.load(connection)?;
        Ok(charon)
    }

    fn spawn(node: &'a Node, settings: &str) -> Result<Self> {
        node.write("/etc/swanctl/strongswan.conf", settings)?;
        let process = node
            .start("charon", node.command("charon-systemd").env("STRONGSWAN_CONF", "/etc/swanctl/strongswan.conf"))?;
        let mut charon = Self { node, process, loaded: String::new() };
        let mut ended = None;
        wait::for_event(&format!("charon on {} to answer", node.name()), || {
            ended = charon.process.exit_status()?;
            if ended.is_some() {
                return Ok(());
            }
            charon.swanctl(&["--stats"]).map(drop)
        })?;
        if let Some(status) = ended {
            bail!("charon on {} ended ({status}):\n{}", node.name(), charon.process.log());
        }
        Ok(charon)
    }

    /// Starts charon on `node` with this `swanctl.conf`, which has one connection of this name. Its
    /// certificates and keys must exist already.
    ///
    /// # Errors
    /// Returns an error if charon does not start or refuses the configuration.
    pub fn start_with_file(node: &'a Node, name: &str, swanctl_conf: &str) -> Result<Self> {
        let mut charon = Self::spawn(node, &strongswan_conf("", LOG))?;
        charon.load_file(name, swanctl_conf)?;
        Ok(charon)
    }

    /// Replaces the connection. Established SAs stay.
    ///
    /// # Errors
    /// Returns an error if charon refuses the connection.
    pub fn load(&mut self, connection: &Connection) -> Result<()> {
        let node = self.node;
        if let Auth::Certificate(credentials, authority) = &connection.auth {
            let name = &connection.name;
            node.write(&format!("/etc/swanctl/x509/{name}.pem"), &credentials.certificate_pem)?;
            node.write(&format!("/etc/swanctl/private/{name}.pem"), &credentials.key_pem)?;
            node.write(&format!("/etc/swanctl/x509ca/{name}-ca.pem"), authority)?;
        }
        self.load_file(&connection.name, &connection.swanctl_conf()?)
    }

    /// Does the same as [`Self::load`], with the text of the file. Where only the children differ,
    /// the IKE SAs have the new ones.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::load`].
    pub fn load_file(&mut self, name: &str, swanctl_conf: &str) -> Result<()> {
        let node = self.node;
        node.write("/etc/swanctl/swanctl.conf", swanctl_conf)?;
        let said = self.swanctl(&["--load-all", "--noprompt"])?;
        anyhow::ensure!(
            said.contains("successfully loaded 1 connections"),
            "charon on {} did not take its connection:\n{said}",
            node.name()
        );
        self.loaded = name.to_owned();
        Ok(())
    }

    /// Initiates the child and waits until it is up.
    ///
    /// # Errors
    /// Returns an error if the child is refused or does not come up. The message contains charon's
    /// output.
    pub fn initiate(&self) -> Result<()> {
        self.initiate_child("net")
    }

    /// Initiates one of several children and waits until it is up.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::initiate`].
    pub fn initiate_child(&self, child: &str) -> Result<()> {
        self.swanctl(&["--initiate", "--child", child, "--timeout", "20"]).map(drop)
    }

    /// Makes charon rekey one of several children, and waits until a new one is installed and the
    /// others are unchanged.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
    pub fn rekey_one_child(&self, child: &str) -> Result<()> {
        let spis = |name: bool| -> Result<Vec<u32>> {
            let mut of: Vec<u32> =
                self.installed()?.iter().filter(|sa| (sa.name == child) == name).map(|sa| sa.spi_in).collect();
            of.sort_unstable();
            Ok(of)
        };
        let (old, others) = (spis(true)?, spis(false)?);
        self.swanctl(&["--rekey", "--child", child])?;
        wait::for_event(&format!("charon's new CHILD_SA {child}"), || {
            let now = spis(true)?;
            anyhow::ensure!(now.len() == 1 && now != old && spis(false)? == others, "it has {now:x?}, had {old:x?}");
            Ok(())
        })
    }

    /// Makes charon rekey the child, and waits until a new one is installed.
    ///
    /// # Errors
    /// Returns an error if no new CHILD_SA is installed in time.
    pub fn rekey_child(&self) -> Result<()> {
        let before: Vec<_> = self.installed()?.iter().map(|child| child.spi_in).collect();
        self.ask_to_rekey_child()?;
        wait::for_event("charon's new CHILD_SA", || {
            let now = self.installed()?;
            anyhow::ensure!(
                now.len() == 1 && now.iter().all(|child| !before.contains(&child.spi_in)),
                "it has {now:?}, had {before:x?}"
            );
            Ok(())
        })
    }

    /// Asks charon to rekey the child, and does not wait for the rekey.
    ///
    /// # Errors
    /// Returns an error if there is no such CHILD_SA.
    pub fn ask_to_rekey_child(&self) -> Result<()> {
        self.ask_to_rekey("net")
    }

    /// Asks charon to rekey one of several children, and does not wait for the rekey.
    ///
    /// # Errors
    /// Returns an error if there is no such CHILD_SA.
    pub fn ask_to_rekey(&self, child: &str) -> Result<()> {
        self.swanctl(&["--rekey", "--child", child]).map(drop)
    }

    /// Makes charon rekey the IKE SA, and waits until the new one has replaced the old one and has
    /// its CHILD_SA.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
    pub fn rekey_ike(&self) -> Result<()> {
        let before: Vec<_> = self.sas()?.into_iter().map(|sa| sa.spis).collect();
        self.swanctl(&["--rekey", "--ike", &self.loaded])?;
        wait::for_event("charon's new IKE SA", || {
            let now = self.sas()?;
            anyhow::ensure!(
                now.len() == 1 && now.iter().all(|sa| sa.state == "ESTABLISHED" && !before.contains(&sa.spis)),
                "it has {now:?}, had {before:?}"
            );
            Ok(())
        })
    }

    /// Makes charon authenticate again: it begins another IKE SA, which replaces the present one.
    ///
    /// # Errors
    /// Returns an error if there is no such SA.
    pub fn reauthenticate(&self) -> Result<()> {
        self.swanctl(&["--rekey", "--ike", &self.loaded, "--reauth"]).map(drop)
    }

    /// Ends the connection's IKE SA.
    ///
    /// # Errors
    /// Returns an error if there is no such SA.
    pub fn terminate(&self) -> Result<()> {
        self.swanctl(&["--terminate", "--ike", &self.loaded, "--timeout", "10"]).map(drop)
    }

    /// Removes the connection's IKE SA, and waits for no answer of the peer.
    ///
    /// # Errors
    /// Returns an error if there is no such SA.
    pub fn forget(&self) -> Result<()> {
        self.swanctl(&["--terminate", "--ike", &self.loaded, "--force"]).map(drop)
    }

    /// Deletes the CHILD_SA; the IKE SA stays.
    ///
    /// # Errors
    /// Returns an error if there is no such SA.
    pub fn terminate_child(&self) -> Result<()> {
        self.swanctl(&["--terminate", "--child", "net", "--timeout", "10"]).map(drop)
    }

    /// Returns all IKE SAs.
    ///
    /// # Errors
    /// Returns an error if charon does not answer.
    pub fn sas(&self) -> Result<Vec<IkeSa>> {
        parse(&self.swanctl(&["--list-sas", "--pretty"])?)
    }

    /// Returns all CHILD_SAs that carry traffic.
    ///
    /// # Errors
    /// Returns an error if charon does not answer.
    pub fn installed(&self) -> Result<Vec<ChildSa>> {
        let sas = self.sas()?;
        Ok(sas.into_iter().flat_map(|sa| sa.children).filter(|child| child.state == "INSTALLED").collect())
    }

    /// Waits until there is exactly one established IKE SA with exactly one installed CHILD_SA, and
    /// returns the CHILD_SA.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
    pub fn wait_up(&self) -> Result<ChildSa> {
        wait::for_event(&format!("the tunnel of charon on {}", self.node.name()), || {
            let sas = self.sas()?;
            let established = sas.iter().filter(|sa| sa.state == "ESTABLISHED").count();
            let mut children: Vec<_> =
                sas.iter().flat_map(|sa| &sa.children).filter(|child| child.state == "INSTALLED").cloned().collect();
            anyhow::ensure!(established == 1 && children.len() == 1, "it has {sas:?}");
            children.pop().context("just counted")
        })
    }

    /// Returns charon's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn swanctl(&self, args: &[&str]) -> Result<String> {
        self.node.run(self.node.command("swanctl").args(args).args(["--uri", URI]))
    }
}
