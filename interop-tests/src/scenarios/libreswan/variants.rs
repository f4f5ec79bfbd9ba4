//! Runs one tunnel after another with pluto, each with other algorithms, identities or another form
//! of the secret. edge-agent has no proposals configured, except for extended sequence numbers.

use anyhow::{Result, ensure};
use data_encoding::{BASE64, HEXLOWER};

use super::ends::{conn, peer};
use crate::edge_agent::{Agent, StaticPeer};
use crate::libreswan::{Conn, Pluto};
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site, expect_none_lost};
use crate::strongswan::charon::Auth;
use crate::wait;

/// What differs from the usual connection.
struct Variant {
    /// Lines for pluto's connection.
    lines: [&'static str; 2],
    /// Identities of edge-agent and pluto, each as its own file has it and as the other one's has
    /// it.
    ids: [[&'static str; 2]; 2],
    /// The secret as edge-agent's file has it.
    secret: String,
    /// Extended sequence numbers: pluto's word, and edge-agent's ESP proposal.
    esn: Option<[&'static str; 2]>,
}

fn variants() -> [Variant; 8] {
    let usual = || Variant {
        lines: ["ike=aes256-sha2_256-dh14", "esp=aes256-sha2_256-dh14"],
        ids: [["edge.example", "@edge.example"], ["@moon.example", "moon.example"]],
        secret: SECRET.to_owned(),
        esn: None,
    };
    let suite = |ike, esp| Variant { lines: [ike, esp], ..usual() };
    [
        usual(),
        suite("ike=aes128-sha2_512-dh21", "esp=aes128-sha2_512-dh20"),
        suite("ike=aes256-sha2_384-dh16", "esp=chacha20_poly1305"),
        Variant {
            secret: format!("0x{}", HEXLOWER.encode(SECRET.as_bytes())),
            ids: [["192.0.2.1", "192.0.2.1"], ["192.0.2.2", "192.0.2.2"]],
            ..suite("ike=chacha20_poly1305-sha2_512-dh19", "esp=aes_gcm128")
        },
        Variant {
            secret: format!("0s{}", BASE64.encode(SECRET.as_bytes())),
            ids: [["edge@edge.example", "edge@edge.example"], ["moon@moon.example", "moon@moon.example"]],
            ..suite("ike=aes_gcm256-sha2_384-dh15", "esp=aes_gcm256-null-dh31")
        },
        Variant { ids: [["keyid:edge", "@[edge]"], ["@[moon]", "keyid:moon"]], ..usual() },
        // pluto insists on it.
        Variant {
            esn: Some(["yes", "aes256gcm16-x25519-esn"]),
            ..suite("ike=aes_gcm256-sha2_256-dh31", "esp=aes_gcm256-null-dh31")
        },
        // pluto accepts both, and the ends agree on extended ones.
        Variant {
            esn: Some(["either", "aes256-sha256-modp2048-esn"]),
            ..suite("ike=aes256-sha2_256-dh14", "esp=aes256-sha2_256-dh14")
        },
    ]
}

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let mut pluto: Option<Pluto<'_>> = None;
    for Variant { lines, ids: [[edge, edge_there], [moon, moon_here]], secret, esn } in variants() {
        let lines: Vec<String> =
            lines.map(str::to_owned).into_iter().chain(esn.map(|[word, _]| format!("esn={word}"))).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let usual = conn(&site, Auth::Psk(SECRET.to_owned()), &lines);
        let theirs = Conn { left_id: moon.to_owned(), right_id: edge_there.to_owned(), ..usual };
        match &pluto {
            Some(pluto) => pluto.load(&theirs)?,
            None => pluto = Some(Pluto::start(site.moon, &theirs)?),
        }
        let Some(pluto) = &pluto else { continue };
        let ours = peer(&site, Auth::Psk(secret));
        let esp = esn.iter().map(|[_, proposal]| (*proposal).to_owned()).collect();
        let ours = StaticPeer { local_id: edge.to_owned(), remote_id: moon_here.to_owned(), esp, ..ours };
        let mut agent = Agent::start(lab, site.edge, "", &[ours])?;
        agent.wait_ready()?;
        if initiator == Initiator::Moon {
            pluto.initiate()?;
        }
        agent.wait_up("moon")?;
        pluto.wait_up()?;
        expect_esn(&site, esn.is_some())?;
        let mut pings = [site.edge_pod.ping("10.2.0.2")?, site.moon_pod.ping("10.1.0.2")?];
        for ping in &mut pings {
            ping.wait_more(3)?;
        }
        agent.rekey("moon")?;
        pluto.rekey_child()?;
        agent.rekey_ike("moon")?;
        pluto.rekey_ike()?;
        pluto.wait_up()?;
        expect_esn(&site, esn.is_some())?;
        for ping in &mut pings {
            ping.wait_more(3)?;
        }
        expect_none_lost(site.edge, pluto, pings)?;
        lab.step(&format!("{}, {edge} and {moon}: rekeyed by each side, nothing is lost", lines.join(" ")));
        agent.process().stop()?;
        agent.command(&["down"])?;
    }
    Ok(())
}

/// Waits until all SAs of both kernels have extended sequence numbers, or none has. A state of an
/// SPI that is only reserved has none.
fn expect_esn(site: &Site<'_>, expected: bool) -> Result<()> {
    for node in [site.edge, site.moon] {
        wait::for_event(&format!("SAs with the sequence numbers of the suite at {}", node.name()), || {
            let states = node.sh("ip xfrm state list nokeys")?;
            let number = states.lines().filter(|line| line.starts_with("src ")).count();
            let is_esn = |line: &&str| line.trim_start().starts_with("replay-window") && line.contains("esn");
            let extended = states.lines().filter(is_esn).count();
            ensure!(number >= 2 && extended == if expected { number } else { 0 }, "it has {states}");
            Ok(())
        })?;
    }
    Ok(())
}
