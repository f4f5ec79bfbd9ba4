//! Sets up a host with edge-agent and a host with another project's IKE daemon, and checks the
//! tunnel between them.

mod daemon;
pub(super) mod fragments;
pub(super) mod movement;
pub(super) mod names;
pub(super) mod nat_rebinding;
pub(super) mod on_demand;
pub(super) mod reauthentication;
pub(super) mod revoked;
pub(super) mod secret_changed;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use data_encoding::HEXLOWER;

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::strongswan::charon::{Auth, Connection};
use crate::topology::xfrm::Policy;
use crate::topology::{Capture, Net, Netem, NetworkPlan, Node, Ping, PingReport, Pod};
use crate::wait;
pub(super) use daemon::Daemon;

pub(super) const SECRET: &str = "correct horse battery";
/// A secret that differs from [`SECRET`] in one letter.
pub(super) const WRONG_SECRET: &str = "correct horse cattery";
const EDGE_NET: &str = "10.1.0.0/24";
const MOON_NET: &str = "10.2.0.0/24";

/// The end that initiates. Its host is behind a NAT, and the responder has a public address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Initiator {
    Edge,
    Moon,
}

/// Both hosts with their pods, and a capture on the wire between them.
pub(super) struct Site<'a> {
    pub(super) initiator: Initiator,
    pub(super) edge: &'a Node,
    pub(super) moon: &'a Node,
    pub(super) edge_pod: Pod,
    pub(super) moon_pod: Pod,
    pub(super) wire: Capture,
}

impl<'a> Site<'a> {
    pub(super) fn plan(initiator: Initiator) -> NetworkPlan {
        let ((home, home_net), (public, public_net)) = match initiator {
            Initiator::Edge => (("edge", EDGE_NET), ("moon", MOON_NET)),
            Initiator::Moon => (("moon", MOON_NET), ("edge", EDGE_NET)),
        };
        let mut plan = NetworkPlan::new();
        plan.router("isp")
            .on("internet", &["203.0.113.1/24"])
            .on("home", &["192.168.1.1/24"])
            .masquerade("internet")
            .slow("internet", Netem::delay(2))
            // The router would forward the pods' packets, so only the tunnel's policies keep the
            // packets off the wire.
            .route(home_net, "192.168.1.10")
            .route(public_net, "203.0.113.10");
        plan.host(home).on("home", &["192.168.1.10/24"]).via("192.168.1.1");
        plan.host(public).on("internet", &["203.0.113.10/24"]).via("203.0.113.1");
        plan
    }

    pub(super) fn new(net: &'a Net, initiator: Initiator) -> Result<Self> {
        let (edge, moon) = (net.node("edge"), net.node("moon"));
        Ok(Self {
            initiator,
            edge,
            moon,
            edge_pod: edge.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?,
            moon_pod: moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?,
            wire: net.node("isp").capture("internet")?,
        })
    }

    pub(super) fn peer(&self, auth: Auth) -> StaticPeer {
        StaticPeer {
            name: "moon".to_owned(),
            remote: match self.initiator {
                Initiator::Edge => vec!["203.0.113.10".to_owned()],
                Initiator::Moon => Vec::new(),
            },
            local_id: "edge.example".to_owned(),
            remote_id: "moon.example".to_owned(),
            auth,
            local_subnets: vec![EDGE_NET.to_owned()],
            remote_subnets: vec![MOON_NET.to_owned()],
            ike: vec!["aes256gcm16-prfsha256-x25519".to_owned()],
            esp: vec!["aes256gcm16".to_owned()],
            start: match self.initiator {
                Initiator::Edge => "initiate",
                Initiator::Moon => "respond",
            },
        }
    }

    pub(super) fn connection(&self, auth: Auth) -> Connection {
        let remote = match self.initiator {
            Initiator::Edge => "%any",
            Initiator::Moon => "203.0.113.10",
        };
        Connection::new("edge", auth).local("%any", "moon.example", MOON_NET).remote(remote, "edge.example", EDGE_NET)
    }

    /// Checks that the tunnel carries pings, that both sides and both kernels have the same SPIs,
    /// that each side can rekey the tunnel without a loss, and that no packet was unencrypted.
    pub(super) fn check_tunnel(mut self, lab: &Lab, agent: &mut Agent<'_>, daemon: &impl Daemon) -> Result<()> {
        if self.initiator == Initiator::Moon {
            wait::for_event(&format!("{} to get through", daemon.name()), || daemon.initiate())?;
        }
        let first = agent.wait_up("moon")?;
        daemon.wait_up()?;
        lab.step("the tunnel is up");
        self.same_spis(agent, daemon)?;

        let mut ping = self.edge_pod.ping("10.2.0.2")?;
        let mut back = self.moon_pod.ping("10.1.0.2")?;
        ping.wait_more(5)?;
        back.wait_more(5)?;
        for node in [self.edge, self.moon] {
            for spi in [first.spi_in, first.spi_out] {
                let packets =
                    node.xfrm_states()?.iter().find(|state| state.spi == spi).map_or(0, |state| state.packets);
                ensure!(packets >= 5, "the kernel of {} counted {packets} packets for {spi:08x}", node.name());
            }
        }
        agent.rekey("moon")?;
        self.same_spis(agent, daemon)?;
        ping.wait_more(5)?;
        lab.step("rekeyed by edge-agent");
        daemon.rekey_child()?;
        self.same_spis(agent, daemon)?;
        ping.wait_more(5)?;
        back.wait_more(5)?;
        lab.step(&format!("rekeyed by {}", daemon.name()));
        daemon.rekey_ike()?;
        self.same_spis(agent, daemon)?;
        // The CHILD_SA now belongs to the new IKE SA and can be rekeyed under it.
        agent.rekey("moon")?;
        self.same_spis(agent, daemon)?;
        daemon.rekey_child()?;
        self.same_spis(agent, daemon)?;
        ping.wait_more(5)?;
        back.wait_more(5)?;
        lab.step(&format!("the IKE SA rekeyed by {}", daemon.name()));
        let authenticated = self.count_inits()?;
        for _ in 0..3 {
            agent.rekey_ike("moon")?;
            self.same_spis(agent, daemon)?;
            ping.wait_more(3)?;
            back.wait_more(3)?;
        }
        // The CHILD_SA belongs to the new IKE SA, whichever end rekeyed the IKE SA.
        agent.rekey("moon")?;
        daemon.rekey_child()?;
        self.same_spis(agent, daemon)?;
        ensure!(self.count_inits()? == authenticated, "the agent began a new IKE SA by IKE_SA_INIT");
        lab.step("the IKE SA rekeyed by edge-agent");
        self.no_key_is_logged(agent)?;
        let last = agent.tunnel("moon")?;
        expect_none_lost(self.edge, daemon, [ping, back])?;

        let seen = self.wire.esp_spis()?;
        for spi in [first.spi_in, first.spi_out, last.spi_in, last.spi_out] {
            ensure!(seen.contains(&spi), "{spi:08x} was not on the wire, but {seen:x?}");
        }
        self.wire.expect_none_so_far("net 10.0.0.0/8")?;
        // An unencrypted packet between the same pods shows that the capture works.
        self.moon.sh("ip xfrm policy flush; ip xfrm state flush")?;
        let through = self.moon_pod.reaches("10.1.0.2", Duration::from_millis(200))?;
        // The NAT gives the packet the router's address, for which the tunnel has no policy.
        ensure!(!through || self.initiator == Initiator::Moon, "a clear ping with a tunnelled source came through");
        self.wire.wait_for("icmp and dst 10.1.0.2")?;
        self.wire.stop()
    }

    /// Checks that the agent's log at its most verbose level contains neither the pre-shared key,
    /// nor the private key, nor a key of the kernel's SAs.
    fn no_key_is_logged(&self, agent: &mut Agent<'_>) -> Result<()> {
        let log = agent.process().log().to_lowercase();
        ensure!(log.contains("trace"), "the log is not at its most talkative level");
        let text = self.edge.sh("ip xfrm state")?;
        let mut keys = vec![SECRET.as_bytes().to_vec()];
        if let Ok(pem) = self.edge.read("/etc/edge-cni/agent.key") {
            let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
            // The first 36 octets, 48 characters, are the same in every key.
            let secret = body.get(48..60).context("the private key is too short")?.to_lowercase();
            ensure!(!log.contains(&secret), "the private key is in the agent's log");
            let der = rcgen::KeyPair::from_pem(&pem)?.serialize_der();
            keys.push(der.get(36..48).context("the private key is too short")?.to_vec());
        }
        let has_key = |line: &&str| ["aead ", "enc ", "auth-trunc "].iter().any(|word| line.contains(word));
        for line in text.lines().filter(has_key) {
            let hex = line.split_once("0x").and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or_default();
            keys.push(HEXLOWER.decode(hex.as_bytes())?);
        }
        ensure!(keys.len() >= 3, "the kernel shows {} keys", keys.len() - 1);
        for key in keys {
            let begin = key.get(..8).unwrap_or(&key);
            let hex = HEXLOWER.encode(begin);
            let list = begin.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
            let hex_list = begin.iter().map(|octet| format!("{octet:x}")).collect::<Vec<_>>().join(", ");
            let plain = key.escape_ascii().to_string().to_lowercase();
            for form in [hex, list, hex_list, plain] {
                ensure!(!log.contains(&form), "a key is in the agent's log, in the form of {} characters", form.len());
            }
        }
        Ok(())
    }

    /// Counts the IKE_SA_INIT messages on the wire: exchange 34, at offset 18 of the header, on
    /// port 500 or behind the non-ESP marker of port 4500.
    fn count_inits(&self) -> Result<usize> {
        let marked = "udp port 4500 and udp[8:4] = 0 and udp[30] = 34";
        Ok(self.wire.packets(&format!("(udp port 500 and udp[26] = 34) or ({marked})"))?.len())
    }

    /// Checks that agent, daemon and both kernels have the same SPIs.
    fn same_spis(&self, agent: &Agent<'_>, daemon: &impl Daemon) -> Result<()> {
        wait::for_event("both sides to name the same SPIs", || {
            let (ours, theirs) = (agent.tunnel("moon")?, daemon.wait_up()?);
            ensure!(
                (ours.spi_in, ours.spi_out) == (theirs.spi_out, theirs.spi_in),
                "edge-agent names {ours:x?}, {} {theirs:x?}",
                daemon.name()
            );
            for node in [self.edge, self.moon] {
                let states = node.xfrm_states()?;
                for spi in [ours.spi_in, ours.spi_out] {
                    ensure!(
                        states.iter().any(|state| state.spi == spi && state.mode == "tunnel"),
                        "the kernel of {} has no tunnel {spi:08x}, but {states:x?}",
                        node.name()
                    );
                }
            }
            Ok(())
        })
    }

    /// Checks that no tunnel comes up, that the agent's error contains these words, that no secret
    /// is in its log, and that nothing is left in the kernel.
    pub(super) fn check_refusal(&self, agent: &mut Agent<'_>, daemon: &impl Daemon, words: &[&str]) -> Result<()> {
        if self.initiator == Initiator::Moon {
            ensure!(daemon.initiate().is_err(), "{} came through, although it should be refused", daemon.name());
        }
        let error = wait::for_event("the agent to say what is wrong", || agent.last_error("moon"))?;
        for word in words {
            ensure!(error.contains(word), "the agent's error does not speak of {word:?}: {error}");
        }
        let log = agent.process().log();
        for secret in [SECRET, WRONG_SECRET] {
            ensure!(!log.contains(secret), "the secret is in the agent's log");
        }
        ensure!(agent.tunnel("moon").is_err(), "there is a tunnel");
        // An attempt by the agent creates a CHILD_SA for a moment, because the daemon receives the
        // refusal only afterwards.
        wait::for_event(&format!("{} to have no CHILD_SA", daemon.name()), || {
            let installed = daemon.count_children()?;
            ensure!(installed == 0, "it has {installed} CHILD_SAs");
            Ok(())
        })?;
        self.nothing_is_left()
    }

    /// Checks that the edge's kernel has no SA, no reserved SPI, and no policy except those of
    /// IKE's sockets and blocks. Packets that the edge means for a tunnel that it initiates are
    /// blocked before that was ever up.
    pub(super) fn nothing_is_left(&self) -> Result<()> {
        wait::for_event("nothing to be left in the kernel", || {
            // The parsed list leaves out SPIs that are only reserved.
            let states = self.edge.sh("ip xfrm state list nokeys")?;
            ensure!(states.trim().is_empty(), "it has SAs: {states}");
            let policies = self.edge.xfrm_policies()?;
            let left = |policy: &&Policy| !policy.dir.starts_with("socket") && policy.action != "block";
            ensure!(!policies.iter().any(|policy| left(&policy)), "it has {policies:?}");
            let blocked = policies.iter().any(|policy| policy.action == "block" && policy.dir == "out");
            ensure!(blocked == (self.initiator == Initiator::Edge), "it blocks {policies:?}");
            Ok(())
        })
    }
}

/// Ends pings and checks that none was lost. A daemon that sends with a new SA before the response
/// that brings its keys may have lost as many as the edge's kernel has counted.
pub(super) fn expect_none_lost(edge: &Node, daemon: &impl Daemon, pings: impl IntoIterator<Item = Ping>) -> Result<()> {
    expect_lost(if daemon.sends_early() { came_early(edge)? } else { 0 }, pings)
}

/// Ends pings during which edge-agent has begun new IKE SAs, and checks that no more was lost than
/// came before the keys. IKE_AUTH names no CHILD_SA that the new one replaces, so every daemon
/// sends with it as soon as it has made it. What comes before the response cannot be accepted: the
/// daemon has not yet shown who it is.
/// `before` is what [`came_early`] returned when the pings began.
pub(super) fn expect_none_lost_to_new_ike_sas(
    edge: &Node,
    before: u64,
    pings: impl IntoIterator<Item = Ping>,
) -> Result<()> {
    expect_lost(came_early(edge)?.saturating_sub(before), pings)
}

/// Returns how many packets the edge's kernel has received by SPIs that were only reserved, or just
/// while a reservation was replaced by the SA.
pub(super) fn came_early(edge: &Node) -> Result<u64> {
    let counters = edge.xfrm_stat()?;
    let count = |name: &str| counters.get(name).copied().unwrap_or_default();
    Ok(count("XfrmAcquireError") + count("XfrmInStateInvalid"))
}

/// Ends pings and checks that no more were lost than `early`.
fn expect_lost(early: u64, pings: impl IntoIterator<Item = Ping>) -> Result<()> {
    let reports = pings.into_iter().map(Ping::stop).collect::<Result<Vec<_>>>()?;
    ensure!(reports.iter().all(|report| report.sent >= 5), "too few pings prove nothing: {reports:?}");
    let lost: u64 = reports.iter().map(PingReport::lost).sum();
    ensure!(lost <= early, "no ping should be lost, and {early} may have come too early, but there are {reports:?}");
    Ok(())
}
