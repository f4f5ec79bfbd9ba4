//! Runs one tunnel after another with charon, each with other algorithms, identities or another
//! form of the secret.

use std::time::Duration;

use anyhow::{Result, ensure};
use data_encoding::{BASE64, HEXLOWER};

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site};
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};
use crate::wait;

/// What differs from the connection of the [`Site`].
struct Variant {
    ike: &'static str,
    esp: &'static str,
    /// Identities of edge-agent and charon.
    ids: [&'static str; 2],
    /// The secret as edge-agent's file has it.
    secret: String,
}

impl Variant {
    fn suite(ike: &'static str, esp: &'static str) -> Self {
        Self { ike, esp, ids: ["edge.example", "moon.example"], secret: SECRET.to_owned() }
    }

    fn identities(edge: &'static str, moon: &'static str) -> Self {
        Self { ids: [edge, moon], ..Self::suite("aes256gcm16-prfsha256-x25519", "aes256gcm16") }
    }
}

/// Runs suites with each PRF, integrity algorithm and key exchange that other scenarios leave out,
/// and extended sequence numbers.
pub(super) fn algorithms(lab: &Lab, initiator: Initiator) -> Result<()> {
    let suites = [
        ("aes256-sha384-ecp384", "aes256-sha384"),
        ("aes128-sha512-ecp521", "aes128-sha512-ecp521"),
        ("aes256gcm16-prfsha384-modp3072", "aes128gcm16-ecp384"),
        ("aes192-sha256-modp4096", "aes192-sha256-modp3072"),
        ("aes128gcm16-prfsha512-ecp256", "chacha20poly1305-ecp256-esn"),
    ];
    run(lab, initiator, suites.map(|(ike, esp)| Variant::suite(ike, esp)))
}

/// Runs each type of identity without certificate, and the forms of a secret.
pub(super) fn identities(lab: &Lab, initiator: Initiator) -> Result<()> {
    let usual = || Variant::identities("edge.example", "moon.example");
    let variants = [
        Variant::identities("192.0.2.1", "2001:db8::2"),
        Variant::identities("edge@edge.example", "fqdn:moon.example"),
        Variant::identities("keyid:edge", "keyid:moon"),
        Variant { secret: format!("0x{}", HEXLOWER.encode(SECRET.as_bytes())), ..usual() },
        Variant { secret: format!("0s{}", BASE64.encode(SECRET.as_bytes())), ..usual() },
    ];
    run(lab, initiator, variants)
}

fn run<const N: usize>(lab: &Lab, initiator: Initiator, variants: [Variant; N]) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let mut charon: Option<Charon<'_>> = None;
    for Variant { ike, esp, ids: [edge, moon], secret } in variants {
        let usual = site.connection(Auth::Psk(SECRET.to_owned())).proposals(ike, esp);
        let connection = Connection { local_id: moon.to_owned(), remote_id: edge.to_owned(), ..usual };
        match &mut charon {
            Some(charon) => charon.load(&connection)?,
            None => charon = Some(Charon::start(site.moon, &connection)?),
        }
        let Some(charon) = &charon else { continue };
        let peer = StaticPeer {
            local_id: edge.to_owned(),
            remote_id: moon.to_owned(),
            ike: vec![ike.to_owned()],
            esp: vec![esp.to_owned()],
            ..site.peer(Auth::Psk(secret))
        };
        let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
        agent.wait_ready()?;
        if initiator == Initiator::Moon {
            wait::for_event("charon to get through", || charon.initiate())?;
        }
        agent.wait_up("moon")?;
        charon.wait_up()?;
        if esp.ends_with("-esn") {
            for node in [site.edge, site.moon] {
                let states = node.sh("ip xfrm state list nokeys")?;
                ensure!(states.contains("esn"), "no extended sequence numbers at {}: {states}", node.name());
            }
        }
        let mut ping = site.edge_pod.ping("10.2.0.2")?;
        ping.wait_more(3)?;
        agent.rekey("moon")?;
        charon.rekey_child()?;
        agent.rekey_ike("moon")?;
        charon.rekey_ike()?;
        charon.wait_up()?;
        ping.wait_more(3)?;
        ping.stop()?.expect_none_lost()?;
        ensure!(site.moon_pod.reaches("10.1.0.2", Duration::from_secs(5))?, "moon's pod does not reach edge's");
        lab.step(&format!("{ike} and {esp}, {edge} and {moon}: rekeyed by each side, nothing is lost"));
        agent.process().stop()?;
        agent.command(&["down"])?;
        charon.forget()?;
    }
    Ok(())
}
