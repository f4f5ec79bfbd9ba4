//! Sets the tunnel between edge-agent and pluto up by a packet that needs it.

use anyhow::Result;

use super::ends::{conn, peer};
use crate::edge_agent::Agent;
use crate::libreswan::Pluto;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site, on_demand};
use crate::strongswan::charon::Auth;

pub(super) fn initiator(lab: &Lab) -> Result<()> {
    let net = lab.build(&Site::plan(Initiator::Edge))?;
    let site = Site::new(net, Initiator::Edge)?;
    let pluto = Pluto::start(site.moon, &conn(&site, auth(), &[]))?;
    on_demand::by_agent(lab, site, |site| peer(site, auth()), &pluto)
}

pub(super) fn responder(lab: &Lab) -> Result<()> {
    let net = lab.build(&Site::plan(Initiator::Moon))?;
    let site = Site::new(net, Initiator::Moon)?;
    let pluto = Pluto::start(site.moon, &conn(&site, auth(), &[]))?;
    let mut agent = Agent::start(lab, site.edge, "", &[peer(&site, auth())])?;
    agent.wait_ready()?;
    pluto.wait_for_packet()?;
    // The kernel asks pluto again only after this time, in seconds, which is 30 by default. It does
    // not notice that pluto has closed the tunnel.
    site.moon.sh("sysctl -qw net.core.xfrm_acq_expires=2")?;
    on_demand::by_daemon(lab, site, &mut agent, &pluto)
}

fn auth() -> Auth {
    Auth::Psk(SECRET.to_owned())
}
