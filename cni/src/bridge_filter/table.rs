//! The table's sets, chains and rules. `docs/cni.md` contains them in the format of nft(8), and a
//! test compares the two.
//!
//! A rule does not match if one of its expressions cannot be loaded (`NFT_BREAK`), for example a
//! port number that is not in this fragment. For this reason the rules accept packets, and the end
//! of each chain drops all others.

use crate::nftables::expression::{Base, Comparison, Expression, Meta, Rule, Verdict};
use crate::nftables::{self, BRIDGE, BaseChain, INTEGER, INTERFACE, IPV4, IPV6, MAC, Table};

/// The table.
pub(super) const TABLE: Table = Table { family: BRIDGE, name: "edge-cni" };

/// The prefix of the names of pods' host ends.
pub(crate) const PORT_PREFIX: &str = "ecni";

/// `enum nf_br_hook_priorities`, `NF_BR_PRI_FILTER_BRIDGED` (`linux/netfilter_bridge.h`): the
/// priority before br_netfilter passes a frame to iptables.
const PRIORITY: i32 = -200;

/// The register after an interface's name of 16 bytes, and the register after the MAC address that
/// follows the name and occupies two registers of 4 bytes.
const SECOND: u32 = 2;
const THIRD: u32 = 14;

/// `IPPROTO_ICMP`, `IPPROTO_UDP` and `IPPROTO_ICMPV6`.
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Types of ICMP messages that report an error about a packet and contain its beginning (RFC 792):
/// destination unreachable, source quench, redirect, time exceeded, parameter problem.
const ICMP_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];

/// The chains. A chain comes before the chains with rules that jump to it.
pub(super) const CHAINS: [(&str, Option<BaseChain>); 10] = [
    ("pod-arp", None),
    ("source-ipv4", None),
    ("errors-ipv4", None),
    ("pod-ipv4", None),
    ("source-ipv6", None),
    ("errors-ipv6", None),
    ("pod-ipv6", None),
    ("pod", None),
    // The bridge learns a MAC address after this hook (br_handle_frame_finish), so it does not
    // learn the address of a dropped frame.
    ("prerouting", Some(BaseChain { hook: 0, priority: PRIORITY })),
    ("forward", Some(BaseChain { hook: 2, priority: PRIORITY })),
];

/// The sets. Each key begins with the name of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FilterSet {
    /// Each port, paired with itself. The set's name contains the table's version, so adding a port
    /// to a table of another version fails.
    Ports,
    /// Port and the pod's MAC address.
    Macs,
    /// Port, MAC address and IPv4 address.
    Ipv4,
    /// Port, MAC address and IPv6 address, including the link-local one.
    Ipv6,
    /// Port and an IPv6 address that the pod may advertise. The pod may send errors about packets
    /// to this address.
    Targets,
    /// Port and an IPv4 address. The pod may send errors about packets to this address.
    ErrorTargets,
    /// Ports of pods that the operator has exempted.
    Unfiltered,
}

impl FilterSet {
    pub(super) const ALL: [Self; 7] =
        [Self::Ports, Self::Macs, Self::Ipv4, Self::Ipv6, Self::Targets, Self::ErrorTargets, Self::Unfiltered];

    /// Returns the set's name. The version in [`FilterSet::Ports`] must be increased with every
    /// change of sets, chains or rules.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports-v3",
            Self::Macs => "macs",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Targets => "nd-targets",
            Self::ErrorTargets => "error-targets",
            Self::Unfiltered => "unfiltered",
        }
    }

    const fn types(self) -> &'static [u32] {
        match self {
            Self::Ports => &[INTERFACE, INTERFACE],
            Self::Macs => &[INTERFACE, MAC],
            Self::Ipv4 => &[INTERFACE, MAC, IPV4],
            Self::Ipv6 => &[INTERFACE, MAC, IPV6],
            Self::Targets => &[INTERFACE, INTEGER, INTEGER],
            Self::ErrorTargets => &[INTERFACE, INTEGER],
            Self::Unfiltered => &[INTERFACE],
        }
    }

    /// Returns the definition of the set for the message that creates it.
    pub(super) fn definition(self) -> nftables::Set {
        nftables::Set {
            name: self.name(),
            id: self as u32 + 1,
            key_type: self.key_type(),
            key_length: self.key_length(),
            intervals: false,
            user_data: self.user_data(),
        }
    }

    pub(super) fn key_type(self) -> u32 {
        // `TYPE_BITS` of nft(8) is 6.
        self.types().iter().fold(0, |whole, part| whole << 6 | part)
    }

    /// Returns the length of a key in bytes. Each part occupies a multiple of four bytes.
    pub(super) fn key_length(self) -> u32 {
        let length = |part: &u32| match *part {
            INTERFACE => 16,
            MAC => 8,
            IPV4 => 4,
            INTEGER => 0,
            _ => 16,
        };
        let integers = self.parts_of_packets().iter().map(|(_, bits)| bits / 8);
        self.types().iter().map(length).chain(integers).sum()
    }

    /// Returns the offset and the length, in bits from the transport header, of the parts of a
    /// packet that the integers of a key contain.
    const fn parts_of_packets(self) -> &'static [(u32, u32)] {
        match self {
            Self::Targets => &[(64, 64), (128, 64)],
            Self::ErrorTargets => &[(192, 32)],
            _ => &[],
        }
    }

    /// Returns the user data from which nft(8) shows the set as it was written (libnftnl/udata.h,
    /// set_udata_key_* in nft): the key's byte order and, for [`FilterSet::Targets`] and
    /// [`FilterSet::ErrorTargets`], that the key has the type `iifname . @th,64,64 . @th,128,64` or
    /// `iifname . @th,192,32`. (nft before 1.0.8 has no `icmpv6 taddr`. Later releases show the two
    /// halves in that form.)
    pub(super) fn user_data(self) -> Vec<u8> {
        let field = |kind: u8, value: &[u8]| [&[kind, value.len() as u8], value].concat();
        let number = |kind: u8, value: u32| field(kind, &value.to_ne_bytes());
        // NFTNL_UDATA_SET_KEYBYTEORDER: an interface's name has the byte order of the host, and a
        // concatenation has none.
        let order = number(0, u32::from(self == Self::Unfiltered));
        if self.parts_of_packets().is_empty() {
            return order;
        }
        // `enum expr_types`: EXPR_META with NFT_META_IIFNAME.
        let name = [number(0, 9), field(1, &number(0, Meta::InputName as u32))].concat();
        // EXPR_PAYLOAD without a protocol, relative to PROTO_BASE_TRANSPORT_HDR, with offset and
        // length in bits.
        let part = |(offset, length): &(u32, u32)| {
            let place = [number(0, 0), number(1, 0), number(2, 3), number(3, *offset), number(4, *length)].concat();
            [number(0, 7), field(1, &place)].concat()
        };
        let mut parts = field(0, &name);
        for (index, place) in (1..).zip(self.parts_of_packets()) {
            parts.extend(field(index, &part(place)));
        }
        // NFTNL_UDATA_SET_KEY_TYPEOF of EXPR_CONCAT.
        [order, field(3, &[number(0, 13), field(1, &parts)].concat())].concat()
    }
}

/// Returns the rules, in order.
pub(super) fn rules() -> Vec<Rule> {
    let accept = Expression::Verdict(Verdict::Accept);
    let mut rules = Vec::new();
    let mut rule = |chain, parts: Vec<Vec<Expression>>, comment| {
        rules.push(Rule { chain, expressions: parts.concat(), comment });
    };
    rule("prerouting", vec![from_port(), goto("pod")], None);
    // In hairpin mode, a pod would otherwise receive its own broadcasts and flooded frames.
    rule("forward", vec![same_port(), not_for_us(), vec![Expression::Verdict(Verdict::Drop)]], None);

    rule("pod", vec![input_name(), in_set(FilterSet::Unfiltered), vec![accept.clone()]], None);
    rule(
        "pod",
        vec![port_and(Base::Link, 6, 6), not_in_set(FilterSet::Macs), count_and_drop()],
        Some("source MAC address"),
    );
    rule("pod", vec![link_local_group(), count_and_drop()], Some("group of bridges"));
    rule("pod", vec![ethertype(0x0806), goto("pod-arp")], None);
    rule("pod", vec![ethertype(0x0800), goto("pod-ipv4")], None);
    rule("pod", vec![ethertype(0x86dd), goto("pod-ipv6")], None);
    // Frames with a VLAN tag are dropped here too, since the tag is also an ethertype.
    rule("pod", vec![count_and_drop()], Some("neither ARP nor IP"));

    // RFC 826: Ethernet and IPv4, with addresses of 6 and 4 octets. The sender's addresses must be
    // those of the pod.
    let sender =
        [port_and(Base::Network, 8, 6), load_into_third(Base::Network, 14, 4), in_set(FilterSet::Ipv4)].concat();
    rule("pod-arp", vec![arp(&[0, 1, 8, 0], &[6, 4]), sender, vec![accept.clone()]], None);
    // RFC 5227 2.1.1: a probe has the sender address 0.0.0.0 and asks for the sender's own address.
    let probe =
        [port_and(Base::Network, 8, 6), load_into_third(Base::Network, 24, 4), in_set(FilterSet::Ipv4)].concat();
    let from_nowhere = vec![payload(Base::Network, 14, 4), equals(&[0; 4])];
    rule("pod-arp", vec![arp(&[0, 1, 8, 0], &[6, 4, 0, 1]), from_nowhere, probe, vec![accept.clone()]], None);
    rule("pod-arp", vec![count_and_drop()], Some("ARP sender"));

    // Messages to the client port are dropped too, since clients accept answers from any source
    // port, and a pod may be a client.
    rule("pod-ipv4", vec![layer4(UDP), transport(&[0, 67]), count_and_drop()], Some("DHCP server"));
    rule("pod-ipv4", vec![layer4(UDP), to_transport_port(68), count_and_drop()], Some("DHCP server"));
    // With `route_localnet`, which portmap and kube-proxy set, the host would accept such a packet
    // as its own.
    let loopback = vec![protocol(0x0800), vec![payload(Base::Network, 16, 1), equals(&[127])], count_and_drop()];
    rule("pod-ipv4", loopback, Some("loopback address"));
    let igmp = vec![payload(Base::Network, 9, 1), equals(&[2])];
    rule("pod-ipv4", vec![protocol(0x0800), igmp, transport(&[0x11]), count_and_drop()], Some("IGMP query"));
    for kind in ICMP_ERRORS {
        rule("pod-ipv4", vec![ethertype(0x0800), layer4(ICMP), transport(&[kind]), goto("errors-ipv4")], None);
    }
    rule("pod-ipv4", vec![goto("source-ipv4")], None);
    // The receiver of an error accepts it from any sender, for example with an MTU for the path to
    // another node. A pod may report errors only about packets that were sent to it, so the
    // destination of the packet within the error (RFC 792) must be the pod.
    let about_own = [port_and(Base::Transport, 24, 4), in_set(FilterSet::ErrorTargets)].concat();
    rule("errors-ipv4", vec![about_own, goto("source-ipv4")], None);
    rule("errors-ipv4", vec![count_and_drop()], Some("ICMP error about another's packet"));
    let source = [port_and(Base::Link, 6, 6), load_into_third(Base::Network, 12, 4), in_set(FilterSet::Ipv4)].concat();
    rule("source-ipv4", vec![protocol(0x0800), source, vec![accept.clone()]], None);
    rule("source-ipv4", vec![count_and_drop()], Some("IPv4 source"));

    for (kind, name) in [(134, "router advertisement"), (137, "redirect"), (130, "MLD query")] {
        rule("pod-ipv6", vec![ethertype(0x86dd), icmpv6(kind), count_and_drop()], Some(name));
    }
    rule("pod-ipv6", vec![layer4(UDP), transport(&[2, 35]), count_and_drop()], Some("DHCPv6 server"));
    rule("pod-ipv6", vec![layer4(UDP), to_transport_port(546), count_and_drop()], Some("DHCPv6 server"));
    // RFC 4861 4.3, 4.4: the target follows the type, code, checksum and flags. Hosts ignore
    // fragments of these messages (RFC 6980).
    let target = || [port_and(Base::Transport, 8, 8), load_into_third(Base::Transport, 16, 8)].concat();
    let foreign = [target(), not_in_set(FilterSet::Targets)].concat();
    rule("pod-ipv6", vec![ethertype(0x86dd), icmpv6(136), foreign, count_and_drop()], Some("advertised address"));
    rule("pod-ipv6", vec![ethertype(0x86dd), layer4(ICMPV6), icmpv6_error(), goto("errors-ipv6")], None);
    rule("pod-ipv6", vec![goto("source-ipv6")], None);
    // RFC 4443 3.
    let halves = [port_and(Base::Transport, 32, 8), load_into_third(Base::Transport, 40, 8)].concat();
    let about_own = [halves, in_set(FilterSet::Targets)].concat();
    rule("errors-ipv6", vec![about_own, goto("source-ipv6")], None);
    rule("errors-ipv6", vec![count_and_drop()], Some("ICMPv6 error about another's packet"));
    let source = [port_and(Base::Link, 6, 6), load_into_third(Base::Network, 8, 16), in_set(FilterSet::Ipv6)].concat();
    rule("source-ipv6", vec![protocol(0x86dd), source, vec![accept.clone()]], None);
    // A pod has no address yet during duplicate address detection (RFC 4862 5.4.2) and when it
    // reports multicast groups (RFC 3590).
    let unspecified = || [protocol(0x86dd), vec![payload(Base::Network, 8, 16), equals(&[0; 16])]].concat();
    let own = [target(), in_set(FilterSet::Targets)].concat();
    rule("source-ipv6", vec![unspecified(), icmpv6(135), own, vec![accept.clone()]], None);
    for report in [131, 132, 143] {
        rule("source-ipv6", vec![unspecified(), icmpv6(report), vec![accept.clone()]], None);
    }
    rule("source-ipv6", vec![count_and_drop()], Some("IPv6 source"));
    rules
}

fn from_port() -> Vec<Expression> {
    [input_name(), vec![equals(PORT_PREFIX.as_bytes())]].concat()
}

fn input_name() -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::InputName, register: 1 }]
}

fn same_port() -> Vec<Expression> {
    let output = Expression::Meta { key: Meta::OutputName, register: SECOND };
    [input_name(), vec![output], in_set(FilterSet::Ports)].concat()
}

/// Matches frames that were not sent to the bridge's own MAC address (`PACKET_HOST`,
/// `linux/if_packet.h`). A frame to that address was sent to a Service, and br_netfilter returned
/// it to the bridge.
fn not_for_us() -> Vec<Expression> {
    let kind = Expression::Meta { key: Meta::PacketType, register: 1 };
    vec![kind, Expression::Compare { operation: Comparison::NotEqual, value: vec![0] }]
}

/// Matches the multicast addresses of bridge protocols (IEEE 802.1D table 7-10).
fn link_local_group() -> Vec<Expression> {
    let bound = |operation, last| Expression::Compare { operation, value: vec![0x01, 0x80, 0xc2, 0, 0, last] };
    vec![payload(Base::Link, 0, 6), bound(Comparison::AtLeast, 0), bound(Comparison::AtMost, 0x0f)]
}

fn ethertype(number: u16) -> Vec<Expression> {
    vec![payload(Base::Link, 12, 2), equals(&number.to_be_bytes())]
}

/// Matches the beginning of an ARP packet, in two parts.
fn arp(first: &[u8], second: &[u8]) -> Vec<Expression> {
    let part = |offset, bytes: &[u8]| vec![payload(Base::Network, offset, bytes.len() as u32), equals(bytes)];
    [ethertype(0x0806), part(0, first), part(4, second)].concat()
}

/// Matches the ethertype of the bridged frame. nft(8) can show the expressions after it only with
/// this match.
fn protocol(number: u16) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::Protocol, register: 1 }, equals(&number.to_be_bytes())]
}

fn layer4(number: u8) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::Layer4Protocol, register: 1 }, equals(&[number])]
}

/// Matches the first bytes after the IP header.
fn transport(bytes: &[u8]) -> Vec<Expression> {
    vec![payload(Base::Transport, 0, bytes.len() as u32), equals(bytes)]
}

/// Matches the destination port.
fn to_transport_port(number: u16) -> Vec<Expression> {
    vec![payload(Base::Transport, 2, 2), equals(&number.to_be_bytes())]
}

fn icmpv6(kind: u8) -> Vec<Expression> {
    [layer4(ICMPV6), transport(&[kind])].concat()
}

/// Matches the types of ICMPv6 errors (RFC 4443 2.1).
fn icmpv6_error() -> Vec<Expression> {
    vec![payload(Base::Transport, 0, 1), Expression::Compare { operation: Comparison::AtMost, value: vec![127] }]
}

/// Loads the port's name, then bytes of the packet.
fn port_and(base: Base, offset: u32, length: u32) -> Vec<Expression> {
    [input_name(), vec![Expression::Payload { base, offset, length, register: SECOND }]].concat()
}

fn load_into_third(base: Base, offset: u32, length: u32) -> Vec<Expression> {
    vec![Expression::Payload { base, offset, length, register: THIRD }]
}

fn payload(base: Base, offset: u32, length: u32) -> Expression {
    Expression::Payload { base, offset, length, register: 1 }
}

fn equals(value: &[u8]) -> Expression {
    Expression::Compare { operation: Comparison::Equal, value: value.to_vec() }
}

fn in_set(set: FilterSet) -> Vec<Expression> {
    vec![Expression::Lookup { set: set.name(), inverted: false }]
}

fn not_in_set(set: FilterSet) -> Vec<Expression> {
    vec![Expression::Lookup { set: set.name(), inverted: true }]
}

fn count_and_drop() -> Vec<Expression> {
    vec![Expression::Counter, Expression::Verdict(Verdict::Drop)]
}

fn goto(chain: &'static str) -> Vec<Expression> {
    vec![Expression::Verdict(Verdict::Goto(chain))]
}
