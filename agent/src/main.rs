//! `edge-agent`: speaks IKEv2 with its peers and programs the kernel's XFRM accordingly. See
//! `docs/agent.md`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    edge_agent::cli::Cli::parse().execute()
}
