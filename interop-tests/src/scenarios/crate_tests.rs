//! Runs the tests of single crates that need root and a kernel with ESP. The lab runs all these
//! tests, so that none is skipped.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::scenario::{CrateTest, Lab, Needs, Scenario, skip};

const XFRM_KERNEL: CrateTest = CrateTest { package: "edge-xfrm", target: "kernel" };

const CNI_KERNEL: CrateTest = CrateTest { package: "edge-cni", target: "kernel" };

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "xfrm/kernel",
        about: "the XFRM library's own tests against a kernel with ESP",
        deadline: Duration::from_secs(180),
        by_default: true,
        needs: Needs::CrateTest(XFRM_KERNEL),
        run: |lab| run(lab, &XFRM_KERNEL),
    },
    Scenario {
        name: "cni/kernel",
        about: "the plugin's own tests, which need no ESP: for machines where we are not root",
        deadline: Duration::from_secs(300),
        by_default: false,
        needs: Needs::CrateTest(CNI_KERNEL),
        run: |lab| run(lab, &CNI_KERNEL),
    },
];

fn run(lab: &Lab, test: &CrateTest) -> Result<()> {
    let Some(program) = std::env::var_os(test.variable()) else {
        return skip("it was not built for this run");
    };
    let out = std::process::Command::new(&program).output().context("the test cannot be run")?;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    std::fs::write(lab.out().join("output.log"), &said)?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(out.status.success(), "{}:\n{}", out.status, lines[lines.len().saturating_sub(40)..].join("\n"));
    ensure!(!said.contains("... skipped"), "the lab must skip nothing:\n{said}");
    Ok(())
}
