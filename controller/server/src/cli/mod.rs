//! The command line: the server, and the operator's commands, which reach it through the admin
//! socket.
//!
//! - [`archive`]: backup, restore, export, import.
//! - [`client`]: HTTP over the admin socket.
//! - [`config`]: prints the configuration.
//! - [`commands`]: the requests and the output of each command.
//! - [`core_dumps`]: keeps keys out of core files.

mod archive;
mod client;
mod commands;
mod config;
mod core_dumps;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use edge_controller_domain::clock::Clock;
use edge_controller_kubernetes::resources;
use edge_types::{NodeName, Role};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{ADMIN_SOCKET, Sources};
use crate::logs::Lines;
use crate::server::Server;

/// Exit code of a command that the server refused.
const REFUSED: u8 = 1;
/// Exit code of a command that did not reach the server, and of a server that could not start.
const UNREACHABLE: u8 = 3;

/// Hands out segments and certificates to edge nodes, and tells each whom it may talk to.
///
/// Run the server on the cloud's side, make a join token for each new node, and put nodes into
/// communities by label:
///
///   edge-controller run --config /etc/edge-controller/controller.toml
///   edge-controller token create --role hub --node cloud-1
///   edge-controller token create --role edge --ttl 1h
///   edge-controller node label edge-a1 fabedge/edge-community=alpha
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the server is not running or could not start;
/// 128 and a signal's number: a server that was asked to end a second time before it had.
#[derive(Parser)]
#[command(name = "edge-controller", version, max_term_width = 100, verbatim_doc_comment)]
struct Cli {
    /// Admin socket of the running server.
    #[arg(long, global = true, default_value = ADMIN_SOCKET, env = "EDGE_CONTROLLER_SOCKET", value_name = "PATH")]
    socket: PathBuf,
    /// Print JSON, for scripts, instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server in the foreground, until SIGTERM or Ctrl-C; a second one ends it at once.
    /// SIGHUP: see reload. Logs go to standard error; RUST_LOG sets their level.
    Run {
        #[command(flatten)]
        sources: Sources,
        /// Log as JSON, one object a line.
        #[arg(long)]
        log_json: bool,
    },
    /// Show the configuration that run would use, and where each value comes from.
    Config {
        #[command(flatten)]
        sources: Sources,
    },
    /// Let the running server read its configuration again, as SIGHUP does.
    ///
    /// cluster_ranges, reserved, min_per_node, max_per_node, quarantine_seconds,
    /// restore_grace_seconds, networks and hub take effect; any other change is refused, and so is
    /// a range that is left out while nodes hold segments of it: with nothing changed.
    Reload,
    /// Print the definitions of the custom resources, for kubectl apply; they are in deploy/crds as
    /// well.
    Crds,
    /// Write all that the running server keeps into one file, as it is at one moment.
    ///
    /// The file holds the authority's private key: it is made for its owner alone (mode 0600) and
    /// must stay as secret as that. It is checked before it takes its place. "-" writes to standard
    /// output, for example into a program that encrypts it.
    Backup {
        /// File that is written; "-" is standard output.
        file: PathBuf,
    },
    /// Put a backup in place of the state directory, while no server runs. Nodes go on with the
    /// certificates that they have.
    ///
    /// Segments that were granted after the backup are not in it: restore the latest.
    Restore {
        /// A file that backup or export wrote.
        file: PathBuf,
        #[command(flatten)]
        sources: Sources,
        /// The directory may have content; it is moved aside and kept.
        #[arg(long)]
        replace: bool,
    },
    /// Write all that the configured store holds into one file, as backup does, while no server
    /// runs.
    Export {
        /// Where to; "-" is standard output.
        file: PathBuf,
        #[command(flatten)]
        sources: Sources,
    },
    /// Bring a file of backup or export into the configured store, which must be empty; to move
    /// from one kind of store to another.
    ///
    /// An import that was interrupted goes on when the same file is imported again.
    Import {
        /// A file that backup or export wrote.
        file: PathBuf,
        #[command(flatten)]
        sources: Sources,
    },
    /// Say that the configured store is an old copy which was brought back by other means than
    /// restore and import: a snapshot of a disk or of etcd.
    ///
    /// Segments that were granted after the copy was made are not in it. With the next start nodes
    /// may claim those that they use, and nothing is granted before they have reported them. Where
    /// the store is in the state directory no server may run meanwhile; where it is at the
    /// Kubernetes API server restart all replicas afterwards.
    Restored {
        #[command(flatten)]
        sources: Sources,
    },
    /// Nodes: list, show, label, deregister.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Segments: who holds which.
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// Communities: who is a member of which.
    #[command(subcommand)]
    Community(CommunityCommand),
    /// Join tokens: create, list, delete.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Certificate authorities: list, roll over to a new one, retire an old one.
    #[command(subcommand)]
    Ca(CaCommand),
}

#[derive(Subcommand)]
enum NodeCommand {
    /// List all registered nodes.
    #[command(visible_alias = "ls")]
    List,
    /// Show one node in full.
    Show {
        /// Name of the node, as node list prints it.
        node: NodeName,
    },
    /// Set labels (key=value) or remove them (key-).
    ///
    /// The labels fabedge/edge-community and bocloud.com/edge-community put a node into
    /// communities; '_' separates several:
    ///
    ///   edge-controller node label edge-a1 fabedge/edge-community=alpha_beta
    ///   edge-controller node label edge-a1 fabedge/edge-community-
    ///
    /// Those of a node with a Node object in Kubernetes are set there, and can only be removed
    /// here.
    #[command(verbatim_doc_comment)]
    Label {
        /// Name of the node, as node list prints it.
        node: NodeName,
        /// key=value to set, key- to remove.
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        labels: Vec<String>,
    },
    /// Take a node out of the network: its certificate is refused at once, its segments are given
    /// to others after the quarantine.
    ///
    /// With --confirm: all nodes that lost their Node objects in Kubernetes, so many at once that
    /// it was not believed. node list names them.
    Deregister {
        /// Name of the node, as node list prints it.
        #[arg(required_unless_present = "confirm", conflicts_with = "confirm")]
        node: Option<NodeName>,
        /// All that wait for it.
        #[arg(long)]
        confirm: bool,
    },
}

#[derive(Subcommand)]
enum SegmentCommand {
    /// List all segments that were ever granted: held, in quarantine, or free again, and who held
    /// them last before. With --json: all who did.
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Subcommand)]
enum CommunityCommand {
    /// List all communities with their members.
    #[command(visible_alias = "ls")]
    List,
    /// List the members of a community, besides those whose labels say so; they need not be
    /// registered yet.
    ///
    /// What was listed before is replaced:
    ///
    ///   edge-controller community set alpha edge-a1 edge-b1
    #[command(verbatim_doc_comment)]
    Set {
        /// Name of the community.
        community: edge_types::Community,
        /// Names of all members.
        #[arg(required = true, value_name = "NODE")]
        members: Vec<NodeName>,
    },
    /// Forget the listed members of a community; what labels say of it stays.
    Delete {
        /// Name of the community.
        community: edge_types::Community,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a join token and print it on standard output: the only time that it is shown.
    ///
    /// A machine that lost its disk comes back under its name with a token bound to that name
    /// (--node).
    Create {
        /// What the node will be: edge, hub or cloud. The node cannot choose.
        #[arg(long)]
        role: Role,
        /// The only name that may join with it.
        #[arg(long, value_name = "NAME")]
        node: Option<NodeName>,
        /// How long it may be used: a number and s, m, h or d.
        #[arg(long, default_value = "24h", value_parser = commands::duration, value_name = "TIME")]
        ttl: u64,
        /// How many nodes may join with it.
        #[arg(long, default_value_t = 1, value_name = "N")]
        uses: u32,
    },
    /// List tokens, without their secrets.
    #[command(visible_alias = "ls")]
    List,
    /// Delete a token: nobody joins with it any more. Nodes that did stay.
    Delete {
        /// The token's id, as in the list.
        // Earlier releases made ids that begin with a hyphen.
        #[arg(allow_hyphen_values = true)]
        id: String,
    },
}

#[derive(Subcommand)]
enum CaCommand {
    /// List all authorities, with who still needs the old ones.
    #[command(visible_alias = "ls")]
    List,
    /// Begin to sign with a new authority: that in ca_certificate and ca_key of the configuration,
    /// or one that is made.
    ///
    /// The old ones stay trusted: no tunnel notices. Connected nodes get certificates of the new
    /// one within minutes; then retire the old one:
    ///
    ///   edge-controller ca rollover
    ///   edge-controller ca list                # until nobody needs the old one
    ///   edge-controller ca retire 3f2a9c41
    #[command(verbatim_doc_comment)]
    Rollover,
    /// Trust an old authority no more, and wipe its key. Refused while a node or a join token needs
    /// it.
    Retire {
        /// The authority's id, or at least eight digits of its beginning.
        id: String,
        /// Retire it nevertheless: whoever needs it must join again with a new token.
        #[arg(long)]
        force: bool,
    },
}

/// Default of RUST_LOG. The Kubernetes client is off, because its callers log its failures with
/// their meaning.
const LOGGED: &str = "info,kube_client=off";

/// Runs the command of the command line. Returns its exit code: 0, [`REFUSED`] or [`UNREACHABLE`].
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = core_dumps::forbid() {
        eprintln!("edge-controller: cannot forbid core dumps, which would hold private keys: {error}");
        return ExitCode::from(UNREACHABLE);
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("edge-controller: cannot start: {error}");
            return ExitCode::from(UNREACHABLE);
        }
    };
    runtime.block_on(async {
        let outcome = match cli.command {
            Command::Run { sources, log_json } => run(sources, log_json).await.map_err(|e| (UNREACHABLE, e)),
            Command::Crds => crds().map_err(|e| (UNREACHABLE, e)),
            Command::Restore { file, sources, replace } => {
                offline(async { archive::restore(&sources.load()?.config, &file, replace).await }).await
            }
            Command::Config { sources } => offline(async { config::show(&sources.load()?, cli.json) }).await,
            Command::Export { file, sources } => {
                offline(async { archive::export(&sources.load()?.config, &file).await }).await
            }
            Command::Import { file, sources } => {
                offline(async { archive::import(&sources.load()?.config, &file).await }).await
            }
            Command::Restored { sources } => offline(async { archive::restored(&sources.load()?.config).await }).await,
            command => commands::carry_out(&client::Client::new(cli.socket), cli.json, command).await.map_err(|e| {
                let code = if e.is::<edge_types::api::Problem>() { REFUSED } else { UNREACHABLE };
                (code, e)
            }),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err((code, error)) => {
                eprintln!("edge-controller: {error:#}");
                ExitCode::from(code)
            }
        }
    })
}

fn crds() -> anyhow::Result<()> {
    for (_, definition) in resources::definitions() {
        table::say(format_args!("---\n{}", resources::manifest(&definition)?.trim_end()))?;
    }
    Ok(())
}

/// Runs a command that needs no server. A failure counts as a refusal (exit code 1).
async fn offline(work: impl Future<Output = anyhow::Result<()>>) -> Result<(), (u8, anyhow::Error)> {
    work.await.map_err(|error| (REFUSED, error))
}

async fn run(sources: Sources, log_json: bool) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| LOGGED.into());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Colours are escape sequences, and these are not let through.
        .with_ansi(false)
        .with_writer(|| Lines::new(std::io::stderr()));
    if log_json {
        logs.json().init()
    } else {
        logs.init()
    }
    let config = sources.load()?.config;
    let (mut signals, mut hangup) = (Signals::new()?, signal(SignalKind::hangup())?);
    let reader = Box::new(move || sources.load().map(|loaded| loaded.config));
    let server = Server::start_with(config, Clock::system(), Some(reader)).await?;
    tracing::info!(addresses = ?server.addresses, observe = ?server.observe, version = env!("CARGO_PKG_VERSION"), "serving");
    let name = loop {
        tokio::select! {
            _ = hangup.recv() => server.reload().await,
            (name, _) = signals.asked_to_end() => break name,
        }
    };
    tracing::info!(signal = name, "stopping: nodes are sent to other controllers, open requests are finished");
    tokio::select! {
        () = server.stop() => {}
        (name, number) = signals.asked_to_end() => {
            tracing::warn!(signal = name, "asked again: ending at once; what was answered is on disk");
            std::process::exit(128 + number);
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Signals that ask the server to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and returns its name and number.
    async fn asked_to_end(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
            _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
        }
    }
}
