//! CHECK finds out whether a container still has what ADD gave it. It changes and repairs nothing.

use std::net::IpAddr;

use edge_types::IpNetwork;
use serde_json::Value;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ipam::StateDir;
use crate::mac::Mac;
use crate::net::link::{BridgePortState, Links};
use crate::net::netns::Namespace;
use crate::net::veth;
use crate::pod_filter;
use crate::request::{Attachment, RuntimeRequest};
use crate::segment;

/// Compares the lease, the bridge's filter, the host's end and the pod's end with the result of
/// the ADD.
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
    let (segments, requested_mac, lacks) = check_lease(config, &mut links, attachment, &expected)?;
    let of_this_release = check_host(&mut links, config, attachment, &segments)?;
    let filtered = of_this_release && !config.excepts(request.pod.as_deref());
    let mac = filtered.then(|| requested_mac.unwrap_or_else(|| veth::pod_mac(attachment)));
    if let Some(lacks) = lacks {
        return Err(Error::new(
            Code::NotAsAttached,
            format!("{lacks}; run `edge-cni up`, or start edge-agent, which does"),
        ));
    }
    let gateways = default_gateways(result, &segments);
    Namespace::of_container(path)?.within(|| check_pod(&attachment.ifname, &expected, &gateways, mac))
}

/// Addresses that the result gives to this interface in the pod. Those of later plugins are not
/// ours to check.
fn expected_addresses(result: &Value, ifname: &str) -> Result<Vec<IpAddr>> {
    let nonsense = |what: &str| Error::new(Code::InvalidConfig, format!("prevResult makes no sense: {what}"));
    let interfaces = result["interfaces"].as_array().ok_or_else(|| nonsense("it has no list of interfaces"))?;
    let is_ours = |index: usize| {
        interfaces.get(index).is_some_and(|interface| interface["name"] == ifname && interface["sandbox"].is_string())
    };
    let mut addresses = Vec::new();
    for ip in result["ips"].as_array().into_iter().flatten() {
        let index = ip["interface"].as_u64().and_then(|index| usize::try_from(index).ok());
        if index.is_some_and(is_ours) {
            let text = ip["address"].as_str().unwrap_or_default();
            let network: IpNetwork = text.parse().map_err(|_| nonsense(&format!("{text:?} is no address")))?;
            addresses.push(network.ip());
        }
    }
    if addresses.is_empty() {
        return Err(nonsense(&format!("it has no address for {ifname}")));
    }
    Ok(addresses)
}

/// The gateways of these segments by which the result has a default route.
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

/// Compares the lease. Returns the segments of the addresses, in their order, the MAC address that
/// the runtime requested, and what the bridge's filter lacks.
fn check_lease(
    config: &Config,
    links: &mut Links,
    attachment: &Attachment,
    expected: &[IpAddr],
) -> Result<(Vec<IpNetwork>, Option<Mac>, Option<String>)> {
    let no_lease = || not_as_attached("there is no lease for it".into());
    let leases = StateDir::existing(config).ok_or_else(no_lease)?.lock()?;
    let lease = leases.lease(attachment).ok_or_else(no_lease)?;
    if let Some(address) = expected.iter().find(|address| !lease.addresses.contains(address)) {
        return Err(not_as_attached(format!("{address} is not leased to it")));
    }
    let all = leases.segments(config)?.map(|file| file.segments).unwrap_or_default();
    let segment_of = |address: &IpAddr| {
        let segment = all.iter().find(|segment| segment.contains(*address)).copied();
        segment.ok_or_else(|| not_as_attached(format!("{address} is in no segment of this node any more")))
    };
    let segments = expected.iter().map(segment_of).collect::<Result<_>>()?;
    Ok((segments, lease.mac, pod_filter::missing_elements(config, links, &leases, attachment)?))
}

/// Compares bridge and host's end. Returns whether this release made the pair.
fn check_host(links: &mut Links, config: &Config, attachment: &Attachment, segments: &[IpNetwork]) -> Result<bool> {
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
    let present = links.addresses(&bridge)?;
    match segments.iter().map(segment::gateway).find(|gateway| !present.contains(gateway)) {
        Some(gateway) => {
            Err(not_as_attached(format!("the bridge {} has lost the gateway's address {gateway}", bridge.name)))
        }
        None => Ok(host.mac == veth::host_mac(attachment)),
    }
}

fn check_pod(ifname: &str, expected: &[IpAddr], gateways: &[IpAddr], mac: Option<Mac>) -> Result<()> {
    let mut links = Links::open()?;
    let link = links.find(ifname)?.ok_or_else(|| not_as_attached(format!("{ifname} is missing in the pod")))?;
    if !link.up {
        return Err(not_as_attached(format!("{ifname} is down")));
    }
    if mac.is_some_and(|mac| mac != link.mac) {
        return Err(not_as_attached(format!(
            "{ifname} has another MAC address, with which the bridge lets it send nothing (unfilteredPods excepts a pod that needs one)"
        )));
    }
    let present = links.addresses(&link)?;
    if let Some(address) = expected.iter().find(|address| !present.contains(address)) {
        return Err(not_as_attached(format!("{ifname} has lost the address {address}")));
    }
    let routes = links.default_routes()?;
    let has = |gateway: &IpAddr| {
        routes.iter().any(|route| route.main && route.device == link.index && route.gateway == Some(*gateway))
    };
    match gateways.iter().find(|gateway| !has(gateway)) {
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
        assert_eq!(addresses, ["10.77.0.2", "fd77::2"]);
        let cut =
            json!({"interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [{"address": "10.77", "interface": 0}]});
        for nonsense in [json!({}), json!(1), json!({"interfaces": [], "ips": []}), cut] {
            assert_eq!(expected_addresses(&nonsense, "eth0").unwrap_err().code, Code::InvalidConfig, "{nonsense}");
        }
    }
}
