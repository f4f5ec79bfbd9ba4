//! Rekeys CHILD_SAs where edge-agent and charon want forward secrecy by different groups.

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site, expect_none_lost_to_new_ike_sas};
use crate::strongswan::Charon;
use crate::strongswan::charon::Auth;
use crate::wait;

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = Auth::Psk(SECRET.to_owned());
    let ike = "aes256gcm16-prfsha256-x25519";
    let charon = Charon::start(site.moon, &site.connection(auth.clone()).proposals(ike, "aes256gcm16-ecp256"))?;
    let peer = StaticPeer { esp: vec!["aes256gcm16-x25519".to_owned()], ..site.peer(auth) };
    let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate())?;
    }
    agent.wait_up("moon")?;
    charon.wait_up()?;
    let mut ping = site.edge_pod.ping("10.2.0.2")?;
    ping.wait_more(3)?;
    // As responder, edge-agent begins the new IKE SA at the address from which charon came.
    for _ in 0..2 {
        let before = agent.ike_sas("moon")?;
        agent.rekey("moon")?;
        ensure!(agent.ike_sas("moon")? != before, "the CHILD_SA was rekeyed, although the groups differ");
        charon.wait_up()?;
        ping.wait_more(3)?;
    }
    agent.process().wait_log("the peer accepts none of our proposals")?;
    lab.step("edge-agent's rekeys are refused, and a new IKE SA brings the CHILD_SA");
    let last = agent.tunnel("moon")?;
    charon.ask_to_rekey_child()?;
    agent.process().wait_log("none of the peer's ESP proposals is acceptable")?;
    ping.wait_more(5)?;
    ensure!(agent.tunnel("moon")? == last, "the CHILD_SA was rekeyed, although the groups differ");
    expect_none_lost_to_new_ike_sas(site.edge, [ping])?;
    lab.step("charon's rekey is refused, and the CHILD_SA stays");
    Ok(())
}
