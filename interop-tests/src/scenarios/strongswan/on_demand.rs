//! Sets the tunnel between edge-agent and charon up by a packet that needs it.

use anyhow::Result;

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site, on_demand};
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};

pub(super) fn initiator(lab: &Lab) -> Result<()> {
    let net = lab.build(&Site::plan(Initiator::Edge))?;
    let site = Site::new(net, Initiator::Edge)?;
    let charon = Charon::start(site.moon, &site.connection(auth()))?;
    on_demand::by_agent(lab, site, |site| site.peer(auth()), &charon)
}

pub(super) fn responder(lab: &Lab) -> Result<()> {
    let net = lab.build(&Site::plan(Initiator::Moon))?;
    let site = Site::new(net, Initiator::Moon)?;
    let connection = Connection { more_of_child: "start_action = trap".to_owned(), ..site.connection(auth()) };
    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(auth())])?;
    agent.wait_ready()?;
    let charon = Charon::start(site.moon, &connection)?;
    on_demand::by_daemon(lab, site, &mut agent, &charon)
}

fn auth() -> Auth {
    Auth::Psk(SECRET.to_owned())
}
