//! The controller client: joins this node, renews its certificate, follows the view and requests
//! segments. It publishes the view and the credentials through the channels of
//! [`crate::membership`]: first those on disk, then those from the controller. The current view is
//! the view that the agent has applied. While the controller is unreachable, the published view and
//! credentials stay in use.
//!
//! - `client`: the state that the client's tasks share: mainly the current view, the member's
//!   identity and the status.
//! - `session`: the session with the controller: joining if needed, reports, and the view stream.
//! - `stream_state`: the last view from the controller, to which its next change applies.
//! - `view_validation`: the checks before a view is applied: that it is consistent and would not
//!   cut this host off.
//! - `view_consistency`: the check that a view is consistent; its time depends only on the number
//!   of changes.
//! - `view_file`: the file with the current view, stored as a whole view and the changes since that
//!   view.
//! - `partial_view`: views from which some of the added networks are left out.
//! - `revocations`: the revocations of a view that cannot be stored.
//! - `unconfirmed_view`: the views that `take_back` needs: the previous view, and the view that was
//!   taken back last.
//! - `take_back`: restoring the previous view if nothing arrives from the controller after a new
//!   view is applied.
//! - `former_networks`: the networks of hubs that have disappeared from the view, which stay
//!   guarded.
//! - `guard_bypass`: connections to the controller that bypass the view's policies and routes.
//! - `node_identity`: this node's key, certificate and trust anchors.
//! - `join_credential`, `join`, `renewal`: the token with which this node joins, its first
//!   certificate, and the renewal of the certificate.
//! - `admission`: joins, or renews a certificate that has ended, before a session begins.
//! - `ended_certificate`: the message about a certificate that has ended.
//! - `clock_watch`: logs that the system clock is wrong, and stores the witness for the time.
//! - `measurement`: the controller's requests to measure paths to other nodes, and the reports.
//! - `segment_request`: requests for segments, which stay on disk until the controller has
//!   responded.
//! - `check`: the checks of `[controller]` for `edge-agent check`, which need no connection.
//! - `controller_choice`: the choice of the controller for the next connection.
//! - `view_connection`: the connection on which the view is followed. `view_frames`: its frames
//!   after it has left HTTP. `view_lines`: the lines of the view stream.
//! - `http`, `http_connection`, `tls`: HTTP over mutually authenticated TLS 1.3.
//! - `error`, `http_error`: the client's errors, and those that failures of connections become.

mod admission;
mod backoff;
mod check;
mod client;
mod clock_watch;
mod controller_choice;
mod ended_certificate;
mod error;
mod former_networks;
mod guard_bypass;
mod http;
mod http_connection;
mod http_error;
mod join;
mod join_credential;
mod measurement;
mod node_identity;
mod partial_view;
mod renewal;
mod revocations;
mod segment_request;
mod session;
mod stream_state;
mod take_back;
mod tls;
mod unconfirmed_view;
mod view_connection;
mod view_consistency;
mod view_file;
mod view_frames;
mod view_lines;
mod view_validation;

pub use check::{certificate_on_disk, check_join_credential, check_url};
pub use client::ControllerClient;
pub use ended_certificate::describe as describe_ended_certificate;
pub use error::ControllerError;

use std::sync::Arc;

use tracing::warn;

impl ControllerClient {
    /// Runs until the agent ends.
    pub async fn run(self: Arc<Self>) {
        self.restore_segments_file().await;
        let work = async {
            tokio::join!(
                session::run(&self),
                renewal::run(&self),
                clock_watch::run(&self),
                self.follow_mtu(),
                self.watch_views()
            );
        };
        tokio::select! {
            () = work => {}
            () = self.stop.cancelled() => {}
        }
        if let Err(error) = self.clock.save_floor(&self.state) {
            warn!(%error, "cannot store the last known time");
        }
    }
}
