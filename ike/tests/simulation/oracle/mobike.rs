//! Judges MOBIKE (RFC 4555): which end may move an IKE SA, and what the peer must prove before ESP
//! follows.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use edge_ike::ChildId;

use super::ike_sa::OwnRequest;
use super::node::Node;
use super::octets::{Message, Notify, Spis, notify};
use super::{Cause, Judged, Step, require};

/// The state of one end about the addresses of an IKE SA whose ends both support MOBIKE.
#[derive(Debug, Clone)]
pub struct Mobike {
    /// Whether this end is the original initiator, that is, the initiator of the first IKE SA in a
    /// series of rekeys.
    pub initiator: bool,
    /// The additional addresses that the peer has announced so far.
    pub announced: BTreeSet<IpAddr>,
    /// The addresses at which the peer has proved that it receives. At first this is the address to
    /// which IKE_AUTH was sent. IKE_AUTH may also have been sent to a second address, from which
    /// the peer's newest message came (RFC 7296 2.23).
    pub shown: BTreeSet<SocketAddr>,
}

impl Mobike {
    /// Returns the MOBIKE state, if both ends announced MOBIKE in IKE_AUTH (3.2).
    pub fn negotiated(
        request: &Message,
        response: &Message,
        shown: BTreeSet<SocketAddr>,
        initiator: bool,
    ) -> Option<Self> {
        //= RFC 4555 3.2 MUST 1: MOBIKE is announced in IKE_AUTH
        let both = [request, response].iter().all(|message| message.notify(notify::MOBIKE_SUPPORTED).is_some());
        let announced = addresses(if initiator { response } else { request });
        both.then_some(Self { initiator, announced, shown })
    }

    /// Returns whether messages may be sent to the address from which this authentic message came.
    /// The initiator chooses freely (3.5). The responder follows UPDATE_SA_ADDRESSES, and no other
    /// message (3.5, 3.8).
    pub fn follows(&self, message: Option<&Message>) -> bool {
        //= RFC 4555 3.8 MUST NOT 4: nothing moves without UPDATE_SA_ADDRESSES
        self.initiator || message.is_some_and(updates_addresses)
    }
}

/// Returns whether a message is a request with UPDATE_SA_ADDRESSES.
fn updates_addresses(message: &Message) -> bool {
    !message.header.response() && message.notify(notify::UPDATE_SA_ADDRESSES).is_some()
}

/// Returns the addresses in ADDITIONAL_IP4_ADDRESS and ADDITIONAL_IP6_ADDRESS (4.2.2).
fn addresses(message: &Message) -> BTreeSet<IpAddr> {
    let address = |notify: Notify| match notify.kind {
        notify::ADDITIONAL_IP4_ADDRESS => <[u8; 4]>::try_from(notify.data).ok().map(IpAddr::from),
        notify::ADDITIONAL_IP6_ADDRESS => <[u8; 16]>::try_from(notify.data).ok().map(IpAddr::from),
        _ => None,
    };
    message.notifies().into_iter().filter_map(address).collect()
}

/// Returns whether a request changes addresses (3.9).
pub fn changes_addresses(message: &Message) -> bool {
    let kinds = [
        notify::UPDATE_SA_ADDRESSES,
        notify::ADDITIONAL_IP4_ADDRESS,
        notify::ADDITIONAL_IP6_ADDRESS,
        notify::NO_ADDITIONAL_ADDRESSES,
    ];
    kinds.iter().any(|kind| message.notify(*kind).is_some())
}

/// Judges MOBIKE_SUPPORTED in a message of IKE_AUTH.
pub fn judge_announcement(message: &Message) -> Judged {
    let data = message.notify(notify::MOBIKE_SUPPORTED).map(|notify| notify.data);
    //= RFC 4555 4.2.1 MUST 1: no data
    require!(data.as_ref().is_none_or(Vec::is_empty), "RFC 4555 4.2.1", "MOBIKE_SUPPORTED with {data:x?}");
    Ok(())
}

impl Node {
    /// Judges an INFORMATIONAL request from the node.
    pub fn request_address_change(&self, spis: Spis, message: &Message) -> Judged {
        let mobike = self.sas.get(&spis).and_then(|sa| sa.mobike.as_ref());
        require!(
            mobike.is_some() || !changes_addresses(message),
            "RFC 4555 3.2",
            "addresses are changed in an IKE SA of which not both ends announced MOBIKE_SUPPORTED"
        );
        //= RFC 4555 3.5 REQUIRED 3: the original initiator chooses the addresses
        require!(
            message.notify(notify::UPDATE_SA_ADDRESSES).is_none() || mobike.is_some_and(|mobike| mobike.initiator),
            "RFC 4555 3.5",
            "UPDATE_SA_ADDRESSES from the responder; the original initiator decides which addresses are used"
        );
        let cookie = message.notify(notify::COOKIE2);
        //= RFC 4555 4.2.5 MUST 1: 8 to 64 octets
        require!(
            cookie.as_ref().is_none_or(|cookie| (8..=64).contains(&cookie.data.len())),
            "RFC 4555 4.2.5",
            "a COOKIE2 of {:?} octets",
            cookie.as_ref().map(|cookie| cookie.data.len())
        );
        Ok(())
    }

    /// Judges the node's response to an INFORMATIONAL request.
    pub fn answer_address_request(
        &mut self,
        spis: Spis,
        request: &Message,
        answer: &Message,
        step: &Step<'_>,
    ) -> Judged {
        let Some(mobike) = self.sas.get_mut(&spis).and_then(|sa| sa.mobike.as_mut()) else { return Ok(()) };
        let cookie = request.notify(notify::COOKIE2).filter(|cookie| (8..=64).contains(&cookie.data.len()));
        //= RFC 4555 3.7 MUST 3: COOKIE2 is copied unchanged
        require!(
            cookie.is_none() || answer.notify(notify::COOKIE2) == cookie,
            "RFC 4555 3.7",
            "COOKIE2 is not copied as it is: {cookie:?}"
        );
        let detects = |message: &Message| {
            message.notify(notify::NAT_DETECTION_SOURCE_IP).is_some()
                && message.notify(notify::NAT_DETECTION_DESTINATION_IP).is_some()
        };
        //= RFC 4555 3.8 MUST 1: NAT detection is answered by NAT detection
        require!(
            !detects(request) || detects(answer),
            "RFC 4555 3.8",
            "NAT_DETECTION notifications are answered without any"
        );
        let Cause::Received(_, local, from) = step.cause else { return Ok(()) };
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let header = [
            octets(from.ip()),
            octets(local.ip()),
            from.port().to_be_bytes().into(),
            local.port().to_be_bytes().into(),
        ]
        .concat();
        let forbidden = request.notify(notify::NO_NATS_ALLOWED).filter(|notify| notify.data != header);
        //= RFC 4555 3.9 MUST 2: compared with the IP header
        require!(
            forbidden.is_none()
                || !changes_addresses(request)
                || answer.notify(notify::UNEXPECTED_NAT_DETECTED).is_some(),
            "RFC 4555 3.9",
            "NO_NATS_ALLOWED names other addresses than the IP header, and the request is taken"
        );
        if answer.error().is_none() {
            mobike.announced.extend(addresses(request));
        }
        Ok(())
    }

    /// Handles the response to the node's request. Records what the response proves about the
    /// peer's address.
    pub fn conclude_address_request(&mut self, spis: Spis, own: &OwnRequest, request: &Message, response: &Message) {
        let cookie = request.notify(notify::COOKIE2);
        let returned = cookie.is_some() && response.notify(notify::COOKIE2) == cookie;
        //= RFC 4555 3.7 REQUIRED 6: a request to several addresses shows no path
        if !returned || own.sent_to.len() != 1 {
            return;
        }
        // After simultaneous rekeys, the CHILD_SAs move to the surviving IKE SA, so record the
        // address for all IKE SAs of the series.
        let series: Vec<Spis> =
            self.sas.keys().copied().filter(|other| self.origin(*other) == self.origin(spis)).collect();
        for spis in series {
            if let Some(mobike) = self.sas.get_mut(&spis).and_then(|sa| sa.mobike.as_mut()) {
                mobike.shown.extend(&own.sent_to);
            }
        }
    }

    /// Judges a move of ESP of these CHILD_SAs to another address.
    pub fn judge_move(&self, children: &[ChildId], remote: SocketAddr) -> Judged {
        let owners: BTreeSet<Spis> =
            children.iter().filter_map(|child| Some(self.children.get(&child.0)?.ike)).collect();
        owners.into_iter().try_for_each(|spis| self.judge_destination(spis, remote))
    }

    /// Judges the address to which ESP of an IKE SA's CHILD_SAs is sent.
    pub fn judge_destination(&self, spis: Spis, remote: SocketAddr) -> Judged {
        let Some(mobike) = self.sas.get(&spis).and_then(|sa| sa.mobike.as_ref()) else { return Ok(()) };
        //= RFC 4555 3.7 SHOULD 2: ESP follows after the check
        require!(
            mobike.shown.contains(&remote),
            "RFC 4555 3.7",
            "ESP goes to {remote}, from where no COOKIE2 came back that was sent there alone; shown are {:?}",
            mobike.shown
        );
        Ok(())
    }
}
