//! DEL: as often as the runtime likes, with or without a namespace, and never an error because
//! there is nothing left to do.

use crate::config::Config;
use crate::error::{Code, Result};
use crate::ipam::Store;
use crate::net::link::Links;
use crate::net::veth;
use crate::pod_filter;
use crate::request::Request;

/// Detaches a container: what it may send, then the pair of links, then the lease, so that no
/// address has two users. The container's namespace is not entered: its path may lead elsewhere by
/// now, and the host's end takes the pod's with it.
pub(crate) fn del(config: &Config, request: &Request) -> Result<()> {
    let attachment = std::slice::from_ref(&request.attachment);
    // The kernel frees elements in the background, and whoever closes the socket waits for that.
    // While the pair goes, it gets done.
    let mut filter = pod_filter::Forgetting::begin(attachment);
    veth::remove(&mut Links::open()?, &request.attachment)?;
    let released = release(config, request);
    // An ADD that made the table meanwhile has put them back, while there was a lease.
    filter.finish();
    match released {
        // The pod is gone from the bridge; on a full or read-only disk the runtime can do no more
        // than we. An ADD ends the lease later.
        Err(error) if error.code == Code::Io => {
            eprintln!("edge-cni: {request} is detached, but its lease could not be ended: {error}; an ADD will end it");
            Ok(())
        }
        outcome => outcome,
    }
}

fn release(config: &Config, request: &Request) -> Result<()> {
    let Some(store) = Store::existing(config) else { return Ok(()) };
    let mut ledger = store.lock()?;
    if ledger.end(&request.attachment)?.is_some() {
        ledger.commit()?;
    }
    Ok(())
}
