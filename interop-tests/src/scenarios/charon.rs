//! Runs strongSwan against strongSwan. It shows that the lab, its kernel and the peer work without
//! our programs.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::scenario::{Lab, Needs, Scenario};
use crate::strongswan::charon::{Auth, Connection};
use crate::strongswan::{Authority, Charon, KeyKind};
use crate::topology::{Netem, NetworkPlan};

const DEADLINE: Duration = Duration::from_secs(90);

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "lab/charon-to-charon",
        about: "two charons with a PSK through a NAT router: pings both ways, only ESP and IKE on the wire, a rekey loses none",
        deadline: DEADLINE,
        by_default: true,
        needs: Needs::Nothing,
        run: psk,
    },
    Scenario {
        name: "lab/charon-to-charon-cert",
        about: "two charons with Ed25519 and P-256 certificates over IPv6",
        deadline: DEADLINE,
        by_default: true,
        needs: Needs::Nothing,
        run: certificates,
    },
];

fn psk(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.router("isp")
        .on("internet", &["203.0.113.1/24"])
        .on("home", &["192.168.1.1/24"])
        .masquerade("internet")
        .slow("internet", Netem::delay(2));
    plan.host("sun").on("home", &["192.168.1.10/24"]).via("192.168.1.1");
    plan.host("moon").on("internet", &["203.0.113.10/24"]).route("192.168.1.0/24", "203.0.113.1");
    let net = lab.build(&plan)?;
    let (sun, moon) = (net.node("sun"), net.node("moon"));
    let sun_pod = sun.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
    let moon_pod = moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
    let mut wire = net.node("isp").capture("internet")?;

    let auth = Auth::Psk("correct horse".to_owned());
    let sun_charon = Charon::start(
        sun,
        &Connection::new("moon", auth.clone()).local("192.168.1.10", "sun.example", "10.1.0.0/24").remote(
            "203.0.113.10",
            "moon.example",
            "10.2.0.0/24",
        ),
    )?;
    let moon_charon = Charon::start(
        moon,
        &Connection::new("sun", auth).local("203.0.113.10", "moon.example", "10.2.0.0/24").remote(
            "%any",
            "sun.example",
            "10.1.0.0/24",
        ),
    )?;
    lab.step("both charons run");
    sun_charon.initiate()?;
    let child = sun_charon.wait_up()?;
    let there = moon_charon.wait_up()?;
    lab.step("the tunnel is up");
    ensure!(child.encap && there.encap, "behind a NAT, ESP travels in UDP");
    ensure!((child.spi_in, child.spi_out) == (there.spi_out, there.spi_in), "{child:?} does not match {there:?}");
    let spis =
        |states: Vec<crate::topology::xfrm::State>| states.into_iter().map(|state| state.spi).collect::<Vec<_>>();
    for spi in [child.spi_in, child.spi_out] {
        ensure!(spis(sun.xfrm_states()?).contains(&spi), "the kernel of sun has no {spi:08x}");
        ensure!(spis(moon.xfrm_states()?).contains(&spi), "the kernel of moon has no {spi:08x}");
    }

    let mut ping = sun_pod.ping("10.2.0.2")?;
    let mut back = moon_pod.ping("10.1.0.2")?;
    ping.wait_more(5)?;
    back.wait_more(5)?;
    sun_charon.rekey_child()?;
    moon_charon.rekey_child()?;
    lab.step("rekeyed by each side");
    ping.wait_more(5)?;
    back.wait_more(5)?;
    ping.stop()?.expect_none_lost()?;
    back.stop()?.expect_none_lost()?;
    ensure!(sun.xfrm_states()?.iter().any(|state| state.packets > 0), "no state of sun counted a packet");

    wire.expect_none_so_far("net 10.0.0.0/8")?;
    let seen = wire.esp_spis()?;
    ensure!(seen.contains(&child.spi_in) && seen.contains(&child.spi_out), "the wire has {seen:x?}, not {child:?}");
    // An unencrypted packet between the same pods shows that the capture works.
    moon.sh("ip xfrm policy flush; ip xfrm state flush; ip route add 10.1.0.0/24 via 203.0.113.1")?;
    ensure!(!moon_pod.reaches("10.1.0.2", Duration::from_millis(200))?, "a clear ping must not reach sun's pod");
    wire.wait_for("icmp and src 10.2.0.2 and dst 10.1.0.2")?;
    wire.stop()
}

fn certificates(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("sun").on("wire", &["2001:db8::1/64"]);
    plan.host("moon").on("wire", &["2001:db8::2/64"]);
    let net = lab.build(&plan)?;
    let (sun, moon) = (net.node("sun"), net.node("moon"));
    let sun_pod = sun.wired_pod("p", "fd01::2/64", "fd01::1/64")?;
    moon.wired_pod("p", "fd02::2/64", "fd02::1/64")?;
    let authority = Authority::new("lab")?;
    let sun_charon = Charon::start(
        sun,
        &Connection::new("moon", Auth::certificate(authority.issue("sun.example", KeyKind::Ed25519)?, &authority))
            .local("2001:db8::1", "sun.example", "fd01::/64")
            .remote("2001:db8::2", "moon.example", "fd02::/64"),
    )?;
    let moon_charon = Charon::start(
        moon,
        &Connection::new("sun", Auth::certificate(authority.issue("moon.example", KeyKind::P256)?, &authority))
            .local("2001:db8::2", "moon.example", "fd02::/64")
            .remote("2001:db8::1", "sun.example", "fd01::/64"),
    )?;
    moon_charon.initiate()?;
    sun_charon.wait_up()?;
    ensure!(sun_pod.reaches("fd02::2", Duration::from_secs(5))?, "no ping through the tunnel");
    let child = moon_charon.wait_up()?;
    ensure!(child.packets_in > 0, "charon counted nothing: {child:?}");
    sun_charon.terminate()?;
    ensure!(sun_charon.sas()?.is_empty(), "a terminated SA is still there");
    Ok(())
}
