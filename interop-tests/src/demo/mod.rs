//! The demo, which runs the whole system on six machines and checks each of its claims.
//!
//! - `layout`: the nodes and sites of the network. `world`: the network, the captures on its
//!   routers, and the programs that run in it.
//! - `operator`, `pod`, `status`: act as an operator, a container runtime and a script.
//! - `captured_frames`: classifies and counts captured frames. `check_runner`: runs, counts and
//!   shows the checks.
//! - The demo's parts, in their order: `before_agent`, `reach`, `lan_hosts`, `isolation` with
//!   `pod_spoofing`, `status_and_kernel`, `changes_under_load`, `controller_outage`,
//!   `deregistration`. Each part calls `check_runner` once for each of its checks.
//! - `kubernetes`: a scenario with nodes, labels and segments in a real API server (`api_server`).
//!   Its parts are `ca_rollover`, and `tunnel_watch` for tunnels that must not be interrupted.
//! - `firewall`: a scenario in the same network, which checks that hosts that route through an edge
//!   reach nothing and that other programs' rules are handled or reported. `router_advertisements`
//!   is a part of this scenario. A second scenario in `firewall` has the rules of Docker and
//!   firewalld.
//! - [`tour`]: shows the same network to a person, step by step.
//! - [`chaos`]: causes random events in the same network, or in a larger one.

mod api_server;
mod before_agent;
mod ca_rollover;
mod captured_frames;
mod changes_under_load;
pub mod chaos;
mod check_runner;
mod controller_outage;
mod deregistration;
mod firewall;
mod isolation;
mod kubernetes;
mod lan_hosts;
mod layout;
mod operator;
mod pod;
mod pod_spoofing;
mod reach;
mod router_advertisements;
mod status;
mod status_and_kernel;
pub mod tcp;
pub mod tour;
mod tunnel_watch;
mod world;

use std::process::ExitCode;

use anyhow::Result;

use crate::kernel::Purpose;
use crate::runner::{RunOptions, outcomes};
use crate::scenario::{Lab, Needs, Scenario, TestResult};
use world::World;

pub use deregistration::{HOST_STATE, compare_host};
pub use firewall::{DOCKER_AND_FIREWALLD, SCENARIO as FIREWALL};

/// The demo as a scenario: `make test` runs it as well.
pub const SCENARIO: Scenario = Scenario {
    name: "demo/all",
    about: "a cloud and four edge sites: who reaches whom, LAN hosts, no packet in clear, moves and labels, more segments, the cloud away, deregistration",
    deadline: std::time::Duration::from_secs(600),
    by_default: true,
    needs: Needs::Nothing,
    run,
};

/// The demo with nodes, communities and segments in a real Kubernetes API server.
pub const KUBERNETES: Scenario = Scenario {
    name: "demo/kubernetes",
    about: "communities from Node objects that kubectl changes, segments in etcd, the API server lost, a Node deleted",
    deadline: std::time::Duration::from_secs(600),
    by_default: true,
    needs: Needs::ControlPlane,
    run: kubernetes::run,
};

/// Runs the demo for a person. Its steps and its result are written to standard error, and the exit
/// status is 1 if a check failed.
///
/// # Errors
/// Returns an error if there is no lab or the programs do not build.
pub fn main(backend: Option<String>, keep: bool) -> Result<ExitCode> {
    let options = RunOptions {
        names: vec![SCENARIO.name.to_owned()],
        backend,
        keep,
        purpose: Purpose::Demo,
        ..RunOptions::default()
    };
    let outcomes = outcomes(&[&SCENARIO], &options, |outcome, kept| {
        if outcome.result != TestResult::Pass {
            eprintln!("\ndemo: {}\n  logs and captures: {}", outcome.why, kept.display());
        }
        Ok(())
    })?;
    Ok(ExitCode::from(u8::from(!outcomes.iter().all(|outcome| outcome.result == TestResult::Pass))))
}

fn run(lab: &Lab) -> Result<()> {
    let world = World::build(lab)?;
    let before = deregistration::host_before_us(&world)?;
    before_agent::nothing_leaves_in_clear(&world)?;
    let pods = reach::bring_up(&world)?;
    reach::everyone_reaches(&world, &pods)?;
    reach::spis_are_the_kernels(&world)?;
    lan_hosts::no_way_in_but_a_way_out(&world, &pods)?;
    isolation::check_isolation(&world, &pods)?;
    status_and_kernel::kernel_and_status_agree(&world, &pods)?;
    changes_under_load::rekey_and_move(&world, &pods)?;
    let _grown = changes_under_load::growth(&world, &pods)?;
    controller_outage::pods_keep_talking(&world, &pods)?;
    deregistration::a2_leaves(&world, &pods)?;
    reach::only_esp_on_the_wire(&world, "to the very end")?;
    deregistration::agent_down(&world)?;
    deregistration::uninstalled(&world, &before)?;
    world.end_captures()?;
    eprintln!("\ndemo: {} checks passed in {:.0} s", world.checks.passed(), world.checks.elapsed().as_secs_f64());
    Ok(())
}
