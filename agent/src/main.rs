//! `edge-agent`: negotiates IPsec tunnels with its peers using IKEv2 and installs them in the
//! kernel. See `docs/agent.md`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    edge_agent::cli::Cli::parse().execute()
}
