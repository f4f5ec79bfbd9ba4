//! Runs CHILD_SAs for one protocol and port with charon.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site};
use crate::strongswan::Charon;
use crate::wait;

const TEXT: &str = "through the tunnel";

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let mut site = Site::new(net, initiator)?;
    let charon = Charon::start_with_file(site.moon, "edge", &swanctl_conf(initiator))?;
    let mut agent = Agent::start_with(lab, site.edge, &agent_toml(initiator), "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate_child("web"))?;
        charon.initiate_child("echo")?;
    }
    let up = || {
        wait::for_event("two CHILD_SAs at both ends", || {
            let (ours, theirs) = (agent.spis("moon")?, charon.installed()?);
            ensure!(ours.len() == 2 && theirs.len() == 2, "there are {ours:x?} and {theirs:x?}");
            Ok((ours, theirs))
        })
    };
    up()?;
    lab.step("a CHILD_SA for a TCP port and one for ICMP");

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
        ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the tunnel");
        for spis in up()?.0 {
            for spi in [spis.spi_in, spis.spi_out] {
                let states = site.edge.xfrm_states()?;
                let used = states.iter().any(|state| state.spi == spi && state.packets > 0);
                ensure!(used, "no packet through {spi:08x}: {states:x?}");
            }
        }
        Ok(())
    };
    check()?;
    let old = up()?.0;
    agent.ask_to_rekey_child("moon", "web")?;
    wait::for_event("the agent's new CHILD_SA", || {
        ensure!(up()?.0 != old, "it still has {old:x?}");
        Ok(())
    })?;
    charon.rekey_one_child("echo")?;
    check()?;
    lab.step("each carries its packets, also after rekeys by each side");

    // Another port has no CHILD_SA, so its packets take the host's route, which the capture shows.
    fetch(8081).ok();
    site.wire.wait_for("tcp port 8081")?;
    site.wire.stop()?;
    site.wire.expect_none("tcp port 8080 or icmp")?;
    servers.iter_mut().try_for_each(|server| server.stop().map(drop))
}

fn agent_toml(initiator: Initiator) -> String {
    let way = match initiator {
        Initiator::Edge => "remote = \"203.0.113.10\"\nstart = \"initiate\"",
        Initiator::Moon => "start = \"respond\"",
    };
    let networks = "local_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.2.0.0/24\"]\n";
    format!(
        "[[peer]]\nname = \"moon\"\n{way}\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\npsk = \"{SECRET}\"\n\
         [[peer.child]]\nname = \"web\"\nprotocol = \"tcp\"\nremote_port = 8080\n{networks}\
         [[peer.child]]\nname = \"echo\"\nprotocol = \"icmp\"\n{networks}"
    )
}

fn swanctl_conf(initiator: Initiator) -> String {
    let remote = match initiator {
        Initiator::Edge => "%any",
        Initiator::Moon => "203.0.113.10",
    };
    let child = |name: &str, ours: &str, theirs: &str| {
        format!(
            "      {name} {{\n        local_ts = 10.2.0.0/24[{ours}]\n        remote_ts = 10.1.0.0/24[{theirs}]\n        \
             rekey_time = 0\n      }}\n"
        )
    };
    format!(
        "connections {{\n  edge {{\n    version = 2\n    local_addrs = %any\n    remote_addrs = {remote}\n    \
         local {{\n      auth = psk\n      id = moon.example\n    }}\n    \
         remote {{\n      auth = psk\n      id = edge.example\n    }}\n    children {{\n{}{}    }}\n  }}\n}}\n\
         secrets {{\n  ike-edge {{\n    id-local = moon.example\n    id-remote = edge.example\n    secret = \"{SECRET}\"\n  }}\n}}\n",
        child("web", "tcp/8080", "tcp"),
        child("echo", "icmp", "icmp"),
    )
}
