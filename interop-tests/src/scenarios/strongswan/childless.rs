//! Runs childless initiation (RFC 6023) with charon: IKE_AUTH without a CHILD_SA, which
//! CREATE_CHILD_SA then creates.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site};
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};
use crate::wait;

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let connection = |setting: &str| Connection {
        more: format!("childless = {setting}"),
        ..site.connection(Auth::Psk(SECRET.to_owned()))
    };
    let mut charon = match initiator {
        Initiator::Edge => Charon::start(site.moon, &connection("allow"))?,
        Initiator::Moon => Charon::start(site.moon, &connection("force"))?,
    };

    let mut agent = start(lab, &site, if initiator == Initiator::Edge { "prefer" } else { "allow" })?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate())?;
    }
    agent.wait_up("moon")?;
    charon.wait_up()?;
    // charon lists the payloads of each message.
    let log = charon.process().log();
    let first = |exchange: &str| {
        log.lines().rev().find(|line| line.contains(&format!("{exchange} request "))).map(str::to_owned)
    };
    let (auth, create) = (first("IKE_AUTH"), first("CREATE_CHILD_SA"));
    ensure!(
        auth.as_ref().is_some_and(|line| line.contains(" AUTH ") && !line.contains(" TSi ")),
        "IKE_AUTH was {auth:?}"
    );
    ensure!(create.as_ref().is_some_and(|line| line.contains(" TSi ")), "CREATE_CHILD_SA was {create:?}");
    lab.step("IKE_AUTH had no CHILD_SA, and CREATE_CHILD_SA made it");

    let mut pings = [site.edge_pod.ping("10.2.0.2")?, site.moon_pod.ping("10.1.0.2")?];
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    agent.rekey("moon")?;
    charon.rekey_child()?;
    agent.rekey_ike("moon")?;
    charon.rekey_ike()?;
    for mut ping in pings {
        ping.wait_more(5)?;
        ping.stop()?.expect_none_lost()?;
    }
    lab.step("rekeyed by each side, nothing is lost");
    // The IKE SA stays without a CHILD_SA, and gets another one.
    if initiator == Initiator::Edge {
        charon.terminate_child()?;
        // Packets before it is there are not held: a ping goes out until one is answered.
        wait::for_event("a ping after charon has deleted the CHILD_SA", || {
            let answered = site.edge_pod.reaches("10.2.0.2", Duration::from_millis(500))?;
            ensure!(answered, "10.2.0.2 does not answer");
            Ok(())
        })?;
        lab.step("charon deletes the CHILD_SA, and a packet brings another one");
    }

    // Settings that exclude each other: force at the end that initiates, and never at the other
    // one.
    agent.process().stop()?;
    agent.command(&["down"])?;
    charon.forget()?;
    match initiator {
        Initiator::Edge => {
            charon.load(&connection("never"))?;
            let mut agent = start(lab, &site, "force")?;
            site.check_refusal(&mut agent, &charon, &["moon", "childless"])?;
        }
        Initiator::Moon => {
            start(lab, &site, "never")?;
            ensure!(charon.initiate().is_err(), "charon came through");
        }
    }
    lab.step("settings that exclude each other bring no tunnel");
    Ok(())
}

fn start<'a>(lab: &Lab, site: &Site<'a>, setting: &str) -> Result<Agent<'a>> {
    let way = match site.initiator {
        Initiator::Edge => "remote = \"203.0.113.10\"\nstart = \"initiate\"",
        Initiator::Moon => "start = \"respond\"",
    };
    let config = format!(
        "[[peer]]\nname = \"moon\"\n{way}\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\npsk = \"{SECRET}\"\n\
         local_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.2.0.0/24\"]\nchildless = \"{setting}\"\n"
    );
    let mut agent = Agent::start_with(lab, site.edge, &config, "debug")?;
    agent.wait_ready()?;
    Ok(agent)
}
