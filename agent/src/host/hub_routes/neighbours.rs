//! Neighbour entries (ARP, neighbour discovery) of the hubs' addresses.

use std::net::IpAddr;

use futures_util::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Error, Handle};

/// `ENOENT`, as a positive number.
const NO_ENTRY: i32 = 2;

/// The state of a neighbour entry in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// The neighbour answered the last probe.
    Confirmed,
    /// The kernel has probed the neighbour, which has not answered yet.
    Asked,
    /// The kernel has no link-layer address of the neighbour.
    Unknown,
    /// Another program maintains the entry, or the link needs no neighbour entries. The entry
    /// cannot be probed.
    Fixed,
}

/// Reads the entry of an address on a link.
pub(super) async fn read(handle: &Handle, link: u32, address: IpAddr) -> Result<Neighbour, Error> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(message(link, address)));
    request.header.flags = NLM_F_REQUEST;
    let mut responses = handle.clone().request(request)?;
    while let Some(response) = responses.next().await {
        match response.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => return Ok(judge(&entry)),
            NetlinkPayload::Error(error) if error.raw_code().saturating_neg() == NO_ENTRY => break,
            NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
            _ => {}
        }
    }
    Ok(Neighbour::Unknown)
}

fn judge(entry: &NeighbourMessage) -> Neighbour {
    if entry.header.flags.contains(NeighbourFlags::ExtLearned) {
        return Neighbour::Fixed;
    }
    match entry.header.state {
        NeighbourState::Permanent | NeighbourState::Noarp => Neighbour::Fixed,
        // A stale entry also counts, since a probed entry becomes stale if the neighbour answers
        // from another link-layer address.
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay => Neighbour::Confirmed,
        NeighbourState::Probe => Neighbour::Asked,
        _ => Neighbour::Unknown,
    }
}

/// Makes the kernel probe the neighbour now. `known` is the result of [`read`].
pub(super) async fn ask(handle: &Handle, link: u32, address: IpAddr, known: Neighbour) -> Result<(), Error> {
    let mut message = message(link, address);
    let mut flags = NLM_F_REQUEST | NLM_F_ACK;
    match known {
        Neighbour::Fixed => return Ok(()),
        Neighbour::Confirmed | Neighbour::Asked => message.header.state = NeighbourState::Probe,
        Neighbour::Unknown => {
            message.header.flags = NeighbourFlags::Use;
            flags |= NLM_F_CREATE;
        }
    }
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
    request.header.flags = flags;
    let mut responses = handle.clone().request(request)?;
    while let Some(response) = responses.next().await {
        match response.payload {
            // `ENOENT`: the kernel has removed the entry in the meantime. The next round creates it
            // again.
            NetlinkPayload::Error(error) if error.code.is_none() || error.raw_code().saturating_neg() == NO_ENTRY => {}
            NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
            _ => {}
        }
    }
    Ok(())
}

fn message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    message
}
