//! The process that keeps a node's namespaces alive and sets them up from inside.
//!
//! `unshare` starts the process, which then writes `ready`. When the node's interfaces exist, the
//! process reads a line of JSON, sets the node up accordingly, and answers `ok` or the error. Then
//! it waits until its standard input is closed.

use std::ffi::CStr;
use std::fs;
use std::io::{BufRead as _, Write as _};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags};
use serde::{Deserialize, Serialize};

/// The set-up of a node's namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// The node's name, which becomes its host name.
    pub(super) name: String,
    /// Directories that are replaced with empty ones.
    pub(super) private: Vec<String>,
    /// Whether packets are forwarded.
    pub(super) forwards: bool,
    /// Lines for `ip -batch`.
    pub(super) ip: String,
    /// Lines for `tc -batch`.
    pub(super) tc: String,
    /// A script for `nft -f`.
    pub(super) nft: String,
}

/// Runs as the process that keeps a node's namespaces alive.
///
/// # Errors
/// Returns an error if standard input or output is closed.
pub fn main() -> Result<ExitCode> {
    let mut stdout = std::io::stdout();
    let mut stdin = std::io::stdin().lock();
    let mut line = String::new();
    // This setting comes before the interfaces are made, since each interface copies the defaults
    // when it is made.
    defaults()?;
    writeln!(stdout, "ready")?;
    while stdin.read_line(&mut line)? > 0 {
        let answer = match serde_json::from_str(&line).map_err(Into::into).and_then(set_up) {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("{error:#}").replace('\n', " | "),
        };
        writeln!(stdout, "{answer}")?;
        line.clear();
    }
    Ok(ExitCode::SUCCESS)
}

fn set_up(setup: Setup) -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::system::sethostname(setup.name.as_bytes())?;
    for directory in &setup.private {
        fs::create_dir_all(directory).with_context(|| format!("making {directory}"))?;
        mount("tmpfs", directory, c"mode=0755")?;
    }
    fs::create_dir_all("/run/netns")?;
    fs::create_dir_all("/run/lock")?;
    // sysfs shows the network namespace of the process that mounts it.
    mount("sysfs", "/sys", c"")?;
    let forwards = if setup.forwards { "1" } else { "0" };
    sysctl("ipv4/ip_forward", forwards)?;
    sysctl("ipv6/conf/all/forwarding", forwards)?;
    feed("ip", &["-force", "-batch", "-"], &setup.ip)?;
    feed("tc", &["-batch", "-"], &setup.tc)?;
    feed("nft", &["-f", "-"], &setup.nft)
}

fn defaults() -> Result<()> {
    for scope in ["all", "default"] {
        // There are no other machines on these wires. So duplicate address detection and router
        // solicitations would only take time.
        sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/router_solicitations"), "0")?;
        sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    Ok(())
}

fn sysctl(key: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/net/{key}"), value).with_context(|| format!("sysctl {key}"))
}

fn mount(kind: &str, at: &str, options: &CStr) -> Result<()> {
    rustix::mount::mount(kind, at, kind, MountFlags::empty(), options)
        .with_context(|| format!("mounting {kind} on {at}"))
}

/// Runs a program that reads commands from standard input.
pub(super) fn feed(program: &str, args: &[&str], text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} cannot be run"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let out = child.wait_with_output()?;
    if !out.status.success() {
        bail!("{program} {}: {}\n{text}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}
