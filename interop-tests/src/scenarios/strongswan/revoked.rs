//! Revokes charon's certificate by a CRL (RFC 5280) while the tunnel is up.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, Site};
use crate::strongswan::charon::Auth;
use crate::strongswan::{Authority, Charon, KeyKind};
use crate::wait;

const LIST: &str = "/etc/edge-cni/ca.crl";

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let authority = Authority::new("lab")?;
    let (ours, moons) =
        (authority.issue("edge.example", KeyKind::P256)?, authority.issue("moon.example", KeyKind::P256)?);
    let charon = Charon::start(site.moon, &site.connection(Auth::certificate(moons.clone(), &authority)))?;
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
    let mut agent = Agent::start_with(lab, site.edge, &agent_toml(initiator), "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate())?;
    }
    agent.wait_up("moon")?;
    charon.wait_up()?;
    ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the tunnel");
    lab.step("up with a list that revokes another certificate");

    site.edge.write(&format!("{LIST}.new"), &authority.revocation_list(2, &[&moons])?)?;
    site.edge.sh(&format!("mv {LIST}.new {LIST}"))?;
    wait::for_event("the tunnel to end at both ends", || {
        ensure!(agent.tunnel("moon").is_err(), "the agent still has it");
        ensure!(charon.installed()?.is_empty(), "charon still has it");
        Ok(())
    })?;
    let error = wait::for_event("the reason in the status", || agent.last_error("moon"))?;
    ensure!(error.contains("revoked"), "it says {error:?}");
    if initiator == Initiator::Moon {
        ensure!(charon.initiate().is_err(), "charon came through with a revoked certificate");
    }
    ensure!(!site.edge_pod.reaches("10.2.0.2", Duration::from_millis(300))?, "a ping is answered");
    lab.step("the revoked certificate has ended the tunnel");
    Ok(())
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
