//! Runs programs and reads the kernel's state in the namespaces of a node or pod.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::clock::LIBRARY;
use super::xfrm;

/// A node's or a pod's namespaces.
#[derive(Debug, Clone)]
pub struct Namespaces {
    name: String,
    holder: u32,
    netns: Option<String>,
    out: PathBuf,
    /// Whether programs get the clock of [`super::clock`].
    own_clock: Arc<AtomicBool>,
}

impl Namespaces {
    pub(super) fn new(name: &str, holder: u32, netns: Option<String>, out: &Path) -> Self {
        Self { name: name.to_owned(), holder, netns, out: out.to_owned(), own_clock: Arc::default() }
    }

    /// Returns the node's name; a pod's is `NODE.POD`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the scenario's directory for logs and captures.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Returns the scenario's path of a file on this node. The file can be read and written without
    /// running a program.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder))
    }

    /// Writes a file on this node, and makes its directory if needed.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let real = self.path(path);
        if let Some(directory) = real.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(&real, text).with_context(|| format!("writing {path} on {}", self.name))
    }

    /// Reads a file on this node.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn read(&self, path: &str) -> Result<String> {
        std::fs::read_to_string(self.path(path)).with_context(|| format!("reading {path} on {}", self.name))
    }

    /// Makes a command that runs in these namespaces. `nsenter` executes the program in its own
    /// process, so the pid is the program's. The program starts in `/`.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let words = self.nsenter();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        if self.own_clock.load(Ordering::Relaxed) {
            // `env` executes the program in its own process. `nsenter` does not need the clock.
            command.arg("env").arg(format!("LD_PRELOAD={LIBRARY}"));
        }
        command.arg(program).stdin(Stdio::null());
        command
    }

    pub(super) fn use_own_clock(&self) {
        self.own_clock.store(true, Ordering::Relaxed);
    }

    /// Returns the command prefix, `nsenter` with its arguments, that makes a command run in these
    /// namespaces.
    #[must_use]
    pub fn nsenter(&self) -> Vec<OsString> {
        let holder = self.holder;
        let netns = self.netns.as_ref().map(|path| format!("=/proc/{holder}/root{path}")).unwrap_or_default();
        let target = format!("--target={holder}");
        ["nsenter", &target, "--mount", "--uts", &format!("--net{netns}"), "--"].map(OsString::from).into()
    }

    /// Runs a command made by [`Self::command`] to its end. Returns its output, with any exit
    /// status.
    ///
    /// # Errors
    /// Returns an error if the command cannot be run.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let started = Instant::now();
        let shown = shown(command);
        let out = command.output().with_context(|| format!("{}: {shown} cannot be run", self.name))?;
        self.note(&shown, &out, started.elapsed());
        Ok(out)
    }

    /// Runs a command made by [`Self::command`]; returns its standard output.
    ///
    /// # Errors
    /// Returns an error if the command does not exit with status 0. The message contains the
    /// output.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let out = self.output(command)?;
        if !out.status.success() {
            bail!(
                "on {}: {} ended with {}: {}{}",
                self.name,
                shown(command),
                out.status,
                String::from_utf8_lossy(&out.stderr),
                String::from_utf8_lossy(&out.stdout)
            );
        }
        // A status of many peers is tens of megabytes, and is not copied.
        Ok(String::from_utf8(out.stdout).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Runs a shell command; returns its standard output.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::run`].
    pub fn sh(&self, script: &str) -> Result<String> {
        self.run(self.command("sh").args(["-c", script]))
    }

    /// Sends one ping. Returns whether it was answered within `timeout`.
    ///
    /// # Errors
    /// Returns an error if ping cannot be run.
    pub fn reaches(&self, to: &str, timeout: Duration) -> Result<bool> {
        let seconds = timeout.as_secs_f32().max(0.1).to_string();
        let out = self.output(self.command("ping").args(["-n", "-q", "-c", "1", "-W", &seconds, to]))?;
        match out.status.code() {
            Some(0) => Ok(true),
            // ping exits with 2 if the kernel refuses to send, which also counts as no answer.
            Some(1 | 2) => Ok(false),
            _ => bail!("on {}: ping {to} {}: {}", self.name, out.status, String::from_utf8_lossy(&out.stderr)),
        }
    }

    /// Returns the kernel's SAs in these namespaces, with their counters.
    ///
    /// # Errors
    /// Returns an error if `ip` cannot be run or its output cannot be parsed.
    pub fn xfrm_states(&self) -> Result<Vec<xfrm::State>> {
        xfrm::State::parse_all(&self.run(self.command("ip").args(["-s", "xfrm", "state", "list", "nokeys"]))?)
    }

    /// Returns the kernel's policies in these namespaces.
    ///
    /// # Errors
    /// Returns an error if `ip` cannot be run or its output cannot be parsed.
    pub fn xfrm_policies(&self) -> Result<Vec<xfrm::Policy>> {
        xfrm::Policy::parse_all(&self.run(self.command("ip").args(["-s", "xfrm", "policy"]))?)
    }

    /// Returns the kernel's counters of packets that IPsec dropped (`/proc/net/xfrm_stat`), by
    /// name.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn xfrm_stat(&self) -> Result<std::collections::BTreeMap<String, u64>> {
        let text = self.run(self.command("cat").arg("/proc/net/xfrm_stat"))?;
        xfrm::parse_stat(&text)
    }

    /// Returns the kernel's state in these namespaces, for the directory of a failed scenario:
    /// addresses, routes, SAs, policies, rules, sockets.
    #[must_use]
    pub fn kernel_dump(&self) -> String {
        const SHOW: &str = "for c in 'ip -s address' 'ip neigh' 'ip -4 route show table all' 'ip -6 route show table all' 'ip rule' \
             'ip -s xfrm state list nokeys' 'ip -s xfrm policy' 'cat /proc/net/xfrm_stat' 'nft list ruleset' 'ss -anp'; do \
             echo \"== $c\"; $c 2>&1; done";
        match self.command("sh").args(["-c", SHOW]).output() {
            Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
            Err(error) => format!("cannot be shown: {error}"),
        }
    }

    fn note(&self, shown: &str, out: &Output, took: Duration) {
        let said = String::from_utf8_lossy(&out.stderr);
        let line = format!("{}: {shown} -> {} in {took:.3?} {said}\n", self.name, out.status);
        if let Ok(mut file) = File::options().create(true).append(true).open(self.out.join("commands.log")) {
            file.write_all(line.as_bytes()).ok();
        }
    }
}

/// Returns a command without the prefix that enters the namespaces, for messages.
fn shown(command: &Command) -> String {
    command
        .get_args()
        .map(|arg| arg.to_string_lossy())
        .skip_while(|arg| arg != "--")
        .skip(1)
        .collect::<Vec<_>>()
        .join(" ")
}
