//! Starts pluto and controls it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::HEXLOWER;

use super::nss;
use super::states::{ChildSa, States};
use crate::scenario::skip;
use crate::strongswan::charon::Auth;
use crate::topology::{Node, Process};
use crate::{cache, suite, wait};

/// The directory of everything that pluto reads and writes. `/run` belongs to the node alone.
const DIRECTORY: &str = "/run/pluto";
const CONFIG: &str = "/run/pluto/ipsec.conf";
const SECRETS: &str = "/run/pluto/ipsec.secrets";
const NSS: &str = "/run/pluto/nss";
const SOCKET: &str = "/run/pluto/pluto.ctl";

/// The directory of libreswan's programs, in the package's own place.
const LIBEXEC: &str = "/usr/libexec";

/// Time limit of one command, in seconds. whack waits for as long as pluto retries.
const COMMAND_TIMEOUT: &str = "25";

/// The connection `edge` of `ipsec.conf`. pluto is on the left.
#[derive(Clone)]
pub struct Conn {
    /// Address of pluto's host, or `%defaultroute`.
    pub left: String,
    /// The peer's address, or `%any`.
    pub right: String,
    /// Identity of pluto's host. With certificates `%fromcert` is its subject.
    pub left_id: String,
    /// The peer's identity.
    pub right_id: String,
    /// Authentication of pluto and the peer.
    pub auth: Auth,
    /// More lines, such as `leftsubnet=10.2.0.0/24`.
    pub more: Vec<String>,
}

impl Conn {
    const NAME: &str = "edge";

    fn ipsec_conf(&self) -> Result<String> {
        let Self { left, right, left_id, right_id, .. } = self;
        let mut text = String::new();
        // Without an updown script pluto makes no routes, and the hosts' own routes lead the
        // packets to the policies.
        writeln!(
            text,
            "config setup\n    dnssec-enable=no\n\nconn {}\n    left={left}\n    leftid=\"{left_id}\"\n    right={right}\n    \
             rightid=\"{right_id}\"\n    leftupdown=%disabled\n    auto=add",
            Self::NAME
        )?;
        match self.auth {
            Auth::Psk(_) => writeln!(text, "    authby=secret")?,
            Auth::Certificate(..) => writeln!(
                text,
                "    leftcert={}\n    leftsendcert=always\n    rightca=%same\n    rightrsasigkey=%cert",
                nss::NICKNAME
            )?,
        }
        for line in &self.more {
            writeln!(text, "    {line}")?;
        }
        Ok(text)
    }
}

/// A running pluto.
pub struct Pluto<'a> {
    node: &'a Node,
    process: Process,
}

impl<'a> Pluto<'a> {
    /// Starts pluto on `node` and loads the connection.
    ///
    /// # Errors
    /// Returns a [`Skip`](crate::scenario::Skip) if libreswan is not on this machine, and an error
    /// if pluto does not start or refuses the connection.
    pub fn start(node: &'a Node, conn: &Conn) -> Result<Self> {
        let package = package()?;
        nss::make_database(node, NSS)?;
        install(node, conn)?;
        // pluto starts addconn by its path in Debian's package, and ends if it is not there. The
        // path is relative, because a colon in it would separate two directories.
        let overlay = format!("mount -t overlay -o ro,lowerdir=libexec:{LIBEXEC} libreswan {LIBEXEC}");
        node.run(node.command("env").arg("-C").arg(package.join("usr")).args(["sh", "-c", &overlay]))?;
        let mut command = node.command(format!("{LIBEXEC}/ipsec/pluto"));
        command.args(["--config", CONFIG, "--nofork", "--stderrlog", "--rundir", DIRECTORY, "--nssdir", NSS]);
        // In User-Mode Linux, threads cost more than they save.
        command.args(["--secretsfile", SECRETS, "--nhelpers", "0"]);
        let process = node.start("pluto", &mut command)?;
        let mut pluto = Self { node, process };
        // addconn loads the connection; then it makes pluto open its sockets and read the secrets.
        pluto.process.wait_log("loading secrets from")?;
        pluto.expect_loaded()?;
        Ok(pluto)
    }

    /// Replaces the connection, and deletes its SAs.
    ///
    /// # Errors
    /// Returns an error if pluto refuses the connection.
    pub fn load(&self, conn: &Conn) -> Result<()> {
        install(self.node, conn)?;
        self.whack(&["--rereadsecrets"])?;
        self.node.run(self.command("addconn").args(["--config", CONFIG, "--ctlsocket", SOCKET, Conn::NAME]))?;
        self.expect_loaded()
    }

    /// Changes the pre-shared key. SAs stay.
    ///
    /// # Errors
    /// Returns an error if pluto does not answer.
    pub fn change_secret(&self, secret: &str) -> Result<()> {
        write_secret(self.node, secret)?;
        self.whack(&["--rereadsecrets"]).map(drop)
    }

    fn expect_loaded(&self) -> Result<()> {
        let status = self.whack(&["--status"])?;
        let line = format!("\"{}", Conn::NAME);
        ensure!(
            status.contains(&line),
            "pluto on {} did not take its connection:\n{}",
            self.node.name(),
            self.process.log()
        );
        Ok(())
    }

    /// Initiates the connection, each pair of its subnets, and waits until it is up.
    ///
    /// # Errors
    /// Returns an error if it does not come up. The message contains whack's output.
    pub fn initiate(&self) -> Result<()> {
        self.whack(&["--initiate", "--name", Conn::NAME]).map(drop)
    }

    /// Initiates the connection, and does not wait until it is up.
    ///
    /// # Errors
    /// Returns an error if pluto does not answer.
    pub fn begin(&self) -> Result<()> {
        self.whack(&["--initiate", "--asynchronous", "--name", Conn::NAME]).map(drop)
    }

    /// Installs policies by which the first packet initiates the connection (`auto=ondemand`).
    ///
    /// # Errors
    /// Returns an error if pluto refuses it.
    pub fn wait_for_packet(&self) -> Result<()> {
        self.whack(&["--route", "--name", Conn::NAME]).map(drop)
    }

    /// Ends the connection's IKE SA.
    ///
    /// # Errors
    /// Returns an error if pluto does not answer.
    pub fn terminate(&self) -> Result<()> {
        self.whack(&["--terminate", "--name", Conn::NAME]).map(drop)
    }

    /// Deletes one CHILD_SA; the IKE SA stays.
    ///
    /// # Errors
    /// Returns an error if there is not exactly one CHILD_SA.
    pub fn terminate_child(&self) -> Result<()> {
        let child = self.only_child()?;
        self.whack(&["--deletestate", &child.serial.to_string()]).map(drop)
    }

    /// Makes pluto rekey the CHILD_SA, and waits until only the new one is left.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
    pub fn rekey_child(&self) -> Result<()> {
        let old = self.only_child()?;
        self.ask_to_rekey_child()?;
        wait::for_event("pluto's new CHILD_SA", || {
            let now = self.only_child()?;
            ensure!(now.spi_in != old.spi_in, "it still has {old:x?}");
            Ok(())
        })
    }

    /// Asks pluto to rekey the CHILD_SA, and does not wait until it has done so. Returns whack's
    /// output.
    ///
    /// # Errors
    /// Returns an error if pluto does not answer.
    pub fn ask_to_rekey_child(&self) -> Result<String> {
        self.whack(&["--rekey-ipsec", "--name", Conn::NAME])
    }

    /// Makes pluto rekey the IKE SA, and waits until only the new one is left.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
    pub fn rekey_ike(&self) -> Result<()> {
        let old = self.states()?.ike;
        self.whack(&["--rekey-ike", "--name", Conn::NAME])?;
        wait::for_event("pluto's new IKE SA", || {
            let now = self.states()?.ike;
            ensure!(now.len() == 1 && now != old, "it has {now:?}, had {old:?}");
            Ok(())
        })
    }

    /// Waits until there is exactly one established IKE SA with exactly one CHILD_SA, and returns
    /// the CHILD_SA.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
    pub fn wait_up(&self) -> Result<ChildSa> {
        wait::for_event(&format!("the tunnel of pluto on {}", self.node.name()), || {
            let ike = self.states()?.ike;
            ensure!(ike.len() == 1, "it has the IKE SAs {ike:?}");
            self.only_child()
        })
    }

    /// Returns all established CHILD_SAs.
    ///
    /// # Errors
    /// Returns an error if pluto does not answer.
    pub fn children(&self) -> Result<Vec<ChildSa>> {
        Ok(self.states()?.children)
    }

    /// Returns whether it has no established SA.
    ///
    /// # Errors
    /// Returns an error if pluto does not answer.
    pub fn is_idle(&self) -> Result<bool> {
        Ok(self.states()? == States::default())
    }

    fn only_child(&self) -> Result<ChildSa> {
        let mut children = self.children()?;
        ensure!(children.len() == 1, "pluto has the CHILD_SAs {children:x?}");
        children.pop().context("just counted")
    }

    fn states(&self) -> Result<States> {
        States::parse(&self.whack(&["--showstates"])?)
    }

    fn whack(&self, args: &[&str]) -> Result<String> {
        self.node.run(self.command("whack").args(["--ctlsocket", SOCKET]).args(args))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.node.command("timeout");
        command.args([COMMAND_TIMEOUT, &format!("{LIBEXEC}/ipsec/{program}")]);
        command
    }
}

/// Writes the connection, its secret and its certificates where pluto reads them.
fn install(node: &Node, conn: &Conn) -> Result<()> {
    match &conn.auth {
        Auth::Psk(secret) => write_secret(node, secret)?,
        Auth::Certificate(credentials, authority) => {
            node.write(SECRETS, "")?;
            nss::import(node, NSS, credentials, authority)?;
        }
    }
    node.write(CONFIG, &conn.ipsec_conf()?)
}

/// Writes the secret in hexadecimal, so that no byte of it has a special meaning.
fn write_secret(node: &Node, secret: &str) -> Result<()> {
    node.write(SECRETS, &format!(": PSK 0x{}\n", HEXLOWER.encode(secret.as_bytes())))
}

/// Returns the directory with the files of libreswan's package.
fn package() -> Result<PathBuf> {
    let package = cache::directory("libreswan")?;
    if package.join("usr/libexec/ipsec/pluto").is_file() {
        return Ok(package);
    }
    let why = format!("libreswan is not in {}; .ci/install unpacks Debian's package there", package.display());
    if suite::is_ci() { bail!(why) } else { skip(&why) }
}
