//! Runs certificates that do not fit into one datagram over a path that drops IP fragments: IKE
//! fragments (RFC 7383).

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Daemon, Initiator, Site};
use crate::edge_agent::Agent;
use crate::strongswan::Authority;
use crate::topology::Net;
use crate::wait;

/// Encrypted fragments, payload 53 (RFC 7383 2.5), behind the non-ESP marker of port 4500: next
/// payload at offset 16 of the IKE header.
const FRAGMENTS: &str = "udp port 4500 and udp[8:4] = 0 and udp[28] = 53";

/// Returns an authority whose name makes its certificates longer.
pub(in crate::scenarios) fn long_authority() -> Result<Authority> {
    Authority::new("an authority with a long name so that its certificates are long as well")
}

/// Makes the path drop IP fragments, as some home routers do.
pub(in crate::scenarios) fn drop_ip_fragments(net: &Net) -> Result<()> {
    net.node("isp")
        .sh("nft 'add table ip drop_fragments
                  add chain ip drop_fragments prerouting { type filter hook prerouting priority -450; }
                  add rule ip drop_fragments prerouting ip frag-off & 0x3fff != 0 drop'")
        .map(drop)
}

/// Checks that the tunnel comes up by IKE fragments from each end.
pub(in crate::scenarios) fn check(site: &Site<'_>, agent: &mut Agent<'_>, daemon: &impl Daemon) -> Result<()> {
    if site.initiator == Initiator::Moon {
        wait::for_event(&format!("{} to get through", daemon.name()), || daemon.initiate())?;
    }
    agent.wait_up("moon")?;
    daemon.wait_up()?;
    ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the tunnel");
    let (edge, moon) = match site.initiator {
        Initiator::Edge => ("203.0.113.1", "203.0.113.10"),
        Initiator::Moon => ("203.0.113.10", "203.0.113.1"),
    };
    for (from, who) in [(edge, "edge-agent"), (moon, daemon.name())] {
        ensure!(!site.wire.packets(&format!("src {from} and {FRAGMENTS}"))?.is_empty(), "{who} sent no IKE fragment");
    }
    Ok(())
}
