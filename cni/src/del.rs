//! DEL: as often as the runtime likes, with or without a namespace, and never an error because there is nothing left to do.

use crate::config::Config;
use crate::error::Result;
use crate::ipam::Store;
use crate::net::link::Links;
use crate::net::veth;
use crate::request::Request;

/// Detaches a container: first the pair of links, then the lease, so that no address has two users. The container's namespace is not
/// entered: its path may lead elsewhere by now, and the host's end takes the pod's with it.
pub(crate) fn del(config: &Config, request: &Request) -> Result<()> {
    let mut links = Links::open()?;
    veth::remove(&mut links, &request.attachment)?;
    if let Some(store) = Store::existing(config) {
        let mut ledger = store.lock()?;
        if ledger.end(&request.attachment)?.is_some() {
            ledger.commit()?;
        }
    }
    Ok(())
}
