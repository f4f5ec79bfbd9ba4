//! The commands of `edge-agent`.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "clap prints these comments, in which [cni] is a table of the configuration"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config};
use crate::stdout::print;
use crate::{
    admin, capture, check, diagnose, down, hardening, import, install_cni, join, ping, run, socket_holder, uninstall,
};

/// Joins this node to its peers by IPsec tunnels that it negotiates itself.
///
/// The agent speaks IKEv2 with its peers and programs the kernel. Who the peers are comes from the
/// controller ([controller] in the configuration), from [[peer]] tables, or both.
/// `docs/configuration.md` holds a full example.
#[derive(Debug, Parser)]
#[command(name = "edge-agent", version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct ConfigArgument {
    /// The TOML file
    #[arg(long, short, value_name = "FILE", default_value = config::DEFAULT_PATH, env = "EDGE_AGENT_CONFIG")]
    config: PathBuf,
    /// This node's name, instead of the one in the file, so that many nodes can share a file
    #[arg(long, value_name = "NODE", env = "EDGE_AGENT_NAME")]
    name: Option<edge_types::NodeName>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground until SIGTERM; what is in the kernel stays there (see `down`)
    ///
    /// Logs to standard error. The environment variable EDGE_AGENT_LOG is a filter, such as debug,
    /// edge_ike=trace or info,[peer{peer=edge-2}]=debug. (Default: info)
    Run {
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Make this machine a node: write the configuration and the join token, start the agent's
    /// unit, wait until the node has joined, and show its status
    ///
    /// Get a token by `edge-controller token create --role edge --node NODE`. Without systemd,
    /// start `edge-agent run` yourself meanwhile. A configuration that is there is not changed. A
    /// second run waits and shows the status. Exits with 1 if the node has not joined in time.
    Join {
        /// The TOML file
        #[arg(long, short, value_name = "FILE", default_value = config::DEFAULT_PATH, env = "EDGE_AGENT_CONFIG")]
        config: PathBuf,
        /// This node's name, if the token is bound to none. (Default: the host name)
        #[arg(long, value_name = "NODE")]
        name: Option<edge_types::NodeName>,
        /// Longest wait, seconds; 0: only write the files and start the unit
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
        /// The controller's addresses, https://HOST:PORT, tried in this order
        #[arg(value_name = "URL", required = true)]
        urls: Vec<String>,
        /// The join token; - reads it from standard input, where other users do not see it
        #[arg(value_name = "TOKEN")]
        token: String,
    },
    /// Judge the configuration and the files that it names; needs no running agent, changes nothing
    ///
    /// Reads keys, certificates and tokens, and reports what would fail on the first attempt: a
    /// certificate that ended or is for another name, a key that does not belong to it, networks
    /// that overlap. Exits with 1 if there is an error.
    Check {
        #[command(flatten)]
        config: ConfigArgument,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Make a configuration of strongSwan's swanctl.conf, to judge with `check`; changes nothing
    /// else
    ///
    /// Each connection becomes a [[peer]], with its keys and certificates from the directories
    /// beside the file. What is different is said with file and line. A connection whose tunnel
    /// would be another one is left out, with the reason, and the exit code is 1.
    Import {
        /// The file; the files that it includes are read too
        #[arg(value_name = "FILE", default_value = "/etc/swanctl/swanctl.conf")]
        file: PathBuf,
        /// Write agent.toml and the files that it names into this directory; files that are there
        /// are not replaced. Without it, print the configuration
        #[arg(long, value_name = "DIRECTORY")]
        into: Option<PathBuf>,
    },
    /// Show peers, tunnels, obstacles and incidents of the running agent
    Status {
        #[command(flatten)]
        config: ConfigArgument,
        /// Show only these peers, with their SAs, selectors and traffic; `*` stands for any text
        #[arg(value_name = "PEER")]
        peers: Vec<String>,
        /// Show it again every 2 s, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
        /// Print JSON, for scripts; with --watch one document in a line
        #[arg(long)]
        json: bool,
    },
    /// Say what keeps this node, a peer or a pod from being reached, and what to do; changes
    /// nothing
    ///
    /// Looks at configuration, disk, controller, view, firewall, obstacles, tunnels and the
    /// kernel's counters, and asks whether an IKE daemon answers at the addresses of the peer, or
    /// of the peers that are not up. Takes up to 3 s. Ends with one sentence. Exits with 1 if
    /// something is wrong.
    Diagnose {
        #[command(flatten)]
        config: ConfigArgument,
        /// A peer's name as `status` shows it, or the address of a pod or service
        #[arg(value_name = "PEER | ADDRESS")]
        about: Option<String>,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Measure round trip and loss through the tunnel to a peer or a pod
    ///
    /// Sends ICMP echo requests from an address of this node. Of a peer of the view, the address of
    /// its bridge is asked, in each family; of others, name an address. If nothing can be sent,
    /// says why. Exits with 1 then, and if an address has not answered at all.
    Ping {
        #[command(flatten)]
        config: ConfigArgument,
        /// A peer's name as `status` shows it, or the address of a pod or service
        #[arg(value_name = "PEER | ADDRESS")]
        to: String,
        /// Number of requests
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=i64::from(ping::MAX_COUNT)))]
        count: u16,
        /// Time from one request to the next, at least 10ms
        #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = ping_interval)]
        interval: Duration,
        /// Longest wait for the answers to the last requests
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
        timeout: Duration,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Write the IKE messages with a peer, without their encryption, for Wireshark and tcpdump
    ///
    /// The running agent copies what it sends to and receives from the peer's addresses, also while
    /// no tunnel comes up. Of an encrypted message the payloads stand in clear, and one that came
    /// in fragments is whole; what is sent again is written once. Keys are never written, neither
    /// those of an SA nor a pre-shared one; the capture names the peers and their networks.
    /// Messages that the agent cannot read are missing. A new capture ends an earlier one.
    Capture {
        #[command(flatten)]
        config: ConfigArgument,
        /// The peer's name, as `status` shows it
        peer: String,
        /// Another address from which the peer comes, if the agent knows none
        #[arg(long, value_name = "ADDRESS")]
        from: Vec<std::net::IpAddr>,
        /// Make this file; without it, write to standard output
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
        /// End after this time
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
        duration: Duration,
        /// End before more than this many octets are written
        #[arg(long, value_name = "OCTETS", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
        max_size: u64,
    },
    /// Remove what the agent keeps in the kernel: SAs, policies, routes, the firewall table, and
    /// last the guard
    ///
    /// Remaining pods may then send in clear. Certificate, view and segments stay on disk; `run`
    /// puts everything back.
    Down {
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Remove all that agent and plugin made on this host, so that it is as before
    ///
    /// Removes conflist and plugin, the bridge, what `down` removes, and the files below state_dir
    /// and run_dir, with this node's certificate. Turns forwarding off if it was off before. Stop
    /// the agent and drain the node first. A second run finds nothing.
    Uninstall {
        #[command(flatten)]
        config: ConfigArgument,
        /// Go on although pods are attached: they lose the network
        #[arg(long)]
        cut_off_pods: bool,
        /// Remove the configuration and the join token as well; keys of static peers stay
        #[arg(long)]
        purge: bool,
    },
    /// Give the CHILD_SAs or the IKE SA with a peer new keys now, without losing a packet
    Rekey {
        #[command(flatten)]
        config: ConfigArgument,
        /// The peer's name, as `status` shows it
        peer: String,
        /// Rekey the IKE SA; its CHILD_SAs stay
        #[arg(long)]
        ike: bool,
        /// Rekey only the CHILD_SAs of this [[peer.child]]
        #[arg(long, value_name = "NAME", conflicts_with = "ike")]
        child: Option<String>,
    },
    /// Hold the agent's UDP sockets while no agent runs; started by `run`, not by hand
    #[command(hide = true)]
    HoldSockets,
    /// Register the plugin with the container runtime, once this node has its first segment
    ///
    /// Writes 10-edge-cni.conflist, atomically, into the directory named by [cni] conf_dir
    /// (/etc/cni/net.d; on k3s /var/lib/rancher/k3s/agent/etc/cni/net.d, with bin_dir
    /// /var/lib/rancher/k3s/data/cni). Nothing else in that directory is changed. Waits for the
    /// first segment, which the running agent requests.
    InstallCni {
        #[command(flatten)]
        config: ConfigArgument,
        /// Copy this edge-cni program into [cni] bin_dir first
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        /// Longest wait for the first segment, seconds; 0 checks once
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
        /// Copy the plugin and do nothing else; for use before the agent has run
        #[arg(long, requires = "plugin")]
        plugin_only: bool,
        /// Keep running: wait for the first segment for as long as it takes, and write the conflist
        /// again whenever it is lost or its content changes
        #[arg(long, conflicts_with_all = ["timeout", "plugin_only"])]
        keep: bool,
        /// Remove the conflist instead: the runtime starts no more pods with this network
        #[arg(long, conflicts_with_all = ["plugin", "timeout", "plugin_only", "keep"])]
        remove: bool,
    },
}

impl Cli {
    /// Runs the command. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
    pub fn execute(self) -> ExitCode {
        // Called before the configuration is read, because it may contain a pre-shared key.
        hardening::forbid_dumps();
        match self.command {
            Command::Run { config } => with_config(&config, run::run),
            Command::Join { config, name, timeout, urls, token } => {
                let options = join::JoinOptions { urls, file: config, name, timeout: Duration::from_secs(timeout) };
                let token = zeroize::Zeroizing::new(token);
                exit_code(join::join(&options, &token))
            }
            Command::Check { config, json } => with_config(&config, |config| check::check(&config, json)),
            Command::Import { file, into } => exit_code(import::execute(&file, into.as_deref())),
            Command::Status { config, peers, watch, json } => with_config(&config, |config| match watch {
                true => admin::client::watch_status(&config, &peers, json),
                false => admin::client::status(&config, &peers, json),
            }),
            Command::Diagnose { config, about, json } => {
                with_config(&config, |config| diagnose::diagnose(&config, about.as_deref(), json))
            }
            Command::Ping { config, to, count, interval, timeout, json } => {
                let options = ping::PingOptions { count, interval, timeout };
                with_config(&config, |config| ping::ping(&config, &to, options, json))
            }
            Command::Capture { config, peer, from, write, duration, max_size } => {
                let options = capture::CaptureOptions { peer, from, file: write, duration, max_size };
                with_config(&config, |config| capture::capture(&config, &options))
            }
            Command::Down { config } => with_config(&config, |config| down::down(&config)),
            Command::Uninstall { config, cut_off_pods, purge } => {
                let file = config.config.clone();
                let extent = uninstall::Extent { cut_off_pods, purge };
                with_config(&config, |config| uninstall::uninstall(&config, &file, extent))
            }
            Command::Rekey { config, peer, ike, child } => {
                with_config(&config, |config| admin::client::rekey(&config, &peer, child, ike))
            }
            Command::HoldSockets => exit_code(socket_holder::process::run()),
            Command::InstallCni { config, plugin, timeout, plugin_only, keep, remove } => {
                with_config(&config, |config| {
                    if remove {
                        return install_cni::remove_conflist(&config);
                    }
                    if let Some(plugin) = plugin {
                        let installed = install_cni::install_plugin(&config, &plugin)?;
                        print(&format!("{} installed\n", installed.display()))?;
                    }
                    match (plugin_only, keep) {
                        (true, _) => Ok(()),
                        (false, true) => install_cni::keep_installed(&config),
                        (false, false) => install_cni::execute(&config, Duration::from_secs(timeout)),
                    }
                })
            }
        }
    }
}

/// Parses a duration in the same form as the configuration.
fn duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| config::EXPECTED_DURATION.to_owned())
}

fn ping_interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < ping::MIN_INTERVAL {
        return Err(format!("at least {:?}: more often would be a flood", ping::MIN_INTERVAL));
    }
    Ok(interval)
}

fn with_config(argument: &ConfigArgument, command: impl FnOnce(Config) -> anyhow::Result<()>) -> ExitCode {
    let config = match Config::load(&argument.config) {
        Ok(mut config) => {
            config.name = argument.name.clone().or(config.name);
            config
        }
        Err(error) => {
            eprintln!("edge-agent: {error}");
            return ExitCode::from(2);
        }
    };
    exit_code(command(config))
}

fn exit_code(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edge-agent: {}", edge_types::error::with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Checks the generated files. `EDGE_UPDATE=1 cargo test -p edge-agent --lib command_line`
    /// writes them.
    #[test]
    fn reference_manual_page_and_completions_are_those_of_the_command_line() {
        Cli::command().debug_assert();
        interop_tests::command_line::compare(&Cli::command());
    }
}
