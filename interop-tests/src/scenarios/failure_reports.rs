//! Tests the runner itself: a scenario that fails, panics, crashes or hangs is reported as failed,
//! its logs are kept, and the next scenario runs.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::guest::{Event, JobIo};
use crate::runner::{RunContext, run_all};
use crate::scenario::{Lab, Needs, Outcome, Scenario, TestResult, skip};
use crate::topology::NetworkPlan;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "lab/failures-are-reported",
        about: "scenarios that fail, panic, crash, hang or skip are reported as such, their logs are kept, the next one runs",
        deadline: Duration::from_secs(60),
        by_default: true,
        needs: Needs::Nothing,
        run: failures_are_reported,
    },
    broken("lab/broken-fails", "must fail: its error is reported", fails),
    broken("lab/broken-panics", "must fail: it panics", panics),
    broken("lab/broken-crashes", "must fail: its process ends without a result", crashes),
    broken("lab/broken-hangs", "must fail: it never ends", hangs),
    broken("lab/broken-skips", "must be skipped", skips),
];

const fn broken(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(4), by_default: false, needs: Needs::Nothing, run }
}

fn fails(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("a").on("wire", &["192.0.2.1/24"]);
    let net = lab.build(&plan)?;
    net.node("a")
        .start("witness", net.node("a").command("sh").args(["-c", "echo here; sleep 100"]))?
        .wait_log("here")?;
    net.node("a").sh("echo on purpose >&2; exit 3").map(drop)
}

fn panics(_: &Lab) -> Result<()> {
    let nothing: Vec<u8> = Vec::new();
    bail!("unreachable: {}", nothing[0])
}

fn crashes(_: &Lab) -> Result<()> {
    std::process::exit(9)
}

fn hangs(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("a").on("wire", &["192.0.2.1/24"]);
    lab.build(&plan)?;
    loop {
        std::thread::park();
    }
}

fn skips(_: &Lab) -> Result<()> {
    skip("on purpose")
}

fn failures_are_reported(lab: &Lab) -> Result<()> {
    let names: Vec<String> = ["fails", "panics", "crashes", "hangs", "skips"]
        .into_iter()
        .map(|what| format!("lab/broken-{what}"))
        .chain(["lab/nodes-are-apart".to_owned()])
        .collect();
    let env = crate::exec::environment();
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().chain(super::lab::SCENARIOS).collect();
    let context = RunContext {
        scenarios: &scenarios,
        out: lab.out(),
        programs: lab.out(),
        keep: false,
        env: &env,
        io: JobIo::Inherited,
    };
    let mut outcomes: Vec<Outcome> = Vec::new();
    run_all(&names, &context, |event| {
        if let Event::Ended { outcome } = event {
            outcomes.push(outcome);
        }
        Ok(())
    })?;
    let expected = [
        (TestResult::Fail, "exit status: 3: on purpose"),
        (TestResult::Fail, "panicked: index out of bounds"),
        (TestResult::Fail, "ended (exit status: 9) without a result"),
        (TestResult::Fail, "did not end within 4s"),
        (TestResult::Skip, "on purpose"),
        (TestResult::Pass, ""),
    ];
    for ((outcome, name), (verdict, why)) in outcomes.iter().zip(&names).zip(expected) {
        ensure!(outcome.scenario == *name, "{name} was reported as {outcome:?}");
        ensure!(
            outcome.result == verdict && outcome.why.contains(why),
            "{verdict:?} because of {why:?} was expected, reported was {outcome:?}"
        );
    }
    ensure!(outcomes.len() == expected.len(), "{} were reported", outcomes.len());
    for file in ["lab/broken-fails/a.witness.log", "lab/broken-fails/a.kernel.txt", "lab/broken-hangs/a.kernel.txt"] {
        let kept = std::fs::read_to_string(lab.out().join(file)).unwrap_or_default();
        ensure!(!kept.is_empty(), "{file} was not kept");
    }
    let left = std::process::Command::new("pgrep").args(["-f", "sleep 100"]).output()?;
    ensure!(!left.status.success(), "a program outlived its scenario: {}", String::from_utf8_lossy(&left.stdout));
    Ok(())
}
