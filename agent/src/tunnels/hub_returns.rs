//! Tracks hubs that were lost and came back. Several hubs may front the same networks. Nodes use
//! the first of these hubs that is up, in the order of their names. A hub that comes back is not
//! used immediately, since it may be lost again, and since other nodes detect its return at
//! different moments.
//!
//! A hub that has announced its end ([`HubReturns::leaving`]) is used only if no other hub is up,
//! while its tunnel still carries what other nodes send through it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use edge_ike::{Instant, PeerName};

use crate::desired::{DesiredTunnel, TunnelState};

/// Time for which the tunnel of a hub that came back must be up before the hub replaces another
/// hub. Cloud nodes use the same time.
const HOLD: Duration = Duration::from_secs(30);

/// Time after which the announcement of a hub that did not end is forgotten. A hub ends within ten
/// seconds after its announcement, and then either stays silent or makes a new IKE SA.
const LEAVING: Duration = Duration::from_secs(60);

/// The hubs that have been up. The size of each set is at most the number of hubs.
#[derive(Debug, Default)]
pub(super) struct HubReturns {
    up: HashSet<PeerName>,
    lost: HashSet<PeerName>,
    /// Hubs that have a tunnel but do not answer.
    silent: HashSet<PeerName>,
    /// Hubs that have announced their end, each with the time at which that is forgotten.
    leaving: HashMap<PeerName, Instant>,
    /// Hubs that came back, each with the time from which it is used again.
    returned: BTreeMap<PeerName, Instant>,
    /// The latest state of each hub's tunnel.
    states: BTreeMap<PeerName, TunnelState>,
    /// Whether `states` has changed since the last [`Self::take_states`].
    changed: bool,
}

impl HubReturns {
    /// Returns the state of a peer's tunnel. Only the state of a hub can be
    /// [`TunnelState::Returned`] or [`TunnelState::Leaving`].
    pub(super) fn state(
        &mut self,
        tunnel: Option<&Arc<DesiredTunnel>>,
        peer: &PeerName,
        up: bool,
        now: Instant,
    ) -> TunnelState {
        if tunnel.is_some_and(|tunnel| tunnel.hub) {
            let state = self.observe(peer, up, now);
            self.changed |= self.states.insert(peer.clone(), state) != Some(state);
            return state;
        }
        self.forget(peer);
        if up { TunnelState::Up } else { TunnelState::Down }
    }

    /// Records whether the tunnel of a hub is up, and returns the tunnel's state.
    fn observe(&mut self, hub: &PeerName, up: bool, now: Instant) -> TunnelState {
        if !up {
            // The peer has answered a new IKE SA.
            self.silent.remove(hub);
            self.leaving.remove(hub);
        }
        if !up || self.silent.contains(hub) || self.leaving.contains_key(hub) {
            self.returned.remove(hub);
            if self.up.remove(hub) {
                self.lost.insert(hub.clone());
            }
            // If no other hub is left, packets go through this one to its end.
            let carries = up && !self.silent.contains(hub);
            return if carries { TunnelState::Leaving } else { TunnelState::Down };
        }
        self.up.insert(hub.clone());
        if self.lost.remove(hub) {
            self.returned.insert(hub.clone(), now + HOLD);
        }
        if self.returned.get(hub).is_some_and(|until| now < *until) { TunnelState::Returned } else { TunnelState::Up }
    }

    /// Records that a peer does not answer. Returns `true` if the peer is a hub that answered
    /// before. In that case another hub should receive its packets, although the tunnel is still
    /// up.
    pub(super) fn silent(&mut self, tunnel: Option<&Arc<DesiredTunnel>>, peer: &PeerName) -> bool {
        tunnel.is_some_and(|tunnel| tunnel.hub) && self.silent.insert(peer.clone())
    }

    /// Records that a message from a peer arrived. Returns `true` if the peer is a hub that did not
    /// answer before.
    pub(super) fn heard(&mut self, peer: &PeerName) -> bool {
        self.silent.remove(peer)
    }

    /// Records that a hub has announced its end. Returns `true` if that is new.
    pub(super) fn leaving(&mut self, hub: &PeerName, now: Instant) -> bool {
        self.leaving.insert(hub.clone(), now + LEAVING).is_none()
    }

    /// Returns whether a hub has announced its end.
    pub(super) fn leaves(&self, hub: &PeerName) -> bool {
        self.leaving.contains_key(hub)
    }

    /// Records a new IKE SA with a peer: a hub that had announced its end has started again.
    /// Returns `true` if it had.
    pub(super) fn connected(&mut self, peer: &PeerName) -> bool {
        self.leaving.remove(peer).is_some()
    }

    /// Returns the latest state of each hub's tunnel if one has changed since the last call.
    pub(super) fn take_states(&mut self) -> Option<&BTreeMap<PeerName, TunnelState>> {
        std::mem::take(&mut self.changed).then_some(&self.states)
    }

    fn forget(&mut self, hub: &PeerName) {
        self.changed |= self.states.remove(hub).is_some();
        self.silent.remove(hub);
        self.leaving.remove(hub);
        self.up.remove(hub);
        self.lost.remove(hub);
        self.returned.remove(hub);
    }

    /// Returns the time at which [`Self::take_due`] or [`Self::take_stayed`] next returns a hub.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.returned.values().chain(self.leaving.values()).min().copied()
    }

    /// Removes and returns the hubs that announced their end [`LEAVING`] ago and still have a
    /// tunnel. Maybe they have stayed, or have ended unnoticed, so they must be asked. They are not
    /// used before the answer is due, because a hub that was lost must be up for [`HOLD`].
    pub(super) fn take_stayed(&mut self, now: Instant) -> Vec<PeerName> {
        self.leaving.extract_if(|_, until| *until <= now).map(|(hub, _)| hub).collect()
    }

    /// Removes and returns the hubs that may be used again.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<PeerName> {
        self.returned.extract_if(.., |_, until| *until <= now).map(|(hub, _)| hub).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    #[test]
    fn a_hub_counts_at_once_at_first_and_after_a_loss_only_when_it_stays() {
        let (mut returns, hub) = (HubReturns::default(), PeerName::new("hub-1"));
        assert_eq!(returns.observe(&hub, false, at(0)), TunnelState::Down);
        assert_eq!(returns.observe(&hub, true, at(1)), TunnelState::Up);
        assert_eq!(returns.observe(&hub, false, at(2)), TunnelState::Down);
        assert_eq!(returns.observe(&hub, true, at(10)), TunnelState::Returned);
        assert_eq!((returns.next_due(), returns.take_due(at(39))), (Some(at(40)), vec![]));
        // The tunnel goes down again, so the wait starts again.
        assert_eq!(returns.observe(&hub, false, at(39)), TunnelState::Down);
        assert_eq!(returns.observe(&hub, true, at(41)), TunnelState::Returned);
        assert_eq!(returns.take_due(at(71)), std::slice::from_ref(&hub));
        assert_eq!(returns.observe(&hub, true, at(71)), TunnelState::Up);
        assert_eq!(returns.next_due(), None);
    }

    #[test]
    fn a_hub_that_does_not_answer_is_left_before_its_tunnel_is_down() {
        let (mut returns, hub) = (HubReturns::default(), PeerName::new("hub-1"));
        assert_eq!(returns.observe(&hub, true, at(0)), TunnelState::Up);
        returns.silent.insert(hub.clone());
        assert_eq!(returns.observe(&hub, true, at(1)), TunnelState::Down);
        assert!(returns.heard(&hub) && !returns.heard(&hub));
        assert_eq!(returns.observe(&hub, true, at(2)), TunnelState::Returned);
        assert_eq!(returns.observe(&hub, true, at(32)), TunnelState::Up);
        // The tunnel of the silent hub goes down, and a new tunnel comes up.
        returns.silent.insert(hub.clone());
        assert_eq!(returns.observe(&hub, true, at(40)), TunnelState::Down);
        assert_eq!(returns.observe(&hub, false, at(44)), TunnelState::Down);
        assert_eq!(returns.observe(&hub, true, at(50)), TunnelState::Returned);
        assert_eq!(returns.observe(&hub, true, at(80)), TunnelState::Up);
    }

    #[test]
    fn a_hub_that_leaves_is_not_used_until_it_has_a_new_ike_sa_for_half_a_minute() {
        let (mut returns, hub) = (HubReturns::default(), PeerName::new("hub-1"));
        assert_eq!(returns.observe(&hub, true, at(0)), TunnelState::Up);
        assert!(returns.leaving(&hub, at(10)) && !returns.leaving(&hub, at(10)));
        assert_eq!(returns.observe(&hub, true, at(10)), TunnelState::Leaving);
        // It still forwards what cloud nodes send, and answers what is asked on its IKE SA.
        assert!(!returns.heard(&hub));
        assert_eq!((returns.observe(&hub, true, at(12)), returns.leaves(&hub)), (TunnelState::Leaving, true));
        assert!(returns.connected(&hub) && !returns.connected(&hub));
        assert_eq!(returns.observe(&hub, true, at(20)), TunnelState::Returned);
        assert_eq!((returns.take_due(at(50)), returns.leaves(&hub)), (vec![hub.clone()], false));
        assert_eq!(returns.observe(&hub, true, at(50)), TunnelState::Up);
    }

    #[test]
    fn a_hub_that_announced_its_end_and_stays_is_used_again() {
        let (mut returns, hub) = (HubReturns::default(), PeerName::new("hub-1"));
        returns.observe(&hub, true, at(0));
        returns.leaving(&hub, at(0));
        assert_eq!(returns.observe(&hub, true, at(59)), TunnelState::Leaving);
        // Nothing of the hub need arrive.
        assert_eq!((returns.next_due(), returns.take_stayed(at(59))), (Some(at(60)), vec![]));
        assert_eq!(returns.take_stayed(at(60)), std::slice::from_ref(&hub));
        assert_eq!((returns.observe(&hub, true, at(60)), returns.leaves(&hub)), (TunnelState::Returned, false));
        assert_eq!(returns.next_due(), Some(at(90)));
        // It has ended after all, and does not answer.
        returns.silent.insert(hub.clone());
        assert_eq!(returns.observe(&hub, true, at(68)), TunnelState::Down);
        assert_eq!(returns.next_due(), None);
    }

    #[test]
    fn of_two_hubs_of_which_one_is_lost_the_one_that_leaves_is_used_until_it_is_silent() {
        let mut returns = HubReturns::default();
        let [lost, leaving] = ["hub-1", "hub-2"].map(PeerName::new);
        for hub in [&lost, &leaving] {
            assert_eq!(returns.observe(hub, true, at(0)), TunnelState::Up);
        }
        returns.leaving(&leaving, at(10));
        assert_eq!(returns.observe(&lost, false, at(10)), TunnelState::Down);
        // The best state comes first.
        assert!(returns.observe(&leaving, true, at(10)) < TunnelState::Down);
        assert!(returns.observe(&leaving, true, at(10)) > TunnelState::Returned);
        returns.silent.insert(leaving.clone());
        assert_eq!(returns.observe(&leaving, true, at(16)), TunnelState::Down);
    }
}
