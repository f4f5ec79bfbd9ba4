//! Runs a CHILD_SA for one TCP port with pluto (`leftprotoport=`).

use anyhow::{Result, ensure};

use super::ends::conn;
use crate::edge_agent::Agent;
use crate::libreswan::Pluto;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site};
use crate::strongswan::charon::Auth;
use crate::wait;

const TEXT: &str = "through the tunnel";

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let mut site = Site::new(net, initiator)?;
    let ports = ["leftprotoport=tcp/8080", "rightprotoport=tcp"];
    let pluto = Pluto::start(site.moon, &conn(&site, Auth::Psk(SECRET.to_owned()), &ports))?;
    let mut agent = Agent::start_with(lab, site.edge, &agent_toml(initiator), "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        pluto.initiate()?;
    }
    agent.wait_up("moon")?;
    pluto.wait_up()?;
    lab.step("a CHILD_SA for a TCP port");

    let own = std::env::current_exe()?;
    let mut servers = Vec::new();
    for port in ["8080", "8081"] {
        let mut command = site.moon_pod.command(&own);
        let server = site.moon_pod.start(&format!("web-{port}"), command.args(["guest", "tcp-serve", port, TEXT]))?;
        servers.push(server);
    }
    let fetch = |port: u16| {
        let address = format!("10.2.0.2:{port}");
        site.edge_pod.run(site.edge_pod.command(&own).args(["guest", "tcp-fetch", &address]))
    };
    let check = || -> Result<()> {
        let text = wait::for_event("an answer from port 8080", || fetch(8080))?;
        ensure!(text == TEXT, "it answers {text:?}");
        let spis = agent.tunnel("moon")?;
        let states = site.edge.xfrm_states()?;
        for spi in [spis.spi_in, spis.spi_out] {
            let used = states.iter().any(|state| state.spi == spi && state.packets > 0);
            ensure!(used, "no packet through {spi:08x}: {states:x?}");
        }
        Ok(())
    };
    check()?;
    agent.rekey("moon")?;
    check()?;
    pluto.rekey_child()?;
    pluto.wait_up()?;
    check()?;
    lab.step("it carries its packets, also after rekeys by each side");

    // Another port has no CHILD_SA, so its packets take the host's route, which the capture shows.
    fetch(8081).ok();
    site.wire.wait_for("tcp port 8081")?;
    site.wire.stop()?;
    site.wire.expect_none("tcp port 8080")?;
    servers.iter_mut().try_for_each(|server| server.stop().map(drop))
}

fn agent_toml(initiator: Initiator) -> String {
    let way = match initiator {
        Initiator::Edge => "remote = \"203.0.113.10\"\nstart = \"initiate\"",
        Initiator::Moon => "start = \"respond\"",
    };
    format!(
        "[[peer]]\nname = \"moon\"\n{way}\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\npsk = \"{SECRET}\"\n\
         [[peer.child]]\nname = \"web\"\nprotocol = \"tcp\"\nremote_port = 8080\nlocal_subnets = [\"10.1.0.0/24\"]\n\
         remote_subnets = [\"10.2.0.0/24\"]\n"
    )
}
