//! `edge-agent diagnose`: finds the reason why a node, a peer or a pod cannot be reached. It
//! queries the running agent and the kernel, and probes the peers' ports. It changes nothing. The
//! last line of its output is a conclusion in one sentence.
//!
//! - `facts`: reads the data for the diagnosis.
//! - `ike_probe`: checks whether an IKE daemon answers at an address.
//! - `port_holders`: finds the programs that hold the agent's UDP ports while no agent answers.
//! - `target`: finds the peer to which the operator's question refers.
//! - `route`: asks the kernel for the route to a peer.
//! - `judgement`: evaluates the data and produces the findings. It does no I/O.
//! - `clock`: compares the system clock with the controller's, for `judgement`.
//! - `nat`: finds the kind of NAT in front of this node, for `judgement`.

mod clock;
mod facts;
mod ike_probe;
mod judgement;
mod nat;
mod port_holders;
mod route;
mod target;
#[cfg(test)]
mod tests;

pub(crate) use target::Target;

use serde::Serialize;

use crate::check::Report;
use crate::config::Config;
use crate::stdout::print;

/// The output of `edge-agent diagnose --json`.
#[derive(Debug, Serialize)]
struct Diagnosis<'a> {
    findings: &'a Report,
    conclusion: &'a str,
}

/// Prints the diagnosis of this node, or of `about`: a peer, or an address. Fails if the diagnosis
/// contains an error, or `about` is unknown.
pub fn diagnose(config: &Config, about: Option<&str>, json: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let facts = runtime.block_on(facts::gather(config, about)).map_err(anyhow::Error::msg)?;
    let report = judgement::judge(&facts);
    let conclusion = judgement::conclusion(&report);
    let text = if json {
        serde_json::to_string_pretty(&Diagnosis { findings: &report, conclusion: &conclusion })? + "\n"
    } else {
        format!("{}\n{conclusion}\n", report.render())
    };
    print(&text)?;
    anyhow::ensure!(report.errors() == 0, "{} of {} findings are errors", report.errors(), report.iter().len());
    Ok(())
}
