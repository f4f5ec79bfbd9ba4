//! Runs an edge-agent and a pluto that have other proposals or networks.

use anyhow::{Result, ensure};

use super::ends::{conn, peer};
use crate::edge_agent::{Agent, StaticPeer};
use crate::libreswan::Pluto;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site};
use crate::strongswan::charon::Auth;
use crate::wait;

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = || Auth::Psk(SECRET.to_owned());
    let lines = ["ike=aes_gcm256-sha2_256-dh19", "esp=aes_gcm256"];
    let theirs = conn(&site, auth(), &lines);
    let pluto = Pluto::start(site.moon, &theirs)?;
    let ours = || peer(&site, auth());
    let ike = StaticPeer { ike: vec!["chacha20poly1305-prfsha256-x25519".to_owned()], ..ours() };
    let esp = StaticPeer { esp: vec!["chacha20poly1305".to_owned()], ..ours() };
    let networks = StaticPeer { remote_subnets: vec!["10.9.0.0/24".to_owned()], ..ours() };
    let cases: [(&str, StaticPeer, &[&str]); 3] = [
        ("other IKE proposals", ike, &["no proposal in common", "CHACHA20_POLY1305"]),
        ("other ESP proposals", esp, &["IKE_AUTH", "no proposal in common", "CHACHA20_POLY1305"]),
        ("other networks", networks, &["IKE_AUTH", "traffic selectors unacceptable", "remote 10.9.0.0/24"]),
    ];
    for (what, peer, words) in cases {
        let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
        agent.wait_ready()?;
        match initiator {
            Initiator::Edge => site.check_refusal(&mut agent, &pluto, words)?,
            Initiator::Moon => {
                // pluto would go on trying for as long as whack waits.
                pluto.begin()?;
                wait::for_event("the agent to say what is wrong", || {
                    let log = agent.process().log();
                    let told = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
                    ensure!(told, "no line has {words:?}");
                    Ok(())
                })?;
                ensure!(agent.tunnel("moon").is_err() && pluto.children()?.is_empty(), "there is a tunnel");
                // pluto tries again until its connection is replaced.
                pluto.load(&theirs)?;
                site.nothing_is_left()?;
            }
        }
        agent.process().stop()?;
        agent.command(&["down"])?;
        lab.step(&format!("{what} are reported"));
    }
    Ok(())
}
