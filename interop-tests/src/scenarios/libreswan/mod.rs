//! Runs edge-agent with static peers against Debian's libreswan, each as initiator and as
//! responder.

mod certificates;
mod changes;
mod client;
mod ends;
mod mapping;
mod nothing_in_common;
mod on_demand;
mod selectors;
mod subnets;
mod transport;
mod variants;

use std::time::Duration;

use anyhow::{Result, ensure};
use ends::{conn, peer};

use crate::edge_agent::{Agent, StaticPeer};
use crate::libreswan::Pluto;
use crate::scenario::{Lab, Needs, Scenario};
use crate::scenarios::site::{Initiator, SECRET, Site, WRONG_SECRET};
use crate::strongswan::charon::Auth;
use crate::strongswan::{Authority, KeyKind, subject};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "libreswan/psk-initiator",
        "edge-agent initiates to pluto through NAT with a PSK and default proposals: pings, rekeys by each side, a wrong secret",
        |lab| psk(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/psk-responder",
        "pluto initiates to edge-agent through NAT with a PSK and default proposals: pings, rekeys by each side",
        |lab| psk(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/certificates-initiator",
        "edge-agent initiates with a P-256 certificate, pluto has RSA; identities are the subjects (leftid=%fromcert)",
        |lab| {
            both_certificates(
                lab,
                Initiator::Edge,
                KeyKind::P256,
                KeyKind::Rsa,
                &["leftauth=rsasig", "rightauth=ecdsa"],
            )
        },
    ),
    scenario(
        "libreswan/certificates-responder",
        "pluto initiates with a P-256 certificate (leftid=%fromcert), edge-agent has RSA",
        |lab| {
            both_certificates(
                lab,
                Initiator::Moon,
                KeyKind::Rsa,
                KeyKind::P256,
                &["leftauth=ecdsa", "rightauth=rsasig"],
            )
        },
    ),
    scenario(
        "libreswan/child-lost-initiator",
        "edge-agent has initiated, and pluto deletes the CHILD_SA; then both want forward secrecy by different groups",
        |lab| child_lost(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/child-lost-responder",
        "pluto has initiated, and deletes the CHILD_SA; then both want forward secrecy by different groups",
        |lab| child_lost(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/subnets-initiator",
        "edge-agent initiates a CHILD_SA for each pair of subnets (leftsubnets=), one subnet around the other end's: pings, rekeys",
        |lab| subnets::run(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/subnets-responder",
        "pluto initiates a CHILD_SA for each pair of subnets (leftsubnets=), edge-agent has one peer without children: pings, rekeys",
        |lab| subnets::run(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/variants-initiator",
        "edge-agent initiates to pluto with eight suites, two with ESN, three types of identity, secrets as 0x and 0s: pings, rekeys by each side",
        |lab| variants::run(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/variants-responder",
        "pluto initiates with eight suites, two with ESN, three types of identity, secrets as 0x and 0s: pings, rekeys by each side",
        |lab| variants::run(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/transport-initiator",
        "edge-agent initiates transport mode with pluto: pings, rekeys by each side",
        |lab| transport::run(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/transport-responder",
        "pluto initiates transport mode with edge-agent: pings, rekeys by each side",
        |lab| transport::run(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/client-initiator",
        "edge-agent asks pluto for an address in the tunnel, and its own address changes (mobike=yes)",
        client::initiator,
    ),
    scenario(
        "libreswan/client-responder",
        "pluto asks edge-agent for an address in the tunnel, its own address changes, and it comes again (it fails the check of MOBIKE)",
        client::responder,
    ),
    scenario(
        "libreswan/on-demand-initiator",
        "edge-agent sets the tunnel to pluto up by the first packet, closes it when it is idle, and again after pluto has closed it",
        on_demand::initiator,
    ),
    scenario(
        "libreswan/on-demand-responder",
        "pluto sets the tunnel to edge-agent up by a packet (auto=ondemand), also after pluto has closed it",
        on_demand::responder,
    ),
    scenario(
        "libreswan/selectors-initiator",
        "edge-agent initiates a CHILD_SA for one TCP port (leftprotoport=): it carries its packets, and no others",
        |lab| selectors::run(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/selectors-responder",
        "pluto initiates a CHILD_SA for one TCP port (leftprotoport=): it carries its packets, and no others",
        |lab| selectors::run(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/fragmentation-initiator",
        "edge-agent initiates with certificates over a path that drops IP fragments: IKE fragments (RFC 7383) both ways",
        |lab| certificates::fragmentation(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/fragmentation-responder",
        "pluto initiates with certificates over a path that drops IP fragments: IKE fragments (RFC 7383) both ways",
        |lab| certificates::fragmentation(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/revoked-initiator",
        "edge-agent initiates, and pluto's certificate is revoked while the tunnel is up: the tunnel ends, and the status says why",
        |lab| certificates::revoked(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/revoked-responder",
        "pluto initiates, and its certificate is revoked while the tunnel is up: the tunnel ends, and the status says why",
        |lab| certificates::revoked(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/name-initiator",
        "edge-agent knows pluto by a name, and pluto knows edge-agent's NAT by one: before the name has an address, and with one",
        |lab| changes::by_name(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/name-responder",
        "pluto knows edge-agent by a name, and edge-agent knows pluto's NAT by one: pluto initiates",
        |lab| changes::by_name(lab, Initiator::Moon),
    ),
    slow(
        "libreswan/secret-changed-initiator",
        "edge-agent has initiated, and pluto's secret changes: the tunnel ends with its lifetime, and comes with the other secret",
        |lab| changes::secret(lab, Initiator::Edge),
    ),
    slow(
        "libreswan/secret-changed-responder",
        "pluto has initiated, and its secret changes: the tunnel ends with its lifetime, and comes with the other secret",
        |lab| changes::secret(lab, Initiator::Moon),
    ),
    slow(
        "libreswan/nat-rebinding-initiator",
        "edge-agent has initiated to pluto without MOBIKE, and the NAT in front of edge-agent maps to another port: the tunnel goes on",
        |lab| mapping::run(lab, Initiator::Edge),
    ),
    slow(
        "libreswan/nat-rebinding-responder",
        "pluto has initiated without MOBIKE, and the NAT in front of pluto maps to another port: the tunnel goes on",
        |lab| mapping::run(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/reauthentication-initiator",
        "edge-agent has initiated, and authenticates again (make before break): no ping is lost",
        |lab| changes::authentication(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/reauthentication-responder",
        "pluto has initiated, and edge-agent authenticates again (make before break): no ping is lost",
        |lab| changes::authentication(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/refused-initiator",
        "edge-agent initiates, and does not trust pluto's certificate: reported, and nothing is left at either end",
        |lab| changes::refused(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/refused-responder",
        "pluto initiates, and edge-agent does not trust its certificate: reported, and nothing is left at either end",
        |lab| changes::refused(lab, Initiator::Moon),
    ),
    scenario(
        "libreswan/nothing-in-common-initiator",
        "edge-agent initiates with other IKE proposals, ESP proposals or networks than pluto has: reported, and nothing is left",
        |lab| nothing_in_common::run(lab, Initiator::Edge),
    ),
    scenario(
        "libreswan/nothing-in-common-responder",
        "pluto initiates with other IKE proposals, ESP proposals or networks than edge-agent has: reported, and nothing is left",
        |lab| nothing_in_common::run(lab, Initiator::Moon),
    ),
];

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(120), by_default: true, needs: Needs::Nothing, run }
}

/// Makes a scenario that waits for long timers.
const fn slow(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { deadline: Duration::from_secs(200), ..scenario(name, about, run) }
}

fn psk(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = || Auth::Psk(SECRET.to_owned());
    let pluto = Pluto::start(site.moon, &conn(&site, auth(), &[]))?;
    // pluto as initiator would go on trying for as long as whack waits.
    if initiator == Initiator::Edge {
        let mut agent = Agent::start(lab, site.edge, "", &[peer(&site, Auth::Psk(WRONG_SECRET.to_owned()))])?;
        site.check_refusal(&mut agent, &pluto, &["moon", "pre-shared key"])?;
        agent.process().stop()?;
        lab.step("a wrong secret is reported");
    }
    let mut agent = Agent::start(lab, site.edge, "", &[peer(&site, auth())])?;
    agent.wait_ready()?;
    site.check_tunnel(lab, &mut agent, &pluto)
}

/// Runs certificates with these keys. With different types of keys pluto needs `auth` lines:
/// without them it takes each key for RSA.
fn both_certificates(
    lab: &Lab,
    initiator: Initiator,
    edge_key: KeyKind,
    moon_key: KeyKind,
    auth: &[&str],
) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let authority = Authority::new("lab")?;
    let ours = Auth::certificate(authority.issue_by_subject("edge", edge_key)?, &authority);
    let moons = Auth::certificate(authority.issue_by_subject("moon", moon_key)?, &authority);
    let mut theirs = conn(&site, moons, auth);
    (theirs.left_id, theirs.right_id) = ("%fromcert".to_owned(), subject("edge"));
    let pluto = Pluto::start(site.moon, &theirs)?;
    let peer = StaticPeer { local_id: subject("edge"), remote_id: subject("moon"), ..peer(&site, ours) };
    let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
    agent.wait_ready()?;
    site.check_tunnel(lab, &mut agent, &pluto)
}

fn child_lost(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = || Auth::Psk(SECRET.to_owned());
    let pluto = Pluto::start(site.moon, &conn(&site, auth(), &[]))?;
    let up = |agent: &mut Agent<'_>| -> Result<()> {
        agent.wait_ready()?;
        if initiator == Initiator::Moon {
            pluto.initiate()?;
        }
        agent.wait_up("moon")?;
        pluto.wait_up().map(drop)
    };
    let answered = |what: &str| {
        wait::for_event(what, || {
            ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(2))?, "it is not answered");
            Ok(())
        })
    };

    let mut agent = Agent::start(lab, site.edge, "", &[peer(&site, auth())])?;
    up(&mut agent)?;
    let (ike, child) = (agent.ike_sas("moon")?, agent.tunnel("moon")?);
    pluto.terminate_child()?;
    wait::for_event("the agent to have lost the CHILD_SA", || {
        ensure!(agent.tunnel("moon").ok().as_ref() != Some(&child), "it still has {child:x?}");
        Ok(())
    })?;
    answered("a ping after pluto has deleted the CHILD_SA")?;
    ensure!(agent.ike_sas("moon")? == ike, "the IKE SA was replaced, too");
    lab.step("pluto deletes the CHILD_SA, and a packet brings another one");
    agent.process().stop()?;
    agent.command(&["down"])?;
    pluto.load(&conn(&site, auth(), &["esp=aes_gcm256-null-dh19"]))?;

    let other_group = StaticPeer { esp: vec!["aes256gcm16-x25519".to_owned()], ..peer(&site, auth()) };
    let mut agent = Agent::start(lab, site.edge, "", &[other_group])?;
    up(&mut agent)?;
    let before = agent.ike_sas("moon")?;
    agent.ask_to_rekey("moon", false)?;
    wait::for_event("another IKE SA with a CHILD_SA", || {
        ensure!(agent.ike_sas("moon")? != before, "it is the old one");
        agent.tunnel("moon").map(drop)
    })?;
    agent.process().wait_log("no proposal in common")?;
    answered("a ping after a rekey that pluto refuses")?;
    lab.step("a rekey by another group is refused, and another IKE SA brings a CHILD_SA");

    let before = agent.ike_sas("moon")?;
    // The agent begins once the CHILD_SA is some seconds old.
    wait::for_event("another IKE SA with a CHILD_SA", || {
        ensure!(agent.ike_sas("moon")? != before, "{}", pluto.ask_to_rekey_child()?);
        agent.tunnel("moon").map(drop)
    })?;
    answered("a ping after rekeys of pluto that the agent refuses")?;
    lab.step("pluto's rekey by another group is refused, and another IKE SA brings a CHILD_SA");
    Ok(())
}
