//! DEL detaches a container. It may run any number of times, with or without a namespace, and
//! succeeds if nothing is left to do.

use crate::config::Config;
use crate::error::{Code, Result};
use crate::ipam::StateDir;
use crate::net::link::Links;
use crate::net::veth;
use crate::pod_filter;
use crate::request::RuntimeRequest;

/// Removes the pod's filter elements, then the pair of links, then the lease. This order ensures
/// that no address is used by two pods. DEL does not enter the container's namespace, because the
/// path may lead to another namespace by now. The pod end is removed together with the host end.
pub(crate) fn del(config: &Config, request: &RuntimeRequest) -> Result<()> {
    let attachment = std::slice::from_ref(&request.attachment);
    // The kernel frees elements in the background, and closing the socket waits for this. In the
    // meantime, the pair is removed.
    let mut filter = pod_filter::ElementRemoval::begin(attachment);
    veth::remove(&mut Links::open()?, &request.attachment)?;
    let released = release(config, request);
    // An ADD that has created the table in the meantime has added the elements again, since the
    // lease still existed.
    filter.finish();
    match released {
        // The pod is detached from the bridge. On a full or read-only disk, a retry by the runtime
        // would not help, so this is not an error. A later ADD ends the lease.
        Err(error) if error.code == Code::Io => {
            eprintln!("edge-cni: {request} is detached, but its lease could not be ended: {error}; an ADD will end it");
            Ok(())
        }
        outcome => outcome,
    }
}

fn release(config: &Config, request: &RuntimeRequest) -> Result<()> {
    let Some(state_dir) = StateDir::existing(config) else { return Ok(()) };
    let mut leases = state_dir.lock()?;
    if leases.end(&request.attachment)?.is_some() {
        leases.commit()?;
    }
    Ok(())
}
