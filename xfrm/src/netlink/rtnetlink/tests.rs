use std::net::IpAddr;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::address as library_address;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link as library_link;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo,
};
use netlink_packet_route::route as library_route;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMetric, RouteNextHop, RouteProtocol, RouteScope, RouteType,
    RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::netlink::{Attributes, RawMessage};

/// Parses a request with the library.
fn by_library(message: &RawMessage) -> RouteNetlinkMessage {
    let mut header = NetlinkHeader::default();
    header.message_type = message.kind;
    RouteNetlinkMessage::deserialize(&header, &message.body).unwrap()
}

/// Encodes a message with the library, as the kernel would.
fn of_library(message: &RouteNetlinkMessage) -> RawMessage {
    let mut body = vec![0; message.buffer_len()];
    message.serialize(&mut body);
    RawMessage { kind: message.message_type(), body }
}

fn library_link(index: u32, attributes: Vec<LinkAttribute>) -> library_link::LinkMessage {
    let mut link = library_link::LinkMessage::default();
    link.header.index = index;
    link.attributes = attributes;
    link
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_library_reads_requests_about_links_as_they_are_meant() {
    let skip = || LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    let get = LinkRequest::named("ecni0").get();
    let expected = library_link(0, vec![LinkAttribute::IfName("ecni0".into()), skip()]);
    assert_eq!(by_library(&get), RouteNetlinkMessage::GetLink(expected));

    let mut peer = LinkRequest::of(5);
    peer.attributes.number(attribute::TARGET_NETNS_ID, 3);
    let expected = library_link(5, vec![LinkAttribute::IfNetnsId(3), skip()]);
    assert_eq!(by_library(&peer.get()), RouteNetlinkMessage::GetLink(expected));

    let mut pod = LinkRequest::named("eth0");
    pod.attributes.bytes(attribute::ADDRESS, &[2, 0, 0, 0, 0, 9]);
    pod.attributes.number(attribute::NETNS_FD, 11);
    let mut host = LinkRequest::named("ecni1234");
    host.attributes.number(attribute::CONTROLLER, 2);
    host.attributes.number(attribute::MTU, 1400);
    host.veth(&pod);
    let address = LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]);
    let pod = library_link(0, vec![LinkAttribute::IfName("eth0".into()), address, LinkAttribute::NetNsFd(11)]);
    let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(pod)));
    let expected = library_link(
        0,
        vec![
            LinkAttribute::IfName("ecni1234".into()),
            LinkAttribute::Controller(2),
            LinkAttribute::Mtu(1400),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), data]),
        ],
    );
    assert_eq!(by_library(&host.create()), RouteNetlinkMessage::NewLink(expected));

    let mut bridge = LinkRequest::named("ecni0");
    bridge.up(true);
    bridge.bridge(4096);
    let data = LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::FdbMaxLearned(4096)]));
    let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), data]);
    let mut expected = library_link(0, vec![LinkAttribute::IfName("ecni0".into()), info]);
    expected.header.flags = LinkFlags::Up;
    expected.header.change_mask = LinkFlags::Up;
    assert_eq!(by_library(&bridge.create()), RouteNetlinkMessage::NewLink(expected));

    let mut port = LinkRequest::of(7);
    port.attributes.text(attribute::ALIAS, "edge-cni c1 eth0");
    port.bridge_port(&BridgePort { state: None, hairpin: true, isolated: false, group_fwd_mask: 0xfffd });
    let settings =
        vec![InfoBridgePort::HairpinMode(true), InfoBridgePort::Isolated(false), InfoBridgePort::GroupFwdMask(0xfffd)];
    let settings = LinkInfo::PortData(InfoPortData::BridgePort(settings));
    let info = LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bridge), settings]);
    let expected = library_link(7, vec![LinkAttribute::IfAlias("edge-cni c1 eth0".into()), info]);
    assert_eq!(by_library(&port.create()), RouteNetlinkMessage::NewLink(expected));

    let mut down = LinkRequest::of(7);
    down.up(false);
    let mut expected = library_link(7, Vec::new());
    expected.header.change_mask = LinkFlags::Up;
    assert_eq!(by_library(&down.set()), RouteNetlinkMessage::SetLink(expected));
    assert_eq!(by_library(&LinkRequest::of(7).delete()), RouteNetlinkMessage::DelLink(library_link(7, Vec::new())));

    let mut guard = LinkRequest::named("ecni-guard");
    guard.up(true);
    guard.without_arp();
    guard.kind("dummy");
    let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]);
    let mut expected = library_link(0, vec![LinkAttribute::IfName("ecni-guard".into()), info]);
    expected.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    expected.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    assert_eq!(by_library(&guard.create()), RouteNetlinkMessage::NewLink(expected));
}

#[test]
fn the_library_reads_requests_about_addresses_and_routes_as_they_are_meant() {
    let request = AddressRequest { index: 3, address: ip("fd77::2"), prefix: 64 };
    let mut expected = library_address::AddressMessage::default();
    expected.header.index = 3;
    expected.header.family = AddressFamily::Inet6;
    expected.header.prefix_len = 64;
    expected.attributes = vec![AddressAttribute::Local(ip("fd77::2"))];
    assert_eq!(by_library(&request.delete()), RouteNetlinkMessage::DelAddress(expected.clone()));
    expected.attributes.push(AddressAttribute::Address(ip("fd77::2")));
    assert_eq!(by_library(&request.create(false)), RouteNetlinkMessage::NewAddress(expected.clone()));
    expected.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    assert_eq!(by_library(&request.create(true)), RouteNetlinkMessage::NewAddress(expected));
    let mut expected = library_address::AddressMessage::default();
    expected.header.index = 3;
    assert_eq!(by_library(&AddressMessage::dump(3)), RouteNetlinkMessage::GetAddress(expected.clone()));
    expected.header.family = AddressFamily::Inet6;
    assert_eq!(by_library(&AddressMessage::dump_ipv6(3)), RouteNetlinkMessage::GetAddress(expected));

    let mut request = RouteRequest::new("10.77.9.0/24".parse().unwrap(), 4);
    request.scope = RouteRequest::LINK;
    request.gateway = Some(ip("10.77.0.1"));
    request.source = Some(ip("10.77.0.2"));
    request.priority = Some(9);
    request.table = Some(1000);
    request.mtu = Some(1300);
    request.advmss = Some(1260);
    let mut expected = library_route::RouteMessage::default();
    expected.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: 24,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Link,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    expected.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet([10, 77, 9, 0].into())),
        RouteAttribute::Gateway(RouteAddress::Inet([10, 77, 0, 1].into())),
        RouteAttribute::PrefSource(RouteAddress::Inet([10, 77, 0, 2].into())),
        RouteAttribute::Oif(4),
        RouteAttribute::Priority(9),
        RouteAttribute::Table(1000),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(1300), RouteMetric::Advmss(1260)]),
    ];
    assert_eq!(by_library(&request.create()), RouteNetlinkMessage::NewRoute(expected));
    let mut expected = library_route::RouteMessage::default();
    assert_eq!(by_library(&RouteMessage::dump()), RouteNetlinkMessage::GetRoute(expected.clone()));
    expected.header.address_family = AddressFamily::Inet6;
    expected.attributes = vec![RouteAttribute::Oif(4)];
    assert_eq!(by_library(&RouteMessage::dump_over(4, false)), RouteNetlinkMessage::GetRoute(expected));
}

/// Makes a bridge port with attributes, two of which our types do not read.
fn port() -> RawMessage {
    let mut link = library_link(
        7,
        vec![
            LinkAttribute::IfName("ecni0123456789a".into()),
            LinkAttribute::TxQueueLen(1000),
            LinkAttribute::Mtu(1400),
            LinkAttribute::Link(3),
            LinkAttribute::Controller(2),
            LinkAttribute::IfAlias("edge-cni c1 eth0".into()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::LinkNetNsId(4),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(library_link::LinkMessage::default()))),
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![
                    InfoBridgePort::State(library_link::BridgePortState::Forwarding),
                    InfoBridgePort::HairpinMode(true),
                    InfoBridgePort::GroupFwdMask(0xfffd),
                    InfoBridgePort::Priority(32),
                ])),
            ]),
        ],
    );
    link.header.flags = LinkFlags::Up | LinkFlags::Running;
    of_library(&RouteNetlinkMessage::NewLink(link))
}

#[test]
fn a_link_is_read_as_the_kernel_tells_it() {
    let settings =
        BridgePort { state: Some(BridgePortState::Forwarding), hairpin: true, isolated: false, group_fwd_mask: 0xfffd };
    let expected = LinkMessage {
        index: 7,
        up: true,
        loopback: false,
        name: "ecni0123456789a".into(),
        alias: "edge-cni c1 eth0".into(),
        address: vec![2, 0, 0, 0, 0, 1],
        mtu: 1400,
        link: Some(3),
        link_netns_id: Some(4),
        controller: Some(2),
        kind: "veth".into(),
        port: Some(settings),
    };
    assert_eq!(LinkMessage::read("RTM_GETLINK", &port()).unwrap(), expected);
}

#[test]
fn an_address_is_its_local_one_or_without_it_the_interfaces() {
    let mut message = library_address::AddressMessage::default();
    message.header.index = 3;
    message.header.prefix_len = 24;
    message.attributes = vec![
        AddressAttribute::Address(ip("10.0.0.9")),
        AddressAttribute::Local(ip("10.0.0.1")),
        AddressAttribute::Flags(AddressFlags::Tentative | AddressFlags::Permanent),
    ];
    let read = |message: &library_address::AddressMessage| {
        AddressMessage::read("RTM_GETADDR", &of_library(&RouteNetlinkMessage::NewAddress(message.clone()))).unwrap()
    };
    let found = read(&message);
    assert_eq!((found.index, found.address, found.prefix), (3, Some(ip("10.0.0.1")), 24));
    assert!(found.tentative() && !found.duplicate());
    message.attributes =
        vec![AddressAttribute::Address(ip("fd77::1")), AddressAttribute::Flags(AddressFlags::Dadfailed)];
    let found = read(&message);
    assert_eq!(found.address, Some(ip("fd77::1")));
    assert!(!found.tentative() && found.duplicate());
}

#[test]
fn a_route_is_read_with_one_next_hop_or_several() {
    let read = |message: &library_route::RouteMessage| {
        RouteMessage::read("RTM_GETROUTE", &of_library(&RouteNetlinkMessage::NewRoute(message.clone()))).unwrap()
    };
    let mut message = library_route::RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Dhcp;
    message.attributes = vec![RouteAttribute::Oif(2), RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()))];
    let found = read(&message);
    let via = NextHop { device: 2, gateway: Some(ip("fe80::1")) };
    assert!(found.ipv4 && found.default && found.main && found.destination.is_none());
    assert_eq!((found.protocol, found.next_hops), (16, vec![via]));

    let hop = |device, gateway: &str| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = device;
        hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(ip(gateway)))];
        hop
    };
    message.attributes = vec![RouteAttribute::MultiPath(vec![hop(2, "10.0.0.1"), hop(3, "10.0.1.1")])];
    let several = [(2, "10.0.0.1"), (3, "10.0.1.1")];
    let several = several.map(|(device, gateway)| NextHop { device, gateway: Some(ip(gateway)) });
    assert_eq!(read(&message).next_hops, several);

    message.header.address_family = AddressFamily::Inet6;
    message.header.table = 7;
    message.header.destination_prefix_length = 64;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(ip("fd77:1::"))),
        RouteAttribute::PrefSource(RouteAddress::from(ip("fd77::1"))),
        RouteAttribute::Priority(1024),
        RouteAttribute::Oif(9),
    ];
    let found = read(&message);
    assert_eq!(found.destination, Some("fd77:1::/64".parse().unwrap()));
    assert_eq!((found.source, found.priority), (Some(ip("fd77::1")), 1024));
    assert_eq!(found.next_hops, [NextHop { device: 9, gateway: None }]);
    assert!(!found.ipv4 && !found.default && !found.main);
}

/// Parses a message as each type. Returns whether each attempt succeeded.
fn read_all(kind: u16, body: &[u8]) -> [bool; 3] {
    let message = RawMessage { kind, body: body.to_vec() };
    [
        LinkMessage::read("", &message).is_ok(),
        AddressMessage::read("", &message).is_ok(),
        RouteMessage::read("", &message).is_ok(),
    ]
}

/// `RTM_NEWLINK`, `RTM_NEWADDR`, `RTM_NEWROUTE`, with the lengths of their fixed parts.
const KINDS: [(u16, usize); 3] = [(16, 16), (20, 8), (24, 12)];

#[test]
fn a_cut_or_damaged_message_is_refused_and_nothing_panics() {
    let whole = port().body;
    for length in 0..whole.len() {
        for (kind, fixed) in KINDS {
            let read = read_all(kind, &whole[..length]);
            assert!(length >= fixed || read == [false; 3], "type {kind}, {length} bytes: {read:?}");
        }
    }
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            read_all(16, &damaged);
        }
    }
    assert_eq!(read_all(28, &whole), [false; 3]);
    assert_eq!(read_all(16, &whole), [true, false, false]);
    // A next hop whose length field is zero, or less than its fixed part.
    for length in [0_u8, 7] {
        let mut route = vec![0; 12];
        route.extend([12, 0, 9, 0, length, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(read_all(24, &route), [false; 3]);
    }
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic(kind in prop::sample::select(&KINDS[..]), body in vec(any::<u8>(), 0..300)) {
        read_all(kind.0, &body);
    }

    #[test]
    fn arbitrary_values_in_well_formed_attributes_never_panic(
        kind in prop::sample::select(&KINDS[..]),
        attributes in vec((0..70_u16, vec(any::<u8>(), 0..40)), 0..8),
        // Nested attributes of a link: its kind, or its bridge port settings.
        infos in vec((0..6_u16, vec(any::<u8>(), 0..12)), 0..4),
        settings in vec((0..50_u16, vec(any::<u8>(), 0..20)), 0..6),
    ) {
        let add = |all: &[(u16, Vec<u8>)], to: &mut Attributes| {
            all.iter().for_each(|(kind, value)| to.bytes(*kind, value));
        };
        let mut all = Attributes::default();
        add(&attributes, &mut all);
        all.nest(18, |info| {
            add(&infos, info);
            info.text(4, "bridge");
            info.nest(5, |data| add(&settings, data));
        });
        let mut body = vec![0; kind.1];
        body.extend(all.octets());
        read_all(kind.0, &body);
    }
}
