//! Judges IKE_SA_INIT (RFC 7296 1.2, 1.3): cookies (2.6), half-open IKE SAs, changes of the key
//! exchange method, and NAT detection (2.23).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ring::digest;

use super::ike_sa::{IkeSa, Init};
use super::keys::{Keys, Suite};
use super::node::{Effect, Node, Sent};
use super::octets::{
    FLAG_INITIATOR, FLAG_RESPONSE, HEADER_LEN, Header, Message, Payload, Proposal, Spis, chain, notify, payload,
};
use super::{Judged, Shared, broken, require};

/// Time for which a responder keeps an IKE SA half-open.
const HALF_OPEN_LIFETIME: Duration = Duration::from_secs(30);

/// The node's IKE_SA_INIT request to one address.
#[derive(Debug)]
pub struct Initiation {
    datagram: Vec<u8>,
    message: Message,
    remote: SocketAddr,
    /// The change of the next request that a response requires.
    retry: Option<Retry>,
    /// The IKE SAs that the responses received so far would create.
    candidates: Vec<IkeSa>,
}

#[derive(Debug)]
enum Retry {
    Cookie(Vec<u8>),
    Group(u16),
}

/// Parses a message in clear.
pub fn clear(datagram: &[u8]) -> Option<Message> {
    let header = Header::read(datagram).ok()?;
    Some(Message { header, payloads: chain(header.next, datagram.get(HEADER_LEN..)?).ok()? })
}

/// Computes the data of NAT_DETECTION_*_IP (2.23).
fn nat_hash(spis: Spis, at: SocketAddr) -> Vec<u8> {
    let address = match at.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let octets = [spis.0.to_be_bytes().as_slice(), &spis.1.to_be_bytes(), &address, &at.port().to_be_bytes()].concat();
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &octets).as_ref().to_vec()
}

/// Returns whether a message states that its sender, seen at `from`, is behind a NAT.
fn behind_nat(message: &Message, spis: Spis, from: SocketAddr) -> bool {
    let of = |kind| message.notifies().into_iter().filter(move |notify| notify.kind == kind);
    let supported = of(notify::NAT_DETECTION_DESTINATION_IP).next().is_some();
    let mut sources = of(notify::NAT_DETECTION_SOURCE_IP).peekable();
    supported && sources.peek().is_some() && !sources.any(|notify| notify.data == nat_hash(spis, from))
}

/// Judges the node's NAT_DETECTION_DESTINATION_IP. The hash of the source may be deliberately
/// wrong.
fn judge_nat_detection(message: &Message, spis: Spis, to: SocketAddr) -> Judged {
    let destination = message.notify(notify::NAT_DETECTION_DESTINATION_IP);
    //= RFC 7296 2.23 MUST 8: NAT_DETECTION in IKE_SA_INIT
    require!(
        destination.is_none_or(|destination| destination.data == nat_hash(spis, to)),
        "RFC 7296 2.23",
        "NAT_DETECTION_DESTINATION_IP is not the hash of SPIs, address and port of {to}"
    );
    Ok(())
}

/// Returns the single proposal of a response, if it is a choice from the request's offer (2.7,
/// 3.3.6).
pub fn chosen(request: &Message, response: &Message) -> Judged<Proposal> {
    let answers = response.proposals();
    let [answer] = answers.as_slice() else {
        //= RFC 7296 2.7 MUST 4: one transform of each type
        //= RFC 7296 3.3.6 MUST 2: one proposal
        broken!("RFC 7296 3.3", "{} proposals in a response, exactly one is to be chosen", answers.len());
    };
    let offers = request.proposals();
    if offers.is_empty() {
        return Ok(answer.clone()); // Corrupted on the way; only the oracle cannot read it.
    }
    let offer = offers.iter().find(|offer| offer.number == answer.number && offer.protocol == answer.protocol);
    let within = offer.is_some_and(|offer| {
        answer.transforms.iter().all(|transform| offer.transforms.contains(transform))
            && offer.transforms.iter().all(|(kind, id, _)| {
                // 3.3.6: a transform type may be omitted only if NONE (0) was among its offers.
                answer.transforms.iter().filter(|(other, ..)| other == kind).count() == 1
                    || (*id == 0 || offer.transforms.iter().any(|(other, id, _)| other == kind && *id == 0))
            })
    });
    //= RFC 7296 2.7 MUST 2: the same protocol
    //= RFC 7296 3.3.6 MUST 1: one set of parameters
    //= RFC 7296 3.3.6 MUST 4: attributes come back unchanged
    require!(within, "RFC 7296 3.3.6", "the response chooses {answer:?} from {offers:?}");
    Ok(answer.clone())
}

impl Initiation {
    /// Returns the IKE SA to which a sent message belongs: the one whose keys decrypt it, or
    /// otherwise one that the oracle cannot decrypt.
    pub fn select(&self, header: &Header, datagram: &[u8]) -> Option<IkeSa> {
        let of = || self.candidates.iter().filter(|sa| sa.spis == header.spis);
        let opens = |sa: &&IkeSa| sa.keys.as_ref().is_some_and(|keys| keys.open(true, datagram).is_some());
        // A candidate without keys may come from a response that was corrupted on its way.
        let mut of = of().filter(opens).chain(of().filter(|sa| sa.keys.is_none()));
        let mut sa = of.next()?.clone();
        sa.other_inits = of.filter_map(|sa| sa.init.clone()).collect();
        Some(sa)
    }
}

impl Node {
    /// Handles an IKE_SA_INIT response.
    pub fn receive_init_response(&mut self, datagram: &[u8], message: &Message, shared: &mut Shared) -> Effect {
        let Some(initiation) = self.initiations.get_mut(&message.header.spis.0) else {
            return Effect::Nothing;
        };
        let group = |notify: super::octets::Notify| notify.data.try_into().map(u16::from_be_bytes).ok();
        if let Some(cookie) = message.notify(notify::COOKIE) {
            initiation.retry = Some(Retry::Cookie(cookie.data));
        } else if let Some(group) = message.notify(notify::INVALID_KE_PAYLOAD).and_then(group) {
            initiation.retry = Some(Retry::Group(group));
        } else if let Some(mut sa) = ike_sa(&initiation.message, &initiation.datagram, message, datagram, true, shared)
        {
            sa.peer_behind_nat = behind_nat(message, message.header.spis, initiation.remote);
            initiation.candidates.push(sa);
        }
        Effect::InitResponse
    }

    /// Judges an IKE_SA_INIT request from the node.
    pub fn send_init_request(&mut self, sent: &Sent<'_>, effect: &Effect) -> Judged {
        let datagram = sent.datagrams[0];
        let Some(message) = clear(datagram) else {
            broken!("RFC 7296 3", "an IKE_SA_INIT request of ours cannot be read");
        };
        //= RFC 7296 2.2 REQUIRED 3: message IDs begin at 0
        //= RFC 7296 3.1 MUST 4: the responder's SPI begins as zero
        //= RFC 7296 3.1 MUST 12: requests have no Response flag
        require!(
            (message.header.id, message.header.spis.1, message.header.flags) == (0, 0, 8),
            "RFC 7296 2.2",
            "header of IKE_SA_INIT: {:?}",
            message.header
        );
        //= RFC 7296 3.9 MUST 1: 16 to 256 octets
        require!(
            message.nonce().is_some_and(|nonce| (16..=256).contains(&nonce.len())),
            "RFC 7296 3.9",
            "the nonce is not 16 to 256 octets"
        );
        judge_nat_detection(&message, message.header.spis, sent.remote)?;
        let Some(before) = self.initiations.get_mut(&message.header.spis.0) else {
            require!(message.notify(notify::COOKIE).is_none(), "RFC 7296 2.6", "a cookie that nobody gave");
            let initiation = Initiation {
                datagram: datagram.to_vec(),
                message,
                remote: sent.remote,
                retry: None,
                candidates: Vec::new(),
            };
            self.initiations.insert(initiation.message.header.spis.0, initiation);
            return Ok(());
        };
        if before.datagram == datagram {
            require!(
                !matches!(effect, Effect::InitResponse),
                "RFC 7296 2.1",
                "an IKE_SA_INIT request goes out again before its time is over"
            );
            return Ok(());
        }
        let without = |message: &Message, kind: u16| -> Vec<Payload> {
            let is = |payload: &&Payload| payload.kind == payload::NOTIFY && payload.body[2..4] == kind.to_be_bytes();
            message.payloads.iter().filter(|payload| !is(payload)).cloned().collect()
        };
        match before.retry.take() {
            Some(Retry::Cookie(cookie)) => {
                let first = message.payloads.first().map(|payload| payload.body.clone());
                let expected = [[0, 0].as_slice(), &notify::COOKIE.to_be_bytes(), &cookie].concat();
                //= RFC 7296 2.6 MUST 6: the cookie comes first, the rest stays
                require!(
                    first.as_deref() == Some(&expected),
                    "RFC 7296 2.6",
                    "the first payload after a cookie was asked for is not the cookie"
                );
                //= RFC 7296 2.6 MUST 6: the cookie comes first, the rest stays
                require!(
                    without(&message, notify::COOKIE) == without(&before.message, notify::COOKIE),
                    "RFC 7296 2.6",
                    "other payloads changed when a cookie was returned"
                );
            }
            Some(Retry::Group(group)) => {
                let is_group = |transform: &(u8, u16, u16)| *transform == (4, group, 0);
                let offered = before.message.proposals().iter().any(|offer| offer.transforms.iter().any(is_group));
                let sent_group = message.key_exchange().map(|(group, _)| group);
                require!(
                    offered && sent_group == Some(group),
                    "RFC 7296 1.3",
                    "INVALID_KE_PAYLOAD asks for {group} (offered: {offered}), and {sent_group:?} is sent"
                );
                //= RFC 7296 1.2 MUST 5: all suites again
                //= RFC 7296 3.3.6 SHOULD 12: all groups again
                require!(
                    message.find(payload::SA) == before.message.find(payload::SA),
                    "RFC 7296 1.3",
                    "the proposals changed with the key exchange method"
                );
            }
            //= RFC 7296 2.1 MUST 8: the same octets again
            None => broken!("RFC 7296 2.1", "an IKE_SA_INIT request again with other octets"),
        }
        before.datagram = datagram.to_vec();
        before.message = message;
        Ok(())
    }

    /// Judges a message in clear that answers an unauthenticated one.
    pub fn send_init_response(
        &mut self,
        sent: &Sent<'_>,
        request: &[u8],
        from: SocketAddr,
        at: Duration,
        shared: &mut Shared,
    ) -> Judged {
        let datagram = sent.datagrams[0];
        let (Some(response), Ok(asked)) = (clear(datagram), Header::read(request)) else {
            broken!("RFC 7296 2.21.1", "an answer to what has no header, or one without payloads");
        };
        let flags = FLAG_RESPONSE | (!asked.flags & FLAG_INITIATOR);
        //= RFC 7296 2.6 REQUIRED 3: SPI zero before there is one
        require!(
            response.header.flags == flags && response.header.id == asked.id && response.header.spis.0 == asked.spis.0,
            "RFC 7296 2.5",
            "header of an answer in clear: {:?} to {asked:?}",
            response.header
        );
        let Some(request_message) = clear(request) else {
            return Ok(());
        };
        let (nonce, spi) = (request_message.nonce().unwrap_or_default().to_vec(), asked.spis.0);
        if let Some(cookie) = response.notify(notify::COOKIE) {
            //= RFC 7296 2.6 REQUIRED 3: SPI zero before there is one
            require!(
                response.header.spis.1 == 0 && (1..=64).contains(&cookie.data.len()),
                "RFC 7296 2.6",
                "a cookie of {} octets",
                cookie.data.len()
            );
            self.cookies.insert((from.ip(), spi, nonce, cookie.data));
            return Ok(());
        }
        if response.find(payload::SA).is_none() {
            return Ok(());
        }
        self.half_open.retain(|_, (since, _)| at < *since + HALF_OPEN_LIFETIME);
        let entry = self.half_open.get(&(from, spi));
        let known = entry.and_then(|(_, spis)| self.sas.get(spis)?.init.as_ref());
        if let Some(known) = known.filter(|known| known.request == request) {
            // If it may have made room for another one, the request may create it again.
            let gone = entry.is_some_and(|(since, _)| self.made_room.iter().any(|room| room >= since));
            //= RFC 7296 2.1 REQUIRED 9: IKE_SA_INIT again is the whole message
            require!(
                known.response == datagram || gone,
                "RFC 7296 2.1",
                "IKE_SA_INIT answered again with other octets"
            );
            if known.response == datagram {
                return Ok(());
            }
        }
        // The same request with another cookie gets the same response as before, and does not count
        // as a new request: the half-open IKE SA ends when it would have ended anyway.
        let again = known.is_some_and(|known| known.response == datagram);
        let since = entry.filter(|_| again).map_or(at, |(since, _)| *since);
        // At the limit, another half-open IKE SA may make room. It is not known which one.
        self.made_room.retain(|since| at < *since + HALF_OPEN_LIFETIME);
        let half_open = self.half_open.len().saturating_sub(self.made_room.len());
        if !again && self.half_open.len() >= self.limits.half_open_limit {
            self.made_room.push(at);
        }
        if half_open >= self.limits.cookie_threshold.min(self.limits.half_open_limit) {
            let cookie = request_message.notify(notify::COOKIE).map(|cookie| cookie.data).unwrap_or_default();
            require!(
                self.cookies.contains(&(from.ip(), spi, nonce, cookie)),
                "RFC 7296 2.6",
                "{half_open} half-open IKE SAs, and one more without the cookie that was made for this address, SPI and nonce"
            );
        }
        let sa = ike_sa(&request_message, request, &response, datagram, false, shared);
        let Some(mut sa) = sa else {
            broken!("RFC 7296 1.2", "an IKE_SA_INIT response without SA, KE or Nonce");
        };
        judge_nat_detection(&response, sa.spis, from)?;
        let proposal = chosen(&request_message, &response)?;
        let groups = (request_message.key_exchange(), response.key_exchange());
        let same =
            matches!(groups, (Some((theirs, _)), Some((ours, _))) if theirs == ours && proposal.one(4).0 == ours);
        //= RFC 7296 3.4 MUST 2: the group is in the offer
        require!(same, "RFC 7296 1.2", "the groups of request, response and proposal differ");
        sa.peer_behind_nat = behind_nat(&request_message, (spi, 0), from);
        sa.begun_from = Some(from);
        self.half_open.insert((from, spi), (since, sa.spis));
        self.sas.insert(sa.spis, sa);
        Ok(())
    }
}

/// Returns the IKE SA that an IKE_SA_INIT exchange creates at one end.
fn ike_sa(
    request: &Message,
    request_datagram: &[u8],
    response: &Message,
    response_datagram: &[u8],
    initiator: bool,
    shared: &mut Shared,
) -> Option<IkeSa> {
    let proposals = response.proposals();
    let proposal = proposals.first()?;
    let nonces = (request.nonce()?.to_vec(), response.nonce()?.to_vec());
    let (theirs, ours) = (response.key_exchange()?, request.key_exchange()?);
    let secret = shared.private_keys.secret(ours, theirs);
    let spis = response.header.spis;
    let keys = secret.and_then(|secret| Keys::initial(Suite::of(proposal), (&nonces.0, &nonces.1), spis, &secret));
    let first_ids = if initiator { (1, 0) } else { (0, 1) };
    let peer = if initiator { response } else { request };
    let mut sa = IkeSa::new(spis, initiator, keys, first_ids);
    sa.fragments = peer.notify(notify::FRAGMENTATION_SUPPORTED).is_some();
    sa.init = Some(Init { nonces, request: request_datagram.to_vec(), response: response_datagram.to_vec() });
    Some(sa)
}
