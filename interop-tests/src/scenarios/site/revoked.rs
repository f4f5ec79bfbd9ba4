//! Revokes the daemon's certificate by a CRL (RFC 5280) while the tunnel is up.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Daemon, Initiator, Site};
use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::strongswan::{Authority, Credentials, KeyKind};
use crate::wait;

const LIST: &str = "/etc/edge-cni/ca.crl";

/// Checks a tunnel to a daemon with the certificate `theirs`, which the authority then revokes.
/// Returns the agent, which runs.
pub(in crate::scenarios) fn check<'a>(
    lab: &Lab,
    site: &Site<'a>,
    authority: &Authority,
    theirs: &Credentials,
    daemon: &impl Daemon,
) -> Result<Agent<'a>> {
    let ours = authority.issue("edge.example", KeyKind::P256)?;
    for (path, text) in [
        ("/etc/edge-cni/agent.pem", &ours.certificate_pem),
        ("/etc/edge-cni/agent.key", &ours.key_pem),
        ("/etc/edge-cni/ca.pem", &authority.certificate_pem),
        // The list has a certificate of another holder.
        (LIST, &authority.revocation_list(1, &[&authority.issue("noon.example", KeyKind::P256)?])?),
    ] {
        site.edge.write(path, text)?;
    }
    site.edge.sh("chmod 600 /etc/edge-cni/agent.key")?;
    let mut agent = Agent::start_with(lab, site.edge, &agent_toml(site.initiator), "debug")?;
    agent.wait_ready()?;
    if site.initiator == Initiator::Moon {
        wait::for_event(&format!("{} to get through", daemon.name()), || daemon.initiate())?;
    }
    agent.wait_up("moon")?;
    daemon.wait_up()?;
    ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the tunnel");
    lab.step("up with a list that revokes another certificate");

    site.edge.write(&format!("{LIST}.new"), &authority.revocation_list(2, &[theirs])?)?;
    site.edge.sh(&format!("mv {LIST}.new {LIST}"))?;
    // An agent that initiates tries again, and deletes what the daemon has established before it
    // refuses the certificate.
    wait::for_event("the tunnel to end at both ends", || {
        ensure!(agent.tunnel("moon").is_err(), "the agent still has it");
        ensure!(daemon.count_children()? == 0, "{} still has it", daemon.name());
        Ok(())
    })?;
    let error = wait::for_event("the reason in the status", || agent.last_error("moon"))?;
    ensure!(error.contains("revoked"), "it says {error:?}");
    ensure!(!site.edge_pod.reaches("10.2.0.2", Duration::from_millis(300))?, "a ping is answered");
    lab.step("the revoked certificate has ended the tunnel");
    Ok(agent)
}

fn agent_toml(initiator: Initiator) -> String {
    let way = match initiator {
        Initiator::Edge => "remote = \"203.0.113.10\"\nstart = \"initiate\"",
        Initiator::Moon => "start = \"respond\"",
    };
    format!(
        "[[peer]]\nname = \"moon\"\n{way}\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\n\
         certificate = \"agent.pem\"\nkey = \"agent.key\"\ntrust_anchors = \"ca.pem\"\ncrls = \"{LIST}\"\nrevocation = \"strict\"\n\
         local_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.2.0.0/24\"]\n"
    )
}
