//! Runs certificates with pluto: so long ones that IKE messages are fragmented, and one that is
//! revoked.

use anyhow::Result;

use super::ends::{conn, peer};
use crate::edge_agent::Agent;
use crate::libreswan::Pluto;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, Site, fragments, revoked};
use crate::strongswan::charon::Auth;
use crate::strongswan::{Authority, KeyKind};

/// Without these lines pluto takes each key for RSA.
const KEYS: [&str; 2] = ["leftauth=ecdsa", "rightauth=ecdsa"];

/// Runs IKE fragments (RFC 7383) over a path that drops IP fragments.
pub(super) fn fragmentation(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    fragments::drop_ip_fragments(net)?;
    let authority = fragments::long_authority()?;
    let moons = Auth::certificate(authority.issue_long("moon.example", KeyKind::P256)?, &authority);
    let pluto = Pluto::start(site.moon, &conn(&site, moons, &KEYS))?;
    let ours = Auth::certificate(authority.issue_long("edge.example", KeyKind::P256)?, &authority);
    let mut agent = Agent::start(lab, site.edge, "", &[peer(&site, ours)])?;
    agent.wait_ready()?;
    fragments::check(&site, &mut agent, &pluto)
}

/// Revokes pluto's certificate while the tunnel is up.
pub(super) fn revoked(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let authority = Authority::new("lab")?;
    let moons = authority.issue("moon.example", KeyKind::P256)?;
    let pluto = Pluto::start(site.moon, &conn(&site, Auth::certificate(moons.clone(), &authority), &KEYS))?;
    revoked::check(lab, &site, &authority, &moons, &pluto).map(drop)
}
