//! The addresses between which the messages of an IKE SA are sent: a new path while it is not known
//! whether the peer receives on it (RFC 4555 3.7), further addresses to try, and a new address of
//! the peer (RFC 7296 2.23).

use std::net::{IpAddr, SocketAddr};

use super::channel::Channel;
use super::path::{Following, Path};
use crate::output::Context;

/// Maximum number of pairs of addresses between which a request is sent besides those in use.
/// Further ones are not tried.
const MAX_ALTERNATIVES: usize = 16;

impl Channel {
    /// Returns our address and the peer's, for messages.
    pub(crate) fn message_addresses(&self) -> (SocketAddr, SocketAddr) {
        let Path { local, remote, .. } = self.message_path();
        (local, remote)
    }

    /// Returns the path of IKE messages.
    pub(crate) fn message_path(&self) -> Path {
        self.unchecked.as_deref().copied().unwrap_or(self.path)
    }

    /// Returns whether the path of IKE messages is not checked yet (RFC 4555 3.7).
    pub(crate) fn is_unchecked(&self) -> bool {
        self.unchecked.is_some()
    }

    /// Starts to send IKE messages on this path, including the outstanding request.
    /// [`Self::use_path`] moves ESP later.
    pub(crate) fn check_path(&mut self, path: Path, cx: &mut Context<'_>) {
        self.unchecked = Some(Box::new(path));
        self.candidate = None;
        self.alternatives.clear();
        self.redirect(cx);
    }

    /// Starts to send both IKE messages and ESP on this path.
    pub(crate) fn use_path(&mut self, path: Path) {
        self.path = path;
        self.unchecked = None;
        self.given_up = None;
        self.candidate = None;
    }

    /// Sends IKE messages on the path of ESP again.
    pub(crate) fn leave_unchecked_path(&mut self) {
        self.unchecked = None;
    }

    /// Replaces our address on both paths. If the new one is of another family than the unchecked
    /// path, that path is left.
    pub(crate) fn replace_local_ip(&mut self, old: IpAddr, new: IpAddr) {
        if self.path.local.ip() == old {
            self.path.local.set_ip(new);
        }
        self.unchecked.take_if(|unchecked| unchecked.local.ip() == old && unchecked.remote.is_ipv4() != new.is_ipv4());
        if let Some(unchecked) = self.unchecked.as_mut().filter(|unchecked| unchecked.local.ip() == old) {
            unchecked.local.set_ip(new);
        }
    }

    /// Returns whether ESP or IKE messages are sent from this address of ours.
    pub(crate) fn sends_from(&self, local: IpAddr) -> bool {
        [self.path, self.message_path()].iter().any(|path| path.local.ip() == local)
    }

    /// Sends the outstanding request between these addresses too, now and at each retransmission.
    pub(crate) fn send_to_alternatives(&mut self, alternatives: Vec<(SocketAddr, SocketAddr)>, cx: &mut Context<'_>) {
        let Some(mut in_flight) = self.in_flight.take() else { return };
        for (local, remote) in alternatives {
            if (local, remote) != self.message_addresses()
                && self
                    .candidate
                    .as_ref()
                    .is_none_or(|candidate| (self.message_path().local, **candidate) != (local, remote))
                && local.is_ipv4() == remote.is_ipv4()
                && self.alternatives.len() < MAX_ALTERNATIVES
                && !self.alternatives.contains(&(local, remote))
            {
                self.transmit(&in_flight.packets, local, remote, cx);
                self.alternatives.push((local, remote));
                in_flight.between = None;
            }
        }
        self.in_flight = Some(in_flight);
    }

    /// Returns whether the last answered request proves that the peer receives on the path of IKE
    /// messages, that is, whether it was sent to no other address (RFC 4555 3.7).
    pub(crate) fn answer_shows_path(&self) -> bool {
        self.answered_between.as_deref() == Some(&self.message_addresses()) || mutation!("any_answer_shows_path")
    }

    /// Takes the addresses between which the peer has answered, if IKE messages are sent between
    /// others.
    pub(crate) fn take_answered_elsewhere(&mut self) -> Option<(SocketAddr, SocketAddr)> {
        self.answered_elsewhere.take().map(|pair| *pair)
    }

    /// Takes the path on which the peer did not answer our check, if the peer's last request came
    /// on it and no other one is being checked.
    pub(crate) fn take_given_up(&mut self) -> Option<Path> {
        let used = self.response_path;
        // The initiator chooses paths by itself. The outstanding request is on its way there if the
        // path is among the alternatives.
        let wait = self.following != Following::Update || self.is_unchecked() || self.alternatives.contains(&used);
        self.given_up.take_if(|path| !wait && (path.local, path.remote) == used).map(|path| *path)
    }

    /// Our address and the peer's address in the request that was received last.
    pub(crate) fn request_addresses(&self) -> (SocketAddr, SocketAddr) {
        self.response_path
    }

    /// Makes the source address of authentic ESP the candidate if the peer may have moved there and
    /// no other address is being checked.
    // RFC 4555 3.8: a peer may be followed to the source of its ESP.
    pub(crate) fn esp_came_from(&mut self, remote: SocketAddr) {
        let same_family = remote.is_ipv4() == self.path.remote.is_ipv4();
        if self.path.nat_remote && same_family && remote != self.path.remote && self.unchecked.is_none() {
            self.set_candidate(remote);
        }
    }

    fn set_candidate(&mut self, remote: SocketAddr) {
        if self.candidate.as_deref() != Some(&remote) {
            self.candidate = Some(Box::new(remote));
            self.candidate_is_new = true;
        }
    }

    /// Sends the outstanding request to a candidate address to which nothing was sent yet. Returns
    /// true if there is such a candidate, but no request to send.
    pub(crate) fn probe_candidate(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(candidate) = self.candidate.as_deref().copied().filter(|_| self.candidate_is_new) else {
            return false;
        };
        let Some(mut in_flight) = self.in_flight.take() else {
            return true;
        };
        if !self.alternatives.contains(&(self.path.local, candidate)) {
            self.transmit(&in_flight.packets, self.path.local, candidate, cx);
        }
        self.candidate_is_new = false;
        in_flight.sent_to = Some(candidate);
        in_flight.between = None;
        self.in_flight = Some(in_flight);
        false
    }

    /// Updates the address of a peer behind a NAT from a new authentic message (RFC 7296 2.23), and
    /// our own address if the kernel chose it. The SAs move only if the message is a response to
    /// one that we sent to the new address (`confirmed`). Therefore it is safe to follow the peer
    /// even if we are behind a NAT too, although 2.23 says that such hosts SHOULD NOT do this.
    pub(super) fn update_path(&mut self, local: SocketAddr, remote: SocketAddr, confirmed: bool) {
        //= RFC 7296 2.11 MUST 3: the response comes from there
        self.response_path = (local, remote);
        if self.path.local.ip().is_unspecified() {
            self.path.local.set_ip(local.ip());
        }
        if !self.path.nat_remote && !mutation!("followed_without_nat") {
            return;
        }
        if self.path.remote == remote || self.message_path().remote == remote {
            self.candidate = None;
        } else if confirmed && self.following != Following::Answer {
            self.answered_elsewhere = Some(Box::new((local, remote)));
            self.candidate = None;
        } else if confirmed || mutation!("followed_without_nat") {
            //= RFC 7296 2.23 SHOULD 15: a peer behind a NAT is followed
            self.path.remote = remote;
            //= RFC 7296 2.23 SHOULD 16: the new address is kept
            self.peer_moved = true;
            self.candidate = None;
        //= RFC 4555 3.8 MUST NOT 4: nothing moves without UPDATE_SA_ADDRESSES
        } else if self.following != Following::Update || mutation!("followed_without_update") {
            self.set_candidate(remote);
        }
    }
}
