//! ADD attaches a container. It creates links, addresses and routes, and announces the addresses to
//! the neighbours. If a step fails, ADD undoes the earlier steps.

use edge_types::IpNetwork;
use edge_types::agent_protocol::Stock;
use edge_types::api::Family;
use edge_types::shared_files::SegmentsFile;
use serde_json::Value;

use crate::agent_client::{self, SegmentRequestOutcome};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ipam::{Commit, LockedLeases, StateDir};
use crate::mac::{self, Mac};
use crate::net::link::{Link, Links, PortSettings};
use crate::net::netns::Namespace;
use crate::net::{bridge, sysctl, veth};
use crate::node_setup;
use crate::pod_filter;
use crate::pod_route::PodRoute;
use crate::reclaim;
use crate::request::{Attachment, RuntimeRequest};
use crate::requested_addresses::RequestedAddresses;
use crate::resolv_conf;
use crate::result::{AddResult, Interface};
use crate::route_selection::{self, PodsRoutes};
use crate::segment::{self, PodAddress};

/// Maximum number of attempts of one ADD to take an address. Before each further attempt, the ADD
/// requests another segment, because other ADDs have taken all addresses of the last segment.
const ATTEMPTS: usize = 3;

/// Attaches a container. Returns the result for standard output.
pub(crate) fn add(config: &Config, request: &RuntimeRequest) -> Result<Value> {
    let path = request.netns.as_deref().ok_or_else(|| {
        Error::new(
            Code::InvalidEnvironment,
            "the environment variable CNI_NETNS is missing or empty; ADD needs the pod's network namespace",
        )
    })?;
    if config.previous.is_some() {
        return Err(Error::new(
            Code::InvalidConfig,
            "the configuration has a prevResult: edge-cni makes the pod's interface, so it must come first in the list of plugins",
        ));
    }
    let requested = config.requested.clone().and(&request.requested);
    let requested = &requested.map_err(|why| Error::new(Code::InvalidConfig, why))?;
    // This is done first, so that a failure has no changes to undo.
    let dns = match (&config.dns, &config.resolv_conf) {
        (None, Some(file)) => Some(resolv_conf::read(file)?),
        (dns, _) => dns.clone(),
    };
    let pod = Namespace::of_container(path)?;
    let state_dir = StateDir::create(config, bridge::count_attached)?;
    let mut links = Links::open()?;
    let attachment = &request.attachment;

    let segments = ensure_free(config, &state_dir, &mut links, attachment)?;
    if *requested != RequestedAddresses::default() {
        // A refusal must occur before any change.
        refuse_taken(&state_dir.lock()?, &mut links, attachment, requested, &segments.segments)?;
    }
    let bridge = node_setup::ensure(&mut links, config, &segments)?;
    let mac = requested.mac.unwrap_or_else(|| veth::pod_mac(attachment));
    veth::create(&mut links, &bridge, &pod, attachment, mac, config.pod_mtu(&segments))?;

    // From here on, a failure must undo changes.
    let made = lease_and_configure(config, request, requested, &state_dir, &mut links, &pod, segments);
    let made = made.map_err(|error| undo(error, &state_dir, &mut links, attachment))?;
    // The pod is attached: nothing below may fail.
    if !StateDir::has_own_segments(config).unwrap_or(true) {
        agent_client::report_stock(&config.agent_socket, made.stock);
    }
    // The bridge is read again if its MTU differs, since the kernel lowers a bridge's MTU to the
    // smallest MTU of its ports.
    let read_again = || links.find(&config.bridge).ok().flatten();
    let changed = (bridge.mtu != made.host.mtu).then(read_again).flatten();
    let bridge = changed.unwrap_or(bridge);
    let interface = |link: Link| Interface { name: link.name, mac: link.mac, mtu: link.mtu };
    let sandbox = path.to_string_lossy().into_owned();
    let attached = AddResult {
        bridge: interface(bridge),
        host: interface(made.host),
        pod: interface(made.pod),
        sandbox,
        addresses: made.addresses,
        routes: made.routes,
    };
    Ok(attached.to_json(config.version, dns.as_ref()))
}

/// The result of attaching a pod.
struct AttachedPod {
    addresses: Vec<PodAddress>,
    routes: Vec<PodRoute>,
    /// The node's stock of addresses after this ADD.
    stock: Vec<Stock>,
    host: Link,
    pod: Link,
}

/// Leases addresses, sets them on the pod end, and announces them when the bridge forwards.
fn lease_and_configure(
    config: &Config,
    request: &RuntimeRequest,
    requested: &RequestedAddresses,
    state_dir: &StateDir,
    links: &mut Links,
    pod: &Namespace,
    seen: SegmentsFile,
) -> Result<AttachedPod> {
    let attachment = &request.attachment;
    let (addresses, stock, segments, commit) = lease_addresses(config, request, requested, state_dir, links)?;
    if segments != seen {
        // Another segment was added in the meantime. Its gateway address is not on the bridge yet,
        // and the guard does not include it yet.
        node_setup::ensure(links, config, &segments)?;
    }
    let filtered = pod_filter::admit(config, state_dir, links, request, requested.mac, &addresses)?;
    // In hairpin mode without the filter, a pod would receive its own broadcasts.
    let hairpin = filtered && config.hairpin_mode;
    veth::set_host_up(links, attachment, PortSettings { hairpin, isolated: config.port_isolation })?;
    let routes = |pod: &mut Links| {
        let others = PodsRoutes { default: pod.default_routes()?, ..PodsRoutes::default() };
        if others.default.is_empty() && config.is_default_gateway {
            return Ok(route_selection::of_pod(config, &segments, &addresses, &others));
        }
        let others = PodsRoutes { gateways: bridge::gateways(links)?, destinations: pod.destinations()?, ..others };
        Ok(route_selection::of_pod(config, &segments, &addresses, &others))
    };
    let mut end = veth::configure(pod, &attachment.ifname, &addresses, config.detect_duplicates, routes)?;
    let host = veth::wait_until_forwarding(links, attachment)?;
    end.announce()?;
    commit.finish()?;
    Ok(AttachedPod { addresses, routes: end.routes, stock, host, pod: end.link })
}

/// Ensures that each family has a free address. Requests another segment if too few addresses are
/// free. Returns the segments.
fn ensure_free(
    config: &Config,
    state_dir: &StateDir,
    links: &mut Links,
    attachment: &Attachment,
) -> Result<SegmentsFile> {
    // An earlier DEL may have failed to end the lease, because the disk was full or read-only.
    let mut end_leftover_lease = || reclaim::end_without_host_end(state_dir, links, |other| other == attachment);
    let (segments, stock) = match read_stock(config, state_dir, attachment) {
        Err(error) if error.code == Code::AlreadyAttached && end_leftover_lease()? > 0 => {
            read_stock(config, state_dir, attachment)?
        }
        read => read?,
    };
    let short = families_short_of_addresses(config, segments.as_ref(), &stock);
    if short.is_empty()
        && let Some(segments) = segments
    {
        return Ok(segments);
    }
    // A pod whose namespace vanished without a DEL still has its lease.
    if reclaim::end_without_host_end(state_dir, links, |_| true)? > 0 {
        let (segments, stock) = read_stock(config, state_dir, attachment)?;
        if let Some(segments) = segments
            && families_short_of_addresses(config, Some(&segments), &stock).is_empty()
        {
            return Ok(segments);
        }
    }
    let outcome = request_segment(config, short)?;
    let (segments, stock) = read_stock(config, state_dir, attachment)?;
    match segments {
        // Even if the request failed, the remaining addresses are enough for this pod.
        Some(segments) if stock.iter().all(|stock| stock.free > 0) && !stock.is_empty() => Ok(segments),
        Some(_) => Err(no_address_free(&stock, outcome)),
        None => Err(no_segments(outcome)),
    }
}

/// Requests a segment through the agent, unless the network has its own segments.
fn request_segment(config: &Config, short: Vec<Stock>) -> Result<SegmentRequestOutcome> {
    if StateDir::has_own_segments(config)? {
        let reason =
            format!("the segments of the network {} are those of its configuration; add some there", config.name);
        return Ok(SegmentRequestOutcome::Failed { reason, temporary: true });
    }
    Ok(agent_client::request_segment(&config.agent_socket, short))
}

/// Reads the segments and the stock under one lock.
fn read_stock(
    config: &Config,
    state_dir: &StateDir,
    attachment: &Attachment,
) -> Result<(Option<SegmentsFile>, Vec<Stock>)> {
    let leases = state_dir.lock()?;
    refuse_second_add(&leases, attachment)?;
    let segments = leases.segments(config)?;
    let stock = segments.as_ref().map(|segments| leases.stock(&segments.segments)).transpose()?.unwrap_or_default();
    Ok((segments, stock))
}

fn refuse_second_add(leases: &LockedLeases, attachment: &Attachment) -> Result<()> {
    let Some(lease) = leases.lease(attachment)? else { return Ok(()) };
    let addresses: Vec<String> = lease.addresses.iter().map(ToString::to_string).collect();
    Err(Error::new(
        Code::AlreadyAttached,
        format!("it is attached already, with {}; run DEL before another ADD", addresses.join(" and ")),
    ))
}

/// Returns the stock of the families with fewer free addresses than the low-water mark. If there is
/// no segment, returns the stock of all families of the cluster.
fn families_short_of_addresses(config: &Config, segments: Option<&SegmentsFile>, stock: &[Stock]) -> Vec<Stock> {
    if segments.is_none_or(|segments| segments.segments.is_empty()) {
        let mut families = segment::families(&config.cluster_ranges);
        if families.is_empty() {
            families = vec![Family::V4, Family::V6];
        }
        if !sysctl::has_ipv6() {
            families.retain(|family| *family == Family::V4);
        }
        return families.into_iter().map(|family| Stock { family, free: 0, leased: 0 }).collect();
    }
    stock.iter().filter(|stock| stock.free < config.low_water.max(1)).copied().collect()
}

/// Leases an address of each family. Requests another segment if other ADDs have taken all
/// addresses of the one that was requested. The lease is made durable while the rest of the ADD
/// continues.
fn lease_addresses(
    config: &Config,
    request: &RuntimeRequest,
    requested: &RequestedAddresses,
    state_dir: &StateDir,
    links: &mut Links,
) -> Result<(Vec<PodAddress>, Vec<Stock>, SegmentsFile, Commit)> {
    let mut outcome = SegmentRequestOutcome::Granted;
    for attempt in 0..ATTEMPTS {
        let mut leases = state_dir.lock()?;
        refuse_second_add(&leases, &request.attachment)?;
        let segments = leases.segments(config)?.ok_or_else(|| no_segments(outcome.clone()))?;
        if let Some(mac) = requested.mac {
            refuse_taken_mac(&leases, links, &request.attachment, mac)?;
        }
        let taken = leases.lease_addresses(request, &config.name, &segments.segments, requested)?;
        let stock = leases.stock(&segments.segments)?;
        if let Some(addresses) = taken {
            return Ok((addresses, stock, segments, leases.begin_commit()));
        }
        drop(leases);
        if matches!(outcome, SegmentRequestOutcome::Failed { .. }) || attempt + 1 == ATTEMPTS {
            return Err(no_address_free(&stock, outcome));
        }
        outcome = request_segment(config, families_short_of_addresses(config, Some(&segments), &stock))?;
    }
    Err(no_segments(outcome))
}

/// Fails if another pod or this host already has a requested address.
fn refuse_taken(
    leases: &LockedLeases,
    links: &mut Links,
    attachment: &Attachment,
    requested: &RequestedAddresses,
    segments: &[IpNetwork],
) -> Result<()> {
    leases.requested_addresses(segments, requested)?;
    requested.mac.map_or(Ok(()), |mac| refuse_taken_mac(leases, links, attachment, mac))
}

fn refuse_taken_mac(leases: &LockedLeases, links: &mut Links, attachment: &Attachment, mac: Mac) -> Result<()> {
    let taken = |owner: String| {
        let mac = mac::text(mac);
        Error::new(
            Code::TryAgainLater,
            format!("the requested MAC address {mac} is that of {owner}; request another one"),
        )
    };
    let mut others = leases.all()?.filter(|(other, _)| other != attachment);
    if let Some((other, _)) = others.find(|(other, lease)| lease.mac.unwrap_or_else(|| veth::pod_mac(other)) == mac) {
        return Err(taken(other.to_string()));
    }
    match links.all()?.into_iter().find(|link| link.mac == mac) {
        Some(link) => Err(taken(format!("this host's {}", link.name))),
        None => Ok(()),
    }
}

fn no_address_free(stock: &[Stock], outcome: SegmentRequestOutcome) -> Error {
    let all = |stock: &Stock| {
        let family = if stock.family == Family::V4 { "IPv4" } else { "IPv6" };
        format!("all {} {family} addresses of this node are taken", stock.leased)
    };
    let empty: Vec<String> = stock.iter().filter(|stock| stock.free == 0).map(all).collect();
    let what = if empty.is_empty() { "this node has no segments".into() } else { empty.join(" and ") };
    unavailable(&what, outcome)
}

fn no_segments(outcome: SegmentRequestOutcome) -> Error {
    unavailable(
        "this node has no segment to take an address from, neither from edge-agent nor from `segments` in the configuration",
        outcome,
    )
}

fn unavailable(what: &str, outcome: SegmentRequestOutcome) -> Error {
    match outcome {
        SegmentRequestOutcome::Granted => {
            Error::new(Code::TryAgainLater, format!("{what}; another segment came, but other pods took it; try again"))
        }
        SegmentRequestOutcome::Failed { reason, temporary } => {
            let code = if temporary { Code::TryAgainLater } else { Code::RangeFull };
            Error::new(code, format!("{what}, and no further segment is available: {reason}"))
        }
    }
}

/// Undoes the changes of a failed ADD. Returns the error, with the changes that could not be undone
/// added to its text.
fn undo(error: Error, state_dir: &StateDir, links: &mut Links, attachment: &Attachment) -> Error {
    let undone = veth::remove(links, attachment).and_then(|()| {
        let mut leases = state_dir.lock()?;
        // If an ADD was refused because the container is already attached, the lease of the first
        // ADD must stay.
        if error.code != Code::AlreadyAttached {
            let ended = leases.end(attachment)?;
            pod_filter::remove_elements(std::slice::from_ref(attachment));
            if ended.is_some() {
                leases.commit()?;
            }
        }
        Ok(())
    });
    match undone {
        Ok(()) => error,
        Err(left) => error.with_details(format!("and what was created could not be removed; run DEL: {left}")),
    }
}
