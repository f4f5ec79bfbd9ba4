//! Lets the NAT in front of the initiator forget its mappings while the tunnel carries pings: the
//! initiator's datagrams come from another port, then from another address (RFC 7296 2.23).

use std::time::Duration;

use anyhow::{Result, ensure};

use super::movement::check_move;
use super::{Daemon, EDGE_NET, Initiator, MOON_NET, Site};
use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::topology::Net;
use crate::wait;

const NEW_PORT: u16 = 61_000;
const NEW_ADDRESS: &str = "203.0.113.77";

/// Checks both changes, and that each end can use the IKE SA afterwards.
pub(in crate::scenarios) fn check(
    lab: &Lab,
    net: &Net,
    site: &Site<'_>,
    agent: &mut Agent<'_>,
    daemon: &impl Daemon,
) -> Result<()> {
    agent.wait_ready()?;
    if site.initiator == Initiator::Moon {
        wait::for_event(&format!("{} to get through", daemon.name()), || daemon.initiate())?;
    }
    agent.wait_up("moon")?;
    daemon.wait_up()?;
    let router = net.node("isp");
    // The capture is on the responder's host, since that on the router ends with its device.
    let (public, net_behind) = match site.initiator {
        Initiator::Edge => (site.moon, MOON_NET),
        Initiator::Moon => (site.edge, EDGE_NET),
    };
    let mut wire = public.capture("internet")?;
    let pings = [(&*site.edge_pod, "10.2.0.2"), (&*site.moon_pod, "10.1.0.2")];
    // Masquerading forgets the flows of a device that goes down. New ones get another port.
    check_move(lab, agent, pings, "the NAT maps to another port", || {
        router.sh(&format!(
            "set -e
             nft flush chain inet lab postrouting
             nft add rule inet lab postrouting oifname internet udp sport 4500 masquerade to :{NEW_PORT}
             nft add rule inet lab postrouting oifname internet masquerade
             ip link set internet down
             ip link set internet up"
        ))?;
        wire.wait_for(&format!("udp and src port {NEW_PORT}"))
    })?;
    // It also forgets the flows of an address that goes.
    check_move(lab, agent, pings, "the NAT has another address", || {
        router.sh(&format!("ip addr del 203.0.113.1/24 dev internet && ip addr add {NEW_ADDRESS}/24 dev internet"))?;
        public.sh(&format!("ip route replace default via {NEW_ADDRESS}"))?;
        wire.wait_for(&format!("udp and src host {NEW_ADDRESS}"))
    })?;
    wire.stop()?;
    // Its device shows received packets again when they are decrypted.
    wire.expect_none(&format!("src net {net_behind}"))?;
    wire.expect_none("dst net 10.0.0.0/8 and not src net 10.0.0.0/8")?;
    agent.rekey("moon")?;
    daemon.rekey_child()?;
    agent.rekey_ike("moon")?;
    daemon.rekey_ike()?;
    let mut ping = site.edge_pod.ping("10.2.0.2")?;
    ping.wait_more(3)?;
    ping.stop()?.expect_none_lost()?;
    ensure!(site.moon_pod.reaches("10.1.0.2", Duration::from_secs(5))?, "moon's pod does not reach edge's");
    lab.step("each end has rekeyed both SAs");
    Ok(())
}
