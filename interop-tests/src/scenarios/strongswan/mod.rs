//! Runs edge-agent with static peers against Debian's strongSwan, each as initiator and as
//! responder, with pre-shared keys and with certificates.

mod changes;
mod childless;
mod children;
mod configuration_payload;
mod groups_differ;
mod migrate;
mod mobike;
mod on_demand;
mod own_lan;
mod paths;
mod refused_sa;
mod revoked;
mod selectors;
mod transport;
mod variants;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::{Lab, Needs, Scenario};
use crate::scenarios::site::{Initiator, SECRET, Site, WRONG_SECRET};
use crate::strongswan::charon::{Auth, Connection};
use crate::strongswan::{Authority, Charon, KeyKind, subject};
use crate::wait;

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
        "strongswan/childless-initiator",
        "edge-agent initiates without a CHILD_SA in IKE_AUTH (RFC 6023) to charon: pings, rekeys by each side; childless = never",
        |lab| childless::run(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/childless-responder",
        "charon initiates without a CHILD_SA in IKE_AUTH (childless = force): pings, rekeys by each side; childless = never",
        |lab| childless::run(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/algorithms-initiator",
        "edge-agent initiates to charon with P-384, P-521, MODP-3072 and 4096, AES-CBC with SHA-384 and 512: pings, rekeys",
        |lab| variants::algorithms(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/algorithms-responder",
        "charon initiates with P-384, P-521, MODP-3072 and 4096, AES-CBC with SHA-384 and 512: pings, rekeys by each side",
        |lab| variants::algorithms(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/identities-initiator",
        "edge-agent initiates to charon with addresses, user@domain and key IDs as identities, and secrets as 0x and 0s",
        |lab| variants::identities(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/identities-responder",
        "charon initiates with addresses, user@domain and key IDs as identities; edge-agent has the secret as 0x and 0s",
        |lab| variants::identities(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/selectors-initiator",
        "edge-agent initiates a CHILD_SA for one TCP port and one for ICMP: each carries its packets, and no others",
        |lab| selectors::run(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/selectors-responder",
        "charon initiates a CHILD_SA for one TCP port and one for ICMP: each carries its packets, and no others",
        |lab| selectors::run(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/revoked-initiator",
        "edge-agent initiates, and charon's certificate is revoked while the tunnel is up: the tunnel ends, and the status says why",
        |lab| revoked::run(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/revoked-responder",
        "charon initiates, and its certificate is revoked while the tunnel is up: the tunnel ends, and no other comes up",
        |lab| revoked::run(lab, Initiator::Moon),
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
        "strongswan/transport-nat-initiator",
        "edge-agent behind a NAT initiates transport mode with charon: pings between the addresses that each side sees, rekeys",
        |lab| transport::through_nat(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/transport-nat-responder",
        "charon behind a NAT initiates transport mode with edge-agent: pings between the addresses that each side sees, rekeys",
        |lab| transport::through_nat(lab, Initiator::Moon),
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
        "strongswan/groups-differ-initiator",
        "edge-agent has initiated; it and charon want forward secrecy by different groups: rekeys are refused, and nothing is lost",
        |lab| groups_differ::run(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/groups-differ-responder",
        "charon has initiated; it and edge-agent want forward secrecy by different groups: rekeys are refused, and nothing is lost",
        |lab| groups_differ::run(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/agent-restarted-responder",
        "charon has initiated, and the agent is restarted: it begins by itself to where the kept SAs end, and packets go on",
        changes::restarted,
    ),
    scenario(
        "strongswan/groups-differ-children",
        "charon has initiated with the second of two children, whose groups differ: its rekeys are refused, both CHILD_SAs go on",
        groups_differ::additional_child,
    ),
    scenario(
        "strongswan/groups-differ-children-first",
        "charon deletes the first of two children and refuses it, since its group differs: a new IKE SA brings it, the other loses nothing",
        groups_differ::first_child,
    ),
    scenario(
        "strongswan/first-child-refused-initiator",
        "edge-agent initiates; charon refuses the first of two children in IKE_AUTH: the other comes up, and the first when the ciphers agree",
        |lab| groups_differ::first_child_in_auth(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/first-child-refused-responder",
        "charon initiates; edge-agent refuses the first of two children in IKE_AUTH: the other comes up, and the first when the ciphers agree",
        |lab| groups_differ::first_child_in_auth(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/on-demand-initiator",
        "edge-agent sets the tunnel to charon up by the first packet, closes it when it is idle, and again after charon has closed it",
        on_demand::initiator,
    ),
    scenario(
        "strongswan/on-demand-responder",
        "charon sets the tunnel to edge-agent up by a packet (start_action = trap), also after edge-agent has closed it",
        on_demand::responder,
    ),
    scenario(
        "strongswan/own-lan-initiator",
        "edge-agent initiates for 0.0.0.0/0 and ::/0, its LAN among them: the LAN's hosts find and reach each other without the tunnel",
        |lab| own_lan::run(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/own-lan-responder",
        "charon initiates for 0.0.0.0/0 and ::/0, edge-agent's LAN among them: the LAN's hosts find and reach each other",
        |lab| own_lan::run(lab, Initiator::Moon),
    ),
    slow(
        "strongswan/name-initiator",
        "edge-agent knows charon by a name: before the name has an address, with one, and after charon came back at another one",
        |lab| changes::by_name(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/name-responder",
        "charon knows edge-agent by a name, and edge-agent knows charon's NAT by one: charon initiates",
        |lab| changes::by_name(lab, Initiator::Moon),
    ),
    slow(
        "strongswan/secret-changed-initiator",
        "edge-agent has initiated, and charon's secret changes: the tunnel ends with its lifetime, and comes with the other secret",
        |lab| changes::secret(lab, Initiator::Edge),
    ),
    slow(
        "strongswan/secret-changed-responder",
        "charon has initiated, and its secret changes: the tunnel ends with its lifetime, and comes with the other secret",
        |lab| changes::secret(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/nat-rebinding-initiator",
        "edge-agent's NAT forgets its mappings: another port, then another address, under one IKE SA",
        |lab| changes::mapping(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/nat-rebinding-responder",
        "charon's NAT forgets its mappings: another port, then another address, under one IKE SA",
        |lab| changes::mapping(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/reauthentication-initiator",
        "edge-agent has initiated; charon, then edge-agent authenticates again (make before break): no ping is lost",
        |lab| changes::authentication(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/reauthentication-responder",
        "charon has initiated; charon, then edge-agent authenticates again (make before break): no ping is lost",
        |lab| changes::authentication(lab, Initiator::Moon),
    ),
    scenario(
        "strongswan/refused-sa",
        "edge-agent's kernel refuses the outbound SA, whose SPI is taken: it says so, is not up, and rekeys until there is another",
        refused_sa::run,
    ),
    scenario(
        "strongswan/chacha-p256-ipv6",
        "edge-agent initiates over IPv6 without NAT or default route: ChaCha20-Poly1305, P-256, IPv6 pods",
        paths::chacha_p256_ipv6,
    ),
    scenario(
        "strongswan/fragmentation-initiator",
        "edge-agent initiates with certificates over a path that drops IP fragments: IKE fragments (RFC 7383) both ways",
        |lab| paths::fragmentation(lab, Initiator::Edge),
    ),
    scenario(
        "strongswan/fragmentation-responder",
        "charon initiates with certificates over a path that drops IP fragments: IKE fragments (RFC 7383) both ways",
        |lab| paths::fragmentation(lab, Initiator::Moon),
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
    let charon = Charon::start(site.moon, &site.connection(Auth::Psk(SECRET.to_owned())))?;

    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(Auth::Psk(WRONG_SECRET.to_owned()))])?;
    site.check_refusal(&mut agent, &charon, &["moon", "pre-shared key"])?;
    agent.process().stop()?;
    lab.step("a wrong secret is reported");

    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(Auth::Psk(SECRET.to_owned()))])?;
    site.check_tunnel(lab, &mut agent, &charon)
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
        // As initiator, charon keeps the IKE SA without a CHILD_SA. It may also be about to end.
        wait::for_event("charon to keep no IKE SA", || {
            if !charon.sas()?.is_empty() {
                charon.terminate()?;
            }
            Ok(())
        })?;
        agent.process().stop()?;
        lab.step(&format!("{what} are reported"));
    }
    Ok(())
}
