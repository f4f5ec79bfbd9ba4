//! The lab's command line.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs networks of real programs on a real kernel with IPsec, on an ordinary machine.
///
/// Where the host's kernel has ESP and we are root, the lab is a set of network namespaces. Everywhere else it is a User-Mode Linux
/// kernel, an ordinary process, which is built once (about 10 CPU-minutes) and kept in $XDG_CACHE_HOME/edge-cni.
#[derive(Parser)]
#[command(name = "interop-tests", version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run one command as root in the lab, in the current folder, and return its exit status.
    ///
    /// The command sees the host's files; what it writes is forgotten, except below the folders named by --writable. On a terminal
    /// it gets the terminal (try `exec -- bash`), else an empty standard input.
    Exec {
        /// `uml` or `host`; by default the host's kernel where it has all that is needed.
        #[arg(long, env = "EDGE_LAB_BACKEND", value_parser = ["uml", "host"])]
        backend: Option<String>,
        /// A folder whose contents the command may change for good; may be repeated.
        #[arg(long, value_name = "DIR")]
        writable: Vec<PathBuf>,
        /// The command and its arguments, after `--`.
        #[arg(required = true, last = true, value_name = "COMMAND")]
        argv: Vec<String>,
    },
    /// Make the lab kernel, if it is not there yet, and print its path.
    Kernel {
        /// Ask the package archive for a newer one.
        #[arg(long)]
        update: bool,
    },
    /// The lab's own parts; nothing here is for people.
    #[command(hide = true, subcommand)]
    Guest(GuestVerb),
}

#[derive(Subcommand)]
enum GuestVerb {
    /// Process 1 of a guest.
    Init {
        dir: PathBuf,
        /// User-Mode Linux adds words of its own (`console=tty0`) after ours.
        #[arg(trailing_var_arg = true)]
        kernel: Vec<String>,
    },
    /// What runs a job.
    Worker {
        #[arg(long)]
        lines: bool,
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Verb::Exec { backend, writable, argv } => interop_tests::exec::exec(argv, writable, backend.as_deref()),
        Verb::Kernel { update } => interop_tests::kernel::ensure(update).map(|path| {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }),
        Verb::Guest(GuestVerb::Init { dir, .. }) => Ok(interop_tests::guest::init(&dir)),
        Verb::Guest(GuestVerb::Worker { lines, dir }) => interop_tests::guest::worker(&dir, lines),
    };
    result.unwrap_or_else(|error| {
        eprintln!("interop-tests: {error:#}");
        ExitCode::from(125)
    })
}
