//! Changes at both ends and between them: names, secrets, mappings of a NAT, and authentications.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::scenarios::site::names::{self, INITIATOR, RESPONDER};
use crate::scenarios::site::{
    Initiator, SECRET, Site, WRONG_SECRET, came_early, nat_rebinding, reauthentication, secret_changed,
};
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};
use crate::topology::Net;
use crate::wait;

/// Maximum time until the agent has noticed that a name has another address: it looks names up once
/// a minute.
const LOOKUP: Duration = Duration::from_secs(100);

fn psk(secret: &str) -> Auth {
    Auth::Psk(secret.to_owned())
}

fn site(net: &Net, initiator: Initiator) -> Result<(Site<'_>, Connection)> {
    let site = Site::new(net, initiator)?;
    let connection = site.connection(psk(SECRET));
    Ok((site, connection))
}

/// Gives each end a name of the other one. As responder, charon then comes back at another address
/// with the same name.
pub(super) fn by_name(lab: &Lab, initiator: Initiator) -> Result<()> {
    let (site, connection) = site(lab.build(&Site::plan(initiator))?, initiator)?;
    let (of_edge, of_moon) = match initiator {
        Initiator::Edge => (INITIATOR, RESPONDER),
        Initiator::Moon => (RESPONDER, INITIATOR),
    };
    names::install(site.moon, &[of_edge])?;
    // As initiator, the agent starts before its host knows the name.
    names::install(site.edge, if initiator == Initiator::Edge { &[] } else { std::slice::from_ref(&of_moon) })?;
    let connection = Connection { remote: of_edge.0.to_owned(), ..connection };
    let mut charon = Charon::start(site.moon, &connection)?;
    let peer = StaticPeer { remote: vec![of_moon.0.to_owned()], ..site.peer(psk(SECRET)) };
    let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
    names::check(lab, &site, &mut agent, &charon)?;
    if initiator == Initiator::Edge {
        let first = agent.tunnel("moon")?;
        // It says nothing to the agent.
        charon.process().kill()?;
        site.moon.sh("set -e
             ip xfrm state flush
             ip xfrm policy flush
             ip addr del 203.0.113.10/24 dev internet
             ip addr add 203.0.113.20/24 dev internet
             ip route replace default via 203.0.113.1")?;
        let charon = Charon::start(site.moon, &connection)?;
        names::write_hosts(site.edge, &[(RESPONDER.0, "203.0.113.20")])?;
        wait::until("a tunnel to the other address", LOOKUP, || {
            let now = agent.tunnel("moon")?;
            ensure!(now != first, "it is the first one");
            Ok(())
        })?;
        charon.wait_up()?;
        let mut ping = site.edge_pod.ping("10.2.0.2")?;
        ping.wait_more(3)?;
        ping.stop()?;
        lab.step("the name has another address, and the tunnel is up again");
    }
    Ok(())
}

/// Changes the secret at charon, then at the agent.
pub(super) fn secret(lab: &Lab, initiator: Initiator) -> Result<()> {
    let (site, connection) = site(lab.build(&Site::plan(initiator))?, initiator)?;
    let mut charon = Charon::start(site.moon, &connection)?;
    let other = site.connection(psk(WRONG_SECRET));
    secret_changed::check(lab, &site, Site::peer, &mut charon, |charon| charon.load(&other))
}

/// Lets the NAT in front of the initiator forget its mappings.
pub(super) fn mapping(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let (site, connection) = site(net, initiator)?;
    let charon = Charon::start(site.moon, &connection)?;
    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(psk(SECRET))])?;
    nat_rebinding::check(lab, net, &site, &mut agent, &charon)
}

/// Authenticates again by each end.
pub(super) fn authentication(lab: &Lab, initiator: Initiator) -> Result<()> {
    let (site, connection) = site(lab.build(&Site::plan(initiator))?, initiator)?;
    let charon = Charon::start_make_before_break(site.moon, &connection)?;
    reauthentication::check(lab, &site, &site.peer(psk(SECRET)), &charon, Some(Charon::reauthenticate))
}

/// Restarts the agent, to which charon has initiated. The agent knows no address of charon.
pub(super) fn restarted(lab: &Lab) -> Result<()> {
    let (site, connection) = site(lab.build(&Site::plan(Initiator::Moon))?, Initiator::Moon)?;
    let charon = Charon::start(site.moon, &connection)?;
    let peer = || [site.peer(psk(SECRET))];
    let mut agent = Agent::start(lab, site.edge, "", &peer())?;
    agent.wait_ready()?;
    wait::for_event("charon to get through", || charon.initiate())?;
    let first = agent.wait_up("moon")?;
    let early_before = came_early(site.edge)?;
    let mut pings = [site.edge_pod.ping("10.2.0.2")?, site.moon_pod.ping("10.1.0.2")?];
    pings.iter_mut().try_for_each(|ping| ping.wait_more(5))?;
    agent.process().stop()?;
    pings.iter_mut().try_for_each(|ping| ping.wait_more(5))?;
    lab.step("packets pass while there is no agent");
    let mut agent = Agent::start(lab, site.edge, "", &peer())?;
    let second = agent.wait_up("moon")?;
    ensure!(second != first, "the agent shows the CHILD_SA of the earlier run");
    // charon keeps its first IKE SA too, until a request on it is not answered.
    agent.rekey("moon")?;
    agent.rekey_ike("moon")?;
    let mut lost = 0;
    for mut ping in pings {
        ping.wait_more(5)?;
        lost += ping.stop()?.lost();
    }
    // charon sends with the new SA as soon as it has answered, so a packet may overtake the answer.
    let early = came_early(site.edge)?.saturating_sub(early_before);
    ensure!(lost <= early, "{lost} pings are lost, and {early} packets came too early");
    lab.step("the restarted agent has begun to where the kept SAs end, and has rekeyed");
    Ok(())
}
