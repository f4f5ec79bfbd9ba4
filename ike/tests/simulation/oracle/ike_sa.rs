//! Judges one IKE SA at one end: message IDs and windows (RFC 7296 2.2, 2.3), retransmission (2.1),
//! fragments (RFC 7383), and the nonces of the cipher.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::keys::{Keys, Opened};
use super::mobike::{Mobike, changes_addresses};
use super::octets::{Header, Message, Spis, chain};
use super::window::{Answer, Window};
use super::{Cause, Judged, broken, require};

/// The IKE_SA_INIT exchange as seen by one end.
#[derive(Debug, Clone)]
pub struct Init {
    pub nonces: (Vec<u8>, Vec<u8>),
    pub request: Vec<u8>,
    pub response: Vec<u8>,
}

/// Maximum time for which received ESP may count as evidence that the peer is alive.
const ESP_COUNTS_AT_MOST: Duration = Duration::from_secs(5);

/// The exchange that created an IKE SA in place of another.
#[derive(Debug, Clone)]
pub struct IkeRekey {
    pub old: Spis,
    /// Whether we initiated the exchange.
    pub ours: bool,
    pub lowest_nonce: Vec<u8>,
    pub at: Duration,
}

/// A request from the node whose response has not arrived.
#[derive(Debug, Clone)]
pub struct OwnRequest {
    pub header: Header,
    /// The decrypted request. `None` if the oracle does not have the keys.
    pub message: Option<Message>,
    /// The CHILD_SA created by the peer's simultaneous rekey of the same CHILD_SA.
    pub collision: Option<u32>,
    /// The IKE SA created by the peer's simultaneous rekey of the same IKE SA.
    pub ike_collision: Option<Spis>,
    /// The peer's SPIs of CHILD_SAs that this end does not know and that the peer has deleted since
    /// the request was sent.
    pub deleted: BTreeSet<u32>,
    datagrams: Vec<Vec<u8>>,
    /// All addresses to which the request was sent.
    pub sent_to: BTreeSet<SocketAddr>,
    /// Our and the peer's addresses in the last transmission.
    last_sent_to: BTreeSet<(SocketAddr, SocketAddr)>,
    pub first_sent: Duration,
    last_sent: Duration,
    last_wait: Option<Duration>,
}

/// The meaning of a datagram for an IKE SA.
#[derive(Debug, Clone)]
pub enum Received {
    /// The datagram is not authentic, is old, is outside the window, or is part of an incomplete
    /// message.
    Nothing,
    /// A request with this message ID that was answered before was received again.
    Repeated(u32),
    /// The peer's next request.
    Request(Header, Option<Message>),
    /// The response to our request.
    Response(Box<OwnRequest>, Option<Message>),
}

/// One IKE SA at one end.
#[derive(Debug, Clone)]
pub struct IkeSa {
    pub spis: Spis,
    /// Whether this end is the original initiator of the IKE SA.
    pub initiator: bool,
    /// The keys. `None` if the oracle does not know the secret of the key exchange.
    pub keys: Option<Keys>,
    /// The IKE_SA_INIT exchange. `None` if a rekey created the IKE SA.
    pub init: Option<Init>,
    /// Other responses that lead to the same keys: a corrupted one, and the intact one.
    pub other_inits: Vec<Init>,
    /// The address from which the IKE_SA_INIT request came.
    pub begun_from: Option<SocketAddr>,
    /// Whether the peer announced IKEV2_FRAGMENTATION_SUPPORTED.
    pub fragments: bool,
    pub peer_behind_nat: bool,
    /// The addresses to which requests may be sent: the first one, and those from which new
    /// authentic messages came through a NAT (2.23).
    pub remotes: BTreeSet<SocketAddr>,
    /// The MOBIKE state. `None` if one of the ends does not support MOBIKE.
    pub mobike: Option<Mobike>,
    /// Whether the peer's newest message changes its addresses.
    addresses_changed: bool,
    pub own: Option<Box<OwnRequest>>,
    /// The body of the peer's ID payload.
    pub peer_identity: Option<Vec<u8>>,
    /// The internal addresses that the node has given the peer, as attributes: type and value.
    pub given_addresses: Vec<(u16, Vec<u8>)>,
    /// Whether the peer's AUTH is correct. `None` if this is unknown.
    pub peer_proof: Option<bool>,
    /// The rekey that created the IKE SA.
    pub rekey: Option<IkeRekey>,
    /// The survivor of a collision in which this IKE SA is the redundant one.
    pub redundant_to: Option<Spis>,
    /// Whether DELETE for the IKE SA was sent.
    pub deleting: bool,
    /// When the IKE SA may be rekeyed again after TEMPORARY_FAILURE.
    pub rekey_after: Duration,
    /// When ESP of one of its CHILD_SAs was last reported as received. ESP is proof of liveness for
    /// the IKE SA to which the CHILD_SA belonged then (2.4).
    pub esp_received: Option<Duration>,
    /// Whether the IKE SA was reported up.
    pub up: bool,
    /// Whether the IKE SA was reported down, or deleted by either end.
    pub closed: bool,
    next_own: u32,
    next_peer: u32,
    pub window: Window,
    /// The request to which a response came that the oracle cannot read. If that response was
    /// corrupted on its way, the request goes on.
    answered_unread: Option<Box<OwnRequest>>,
    /// Fragments of the peer's next request, and of the response to ours: by fragment number, with
    /// the total.
    parts: [BTreeMap<u16, (u16, Opened)>; 2],
    first_datagram: Vec<u8>,
}

impl IkeSa {
    pub fn new(spis: Spis, initiator: bool, keys: Option<Keys>, first_ids: (u32, u32)) -> Self {
        Self {
            spis,
            initiator,
            keys,
            init: None,
            other_inits: Vec::new(),
            begun_from: None,
            fragments: false,
            peer_behind_nat: false,
            remotes: BTreeSet::new(),
            mobike: None,
            addresses_changed: false,
            own: None,
            peer_identity: None,
            given_addresses: Vec::new(),
            peer_proof: None,
            rekey: None,
            redundant_to: None,
            deleting: false,
            rekey_after: Duration::ZERO,
            esp_received: None,
            up: false,
            closed: false,
            next_own: first_ids.0,
            next_peer: first_ids.1,
            window: Window::default(),
            answered_unread: None,
            parts: [BTreeMap::new(), BTreeMap::new()],
            first_datagram: Vec::new(),
        }
    }

    /// Returns the message ID of the peer's next request.
    pub fn next_peer(&self) -> u32 {
        self.next_peer
    }

    /// Handles a datagram from the peer.
    pub fn receive(&mut self, header: &Header, datagram: &[u8], local: SocketAddr, from: SocketAddr) -> Received {
        if header.initiator_flag() == self.initiator || header.version >> 4 != 2 {
            return Received::Nothing;
        }
        if header.response() {
            if self.own.as_ref().is_none_or(|own| own.header.id != header.id) {
                return Received::Nothing;
            }
        } else if header.id < self.next_peer {
            return self.window.answer_to(datagram).map_or(Received::Nothing, |answer| Received::Repeated(answer.id));
        } else if header.id != self.next_peer {
            if self.window.may_hold(header.id, self.next_peer) {
                self.window.hold(header, datagram, local, from);
            }
            return Received::Nothing;
        }
        let message = match self.reassemble(header, datagram) {
            Some(message) => message,
            None => return Received::Nothing,
        };
        self.addresses_changed = self.mobike.is_some() && message.as_ref().is_some_and(changes_addresses);
        let follows = self.mobike.as_ref().map_or(self.peer_behind_nat, |mobike| mobike.follows(message.as_ref()));
        if follows || self.remotes.is_empty() {
            self.remotes.insert(from);
        }
        if header.response() {
            match self.own.take() {
                Some(own) => {
                    self.answered_unread = self.keys.is_none().then(|| own.clone());
                    Received::Response(own, message)
                }
                None => Received::Nothing,
            }
        } else {
            Received::Request(*header, message)
        }
    }

    /// Returns the message when all its parts have arrived. The inner value is `None` if the oracle
    /// does not have the keys.
    fn reassemble(&mut self, header: &Header, datagram: &[u8]) -> Option<Option<Message>> {
        let Some(keys) = &self.keys else {
            self.first_datagram = datagram.to_vec();
            return Some(None);
        };
        let opened = keys.open(!self.initiator, datagram)?;
        let (first, inner) = match opened.fragment {
            None => {
                self.first_datagram = datagram.to_vec();
                (opened.first, opened.inner)
            }
            Some((number, total)) => {
                if number == 1 {
                    self.first_datagram = datagram.to_vec();
                }
                let parts = &mut self.parts[usize::from(header.response())];
                // RFC 7383 2.6: a larger total means that the peer starts the message again.
                if parts.values().any(|(known, _)| *known < total) {
                    parts.clear();
                }
                if parts.values().any(|(known, _)| *known > total) {
                    return None;
                }
                parts.entry(number).or_insert((total, opened));
                if parts.len() < usize::from(total) {
                    return None;
                }
                let parts = std::mem::take(parts);
                let first = parts.get(&1)?.1.first;
                (first, parts.into_values().flat_map(|(_, part)| part.inner).collect())
            }
        };
        Some(chain(first, &inner).ok().map(|payloads| Message { header: *header, payloads }))
    }

    /// Judges the unencrypted part of a sent message, and parses the message.
    pub fn read_sent(&self, sent: &[&[u8]], header: &Header, limit: usize) -> Judged<Option<Message>> {
        //= RFC 7296 2.5 MUST 5: answers have the request's version
        //= RFC 7296 3.1 MUST 5: major version 2
        //= RFC 7296 3.1 MUST 8: minor version 0
        require!(header.version == 0x20, "RFC 7296 3.1", "version {:x} of a message", header.version);
        //= RFC 7296 3.1 MUST 10: unknown flags are clear
        //= RFC 7296 3.1 MUST 15: the Version flag is clear
        require!(header.flags & !0x28 == 0, "RFC 7296 3.1", "flags {:02x}: unknown ones must be clear", header.flags);
        //= RFC 7296 3.1 MUST 17: the Initiator flag of the initiator
        //= RFC 7296 3.1 MUST 18: none of the responder
        require!(
            header.initiator_flag() == self.initiator,
            "RFC 7296 3.1",
            "the Initiator flag is not that of the original initiator"
        );
        if sent.len() > 1 {
            require!(self.fragments, "RFC 7383 2.3", "fragments to a peer that does not support them");
        }
        if self.fragments && limit >= 256 {
            for datagram in sent {
                require!(datagram.len() <= limit, "RFC 7383 2.5.1", "{} octets, at most {limit}", datagram.len());
            }
        }
        let Some(keys) = &self.keys else {
            return Ok(None);
        };
        let (mut inner, mut first) = (Vec::new(), 0);
        for (number, datagram) in (1_u16..).zip(sent) {
            let Some(opened) = keys.open(self.initiator, datagram) else {
                //= RFC 7296 2.14 REQUIRED 2: SKEYSEED
                broken!("RFC 7296 2.14", "message {} is not encrypted with the keys of 2.14", header.id);
            };
            let expected = (sent.len() > 1).then_some((number, u16::try_from(sent.len()).unwrap_or(0)));
            require!(opened.fragment == expected, "RFC 7383 2.5", "fragment {:?}, not {expected:?}", opened.fragment);
            if number == 1 {
                first = opened.first;
            } else {
                require!(opened.first == 0, "RFC 7383 2.5", "a later fragment names a first payload");
            }
            inner.extend_from_slice(&opened.inner);
        }
        match chain(first, &inner) {
            Ok(payloads) => {
                let flagged = payloads.iter().find(|payload| payload.flags != 0);
                //= RFC 7296 2.5 MUST 7: RESERVED is zero
                //= RFC 7296 2.5 MUST NOT 13: no critical flag in responses
                //= RFC 7296 3.2 MUST 1: critical is zero to be skipped
                //= RFC 7296 3.2 MUST 4: critical is zero for the RFC's types
                //= RFC 7296 3.12 MUST 2: a vendor ID is not critical
                //= RFC 7296 3.2 MUST 6: reserved bits are zero
                require!(flagged.is_none(), "RFC 7296 3.2", "critical or reserved bits are set in {flagged:?}");
                Ok(Some(Message { header: *header, payloads }))
            }
            Err(what) => {
                broken!("RFC 7296 3.2", "{what} of a message of our own is wrong");
            }
        }
    }

    /// Judges a request that the node sends, which is new or a retransmission. Returns true if it
    /// is new.
    #[allow(clippy::too_many_arguments)]
    pub fn send_request(
        &mut self,
        header: &Header,
        message: Option<&Message>,
        datagrams: &[&[u8]],
        (local, remote): (SocketAddr, SocketAddr),
        at: Duration,
        cause: Cause<'_>,
        last_esp: Option<Duration>,
    ) -> Judged<bool> {
        if self.remotes.is_empty() {
            self.remotes.insert(remote);
        }
        //= RFC 7296 2.23 MUST 4: port 4500 behind a NAT
        //= RFC 7296 2.23 MUST 12: the initiator moves to port 4500
        let announced = self.mobike.as_ref().is_some_and(|mobike| mobike.announced.contains(&remote.ip()));
        require!(
            // The oracle does not see UPDATE_SA_ADDRESSES that it cannot read.
            self.remotes.contains(&remote) || announced || self.keys.is_none(),
            "RFC 7296 2.23",
            "a request goes to {remote}, from where no new authentic message came through a NAT ({:?})",
            self.remotes
        );
        if self.own.is_none() {
            let again = |own: &mut Box<OwnRequest>| own.header.id == header.id && own.datagrams == datagrams;
            self.own = self.answered_unread.take_if(again);
        }
        if let Some(own) = &mut self.own {
            //= RFC 7296 2.3 MUST 2: one request at a time
            //= RFC 7296 2.3 MUST NOT 4: within the peer's window
            //= RFC 7296 2.3 MUST 5: wait for the window
            require!(
                own.header.id == header.id,
                "RFC 7296 2.3",
                "request {} while {} has no response: the window is one",
                header.id,
                own.header.id
            );
            //= RFC 7296 2.1 MUST 8: the same octets again
            //= RFC 7296 2.3 MUST 6: a copy of the request
            require!(own.datagrams == datagrams, "RFC 7296 2.1", "request {} again with other octets", header.id);
            // A copy to one more address is not a retransmission: it tests whether the peer has
            // moved to that address.
            let more =
                own.last_sent == at && !matches!(cause, Cause::Owner) && own.last_sent_to.insert((local, remote));
            // The retransmission intervals start again.
            //= RFC 4555 3.5 REQUIRED 4: outstanding requests use the new addresses
            if self.mobike.is_some()
                && !more
                && (self.addresses_changed || !own.last_sent_to.contains(&(local, remote)))
            {
                own.sent_to.insert(remote);
                (own.last_sent, own.last_wait, own.last_sent_to) = (at, None, BTreeSet::from([(local, remote)]));
                return Ok(false);
            }
            if own.sent_to.insert(remote) || more {
                return Ok(false);
            }
            require!(
                !matches!(cause, Cause::Received(..)),
                "RFC 7296 2.1",
                "request {} again before its time is over",
                header.id
            );
            if matches!(cause, Cause::Timer(Duration::ZERO)) {
                let wait = at.saturating_sub(own.last_sent);
                // If ESP arrives in the meantime, transmissions continue after the last configured
                // one, at the same interval.
                let esp_came = last_esp.is_some_and(|came| at < came + ESP_COUNTS_AT_MOST);
                let grows = own.last_wait.is_none_or(|last| wait > last || (esp_came && wait >= last));
                //= RFC 7296 2.4 MUST 6: waits double
                require!(
                    grows,
                    "RFC 7296 2.1",
                    "request {} again after {wait:?}, and before that after {:?}: waits must grow",
                    header.id,
                    own.last_wait
                );
                own.last_wait = Some(wait);
            } else {
                own.last_wait = None;
            }
            own.last_sent = at;
            own.last_sent_to = BTreeSet::from([(local, remote)]);
            return Ok(false);
        }
        //= RFC 7296 2.2 MUST 1: the same message ID again
        //= RFC 7296 2.2 REQUIRED 3: message IDs begin at 0
        //= RFC 7296 2.18 MUST 4: message IDs begin at 0 again
        require!(header.id == self.next_own, "RFC 7296 2.2", "request {} where {} is next", header.id, self.next_own);
        self.next_own += 1;
        self.own = Some(Box::new(OwnRequest {
            header: *header,
            message: message.cloned(),
            collision: None,
            ike_collision: None,
            deleted: BTreeSet::new(),
            datagrams: datagrams.iter().map(|datagram| datagram.to_vec()).collect(),
            sent_to: BTreeSet::from([remote]),
            last_sent_to: BTreeSet::from([(local, remote)]),
            first_sent: at,
            last_sent: at,
            last_wait: None,
        }));
        self.parts[1].clear();
        Ok(true)
    }

    /// Judges a response that the node sends for the first time.
    pub fn send_response(&mut self, header: &Header, request: &Header, datagrams: &[&[u8]], at: Duration) -> Judged {
        //= RFC 7296 2.2 REQUIRED 4: the response has the request's ID
        require!(
            header.id == request.id && header.exchange == request.exchange,
            "RFC 7296 2.2",
            "response {} in exchange {} to request {} in exchange {}",
            header.id,
            header.exchange,
            request.id,
            request.exchange
        );
        self.next_peer += 1;
        self.parts[0].clear();
        let datagrams = datagrams.iter().map(|datagram| datagram.to_vec()).collect();
        let first_datagram = std::mem::take(&mut self.first_datagram);
        self.window.answered(Answer { id: header.id, first_datagram, datagrams, at });
        Ok(())
    }

    /// Judges a response that the node sends again.
    pub fn send_response_again(&self, header: &Header, datagrams: &[&[u8]]) -> Judged {
        let same = self.window.answer(header.id).is_some_and(|answer| answer.datagrams == datagrams);
        //= RFC 7296 2.3 MUST 7: a copy of the response
        require!(same, "RFC 7296 2.1", "response {} again with other octets", header.id);
        Ok(())
    }
}
