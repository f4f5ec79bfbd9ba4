//! The command line, which runs the server or the operator's commands. The commands send requests
//! to the server through the admin socket.
//!
//! - [`args`]: the arguments of each command.
//! - [`archive`]: implements backup, restore, export and import.
//! - [`client`]: sends HTTP requests over the admin socket.
//! - [`config`]: prints the configuration with the source of each value.
//! - [`commands`]: sends the requests for the other commands and prints the responses.
//! - [`status`]: shows the overview. [`page`]: opens and ends sessions of the page.
//! - [`connectivity`]: checks whether nodes reach each other.
//! - [`gather`]: writes information for finding faults into one file.
//! - [`import_fabedge`]: translates FabEdge's resources.
//! - [`core_dumps`]: keeps private keys out of core files.

mod archive;
mod args;
mod bytes;
mod client;
mod commands;
mod config;
mod connectivity;
mod core_dumps;
mod gather;
mod import_fabedge;
mod page;
mod status;
mod table;

use std::process::ExitCode;

use clap::Parser;
use edge_controller_domain::clock::Clock;
use edge_controller_kubernetes::resources;
use edge_types::error::with_causes;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::ConfigSources;
use crate::logs::Lines;
use crate::server::Server;
use args::{Cli, Command};

/// Exit code of a command that the server refused, and of a check that found a problem.
const REFUSED: u8 = 1;
/// Exit code of a command that did not reach the server, and of a server that could not start.
const UNREACHABLE: u8 = 3;

/// Default of RUST_LOG. The Kubernetes client's own log is off, because its callers log its
/// failures with their meaning.
const LOGGED: &str = "info,kube_client=off";

/// Runs the command that the arguments name. Returns its exit code: 0, [`REFUSED`] or
/// [`UNREACHABLE`].
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
            Command::Export { target, sources } => {
                offline(async { archive::export(&sources.load()?.config, &target).await }).await
            }
            Command::Import { file, sources } => {
                offline(async { archive::import(&sources.load()?.config, &file).await }).await
            }
            Command::Restored { sources } => offline(async { archive::restored(&sources.load()?.config).await }).await,
            command => match cli.server.admin_socket() {
                Ok(socket) => commands::carry_out(&client::Client::new(socket), cli.json, command).await.map_err(|e| {
                    let answered = e.is::<edge_types::api::Problem>() || e.is::<connectivity::PathsWrong>();
                    let code = if answered { REFUSED } else { UNREACHABLE };
                    (code, e)
                }),
                Err(error) => Err((UNREACHABLE, error.into())),
            },
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err((code, error)) => {
                eprintln!("edge-controller: {}", with_causes(error.as_ref()));
                ExitCode::from(code)
            }
        }
    })
}

fn crds() -> anyhow::Result<()> {
    for (_, definition) in resources::definitions() {
        table::print_line(format_args!("---\n{}", resources::manifest(&definition)?.trim_end()))?;
    }
    Ok(())
}

/// Runs a command that needs no server. A failure counts as a refusal (exit code 1).
async fn offline(work: impl Future<Output = anyhow::Result<()>>) -> Result<(), (u8, anyhow::Error)> {
    work.await.map_err(|error| (REFUSED, error))
}

async fn run(sources: ConfigSources, log_json: bool) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| LOGGED.into());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Colours are escape sequences, which the log writer escapes.
        .with_ansi(false)
        .with_writer(|| Lines::new(std::io::stderr()));
    if log_json {
        logs.json().init()
    } else {
        logs.init()
    }
    let config = sources.load()?.config;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let (mut signals, mut hangup) = (Signals::new()?, signal(SignalKind::hangup())?);
    let reader = Box::new(move || sources.load().map(|loaded| loaded.config));
    let server = Server::start_with(config, Clock::system(), Some(reader)).await?;
    tracing::info!(addresses = ?server.addresses, observe = ?server.observe, page = ?server.page, version = env!("CARGO_PKG_VERSION"), "serving");
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
            tracing::warn!(signal = name, "second signal: stopping at once; every acknowledged change is on disk");
            std::process::exit(128 + number);
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Signals that make the server stop.
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
