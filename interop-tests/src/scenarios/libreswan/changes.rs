//! Names instead of addresses, other secrets and authentications, and a certificate that is
//! refused.

use anyhow::Result;

use super::ends::{conn, peer};
use crate::edge_agent::{Agent, StaticPeer};
use crate::libreswan::{Conn, Pluto};
use crate::scenario::Lab;
use crate::scenarios::site::names::{self, INITIATOR, RESPONDER};
use crate::scenarios::site::{Initiator, SECRET, Site, WRONG_SECRET, reauthentication, secret_changed};
use crate::strongswan::charon::Auth;
use crate::strongswan::{Authority, KeyKind};

fn psk(secret: &str) -> Auth {
    Auth::Psk(secret.to_owned())
}

/// Gives each end a name of the other one.
pub(super) fn by_name(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let (of_edge, of_moon) = match initiator {
        Initiator::Edge => (INITIATOR, RESPONDER),
        Initiator::Moon => (RESPONDER, INITIATOR),
    };
    names::install(site.moon, &[of_edge])?;
    // As initiator, the agent starts before its host knows the name.
    names::install(site.edge, if initiator == Initiator::Edge { &[] } else { std::slice::from_ref(&of_moon) })?;
    let theirs = Conn { right: of_edge.0.to_owned(), ..conn(&site, psk(SECRET), &[]) };
    let pluto = Pluto::start(site.moon, &theirs)?;
    let ours = StaticPeer { remote: vec![of_moon.0.to_owned()], ..peer(&site, psk(SECRET)) };
    let mut agent = Agent::start(lab, site.edge, "", &[ours])?;
    names::check(lab, &site, &mut agent, &pluto)
}

/// Changes the secret at pluto, then at the agent.
pub(super) fn secret(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let mut pluto = Pluto::start(site.moon, &conn(&site, psk(SECRET), &[]))?;
    secret_changed::check(lab, &site, peer, &mut pluto, |pluto| pluto.change_secret(WRONG_SECRET))
}

/// Authenticates again by edge-agent.
pub(super) fn authentication(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let pluto = Pluto::start(site.moon, &conn(&site, psk(SECRET), &[]))?;
    reauthentication::check(lab, &site, &peer(&site, psk(SECRET)), &pluto, None)
}

/// Refuses pluto's certificate, whose authority the agent does not know.
pub(super) fn refused(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let (authority, unknown) = (Authority::new("lab")?, Authority::new("unknown")?);
    let keys = ["leftauth=ecdsa", "rightauth=ecdsa"];
    let moons = Auth::certificate(authority.issue("moon.example", KeyKind::P256)?, &authority);
    let pluto = Pluto::start(site.moon, &conn(&site, moons, &keys))?;
    let ours = Auth::certificate(authority.issue("edge.example", KeyKind::P256)?, &unknown);
    let mut agent = Agent::start(lab, site.edge, "", &[peer(&site, ours)])?;
    agent.wait_ready()?;
    site.check_refusal(&mut agent, &pluto, &["moon", "IKE_AUTH", "not trusted"])
}
