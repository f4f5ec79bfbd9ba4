//! STATUS says whether an ADD could succeed. An unreachable controller is no reason to say no,
//! since a runtime would report the whole node as not ready.

use crate::agent_client;
use crate::bridge_filter::Filter;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ipam::StateDir;
use crate::net::link::Links;
use crate::net::veth;
use crate::{cluster_ranges, forward_filter, obstacles};

/// Fails if the next ADD is certain to fail: leases or segments cannot be read, the disk is
/// read-only, there are no segments and no agent that could bring any, the cluster's ranges would
/// cut this host off, the bridge's filter cannot be made and not all pods are excepted, or the
/// table that keeps hosts outside from pods cannot be made. Also fails if a setting bypasses the
/// guard. Other obstacles go to standard error. It does not fail if all addresses are taken: that
/// passes as pods go, and the ADD reports it.
pub(crate) fn status(config: &Config) -> Result<()> {
    let unavailable = |error: Error| Error { code: Code::NotAvailable, ..error };
    let ledger = StateDir::create(config, veth::count_attached).and_then(|state_dir| state_dir.lock());
    let segments = ledger.and_then(|ledger| ledger.require_writable().and_then(|()| ledger.segments(config)));
    let segments = segments.map_err(unavailable)?;
    let mut links = Links::open().map_err(unavailable)?;
    cluster_ranges::refuse_cutting_off_this_host(&mut links, config, segments.as_ref()).map_err(unavailable)?;
    if !config.excepts(None) {
        Filter::open().and_then(|mut filter| filter.dry_run()).map_err(unavailable)?;
    }
    forward_filter::dry_run(&mut links, config, segments.as_ref()).map_err(unavailable)?;
    let (bypasses, minor): (Vec<_>, Vec<_>) = obstacles::find(&mut links, config, segments.as_ref())
        .map_err(unavailable)?
        .into_iter()
        .partition(|obstacle| obstacle.bypasses_guard);
    minor.iter().for_each(|obstacle| eprintln!("edge-cni: {}", obstacle.message));
    if !bypasses.is_empty() {
        let messages: Vec<String> = bypasses.into_iter().map(|obstacle| obstacle.message).collect();
        return Err(Error::new(Code::NotAvailable, format!("the guard is off: {}", messages.join("; "))));
    }
    let some = segments.is_some_and(|segments| !segments.segments.is_empty());
    if some || agent_client::answers(&config.agent_socket) {
        return Ok(());
    }
    Err(Error::new(
        Code::NotAvailable,
        format!(
            "this node has no segment, and edge-agent, which could apply for one, does not answer on {}; start it, or add `segments` to the configuration",
            config.agent_socket.display()
        ),
    ))
}
