//! DEL: as often as the runtime likes, with or without a namespace, and never an error because there is nothing left to do.

use crate::config::Config;
use crate::error::{Code, Result};
use crate::ipam::Store;
use crate::net::link::Links;
use crate::net::veth;
use crate::ports;
use crate::request::Request;

/// Detaches a container: first the pair of links, then the lease, so that no address has two users. The container's namespace is not
/// entered: its path may lead elsewhere by now, and the host's end takes the pod's with it.
pub(crate) fn del(config: &Config, request: &Request) -> Result<()> {
    let mut links = Links::open()?;
    veth::remove(&mut links, &request.attachment)?;
    let released = release(config, request);
    if released.is_err() {
        ports::forget(std::slice::from_ref(&request.attachment));
    }
    match released {
        // The pod is gone from the bridge; on a full or read-only disk the runtime can do no more than we. An ADD ends the lease later.
        Err(error) if error.code == Code::Io => {
            eprintln!("edge-cni: {request} is detached, but its lease could not be ended: {error}; an ADD will end it");
            Ok(())
        }
        outcome => outcome,
    }
}

/// Ends the lease and takes the pod's elements from the bridge's filter, under the lock: an ADD that makes the table meanwhile puts them
/// there only with the lease.
fn release(config: &Config, request: &Request) -> Result<()> {
    let attachment = std::slice::from_ref(&request.attachment);
    let Some(store) = Store::existing(config) else {
        ports::forget(attachment);
        return Ok(());
    };
    let mut ledger = store.lock()?;
    let ended = ledger.end(&request.attachment)?;
    ports::forget(attachment);
    if ended.is_some() {
        ledger.commit()?;
    }
    Ok(())
}
