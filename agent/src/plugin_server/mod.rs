//! Serves the CNI plugin, which reports its addresses and requests segments.
//!
//! - `socket`: the unix socket for the plugin, which only root can use. A connection carries one
//!   request and one response.
//! - `segment_provisioner`: the decision when to request a segment. One is requested if a pod waits
//!   for an address, or if fewer addresses are free than `spare` segments contain.

mod segment_provisioner;
mod socket;

use std::sync::Arc;

use crate::controller_client::ControllerClient;

/// Serves the plugin until the agent ends. Fails if the socket cannot be created.
pub async fn run(controller: Arc<ControllerClient>) -> anyhow::Result<()> {
    let (requests, queue) = tokio::sync::mpsc::channel(socket::MAX_CONNECTIONS);
    let stop = controller.stop().clone();
    let socket = socket::Socket::bind(&controller.config().plugin_socket())?;
    tokio::select! {
        () = socket::serve(socket, requests) => {}
        () = segment_provisioner::run(controller, queue) => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}
