//! Runs one tunnel after another with pluto, each with other algorithms, identities or another form
//! of the secret. edge-agent has no proposals configured.

use anyhow::Result;
use data_encoding::{BASE64, HEXLOWER};

use super::ends::{conn, peer};
use crate::edge_agent::{Agent, StaticPeer};
use crate::libreswan::{Conn, Pluto};
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site, expect_none_lost};
use crate::strongswan::charon::Auth;

/// What differs from the usual connection.
struct Variant {
    /// Lines for pluto's connection.
    lines: [&'static str; 2],
    /// Identities of edge-agent and pluto, each as its own file has it and as the other one's has
    /// it.
    ids: [[&'static str; 2]; 2],
    /// The secret as edge-agent's file has it.
    secret: String,
}

fn variants() -> [Variant; 6] {
    let usual = || Variant {
        lines: ["ike=aes256-sha2_256-dh14", "esp=aes256-sha2_256-dh14"],
        ids: [["edge.example", "@edge.example"], ["@moon.example", "moon.example"]],
        secret: SECRET.to_owned(),
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
    ]
}

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let mut pluto: Option<Pluto<'_>> = None;
    for Variant { lines, ids: [[edge, edge_there], [moon, moon_here]], secret } in variants() {
        let usual = conn(&site, Auth::Psk(SECRET.to_owned()), &lines);
        let theirs = Conn { left_id: moon.to_owned(), right_id: edge_there.to_owned(), ..usual };
        match &pluto {
            Some(pluto) => pluto.load(&theirs)?,
            None => pluto = Some(Pluto::start(site.moon, &theirs)?),
        }
        let Some(pluto) = &pluto else { continue };
        let ours = peer(&site, Auth::Psk(secret));
        let ours = StaticPeer { local_id: edge.to_owned(), remote_id: moon_here.to_owned(), ..ours };
        let mut agent = Agent::start(lab, site.edge, "", &[ours])?;
        agent.wait_ready()?;
        if initiator == Initiator::Moon {
            pluto.initiate()?;
        }
        agent.wait_up("moon")?;
        pluto.wait_up()?;
        let mut pings = [site.edge_pod.ping("10.2.0.2")?, site.moon_pod.ping("10.1.0.2")?];
        for ping in &mut pings {
            ping.wait_more(3)?;
        }
        agent.rekey("moon")?;
        pluto.rekey_child()?;
        agent.rekey_ike("moon")?;
        pluto.rekey_ike()?;
        pluto.wait_up()?;
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
