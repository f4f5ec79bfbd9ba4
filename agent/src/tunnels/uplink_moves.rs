//! Moves tunnels to better uplinks, which [`super::better_uplinks`] chooses.

use std::collections::BTreeMap;

use edge_ike::{Instant, LocalMove, TcpConnectionId};
use edge_types::Role;

use super::better_uplinks::{STABLE, STABLE_WITHOUT_SOURCE_RULES, is_better, may_be_worse};
use super::driver::Driver;
use crate::desired::{DesiredTunnel, Origin};
use crate::source_address::source_address;

/// Returns whether this node chooses its address of a tunnel. A hub keeps the address that its
/// edges have dialed.
fn chooses_address(role: Option<Role>, tunnel: &DesiredTunnel) -> bool {
    match tunnel.origin {
        Origin::View => role == Some(Role::Edge),
        Origin::Configuration => (tunnel.peer.initiate || tunnel.on_demand) && tunnel.peer.local.is_none(),
    }
}

impl Driver {
    /// Finds the tunnels for which there is a better address.
    pub(super) fn find_better_uplinks(&mut self) {
        let ranks = self.host.borrow().ranked_addresses.clone();
        let role = self.desired.role;
        let mut better = BTreeMap::new();
        for (peer, local, remote) in self.endpoint.ike_addresses() {
            let in_udp = TcpConnectionId::of(remote.ip()).is_none();
            if !in_udp || !may_be_worse(&ranks, local.ip()) {
                continue;
            }
            let chooses = self.desired.tunnels.get(peer).is_some_and(|tunnel| chooses_address(role, tunnel));
            let chosen = if chooses { source_address(remote.ip()) } else { None };
            if let Some(to) = chosen.filter(|to| is_better(&ranks, *to, local.ip())) {
                better.insert(peer.clone(), (local.ip(), to));
            }
        }
        let better = better.into_iter().map(|(peer, (from, to))| (peer, from, to));
        let source_rules = self.host.borrow().source_rules;
        let stable = if source_rules { STABLE } else { STABLE_WITHOUT_SOURCE_RULES };
        self.better_uplinks.update(better, stable, self.now());
    }

    /// Moves the tunnels whose better address has stood long enough.
    pub(super) fn move_to_better_uplinks(&mut self, now: Instant) {
        if self.better_uplinks.next_due().is_none_or(|due| due > now) {
            return;
        }
        self.find_better_uplinks();
        for (peer, to) in self.better_uplinks.take_due(now) {
            let begun = match self.endpoint.move_to_local_address(&peer, to, now, &mut self.environment) {
                LocalMove::Begun => true,
                // The kernel gives the new IKE SA the better address.
                LocalMove::PeerChooses => {
                    let tunnel = self.desired.tunnels.get(&peer);
                    let remotes = tunnel.map(|tunnel| tunnel.peer.remotes.clone()).unwrap_or_default();
                    self.endpoint.try_addresses(&peer, &remotes, now, &mut self.environment)
                }
                LocalMove::Impossible => false,
            };
            if begun {
                tracing::info!(peer = %peer, local = %to, "a better uplink is there; the tunnel moves to it");
            }
        }
    }
}
