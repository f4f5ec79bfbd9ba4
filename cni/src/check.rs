//! CHECK tests whether a container still has everything that ADD configured. It changes and repairs
//! nothing.

use std::net::IpAddr;

use edge_types::IpNetwork;
use edge_types::shared_files::SegmentsFile;
use serde_json::Value;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ipam::StateDir;
use crate::mac::Mac;
use crate::net::link::{BridgePortState, Link, Links};
use crate::net::netns::Namespace;
use crate::net::veth;
use crate::node_setup;
use crate::pod_filter;
use crate::request::{Attachment, RuntimeRequest};
use crate::segment;

/// Compares the lease, the bridge's filter, the guard, the host end and the pod end with the result
/// of the ADD.
pub(crate) fn check(config: &Config, request: &RuntimeRequest) -> Result<()> {
    let result = config.previous.as_ref().ok_or_else(|| {
        Error::new(
            Code::InvalidConfig,
            "CHECK needs the result of the ADD as prevResult in the configuration, and there is none",
        )
    })?;
    let path = request.netns.as_deref().ok_or_else(|| {
        Error::new(
            Code::InvalidEnvironment,
            "the environment variable CNI_NETNS is missing or empty; CHECK needs the pod's network namespace",
        )
    })?;
    let attachment = &request.attachment;
    let expected = expected_addresses(result, &attachment.ifname)?;
    let mut links = Links::open()?;
    let leased = check_lease(config, &mut links, attachment, &expected)?;
    let host = check_host(&mut links, config, attachment, &leased.segments)?;
    let missing = match leased.missing_elements {
        None => node_setup::missing(config, &leased.file)?,
        missing => missing,
    };
    if let Some(missing) = missing {
        return Err(Error::new(
            Code::NotAsAttached,
            format!("{missing}; run `edge-cni up`, or start edge-agent, which does"),
        ));
    }
    // If an earlier release created the pair, the kernel chose the MAC addresses.
    let filtered = host.mac == veth::host_mac(attachment) && !config.excepts(request.pod.as_deref());
    let pod = ExpectedPod {
        mac: filtered.then(|| leased.mac.unwrap_or_else(|| veth::pod_mac(attachment))),
        gateways: default_gateways(result, &leased.segments),
        mtus: [Some(host.mtu), expected_mtu(result, &attachment.ifname)].into_iter().flatten().collect(),
        largest_mtu: config.pod_mtu(&leased.file),
        addresses: expected,
    };
    Namespace::of_container(path)?.within(|| check_pod(&attachment.ifname, &pod))
}

/// The expected configuration of a pod.
struct ExpectedPod {
    addresses: Vec<IpNetwork>,
    /// The gateways of the pod's default routes.
    gateways: Vec<IpAddr>,
    /// The MAC address, if the bridge's filter restricts the pod to one.
    mac: Option<Mac>,
    /// The allowed MTUs of the pod's interface, bytes: the MTU of the host end, and the MTU in the
    /// result, which a later plugin may have changed.
    mtus: Vec<u32>,
    /// The node's MTU for pods, bytes, if known.
    largest_mtu: Option<u32>,
}

/// The part of a lease that CHECK compares.
struct CheckedLease {
    file: SegmentsFile,
    /// The segments of the addresses, in the same order.
    segments: Vec<IpNetwork>,
    /// The MAC address that the runtime requested.
    mac: Option<Mac>,
    /// The elements that the bridge's filter lacks.
    missing_elements: Option<String>,
}

/// Returns the addresses of this interface in the pod according to the result. Addresses of later
/// plugins are not checked.
fn expected_addresses(result: &Value, ifname: &str) -> Result<Vec<IpNetwork>> {
    let nonsense = |what: &str| Error::new(Code::InvalidConfig, format!("prevResult is invalid: {what}"));
    let interfaces = result["interfaces"].as_array().ok_or_else(|| nonsense("it has no list of interfaces"))?;
    let is_ours = |index: usize| {
        interfaces.get(index).is_some_and(|interface| interface["name"] == ifname && interface["sandbox"].is_string())
    };
    let mut addresses = Vec::new();
    for ip in result["ips"].as_array().into_iter().flatten() {
        let index = ip["interface"].as_u64().and_then(|index| usize::try_from(index).ok());
        if index.is_some_and(is_ours) {
            let text = ip["address"].as_str().unwrap_or_default();
            let network: IpNetwork = text.parse().map_err(|_| nonsense(&format!("{text:?} is not an address")))?;
            addresses.push(network);
        }
    }
    if addresses.is_empty() {
        return Err(nonsense(&format!("it has no address for {ifname}")));
    }
    Ok(addresses)
}

/// Returns the MTU of this interface in the pod according to the result. Results contain it since
/// CNI 1.1.0.
fn expected_mtu(result: &Value, ifname: &str) -> Option<u32> {
    let mut interfaces = result["interfaces"].as_array()?.iter();
    let ours = interfaces.find(|interface| interface["name"] == ifname && interface["sandbox"].is_string())?;
    ours["mtu"].as_u64().and_then(|mtu| u32::try_from(mtu).ok())
}

/// Returns the gateways of these segments that the result uses for default routes.
fn default_gateways(result: &Value, segments: &[IpNetwork]) -> Vec<IpAddr> {
    let routes = result["routes"].as_array();
    let defaults =
        routes.into_iter().flatten().filter(|route| matches!(route["dst"].as_str(), Some("0.0.0.0/0" | "::/0")));
    let by: Vec<IpAddr> = defaults.filter_map(|route| route["gw"].as_str()?.parse().ok()).collect();
    segments.iter().map(segment::gateway).filter(|gateway| by.contains(gateway)).collect()
}

fn not_as_attached(what: String) -> Error {
    Error::new(Code::NotAsAttached, format!("{what}; delete the pod, so that it is attached again"))
}

/// Compares the lease with the result's addresses.
fn check_lease(
    config: &Config,
    links: &mut Links,
    attachment: &Attachment,
    expected: &[IpNetwork],
) -> Result<CheckedLease> {
    let no_lease = || not_as_attached("there is no lease for it".into());
    let leases = StateDir::existing(config).ok_or_else(no_lease)?.lock()?;
    let lease = leases.lease(attachment)?.ok_or_else(no_lease)?;
    if let Some(address) = expected.iter().find(|address| !lease.addresses.contains(&address.ip())) {
        return Err(not_as_attached(format!("{} is not leased to the pod", address.ip())));
    }
    let file = leases.segments(config)?;
    let segment_of = |address: &IpNetwork| {
        let all = file.iter().flat_map(|file| &file.segments);
        let segment = all.copied().find(|segment| segment.contains(address.ip()));
        segment.ok_or_else(|| not_as_attached(format!("{} is in no segment of this node any more", address.ip())))
    };
    let segments = expected.iter().map(segment_of).collect::<Result<_>>()?;
    let missing_elements = pod_filter::missing_elements(config, links, &leases, attachment)?;
    let file = file.ok_or_else(|| not_as_attached("this node has no segment any more".into()))?;
    Ok(CheckedLease { file, segments, mac: lease.mac, missing_elements })
}

/// Checks the bridge and the host end. Returns the host end.
fn check_host(links: &mut Links, config: &Config, attachment: &Attachment, segments: &[IpNetwork]) -> Result<Link> {
    let name = veth::host_name(attachment);
    let missing = |what: &str| not_as_attached(format!("{what} is missing on the host"));
    let bridge = links.find(&config.bridge)?.ok_or_else(|| missing(&format!("the bridge {}", config.bridge)))?;
    let host = links.find(&name)?.ok_or_else(|| missing(&format!("the host's end {name}")))?;
    if host.master != Some(bridge.index) {
        return Err(not_as_attached(format!("{name} is not a port of {}", bridge.name)));
    }
    if host.port_state != Some(BridgePortState::Forwarding) {
        return Err(not_as_attached(format!("{name} does not forward; is it, or the pod's end, down?")));
    }
    let present = links.addresses_with_prefix(&bridge)?;
    for segment in segments {
        let gateway = segment::gateway(segment);
        let has = |prefix: Option<u8>| {
            present
                .iter()
                .any(|address| address.ip() == gateway && prefix.is_none_or(|prefix| prefix == address.prefix()))
        };
        if !has(Some(segment.prefix())) {
            let what = if has(None) { "has another prefix length for" } else { "has lost" };
            return Err(Error::new(
                Code::NotAsAttached,
                format!(
                    "the bridge {} {what} the gateway's address {gateway}/{}; run `edge-cni up`, or start edge-agent, which does",
                    bridge.name,
                    segment.prefix()
                ),
            ));
        }
    }
    Ok(host)
}

fn check_pod(ifname: &str, expected: &ExpectedPod) -> Result<()> {
    let mut links = Links::open()?;
    let link = links.find(ifname)?.ok_or_else(|| not_as_attached(format!("{ifname} is missing in the pod")))?;
    if !link.up {
        return Err(not_as_attached(format!("{ifname} is down")));
    }
    if expected.mac.is_some_and(|mac| mac != link.mac) {
        return Err(not_as_attached(format!(
            "{ifname} has another MAC address, with which the bridge lets it send nothing (unfilteredPods excepts a pod that needs one)"
        )));
    }
    if !expected.mtus.contains(&link.mtu) {
        let mtus: Vec<String> = expected.mtus.iter().map(ToString::to_string).collect();
        return Err(not_as_attached(format!(
            "{ifname} has an MTU of {} bytes, not of {}",
            link.mtu,
            mtus.join(" or ")
        )));
    }
    if let Some(mtu) = expected.largest_mtu.filter(|mtu| link.mtu > *mtu) {
        return Err(not_as_attached(format!(
            "{ifname} has an MTU of {} bytes, but this node has one of {mtu} for pods by now, so that large packets may be lost",
            link.mtu
        )));
    }
    let present = links.addresses_with_prefix(&link)?;
    if let Some(address) = expected.addresses.iter().find(|address| !present.contains(address)) {
        let (address, prefix) = (address.ip(), address.prefix());
        let other = present.iter().find(|other| other.ip() == address).map(|other| other.prefix());
        return Err(not_as_attached(match other {
            Some(other) => format!("{ifname} has the address {address} with the prefix length {other}, not {prefix}"),
            None => format!("{ifname} has lost the address {address}"),
        }));
    }
    let routes = links.default_routes()?;
    let has = |gateway: &IpAddr| {
        routes.iter().any(|route| route.main && route.device == link.index && route.gateway == Some(*gateway))
    };
    match expected.gateways.iter().find(|gateway| !has(gateway)) {
        Some(gateway) => Err(not_as_attached(format!("the pod has lost its default route by {gateway}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_addresses_of_the_pods_own_interface_are_expected() {
        let result = json!({
            "interfaces": [{"name": "ecni0"}, {"name": "eth0", "sandbox": "/run/netns/x"}, {"name": "other", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "10.77.0.2/26", "interface": 1},
                {"address": "fd77::2/120", "interface": 1},
                {"address": "192.0.2.1/24", "interface": 2},
                {"address": "192.0.2.2/24"},
            ],
        });
        let addresses: Vec<String> =
            expected_addresses(&result, "eth0").unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.77.0.2/26", "fd77::2/120"]);
        let cut =
            json!({"interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [{"address": "10.77", "interface": 0}]});
        for nonsense in [json!({}), json!(1), json!({"interfaces": [], "ips": []}), cut] {
            assert_eq!(expected_addresses(&nonsense, "eth0").unwrap_err().code, Code::InvalidConfig, "{nonsense}");
        }
    }
}
