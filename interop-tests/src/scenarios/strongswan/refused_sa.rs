//! Runs edge-agent on a host whose kernel refuses an SA of the tunnel, since another SA has its
//! address and SPI: so it is if two peers behind one NAT choose the same SPI.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};
use crate::topology::NetworkPlan;
use crate::wait;

const EDGE: &str = "192.0.2.1";
const MOON: &str = "192.0.2.2";
/// The only SPIs that charon may choose.
const SPIS: [u32; 2] = [0xC000_0001, 0xC000_0002];

pub(super) fn run(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("edge").on("wire", &[&format!("{EDGE}/24")]).via(MOON);
    plan.host("moon").on("wire", &[&format!("{MOON}/24")]).via(EDGE);
    let net = lab.build(&plan)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let edge_pod = edge.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
    let _moon_pod = moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
    // The edge's kernel cannot send with the first SPI, and moon's kernel gives charon no other.
    let another = |spi: u32| {
        let key = "00".repeat(36);
        format!(
            "ip xfrm state add src {EDGE} dst {MOON} proto esp spi {spi} mode tunnel aead 'rfc4106(gcm(aes))' 0x{key} 128"
        )
    };
    let [first, second] = SPIS;
    edge.sh(&another(first))?;
    moon.sh(&another(second))?;

    let auth = Auth::Psk("correct horse battery".to_owned());
    let connection = Connection::new("edge", auth.clone()).local(MOON, "moon.example", "10.2.0.0/24").remote(
        EDGE,
        "edge.example",
        "10.1.0.0/24",
    );
    let charon = Charon::start_with_spis(moon, first, second, &connection)?;
    let peer = StaticPeer {
        name: "moon".to_owned(),
        remote: vec![MOON.to_owned()],
        local_id: "edge.example".to_owned(),
        remote_id: "moon.example".to_owned(),
        auth,
        local_subnets: vec!["10.1.0.0/24".to_owned()],
        remote_subnets: vec!["10.2.0.0/24".to_owned()],
        ike: vec![],
        esp: vec![],
        start: "initiate",
    };
    let mut agent = Agent::start(lab, edge, "", &[peer])?;
    agent.wait_ready()?;
    wait::for_event("the agent to say that the kernel refused an SA", || {
        let error = agent.last_error("moon")?;
        ensure!(error.contains("the kernel refused an SA") && error.contains("exists already"), "it says {error}");
        Ok(())
    })?;
    agent.wait_phase("moon", "connecting")?;
    ensure!(!edge_pod.reaches("10.2.0.2", Duration::from_millis(500))?, "a ping is answered without an SA");
    lab.step("a tunnel without an outbound SA is not shown as up");

    moon.sh(&format!("ip xfrm state delete dst {MOON} proto esp spi {second}"))?;
    agent.wait_phase("moon", "up")?;
    let tunnel = agent.wait_up("moon")?;
    ensure!(tunnel.spi_out == second, "the tunnel is {tunnel:x?}");
    charon.wait_up()?;
    ensure!(edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the tunnel");
    ensure!(agent.last_error("moon").is_err(), "the refusal is shown although the tunnel is up");
    lab.step("another CHILD_SA has replaced it");
    Ok(())
}
