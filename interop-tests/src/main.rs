//! The lab's command line.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use interop_tests::built_once::{BuiltOnce, CLOUDCORE, CONTAINERD_1_7, CONTAINERD_2_1, EDGECORE};
use interop_tests::kernel::Purpose;
use interop_tests::runner::{Labs, RunOptions};
use interop_tests::scenarios::all;
use interop_tests::scenarios::interop::summary;

/// Runs test networks of real programs on a real kernel with IPsec, on an ordinary machine.
///
/// If the host's kernel has ESP and this program runs as root, the lab uses network namespaces of
/// the host. Otherwise it runs in a User-Mode Linux kernel, which is an ordinary process. That
/// kernel is built once (about 10 CPU-minutes) and kept in $XDG_CACHE_HOME/edge-cni.
#[derive(Parser)]
#[command(name = "interop-tests", version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run one command as root in the lab, in the current directory, and return its exit status.
    ///
    /// The command sees the host's files. Its changes to files are discarded, except below the
    /// directories given with --writable. If standard input is a terminal, the command gets it (try
    /// `exec -- bash`); otherwise its standard input is empty.
    Exec {
        /// `uml` or `host`; by default `host` if the host's kernel has all that is needed.
        #[arg(long, env = "EDGE_LAB_BACKEND", value_parser = ["uml", "host"])]
        backend: Option<String>,
        /// A directory in which the command's changes are kept; the option may be repeated.
        #[arg(long, value_name = "DIR")]
        writable: Vec<PathBuf>,
        /// The command and its arguments, after `--`.
        #[arg(required = true, last = true, value_name = "COMMAND")]
        argv: Vec<String>,
    },
    /// List the scenarios.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run scenarios, and print one line of JSON for each.
    ///
    /// Logs, captures and the kernels' state are in target/lab-logs/SCENARIO. The exit status is 1
    /// if a scenario failed.
    Run {
        /// Names of scenarios, or prefixes such as `strongswan/`; all scenarios by default.
        names: Vec<String>,
        /// `uml` or `host`; by default `host` if the host's kernel has all that is needed.
        #[arg(long, env = "EDGE_LAB_BACKEND", value_parser = ["uml", "host"])]
        backend: Option<String>,
        /// Open a shell in the lab of a failed scenario, while its programs still run.
        #[arg(long)]
        keep: bool,
        /// Number of labs that run scenarios at the same time, 1 to 8; each takes up to 2.5 GiB of
        /// memory.
        #[arg(long, value_name = "N", default_value = "1", conflicts_with = "keep")]
        labs: Labs,
    },
    /// Run the demo: a cloud and four edge sites, with a check of every claim.
    ///
    /// Ends with `demo: N checks passed`, or with exit status 1 and the check that failed, what was
    /// observed and where to look.
    Demo {
        /// `uml` or `host`; by default `host` if the host's kernel has all that is needed.
        #[arg(long, env = "EDGE_LAB_BACKEND", value_parser = ["uml", "host"])]
        backend: Option<String>,
        /// Open a shell in the lab if a check fails, while its programs still run.
        #[arg(long)]
        keep: bool,
    },
    /// Show the demo's network step by step, with a map, and end at a prompt in it.
    ///
    /// On a terminal, each step waits for Enter. Without one, the tour runs through and has no
    /// prompt.
    Tour {
        /// `uml` or `host`; by default `host` if the host's kernel has all that is needed.
        #[arg(long, env = "EDGE_LAB_BACKEND", value_parser = ["uml", "host"])]
        backend: Option<String>,
    },
    /// Cause random events in the demo's network, and check its claims after each round.
    ///
    /// The same seed gives the same events. Ends at the first check that fails, with exit status 1.
    Chaos {
        /// Duration, minutes.
        #[arg(long, default_value_t = 5)]
        minutes: u64,
        /// The seed of the events.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// `uml` or `host`; by default `host` if the host's kernel has all that is needed.
        #[arg(long, env = "EDGE_LAB_BACKEND", value_parser = ["uml", "host"])]
        backend: Option<String>,
    },
    /// Kill the lab's kernel at random moments of ADD and DEL, with the leases on an ext4 disk, and
    /// check after each boot that no lease is lost and that no two pods get the same address.
    ///
    /// Prints one line of JSON, as `run` does. The same seed gives the same moments if the load on
    /// the machine is the same.
    PowerCuts {
        /// Number of power cuts.
        #[arg(long, default_value_t = 3)]
        cuts: u32,
        /// The seed of the moments.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Measure edge-agent with many peers, print a table and write target/bench/agent.json.
    ///
    /// Run it from an optimized build, with optimized programs in $EDGE_LAB_PROGRAMS; `make
    /// bench-agent` does both. Cases that are not measured this time keep their earlier results in
    /// the file.
    Bench {
        /// Measurements: tunnels-N with N peers (see `list`); by default a few, which take minutes.
        names: Vec<String>,
        /// `uml` or `host`; by default `host` if the host's kernel has all that is needed.
        #[arg(long, env = "EDGE_LAB_BACKEND", value_parser = ["uml", "host"])]
        backend: Option<String>,
    },
    /// Measure packet loss during events: agents restarted or killed, a link down, SAs deleted or
    /// flushed.
    ///
    /// Each event happens three times. Prints a table with the medians and the required values, and
    /// writes target/bench/interruptions.json. The exit status is 1 if a median misses its goal by
    /// more than the allowance.
    Interruptions {
        /// Measurements (see `list`); all by default.
        names: Vec<String>,
        /// `uml` or `host`; by default `host` if the host's kernel has all that is needed.
        #[arg(long, env = "EDGE_LAB_BACKEND", value_parser = ["uml", "host"])]
        backend: Option<String>,
    },
    /// Build the lab kernel if it does not exist yet, and print its path.
    Kernel {
        /// Look for a newer kernel in the package archive.
        #[arg(long)]
        update: bool,
    },
    /// Build kube-apiserver and kubectl if they do not exist yet, and print the path of
    /// kube-apiserver; kubectl is in the same directory.
    KubeApiserver,
    /// Build KubeEdge's edgecore if it does not exist yet, and print its directory.
    Edgecore,
    /// Build KubeEdge's cloudcore if it does not exist yet, and print its directory.
    Cloudcore,
    /// Build containerd 1.7 and 2.1 if they do not exist yet, and print their directories.
    Containerd,
    /// Start a fresh Kubernetes control plane, run one command (by default a shell) against it, and
    /// return the command's exit status.
    ///
    /// KUBECONFIG names the kubeconfig of the control plane's administrator, and kubectl has the
    /// same release as the control plane. The control plane is removed afterwards.
    Kube {
        /// An additional flag for kube-apiserver; the option may be repeated.
        #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
        api_server: Vec<String>,
        /// The command and its arguments, after `--`.
        #[arg(last = true, value_name = "COMMAND")]
        argv: Vec<String>,
    },
    /// The lab's internal processes; not for direct use.
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
    /// Runs a job.
    Worker {
        dir: PathBuf,
        #[arg(long)]
        events: Option<PathBuf>,
    },
    /// One scenario, as process 1 of its namespaces.
    Scenario {
        name: String,
        out: PathBuf,
        programs: PathBuf,
        #[arg(long)]
        keep: bool,
    },
    /// Keeps a node's namespaces alive.
    NamespaceHolder,
    /// Plays many IKE peers, described by JSON.
    IkePeers { set: String },
    /// Sends a text to each client that connects.
    TcpServe { port: u16, text: String },
    /// Connects to a TCP server and prints what it sends.
    TcpFetch { address: String },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Verb::Exec { backend, writable, argv } => interop_tests::exec::exec(argv, writable, backend.as_deref()),
        Verb::Kernel { update } => interop_tests::kernel::ensure(Purpose::Scenarios, update).map(|path| {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }),
        Verb::KubeApiserver => interop_tests::kube::ensure().map(|programs| {
            println!("{}", programs.api_server.display());
            ExitCode::SUCCESS
        }),
        Verb::Edgecore => build(&[EDGECORE]),
        Verb::Cloudcore => build(&[CLOUDCORE]),
        Verb::Containerd => build(&[CONTAINERD_1_7, CONTAINERD_2_1]),
        Verb::Kube { api_server, argv } => interop_tests::kube::session(api_server, argv),
        Verb::Guest(GuestVerb::Init { dir, .. }) => Ok(interop_tests::guest::init(&dir)),
        Verb::List { json } => interop_tests::runner::list(&all(), json),
        Verb::Run { names, backend, keep, labs } => {
            let options = RunOptions { names, backend, keep, labs, ..RunOptions::default() };
            interop_tests::runner::run(&all(), &options, summary)
        }
        Verb::Bench { names, backend } => interop_tests::bench::main(&names, backend),
        Verb::Interruptions { names, backend } => interop_tests::bench::interruptions(&names, backend),
        Verb::Chaos { minutes, seed, backend } => interop_tests::demo::chaos::main(minutes, seed, backend),
        Verb::PowerCuts { cuts, seed } => interop_tests::power_cuts::main(cuts, seed),
        Verb::Demo { backend, keep } => interop_tests::demo::main(backend, keep),
        Verb::Tour { backend } => interop_tests::demo::tour::main(backend),
        Verb::Guest(GuestVerb::TcpServe { port, text }) => {
            interop_tests::demo::tcp::serve(port, &text).map(|()| ExitCode::SUCCESS)
        }
        Verb::Guest(GuestVerb::TcpFetch { address }) => interop_tests::demo::tcp::fetch(&address).map(|text| {
            print!("{text}");
            ExitCode::SUCCESS
        }),
        Verb::Guest(GuestVerb::Worker { dir, events }) => {
            interop_tests::runner::worker(&all(), &dir, events.as_deref())
        }
        Verb::Guest(GuestVerb::Scenario { name, out, programs, keep }) => {
            interop_tests::runner::single(&all(), &name, &out, &programs, keep)
        }
        Verb::Guest(GuestVerb::IkePeers { set }) => interop_tests::ike_peers::main(&set),
        Verb::Guest(GuestVerb::NamespaceHolder) => interop_tests::topology::namespace_holder(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("interop-tests: {error:#}");
        ExitCode::from(125)
    })
}

/// Builds programs of other projects, and prints their directories.
fn build(programs: &[BuiltOnce]) -> anyhow::Result<ExitCode> {
    for one in programs {
        println!("{}", one.ensure()?.display());
    }
    Ok(ExitCode::SUCCESS)
}
