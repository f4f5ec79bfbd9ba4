//! Decides which tunnels are set up at once, and which by the first packet.

use edge_types::{NodeView, Peer, Role, SharedPeer};

/// Returns when the tunnel to a member is set up, if a community of both nodes decides that: true
/// if by the first packet. If several decide, a tunnel at once wins.
fn decided_by_community(view: &NodeView, peer: &Peer) -> Option<bool> {
    let shared = peer.on_demand_in.iter().filter(|(name, _)| view.communities.contains(*name));
    shared.map(|(_, on_demand)| *on_demand).min()
}

/// Returns the number of members of this node's communities, this node included, without those for
/// which a community decides. Members of several communities are counted together, because the view
/// does not show which of the others a member belongs to. `peers` are the peers with tunnels.
pub(super) fn undecided_members<'a>(view: &NodeView, peers: impl Iterator<Item = &'a SharedPeer>) -> usize {
    let members = peers.filter(|peer| peer.role != Role::Hub);
    1 + members.filter(|peer| decided_by_community(view, peer).is_none()).count()
}

/// Returns whether the tunnel to a peer is set up by the first packet. This is never the case for
/// tunnels from and to hubs. `members` is the result of [`undecided_members`]. `limit` is their
/// number above which tunnels are set up on demand.
pub(super) fn waits_for_a_packet(view: &NodeView, peer: &Peer, members: usize, limit: usize) -> bool {
    if view.role == Role::Hub || peer.role == Role::Hub {
        return false;
    }
    decided_by_community(view, peer).unwrap_or(members > limit)
}
