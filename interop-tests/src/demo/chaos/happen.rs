//! Carries out the events of a round.

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::super::layout::{lan_of, site};
use super::super::reach::Pods;
use super::super::world::World;
use super::event::{Event, Round};

/// Begins all events of a round. `number` is the number of the round.
///
/// # Errors
/// Returns an error if a command that must succeed fails.
pub(super) fn begin(world: &World, pods: &mut Pods, round: &Round, number: usize) -> Result<()> {
    // The controller comes last, since labels need it.
    let (controller, nodes): (Vec<_>, Vec<_>) = round.events.iter().partition(|(place, _)| *place == "controller");
    for (place, event) in nodes.into_iter().chain(controller) {
        begin_one(world, pods, place, event, number).with_context(|| format!("{event:?} on {place} does not begin"))?;
    }
    Ok(())
}

/// Ends the events that have a duration.
///
/// # Errors
/// Returns the same errors as [`begin`].
pub(super) fn end(world: &World, round: &Round) -> Result<()> {
    for (place, event) in &round.events {
        end_one(world, place, event).with_context(|| format!("{event:?} on {place} does not end"))?;
    }
    if round.events.iter().any(|(_, event)| matches!(event, Event::NatRebooted { .. })) {
        // The router lost these routes when its address was deleted.
        world.route_ledger_in_clear()?;
    }
    Ok(())
}

fn begin_one(world: &World, pods: &mut Pods, place: &'static str, event: &Event, number: usize) -> Result<()> {
    let sh = |script: &str| world.node(place).sh(script).map(drop);
    let lan = lan_of(place);
    match event {
        Event::AgentRestarted => world.restart_agent(place),
        Event::AgentKilled => world.end(place, Signal::KILL),
        Event::ControllerKilled => world.end("controller", Signal::KILL),
        Event::LinkDown => world.node(place).plug(&lan, false),
        Event::AddressReplaced => sh(&format!(
            "old=$(ip -4 -o addr show dev {lan} | awk '{{print $4}}')
             case $old in *.10/24) new=192.168.1.77/24;; *) new=192.168.1.10/24;; esac
             ip addr del $old dev {lan} && ip addr add $new dev {lan} && ip route replace default via 192.168.1.1"
        )),
        Event::NatRebooted { from_port } => {
            let home = site(place);
            let outside = home.outside[0].context("a NAT has an IPv4 address")?;
            // The kernel forgets the mappings of an address that is deleted.
            world.node(home.router).sh(&format!(
                "set -e
                 nft -f - <<'END'
flush ruleset
table ip nat {{
    chain post {{
        type nat hook postrouting priority srcnat
        oifname isp ip protocol udp masquerade to :{from_port}-{}
        oifname isp masquerade
    }}
}}
END
                 ip addr del {outside}/24 dev isp
                 ip addr add {outside}/24 dev isp
                 ip route replace default via 203.0.113.1",
                from_port + 200
            ))?;
            Ok(())
        }
        Event::XfrmFlushed => sh("ip xfrm state flush; ip xfrm policy flush"),
        Event::NftFlushed => sh("nft flush ruleset"),
        Event::RoutesFlushed => sh(&format!(
            "for family in -4 -6; do
                 ip $family route show dev {lan} > /run/routes$family
                 ip $family route flush table main || true
             done"
        )),
        Event::BridgeDeleted => sh("ip link delete ecni0"),
        Event::ForwardingOff => sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"),
        Event::ForwardDrops => sh("for program in iptables ip6tables; do
                 $program -P FORWARD ACCEPT; $program -F FORWARD; $program -P FORWARD DROP
             done"),
        Event::Rekeyed { ike } => {
            let status = world.status(place)?;
            for peer in status["peers"].as_array().into_iter().flatten() {
                let name = peer["name"].as_str().context("a peer without a name")?;
                let what: &[&str] = if *ike { &["rekey", name, "--ike"] } else { &["rekey", name] };
                // Another event of the round may have ended the tunnel already.
                if let Err(error) = world.agent(place, what) {
                    world.checks.note(format!("{place} does not rekey {name}: {error}"));
                }
            }
            Ok(())
        }
        Event::PodReplaced => {
            let pod = world.add_pod(place, &format!("web-{number}"))?;
            world.delete_pod(pods.replace(place, pod).context("the edge had no pod")?)
        }
        Event::Member { alpha } => world.label(
            place,
            match (*alpha, world.layout.beta.contains(&place)) {
                (true, _) => "fabedge/edge-community=alpha",
                (false, true) => "fabedge/edge-community=beta",
                (false, false) => "fabedge/edge-community-",
            },
        ),
    }
}

fn end_one(world: &World, place: &str, event: &Event) -> Result<()> {
    let lan = lan_of(place);
    match event {
        Event::AgentKilled => world.start_agent(place),
        Event::ControllerKilled => world.start_controller(),
        Event::LinkDown => world.node(place).plug(&lan, true),
        // Restores the routes as the host's network manager does. A gateway's network comes first.
        Event::RoutesFlushed => world
            .node(place)
            .sh(&format!(
                "for pass in 1 2; do
                     for family in -4 -6; do
                         while read route; do
                             ip $family route replace $route dev {lan} || [ $pass = 1 ] || exit 1
                         done < /run/routes$family
                     done
                 done"
            ))
            .map(drop),
        _ => Ok(()),
    }
}
