//! Runs edge-agent with static peers against Debian's strongSwan, each as initiator and as
//! responder, with pre-shared keys and with certificates.

mod children;
mod configuration_payload;
mod migrate;
mod mobike;
mod site;
mod transport;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::{Lab, Needs, Scenario};
use crate::strongswan::charon::{Auth, Connection};
use crate::strongswan::{Authority, Charon, KeyKind, subject};
use crate::topology::NetworkPlan;
use crate::wait;
use site::{Initiator, SECRET, Site, WRONG_SECRET};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "strongswan/psk-initiator",
        "edge-agent initiates to charon through NAT with a PSK: pings, same SPIs, rekeys by each side, a wrong secret is reported",
        psk_initiator,
    ),
    scenario(
        "strongswan/psk-responder",
        "charon initiates to edge-agent through NAT with a PSK: pings, same SPIs, rekeys by each side, a wrong secret is reported",
        psk_responder,
    ),
    scenario(
        "strongswan/cert-initiator",
        "edge-agent initiates with an Ed25519 certificate, charon has P-256; a wrong name and an unknown CA are reported",
        cert_initiator,
    ),
    scenario(
        "strongswan/cert-responder",
        "charon initiates with an Ed25519 certificate, edge-agent has P-256; a wrong name and an unknown CA are reported",
        cert_responder,
    ),
    scenario(
        "strongswan/rsa-initiator",
        "edge-agent initiates with an RSA certificate, as charon has one; a wrong name and an unknown CA are reported",
        |lab| certificates(lab, Initiator::Edge, KeyKind::Rsa, KeyKind::Rsa),
    ),
    scenario(
        "strongswan/rsa-responder",
        "charon initiates with an RSA certificate, as edge-agent has one; a wrong name and an unknown CA are reported",
        |lab| certificates(lab, Initiator::Moon, KeyKind::Rsa, KeyKind::Rsa),
    ),
    scenario(
        "strongswan/default-proposals-initiator",
        "edge-agent initiates, and neither it nor charon has proposals configured: pings, rekeys by each side",
        |lab| unconfigured(lab, Initiator::Edge, "default"),
    ),
    scenario(
        "strongswan/default-proposals-responder",
        "charon initiates, and neither it nor edge-agent has proposals configured: pings, rekeys by each side",
        |lab| unconfigured(lab, Initiator::Moon, "default"),
    ),
    scenario(
        "strongswan/aes256-sha256-modp2048-initiator",
        "edge-agent initiates without proposals; charon has the suite of old appliances, with forward secrecy: pings, rekeys",
        |lab| unconfigured(lab, Initiator::Edge, "aes256-sha256-modp2048"),
    ),
    scenario(
        "strongswan/aes256-sha256-modp2048-responder",
        "charon initiates with the suite of old appliances and forward secrecy; edge-agent has no proposals: pings, rekeys",
        |lab| unconfigured(lab, Initiator::Moon, "aes256-sha256-modp2048"),
    ),
    scenario(
        "strongswan/distinguished-name-initiator",
        "edge-agent initiates; the certificates have no other name than their subjects, and charon's configuration has no id",
        |lab| distinguished_names(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/distinguished-name-responder",
        "charon initiates without an id of its own; the certificates have no other name than their subjects",
        |lab| distinguished_names(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/nothing-in-common-initiator",
        "edge-agent initiates with other IKE proposals, ESP proposals or networks than charon has: reported, and nothing is left",
        |lab| nothing_in_common(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/nothing-in-common-responder",
        "charon initiates with other IKE proposals, ESP proposals or networks than edge-agent has: reported, and nothing is left",
        |lab| nothing_in_common(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/migrate-psk",
        "a site with swanctl.conf and a PSK changes to edge-agent by its import, as docs/migrate.md has it; the other end keeps strongSwan",
        migrate::psk,
    ),
    scenario(
        "strongswan/migrate-certificates",
        "the same with certificates: import brings them, the key and the authority",
        migrate::certificates,
    ),
    scenario(
        "strongswan/children-initiator",
        "edge-agent initiates two CHILD_SAs under one IKE SA, and one that charon narrows: pings, a rekey of one, status",
        |lab| children::run(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/children-responder",
        "charon initiates two CHILD_SAs under one IKE SA, also with an edge-agent that has one for both: pings, a rekey of one",
        |lab| children::run(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/transport-initiator",
        "edge-agent initiates transport mode with charon between their own addresses: pings, rekeys by each side",
        |lab| transport::run(lab, Initiator::Edge, transport::IPV4),
    ),
    scenario(
        "strongswan/transport-responder",
        "charon initiates transport mode with edge-agent between their own addresses: pings, rekeys by each side",
        |lab| transport::run(lab, Initiator::Moon, transport::IPV4),
    ),
    scenario(
        "strongswan/transport-ipv6-initiator",
        "edge-agent initiates transport mode with charon between their own addresses of IPv6: pings, rekeys by each side",
        |lab| transport::run(lab, Initiator::Edge, transport::IPV6),
    ),
    scenario(
        "strongswan/transport-ipv6-responder",
        "charon initiates transport mode with edge-agent between their own addresses of IPv6: pings, rekeys by each side",
        |lab| transport::run(lab, Initiator::Moon, transport::IPV6),
    ),
    scenario(
        "strongswan/transport-refused-initiator",
        "edge-agent asks charon for transport mode and is given a tunnel: it is deleted, and the status says why",
        |lab| transport::refused(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/transport-refused-responder",
        "charon asks edge-agent for a tunnel where transport mode is configured: it is refused, and the status says why",
        |lab| transport::refused(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/configuration-payload-initiator",
        "edge-agent asks charon for its address in the tunnel (pools): pings, rekeys by each side, and the address goes with the IKE SA",
        configuration_payload::initiator,
    ),
    scenario(
        "strongswan/configuration-payload-responder",
        "charon asks edge-agent for its address in the tunnel (vips): pings, rekeys by each side, and the same address again",
        configuration_payload::responder,
    ),
    scenario(
        "strongswan/mobike-initiator",
        "edge-agent initiates to charon, then edge-agent's address changes, and charon's: MOBIKE moves the tunnel",
        |lab| mobike::both_move(lab, Initiator::Edge, mobike::IPV4),
    ),
    scenario(
        "strongswan/mobike-responder",
        "charon initiates to edge-agent, then edge-agent's address changes, and charon's: MOBIKE moves the tunnel",
        |lab| mobike::both_move(lab, Initiator::Moon, mobike::IPV4),
    ),
    scenario(
        "strongswan/mobike-ipv6-initiator",
        "edge-agent initiates to charon, then edge-agent's address of IPv6 changes, and charon's: MOBIKE moves the tunnel",
        |lab| mobike::both_move(lab, Initiator::Edge, mobike::IPV6),
    ),
    scenario(
        "strongswan/mobike-ipv6-responder",
        "charon initiates to edge-agent, then edge-agent's address of IPv6 changes, and charon's: MOBIKE moves the tunnel",
        |lab| mobike::both_move(lab, Initiator::Moon, mobike::IPV6),
    ),
    scenario(
        "strongswan/mobike-nat-initiator",
        "edge-agent behind a NAT initiates to charon and gets another address: MOBIKE moves the tunnel",
        |lab| mobike::behind_nat(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/mobike-nat-responder",
        "charon behind a NAT initiates to edge-agent and gets another address: MOBIKE moves the tunnel",
        |lab| mobike::behind_nat(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/groups-differ-at-rekey",
        "edge-agent and charon want forward secrecy by different groups: each rekey is refused, and a new IKE SA brings the CHILD_SA",
        groups_differ_at_rekey,
    ),
    scenario(
        "strongswan/on-demand",
        "edge-agent sets the tunnel to charon up by the first packet, closes it when it is idle, and again after charon has closed it",
        on_demand,
    ),
    scenario(
        "strongswan/chacha-p256-ipv6",
        "edge-agent initiates over IPv6 without NAT or default route: ChaCha20-Poly1305, P-256, IPv6 pods",
        chacha_p256_ipv6,
    ),
    scenario(
        "strongswan/fragmentation",
        "certificates over a path that drops IP fragments: IKE fragments (RFC 7383) both ways",
        fragmentation,
    ),
];

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(120), by_default: true, needs: Needs::Nothing, run }
}

fn psk(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let charon = Charon::start(site.moon, &site.connection(Auth::Psk(SECRET.to_owned())))?;

    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(Auth::Psk(WRONG_SECRET.to_owned()))])?;
    site.check_refusal(&mut agent, &charon, &["moon", "pre-shared key"])?;
    agent.process().stop()?;
    lab.step("a wrong secret is reported");

    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(Auth::Psk(SECRET.to_owned()))])?;
    site.check_tunnel(lab, &mut agent, &charon)
}

fn on_demand(lab: &Lab) -> Result<()> {
    let net = lab.build(&Site::plan(Initiator::Edge))?;
    let mut site = Site::new(net, Initiator::Edge)?;
    let auth = || Auth::Psk(SECRET.to_owned());
    let charon = Charon::start(site.moon, &site.connection(auth()))?;
    let peer = StaticPeer { start: "on-demand", ..site.peer(auth()) };
    let mut agent = Agent::start(lab, site.edge, "[on_demand]\nidle_timeout = \"2s\"", &[peer])?;
    agent.wait_ready()?;
    for _ in 0..2 {
        agent.wait_phase("moon", "on-demand")?;
        wait::for_event("charon to have no IKE SA", || {
            ensure!(charon.sas()?.is_empty(), "it still has one");
            Ok(())
        })?;
        // This single packet sets up the tunnel.
        ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(60))?, "the first packet was lost");
    }
    lab.step("the first packet is answered, and the idle tunnel goes");

    let mut ping = site.edge_pod.ping("10.2.0.2")?;
    ping.wait_more(3)?;
    let (ours, theirs) = (agent.wait_up("moon")?, charon.wait_up()?);
    ensure!((ours.spi_in, ours.spi_out) == (theirs.spi_out, theirs.spi_in), "{ours:x?} and {theirs:x?}");
    charon.terminate()?;
    wait::for_event("another tunnel", || {
        let now = agent.tunnel("moon")?;
        ensure!(now != ours, "it is still {now:x?}");
        Ok(())
    })?;
    ping.wait_more(3)?;
    lab.step("charon closes the tunnel, and the next packet brings another one");
    ping.stop()?;
    agent.wait_phase("moon", "on-demand")?;
    site.wire.stop()?;
    site.wire.expect_none("net 10.0.0.0/8")
}

fn psk_initiator(lab: &Lab) -> Result<()> {
    psk(lab, Initiator::Edge)
}

fn psk_responder(lab: &Lab) -> Result<()> {
    psk(lab, Initiator::Moon)
}

fn certificates(lab: &Lab, initiator: Initiator, edge_key: KeyKind, moon_key: KeyKind) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let authority = Authority::new("lab")?;
    let unknown = Authority::new("unknown")?;
    let ours = authority.issue("edge.example", edge_key)?;
    let moon = Auth::certificate(authority.issue("moon.example", moon_key)?, &authority);
    let charon = Charon::start(site.moon, &site.connection(moon))?;

    // The right certificate chain for another name, which differs in one letter.
    let mut wrong = site.peer(Auth::certificate(ours.clone(), &authority));
    wrong.remote_id = "noon.example".to_owned();
    let mut agent = Agent::start(lab, site.edge, "", &[wrong])?;
    let words: &[&str] = match initiator {
        // charon refuses this identity.
        Initiator::Edge => &["moon", "edge.example", "identities"],
        // For a responder, no [[peer]] has this identity.
        Initiator::Moon => &["moon.example"],
    };
    match initiator {
        Initiator::Edge => site.check_refusal(&mut agent, &charon, words)?,
        Initiator::Moon => {
            ensure!(charon.initiate().is_err(), "charon came through under a name that no peer has");
            agent.process().wait_log("moon.example")?;
        }
    }
    agent.process().stop()?;
    lab.step("a wrong name is reported");

    // The right name in a certificate from an authority that the agent does not trust.
    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(Auth::certificate(ours.clone(), &unknown))])?;
    site.check_refusal(&mut agent, &charon, &["moon", "certificate"])?;
    agent.process().stop()?;
    lab.step("an unknown authority is reported");

    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(Auth::certificate(ours, &authority))])?;
    site.check_tunnel(lab, &mut agent, &charon)
}

fn cert_initiator(lab: &Lab) -> Result<()> {
    certificates(lab, Initiator::Edge, KeyKind::Ed25519, KeyKind::P256)
}

fn cert_responder(lab: &Lab) -> Result<()> {
    certificates(lab, Initiator::Moon, KeyKind::P256, KeyKind::Ed25519)
}

/// Runs charon with `proposals` for IKE and for ESP, and edge-agent without configured proposals.
fn unconfigured(lab: &Lab, initiator: Initiator, proposals: &str) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = Auth::Psk(SECRET.to_owned());
    let charon = Charon::start(site.moon, &site.connection(auth.clone()).proposals(proposals, proposals))?;
    let peer = StaticPeer { ike: Vec::new(), esp: Vec::new(), ..site.peer(auth) };
    let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
    site.check_tunnel(lab, &mut agent, &charon)
}

fn distinguished_names(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let authority = Authority::new("lab")?;
    let ours = Auth::certificate(authority.issue_by_subject("edge", KeyKind::P256)?, &authority);
    let moons = Auth::certificate(authority.issue_by_subject("moon", KeyKind::P256)?, &authority);
    let connection = Connection { local_id: String::new(), remote_id: subject("edge"), ..site.connection(moons) };
    let charon = Charon::start(site.moon, &connection)?;
    let peer = StaticPeer { local_id: subject("edge"), remote_id: subject("moon"), ..site.peer(ours) };
    let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
    site.check_tunnel(lab, &mut agent, &charon)
}

fn nothing_in_common(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = Auth::Psk(SECRET.to_owned());
    let charon = Charon::start(site.moon, &site.connection(auth.clone()))?;
    let ours = site.peer(auth);

    let other_ike = StaticPeer { ike: vec!["chacha20poly1305-prfsha256-x25519".to_owned()], ..ours.clone() };
    let mut agent = Agent::start(lab, site.edge, "", &[other_ike])?;
    match initiator {
        Initiator::Edge => {
            site.check_refusal(&mut agent, &charon, &["moon", "no proposal in common", "CHACHA20_POLY1305"])?
        }
        // No peer has identified itself yet, so the log contains only an address.
        Initiator::Moon => {
            ensure!(charon.initiate().is_err(), "charon came through with a proposal that is not configured");
            for words in ["no proposal in common", "configured here: CHACHA20_POLY1305", "203.0.113.1"] {
                agent.process().wait_log(words)?;
            }
            site.nothing_is_left()?;
        }
    }
    agent.process().stop()?;
    lab.step("other IKE proposals are reported");

    let other_esp = StaticPeer { esp: vec!["chacha20poly1305".to_owned()], ..ours.clone() };
    let other_nets = StaticPeer { remote_subnets: vec!["10.9.0.0/24".to_owned()], ..ours };
    let cases: [(&str, StaticPeer, &[&str]); 2] = [
        ("other ESP proposals", other_esp, &["moon", "IKE_AUTH", "no proposal in common", "ESP", "CHACHA20_POLY1305"]),
        ("other networks", other_nets, &["moon", "IKE_AUTH", "traffic selectors unacceptable", "remote 10.9.0.0/24"]),
    ];
    for (what, peer, words) in cases {
        let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
        site.check_refusal(&mut agent, &charon, words)?;
        // As initiator, charon keeps the IKE SA without a CHILD_SA.
        if !charon.sas()?.is_empty() {
            charon.terminate()?;
        }
        agent.process().stop()?;
        lab.step(&format!("{what} are reported"));
    }
    Ok(())
}

fn groups_differ_at_rekey(lab: &Lab) -> Result<()> {
    let initiator = Initiator::Edge;
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = Auth::Psk(SECRET.to_owned());
    let ike = "aes256gcm16-prfsha256-x25519";
    let charon = Charon::start(site.moon, &site.connection(auth.clone()).proposals(ike, "aes256gcm16-ecp256"))?;
    let peer = StaticPeer { esp: vec!["aes256gcm16-x25519".to_owned()], ..site.peer(auth) };
    let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
    agent.wait_up("moon")?;
    charon.wait_up()?;
    for _ in 0..3 {
        let before = agent.ike_sas("moon")?;
        agent.rekey("moon")?;
        ensure!(agent.ike_sas("moon")? != before, "the CHILD_SA was rekeyed, although the groups differ");
        charon.wait_up()?;
        ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the tunnel");
    }
    agent.process().wait_log("no proposal in common")?;
    Ok(())
}

fn chacha_p256_ipv6(lab: &Lab) -> Result<()> {
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

fn fragmentation(lab: &Lab) -> Result<()> {
    let initiator = Initiator::Edge;
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    // Drops IP fragments, as some home routers do.
    net.node("isp").sh(
        "nft 'add table ip drop_fragments; add chain ip drop_fragments prerouting { type filter hook prerouting priority -450; };
              add rule ip drop_fragments prerouting ip frag-off & 0x3fff != 0 drop'",
    )?;
    let authority = Authority::new("an authority with a long name so that its certificates are long as well")?;
    // Names that make the certificates longer than one datagram.
    let moon = Auth::certificate(authority.issue_long("moon.example", KeyKind::P256)?, &authority);
    let charon = Charon::start(site.moon, &Connection { more: "fragmentation = yes".into(), ..site.connection(moon) })?;
    let ours = Auth::certificate(authority.issue_long("edge.example", KeyKind::P256)?, &authority);
    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(ours)])?;
    agent.wait_up("moon")?;
    charon.wait_up()?;
    ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the tunnel");
    // Encrypted fragments, payload 53 (RFC 7383 2.5), behind the non-ESP marker of port 4500: next
    // payload at offset 16 of the IKE header.
    let fragments = "udp port 4500 and udp[8:4] = 0 and udp[28] = 53";
    for (from, who) in [("203.0.113.1", "edge-agent"), ("203.0.113.10", "charon")] {
        ensure!(!site.wire.packets(&format!("src {from} and {fragments}"))?.is_empty(), "{who} sent no IKE fragment");
    }
    Ok(())
}
