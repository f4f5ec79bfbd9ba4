//! STATUS reports whether an ADD could succeed. An unreachable controller is not a failure, since
//! it would make the runtime report the whole node as not ready.

use crate::agent_client;
use crate::bridge_filter::Filter;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ipam::StateDir;
use crate::net::bridge;
use crate::net::link::Links;
use crate::{cluster_ranges, forward_filter, obstacles};

/// The problems that STATUS found on the node.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The reasons why no pod can be attached, or why an attached pod would not be protected.
    pub(crate) failures: Vec<Error>,
    /// The settings that break a part of the pods' network, each with the command that corrects it.
    pub(crate) obstacles: Vec<String>,
}

/// Fails if the next ADD is certain to fail, or if a setting bypasses the guard. Prints obstacles
/// to standard error.
pub(crate) fn status(config: &Config) -> Result<()> {
    let found = findings(config);
    found.obstacles.iter().for_each(|obstacle| eprintln!("edge-cni: {obstacle}"));
    match found.failures.into_iter().next() {
        Some(error) => Err(error.with_code(Code::NotAvailable)),
        None => Ok(()),
    }
}

/// Finds the reasons why the next ADD would certainly fail: leases or segments cannot be read, the
/// disk is read-only or full, there are no segments and no agent that could provide any, the
/// cluster ranges would cut this host off, the bridge's filter cannot be created and not all pods
/// are exempt, or the table for forwarded packets cannot be created. Also finds settings that
/// bypass the guard, and other obstacles. It is not a failure if all addresses are leased, since
/// addresses become free when pods end, and the next ADD reports the lack of addresses.
pub(crate) fn findings(config: &Config) -> Findings {
    let mut found = Findings::default();
    let leases = StateDir::create(config, bridge::count_attached).and_then(|state_dir| state_dir.lock());
    let segments = leases.and_then(|mut leases| leases.require_room().and_then(|()| leases.segments(config)));
    let segments = segments.map_err(|error| found.failures.push(error)).ok();
    let links = Links::open().map_err(|error| found.failures.push(error)).ok();
    // The remaining checks need the segments.
    let (Some(segments), Some(mut links)) = (segments, links) else { return found };
    let mut failed = |outcome: Result<()>| found.failures.extend(outcome.err());
    failed(cluster_ranges::refuse_cutting_off_this_host(&mut links, config, segments.as_ref()));
    if !config.excepts(None) {
        failed(Filter::open().and_then(|mut filter| filter.dry_run()));
    }
    failed(forward_filter::dry_run(&mut links, config, segments.as_ref()));
    match obstacles::find(&mut links, config, segments.as_ref()) {
        Err(error) => found.failures.push(error),
        Ok(all) => {
            let (bypasses, minor): (Vec<_>, Vec<_>) = all.into_iter().partition(|obstacle| obstacle.bypasses_guard);
            found.obstacles = minor.into_iter().map(|obstacle| obstacle.message).collect();
            if !bypasses.is_empty() {
                let messages: Vec<String> = bypasses.into_iter().map(|obstacle| obstacle.message).collect();
                let message = format!("the guard is off: {}", messages.join("; "));
                found.failures.push(Error::new(Code::NotAvailable, message));
            }
        }
    }
    if segments.is_none_or(|file| file.segments.is_empty()) && !agent_client::answers(&config.agent_socket) {
        found.failures.push(Error::new(
            Code::NotAvailable,
            format!(
                "this node has no segment, and edge-agent, which could request one, does not answer on {}; start it, or add `segments` to the configuration",
                config.agent_socket.display()
            ),
        ));
    }
    found
}
