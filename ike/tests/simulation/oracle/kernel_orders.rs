//! Compares the SAs that an end installs in its kernel with those that it negotiated. An SA must be
//! installed before the response that creates it is sent. Its SPIs, keys and selectors must be the
//! negotiated ones. No packet may be sent with an SA that has ended.

use std::time::Duration;

use edge_ike::config::Mode;
use edge_ike::event::DownReason;
use edge_ike::{ChildId, ChildSa, Event, IkeId, OutboundSwitch};

use super::ike_sa::IkeSa;
use super::node::Node;
use super::octets::{Selector, Spis};
use super::{Cause, Judged, Step, broken, require};

/// Time for which received ESP counts as evidence that the peer is alive.
const ESP_COUNTS: Duration = Duration::from_secs(2);
/// Minimum time for which a request is repeated while ESP arrives.
const REPEATED_WITH_ESP: Duration = Duration::from_secs(60);

fn spis(ike: &IkeId) -> Spis {
    (ike.initiator, ike.responder)
}

impl Node {
    /// Records that the lifetime of a CHILD_SA has ended, before the messages of the same step are
    /// judged, since they depend on it.
    pub fn note_expiry(&mut self, event: &Event) {
        if let Event::ChildDown { child, reason: DownReason::Expired, .. } = event
            && let Some(child) = self.children.get_mut(&child.0)
        {
            child.expired = true;
        }
    }

    /// Judges an event.
    pub fn ordered(&mut self, event: &Event, step: &Step<'_>) -> Judged {
        match event {
            Event::IkeUp { ike, initiator, .. } => {
                if self.is_blind() {
                    // The rekey of an IKE SA that the oracle cannot decrypt creates another one
                    // that it cannot decrypt.
                    let unread = || IkeSa::new(spis(ike), *initiator, None, (0, 0));
                    self.sas.entry(spis(ike)).or_insert_with(unread);
                }
                let Some(sa) = self.sas.get_mut(&spis(ike)) else {
                    broken!("RFC 7296 1.2", "an IKE SA {:x?} is up that nobody negotiated", spis(ike));
                };
                require!(!sa.up, "RFC 7296 1.2", "an IKE SA is up twice");
                require!(sa.initiator == *initiator, "RFC 7296 2.2", "the original initiator is the other end");
                require!(sa.peer_proof != Some(false), "RFC 7296 2.15", "the peer is let in without proof");
                require!(
                    sa.redundant_to.is_none(),
                    "RFC 7296 2.8.2",
                    "an IKE SA is up that has the lowest nonce of two rekeys"
                );
                sa.up = true;
                let keys = sa.keys.as_ref().filter(|_| sa.init.is_some()).map(|keys| keys.encryption.clone());
                for key in keys.iter().flatten() {
                    self.use_key(key)?;
                }
            }
            Event::IkeDown { ike, reason, .. } => {
                if *reason == DownReason::Timeout {
                    self.judge_death(spis(ike), step.at)?;
                }
                self.close(spis(ike));
            }
            Event::IkeReplaced { old: ike, .. } => self.close(spis(ike)),
            Event::ChildUp { peer, child, replaces } => {
                self.install(child)?;
                self.judge_replacement(*replaces, child)?;
                self.switched_to.insert((peer.clone(), child.purpose.clone()), child.inbound_spi);
            }
            Event::ChildRekeyed { peer, old, new, switch } => {
                self.install(new)?;
                self.judge_replacement(Some(*old), new)?;
                if *switch == OutboundSwitch::Now {
                    self.switched_to.insert((peer.clone(), new.purpose.clone()), new.inbound_spi);
                }
            }
            Event::OutboundSwitch { peer, old, new } => {
                self.judge_replacement(Some(*old), new)?;
                self.switched_to.insert((peer.clone(), new.purpose.clone()), new.inbound_spi);
            }
            Event::ChildDown { child, .. } => {
                if let Some(child) = self.children.get_mut(&child.0) {
                    child.installed = false;
                }
            }
            Event::PeerMoved { children, remote, .. } => {
                self.judge_move(children, *remote)?;
                let moved = children.iter().filter_map(|child| self.sas.get(&self.children.get(&child.0)?.ike));
                let mut strayed =
                    moved.filter(|sa| sa.mobike.is_none() && !sa.remotes.contains(remote) && !sa.remotes.is_empty());
                //= RFC 7296 2.23 MUST 7: a NAT means encapsulation
                //= RFC 7296 2.23 REQUIRED 18: old messages move nothing
                require!(
                    matches!(step.cause, Cause::Owner) || strayed.next().is_none(),
                    "RFC 7296 2.23",
                    "the peer is followed to {remote}, from where no new authentic message came through a NAT"
                );
            }
            Event::AgentNotification { .. }
            | Event::PeerSilent { .. }
            | Event::PeerHeard { .. }
            | Event::PeerFailed { .. }
            | Event::Refused { .. } => {}
        }
        Ok(())
    }

    /// Judges whether the node may consider the peer dead. The node may do this only if neither
    /// responses nor ESP arrive, and a request may be repeated for a minute.
    fn judge_death(&self, spis: Spis, at: Duration) -> Judged {
        let begun = self.sas.get(&spis).and_then(|sa| sa.own.as_ref()).map(|own| own.first_sent);
        //= RFC 7296 2.4 MUST 4: a failure is silence or INITIAL_CONTACT
        require!(
            begun.is_none_or(|begun| at >= begun + REPEATED_WITH_ESP)
                || self.last_esp(spis).is_none_or(|came| at >= came + ESP_COUNTS),
            "RFC 7296 2.4",
            "an IKE SA is given up while ESP of the peer arrives: any cryptographically protected message is proof of liveness"
        );
        Ok(())
    }

    /// Returns the time at which ESP of an IKE SA's CHILD_SAs last arrived.
    pub fn last_esp(&self, spis: Spis) -> Option<Duration> {
        self.sas.get(&spis).and_then(|sa| sa.esp_received)
    }

    fn install(&mut self, sa: &ChildSa) -> Judged {
        let Some(child) = self.children.get_mut(&sa.inbound_spi) else {
            if self.sas.get(&spis(&sa.ike)).is_some_and(|sa| sa.keys.is_none()) {
                return Ok(()); // The oracle could not read its negotiation.
            }
            broken!("RFC 7296 1.3", "{:x} is installed, which nobody negotiated", sa.inbound_spi);
        };
        require!(!child.was_installed, "RFC 7296 1.3", "{:x} is installed twice", child.own);
        require!(
            (sa.outbound_spi, sa.esn, sa.initiator) == (child.peer, child.esn, child.ours),
            "RFC 7296 2.17",
            "{:x} is installed with the outbound SPI {:x}, ESN {}, initiator {}: {child:x?}",
            sa.inbound_spi,
            sa.outbound_spi,
            sa.esn,
            sa.initiator
        );
        //= RFC 7296 1.3.1 MUST 1: USE_TRANSPORT_MODE in the response
        require!(
            (sa.mode == Mode::Transport) == child.transport,
            "RFC 7296 1.3.1",
            "{:x} is installed in {:?} mode, which was not negotiated",
            child.own,
            sa.mode
        );
        if let Some((inbound, outbound)) = &child.keys {
            //= RFC 7296 2.17 MUST 1: keys of the initiator's direction first
            //= RFC 7296 2.17 REQUIRED 3: KEYMAT
            require!(
                sa.inbound_key.expose() == inbound && sa.outbound_key.expose() == outbound,
                "RFC 7296 2.17",
                "{:x} is installed with other keys than KEYMAT",
                child.own
            );
        }
        if child.transport {
            let ends = (vec![sa.local.ip().into()], vec![sa.remote.ip().into()]);
            //= RFC 7296 2.23.1 REQUIRED 5: the addresses are substituted first
            require!(
                (&sa.local_selectors, &sa.remote_selectors) == (&ends.0, &ends.1),
                "RFC 7296 2.23.1",
                "transport mode of {:?} and {:?} between {ends:?}",
                sa.local_selectors,
                sa.remote_selectors
            );
            //= RFC 7296 2.23.1 MUST 3: our address as we see it
            //= RFC 7296 2.23.1 MUST 4: the peer's address as we see it
            require!(
                child.asked.is_none_or(|asked| asked == (sa.local.ip(), sa.remote.ip())),
                "RFC 7296 2.23.1",
                "transport mode is asked for between {:?}, and IKE runs between {ends:?}",
                child.asked
            );
        }
        let sides = [(&sa.local_selectors, &child.selectors.0), (&sa.remote_selectors, &child.selectors.1)];
        for (installed, negotiated) in sides.into_iter().filter(|_| !child.transport) {
            let within = installed.iter().all(|network| {
                let (first, last) = (network.network(), network.broadcast());
                let network = Selector { protocol: 0, ports: (0, u16::MAX), addresses: (first, last) };
                negotiated.iter().any(|selector| network.within(selector))
            });
            require!(within, "RFC 7296 2.9", "{installed:?} are installed, {negotiated:?} were negotiated");
        }
        child.installed = true;
        child.was_installed = true;
        self.judge_destination(spis(&sa.ike), sa.remote)?;
        Ok(())
    }

    /// Checks that an SA that replaces another is for the same traffic, which the selectors define
    /// (2.9).
    fn judge_replacement(&self, old: Option<ChildId>, new: &ChildSa) -> Judged {
        let old = old.and_then(|old| self.children.get(&old.0));
        let new = self.children.get(&new.inbound_spi);
        let (Some(old), Some(new)) = (old, new) else { return Ok(()) };
        require!(
            old.is_like(new),
            "RFC 7296 2.9",
            "{:x} takes the packets of {:x}, which has other selectors: {:?}",
            new.own,
            old.own,
            old.selectors
        );
        Ok(())
    }

    /// Judges the SAs with which the node sends after this step. SAs that were replaced or removed
    /// in the step do not count.
    pub fn judge_switches(&mut self) -> Judged {
        for own in std::mem::take(&mut self.switched_to).into_values() {
            let Some(child) = self.children.get(&own).filter(|child| child.installed) else { continue };
            //= RFC 7296 1.4.1 MUST 3: the named SAs are closed
            require!(!child.dead, "RFC 7296 1.4.1", "{own:x} is sent with, which is deleted");
            require!(self.survivor(child).is_none(), "RFC 7296 2.8.1", "{own:x} is sent with, which is redundant");
        }
        Ok(())
    }

    /// Checks that the SAs for which the node sent a response in this step are installed, since the
    /// peer may use them immediately.
    pub fn judge_installed(&mut self, step: &Step<'_>) -> Judged {
        for own in std::mem::take(&mut self.to_be_installed) {
            let child = self.children.get(&own);
            //= RFC 7296 2.8 MUST 10: ready before the response
            require!(
                child.is_none_or(|child| child.was_installed || child.dead),
                "RFC 7296 2.8",
                "{own:x} is answered for at {:?} before it is installed",
                step.at
            );
        }
        Ok(())
    }
}
