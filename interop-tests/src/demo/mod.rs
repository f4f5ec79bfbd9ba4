//! The demo: the whole system on six machines, and what it claims, checked one by one.
//!
//! - `world`: the network, its routers' captures, starting and ending programs.
//! - `cloud`, `pod`, `status`: the operator's, the runtime's and a script's way to the programs.
//! - `wire`: what the captures hold. `check`: claims, counted.
//! - `kubernetes`: the same with nodes, labels and segments in a real API server; `rollover`:
//!   another authority takes over; `undisturbed`: what must go on meanwhile.
//! - `firewall`: a scenario of its own in the same network: who gets nowhere by routing through an
//!   edge, and what others' rules do.
//! - `early`, `reach`, `lan`, `isolation` with `posing`, `truth`, `change`, `alone`: the parts, in
//!   order.

mod alone;
mod change;
mod check;
mod cloud;
mod early;
mod firewall;
mod isolation;
mod kubernetes;
mod lan;
mod pod;
mod posing;
mod reach;
mod rollover;
mod status;
pub mod tcp;
mod truth;
mod undisturbed;
mod wire;
mod world;

use std::process::ExitCode;

use anyhow::Result;

use crate::runner::{Lab, RunOptions, Scenario, Verdict, outcomes};
use world::World;

pub use firewall::SCENARIO as FIREWALL;

/// The demo as a scenario: `make test` runs it as well.
pub const SCENARIO: Scenario = Scenario {
    name: "demo/all",
    about: "a cloud and four edge sites: reach, the LAN, no reach, the wire, change, growth, without the cloud, the end",
    deadline: std::time::Duration::from_secs(600),
    by_default: true,
    run,
};

/// Membership and segments from a real Kubernetes.
pub const KUBERNETES: Scenario = Scenario {
    name: "demo/kubernetes",
    about: "communities from Node objects that kubectl changes, segments in etcd, the API server lost, a Node deleted",
    deadline: std::time::Duration::from_secs(600),
    by_default: true,
    run: kubernetes::run,
};

/// Runs the demo for a person: its steps and the end on standard error, exit status 1 if a check
/// did not hold.
///
/// # Errors
/// When there is no lab to be had or the programs do not build.
pub fn main(backend: Option<String>, keep: bool) -> Result<ExitCode> {
    let options = RunOptions { names: vec![SCENARIO.name.to_owned()], backend, keep };
    let outcomes = outcomes(&options, |outcome, kept| {
        if outcome.result != Verdict::Pass {
            eprintln!("\ndemo: {}\n  logs and captures: {}", outcome.why, kept.display());
        }
        Ok(())
    })?;
    Ok(ExitCode::from(u8::from(!outcomes.iter().all(|outcome| outcome.result == Verdict::Pass))))
}

fn run(lab: &Lab) -> Result<()> {
    let world = World::build(lab)?;
    early::nothing_leaves_in_clear(&world)?;
    let pods = reach::bring_up(&world)?;
    reach::everyone_reaches(&world, &pods)?;
    reach::spis_are_the_kernels(&world)?;
    lan::no_way_in_but_a_way_out(&world, &pods)?;
    isolation::nobody_else(&world, &pods)?;
    truth::kernel_and_status_agree(&world)?;
    change::under_load(&world, &pods)?;
    let _grown = change::growth(&world, &pods)?;
    alone::without_the_cloud(&world, &pods)?;
    alone::the_end_of_a2(&world, &pods)?;
    reach::only_esp_on_the_wire(&world, "to the very end")?;
    alone::down(&world)?;
    world.end_captures()?;
    eprintln!("\ndemo: {} checks passed in {:.0} s", world.checks.passed(), world.checks.elapsed().as_secs_f64());
    Ok(())
}
