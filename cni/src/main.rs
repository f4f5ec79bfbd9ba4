//! `edge-cni`, the CNI plugin of edge-cni. It sets up the bridge, the veth pairs and the addresses
//! of a node's pods.
//!
//! Each invocation is one synchronous process. The runtime passes the request in environment
//! variables ([`request`], [`requested_addresses`]) and the network's configuration on standard
//! input ([`config`]), and reads a result ([`result`], [`resolv_conf`]) or an error ([`error`])
//! from standard output.
//!
//! - [`add`], [`del`], [`check`], [`gc`], [`status`], [`up`], [`ingress`] and [`reclaim`] carry out
//!   the verbs, one file for each. [`inspect`] contains the commands for operators.
//! - [`config_file`] reads the configuration from a file, for verbs that runtimes do not call.
//! - [`node_setup`] sets up a node before its first pod. [`forward_filter`] controls which packets
//!   the node forwards while the agent's firewall does not exist.
//! - [`ipam`] leases addresses from the node's segments ([`segment`]). [`route_selection`] chooses
//!   a pod's routes.
//! - [`net`] changes links, addresses and routes.
//! - [`bridge_filter`] manages the bridge's filter, and [`pod_filter`] the pods' elements in it.
//!   [`nftables`] builds the messages for the tables of the bridge's filter and of the forwarding
//!   rules.
//! - [`cluster_ranges`] refuses ranges that would cut this host off, and [`obstacles`] finds host
//!   settings that break the pods' network.
//! - [`proc_file`] reads and sets short files below `/proc`.
//! - [`agent_client`] sends the plugin's requests to the agent, such as the request for another
//!   segment.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::request::{Command, RuntimeRequest};
use crate::version::Version;

mod add;
mod agent_client;
mod bridge_filter;
mod check;
mod cluster_ranges;
mod config;
mod config_file;
mod del;
mod error;
mod forward_filter;
mod gc;
mod ingress;
mod inspect;
mod ipam;
mod mac;
mod net;
mod nftables;
mod node_setup;
mod obstacles;
mod pod_filter;
mod pod_route;
mod proc_file;
mod reclaim;
mod request;
mod requested_addresses;
mod reserved;
mod resolv_conf;
mod result;
mod route_selection;
mod segment;
mod sort;
mod status;
mod up;
mod version;

/// musl's allocator maps and unmaps pages for each size of block, which takes a fifth of the time
/// to answer VERSION. This one takes 64 KiB at a time.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Maximum size of a configuration, in bytes. Real configurations have a few kilobytes.
const MAX_INPUT: usize = 1 << 20;

/// Room for a configuration at first, in bytes. It grows up to [`MAX_INPUT`].
const INPUT_ROOM: usize = 2048;

const HELP: &str = "\
edge-cni: the CNI plugin of edge-cni. Container runtimes run it; see docs/cni.md.

usage: CNI_COMMAND=ADD|DEL|CHECK CNI_CONTAINERID=.. CNI_NETNS=.. CNI_IFNAME=.. edge-cni < CONFIGURATION
       CNI_COMMAND=GC|STATUS|VERSION edge-cni < CONFIGURATION
       edge-cni up [FILE]   make bridge and guard without a pod, as FILE says
                            (default /etc/cni/net.d/10-edge-cni.conflist)
       edge-cni ingress [FILE]
                            keep hosts outside from attached pods, as FILE says,
                            also while the agent's table does
       edge-cni reclaim [--grace SECONDS] [FILE]
                            end the leases of pods that are gone without a DEL for
                            that time (default 120)
       edge-cni leases [--json] [FILE]
                            list the pods' leases
       edge-cni segments [--json] [FILE]
                            list the node's segments with their free addresses
       edge-cni check [--json] [FILE]
                            say what the node lacks to attach pods, each with what helps;
                            exit status 1 if no pod can be attached
       edge-cni --version   print version and supported CNI versions
       edge-cni --help      print this

A configuration that is enough to try:
  {\"cniVersion\":\"1.0.0\",\"name\":\"pods\",\"type\":\"edge-cni\",\"segments\":[\"10.77.0.0/24\"]}

exit status: 0 done; 1 failed, with the error as JSON on standard output.
";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut version = Version::CURRENT;
    let outcome = match arguments.first() {
        Some(argument) => run_argument(argument, arguments.get(1..).unwrap_or_default()),
        None => run_command(&mut version).map(|text| (text, true)),
    };
    let (text, code) = match outcome {
        Ok((text, good)) => (text, ExitCode::from(u8::from(!good))),
        Err(error) => {
            let body = json!({
                "cniVersion": version.as_str(),
                "code": error.code as u32,
                "msg": error.message,
                "details": error.details,
            });
            (format!("{body}\n"), ExitCode::FAILURE)
        }
    };
    // If this write fails, there is no other way to report anything.
    let _ = write_output(text.as_bytes());
    code
}

/// Runs the commands for operators and for the agent. Returns the text to print, and whether the
/// exit status is 0.
fn run_argument(argument: &OsString, rest: &[OsString]) -> Result<(String, bool)> {
    let text = match (argument.to_str(), rest) {
        (Some("--help" | "-h" | "help"), []) => HELP.into(),
        (Some("--version" | "-V" | "version"), []) => format!(
            "edge-cni {}\nCNI versions: {}\n",
            env!("CARGO_PKG_VERSION"),
            Version::ALL.map(Version::as_str).join(", ")
        ),
        (Some("up"), []) => line(up::up(Path::new(config_file::DEFAULT_CONFLIST))?),
        (Some("up"), [path]) => line(up::up(Path::new(path))?),
        (Some("ingress"), []) => line(ingress::ingress(Path::new(config_file::DEFAULT_CONFLIST))?),
        (Some("ingress"), [path]) => line(ingress::ingress(Path::new(path))?),
        (Some("reclaim"), arguments) => line(reclaim::reclaim(arguments)?),
        (Some("leases"), arguments) => inspect::leases(arguments)?,
        (Some("segments"), arguments) => inspect::segments(arguments)?,
        (Some("check"), arguments) => return inspect::check(arguments),
        _ => {
            return Err(Error::new(
                Code::InvalidEnvironment,
                format!("{argument:?} with {} further arguments is not understood; see `edge-cni --help`", rest.len()),
            ));
        }
    };
    Ok((text, true))
}

/// Runs the verbs of the CNI specification. Sets `version` to the configuration's version as soon
/// as it is known, since errors also contain the version.
fn run_command(version: &mut Version) -> Result<String> {
    let lookup: request::Lookup<'_> = &|name| std::env::var_os(name);
    let command = request::optional(lookup, "CNI_COMMAND")?.ok_or_else(|| {
        Error::new(
            Code::InvalidEnvironment,
            "the environment variable CNI_COMMAND is missing: container runtimes run this program; see `edge-cni --help`",
        )
    })?;
    let command = Command::parse(&command)?;
    let input = read_input()?;
    match command {
        Command::Version => version_info(&input).map(line),
        command => run_verb(command, &input, lookup, version),
    }
}

/// Runs a verb other than VERSION. Its variables need pages of stack. VERSION, which should take
/// hardly longer than an empty program, does not touch them.
#[inline(never)]
fn run_verb(command: Command, input: &[u8], lookup: request::Lookup<'_>, version: &mut Version) -> Result<String> {
    let json = config::parse_object(input)?;
    // DEL, CHECK and GC must work for attached pods even after a rollback, or with a mistake in the
    // configuration. They need only the listed keys.
    let needed: Option<&[&str]> = match command {
        Command::Del => Some(&["stateDir"]),
        Command::Check => Some(&["stateDir", "bridge"]),
        Command::Gc => Some(&["stateDir", "bridge", "name"]),
        Command::Add | Command::Status | Command::Version => None,
    };
    match config::version_of(&json) {
        Ok(known) => *version = known,
        Err(_) if needed.is_some() => {}
        Err(error) => return Err(error),
    }
    if *version < command.since() {
        return Err(Error::new(
            Code::IncompatibleVersion,
            format!(
                "{} begins with CNI {}, the configuration's cniVersion is {}",
                command.as_str(),
                command.since().as_str(),
                version.as_str()
            ),
        ));
    }
    let config = match needed {
        Some(needed) => Config::lenient(json, needed)?,
        None => Config::from_object(json)?,
    };
    config.report_unknown_keys();
    match command {
        Command::Add => {
            let request = RuntimeRequest::read(lookup)?;
            add::add(&config, &request).map(line).map_err(|error| error.with_subject(&request))
        }
        Command::Del => {
            if let Some(refused) = RuntimeRequest::never_attached(lookup) {
                eprintln!("edge-cni: {refused}; ADD refuses it, so there is nothing to remove");
                return Ok(String::new());
            }
            let request = RuntimeRequest::lenient(lookup)?;
            del::del(&config, &request).map(|()| String::new()).map_err(|error| error.with_subject(&request))
        }
        Command::Check => {
            let request = RuntimeRequest::lenient(lookup)?;
            check::check(&config, &request).map(|()| String::new()).map_err(|error| error.with_subject(&request))
        }
        Command::Status => status::status(&config).map(|()| String::new()),
        Command::Gc => gc::gc(&config).map(|()| String::new()),
        Command::Version => version_info(input).map(line),
    }
}

fn version_info(input: &[u8]) -> Result<Value> {
    // A runtime that sends no input must still receive an answer.
    let asked = if input.trim_ascii().is_empty() {
        Version::CURRENT.as_str().to_owned()
    } else {
        let json = config::parse_object(input)?;
        json.get("cniVersion").and_then(Value::as_str).unwrap_or(Version::CURRENT.as_str()).to_owned()
    };
    Ok(json!({ "cniVersion": asked, "supportedVersions": Version::ALL.map(Version::as_str) }))
}

/// Reads standard input without the buffer of [`std::io::stdin`], whose pages VERSION would have to
/// pay for.
fn read_input() -> Result<Vec<u8>> {
    let mut input = Vec::with_capacity(INPUT_ROOM);
    loop {
        if input.len() == input.capacity() {
            input.reserve(input.len());
        }
        let read = rustix::io::retry_on_intr(|| {
            rustix::io::read(rustix::stdio::stdin(), rustix::buffer::spare_capacity(&mut input))
        });
        let read = read.map_err(|error| {
            Error::new(Code::Io, format!("cannot read the configuration from standard input: {error}"))
        })?;
        if input.len() > MAX_INPUT {
            return Err(Error::new(Code::Decode, format!("the configuration is larger than {MAX_INPUT} bytes")));
        }
        if read == 0 {
            return Ok(input);
        }
    }
}

fn write_output(mut text: &[u8]) -> rustix::io::Result<()> {
    while !text.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(rustix::stdio::stdout(), text))?;
        // A file that accepts no byte now would accept none at the next attempt either.
        if written == 0 {
            return Err(rustix::io::Errno::IO);
        }
        text = text.get(written..).unwrap_or_default();
    }
    Ok(())
}

fn line(value: Value) -> String {
    format!("{value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the reference and the manual page against the help text. `EDGE_UPDATE=1 cargo test -p
    /// edge-cni --bins manual_page` writes them.
    #[test]
    fn reference_and_manual_page_are_the_help() {
        interop_tests::command_line::compare_help("edge-cni", "the CNI plugin of edge-cni", HELP);
    }
}
