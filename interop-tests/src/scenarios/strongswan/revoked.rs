//! Revokes charon's certificate while the tunnel is up.

use anyhow::{Result, ensure};

use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, Site, revoked};
use crate::strongswan::charon::Auth;
use crate::strongswan::{Authority, Charon, KeyKind};

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let authority = Authority::new("lab")?;
    let moons = authority.issue("moon.example", KeyKind::P256)?;
    let charon = Charon::start(site.moon, &site.connection(Auth::certificate(moons.clone(), &authority)))?;
    let agent = revoked::check(lab, &site, &authority, &moons, &charon)?;
    if initiator == Initiator::Moon {
        ensure!(charon.initiate().is_err(), "charon came through with a revoked certificate");
        ensure!(agent.tunnel("moon").is_err(), "there is a tunnel");
    }
    Ok(())
}
