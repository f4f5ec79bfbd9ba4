//! The table's sets, chains and rules. `docs/cni.md` contains them in the format of nft(8), and a
//! test compares the two.

use std::net::IpAddr;

use edge_types::IpNetwork;
use edge_types::network::contains;
use edge_xfrm::netlink::RawMessage;

use crate::net::uplink::Uplink;
use crate::nftables::expression::{Base, Comparison, ConntrackKey, Expression, Meta, Rule, Verdict};
use crate::nftables::{BaseChain, IFNAMSIZ, INET, INTERFACE, IPV4, IPV6, Set, Table, interface_key, wire};
use crate::sort::sort_by;

/// The table.
pub(super) const TABLE: Table = Table { family: INET, name: "edge-cni-pods" };

/// The set of the pods' bridges. The version in its name must be increased with every change of
/// sets, chains or rules.
pub(super) const BRIDGES: &str = "bridges-v3";

/// The kinds of links of container runtimes, hypervisors and other CNIs. Hosts behind such links
/// may reach outside hosts.
pub(super) const CONTAINER_KINDS: [&str; 6] = ["bridge", "dummy", "geneve", "netkit", "veth", "vxlan"];

const KINDS: &str = "container-kinds";
/// The set of links that are of one of these kinds but are uplinks.
const UPLINKS: &str = "uplinks";
/// Networks of the pods, IPv4 and IPv6.
const OWN: [&str; 2] = ["own4", "own6"];
/// Addresses without published ports, IPv4 and IPv6.
const SERVICES: [&str; 2] = ["services4", "services6"];

const PREROUTING: &str = "prerouting";
const FORWARD: &str = "forward";
const REDIRECTED: &str = "redirected";
const TO_PODS: &str = "to-pods";
const BETWEEN_UPLINKS: &str = "between-uplinks";
const SERVICES_HERE: &str = "services-here";

/// `RTN_LOCAL` (`linux/rtnetlink.h`).
const LOCAL: u32 = 2;

/// `NF_INET_PRE_ROUTING` with the priority of the agent's chain, before connection tracking (-200),
/// which restores the destinations of reply packets.
const PREROUTING_HOOK: BaseChain = BaseChain { hook: 0, priority: -300 };

/// `NF_INET_LOCAL_IN`, before IPVS (98).
const INPUT_HOOK: BaseChain = BaseChain { hook: 1, priority: -150 };

/// `NF_INET_FORWARD` (`linux/netfilter.h`) with the priority of the agent's chain, after connection
/// tracking (-200) and destination NAT (-100 in an earlier hook).
const FORWARD_HOOK: BaseChain = BaseChain { hook: 2, priority: -150 };

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const NFPROTO: [u8; 2] = [2, 10];
/// `NF_CT_STATE_BIT` for `IP_CT_ESTABLISHED` and `IP_CT_RELATED`
/// (`linux/netfilter/nf_conntrack_common.h`).
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
/// `IPS_DST_NAT`, `IP_CT_DIR_ORIGINAL` and `IP_CT_DIR_REPLY` (same header).
const DST_NAT: u32 = 1 << 5;
const ORIGINAL: u8 = 0;
const REPLY: u8 = 1;

/// The content of the table.
#[derive(Debug)]
pub(super) struct TableContent {
    /// Names of the pods' bridges in all networks of the plugin.
    pub(super) bridges: Vec<String>,
    /// Networks of the pods.
    pub(super) own: Vec<IpNetwork>,
    /// Outside sources that may reach pods.
    pub(super) sources: Vec<IpNetwork>,
    /// The cloud's networks, if this host is a hub.
    pub(super) fronted: Vec<IpNetwork>,
    /// Networks without published addresses. Redirected connections to these networks are dropped,
    /// unless a pod or a host in `sources` opened them.
    pub(super) services: Vec<IpNetwork>,
    /// For IPv4 and IPv6: whether this host must not forward between its other networks.
    pub(super) isolated: [bool; 2],
    /// Links that are of one of the [`CONTAINER_KINDS`] but are uplinks.
    pub(super) uplinks: Vec<Uplink>,
}

impl TableContent {
    /// Returns the messages that fill the table, which must be empty. `fib` states whether the
    /// kernel has the expression `fib` in the family inet (`CONFIG_NFT_FIB_INET`).
    pub(super) fn messages(&self, fib: bool) -> Vec<(RawMessage, u16)> {
        let isolates = self.isolated != [false; 2];
        let mut messages = vec![TABLE.new_set(&interfaces(BRIDGES, 1))];
        for (index, (name, key_type, key_length)) in
            [(SERVICES[0], IPV4, 4), (SERVICES[1], IPV6, 16), (OWN[0], IPV4, 4), (OWN[1], IPV6, 16)]
                .into_iter()
                .enumerate()
        {
            let user_data = byte_order(BIG_ENDIAN);
            messages.push(TABLE.new_set(&Set {
                name,
                id: 2 + index as u32,
                key_type,
                key_length,
                intervals: true,
                user_data,
            }));
        }
        if isolates {
            messages.push(TABLE.new_set(&interfaces(KINDS, 6)));
            messages.push(TABLE.new_set(&interfaces(UPLINKS, 7)));
            messages.push(TABLE.new_chain(BETWEEN_UPLINKS, None));
        }
        for chain in [REDIRECTED, TO_PODS] {
            messages.push(TABLE.new_chain(chain, None));
        }
        messages.push(TABLE.new_chain(PREROUTING, Some(&PREROUTING_HOOK)));
        messages.extend(rules_of_prerouting().iter().map(|rule| TABLE.new_rule(rule)));
        messages.push(TABLE.new_chain(FORWARD, Some(&FORWARD_HOOK)));
        if !self.services.is_empty() {
            messages.push(TABLE.new_chain(SERVICES_HERE, Some(&INPUT_HOOK)));
            messages.extend(self.rules_of_services_here(fib).iter().map(|rule| TABLE.new_rule(rule)));
        }
        messages.extend(self.rules(isolates).iter().map(|rule| TABLE.new_rule(rule)));
        add_names(&mut messages, BRIDGES, self.bridges.iter().map(String::as_str));
        messages.extend(add_networks(SERVICES, &self.services));
        messages.extend(add_networks(OWN, &self.own));
        if isolates {
            add_names(&mut messages, KINDS, CONTAINER_KINDS.into_iter());
            add_names(&mut messages, UPLINKS, self.uplinks.iter().map(|uplink| uplink.name.as_str()));
        }
        messages
    }

    /// Returns the rules for Service connections that this host proxies to a pod itself, so that
    /// they bypass the chain `forward`. These are connections that are redirected to a proxy on
    /// this host (EdgeMesh) and, with `fib`, connections to addresses that IPVS has assigned to a
    /// link of this host (kube-ipvs0). An address of the link on which the packet arrived is the
    /// host's own.
    fn rules_of_services_here(&self, fib: bool) -> Vec<Rule> {
        let accepted = vec![Expression::Verdict(Verdict::Accept)];
        let mut rules: Vec<Vec<Expression>> = vec![
            vec![meta(Meta::InputName), Expression::Lookup { set: BRIDGES, inverted: false }],
            vec![meta(Meta::InputName), equals(&interface_key("lo"))],
            vec![meta(Meta::SecurityPath), equals(&[1])],
        ];
        rules.extend(self.sources.iter().map(source_in));
        rules.iter_mut().for_each(|rule| rule.extend(accepted.clone()));
        for (set, ipv4) in SERVICES.into_iter().zip([true, false]) {
            // Only the original direction is matched, since replies to processes of this host that
            // use an outside Service are also redirected.
            let from_clients = vec![Expression::Conntrack(ConntrackKey::Direction), equals(&[ORIGINAL])];
            let sent_to = vec![Expression::OriginalDestination { ipv4 }, Expression::Lookup { set, inverted: false }];
            let drop = vec![Expression::Counter, Expression::Verdict(Verdict::Drop)];
            rules.push([connection(ConntrackKey::Status, DST_NAT), from_clients, sent_to, drop].concat());
        }
        for ((set, family), (offset, length)) in
            SERVICES.into_iter().zip(NFPROTO).zip([(16, 4), (24, 16)]).filter(|_| fib)
        {
            rules.push(vec![
                meta(Meta::NetfilterProtocol),
                equals(&[family]),
                Expression::Payload { base: Base::Network, offset, length, register: 1 },
                Expression::Lookup { set, inverted: false },
                Expression::DestinationTypeOnInput,
                Expression::Compare { operation: Comparison::NotEqual, value: LOCAL.to_ne_bytes().to_vec() },
                Expression::Counter,
                Expression::Verdict(Verdict::Drop),
            ]);
        }
        let rule = |expressions| Rule { chain: SERVICES_HERE, expressions, comment: None };
        rules.into_iter().map(rule).collect()
    }

    /// Returns the rules in order. They are those rules of the agent's chains `forward`, `to-pods`
    /// and `between-uplinks` that need no view.
    fn rules(&self, isolates: bool) -> Vec<Rule> {
        let accept = || vec![Expression::Verdict(Verdict::Accept)];
        let goto = |chain| vec![Expression::Verdict(Verdict::Goto(chain))];
        let drop = || vec![Expression::Counter, Expression::Verdict(Verdict::Drop)];
        let mut rules = Vec::new();
        let mut rule = |chain, parts: Vec<Vec<Expression>>| {
            rules.push(Rule { chain, expressions: parts.concat(), comment: None });
        };
        let bridge = |key| vec![meta(key), Expression::Lookup { set: BRIDGES, inverted: false }];
        rule(FORWARD, vec![bridge(Meta::OutputName), goto(TO_PODS)]);
        for (family, _) in NFPROTO.iter().zip(self.isolated).filter(|(_, isolated)| *isolated) {
            rule(FORWARD, vec![vec![meta(Meta::NetfilterProtocol), equals(&[*family])], goto(BETWEEN_UPLINKS)]);
        }
        // Only published addresses may be reached. The address of a Service is not a published
        // address.
        for (set, ipv4) in SERVICES.into_iter().zip([true, false]) {
            let sent_to = vec![Expression::OriginalDestination { ipv4 }, Expression::Lookup { set, inverted: false }];
            rule(REDIRECTED, vec![sent_to, drop()]);
        }
        rule(REDIRECTED, vec![accept()]);

        for chain in [TO_PODS, BETWEEN_UPLINKS].into_iter().take(1 + usize::from(isolates)) {
            // Only replies are accepted without further checks. Packets from the client of a
            // connection are checked again, since the connection may be older than the table.
            let answers = vec![Expression::Conntrack(ConntrackKey::Direction), equals(&[REPLY])];
            rule(chain, vec![connection(ConntrackKey::State, ESTABLISHED), answers, accept()]);
            rule(chain, vec![connection(ConntrackKey::State, RELATED), accept()]);
            // The packet came from a tunnel, and the policies have accepted it.
            rule(chain, vec![vec![meta(Meta::SecurityPath), equals(&[1])], accept()]);
            // In `to-pods`, these are packets between pods, which reach this hook because of
            // br_netfilter.
            rule(chain, vec![bridge(Meta::InputName), accept()]);
        }
        for source in &self.sources {
            rule(TO_PODS, vec![source_in(source), accept()]);
        }
        rule(TO_PODS, vec![connection(ConntrackKey::Status, DST_NAT), goto(REDIRECTED)]);
        rule(TO_PODS, vec![drop()]);
        if isolates {
            rule(BETWEEN_UPLINKS, vec![vec![Expression::RouteIntoIpsec, equals(&[1])], accept()]);
            let of_containers = |kind, name| {
                let of_kind = vec![meta(kind), Expression::Lookup { set: KINDS, inverted: false }];
                let leads_inside = vec![meta(name), Expression::Lookup { set: UPLINKS, inverted: true }];
                [of_kind, leads_inside].concat()
            };
            rule(BETWEEN_UPLINKS, vec![of_containers(Meta::InputKind, Meta::InputName), accept()]);
            // These pods belong to another CNI, which decides which hosts may reach them.
            for network in &self.fronted {
                let to_pods = of_containers(Meta::OutputKind, Meta::OutputName);
                rule(BETWEEN_UPLINKS, vec![address_in(network, Address::Destination), to_pods, accept()]);
            }
            // With br_netfilter, packets that a bridge forwards between its ports also reach this
            // hook.
            for uplink in self.uplinks.iter().filter(|uplink| uplink.is_bridge) {
                let over = |key| vec![meta(key), equals(&interface_key(&uplink.name))];
                rule(BETWEEN_UPLINKS, vec![over(Meta::InputName), over(Meta::OutputName), accept()]);
            }
            rule(BETWEEN_UPLINKS, vec![connection(ConntrackKey::Status, DST_NAT), goto(REDIRECTED)]);
            rule(BETWEEN_UPLINKS, vec![drop()]);
        }
        rules
    }
}

/// Returns the rules that drop packets with sources and destinations that no other host may use.
/// The first rules match loopback addresses, 127.0.0.0/8, in packets from other hosts and pods. The
/// kernel drops such packets too, unless portmap or kube-proxy has set `route_localnet`. It always
/// drops packets with `::1`. The other rules match source addresses of pods in packets that did not
/// come from a pods' bridge.
fn rules_of_prerouting() -> Vec<Rule> {
    let [ipv4, _] = NFPROTO;
    let mut rules =
        vec![vec![meta(Meta::InputName), equals(&interface_key("lo")), Expression::Verdict(Verdict::Accept)]];
    for offset in [16, 12] {
        rules.push(vec![
            meta(Meta::NetfilterProtocol),
            equals(&[ipv4]),
            Expression::Payload { base: Base::Network, offset, length: 1, register: 1 },
            equals(&[127]),
            Expression::Counter,
            Expression::Verdict(Verdict::Drop),
        ]);
    }
    let from_bridge = Expression::Lookup { set: BRIDGES, inverted: false };
    rules.push(vec![meta(Meta::InputName), from_bridge, Expression::Verdict(Verdict::Accept)]);
    // Packets from tunnels are accepted, since a former segment may belong to another node by now,
    // and the policies have accepted the packet.
    rules.push(vec![meta(Meta::SecurityPath), equals(&[1]), Expression::Verdict(Verdict::Accept)]);
    for ((set, family), (offset, length)) in OWN.into_iter().zip(NFPROTO).zip([(12, 4), (8, 16)]) {
        rules.push(vec![
            meta(Meta::NetfilterProtocol),
            equals(&[family]),
            Expression::Payload { base: Base::Network, offset, length, register: 1 },
            Expression::Lookup { set, inverted: false },
            Expression::Counter,
            Expression::Verdict(Verdict::Drop),
        ]);
    }
    rules.into_iter().map(|expressions| Rule { chain: PREROUTING, expressions, comment: None }).collect()
}

/// `enum byteorder` of nft(8).
const HOST_ENDIAN: u32 = 1;
const BIG_ENDIAN: u32 = 2;

/// Returns the user data `NFTNL_UDATA_SET_KEYBYTEORDER` (libnftnl/udata.h), from which nft(8)
/// determines how to show the keys.
fn byte_order(order: u32) -> Vec<u8> {
    [&[0, 4][..], &order.to_ne_bytes()].concat()
}

/// Returns the definition of a set of interface names, or of kinds of links, which have the same
/// type.
fn interfaces(name: &'static str, id: u32) -> Set {
    let user_data = byte_order(HOST_ENDIAN);
    Set { name, id, key_type: INTERFACE, key_length: IFNAMSIZ as u32, intervals: false, user_data }
}

fn add_names<'a>(messages: &mut Vec<(RawMessage, u16)>, set: &str, names: impl Iterator<Item = &'a str>) {
    let keys: Vec<Vec<u8>> = names.map(|name| interface_key(name).to_vec()).collect();
    messages.extend(keys.chunks(wire::ELEMENTS).map(|some| TABLE.add_elements(set, some)));
}

/// Returns the messages that add a pods' bridge and its networks to an existing table.
pub(super) fn add_bridge(bridge: &str, own: &[IpNetwork]) -> Vec<(RawMessage, u16)> {
    let mut messages = vec![TABLE.add_elements(BRIDGES, &[interface_key(bridge).to_vec()])];
    messages.extend(add_networks(OWN, own));
    messages
}

fn add_networks(sets: [&str; 2], networks: &[IpNetwork]) -> Vec<(RawMessage, u16)> {
    let mut messages = Vec::new();
    for (set, ipv4) in sets.into_iter().zip([true, false]) {
        let intervals = intervals(networks.iter().filter(|network| network.is_ipv4() == ipv4));
        messages.extend(intervals.chunks(wire::ELEMENTS / 2).map(|some| TABLE.add_intervals(set, some)));
    }
    messages
}

/// Returns the networks as sorted intervals that do not overlap. Each interval consists of its
/// first address and the address after its last one.
fn intervals<'a>(networks: impl Iterator<Item = &'a IpNetwork>) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut networks: Vec<&IpNetwork> = networks.collect();
    sort_by(&mut networks, |one, other| (one.network(), one.prefix()) < (other.network(), other.prefix()));
    // Two networks either are disjoint, or one contains the other and precedes it.
    networks.dedup_by(|network, outer| contains(outer, network));
    networks.into_iter().map(|network| (octets(network.network()), after(network.broadcast()))).collect()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Returns the octets of the next address; `None` after the last address.
fn after(address: IpAddr) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(address) => Some(address.to_bits().checked_add(1)?.to_be_bytes().to_vec()),
        IpAddr::V6(address) => Some(address.to_bits().checked_add(1)?.to_be_bytes().to_vec()),
    }
}

fn meta(key: Meta) -> Expression {
    Expression::Meta { key, register: 1 }
}

fn equals(value: &[u8]) -> Expression {
    Expression::Compare { operation: Comparison::Equal, value: value.to_vec() }
}

/// Matches if at least one of these bits is set in the value of `key`.
fn connection(key: ConntrackKey, bits: u32) -> Vec<Expression> {
    let zero = Expression::Compare { operation: Comparison::NotEqual, value: vec![0; 4] };
    vec![Expression::Conntrack(key), Expression::Mask(bits.to_ne_bytes().to_vec()), zero]
}

#[derive(Debug, Clone, Copy)]
enum Address {
    Source,
    Destination,
}

fn source_in(network: &IpNetwork) -> Vec<Expression> {
    address_in(network, Address::Source)
}

fn address_in(network: &IpNetwork, address: Address) -> Vec<Expression> {
    let [ipv4, ipv6] = NFPROTO;
    let family = if network.is_ipv4() { ipv4 } else { ipv6 };
    let offset = match (address, network) {
        (Address::Source, IpNetwork::V4(_)) => 12,
        (Address::Destination, IpNetwork::V4(_)) => 16,
        (Address::Source, IpNetwork::V6(_)) => 8,
        (Address::Destination, IpNetwork::V6(_)) => 24,
    };
    let (first, last) = (octets(network.network()), octets(network.broadcast()));
    vec![
        meta(Meta::NetfilterProtocol),
        equals(&[family]),
        Expression::Payload { base: Base::Network, offset, length: first.len() as u32, register: 1 },
        Expression::Compare { operation: Comparison::AtLeast, value: first },
        Expression::Compare { operation: Comparison::AtMost, value: last },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_do_not_overlap_and_reach_the_greatest_address() {
        let of = |texts: &[&str]| {
            let networks: Vec<IpNetwork> = texts.iter().map(|text| text.parse().unwrap()).collect();
            intervals(networks.iter())
        };
        let found = of(&["10.96.128.0/17", "10.96.0.0/16", "10.97.0.0/24", "10.96.0.0/16"]);
        let expected = [([10, 96, 0, 0], [10, 97, 0, 0]), ([10, 97, 0, 0], [10, 97, 1, 0])];
        assert_eq!(found, expected.map(|(first, end)| (first.to_vec(), Some(end.to_vec()))));
        assert_eq!(of(&["0.0.0.0/0"]), [(vec![0; 4], None)]);
        assert_eq!(of(&["::/0"]), [(vec![0; 16], None)]);
    }
}
