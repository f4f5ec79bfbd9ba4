//! The commands of `edge-agent`.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "clap prints these comments, in which [cni] is a table of the configuration"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, ConfigError};
use crate::stdout::print;
use crate::{
    admin, capture, check, diagnose, down, hardening, import, install_cni, join, ping, run, socket_holder, uninstall,
};

/// Connects this node to its peers through IPsec tunnels, with its own implementation of IKEv2.
///
/// The agent negotiates the tunnels and programs the kernel's IPsec states and policies. It takes
/// its peers from the controller ([controller] in the configuration), from [[peer]] tables, or from
/// both. `docs/configuration.md` has a full example.
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
    /// This node's name. It overrides the name in the file, so that several nodes can share a file
    #[arg(long, value_name = "NODE", env = "EDGE_AGENT_NAME")]
    name: Option<edge_types::NodeName>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground until SIGTERM; tunnels and routes stay in the kernel afterwards (see
    /// `down`)
    ///
    /// Logs to standard error. The environment variable EDGE_AGENT_LOG sets the log filter, for
    /// example debug, edge_ike=trace or info,[peer{peer=edge-2}]=debug. (Default: info)
    Run {
        #[command(flatten)]
        config: ConfigArgument,
        /// Log as JSON, one object per line
        #[arg(long)]
        log_json: bool,
    },
    /// Make this machine a node: write the configuration and the join token, start the agent's
    /// unit, wait until the node has joined, and show its status
    ///
    /// Create a token with `edge-controller token create --role edge --node NODE`. Without systemd,
    /// start `edge-agent run` in another terminal while this command waits. An existing
    /// configuration is not changed. If the command is run again, it only waits and shows the
    /// status. Exits with 1 if the node has not joined in time.
    Join {
        /// The TOML file
        #[arg(long, short, value_name = "FILE", default_value = config::DEFAULT_PATH, env = "EDGE_AGENT_CONFIG")]
        config: PathBuf,
        /// This node's name, if the token is not bound to a name. (Default: the host name)
        #[arg(long, value_name = "NODE")]
        name: Option<edge_types::NodeName>,
        /// Maximum time to wait, in seconds; 0 only writes the files and starts the unit
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds)]
        timeout: u64,
        /// The controller's URLs, https://HOST:PORT, tried in this order
        #[arg(value_name = "URL", required = true)]
        urls: Vec<String>,
        /// The join token; - reads it from standard input, so that other users cannot see it in the
        /// process list
        #[arg(value_name = "TOKEN")]
        token: String,
    },
    /// Check the configuration and the files that it names; needs no running agent and changes
    /// nothing
    ///
    /// Reads keys, certificates and tokens, and reports what would fail when the agent uses them:
    /// for example, a certificate that has expired or is for another name, a key that does not
    /// match its certificate, or networks that overlap. Exits with 1 if there is an error.
    Check {
        #[command(flatten)]
        config: ConfigArgument,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Convert strongSwan's swanctl.conf into a configuration for the agent; changes nothing else
    ///
    /// Each connection becomes a [[peer]], with its keys and certificates from the directories
    /// beside the file. Each difference is reported with file and line. A connection for which the
    /// agent would negotiate a different tunnel is left out, with the reason, and the exit code is
    /// 1. Verify the result with `check`.
    Import {
        /// The swanctl.conf; the files that it includes are read too
        #[arg(value_name = "FILE", default_value = "/etc/swanctl/swanctl.conf")]
        file: PathBuf,
        /// Write agent.toml and the files that it names into this directory; existing files are not
        /// replaced. Without this option, print the configuration
        #[arg(long, value_name = "DIRECTORY")]
        into: Option<PathBuf>,
    },
    /// Show peers, tunnels, obstacles and incidents of the running agent
    Status {
        #[command(flatten)]
        config: ConfigArgument,
        /// Show only these peers, with their SAs, selectors and traffic; `*` matches any text
        #[arg(value_name = "PEER")]
        peers: Vec<String>,
        /// Refresh every 2 s, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
        /// Print JSON, for scripts; with --watch, one document per line
        #[arg(long)]
        json: bool,
    },
    /// Find out why this node, a peer or a pod cannot be reached, and what to do about it; changes
    /// nothing
    ///
    /// Checks the configuration, disk, controller, view, firewall, obstacles, tunnels and the
    /// kernel's counters, and whether an IKE daemon answers at the addresses of the peer or,
    /// without a peer, of all peers that have no tunnel. Takes up to 3 s. The last line states the
    /// result in one sentence. Exits with 1 if something is wrong.
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
    /// Measure round-trip time and packet loss through the tunnel to a peer or a pod
    ///
    /// Sends ICMP echo requests from an address of this node. For a peer in the view, they go to
    /// the address of its bridge, in each address family. For other peers, give an address. If no
    /// request can be sent, prints the reason. Exits with 1 in that case, and if an address did not
    /// answer any request.
    Ping {
        #[command(flatten)]
        config: ConfigArgument,
        /// A peer's name as `status` shows it, or the address of a pod or service
        #[arg(value_name = "PEER | ADDRESS")]
        to: String,
        /// Number of requests
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=i64::from(ping::MAX_COUNT)))]
        count: u16,
        /// Time between two requests, at least 10ms
        #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = ping_interval)]
        interval: Duration,
        /// Maximum time to wait for the answers to the last requests
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
        timeout: Duration,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Write the IKE messages exchanged with a peer, decrypted, for Wireshark and tcpdump
    ///
    /// The running agent copies the messages that it sends to and receives from the peer's
    /// addresses, even if no tunnel comes up. The payloads of an encrypted message are written in
    /// clear text, and a fragmented message is written whole. A retransmitted message is written
    /// once. The capture never contains keys, neither those of an SA nor a pre-shared key, but it
    /// does contain the names of the peers and their networks. Messages that the agent cannot
    /// decrypt or parse are missing. A new capture ends an earlier one.
    Capture {
        #[command(flatten)]
        config: ConfigArgument,
        /// The peer's name, as `status` shows it
        peer: String,
        /// Another address from which the peer sends, if the agent knows none
        #[arg(long, value_name = "ADDRESS")]
        from: Vec<std::net::IpAddr>,
        /// Write to this file, which is created; without this option, write to standard output
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
        /// Stop after this time
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
        duration: Duration,
        /// Stop before the capture exceeds this size in octets
        #[arg(long, value_name = "OCTETS", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
        max_size: u64,
    },
    /// Remove what the agent keeps in the kernel: SAs, policies, routes, the firewall table and,
    /// last, the guard
    ///
    /// After that, the packets of remaining pods may leave unencrypted. The certificate, view and
    /// segments stay on disk; `run` restores everything.
    Down {
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Remove everything that the agent and the plugin created on this host
    ///
    /// Removes the conflist, the plugin, the bridge, everything that `down` removes, and the files
    /// below state_dir and run_dir, including this node's certificate. Turns IP forwarding off if
    /// it was off before. Stop the agent first, with the sockets that systemd holds for it
    /// (systemctl disable --now edge-agent-install-cni edge-agent edge-agent.socket
    /// edge-agent-ipv6.socket), and drain the node. Running the command again does no harm.
    Uninstall {
        #[command(flatten)]
        config: ConfigArgument,
        /// Continue even if pods are attached; they lose their network
        #[arg(long)]
        cut_off_pods: bool,
        /// Remove the configuration and the join token as well; keys of static peers stay
        #[arg(long)]
        purge: bool,
    },
    /// Rekey the CHILD_SAs or the IKE SA of a peer now, without packet loss
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
    /// Hold the agent's UDP sockets open while the agent is replaced, in a pod beside it
    ///
    /// The kernel takes ESP in UDP out of its datagrams only while a socket of the agent is open.
    /// In a container nothing of the agent outlives it, so this command runs in a pod of its own,
    /// which is not replaced together with the agent (DaemonSet socket-holder of the chart). The
    /// agent passes its sockets whenever this process answers, and the next agent takes them from
    /// it. They are closed after ten minutes without an agent.
    ///
    /// It needs no configuration, no capability and no network, and reads nothing from the sockets.
    /// Run it as the agent's user: only root and this user get the sockets or may pass some. Where
    /// the agent is a service of the host it is not needed: systemd, or a process that the agent
    /// starts, holds the sockets there.
    HoldSockets {
        /// Listen on this file: socket-holder/holder.sock in the agent's run_dir
        /// (/run/edge-cni/socket-holder/holder.sock). Its directory is made, and closed to others.
        /// The agent itself starts this command without the option
        #[arg(long, value_name = "FILE")]
        listen: Option<PathBuf>,
    },
    /// Register the plugin with the container runtime, once this node has its first segment
    ///
    /// Writes 10-edge-cni.conflist atomically into the directory named by [cni] conf_dir
    /// (/etc/cni/net.d; on k3s /var/lib/rancher/k3s/agent/etc/cni/net.d, with bin_dir
    /// /var/lib/rancher/k3s/data/cni). Nothing else in that directory is changed. Waits for the
    /// first segment, which the running agent requests.
    InstallCni {
        #[command(flatten)]
        config: ConfigArgument,
        /// Copy this edge-cni program into [cni] bin_dir first
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        /// Maximum time to wait for the first segment, in seconds; 0 checks once
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds)]
        timeout: u64,
        /// Copy the plugin and do nothing else; for use before the agent has been started
        #[arg(long, requires = "plugin")]
        plugin_only: bool,
        /// Keep running: wait for the first segment without a time limit, and write the conflist
        /// again whenever it is missing or its content must change
        #[arg(long, conflicts_with_all = ["timeout", "plugin_only"])]
        keep: bool,
        /// Remove the conflist instead; the runtime then starts no new pods with this network.
        /// While pods are attached the conflist stays, because the runtime needs it to remove them:
        /// the command names them and fails
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
            Command::Run { config, log_json } => with_config(&config, |config| run::run(config, log_json)),
            Command::Join { config, name, timeout, urls, token } => {
                let options = join::JoinOptions { urls, file: config, name, timeout: Duration::from_secs(timeout) };
                let token = zeroize::Zeroizing::new(token);
                exit_code(join::join(&options, &token))
            }
            Command::Check { config, json } => with_config(&config, |config| check::check(&config, json)),
            Command::Import { file, into } => exit_code(import::execute(&file, into.as_deref())),
            Command::Status { config, peers, watch: true, json } => {
                with_config(&config, |config| admin::client::watch_status(&config.admin_socket(), &peers, json))
            }
            Command::Status { config, peers, watch: false, json } => {
                with_agent(&config, |socket| admin::client::status(socket, &peers, json))
            }
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
                if !file.exists() {
                    return uninstall_without_config(&file);
                }
                with_config(&config, |config| uninstall::uninstall(&config, &file, extent))
            }
            Command::Rekey { config, peer, ike, child } => {
                with_agent(&config, |socket| admin::client::rekey(socket, &peer, child, ike))
            }
            Command::HoldSockets { listen } => exit_code(match listen {
                Some(path) => socket_holder::process::listen(&path),
                None => socket_holder::process::run(),
            }),
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

/// Parses a number of seconds, or a duration in the same form as the configuration.
fn seconds(text: &str) -> Result<u64, String> {
    let with_unit = || config::parse_duration(text).map(|duration| duration.as_secs());
    let expected = || "expected seconds, such as 60, or a time with a unit, such as 90s or 5m".to_owned();
    text.parse().ok().or_else(with_unit).ok_or_else(expected)
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
        Err(error) => return refused(&error),
    };
    exit_code(command(config))
}

/// Runs a command that only asks the running agent, which listens on the admin socket. An error in
/// a table of the file matters only if the command fails: it may be the reason.
fn with_agent(argument: &ConfigArgument, command: impl FnOnce(&Path) -> anyhow::Result<()>) -> ExitCode {
    let socket = match admin::socket_path(&argument.config) {
        Ok(socket) => socket,
        Err(error) => return refused(&error),
    };
    let outcome = command(&socket);
    let failed = outcome.is_err();
    let code = exit_code(outcome);
    match failed.then(|| Config::load(&argument.config)) {
        Some(Err(error)) => refused(&error),
        _ => code,
    }
}

/// Reports a configuration that cannot be used.
fn refused(error: &ConfigError) -> ExitCode {
    eprintln!("edge-agent: {error}");
    ExitCode::from(2)
}

/// Carries out `uninstall` where the configuration is missing, as after `uninstall --purge`.
/// Succeeds if nothing is left. Otherwise the configuration is needed to remove it.
fn uninstall_without_config(file: &Path) -> ExitCode {
    match uninstall::remains().map(|remains| remains.join(", ")) {
        Ok(remains) if remains.is_empty() => exit_code(uninstall::report_nothing(file)),
        Ok(remains) => {
            eprintln!("edge-agent: {} is missing, and there is still: {remains}; give it by --config", file.display());
            ExitCode::from(2)
        }
        Err(error) => exit_code(Err(error)),
    }
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
    fn a_time_limit_is_a_number_of_seconds_or_has_a_unit() {
        assert_eq!(seconds("60"), Ok(60));
        assert_eq!(seconds("0"), Ok(0));
        assert_eq!(seconds("8s"), Ok(8));
        assert_eq!(seconds("5m"), Ok(300));
        for text in ["", "-1", "soon", "5 m x"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reference_manual_page_and_completions_are_those_of_the_command_line() {
        Cli::command().debug_assert();
        interop_tests::command_line::compare(&Cli::command());
    }
}
