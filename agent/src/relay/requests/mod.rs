//! The requests of a node that needs relays: to which peers, when, and from which hub. It does no
//! I/O.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::wire::RelayRefusal;
use edge_ike::{Instant, PeerName};
use edge_types::jitter;

/// Time for a tunnel to come up directly before a hub is asked for a relay.
const FIRST_REQUEST: Duration = Duration::from_secs(3);
/// Maximum time for a peer to answer after this node's address has changed, before a hub is asked
/// for a relay: longer than a round trip over a mobile network, so that peers that can answer take
/// no place at the hub. If the NAT of a peer lets nothing in from the new address, the answer never
/// comes.
const AFTER_MOVE: Duration = Duration::from_millis(300);
/// Minimum time for a peer to answer after the first hub has answered at the new address. A peer
/// has twice the time of that hub, since most of the path is often the same.
const AFTER_HUB: Duration = Duration::from_millis(100);
/// Time after a request until the next hub is asked, if the tunnel has not come up. It doubles
/// after each round of all hubs, up to [`MAX_WAIT`].
const MIN_WAIT: Duration = Duration::from_secs(10);
/// Maximum time between two requests for one peer.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Interval at which direct addresses are tried while the peer is relayed.
const DIRECT_INTERVAL: Duration = Duration::from_secs(180);
/// Minimum time between two attempts at direct addresses. A limit is needed because a peer
/// determines how often its addresses change.
const DIRECT_MIN_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum time from the end of a connection to a relay to the request for it, at least half of it:
/// the connections of many nodes may end together. It doubles with each further one that ends
/// within [`MAX_WAIT`], up to that.
const AFTER_END: Duration = Duration::from_millis(500);

/// The address through which a hub relays to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedRelay {
    /// The hub.
    pub hub: PeerName,
    /// The hub's address and its port for this node, or the address that stands for a TCP
    /// connection to the relay.
    pub address: SocketAddr,
}

/// The effect of a hub's notification that a relay is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// No effect: no relay is needed, or a hub whose name comes earlier already relays. If two hubs
    /// relay, both ends thus choose the same one.
    Ignored,
    /// No effect: the relay is already known.
    Known,
    /// The peer has a new relayed address.
    New,
}

/// The peers whose tunnel is not up, or is relayed, or whose direct path may be lost. There is at
/// most one entry for each peer in the view.
#[derive(Debug, Default)]
pub struct RelayRequests {
    peers: BTreeMap<PeerName, RelayedPeer>,
    due: BTreeSet<(Instant, PeerName)>,
    /// When this node began to send from another address, until a hub answers there.
    moved_at: Option<Instant>,
}

#[derive(Debug)]
struct RelayedPeer {
    due: Instant,
    /// The time before which a new IKE SA with a hub does not make the peer due.
    not_before: Instant,
    wait: Duration,
    /// The hubs that have been asked in this round.
    asked: Vec<PeerName>,
    opened: Option<OpenedRelay>,
    /// When `opened` became known.
    opened_at: Instant,
    /// When a connection to a relay ended last, and the time until the request after it.
    ended_at: Option<Instant>,
    end_wait: Duration,
    /// Whether the tunnel uses the relay.
    in_use: bool,
    /// Since when nothing may arrive any more over the direct path of a tunnel that is up.
    lost_since: Option<Instant>,
    /// When the peer requested a relay to this node, before this node needed one.
    agreed_at: Option<Instant>,
    /// When direct addresses were last tried while the peer was relayed.
    tried_direct: Option<Instant>,
    refusal: Option<(PeerName, RelayRefusal)>,
    /// The hub that relays and has announced its end.
    leaving: Option<PeerName>,
}

impl RelayRequests {
    /// Records that a tunnel to a peer should be up and is not. The peer is due after
    /// [`FIRST_REQUEST`] unless [`Self::forget`] is called before.
    pub fn watch(&mut self, peer: &PeerName, now: Instant) {
        match self.peers.get_mut(peer) {
            Some(known) if known.in_use => known.in_use = false,
            // A hub that has been asked is not asked again before its time.
            Some(known) => {
                if known.lost_since.take().is_none() || !known.asked.is_empty() {
                    return;
                }
            }
            None => drop(self.peers.insert(peer.clone(), RelayedPeer::new(now))),
        }
        self.set_due(peer, now + FIRST_REQUEST);
    }

    /// Records that this node sends to a peer from another address than before. The tunnel is up
    /// and direct. The peer is due after [`AFTER_MOVE`], or sooner with [`Self::hub_answered`],
    /// unless [`Self::forget`] is called before.
    pub fn moved(&mut self, peer: &PeerName, now: Instant) {
        self.path_lost(peer, now, now + AFTER_MOVE);
    }

    /// Records that a peer whose tunnel is up and direct does not answer. It is due at once.
    pub fn silent(&mut self, peer: &PeerName, now: Instant) {
        self.path_lost(peer, now, now);
    }

    fn path_lost(&mut self, peer: &PeerName, now: Instant, due: Instant) {
        let known = self.peers.entry(peer.clone()).or_insert_with(|| RelayedPeer::new(now));
        // The relay follows this node's IKE SA with the hub.
        if !known.in_use {
            known.lost_since = Some(now);
            self.set_due(peer, due);
        }
    }

    /// Returns since when nothing may arrive any more over the direct path to a peer.
    pub fn lost_since(&self, peer: &PeerName) -> Option<Instant> {
        self.peers.get(peer)?.lost_since
    }

    /// Records that another node has requested a relay to this one, so that [`Self::opened`]
    /// accepts the hub's answer. Does nothing if there is an entry for the peer.
    pub fn agree(&mut self, peer: &PeerName, now: Instant) {
        if !self.peers.contains_key(peer) {
            self.peers.insert(peer.clone(), RelayedPeer { agreed_at: Some(now), ..RelayedPeer::new(now) });
            self.set_due(peer, now + MIN_WAIT);
        }
    }

    /// Returns whether a peer with a direct tunnel that is up may need a relay all the same.
    /// `is_silent_since` says whether nothing has arrived from it since a time. Its direct path may
    /// be lost, or it has requested a relay less than [`MIN_WAIT`] ago: it may have moved, although
    /// this node has noticed nothing yet.
    pub fn may_need_relay(&self, peer: &PeerName, is_silent_since: impl Fn(Instant) -> bool, now: Instant) -> bool {
        let Some(known) = self.peers.get(peer) else { return false };
        let agreed_at = known.agreed_at.filter(|agreed| now < *agreed + MIN_WAIT);
        known.lost_since.into_iter().chain(agreed_at).any(is_silent_since)
    }

    /// Records that the tunnel to a peer uses this relay. The peer's direct addresses are tried
    /// after [`DIRECT_INTERVAL`].
    pub fn relayed(&mut self, peer: &PeerName, relay: OpenedRelay, now: Instant) {
        let known = self.peers.entry(peer.clone()).or_insert_with(|| RelayedPeer::new(now));
        let begins = !known.in_use || known.opened.as_ref() != Some(&relay);
        (known.in_use, known.opened, known.lost_since) = (true, Some(relay), None);
        known.succeed();
        if begins {
            known.tried_direct = None;
            self.set_due(peer, now + DIRECT_INTERVAL);
        }
    }

    /// Forgets a peer because its tunnel is up without a relay, or is not wanted. Returns whether a
    /// hub had opened a relay to the peer.
    pub fn forget(&mut self, peer: &PeerName) -> bool {
        let Some(known) = self.peers.remove(peer) else { return false };
        self.due.remove(&(known.due, peer.clone()));
        known.opened.is_some()
    }

    /// Records that the connection to the relay of a peer has ended. A hub is asked within
    /// [`AFTER_END`], and ever later if connections end again and again, for example because
    /// something on the path closes them.
    pub fn connection_ended(&mut self, peer: &PeerName, now: Instant) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        let again = known.ended_at.is_some_and(|ended| now < ended + MAX_WAIT);
        let wait = if again { known.end_wait.saturating_mul(2).min(MAX_WAIT) } else { AFTER_END };
        (known.ended_at, known.end_wait) = (Some(now), wait);
        // If the hub has been restarted, a new IKE SA with it makes the peer due sooner.
        known.asked.clear();
        self.set_due(peer, now + jitter::between(wait / 2, wait));
    }

    /// Returns whether [`Self::opened`] would take a relay of this hub.
    pub fn takes(&self, peer: &PeerName, hub: &PeerName, hubs: &[PeerName], now: Instant) -> bool {
        self.peers.get(peer).is_some_and(|known| !known.keeps_against(hub, hubs, now))
    }

    /// Returns whether there is an entry for a peer: its tunnel is not up, or is relayed, or its
    /// direct path may be lost.
    pub fn contains(&self, peer: &PeerName) -> bool {
        self.peers.contains_key(peer)
    }

    /// Returns the relay to a peer that a hub has opened. The tunnel does not necessarily use it.
    pub fn relay(&self, peer: &PeerName) -> Option<&OpenedRelay> {
        self.peers.get(peer)?.opened.as_ref()
    }

    /// Returns the hub that refused the last request for a peer, and its reason.
    pub fn refusal(&self, peer: &PeerName) -> Option<&(PeerName, RelayRefusal)> {
        self.peers.get(peer)?.refusal.as_ref()
    }

    /// Returns the time at which [`Self::take_due`] must be called next; `None` if there are no
    /// peers.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Returns the peers for which a hub must be asked now. For each, the caller calls
    /// [`Self::next_hub`] or [`Self::forget`].
    pub fn take_due(&mut self, now: Instant) -> Vec<PeerName> {
        let due: Vec<PeerName> =
            self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, peer)| peer.clone()).collect();
        for peer in &due {
            let wait = self.peers.get(peer).map_or(MIN_WAIT, |known| known.wait);
            self.set_due(peer, now + wait);
        }
        due
    }

    /// Chooses the hub to ask for a peer. `hubs` are the connected hubs in the order of their
    /// names. Each hub is asked once before the first one is asked again. If the tunnel uses a
    /// relay, the hub of that relay is asked whether it still relays, and asked again after
    /// [`MIN_WAIT`] if it does not answer. That time doubles up to [`DIRECT_INTERVAL`]. If that hub
    /// leaves, the others are asked instead.
    pub fn next_hub(&mut self, peer: &PeerName, hubs: &[PeerName], now: Instant) -> Option<PeerName> {
        let known = self.peers.get_mut(peer)?;
        let leaves = known.opened.as_ref().is_some_and(|relay| Some(&relay.hub) == known.leaving.as_ref());
        if known.in_use && !leaves {
            let hub = known.opened.as_ref().map(|relay| relay.hub.clone()).filter(|hub| hubs.contains(hub));
            // The hub's answer makes the next request due later. Without an answer, for example
            // because the other node is not yet connected to a restarted hub, it is repeated.
            let wait = if hub.is_some() { known.wait } else { DIRECT_INTERVAL };
            known.wait = known.wait.saturating_mul(2).min(DIRECT_INTERVAL);
            self.set_due(peer, now + wait);
            return hub;
        }
        if !hubs.is_empty() && !hubs.iter().any(|hub| !known.asked.contains(hub)) {
            known.next_round();
        }
        let hub = hubs.iter().find(|hub| !known.asked.contains(hub))?.clone();
        known.asked.push(hub.clone());
        let due = now + known.wait;
        self.set_due(peer, due);
        Some(hub)
    }

    /// Handles a hub's refusal. The next hub, if there is one, is asked at once.
    pub fn refused(&mut self, peer: &PeerName, hub: &PeerName, reason: RelayRefusal, hubs: &[PeerName], now: Instant) {
        // A refusal that arrives while the relay is in use is outdated.
        let asks = |known: &&mut RelayedPeer| !known.in_use || known.leaving.is_some();
        let Some(known) = self.peers.get_mut(peer).filter(asks) else { return };
        known.refusal = Some((hub.clone(), reason));
        known.opened.take_if(|relay| relay.hub == *hub);
        if known.asked.last() == Some(hub) && hubs.iter().any(|hub| !known.asked.contains(hub)) {
            self.set_due(peer, now);
        }
    }

    /// Handles a hub's notification that its relay to a peer is open. A known relay of a connected
    /// hub whose name comes earlier is kept. If it has not brought the tunnel up within
    /// [`MIN_WAIT`], for example because its ports are closed, the new relay replaces it.
    pub fn opened(&mut self, peer: &PeerName, relay: OpenedRelay, hubs: &[PeerName], now: Instant) -> Opened {
        let Some(known) = self.peers.get_mut(peer) else { return Opened::Ignored };
        known.refusal = None;
        match &known.opened {
            Some(before) if *before == relay => return Opened::Known,
            _ if known.keeps_against(&relay.hub, hubs, now) => return Opened::Ignored,
            _ => {}
        }
        (known.opened, known.opened_at, known.leaving) = (Some(relay), now, None);
        Opened::New
    }

    /// Records that the tunnel to a peer uses another address than the open relay's. An attempt to
    /// move it there may fail, or may not begin because another one is running, so the hub is asked
    /// again after [`MIN_WAIT`].
    pub fn try_again(&mut self, peer: &PeerName, now: Instant) {
        self.set_due(peer, now + MIN_WAIT);
    }

    /// Returns whether the direct addresses of a relayed peer may be tried now. If so, the next
    /// attempt is due after [`DIRECT_INTERVAL`].
    pub fn may_try_direct(&mut self, peer: &PeerName, now: Instant) -> bool {
        let Some(known) = self.peers.get_mut(peer).filter(|known| known.in_use) else { return false };
        let may = known.tried_direct.is_none_or(|tried| now >= tried + DIRECT_MIN_INTERVAL);
        if may {
            (known.tried_direct, known.wait) = (Some(now), MIN_WAIT);
            self.set_due(peer, now + DIRECT_INTERVAL);
        }
        may
    }

    /// Records that the addresses of a peer have changed. If the tunnel uses a relay, an attempt at
    /// them is due now, or [`DIRECT_MIN_INTERVAL`] after the last one.
    pub fn addresses_changed(&mut self, peer: &PeerName, now: Instant) {
        let Some(known) = self.peers.get(peer).filter(|known| known.in_use) else { return };
        let earliest = known.tried_direct.map_or(now, |tried| tried + DIRECT_MIN_INTERVAL).max(now);
        let due = known.due.min(earliest);
        self.set_due(peer, due);
    }

    /// Records that this node has a new IKE SA with a hub. The hub may have been restarted and have
    /// lost its relays, so all peers are due except those that are relayed by another hub.
    pub fn hub_connected(&mut self, hub: &PeerName, now: Instant) {
        let mut due = Vec::new();
        for (peer, known) in &mut self.peers {
            known.leaving.take_if(|leaving| leaving == hub);
            let other = known.opened.as_ref().is_some_and(|relay| relay.hub != *hub);
            if known.in_use && other {
                continue;
            }
            known.asked.clear();
            known.wait = MIN_WAIT;
            due.push((peer.clone(), known.due.min(known.not_before.max(now))));
        }
        due.into_iter().for_each(|(peer, at)| self.set_due(&peer, at));
    }

    /// Records that this node sends from another address from now on, and that the first answer of
    /// a hub there is of interest ([`Self::hub_answered`]).
    pub fn await_hub(&mut self, now: Instant) {
        self.moved_at = Some(now);
    }

    /// Returns when this node began to send from another address, if no hub has answered there yet
    /// and peers still have time to answer.
    pub fn awaits_hub_since(&self, now: Instant) -> Option<Instant> {
        self.moved_at.filter(|moved| now < *moved + AFTER_MOVE)
    }

    /// Records that a hub has answered at the address to which this node has moved. A peer that has
    /// not answered when twice the time of that hub is over is due then.
    pub fn hub_answered(&mut self, now: Instant) {
        let Some(moved) = self.moved_at.take() else { return };
        let latest = now + now.saturating_since(moved).max(AFTER_HUB);
        let waits = |known: &RelayedPeer| known.lost_since.is_some() && known.asked.is_empty();
        let waiting = self.peers.iter().filter(|(_, known)| waits(known));
        let due: Vec<_> = waiting.map(|(peer, known)| (peer.clone(), known.due.min(latest))).collect();
        due.into_iter().for_each(|(peer, at)| self.set_due(&peer, at));
    }

    /// Records that a hub has announced its end: another hub is asked at once for the relays that
    /// this hub provides.
    pub fn hub_leaving(&mut self, hub: &PeerName, now: Instant) {
        for peer in self.relayed_by(hub) {
            if let Some(known) = self.peers.get_mut(&peer) {
                (known.leaving, known.wait) = (Some(hub.clone()), MIN_WAIT);
                known.asked.clear();
                self.set_due(&peer, now);
            }
        }
    }

    /// Returns the peers to which a hub relays.
    pub fn relayed_by(&self, hub: &PeerName) -> Vec<PeerName> {
        let by_hub = |known: &RelayedPeer| known.in_use && known.opened.as_ref().is_some_and(|relay| relay.hub == *hub);
        self.peers.iter().filter(|(_, known)| by_hub(known)).map(|(peer, _)| peer.clone()).collect()
    }

    fn set_due(&mut self, peer: &PeerName, at: Instant) {
        if let Some(known) = self.peers.get_mut(peer) {
            self.due.remove(&(known.due, peer.clone()));
            known.due = at;
            self.due.insert((at, peer.clone()));
        }
    }
}

impl RelayedPeer {
    /// Returns whether the known relay is kept although this hub relays too.
    fn keeps_against(&self, hub: &PeerName, hubs: &[PeerName], now: Instant) -> bool {
        self.opened.as_ref().is_some_and(|before| {
            before.hub < *hub && hubs.contains(&before.hub) && (self.in_use || now < self.opened_at + MIN_WAIT)
        })
    }

    fn new(now: Instant) -> Self {
        Self {
            due: now,
            not_before: now + FIRST_REQUEST,
            wait: MIN_WAIT,
            asked: Vec::new(),
            opened: None,
            opened_at: now,
            ended_at: None,
            end_wait: AFTER_END,
            in_use: false,
            lost_since: None,
            agreed_at: None,
            tried_direct: None,
            refusal: None,
            leaving: None,
        }
    }

    fn succeed(&mut self) {
        self.asked.clear();
        self.wait = MIN_WAIT;
        self.refusal = None;
    }

    fn next_round(&mut self) {
        self.asked.clear();
        self.wait = self.wait.saturating_mul(2).min(MAX_WAIT);
    }
}
