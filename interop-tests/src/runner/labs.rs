//! Runs scenarios in one or more labs at the same time.

use std::collections::VecDeque;
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::guest::{Backend, Event, Guest, Job, Output, Spec};
use crate::scenario::{Outcome, Scenario, TestResult, directory};

/// Time after a scenario's deadline without any report, after which the guest itself counts as
/// hanging.
const GUEST_GRACE: Duration = Duration::from_secs(60);

/// Number of labs that run scenarios at the same time: 1 to 8. Each takes up to 2.5 GiB of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labs(usize);

impl Labs {
    pub(super) const fn get(self) -> usize {
        self.0
    }
}

impl Default for Labs {
    fn default() -> Self {
        Self(1)
    }
}

impl FromStr for Labs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(labs @ 1..=8) => Ok(Self(labs)),
            _ => Err(format!("{text:?} is not a number of labs, which is 1 to 8")),
        }
    }
}

/// The values that all labs of a run share.
#[derive(Clone, Copy)]
pub(super) struct Setup<'a> {
    pub(super) backend: &'a Backend,
    /// Directory that contains a directory for each scenario.
    pub(super) out: &'a Path,
    /// Directory of the programs under test.
    pub(super) programs: &'a Path,
    /// The environment of a scenario, in addition to this process's.
    pub(super) env: &'a [(String, String)],
    /// Whether to open a shell in the lab of a failed scenario.
    pub(super) keep: bool,
}

/// Runs the scenarios in so many labs at the same time. Calls `ended` when a scenario has ended.
///
/// # Errors
/// Returns an error if a lab cannot begin or `ended` fails; the other labs are then killed when
/// their present scenarios end.
pub(super) fn run_in_labs(
    setup: &Setup<'_>,
    scenarios: Vec<&'static Scenario>,
    labs: Labs,
    mut ended: impl FnMut(Outcome) -> Result<()>,
) -> Result<()> {
    let queue = Mutex::new(VecDeque::from(scenarios));
    std::thread::scope(|scope| {
        let (sender, outcomes) = channel();
        let runs: Vec<_> = (0..labs.get())
            .map(|_| {
                let (queue, sender) = (&queue, sender.clone());
                scope.spawn(move || run_batches(setup, queue, labs, &sender))
            })
            .collect();
        drop(sender);
        // The receiver ends with this call: after an error, the labs cannot report and end.
        let written = outcomes.into_iter().try_for_each(&mut ended);
        if written.is_err() {
            queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let run = runs
            .into_iter()
            .map(|run| run.join().unwrap_or_else(|_| bail!("a thread that runs a lab panicked")))
            .fold(Ok(()), Result::and);
        written.and(run)
    })
}

/// Takes scenarios from the queue until it is empty, and runs them in one lab after the other.
///
/// # Errors
/// Returns an error if the lab cannot begin, or nobody takes the outcomes. The queue is then empty.
fn run_batches(
    setup: &Setup<'_>,
    queue: &Mutex<VecDeque<&'static Scenario>>,
    labs: Labs,
    outcomes: &Sender<Outcome>,
) -> Result<()> {
    loop {
        let batch: Vec<_> = {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let size = batch_size(queue.len(), labs);
            queue.drain(..size).collect()
        };
        if batch.is_empty() {
            return Ok(());
        }
        let result = run_batch(setup, batch, |outcome| {
            outcomes.send(outcome).context("the results of the scenarios could not be written")
        });
        if result.is_err() {
            queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return result;
        }
    }
}

/// Returns how many scenarios a lab takes next from a queue of this length. A lab takes about 2 s
/// to begin; smaller batches towards the end let all labs end at about the same time.
fn batch_size(queued: usize, labs: Labs) -> usize {
    match labs.get() {
        1 => queued,
        labs => queued.div_ceil(3 * labs),
    }
}

/// Runs scenarios in one lab, and in another one when it has ended early.
fn run_batch(
    setup: &Setup<'_>,
    mut queue: Vec<&'static Scenario>,
    mut ended: impl FnMut(Outcome) -> Result<()>,
) -> Result<()> {
    // Name of the scenario that is repeated because the lab kernel panicked.
    let mut repeated = None;
    while !queue.is_empty() {
        let (done, death) = one_lab(setup, &queue, |mut outcome| {
            if outcome.result == TestResult::Pass && repeated.as_ref() == Some(&outcome.scenario) {
                outcome.why = "at its second run: in the first one, the lab's kernel panicked".to_owned();
            }
            ended(outcome)
        })?;
        queue.drain(..done);
        let Some(LabDeath { why, console, seconds }) = death else { continue };
        let Some(scenario) = queue.first() else { bail!("{why}") };
        let name = scenario.name.to_owned();
        if is_kernel_panic(&console) && repeated.as_ref() != Some(&name) {
            eprintln!("  after {seconds:.1} s, {why}\n  the lab's kernel panicked; {name} runs once more");
            repeated = Some(name);
            continue;
        }
        std::fs::write(directory(setup.out, &name).join("console.log"), console).ok();
        ended(Outcome { scenario: name, result: TestResult::Fail, seconds, why })?;
        queue.remove(0);
    }
    Ok(())
}

/// A lab that ended unexpectedly, while a scenario ran or after the last one.
struct LabDeath {
    /// The description, with the lab's console.
    why: String,
    console: String,
    /// Time for which the scenario had run, in seconds.
    seconds: f64,
}

/// Returns whether a kernel ended by its own fault. A kernel also panics if its first process ends,
/// but that process is our program.
fn is_kernel_panic(console: &str) -> bool {
    console.contains("Kernel panic") && !console.contains("Attempted to kill init")
}

/// Runs scenarios in one lab until all of them or the lab have ended. Returns how many scenarios
/// have ended, and how the lab ended if it ended early.
fn one_lab(
    setup: &Setup<'_>,
    queue: &[&Scenario],
    mut ended: impl FnMut(Outcome) -> Result<()>,
) -> Result<(usize, Option<LabDeath>)> {
    let &Setup { backend, out, programs, env, keep } = setup;
    let spec = Spec {
        writable: vec![out.to_owned()],
        disk: None,
        cwd: out.to_owned(),
        env: crate::exec::environment().into_iter().chain(env.iter().cloned()).collect(),
        window: rustix::termios::tcgetwinsize(std::io::stderr()).ok().map(|size| (size.ws_row, size.ws_col)),
        job: Job::Run {
            scenarios: queue.iter().map(|scenario| scenario.name.to_owned()).collect(),
            out: out.to_owned(),
            programs: programs.to_owned(),
            keep,
        },
    };
    let output = if keep { Output::Terminal } else { Output::Inherit };
    let mut lab = Guest::start(backend, &spec, output)?;
    let mut done = 0;
    let mut begun = Instant::now();
    loop {
        let timeout = match queue.get(done) {
            Some(scenario) if !keep => Some((scenario.deadline + GUEST_GRACE).saturating_sub(begun.elapsed())),
            _ => None,
        };
        let why = match lab.event(timeout) {
            Ok(Some(Event::Ready)) => continue,
            Ok(Some(Event::Begun { scenario })) => {
                begun = Instant::now();
                eprintln!("{scenario} ...");
                continue;
            }
            Ok(Some(Event::Ended { outcome })) => {
                done += 1;
                ended(outcome)?;
                continue;
            }
            Ok(Some(Event::Exit { .. })) => {
                lab.finish()?;
                anyhow::ensure!(done == queue.len(), "the lab ended after {done} of {} scenarios", queue.len());
                return Ok((done, None));
            }
            Ok(Some(Event::Broken { why })) => bail!("the lab could not begin: {why}"),
            Ok(None) => {
                lab.kill();
                format!("the lab hung; its console:\n{}", lab.console())
            }
            Err(error) => format!("{error:#}"),
        };
        let (console, seconds) = (lab.console(), begun.elapsed().as_secs_f64());
        return Ok((done, Some(LabDeath { why, console, seconds })));
    }
}

#[cfg(test)]
mod tests {
    use super::{Labs, batch_size, is_kernel_panic};

    #[test]
    fn one_lab_takes_all_scenarios_and_several_take_smaller_and_smaller_batches() {
        assert_eq!(batch_size(98, Labs(1)), 98);
        let (mut queued, mut batches) = (98, Vec::new());
        while queued > 0 {
            batches.push(batch_size(queued, Labs(2)));
            queued -= batches[batches.len() - 1];
        }
        assert_eq!(batches[0], 17);
        assert_eq!(batches[batches.len() - 6..], [1; 6]);
        assert_eq!(batch_size(0, Labs(2)), 0);
    }

    #[test]
    fn a_number_of_labs_is_one_to_eight() {
        assert_eq!("2".parse(), Ok(Labs(2)));
        for text in ["0", "9", "", "two", "-1"] {
            assert!(text.parse::<Labs>().is_err_and(|error| error.contains("1 to 8")), "{text:?}");
        }
    }

    #[test]
    fn a_kernel_that_panics_is_told_apart_from_our_first_process_that_ends() {
        assert!(is_kernel_panic("x\nKernel panic - not syncing: Segfault without recovery target"));
        assert!(!is_kernel_panic("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"));
        assert!(!is_kernel_panic(""));
    }
}
