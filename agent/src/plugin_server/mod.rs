//! The plugin's side of the agent: its unix socket, and the keeper of segments behind it.
//!
//! - `socket`: frames in and out, for root alone.
//! - `segment_provisioner`: when to apply for a segment: because a pod waits, or because the spare is used up.

mod segment_provisioner;
mod socket;

use std::sync::Arc;

use crate::controller_client::Cloud;

/// Serves the plugin until the agent ends. Fails if the socket cannot be made.
pub async fn run(cloud: Arc<Cloud>) -> anyhow::Result<()> {
    let (requests, queue) = tokio::sync::mpsc::channel(socket::MAX_CONNECTIONS);
    let stop = cloud.stop().clone();
    let socket = socket::Socket::bind(&cloud.config().plugin_socket())?;
    tokio::select! {
        () = socket::serve(socket, requests) => {}
        () = segment_provisioner::run(cloud, queue) => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}
