//! Runs a tunnel over IPv6 without NAT, and one over a path that drops IP fragments.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site, fragments};
use crate::strongswan::charon::{Auth, Connection};
use crate::strongswan::{Charon, KeyKind};
use crate::topology::NetworkPlan;

pub(super) fn chacha_p256_ipv6(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("edge").on("wire", &["2001:db8::1/64"]);
    plan.host("moon").on("wire", &["2001:db8::2/64"]);
    let net = lab.build(&plan)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let edge_pod = edge.wired_pod("p", "fd01::2/64", "fd01::1/64")?;
    let moon_pod = moon.wired_pod("p", "fd02::2/64", "fd02::1/64")?;
    let (ike, esp) = ("chacha20poly1305-prfsha256-ecp256", "chacha20poly1305");
    let auth = Auth::Psk(SECRET.to_owned());
    let charon = Charon::start(
        moon,
        &Connection::new("edge", auth.clone())
            .local("2001:db8::2", "moon.example", "fd02::/64")
            .remote("2001:db8::1", "edge.example", "fd01::/64")
            .proposals(ike, esp),
    )?;
    let peer = StaticPeer {
        name: "moon".to_owned(),
        remote: vec!["2001:db8::2".to_owned()],
        local_id: "edge.example".to_owned(),
        remote_id: "moon.example".to_owned(),
        auth,
        local_subnets: vec!["fd01::/64".to_owned()],
        remote_subnets: vec!["fd02::/64".to_owned()],
        ike: vec![ike.to_owned()],
        esp: vec![esp.to_owned()],
        start: "initiate",
    };
    let mut agent = Agent::start(lab, edge, "", &[peer])?;
    let tunnel = agent.wait_up("moon")?;
    let child = charon.wait_up()?;
    ensure!(child.algorithm.contains("CHACHA20_POLY1305"), "charon has {child:?}");
    ensure!(!child.encap, "there is no NAT, and encap is left to be found out");
    let states = edge.xfrm_states()?;
    let state = states.iter().find(|state| state.spi == tunnel.spi_out);
    ensure!(
        state.is_some_and(|state| state.algorithm.contains("chacha20") && state.encap.is_none()),
        "the kernel has {states:?}"
    );
    ensure!(edge_pod.reaches("fd02::2", Duration::from_secs(5))?, "edge's pod does not reach moon's");
    ensure!(moon_pod.reaches("fd01::2", Duration::from_secs(5))?, "moon's pod does not reach edge's");
    agent.rekey("moon")?;
    ensure!(edge_pod.reaches("fd02::2", Duration::from_secs(5))?, "edge's pod does not reach moon's after a rekey");
    Ok(())
}

pub(super) fn fragmentation(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    fragments::drop_ip_fragments(net)?;
    let authority = fragments::long_authority()?;
    let moon = Auth::certificate(authority.issue_long("moon.example", KeyKind::P256)?, &authority);
    let charon = Charon::start(site.moon, &Connection { more: "fragmentation = yes".into(), ..site.connection(moon) })?;
    let ours = Auth::certificate(authority.issue_long("edge.example", KeyKind::P256)?, &authority);
    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(ours)])?;
    agent.wait_ready()?;
    fragments::check(&site, &mut agent, &charon)
}
