//! Measures the cost of a plugin call, compared with bridge and host-local, and with a baseline: a
//! program that creates the same links, addresses and routes, and nothing else.
//!
//! `cargo bench -p edge-cni --bench attach` prints a table and writes `target/bench/cni.json`. It
//! must run as root. The programs take turns in one run, each in a separate network namespace.
//! Results are medians. `EDGE_CNI` is the path of the plugin (default: the program built with the
//! bench profile), and `CNI_PLUGINS` is the directory of bridge and host-local. `EMPTY_PROGRAM` is
//! the path of a static program that does nothing. It is the baseline for the time to answer
//! VERSION (default: the start of the baseline program). Without `--bench` (as under `cargo test
//! --all-targets`) each case runs once, and nothing is written.

mod floor;
mod program;
mod report;

use std::path::Path;
use std::process::ExitCode;

use interop_tests::netns;

use program::{Host, Program, State, Usage};
use report::{Goal, Report};

/// Number of pods in one round, and number of pods that are attached simultaneously.
const PODS: usize = 21;
const AT_ONCE: usize = 50;

/// Number of answers to VERSION. Each takes a tenth of a millisecond, which other work on the
/// machine changes by a multiple.
const STARTS: usize = 1001;

/// Number of existing leases in the cases `.../5000-leases`.
const LEASES: usize = 5000;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == floor::ARGUMENT) {
        return floor::run();
    }
    let measure = std::env::args().any(|argument| argument == "--bench");
    if let Some(why) = netns::unavailable() {
        println!("not measured: {why}");
        return ExitCode::from(u8::from(measure));
    }
    let (pods, at_once) = if measure { (PODS, AT_ONCE) } else { (1, 2) };
    let mut report = Report::default();
    let programs = Program::all();
    // Hosts with leases and without take turns, too: the reads of thousands of files by host-local
    // would else slow down only the calls after them.
    let hosts = programs.iter().flat_map(|program| [(program, 0), (program, LEASES)]);
    let hosts = hosts.filter(|(program, leases)| program.name != program::FLOOR || *leases == 0);
    let on_disk = hosts.map(|(program, leases)| Round::new(program, leases, pods, State::Disk));
    let in_memory = programs.iter().map(|program| Round::new(program, 0, pods, State::Memory));
    let rounds = measured(on_disk.chain(in_memory).collect(), pods);
    for (verb, index) in [("add", 0), ("check", 1), ("del", 2)] {
        let of = |program: &str, value: fn(&Usage) -> f64| median(&rounds, (program, 0, State::Disk), index, value);
        let wall_goal = if verb == "add" { Goal::OfFloor(1.25) } else { Goal::None };
        report.add(&format!("{verb}/wall"), "ms", |program| of(program, |usage| usage.wall), wall_goal);
        report.add(&format!("{verb}/cpu"), "ms CPU", |program| of(program, |usage| usage.cpu), Goal::OfStock(0.2));
    }
    let in_memory = |program: &str| median(&rounds, (program, 0, State::Memory), 0, |usage| usage.wall);
    report.add("add/wall/tmpfs", "ms", in_memory, Goal::OfFloor(1.1));
    let memory: Vec<(&str, f64)> = programs.iter().map(|program| (program.name, program::memory(program))).collect();
    let memory_of = |name: &str| memory.iter().find(|(other, _)| *other == name).map(|(_, kib)| *kib);
    report.add("add/memory", "KiB at most", memory_of, Goal::Ours(2048.0));
    for (verb, index) in [("add", 0), ("check", 1), ("del", 2)] {
        let cpu =
            |program: &str, leases: usize| median(&rounds, (program, leases, State::Disk), index, |usage| usage.cpu);
        report.add(&format!("{verb}/cpu/{LEASES}-leases"), "ms CPU", |program| cpu(program, LEASES), Goal::None);
        let growth = |program: &str| Some(cpu(program, LEASES)? / cpu(program, 0)?);
        report.add(&format!("{verb}/cpu-growth/{LEASES}-leases"), "times", growth, Goal::Ours(1.1));
        let wall = |program: &str| median(&rounds, (program, LEASES, State::Disk), index, |usage| usage.wall);
        report.add(&format!("{verb}/wall/{LEASES}-leases"), "ms", wall, Goal::None);
    }
    for leases in [0, LEASES] {
        let runs: Vec<(&str, program::Burst)> = programs
            .iter()
            .filter(|program| program.name != program::FLOOR)
            .map(|program| (program.name, program::burst(program, leases, at_once)))
            .collect();
        let of = |name: &str, value: fn(&program::Burst) -> Option<f64>| {
            runs.iter().find(|(other, _)| *other == name).and_then(|(_, burst)| value(burst))
        };
        let suffix = if leases == 0 { String::new() } else { format!("/{leases}-leases") };
        report.add(
            &format!("add/{AT_ONCE}-at-once/wall{suffix}"),
            "ms",
            |name| of(name, |burst| Some(burst.wall)),
            Goal::OfStock(1.0 / 3.0),
        );
        report.add(
            &format!("add/{AT_ONCE}-at-once/memory{suffix}"),
            "KiB",
            |name| of(name, |burst| burst.memory),
            Goal::OfStock(1.0 / 6.0),
        );
    }
    let empty = Program::empty();
    let measured = programs.iter().filter(|program| empty.is_none() || program.name != program::FLOOR);
    let starting: Vec<&Program> = measured.chain(&empty).collect();
    let starts = program::starts(&starting, if measure { STARTS } else { 1 });
    let start =
        |name: &str| starting.iter().zip(&starts).find(|(program, _)| program.name == name).map(|(_, wall)| *wall);
    report.add("version/wall", "ms", start, Goal::OfFloor(1.2));
    let size = |name: &str| programs.iter().find(|program| program.name == name).map(Program::size);
    report.add("binary", "KiB", |name| size(name).filter(|_| name != program::FLOOR), Goal::Ours(1024.0));
    if measure {
        report.write(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench/cni.json")));
    }
    ExitCode::SUCCESS
}

/// One program on a separate host, with the resources that its calls ADD, CHECK and DEL used.
struct Round<'a> {
    leases: usize,
    state: State,
    host: Host<'a>,
    used: [Vec<Usage>; 3],
}

impl<'a> Round<'a> {
    fn new(program: &'a Program, leases: usize, pods: usize, state: State) -> Self {
        Self {
            leases,
            state,
            host: Host::new(program, leases, pods + 1, state),
            used: [Vec::new(), Vec::new(), Vec::new()],
        }
    }
}

/// Attaches, checks and detaches each pod with all programs in turn, each time in another order.
/// The first pod sets up the host and is not counted.
fn measured(mut rounds: Vec<Round<'_>>, pods: usize) -> Vec<Round<'_>> {
    let mut random = fastrand::Rng::with_seed(0);
    for pod in 0..=pods {
        random.shuffle(&mut rounds);
        for round in &mut rounds {
            let added = round.host.add(pod);
            let checked = round.host.check(pod);
            if pod > 0 {
                round.used[0].push(added);
                round.used[1].extend(checked);
            }
        }
    }
    for pod in 0..=pods {
        random.shuffle(&mut rounds);
        for round in &mut rounds {
            let deleted = round.host.del(pod);
            if pod > 0 {
                round.used[2].push(deleted);
            }
        }
    }
    rounds
}

/// Returns the median of a value of a program on the host with this number of leases and with its
/// state on this file system. `None` if the program does not support the verb, or was not measured
/// so.
fn median(
    rounds: &[Round<'_>],
    (program, leases, state): (&str, usize, State),
    verb: usize,
    value: fn(&Usage) -> f64,
) -> Option<f64> {
    let round = rounds
        .iter()
        .find(|round| round.host.program.name == program && round.leases == leases && round.state == state)?;
    let mut values: Vec<f64> = round.used.get(verb)?.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
