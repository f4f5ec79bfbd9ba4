//! Controls with `table inet edge-cni-pods` which packets this host forwards. It is used while the
//! agent's table, which does the same and more, does not exist: before the agent's first run after
//! a boot, after `edge-agent down`, and without an agent. Outside hosts reach pods only through
//! published ports, or if they are in `lanToPods`. A host that forwards only for pods does not
//! forward between its other networks.
//!
//! The table is created once. Each ADD checks that it exists and contains the pod's bridge.
//!
//! - `rules`: the sets, chains and rules.

mod rules;

use edge_types::IpNetwork;
use edge_types::forwarding::Forwarding;
use edge_types::shared_files::SegmentsFile;
use edge_xfrm::netlink::{self, Netlink, RawMessage};

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::net::bridge;
use crate::net::link::Links;
use crate::net::uplink;
use crate::nftables::{self, INET, Table, interface_key, wire};
use crate::segment;

use rules::{BRIDGES, TABLE, TableContent};

/// The agent's table. The agent deletes [`TABLE`] when it creates its own table.
const AGENTS_TABLE: Table = Table { family: INET, name: "edge-cni" };

const NEEDED: &str = "; the kernel needs nf_tables with the family inet, connection tracking and routes (CONFIG_NF_TABLES_INET, CONFIG_NFT_CT), \
    or let everybody outside reach pods, and this host's other networks through it, by \"lanToPods\": [\"0.0.0.0/0\", \"::/0\"] and \"forwardOthers\": \
    true in the plugin's configuration";

/// Returns the record of whether this host forwards only for pods.
pub(crate) fn forwarding(config: &Config) -> Forwarding {
    Forwarding::new(&config.state_dir, config.run_dir())
}

/// Ensures that the table exists and contains the configured bridge, which must exist.
pub(crate) fn ensure(links: &mut Links, config: &Config, segments: &SegmentsFile) -> Result<()> {
    if all_sources_are_allowed(config, segments) && isolated(config) == [false; 2] {
        return Ok(());
    }
    let mut netlink = open()?;
    if exists(&mut netlink, &AGENTS_TABLE)? {
        return Ok(());
    }
    let present = nftables::elements(&mut netlink, &TABLE, BRIDGES).map_err(|error| kernel_error(&error))?;
    let key = interface_key(&config.bridge).to_vec();
    if present.as_ref().is_some_and(|keys| keys.contains(&key)) {
        return Ok(());
    }
    let content = content(links, config, segments, isolated(config))?;
    // The kernel refuses the addition if another release created the table, or if the table has
    // networks that overlap those in `segments`.
    let add_or_replace = |netlink: &mut Netlink| {
        transact(netlink, rules::add_bridge(&config.bridge, &segments.segments))
            .or_else(|_| fill(TABLE.delete_and_create().to_vec(), &content, |messages| transact(netlink, messages)))
    };
    match present {
        Some(_) => add_or_replace(&mut netlink),
        None => match fill(vec![TABLE.create()], &content, |messages| transact(&mut netlink, messages)) {
            // Another ADD or another release has created the table.
            Err(error) if error.errno() == Some(libc::EEXIST) => add_or_replace(&mut netlink),
            made => made,
        },
    }
    .map_err(|error| kernel_error(&error))?;
    remove_if_agent_has_its_own(&mut netlink)
}

/// Replaces the table with one that corresponds to the current configuration. Removes the table if
/// it is not necessary, because there is neither a pods' bridge nor a network of this host to
/// protect, or because the agent's table exists.
pub(crate) fn recreate(links: &mut Links, config: &Config, segments: &SegmentsFile) -> Result<()> {
    let mut netlink = open()?;
    if exists(&mut netlink, &AGENTS_TABLE)? {
        return remove(&mut netlink);
    }
    recreate_beside_agents(links, config, segments)?;
    remove_if_agent_has_its_own(&mut netlink)
}

/// Does the same as [`recreate`], but even if the agent's table exists, because that table is about
/// to be removed. Returns whether the table is necessary and was created.
pub(crate) fn recreate_beside_agents(links: &mut Links, config: &Config, segments: &SegmentsFile) -> Result<bool> {
    let mut netlink = open()?;
    let isolated = isolated(config);
    let closes_pods = !all_sources_are_allowed(config, segments) && !bridges(links)?.is_empty();
    if !closes_pods && isolated == [false; 2] {
        return remove(&mut netlink).map(|()| false);
    }
    let content = content(links, config, segments, isolated)?;
    fill(TABLE.delete_and_create().to_vec(), &content, |messages| transact(&mut netlink, messages))
        .map_err(|error| kernel_error(&error))?;
    Ok(true)
}

/// Returns a message if the table, or the configured bridge in the table, is missing. `None` if
/// both exist or the table is not necessary.
pub(crate) fn missing(config: &Config, segments: &SegmentsFile) -> Result<Option<String>> {
    if all_sources_are_allowed(config, segments) && isolated(config) == [false; 2] {
        return Ok(None);
    }
    let mut netlink = open()?;
    if exists(&mut netlink, &AGENTS_TABLE)? {
        return Ok(None);
    }
    let present = nftables::elements(&mut netlink, &TABLE, BRIDGES).map_err(|error| kernel_error(&error))?;
    let in_place = present.is_some_and(|keys| keys.contains(&interface_key(&config.bridge).to_vec()));
    Ok((!in_place)
        .then(|| format!("{TABLE}, which keeps hosts outside from pods, is missing, or has lost {}", config.bridge)))
}

/// Fails if the table cannot be created. STATUS calls this. Nothing changes, since the kernel
/// reverts the attempt.
pub(crate) fn dry_run(links: &mut Links, config: &Config, segments: Option<&SegmentsFile>) -> Result<()> {
    // This assumes that forwarding is on only for pods, since the next ADD may turn it on.
    let isolated = [!config.forward_others; 2];
    let needed = |segments: &&SegmentsFile| !all_sources_are_allowed(config, segments) || !config.forward_others;
    let Some(segments) = segments.filter(needed) else { return Ok(()) };
    let mut netlink = open()?;
    if exists(&mut netlink, &AGENTS_TABLE)? {
        return Ok(());
    }
    let content = content(links, config, segments, isolated)?;
    let tried = fill(TABLE.delete_and_create().to_vec(), &content, |messages| {
        netlink.transaction("NFT_MSG_NEWTABLE", wire::begin(), messages, None)
    });
    tried.map_err(|error| kernel_error(&error))
}

/// Returns whether the operator allows all sources to reach pods, in each address family of the
/// pods.
fn all_sources_are_allowed(config: &Config, segments: &SegmentsFile) -> bool {
    let all = |ipv4| config.lan_to_pods.iter().any(|network| network.prefix() == 0 && network.is_ipv4() == ipv4);
    segment::families(&segments.segments).into_iter().all(|family| all(family == edge_types::api::Family::V4))
}

/// Returns, for IPv4 and IPv6, whether this host must not forward between its other networks. This
/// is the case if the host forwards only for pods and the operator has not allowed more.
fn isolated(config: &Config) -> [bool; 2] {
    if config.forward_others { [false; 2] } else { forwarding(config).ours() }
}

/// Removes the table if the agent has created its own table in the meantime. The plugin and the
/// agent each create their own table before they look for the other's table, so at least one of
/// them finds both.
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
    match netlink.get::<_, RawMessage>("NFT_MSG_GETTABLE", table.get()) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(kernel_error(&error)),
    }
}

fn transact(netlink: &mut Netlink, messages: Vec<(RawMessage, u16)>) -> Result<(), netlink::Error> {
    netlink.transaction("NFT_MSG_NEWTABLE", wire::begin(), messages, Some(wire::end()))
}

/// Creates the table with the messages `table` and fills it. On a kernel without the expression
/// `fib`, the rules about IPVS are left out, since they need it.
fn fill(
    table: Vec<(RawMessage, u16)>,
    content: &TableContent,
    mut transact: impl FnMut(Vec<(RawMessage, u16)>) -> Result<(), netlink::Error>,
) -> Result<(), netlink::Error> {
    match transact([table.clone(), content.messages(true)].concat()) {
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            transact([table, content.messages(false)].concat())
        }
        done => done,
    }
}

/// Returns the names of the pods' bridges in all networks of the plugin.
fn bridges(links: &mut Links) -> Result<Vec<String>> {
    Ok(links.all()?.into_iter().filter(bridge::is_ours).map(|link| link.name).collect())
}

/// Collects the table's content.
fn content(links: &mut Links, config: &Config, segments: &SegmentsFile, isolated: [bool; 2]) -> Result<TableContent> {
    let all = links.all()?;
    let routes = links.default_routes()?;
    let mut own = segments.segments.clone();
    for bridge in all.iter().filter(|link| bridge::is_ours(link)) {
        own.extend(links.addresses_with_prefix(bridge)?.into_iter().filter(|network| !is_link_local(network)));
    }
    Ok(TableContent {
        own,
        bridges: all.iter().filter(|link| bridge::is_ours(link)).map(|link| link.name.clone()).collect(),
        // On a hub, packets from the networks that it fronts arrive in clear, from cloud nodes over
        // its LAN.
        sources: segments.networks.iter().chain(&config.lan_to_pods).copied().collect(),
        fronted: segments.networks.clone(),
        services: segments.hub_networks.iter().chain(&config.service_ranges).copied().collect(),
        isolated,
        uplinks: uplink::of_container_kinds(&all, &routes, &rules::CONTAINER_KINDS),
    })
}

fn is_link_local(network: &IpNetwork) -> bool {
    matches!(network, IpNetwork::V6(network) if network.ip().is_unicast_link_local())
}

fn kernel_error(error: &netlink::Error) -> Error {
    let hint = match error.errno() {
        Some(libc::EPERM) => "; edge-cni must run as root with CAP_NET_ADMIN, and no other program may own that table",
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EINVAL | libc::ENOENT) => NEEDED,
        _ => "",
    };
    Error::new(Code::Filter, format!("cannot make {TABLE}, which keeps hosts outside from pods{hint}: {error}"))
}
