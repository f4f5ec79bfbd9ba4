//! Runs edge-agent with static peers against Debian's OpenIKED, each as initiator and as
//! responder, with the default proposals of both.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, StaticPeer};
use crate::openiked::{Iked, Policy, Sas};
use crate::scenario::{Lab, Needs, Scenario};
use crate::scenarios::site::{Initiator, SECRET, Site, WRONG_SECRET};
use crate::strongswan::charon::Auth;
use crate::strongswan::{Authority, KeyKind};
use crate::topology::{Node, Ping, PingReport};
use crate::wait;

/// Short lifetimes of iked's SAs, in its words: `ikectl` has no command that rekeys.
const LIFETIMES: &str = "ikelifetime 15 lifetime 6";

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "openiked/psk-initiator",
        "edge-agent initiates to iked through NAT with a PSK and default proposals: a wrong secret, pings, rekeys by each side",
        |lab| psk(lab, Initiator::Edge),
    ),
    scenario(
        "openiked/psk-responder",
        "iked initiates to edge-agent through NAT with a PSK and default proposals: pings, rekeys by each side",
        |lab| psk(lab, Initiator::Moon),
    ),
    scenario(
        "openiked/certificates-initiator",
        "edge-agent initiates with a P-256 certificate, iked has RSA: pings, rekeys by each side",
        |lab| certificates(lab, Initiator::Edge, KeyKind::P256, KeyKind::Rsa),
    ),
    scenario(
        "openiked/certificates-responder",
        "iked initiates with a P-256 certificate, edge-agent has RSA: pings, rekeys by each side",
        |lab| certificates(lab, Initiator::Moon, KeyKind::Rsa, KeyKind::P256),
    ),
];

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(120), by_default: true, needs: Needs::Nothing, run }
}

fn psk(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = || Auth::Psk(SECRET.to_owned());
    let policy = policy(&site, auth());
    let iked = Iked::start(site.moon, &policy)?;
    if initiator == Initiator::Edge {
        let mut agent = Agent::start(lab, site.edge, "", &[peer(&site, Auth::Psk(WRONG_SECRET.to_owned()))])?;
        let error = wait::for_event("the agent to say what is wrong", || agent.last_error("moon"))?;
        ensure!(error.contains("pre-shared key"), "the agent's error does not speak of the key: {error}");
        wait::for_event("iked to have no SA", || {
            let sas = iked.sas()?;
            ensure!(sas == Sas::default(), "it has {sas:x?}");
            Ok(())
        })?;
        site.nothing_is_left()?;
        agent.process().stop()?;
        lab.step("a wrong secret is reported");
    }
    check(lab, site, iked, policy, peer_of(auth))
}

fn certificates(lab: &Lab, initiator: Initiator, edge_key: KeyKind, moon_key: KeyKind) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let authority = Authority::new("lab")?;
    let ours = Auth::certificate(authority.issue("edge.example", edge_key)?, &authority);
    let policy = policy(&site, Auth::certificate(authority.issue("moon.example", moon_key)?, &authority));
    let iked = Iked::start(site.moon, &policy)?;
    check(lab, site, iked, policy, peer_of(move || ours.clone()))
}

/// Returns iked's policy for the site, with default proposals.
fn policy(site: &Site<'_>, auth: Auth) -> Policy {
    let (local, peer) = match site.initiator {
        // The initiator comes from the address of its NAT.
        Initiator::Edge => ("203.0.113.10", "any"),
        Initiator::Moon => ("192.168.1.10", "203.0.113.10"),
    };
    Policy {
        active: site.initiator == Initiator::Moon,
        local: local.to_owned(),
        peer: peer.to_owned(),
        local_id: "moon.example".to_owned(),
        remote_id: "edge.example".to_owned(),
        auth,
        more: String::new(),
    }
}

/// Returns the agent's peer for the site, with default proposals.
fn peer(site: &Site<'_>, auth: Auth) -> StaticPeer {
    StaticPeer { ike: Vec::new(), esp: Vec::new(), ..site.peer(auth) }
}

/// Makes a function that returns the agent's peer for a site.
fn peer_of(auth: impl Fn() -> Auth) -> impl Fn(&Site<'_>) -> StaticPeer {
    move |site| peer(site, auth())
}

/// Checks that the tunnel carries pings, that each side rekeys both kinds of SA without a loss,
/// and that the tunnel is back after iked was restarted.
fn check(
    lab: &Lab,
    mut site: Site<'_>,
    iked: Iked<'_>,
    policy: Policy,
    peer: impl Fn(&Site<'_>) -> StaticPeer,
) -> Result<()> {
    let mut agent = Agent::start(lab, site.edge, "", &[peer(&site)])?;
    agent.wait_ready()?;
    agent.wait_up("moon")?;
    same_spis(&site, &agent, &iked)?;
    lab.step("the tunnel is up");

    let before = dropped(&site)?;
    let mut pings = both_ways(&site)?;
    answered(&mut pings)?;
    agent.rekey("moon")?;
    same_spis(&site, &agent, &iked)?;
    answered(&mut pings)?;
    agent.rekey_ike("moon")?;
    agent.rekey("moon")?;
    same_spis(&site, &agent, &iked)?;
    answered(&mut pings)?;
    none_lost(&site, pings, before)?;
    lab.step("CHILD_SA and IKE SA rekeyed by edge-agent");

    let iked = iked.restart(&Policy { more: LIFETIMES.to_owned(), ..policy.clone() })?;
    let first = wait::for_event("the tunnel after iked's restart", || {
        // Only a packet of ours or iked brings the tunnel back.
        site.edge_pod.reaches("10.2.0.2", Duration::from_millis(500)).ok();
        let sas = iked.sas()?;
        ensure!((sas.ike.len(), sas.spis_in.len()) == (1, 1), "it has {sas:x?}");
        ensure!(agent.tunnel("moon").is_ok_and(|ours| sas.spis_out.contains(&ours.spi_in)), "the agent has another");
        Ok(sas)
    })?;
    lab.step("the tunnel is back after iked was restarted");
    let before = dropped(&site)?;
    let mut pings = both_ways(&site)?;
    answered(&mut pings)?;
    wait::for_event("iked to rekey both SAs", || {
        let sas = iked.sas()?;
        let replaced = sas.ike.iter().all(|spi| !first.ike.contains(spi))
            && sas.spis_in.iter().all(|spi| !first.spis_in.contains(spi));
        ensure!(replaced && !sas.ike.is_empty() && !sas.spis_in.is_empty(), "it has {sas:x?}, had {first:x?}");
        Ok(())
    })?;
    answered(&mut pings)?;
    none_lost(&site, pings, before)?;
    lab.step("CHILD_SA and IKE SA rekeyed by iked");
    site.wire.stop()?;
    site.wire.expect_none("net 10.0.0.0/8")
}

fn both_ways(site: &Site<'_>) -> Result<[Ping; 2]> {
    Ok([site.edge_pod.ping("10.2.0.2")?, site.moon_pod.ping("10.1.0.2")?])
}

fn answered(pings: &mut [Ping; 2]) -> Result<()> {
    pings.iter_mut().try_for_each(|ping| ping.wait_more(5))
}

/// Counts packets that the kernels dropped because of what iked does in a rekey. When it has
/// rekeyed a CHILD_SA, it removes the old one before the agent can know that the answer has
/// arrived. When the agent rekeys, iked sends with the new one before the agent has the keys.
fn dropped(site: &Site<'_>) -> Result<u64> {
    let count = |node: &Node, name: &str| anyhow::Ok(node.xfrm_stat()?.get(name).copied().unwrap_or_default());
    Ok(count(site.moon, "XfrmInNoStates")? + count(site.edge, "XfrmAcquireError")?)
}

/// Ends pings and checks that none was lost, except packets that [`dropped`] counts.
fn none_lost(site: &Site<'_>, pings: [Ping; 2], before: u64) -> Result<()> {
    let reports = pings.map(Ping::stop).into_iter().collect::<Result<Vec<_>>>()?;
    let lost: u64 = reports.iter().map(PingReport::lost).sum();
    let dropped = dropped(site)? - before;
    ensure!(lost <= dropped, "the kernels dropped {dropped} packets in rekeys, but there are {reports:?}");
    Ok(())
}

/// Checks that agent, iked and both kernels have the same SPIs.
fn same_spis(site: &Site<'_>, agent: &Agent<'_>, iked: &Iked<'_>) -> Result<()> {
    wait::for_event("both sides to name the same SPIs", || {
        let (ours, theirs) = (agent.tunnel("moon")?, iked.wait_up()?);
        ensure!(
            theirs.spis_out == [ours.spi_in] && theirs.spis_in == [ours.spi_out],
            "edge-agent names {ours:x?}, iked {theirs:x?}"
        );
        for node in [site.edge, site.moon] {
            let states = node.xfrm_states()?;
            for spi in [ours.spi_in, ours.spi_out] {
                let there = states.iter().any(|state| state.spi == spi && state.mode == "tunnel");
                ensure!(there, "the kernel of {} has no tunnel {spi:08x}, but {states:x?}", node.name());
            }
        }
        Ok(())
    })
}
