//! STATUS: whether an ADD could be served. The cloud's absence is no reason to say no: a runtime would call the whole node not ready.

use crate::agent;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ipam::Store;
use crate::net::veth;

/// Answers with an error where the next ADD is certain to fail: leases or segments cannot be read, or there are no segments and no agent
/// that could bring any. That all addresses are taken is for the ADD to say, since it passes as pods go.
pub(crate) fn status(config: &Config) -> Result<()> {
    let unavailable = |error: Error| Error { code: Code::NotAvailable, ..error };
    let ledger = Store::create(config, veth::attached).and_then(|store| store.lock());
    let segments = ledger.and_then(|ledger| ledger.segments(config)).map_err(unavailable)?;
    let some = segments.is_some_and(|segments| !segments.segments.is_empty());
    if some || agent::is_there(&config.agent_socket) {
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
