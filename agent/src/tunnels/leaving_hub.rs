//! A hub's last seconds. Where nothing keeps the UDP sockets open, packets to this hub are lost
//! from the moment its agent ends. So the agent first lets all nodes change to another hub. In a
//! container it does so also if another pod holds the sockets, since it cannot ask there whether
//! the machine stops:
//!
//! - Each edge is told (`HUB_LEAVING`), and then sends through another hub if it has one.
//! - IKE_SA_INIT requests are dropped, among them the probes of cloud nodes. A cloud node changes
//!   to another hub after 3.0 to 3.5 s without an answer.
//!
//! Meanwhile the kernel goes on forwarding in both directions. Edges and cloud nodes accept packets
//! through either hub, so nothing is lost. If this is the only hub, nobody changes, and the stop
//! only takes longer.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use edge_ike::PeerName;
use edge_ike::wire::AgentNotification;
use edge_types::Role;
use tokio::time::{Instant, timeout};

use super::driver::Driver;

/// Time from the announcement to the agent's end: a cloud node changes after at most 3.5 s and a
/// round of probes of 0.5 s, and then replaces its routes. systemd and the kubelet wait 10 s before
/// they kill the agent.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Maximum time to wait for systemd's answer.
const SYSTEMD_TIMEOUT: Duration = Duration::from_secs(1);

impl Driver {
    /// Begins the hand-over. Returns false if this node ends without one: it is no hub, or the
    /// sockets stay open, so that packets are not lost while the agent is replaced.
    pub(super) async fn begin_hand_over(&mut self) -> bool {
        if self.desired.role != Some(Role::Hub) {
            return false;
        }
        if self.hand_over.sockets_kept && !machine_stops().await {
            return false;
        }
        let edges: Vec<PeerName> = self.desired.tunnels.keys().cloned().collect();
        let edges: Vec<PeerName> =
            edges.into_iter().filter(|edge| self.endpoint.takes_agent_notifications(edge)).collect();
        for edge in &edges {
            self.notify(edge, AgentNotification::HubLeaving);
        }
        self.hand_over.until = Some(Instant::now() + HAND_OVER);
        tracing::info!(
            edges = edges.len(),
            "ending in {} s: edges and cloud nodes change to another hub meanwhile, if there is one",
            HAND_OVER.as_secs()
        );
        true
    }

    /// Tells an edge whose IKE SA was being negotiated when the hand-over began.
    pub(super) fn tell_late_edge(&mut self, edge: &PeerName) {
        if self.hand_over.has_begun() && self.endpoint.takes_agent_notifications(edge) {
            self.notify(edge, AgentNotification::HubLeaving);
        }
    }

    /// Asks hubs that announced their end a minute ago whether they are there.
    pub(super) fn ask_hubs_that_stayed(&mut self, now: edge_ike::Instant) {
        for hub in self.hub_returns.take_stayed(now) {
            self.endpoint.check_liveness(&hub, now, &mut self.environment);
            self.changed_peers.insert(hub);
        }
    }

    /// Handles the announcement of a hub that it ends.
    pub(super) fn hub_leaving(&mut self, hub: &PeerName) {
        // Only a hub of the view has others beside it.
        if !self.desired.tunnels.get(hub).is_some_and(|tunnel| tunnel.hub) {
            return;
        }
        let now = self.now();
        if self.hub_returns.leaving(hub, now) {
            tracing::info!("the hub ends soon; using another hub if one is available");
            self.changed_peers.insert(hub.clone());
        }
        self.relays_leave(hub);
    }
}

/// Returns whether the machine is being stopped or restarted, according to systemd. Then nothing
/// keeps the sockets open.
async fn machine_stops() -> bool {
    // sd_booted(3).
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    let ask = || {
        let mut systemctl = Command::new("systemctl");
        systemctl.arg("is-system-running").stdin(Stdio::null()).stderr(Stdio::null()).output()
    };
    match timeout(SYSTEMD_TIMEOUT, tokio::task::spawn_blocking(ask)).await {
        Ok(Ok(Ok(output))) => output.stdout.trim_ascii() == b"stopping",
        _ => false,
    }
}
