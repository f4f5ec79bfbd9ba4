//! Judges CHILD_SAs at one end: negotiation (RFC 7296 1.3, 2.7, 2.9, 2.17), rekeys and their
//! collisions (2.8, 2.8.1, 2.25). `child_deletion` judges deletions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use edge_ike::Event;

use super::auth::rekeys_ike;
use super::ike_sa::OwnRequest;
use super::init::{self, chosen};
use super::keys::esp_key_len;
use super::node::Node;
use super::octets::{Message, PROTOCOL_ESP, Payload, Selector, Spis, exchange, notify, payload};
use super::{Cause, Judged, RekeyAge, Shared, Step, broken, require};

/// Minimum time for which an end waits before it deletes an SA that the peer should delete.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Minimum time before an end may repeat a request after TEMPORARY_FAILURE.
const TEMPORARY_FAILURE_WAIT: Duration = Duration::from_millis(100);

/// The transform types of 3.3.2.
const KEY_EXCHANGE: u8 = 4;
const SEQUENCE_NUMBERS: u8 = 5;

/// A CHILD_SA at one end.
#[derive(Debug, Clone)]
pub struct Child {
    /// The IKE SA to which the CHILD_SA belongs.
    pub ike: Spis,
    /// Our inbound SPI.
    pub own: u32,
    /// The peer's inbound SPI.
    pub peer: u32,
    /// Inbound and outbound keys. `None` if the oracle does not know the secret of the key
    /// exchange.
    pub keys: Option<(Vec<u8>, Vec<u8>)>,
    pub esn: bool,
    /// Whether we initiated the exchange that created the CHILD_SA.
    pub ours: bool,
    /// The selectors of our side, and those of the peer's side.
    pub selectors: (Vec<Selector>, Vec<Selector>),
    /// Whether the CHILD_SA is in transport mode (1.3.1).
    pub transport: bool,
    /// In transport mode, the addresses of our side and the peer's in our own request (2.23.1).
    pub asked: Option<(IpAddr, IpAddr)>,
    /// Whether the CHILD_SA is in the kernel.
    pub installed: bool,
    pub was_installed: bool,
    /// Whether the CHILD_SA was deleted by either end, or with its IKE SA.
    pub dead: bool,
    /// Whether its lifetime has ended (2.8). The node has removed it, and sends DELETE for it when
    /// the window is free.
    pub expired: bool,
    /// The survivor of a collision in which this CHILD_SA is the redundant one. [`Node::survivor`]
    /// checks whether it still exists.
    pub redundant_to: Option<u32>,
    /// When it was negotiated.
    pub(super) at: Duration,
    /// Our inbound SPI of the CHILD_SA that this one replaces.
    pub(super) replaces: Option<u32>,
    /// Whether the CHILD_SA to be replaced was already gone when this one was created.
    pub(super) late: bool,
    lowest_nonce: Vec<u8>,
    /// When the CHILD_SA may be rekeyed again after TEMPORARY_FAILURE.
    pub retry_after: Duration,
}

impl Child {
    /// Returns whether both are for the same traffic in the same mode, that is, whether the
    /// selectors of one are within those of the other.
    pub fn is_like(&self, other: &Self) -> bool {
        self.transport == other.transport && (self.kept_by(other) || other.kept_by(self))
    }

    /// Returns whether `new`, which replaces this CHILD_SA, has all of its selectors.
    fn kept_by(&self, new: &Self) -> bool {
        let within = |old: &[Selector], new: &[Selector]| old.iter().all(|old| new.iter().any(|new| old.within(new)));
        within(&self.selectors.0, &new.selectors.0) && within(&self.selectors.1, &new.selectors.1)
    }
}

/// Returns whether the node installs a new CHILD_SA in this step.
pub fn uses_new_child(step: &Step<'_>) -> bool {
    step.events.iter().any(|event| matches!(event, Event::ChildUp { .. } | Event::ChildRekeyed { .. }))
}

/// Replaces the addresses of selectors in transport mode, which each end sees differently behind a
/// NAT (2.23.1), by the unspecified one.
fn without_address(selectors: Vec<Selector>) -> Vec<Selector> {
    let unspecified = |address: IpAddr| -> IpAddr {
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
    };
    let replaced = |selector: Selector| {
        let address = unspecified(selector.addresses.0);
        Selector { addresses: (address, address), ..selector }
    };
    selectors.into_iter().map(replaced).collect()
}

impl Node {
    /// Returns the CHILD_SA that an exchange creates.
    #[allow(clippy::too_many_arguments)]
    pub fn negotiated(
        &mut self,
        spis: Spis,
        request: &Message,
        response: &Message,
        nonces: (&[u8], &[u8]),
        ours: bool,
        at: Duration,
        shared: &mut Shared,
    ) -> Judged<Child> {
        let proposal = chosen(request, response)?;
        let offer = request.proposals().into_iter().find(|offer| offer.number == proposal.number);
        let (first, second) = (offer.map_or(0, |offer| offer.spi32()), proposal.spi32());
        require!(
            proposal.protocol == PROTOCOL_ESP && first != 0 && second != 0,
            "RFC 7296 1.3",
            "SPIs {first:x} and {second:x} of protocol {}",
            proposal.protocol
        );
        let group = proposal.one(KEY_EXCHANGE).0;
        let secret = match response.key_exchange() {
            Some(theirs) => {
                let mine = request.key_exchange().unwrap_or_default();
                //= RFC 7296 3.3.6 MUST 13: NONE leaves KE out
                require!(
                    (mine.0, theirs.0) == (group, group),
                    "RFC 7296 1.3.1",
                    "groups {} and {}, {group} was chosen",
                    mine.0,
                    theirs.0
                );
                Some(shared.private_keys.secret(mine, theirs))
            }
            None => {
                require!(group == 0, "RFC 7296 1.3.1", "group {group} was chosen, and no key is exchanged");
                None
            }
        };
        let selectors = [payload::TS_INITIATOR, payload::TS_RESPONDER].map(|kind| {
            let (offered, narrowed) = (request.selectors(kind), response.selectors(kind));
            let within = narrowed.iter().all(|narrow| offered.iter().any(|wide| narrow.within(wide)));
            //= RFC 7296 2.9 REQUIRED 6: no more than was asked for
            require!(
                within && !narrowed.is_empty(),
                "RFC 7296 2.9",
                "selectors {narrowed:?} where {offered:?} were offered"
            );
            Ok(narrowed)
        });
        let [of_initiator, of_responder] = selectors;
        let (of_initiator, of_responder) = (of_initiator?, of_responder?);
        let [asked, granted] = [request, response].map(|message| message.notify(notify::USE_TRANSPORT_MODE).is_some());
        //= RFC 7296 1.3.1 MUST 1: USE_TRANSPORT_MODE in the response
        require!(asked || !granted, "RFC 7296 1.3.1", "transport mode is granted, and nobody asked for it");
        let one_address = |selectors: &[Selector]| {
            let Some(first) = selectors.first().map(|selector| selector.addresses) else { return false };
            first.0 == first.1 && selectors.iter().all(|selector| selector.addresses == first)
        };
        //= RFC 7296 2.23 MUST 14: one address each in transport mode
        require!(
            !granted || (one_address(&of_initiator) && one_address(&of_responder)),
            "RFC 7296 2.23",
            "transport mode between {of_initiator:?} and {of_responder:?}"
        );
        let addresses =
            |kind| request.selectors(kind).first().map(|selector: &Selector| selector.addresses.0).filter(|_| ours);
        let asked = addresses(payload::TS_INITIATOR).zip(addresses(payload::TS_RESPONDER)).filter(|_| granted);
        //= RFC 7296 2.23.1 REQUIRED 6: the response has the addresses of the request
        let [of_initiator, of_responder] =
            [of_initiator, of_responder].map(|of| if granted { without_address(of) } else { of });
        let keys = self.sas.get(&spis).and_then(|sa| sa.keys.clone());
        let keys = keys.filter(|_| secret != Some(None));
        let keys = keys.map(|keys| keys.child(esp_key_len(&proposal), secret.flatten().as_deref(), nonces));
        for key in keys.iter().flat_map(|(first, second)| [first, second]) {
            self.use_key(key)?;
        }
        let (own, peer, keys, selectors) = match ours {
            true => (first, second, keys.map(|(from_us, to_us)| (to_us, from_us)), (of_initiator, of_responder)),
            false => (second, first, keys, (of_responder, of_initiator)),
        };
        Ok(Child {
            ike: spis,
            own,
            peer,
            keys,
            esn: proposal.one(SEQUENCE_NUMBERS).0 == 1,
            ours,
            selectors,
            transport: granted,
            asked,
            installed: false,
            was_installed: false,
            dead: false,
            expired: false,
            redundant_to: None,
            at,
            replaces: None,
            late: false,
            lowest_nonce: nonces.0.min(nonces.1).to_vec(),
            retry_after: Duration::ZERO,
        })
    }

    pub(super) fn alive(&self, own: u32) -> Option<&Child> {
        self.children.get(&own).filter(|child| !child.dead)
    }

    /// Returns the CHILD_SA that makes `redundant` redundant (2.8.1), or the CHILD_SA that has
    /// since replaced it. Returns `None` if `redundant` is not redundant, or if the other CHILD_SA
    /// ended without a successor, so that only `redundant` is left.
    pub fn survivor(&self, redundant: &Child) -> Option<&Child> {
        let mut survivor = self.children.get(&redundant.redundant_to?)?;
        while survivor.dead || survivor.expired {
            let gone = survivor.own;
            survivor = self.children.values().find(|other| other.replaces == Some(gone))?;
        }
        Some(survivor).filter(|survivor| survivor.own != redundant.own)
    }

    /// Returns the node's inbound SPI of the CHILD_SA that the peer identifies by its own SPI.
    pub(super) fn named(&self, spis: Spis, peer: u32) -> Option<u32> {
        let mut of = self.children.values().filter(|child| child.ike == spis && child.peer == peer && !child.dead);
        of.next().map(|child| child.own)
    }

    /// Judges a new request from the node.
    pub fn requested(&mut self, spis: Spis, message: Option<&Message>, step: &Step<'_>) -> Judged {
        let Some(message) = message else { return Ok(()) };
        match message.header.exchange {
            exchange::IKE_AUTH => self.request_auth(spis, message, step),
            exchange::CREATE_CHILD_SA => {
                let closed = self.sas.get(&spis).is_none_or(|sa| sa.closed);
                //= RFC 7296 1.3.2 SHOULD NOT 2: nothing new on the old IKE SA
                //= RFC 7296 2.8 MUST 6: DELETE is the last request
                require!(!closed, "RFC 7296 2.25.2", "a CHILD_SA is asked for on an IKE SA that is gone");
                if rekeys_ike(message) {
                    return self.request_ike_rekey(spis, step);
                }
                let Some(own) = message.rekeys() else { return Ok(()) };
                let Some(child) = self.alive(own).filter(|child| child.ike == spis) else {
                    //= RFC 7296 1.3.3 REQUIRED 2: REKEY_SA names our inbound SPI
                    broken!("RFC 7296 1.3.3", "REKEY_SA names {own:x}, which is no inbound SPI of ours there");
                };
                //= RFC 7296 2.25 MUST 3: wait
                require!(
                    step.at >= child.retry_after || matches!(step.cause, Cause::Owner),
                    "RFC 7296 2.25",
                    "{own:x} is rekeyed again at once after TEMPORARY_FAILURE"
                );
                if matches!(step.cause, Cause::Timer(Duration::ZERO)) && child.retry_after.is_zero() {
                    self.rekey_ages.push(RekeyAge(step.at.saturating_sub(child.at)));
                }
                Ok(())
            }
            _ => {
                self.request_address_change(spis, message)?;
                let closing = message.deletes_ike_sa();
                let refuses = message.error() == Some(notify::AUTHENTICATION_FAILED);
                let unaccepted = self.sas.get(&spis).is_some_and(|sa| sa.initiator && !sa.up);
                // The deletion is no RFC's, but libreswan keeps its SAs without it.
                //= RFC 7296 2.21.2 REQUIRED 6: three notifications end the IKE SA
                require!(
                    !refuses || (closing && unaccepted),
                    "RFC 7296 2.21.2",
                    "AUTHENTICATION_FAILED is not from an initiator that deletes what it does not accept"
                );
                require!(
                    !closing || message.payloads.len() == 1 + usize::from(refuses),
                    "RFC 7296 1.4.1",
                    "more than the deletion of the IKE SA"
                );
                if closing {
                    self.judge_ike_deletion(spis, step)?;
                }
                for own in message.deleted_children() {
                    self.judge_deletion(spis, own, step.at)?;
                }
                Ok(())
            }
        }
    }

    /// Judges the node's response to a request from the peer.
    pub fn answered(
        &mut self,
        spis: Spis,
        request: &Message,
        answer: &Message,
        step: &Step<'_>,
        shared: &mut Shared,
    ) -> Judged {
        if request.header.exchange == exchange::IKE_AUTH {
            return self.answer_auth(spis, request, answer, step, shared);
        }
        if self.sas.get(&spis).is_none_or(|sa| sa.closed) {
            return Ok(());
        }
        match request.header.exchange {
            exchange::CREATE_CHILD_SA if rekeys_ike(request) => match answer.error() {
                Some(_) => Ok(()),
                None => self.ike_rekeyed(spis, request, answer, false, step.at, None, shared),
            },
            exchange::CREATE_CHILD_SA => self.answer_child(spis, request, answer, step, shared),
            _ => {
                self.answer_address_request(spis, request, answer, step)?;
                self.answer_deletion(spis, request, answer)
            }
        }
    }

    fn answer_child(
        &mut self,
        spis: Spis,
        request: &Message,
        answer: &Message,
        step: &Step<'_>,
        shared: &mut Shared,
    ) -> Judged {
        let old = request.rekeys().map(|peer| (peer, self.named(spis, peer)));
        if let Some(error) = answer.error() {
            if let Some((peer, None)) = old {
                let named = answer.notify(notify::CHILD_SA_NOT_FOUND).map(|notify| notify.spi);
                require!(
                    named == Some(peer.to_be_bytes().to_vec()) || error != notify::CHILD_SA_NOT_FOUND,
                    "RFC 7296 2.25",
                    "CHILD_SA_NOT_FOUND names {named:x?}, the request named {peer:x}"
                );
            }
            let there = old.and_then(|(_, old)| self.children.get(&old?)).filter(|child| !child.expired);
            let found = there.is_some() && error == notify::CHILD_SA_NOT_FOUND;
            require!(!found, "RFC 7296 2.25", "CHILD_SA_NOT_FOUND, although it is there");
            return Ok(());
        }
        let own_request = self.sas.get(&spis).and_then(|sa| sa.own.as_ref()?.message.clone());
        if let Some((peer, old)) = old {
            //= RFC 7296 2.25 SHOULD 5: CHILD_SA_NOT_FOUND
            require!(old.is_some(), "RFC 7296 2.25", "{peer:x} is rekeyed, which is gone: CHILD_SA_NOT_FOUND is due");
            let deleting =
                own_request.as_ref().zip(old).is_some_and(|(own, old)| own.deleted_children().contains(&old));
            //= RFC 7296 2.25.1 SHOULD 1: rekeyed while we close it
            require!(!deleting, "RFC 7296 2.25.1", "{peer:x} is rekeyed, while we delete it");
        }
        let closing = own_request.as_ref().is_some_and(Message::deletes_ike_sa);
        require!(!closing, "RFC 7296 2.25.2", "a CHILD_SA is made on an IKE SA that we delete");
        let rekeying = own_request.as_ref().is_some_and(rekeys_ike);
        //= RFC 7296 2.25.2 SHOULD 6: no CHILD_SA while we rekey the IKE SA
        require!(!rekeying, "RFC 7296 2.25.2", "a CHILD_SA is made on an IKE SA that we rekey");
        let nonces = (request.nonce().unwrap_or_default(), answer.nonce().unwrap_or_default());
        let mut child = self.negotiated(spis, request, answer, nonces, false, step.at, shared)?;
        child.replaces = old.and_then(|(_, old)| old);
        let replaced = child.replaces.and_then(|old| self.children.get(&old));
        //= RFC 7296 2.9.2 SHOULD 2: ask for what is in use
        //= RFC 7296 2.9.2 SHOULD NOT 4: no packet in a rekey
        require!(
            replaced.is_none_or(|old| old.kept_by(&child)),
            "RFC 7296 2.9.2",
            "a rekey narrows the selectors to {:?}",
            child.selectors
        );
        if let (Some(own), Some(old)) = (self.sas.get_mut(&spis).and_then(|sa| sa.own.as_mut()), child.replaces)
            && own.message.as_ref().and_then(Message::rekeys) == Some(old)
        {
            own.collision = Some(child.own);
        }
        self.to_be_installed.push(child.own);
        self.children.insert(child.own, child);
        Ok(())
    }

    /// Judges the node's handling of the response to its request.
    pub fn concluded(
        &mut self,
        spis: Spis,
        own: &OwnRequest,
        response: Option<&Message>,
        step: &Step<'_>,
        shared: &mut Shared,
    ) -> Judged {
        let (Some(request), Some(response)) = (own.message.as_ref(), response) else {
            return Ok(());
        };
        // 2.5: a response with an unknown critical payload is not accepted.
        let is_unknown = |payload: &Payload| payload.flags & 0x80 != 0 && payload.kind > payload::FRAGMENT;
        if request.header.exchange != exchange::INFORMATIONAL && response.payloads.iter().any(is_unknown) {
            return Ok(());
        }
        if request.header.exchange == exchange::IKE_AUTH {
            // An abandoned attempt does not accept a response.
            let taken = |event: &edge_ike::Event| matches!(event, edge_ike::Event::IkeUp { ike, .. } if (ike.initiator, ike.responder) == spis);
            return match step.events.iter().any(taken) {
                true => self.conclude_auth(spis, request, &own.sent_to, response, step, shared),
                false => Ok(()),
            };
        }
        self.conclude_address_request(spis, own, request, response);
        if rekeys_ike(request) {
            return match response.error() {
                Some(error) => {
                    if let Some(sa) = self.sas.get_mut(&spis).filter(|_| error == notify::TEMPORARY_FAILURE) {
                        sa.rekey_after = step.at + TEMPORARY_FAILURE_WAIT;
                    }
                    Ok(())
                }
                // The node cannot use what the peer has created.
                None if !step.events.iter().any(|event| matches!(event, Event::IkeUp { .. }))
                    && (init::chosen(request, response).is_err() || response.nonce().is_none()) =>
                {
                    Ok(())
                }
                None => self.ike_rekeyed(spis, request, response, true, step.at, own.ike_collision, shared),
            };
        }
        if self.sas.get(&spis).is_none_or(|sa| sa.closed) {
            return Ok(());
        }
        if request.header.exchange == exchange::INFORMATIONAL {
            if request.deletes_ike_sa() {
                self.close(spis);
            }
            for own in request.deleted_children() {
                self.children.entry(own).and_modify(|child| child.dead = true);
            }
            return Ok(());
        }
        self.conclude_child(spis, own, request, response, step, shared)
    }

    fn conclude_child(
        &mut self,
        spis: Spis,
        own: &OwnRequest,
        request: &Message,
        response: &Message,
        step: &Step<'_>,
        shared: &mut Shared,
    ) -> Judged {
        let old = request.rekeys();
        if let Some(error) = response.error() {
            if let Some(old) = old.and_then(|old| self.children.get_mut(&old)) {
                match error {
                    // 2.25, 2.25.2: the peer refuses because of an operation on this IKE SA. If the
                    // CHILD_SA has moved to another one, its rekey there is another operation.
                    notify::TEMPORARY_FAILURE if old.ike == spis => {
                        old.retry_after = step.at + TEMPORARY_FAILURE_WAIT;
                    }
                    // If the peer has rekeyed the CHILD_SA meanwhile, its DELETE has not arrived
                    // yet. If the CHILD_SA has moved to another IKE SA, the peer looked for it on
                    // this one, which may be the redundant one of two rekeys (2.8.2).
                    notify::CHILD_SA_NOT_FOUND if own.collision.is_none() && old.ike == spis => old.dead = true,
                    _ => {}
                }
            }
            return Ok(());
        }
        let nonces = (request.nonce().unwrap_or_default(), response.nonce().unwrap_or_default());
        let mut child = match self.negotiated(spis, request, response, nonces, true, step.at, shared) {
            // The peer has created what was not offered. The node may only delete it.
            Err(_) if !uses_new_child(step) => {
                let offer = request.proposals().into_iter().next();
                self.unusable.extend(offer.map(|offer| offer.spi32()));
                return Ok(());
            }
            judged => judged?,
        };
        child.replaces = old;
        child.late = old.is_some_and(|old| self.alive(old).is_none());
        child.dead = own.deleted.contains(&child.peer);
        // 2.8.1: the SA that was created with the lowest of the four nonces is the redundant one.
        // The nonces of the two exchanges decide, even if the other SA has been replaced since.
        if let Some(rival) = own.collision.and_then(|rival| self.children.get_mut(&rival)) {
            if child.lowest_nonce < rival.lowest_nonce {
                child.redundant_to = Some(rival.own);
            } else {
                rival.redundant_to = Some(child.own);
            }
        }
        self.children.insert(child.own, child);
        Ok(())
    }

    pub fn judge_children_at_rest(&self) -> Judged {
        let stays = |child: &&Child| !child.dead && !self.sas.get(&child.ike).is_some_and(|sa| sa.deleting);
        for child in self.children.values().filter(stays) {
            require!(
                self.survivor(child).is_none(),
                "RFC 7296 2.8.1",
                "{:x} is redundant, and nobody deleted it",
                child.own
            );
            let replaced = self.children.values().find(|other| !other.dead && other.replaces == Some(child.own));
            //= RFC 7296 2.8 REQUIRED 3: the old CHILD_SA is deleted
            require!(replaced.is_none(), "RFC 7296 2.8", "{:x} was replaced, and nobody deleted it", child.own);
            require!(child.installed, "RFC 7296 1.3", "{:x} is not in the kernel, and nobody deleted it", child.own);
            let beside = |other: &&Child| other.ike == child.ike && other.own != child.own;
            let double = self.children.values().filter(stays).filter(beside).find(|other| other.is_like(child));
            //= RFC 7296 2.8 SHOULD NOT 4: an equivalent CHILD_SA
            require!(
                double.is_none(),
                "RFC 7296 2.8",
                "{:x} and {:x} are for the same traffic, and nobody deleted one of them",
                child.own,
                double.map_or(0, |double| double.own)
            );
        }
        Ok(())
    }
}
