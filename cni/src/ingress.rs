//! Keeps hosts outside from pods by `table inet edge-cni-pods`, as long as the agent's own table,
//! which does the same and more, does not exist. So pods are protected from the first one on:
//! before the agent's first run on a boot, after `edge-agent down`, and without any agent.
//! Published ports (a translated destination) can be reached, and sources in `lanToPods` reach
//! pods.
//!
//! The table is made once. An ADD checks that it exists and contains the pod's bridge.

use std::net::{IpAddr, Ipv6Addr};

use edge_types::IpNetwork;
use edge_types::shared_files::SegmentsFile;
use edge_xfrm::netlink::{self, Netlink};

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::net::bridge;
use crate::net::link::Links;
use crate::nftables::expression::{Base, Comparison, ConntrackKey, Expression, Meta, Rule, Verdict};
use crate::nftables::{self, BaseChain, IFNAMSIZ, INET, INTERFACE, Set, Table, interface_key, wire};
use crate::segment;

const TABLE: Table = Table { family: INET, name: "edge-cni-pods" };
/// The agent's table. When the agent makes it, it deletes [`TABLE`].
const AGENTS_TABLE: Table = Table { family: INET, name: "edge-cni" };

/// The set of the pods' bridges. Its version must be raised with every change of chains or rules.
const BRIDGES: &str = "bridges-v1";
const TO_PODS: &str = "to-pods";

/// `NF_INET_FORWARD` (`linux/netfilter.h`) with the priority of the agent's chain: after connection
/// tracking (-200) and the translation of destinations (-100 of an earlier hook).
const FORWARD: BaseChain = BaseChain { hook: 2, priority: -150 };

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const NFPROTO: [u8; 2] = [2, 10];
/// `NF_CT_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`
/// (`linux/netfilter/nf_conntrack_common.h`).
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
/// `IPS_DST_NAT` and `IP_CT_DIR_REPLY` there.
const DST_NAT: u32 = 1 << 5;
const REPLY: u8 = 1;

const NEEDED: &str = "; the kernel needs nf_tables with the family inet and connection tracking (CONFIG_NF_TABLES_INET, CONFIG_NFT_CT), or let \
    everybody outside reach pods by \"lanToPods\": [\"0.0.0.0/0\", \"::/0\"] in the plugin's configuration";

/// Ensures that hosts outside do not reach the pods of this bridge, which must exist.
pub(crate) fn ensure(links: &mut Links, config: &Config, segments: &SegmentsFile) -> Result<()> {
    if all_sources_are_allowed(config, segments) {
        return Ok(());
    }
    let mut netlink = open()?;
    if exists(&mut netlink, &AGENTS_TABLE)? {
        return Ok(());
    }
    let present = nftables::elements(&mut netlink, &TABLE, BRIDGES).map_err(|error| kernel_error(&error))?;
    let key = interface_key(&config.bridge).to_vec();
    let add = || vec![TABLE.add_elements(BRIDGES, std::slice::from_ref(&key))];
    match present {
        Some(keys) if keys.contains(&key) => return Ok(()),
        Some(_) => transact(&mut netlink, add()),
        None => {
            let content = content(links, config, segments)?;
            match transact(&mut netlink, [vec![TABLE.create()], content.clone()].concat()) {
                // Another ADD was quicker, or the table is of another release.
                Err(error) if error.errno() == Some(libc::EEXIST) => transact(&mut netlink, add())
                    .or_else(|_| transact(&mut netlink, [TABLE.create_anew().to_vec(), content].concat())),
                made => made,
            }
        }
    }
    .map_err(|error| kernel_error(&error))?;
    remove_if_agent_has_its_own(&mut netlink)
}

/// Makes the table anew by the present configuration, or removes it if it is not needed: all
/// sources are allowed, there is no bridge, or the agent's table exists.
pub(crate) fn recreate(links: &mut Links, config: &Config, segments: &SegmentsFile) -> Result<()> {
    let mut netlink = open()?;
    if exists(&mut netlink, &AGENTS_TABLE)? {
        return remove(&mut netlink);
    }
    recreate_beside_agents(links, config, segments)?;
    remove_if_agent_has_its_own(&mut netlink)
}

/// As [`recreate`], but also while the agent's table exists, which is about to be removed. Returns
/// whether the table is needed and was made.
pub(crate) fn recreate_beside_agents(links: &mut Links, config: &Config, segments: &SegmentsFile) -> Result<bool> {
    let mut netlink = open()?;
    if all_sources_are_allowed(config, segments) || bridges(links)?.is_empty() {
        return remove(&mut netlink).map(|()| false);
    }
    let messages = [TABLE.create_anew().to_vec(), content(links, config, segments)?].concat();
    transact(&mut netlink, messages).map_err(|error| kernel_error(&error))?;
    Ok(true)
}

/// Fails if the table cannot be made; for STATUS. It changes nothing, since the kernel rolls the
/// attempt back.
pub(crate) fn dry_run(links: &mut Links, config: &Config, segments: Option<&SegmentsFile>) -> Result<()> {
    let Some(segments) = segments.filter(|segments| !all_sources_are_allowed(config, segments)) else { return Ok(()) };
    let mut netlink = open()?;
    if exists(&mut netlink, &AGENTS_TABLE)? {
        return Ok(());
    }
    let messages = [TABLE.create_anew().to_vec(), content(links, config, segments)?].concat();
    let tried = netlink.transaction("NFT_MSG_NEWTABLE", wire::begin(), messages, None);
    tried.map_err(|error| kernel_error(&error))
}

/// Whether the operator lets all sources reach pods, in each family that pods have.
fn all_sources_are_allowed(config: &Config, segments: &SegmentsFile) -> bool {
    let all = |ipv4| config.lan_to_pods.iter().any(|network| network.prefix() == 0 && network.is_ipv4() == ipv4);
    segment::families(&segments.segments).into_iter().all(|family| all(family == edge_types::api::Family::V4))
}

/// Removes the table if the agent has made its own meanwhile. Each makes its table before it looks
/// for the other's, so one of them sees both.
fn remove_if_agent_has_its_own(netlink: &mut Netlink) -> Result<()> {
    if exists(netlink, &AGENTS_TABLE)? { remove(netlink) } else { Ok(()) }
}

fn remove(netlink: &mut Netlink) -> Result<()> {
    match transact(netlink, vec![TABLE.delete()]) {
        Err(error) if error.errno() != Some(libc::ENOENT) => Err(kernel_error(&error)),
        _ => Ok(()),
    }
}

fn open() -> Result<Netlink> {
    Netlink::open(netlink_sys::protocols::NETLINK_NETFILTER).map_err(|error| kernel_error(&error))
}

fn exists(netlink: &mut Netlink, table: &Table) -> Result<bool> {
    match netlink.get::<_, wire::Message>("NFT_MSG_GETTABLE", table.get()) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(kernel_error(&error)),
    }
}

fn transact(netlink: &mut Netlink, messages: Vec<(wire::Message, u16)>) -> Result<(), netlink::Error> {
    netlink.transaction("NFT_MSG_NEWTABLE", wire::begin(), messages, Some(wire::end()))
}

/// The names of the pods' bridges, of all networks of the plugin.
fn bridges(links: &mut Links) -> Result<Vec<String>> {
    Ok(links.all()?.into_iter().filter(bridge::is_ours).map(|link| link.name).collect())
}

/// The messages for the table's content.
fn content(links: &mut Links, config: &Config, segments: &SegmentsFile) -> Result<Vec<(wire::Message, u16)>> {
    let keys: Vec<Vec<u8>> = bridges(links)?.iter().map(|name| interface_key(name).to_vec()).collect();
    // NFTNL_UDATA_SET_KEYBYTEORDER (libnftnl/udata.h): an interface's name is in the host's order.
    let user_data = [&[0, 4][..], &1_u32.to_ne_bytes()].concat();
    let set = Set { name: BRIDGES, id: 1, key_type: INTERFACE, key_length: IFNAMSIZ as u32, user_data };
    let mut messages =
        vec![TABLE.new_set(&set), TABLE.new_chain(TO_PODS, None), TABLE.new_chain("forward", Some(&FORWARD))];
    // Packets from networks that a hub fronts come over its LAN in clear, from cloud nodes.
    let sources: Vec<IpNetwork> = segments.networks.iter().chain(&config.lan_to_pods).copied().collect();
    messages.extend(rules(&sources).iter().map(|rule| TABLE.new_rule(rule)));
    messages.extend(keys.chunks(wire::ELEMENTS).map(|some| TABLE.add_elements(BRIDGES, some)));
    Ok(messages)
}

/// The rules, in their order. They are those of the agent's chains `forward` and `to-pods` that
/// need no view.
fn rules(sources: &[IpNetwork]) -> Vec<Rule> {
    let accept = || vec![Expression::Verdict(Verdict::Accept)];
    let mut rules = Vec::new();
    let mut rule = |chain, parts: Vec<Vec<Expression>>| {
        rules.push(Rule { chain, expressions: parts.concat(), comment: None });
    };
    let bridge = |key| vec![meta(key), Expression::Lookup { set: BRIDGES, inverted: false }];
    rule("forward", vec![bridge(Meta::OutputName), vec![Expression::Verdict(Verdict::Goto(TO_PODS))]]);
    // Answers only. What the client of a connection sends is not accepted, since the connection may
    // be older than the table.
    let answers = vec![Expression::Conntrack(ConntrackKey::Direction), equals(&[REPLY])];
    rule(TO_PODS, vec![connection(ConntrackKey::State, ESTABLISHED), answers, accept()]);
    rule(TO_PODS, vec![connection(ConntrackKey::State, RELATED), accept()]);
    // From a tunnel; the policies have accepted it.
    rule(TO_PODS, vec![vec![meta(Meta::SecurityPath), equals(&[1])], accept()]);
    // With br_netfilter, packets between pods pass this hook, too.
    rule(TO_PODS, vec![bridge(Meta::InputName), accept()]);
    rule(TO_PODS, vec![connection(ConntrackKey::Status, DST_NAT), accept()]);
    for source in sources {
        rule(TO_PODS, vec![source_in(source), accept()]);
    }
    rule(TO_PODS, vec![vec![Expression::Counter, Expression::Verdict(Verdict::Drop)]]);
    rules
}

fn meta(key: Meta) -> Expression {
    Expression::Meta { key, register: 1 }
}

fn equals(value: &[u8]) -> Expression {
    Expression::Compare { operation: Comparison::Equal, value: value.to_vec() }
}

/// Matches if one of these bits is set.
fn connection(key: ConntrackKey, bits: u32) -> Vec<Expression> {
    let zero = Expression::Compare { operation: Comparison::NotEqual, value: vec![0; 4] };
    vec![Expression::Conntrack(key), Expression::Mask(bits.to_ne_bytes().to_vec()), zero]
}

fn source_in(network: &IpNetwork) -> Vec<Expression> {
    let [ipv4, ipv6] = NFPROTO;
    let (family, offset, first, last) = match (network.network(), network.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (ipv4, 12, first.octets().to_vec(), last.octets().to_vec()),
        (first, last) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V6(address) => address.octets().to_vec(),
                IpAddr::V4(address) => Ipv6Addr::octets(&address.to_ipv6_mapped()).to_vec(),
            };
            (ipv6, 8, octets(first), octets(last))
        }
    };
    let length = first.len() as u32;
    vec![
        meta(Meta::NetfilterProtocol),
        equals(&[family]),
        Expression::Payload { base: Base::Network, offset, length, register: 1 },
        Expression::Compare { operation: Comparison::AtLeast, value: first },
        Expression::Compare { operation: Comparison::AtMost, value: last },
    ]
}

fn kernel_error(error: &netlink::Error) -> Error {
    let hint = match error.errno() {
        Some(libc::EPERM) => "; edge-cni must run as root with CAP_NET_ADMIN, and no other program may own that table",
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EINVAL | libc::ENOENT) => NEEDED,
        _ => "",
    };
    Error::new(Code::Filter, format!("cannot make {TABLE}, which keeps hosts outside from pods{hint}: {error}"))
}
