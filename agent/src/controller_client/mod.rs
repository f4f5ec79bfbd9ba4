//! The client of the controller: it joins, renews the certificate, follows the view and requests
//! segments. It publishes view and credentials through the channels of [`crate::membership`]: first
//! those on disk, then those from the controller. If the controller is unreachable, the published
//! ones stay in force.
//!
//! - `client`: the view in force, the member's identity and the status; how each of them changes.
//! - `session`: joins if needed, reports, and follows the view stream; reconnects when it ends.
//! - `stream_state`: the view that a stream has sent so far, and how its changes apply.
//! - `view_validation`: whether a view may replace the one in force: not if it contradicts itself,
//!   or would cut this host off.
//! - `view_consistency`: whether a view contradicts itself, in the time of what changed.
//! - `view_file`: the view in force on disk, as a whole view and changes.
//! - `partial_view`: a view without some of the networks that it adds.
//! - `unconfirmed_view`: the two views that taking back needs in addition to the one in force.
//! - `take_back`: the return to the previous view if nothing arrives from the controller under the
//!   new one.
//! - `former_networks`: networks of hubs that the view no longer names, which stay guarded.
//! - `guard_bypass`: connections to the controller that the guard does not block.
//! - `node_identity`: key, certificate and trust anchors of this node.
//! - `join_credential`, `join`, `renewal`: the token that admits this node, the first certificate
//!   and the later ones.
//! - `segment_request`: a request for a segment, with an id that survives a crash.
//! - `check`: the checks of `edge-agent check`, which need no connection.
//! - `controller_choice`: which controller the next connection goes to.
//! - `http`, `tls`, `error`: HTTP/2 over mutually authenticated TLS 1.3.

mod backoff;
mod check;
mod client;
mod controller_choice;
mod error;
mod former_networks;
mod guard_bypass;
mod http;
mod join;
mod join_credential;
mod node_identity;
mod partial_view;
mod renewal;
mod segment_request;
mod session;
mod stream_state;
mod take_back;
mod tls;
mod unconfirmed_view;
mod view_consistency;
mod view_file;
mod view_validation;

pub use check::{certificate_on_disk, check_join_credential, check_url};
pub use client::ControllerClient;
pub use error::ControllerError;

use std::sync::Arc;

use tracing::warn;

impl ControllerClient {
    /// Runs until the agent ends.
    pub async fn run(self: Arc<Self>) {
        self.restore_segments_file().await;
        let work = async {
            tokio::join!(session::run(&self), renewal::run(&self), self.follow_mtu(), self.watch_views());
        };
        tokio::select! {
            () = work => {}
            () = self.stop.cancelled() => {}
        }
        if let Err(error) = self.clock.save_floor(&self.state) {
            warn!(%error, "the time is not kept");
        }
    }
}
