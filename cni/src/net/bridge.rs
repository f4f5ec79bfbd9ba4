//! The pods' bridge. It has a gateway address in each segment.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use edge_types::IpNetwork;
use edge_types::api::Family;
use edge_types::shared_files::STATE_DIR;
use edge_xfrm::netlink::{LinkRequest, attribute};

use super::link::{Link, Links};
use super::sysctl::InterfaceSettings;
use super::{fnv1a, veth};
use crate::error::{Code, Error, Result};
use crate::mac::Mac;
use crate::segment;

/// The file with the machine's identity, which never changes (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";

/// The alias that marks the plugin's bridges. If the state directory is not the default one, its
/// path follows in the alias, so that other networks on the host find the leases.
const ALIAS: &str = "edge-cni bridge";

/// Maximum length of an alias, bytes (`IFALIASZ` in linux/if.h, minus the final zero).
const MAX_ALIAS: usize = 255;

/// Maximum number of MAC addresses that the bridge learns. Pods that are exempt from the filter
/// could use any number of them. Kernels before 6.8 ignore the limit.
const MAX_LEARNED: u32 = 4096;

/// Creates the bridge, or completes an existing one. Several processes may call this at the same
/// time. `mtu` is the MTU of pods' interfaces, if known. `is_former` returns whether a network is a
/// former segment without pods.
pub(crate) fn ensure(
    links: &mut Links,
    name: &str,
    state_dir: &Path,
    mtu: Option<u32>,
    segments: &[IpNetwork],
    is_former: impl Fn(&IpNetwork) -> Result<bool>,
) -> Result<Link> {
    let mut bridge = match links.find(name)? {
        Some(bridge) => bridge,
        None => create(links, name, mtu)?,
    };
    if bridge.kind != "bridge" {
        let kind = if bridge.kind.is_empty() { "hardware" } else { &bridge.kind };
        return Err(Error::new(
            Code::NameTaken,
            format!(
                "{name} is of the kind {kind}, not a bridge; rename it, or give another name as `bridge` in the configuration"
            ),
        ));
    }
    let alias = alias_of(state_dir);
    if bridge.alias != alias {
        refuse_foreign(links, &bridge, segments)?;
        refuse_other_leases(links, &bridge, state_dir)?;
        let mac = mac_of(name);
        if bridge.mac != mac && !has_our_alias(&bridge) {
            // Unless its MAC address is set, a bridge uses the lowest MAC address of its ports,
            // which changes when ports are added or removed.
            links.set_mac(&bridge, mac)?;
            bridge.mac = mac;
        }
        // The alias marks the bridge, so that its address is not changed again. An agent in a
        // container has another machine ID. It would set another address, which would not match the
        // neighbour caches of running pods.
        links.set_alias(&bridge, &alias)?;
    }
    if let Some(mtu) = mtu.filter(|mtu| bridge.mtu != *mtu)
        && let Some(mtu) = new_mtu(links, &bridge, mtu)?
    {
        links.set_mtu(&bridge, mtu)?;
        bridge.mtu = mtu;
    }
    // The bridge must not accept routes or addresses from router advertisements of pods.
    let ipv6 = InterfaceSettings::open(name, Family::V6)?;
    ipv6.ignore_router_advertisements()?;
    let families = segment::families(segments);
    if families.contains(&Family::V4) {
        // Pods intentionally reach other segments through this bridge, so the host must not send
        // redirects to them.
        InterfaceSettings::open(name, Family::V4)?.set("send_redirects", "0")?;
    }
    if families.contains(&Family::V6) {
        ipv6.set("disable_ipv6", "0")?;
    }
    if !bridge.up {
        links.set_up(&bridge)?;
    }
    let present = links.addresses_with_prefix(&bridge)?;
    for segment in segments {
        let gateway = segment::gateway(segment);
        if !present.iter().any(|address| address.ip() == gateway && address.prefix() == segment.prefix()) {
            // An interface can have an IPv6 address only once, regardless of the prefix length.
            for other in present.iter().filter(|address| address.is_ipv6() && address.ip() == gateway) {
                links.delete_address(&bridge, *other)?;
            }
            refuse_second_gateway(links, &bridge, gateway)?;
            links.add_address(&bridge, gateway, segment.prefix(), false)?;
        }
    }
    for address in present {
        if is_outdated(&address, segments) && is_former(&address)? {
            links.delete_address(&bridge, address)?;
        }
    }
    Ok(bridge)
}

/// Returns the MTU that the bridge must have; `None` if it already has it. This MTU is never larger
/// than that of a port: packets from this host to a pod must fit the pod's interface, so that the
/// host fragments them or reports them as too big. The kernel adapts the MTU to the ports only
/// until the MTU is set explicitly.
fn new_mtu(links: &mut Links, bridge: &Link, mtu: u32) -> Result<Option<u32>> {
    let ports = links.all()?.into_iter().filter(|link| link.master == Some(bridge.index));
    let mtu = ports.map(|port| port.mtu).fold(mtu, u32::min);
    Ok((mtu != bridge.mtu).then_some(mtu))
}

/// Returns whether an address may be the gateway of a segment that this node no longer has, or that
/// had another prefix length. All other addresses were added by the operator.
pub(crate) fn is_outdated(address: &IpNetwork, segments: &[IpNetwork]) -> bool {
    let is_current = segments
        .iter()
        .any(|segment| segment::gateway(segment) == address.ip() && segment.prefix() == address.prefix());
    !is_current && segment::gateway(address) == address.ip()
}

/// Refuses another program's bridge. The plugin's own bridges have the alias, or the MAC address
/// that the plugin sets (earlier releases set no alias), or only pods of the plugin as ports and
/// only gateways as addresses.
fn refuse_foreign(links: &mut Links, bridge: &Link, segments: &[IpNetwork]) -> Result<()> {
    let name = &bridge.name;
    if !is_ours(bridge) {
        let ports = links.all()?.into_iter().filter(|link| link.master == Some(bridge.index));
        let foreign_port = ports.into_iter().find(|port| veth::attachment_of(port).is_none()).map(|port| port.name);
        let gateways: Vec<IpAddr> = segments.iter().map(segment::gateway).collect();
        let foreign_address = links.addresses(bridge)?.into_iter().find(|address| {
            !gateways.contains(address) && !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
        });
        let foreign = match (foreign_port, foreign_address) {
            (Some(port), _) => Some(format!("{port} is a port of it")),
            (None, Some(address)) => Some(format!("it has the address {address}")),
            (None, None) => None,
        };
        if let Some(foreign) = foreign {
            return Err(Error::new(
                Code::NameTaken,
                format!(
                    "the bridge {name} is not ours: {foreign}. Pods need a bridge of their own, whose addresses and settings edge-cni may change; give \
                     another name as `bridge` in the configuration"
                ),
            ));
        }
    }
    Ok(())
}

/// Refuses a bridge with pods whose leases are in another state directory. The leases here do not
/// have their addresses, so other pods on the same bridge would get them too.
fn refuse_other_leases(links: &mut Links, bridge: &Link, state_dir: &Path) -> Result<()> {
    match state_dir_of(bridge) {
        Some(other) if other != state_dir && count_pods(&links.all()?, |link| link.index == bridge.index) > 0 => {
            Err(Error::new(
                Code::InvalidConfig,
                format!(
                    "the bridge {} has pods whose leases are in {}, not in the stateDir {}; give the same stateDir, or another bridge, or remove these \
                     pods first",
                    bridge.name,
                    other.display(),
                    state_dir.display()
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// Counts the attached pods whose leases are in a state directory, by their links. They are on the
/// network's bridge, or on another network's bridge with the same directory.
pub(crate) fn count_attached(bridge: &str, state_dir: &Path) -> Result<usize> {
    let links = Links::open()?.all()?;
    Ok(count_pods(&links, |link| link.name == bridge || state_dir_of(link).is_some_and(|other| other == state_dir)))
}

fn count_pods(links: &[Link], is_bridge: impl Fn(&Link) -> bool) -> usize {
    let bridges: Vec<u32> = links.iter().filter(|link| is_bridge(link)).map(|link| link.index).collect();
    let is_pod = |link: &&Link| {
        link.master.is_some_and(|master| bridges.contains(&master)) && veth::attachment_of(link).is_some()
    };
    links.iter().filter(is_pod).count()
}

/// Returns whether the plugin created this bridge.
pub(crate) fn is_ours(link: &Link) -> bool {
    link.kind == "bridge" && (has_our_alias(link) || link.mac == mac_of(&link.name))
}

fn has_our_alias(link: &Link) -> bool {
    link.alias.strip_prefix(ALIAS).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

fn alias_of(state_dir: &Path) -> String {
    let alias = format!("{ALIAS} {}", state_dir.display());
    if state_dir == Path::new(STATE_DIR) || alias.len() > MAX_ALIAS { ALIAS.into() } else { alias }
}

/// Returns the state directory of one of the plugin's bridges. `None` for any other link.
pub(crate) fn state_dir_of(link: &Link) -> Option<PathBuf> {
    let directory = (link.kind == "bridge").then(|| link.alias.strip_prefix(ALIAS)).flatten()?;
    if directory.is_empty() { Some(STATE_DIR.into()) } else { directory.strip_prefix(' ').map(PathBuf::from) }
}

/// Returns the addresses of all bridges of the plugin, which are gateways of pods.
pub(crate) fn gateways(links: &mut Links) -> Result<Vec<IpAddr>> {
    let ours: Vec<u32> = links.all()?.iter().filter(|link| is_ours(link)).map(|link| link.index).collect();
    Ok(links
        .all_addresses()?
        .into_iter()
        .filter(|(index, _)| ours.contains(index))
        .map(|(_, address)| address)
        .collect())
}

/// Refuses a gateway address that another of the plugin's bridges already has, because the pods of
/// the two bridges could not all be reached.
fn refuse_second_gateway(links: &mut Links, bridge: &Link, gateway: IpAddr) -> Result<()> {
    let elsewhere =
        links.all_addresses()?.into_iter().filter(|(index, address)| *address == gateway && *index != bridge.index);
    let indexes: Vec<u32> = elsewhere.map(|(index, _)| index).collect();
    if indexes.is_empty() {
        return Ok(());
    }
    match links.all()?.into_iter().find(|link| indexes.contains(&link.index) && is_ours(link)) {
        None => Ok(()),
        Some(other) => Err(Error::new(
            Code::InvalidConfig,
            format!(
                "the gateway {gateway} is on the bridge {} already, of another network; give the network with the bridge {} other `segments`, \
                 outside of the cluster's ranges, or use the same bridge for both",
                other.name, bridge.name
            ),
        )),
    }
}

fn create(links: &mut Links, name: &str, mtu: Option<u32>) -> Result<Link> {
    let mut request = LinkRequest::named(name);
    request.up(true);
    request.attributes.bytes(attribute::ADDRESS, &mac_of(name));
    if let Some(mtu) = mtu {
        request.attributes.number(attribute::MTU, mtu);
    }
    request.bridge(MAX_LEARNED);
    // If another ADD has created the bridge first, the lookup below finds it.
    links.create(&format!("the bridge {name}"), &request)?;
    links.find(name)?.ok_or_else(|| {
        Error::new(Code::Kernel, format!("the bridge {name} was removed while a pod was being attached; try again"))
    })
}

/// Returns the locally administered MAC address of the bridge with this name. It is derived from
/// the machine's identity and the name.
fn mac_of(name: &str) -> Mac {
    let machine = std::fs::read(MACHINE_ID).unwrap_or_default();
    let [a, b, c, d, e, ..] = fnv1a(&[&machine, name.as_bytes()]).to_be_bytes();
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outdated_is_the_gateway_of_a_former_segment_or_prefix_length() {
        let segments = ["10.77.3.0/24", "fd77::/120"].map(|text| text.parse().unwrap());
        for (address, outdated) in [
            ("10.77.3.1/24", false),
            ("fd77::1/120", false),
            ("10.77.3.1/26", true),
            ("10.77.9.1/26", true),
            ("fd77::101/120", true),
            ("10.77.9.2/26", false),
            ("10.77.9.1/32", false),
            ("fe80::1:2/64", false),
        ] {
            assert_eq!(is_outdated(&address.parse().unwrap(), &segments), outdated, "{address}");
        }
    }

    #[test]
    fn a_bridge_has_its_own_unicast_address_that_stays() {
        assert_eq!(mac_of("ecni0"), mac_of("ecni0"));
        assert_ne!(mac_of("ecni0"), mac_of("ecni1"));
        assert_eq!(mac_of("ecni0")[0] & 3, 2);
    }
}
