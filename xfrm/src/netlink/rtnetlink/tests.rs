//! The messages of rtnetlink(7) that edge-cni sends and reads: links, addresses and routes.
//!
//! `netlink_packet_route::RouteNetlinkMessage` reads every message of rtnetlink, and of a link the
//! settings of all kinds of links. That is 250 KiB of machine code in the plugin, which may have
//! 1 MiB. So this type reads those attributes of a link that a program here looks at, and leaves
//! the others out.

use netlink_packet_core::{
    DecodeError, Emitable as _, ErrorContext as _, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
    NlasIterator, Parseable as _, parse_i32, parse_string, parse_u32,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::RouteMessage;

/// Length of a link's header, bytes (`struct ifinfomsg`).
const LINK_HEADER_LEN: usize = 16;

/// Message types (`linux/rtnetlink.h`).
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

/// Attributes of a link (`linux/if_link.h`).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;

/// A message about a link, an address or a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RtnetlinkMessage {
    /// `RTM_NEWLINK`. One from the kernel has the attributes that this module reads.
    NewLink(LinkMessage),
    /// `RTM_DELLINK`.
    DelLink(LinkMessage),
    /// `RTM_GETLINK`.
    GetLink(LinkMessage),
    /// `RTM_SETLINK`.
    SetLink(LinkMessage),
    /// `RTM_NEWADDR`.
    NewAddress(AddressMessage),
    /// `RTM_DELADDR`.
    DelAddress(AddressMessage),
    /// `RTM_GETADDR`.
    GetAddress(AddressMessage),
    /// `RTM_NEWROUTE`.
    NewRoute(RouteMessage),
    /// `RTM_GETROUTE`.
    GetRoute(RouteMessage),
}

impl NetlinkSerializable for RtnetlinkMessage {
    fn message_type(&self) -> u16 {
        match self {
            Self::NewLink(_) => RTM_NEWLINK,
            Self::DelLink(_) => RTM_DELLINK,
            Self::GetLink(_) => RTM_GETLINK,
            Self::SetLink(_) => RTM_SETLINK,
            Self::NewAddress(_) => RTM_NEWADDR,
            Self::DelAddress(_) => RTM_DELADDR,
            Self::GetAddress(_) => RTM_GETADDR,
            Self::NewRoute(_) => RTM_NEWROUTE,
            Self::GetRoute(_) => RTM_GETROUTE,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::NewLink(link) | Self::DelLink(link) | Self::GetLink(link) | Self::SetLink(link) => link.buffer_len(),
            Self::NewAddress(address) | Self::DelAddress(address) | Self::GetAddress(address) => address.buffer_len(),
            Self::NewRoute(route) | Self::GetRoute(route) => route.buffer_len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::NewLink(link) | Self::DelLink(link) | Self::GetLink(link) | Self::SetLink(link) => link.emit(buffer),
            Self::NewAddress(address) | Self::DelAddress(address) | Self::GetAddress(address) => address.emit(buffer),
            Self::NewRoute(route) | Self::GetRoute(route) => route.emit(buffer),
        }
    }
}

impl NetlinkDeserializable for RtnetlinkMessage {
    type Error = DecodeError;

    /// The kernel answers with `RTM_NEWLINK`, `RTM_NEWADDR` and `RTM_NEWROUTE`.
    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            RTM_NEWLINK => Ok(Self::NewLink(link(payload)?)),
            RTM_NEWADDR => Ok(Self::NewAddress(AddressMessage::parse(payload)?)),
            RTM_NEWROUTE => Ok(Self::NewRoute(RouteMessage::parse(payload)?)),
            other => Err(format!("expected RTM_NEWLINK, RTM_NEWADDR or RTM_NEWROUTE, found type {other}").into()),
        }
    }
}

fn link(payload: &[u8]) -> Result<LinkMessage, DecodeError> {
    let attributes = payload.get(LINK_HEADER_LEN..).ok_or("a link's message is shorter than its header")?;
    let mut message = LinkMessage::default();
    message.header = LinkHeader::parse(payload)?;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        message.attributes.push(match attribute.kind() {
            IFLA_IFNAME => LinkAttribute::IfName(parse_string(value).context("IFLA_IFNAME")?),
            IFLA_IFALIAS => LinkAttribute::IfAlias(parse_string(value).context("IFLA_IFALIAS")?),
            IFLA_ADDRESS => LinkAttribute::Address(value.to_vec()),
            IFLA_MTU => LinkAttribute::Mtu(parse_u32(value).context("IFLA_MTU")?),
            IFLA_LINK => LinkAttribute::Link(parse_u32(value).context("IFLA_LINK")?),
            IFLA_LINK_NETNSID => LinkAttribute::LinkNetNsId(parse_i32(value).context("IFLA_LINK_NETNSID")?),
            IFLA_MASTER => LinkAttribute::Controller(parse_u32(value).context("IFLA_MASTER")?),
            IFLA_LINKINFO => LinkAttribute::LinkInfo(link_info(value).context("IFLA_LINKINFO")?),
            _ => continue,
        });
    }
    Ok(message)
}

/// The kind of a link and, if it is a bridge's port, its settings as one.
fn link_info(value: &[u8]) -> Result<Vec<LinkInfo>, DecodeError> {
    let (mut infos, mut on_bridge) = (Vec::new(), false);
    for info in NlasIterator::new(value) {
        let info = info?;
        match info.kind() {
            IFLA_INFO_KIND => infos.push(LinkInfo::Kind(InfoKind::parse(&info)?)),
            IFLA_INFO_SLAVE_KIND => {
                let kind = InfoPortKind::parse(&info)?;
                on_bridge = kind == InfoPortKind::Bridge;
                infos.push(LinkInfo::PortKind(kind));
            }
            IFLA_INFO_SLAVE_DATA if on_bridge => {
                let settings = NlasIterator::new(info.value()).map(|setting| InfoBridgePort::parse(&setting?));
                let settings = settings.collect::<Result<_, DecodeError>>()?;
                infos.push(LinkInfo::PortData(InfoPortData::BridgePort(settings)));
            }
            _ => {}
        }
    }
    Ok(infos)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{BridgePortState, InfoBridge, InfoData, InfoVeth, LinkFlags};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn header(message_type: u16) -> NetlinkHeader {
        let mut header = NetlinkHeader::default();
        header.message_type = message_type;
        header
    }

    fn octets(link: &LinkMessage) -> Vec<u8> {
        let mut octets = vec![0; link.buffer_len()];
        link.emit(&mut octets);
        octets
    }

    /// A port of a bridge, with attributes of which nobody here looks at two.
    fn port() -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName("ecni0123456789a".into()),
            LinkAttribute::TxQueueLen(1000),
            LinkAttribute::Mtu(1400),
            LinkAttribute::Link(3),
            LinkAttribute::Controller(2),
            LinkAttribute::IfAlias("edge-cni c1 eth0".into()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::LinkNetNsId(-1),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(LinkMessage::default()))),
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![
                    InfoBridgePort::State(BridgePortState::Forwarding),
                    InfoBridgePort::HairpinMode(true),
                ])),
            ]),
        ];
        message
    }

    #[test]
    fn a_link_is_read_as_the_library_reads_it_but_for_what_nobody_looks_at() {
        let sent = port();
        let octets = octets(&sent);
        let RtnetlinkMessage::NewLink(read) = RtnetlinkMessage::deserialize(&header(RTM_NEWLINK), &octets).unwrap()
        else {
            panic!("another message")
        };
        let RouteNetlinkMessage::NewLink(mut whole) =
            RouteNetlinkMessage::deserialize(&header(RTM_NEWLINK), &octets).unwrap()
        else {
            panic!("another message")
        };
        whole.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::TxQueueLen(_)));
        for attribute in &mut whole.attributes {
            if let LinkAttribute::LinkInfo(infos) = attribute {
                infos.retain(|info| !matches!(info, LinkInfo::Data(_)));
            }
        }
        assert_eq!(read, whole);
    }

    #[test]
    fn requests_are_written_as_the_library_writes_them() {
        let mut bridge = LinkMessage::default();
        let data = LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::FdbMaxLearned(4096)]));
        bridge.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), data]));
        let (address, route) = (AddressMessage::default(), RouteMessage::default());
        for (ours, theirs) in [
            (RtnetlinkMessage::NewLink(bridge.clone()), RouteNetlinkMessage::NewLink(bridge)),
            (RtnetlinkMessage::DelLink(port()), RouteNetlinkMessage::DelLink(port())),
            (RtnetlinkMessage::GetLink(port()), RouteNetlinkMessage::GetLink(port())),
            (RtnetlinkMessage::SetLink(port()), RouteNetlinkMessage::SetLink(port())),
            (RtnetlinkMessage::NewAddress(address.clone()), RouteNetlinkMessage::NewAddress(address.clone())),
            (RtnetlinkMessage::DelAddress(address.clone()), RouteNetlinkMessage::DelAddress(address.clone())),
            (RtnetlinkMessage::GetAddress(address.clone()), RouteNetlinkMessage::GetAddress(address)),
            (RtnetlinkMessage::NewRoute(route.clone()), RouteNetlinkMessage::NewRoute(route.clone())),
            (RtnetlinkMessage::GetRoute(route.clone()), RouteNetlinkMessage::GetRoute(route)),
        ] {
            let mut written = [vec![0; ours.buffer_len()], vec![0; NetlinkSerializable::buffer_len(&theirs)]];
            ours.serialize(&mut written[0]);
            theirs.serialize(&mut written[1]);
            assert_eq!(written[0], written[1], "{ours:?}");
            assert_eq!(ours.message_type(), NetlinkSerializable::message_type(&theirs), "{ours:?}");
        }
    }

    #[test]
    fn a_cut_or_damaged_message_is_refused_and_nothing_panics() {
        let whole = octets(&port());
        for length in 0..whole.len() {
            for kind in [RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE] {
                let _ = RtnetlinkMessage::deserialize(&header(kind), &whole[..length]);
            }
        }
        assert!(RtnetlinkMessage::deserialize(&header(RTM_NEWLINK), &whole[..LINK_HEADER_LEN - 1]).is_err());
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let _ = RtnetlinkMessage::deserialize(&header(RTM_NEWLINK), &damaged);
            }
        }
        assert!(RtnetlinkMessage::deserialize(&header(28), &whole).is_err());
    }

    /// An attribute as it stands in a message, padded to four bytes.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut octets = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        octets.extend_from_slice(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(
            kind in proptest::sample::select(vec![RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE]),
            payload in vec(any::<u8>(), 0..300),
        ) {
            let _ = RtnetlinkMessage::deserialize(&header(kind), &payload);
        }

        #[test]
        fn arbitrary_values_in_well_formed_attributes_never_panic(
            kind in proptest::sample::select(vec![(RTM_NEWLINK, 16), (RTM_NEWADDR, 8), (RTM_NEWROUTE, 12)]),
            attributes in vec((0..70_u16, vec(any::<u8>(), 0..40)), 0..8),
            // Of a link: its kind, or its settings as a bridge's port.
            infos in vec((0..6_u16, vec(any::<u8>(), 0..12)), 0..4),
            settings in vec((0..50_u16, vec(any::<u8>(), 0..20)), 0..6),
        ) {
            let (message_type, header_len) = kind;
            let nested = |all: &[(u16, Vec<u8>)]| all.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect();
            let settings: Vec<u8> = nested(&settings);
            let mut infos: Vec<u8> = nested(&infos);
            infos.extend(attribute(IFLA_INFO_SLAVE_KIND, b"bridge\0"));
            infos.extend(attribute(IFLA_INFO_SLAVE_DATA, &settings));
            let mut payload = vec![0; header_len];
            payload.extend::<Vec<u8>>(nested(&attributes));
            payload.extend(attribute(IFLA_LINKINFO, &infos));
            let _ = RtnetlinkMessage::deserialize(&header(message_type), &payload);
        }
    }
}
