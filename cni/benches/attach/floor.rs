//! The baseline (`floor`): one process creates links, addresses and routes with the same netlink
//! requests as the plugin. It creates no leases, writes nothing to disk, and sets up neither a
//! filter nor a guard.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use edge_xfrm::netlink::Netlink;
use interop_tests::netns::succeed;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The argument that makes this program run as the baseline.
pub(crate) const ARGUMENT: &str = "--floor";

const BRIDGE: &str = "br0";

/// Creates the bridge that later calls use.
pub(crate) fn prepare(netns: &str) {
    for arguments in [
        "link add br0 type bridge",
        "addr add 10.77.0.1/16 dev br0",
        "addr add fd77::1/64 dev br0 nodad",
        "link set br0 up",
    ] {
        succeed(Command::new("ip").args(["-n", netns]).args(arguments.split(' ')));
    }
}

pub(crate) fn run() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let container = variable("CNI_CONTAINERID");
    let number: u8 = container.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let name = format!("floor{number}");
    match variable("CNI_COMMAND").as_str() {
        "ADD" => add(&name, &variable("CNI_NETNS"), number),
        "DEL" => del(&name),
        _ => println!("{{}}"),
    }
    ExitCode::SUCCESS
}

fn open() -> Netlink {
    Netlink::open(netlink_sys::protocols::NETLINK_ROUTE).expect("a netlink socket")
}

fn find(netlink: &mut Netlink, name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match netlink.get("RTM_GETLINK", RouteNetlinkMessage::GetLink(message)).expect("the link") {
        RouteNetlinkMessage::NewLink(link) => link,
        other => panic!("{other:?}"),
    }
}

fn set_up(netlink: &mut Netlink, index: u32, alias: Option<&str>) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.extend(alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
    netlink.execute("RTM_SETLINK", RouteNetlinkMessage::SetLink(message), 0).expect("the link comes up");
}

fn add(name: &str, netns: &str, number: u8) {
    let pod = File::open(PathBuf::from(netns)).expect("the pod's namespace");
    let mut host = open();
    let bridge = find(&mut host, BRIDGE).header.index;
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName("eth0".into()));
    peer.attributes.push(LinkAttribute::NetNsFd(pod.as_raw_fd()));
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Controller(bridge));
    let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), data]));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    host.execute("RTM_NEWLINK", RouteNetlinkMessage::NewLink(message), flags).expect("the pair");
    let index = find(&mut host, name).header.index;
    set_up(&mut host, index, Some("a pod"));
    let own = File::open("/proc/thread-self/ns/net").expect("this namespace");
    let enter =
        |file: &File| move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("the namespace");
    enter(&pod);
    configure(number);
    enter(&own);
    find(&mut host, name);
    println!("{{}}");
}

/// Sets the addresses and routes of the pod end.
fn configure(number: u8) {
    let mut netlink = open();
    let index = find(&mut netlink, "eth0").header.index;
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let addresses = [(format!("10.77.0.{}", number + 2), 16), (format!("fd77::{}", number + 2), 64)];
    for (address, prefix) in addresses {
        let address: IpAddr = address.parse().expect("an address");
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = prefix;
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        netlink.execute("RTM_NEWADDR", RouteNetlinkMessage::NewAddress(message), flags).expect("the address");
    }
    set_up(&mut netlink, index, None);
    let gateways = [
        (AddressFamily::Inet, RouteAddress::Inet([10, 77, 0, 1].into())),
        (AddressFamily::Inet6, RouteAddress::Inet6([0xfd77, 0, 0, 0, 0, 0, 0, 1].into())),
    ];
    for (family, gateway) in gateways {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes.push(RouteAttribute::Gateway(gateway));
        message.attributes.push(RouteAttribute::Oif(index));
        netlink.execute("RTM_NEWROUTE", RouteNetlinkMessage::NewRoute(message), flags).expect("the route");
    }
}

fn del(name: &str) {
    let mut netlink = open();
    let mut message = LinkMessage::default();
    message.header.index = find(&mut netlink, name).header.index;
    netlink.execute("RTM_DELLINK", RouteNetlinkMessage::DelLink(message), 0).expect("the pair goes");
}
