//! The internal addresses that static peers have given this node by the configuration payload (RFC
//! 7296 3.15). They are on a device of their own as long as the IKE SA lasts, and are the source of
//! this node's own packets to the networks behind those peers. They are not on the guard's device:
//! the kernel removes all routes of a device with its last address.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use anyhow::Context;
use edge_ike::{AddressAssignment, PeerName};
use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkBridge, LinkDummy, LinkUnspec};

use super::network_state::NetworkState;
use crate::desired::Desired;
use crate::incidents::Incidents;

/// The addresses that peers have given this node: at most one of each family and IKE SA.
pub type InternalAddresses = BTreeMap<PeerName, Vec<IpAddr>>;

/// Name of the device.
const DEVICE: &str = "ecni-address";

/// The setting that switches IPv6 off for the device (ip-sysctl.rst).
const DISABLE_IPV6: &str = "/proc/sys/net/ipv6/conf/ecni-address/disable_ipv6";

/// `EEXIST`, `EOPNOTSUPP` and `EADDRNOTAVAIL`, as positive numbers.
const EXISTS: i32 = 17;
const NOT_SUPPORTED: i32 = 95;
const NOT_AVAILABLE: i32 = 99;

/// The differences between the addresses on the device and those that peers have given.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    missing: Vec<IpAddr>,
    superfluous: Vec<IpAddr>,
}

/// Returns what to change. Nobody else puts addresses on the device, so all others there are of
/// former IKE SAs.
fn changes(present: &[IpAddr], given: &InternalAddresses) -> Changes {
    let wanted = || given.values().flatten().copied();
    let mut missing: Vec<IpAddr> = wanted().filter(|address| !present.contains(address)).collect();
    missing.sort_unstable();
    missing.dedup();
    let superfluous = present.iter().copied().filter(|address| !wanted().any(|wanted| wanted == *address)).collect();
    Changes { missing, superfluous }
}

/// Puts the addresses that peers have given on the device, which is made for the first one, and
/// takes others off it. Repairs a device that somebody has taken down, or that has IPv6 switched
/// off. The kernel reports these changes, so the next pass sees them.
pub(super) async fn reconcile(
    handle: &Handle,
    observed: &NetworkState,
    given: &InternalAddresses,
    incidents: &Incidents,
) {
    let Some(device) = observed.link(DEVICE) else {
        if !given.is_empty()
            && let Err(error) = create(handle).await
        {
            incidents.error(format!("device {DEVICE} for internal addresses: {error}"));
        }
        return;
    };
    let Changes { missing, superfluous } = changes(&device.addresses, given);
    // The kernel takes IPv6 addresses off a device without IPv6, and off one that is down.
    if missing.iter().any(IpAddr::is_ipv6) {
        match switch_on_ipv6() {
            Ok(false) => {}
            Ok(true) => incidents.repaired(format!("IPv6 was off on {DEVICE}, which has an internal address")),
            Err(error) => incidents.error(format!("{DISABLE_IPV6} cannot be set to 0: {error}")),
        }
    }
    if !device.up && !given.is_empty() {
        match handle.link().set(LinkUnspec::new_with_index(device.index).up().build()).execute().await {
            Ok(()) => incidents.repaired(format!("{DEVICE}, which has internal addresses, was down")),
            Err(error) => incidents.error(format!("{DEVICE} cannot be set up: {error}")),
        }
    }
    for address in missing {
        match add(handle, device.index, address).await {
            Ok(()) => tracing::info!(%address, "a peer has given this node an internal address"),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code().saturating_neg() == EXISTS => {}
            Err(error) => incidents.error(format!("internal address {address} on {DEVICE}: {error}")),
        }
    }
    for address in superfluous {
        match delete(handle, device.index, address).await {
            Ok(()) => tracing::info!(%address, "the internal address is gone with its IKE SA"),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code().saturating_neg() == NOT_AVAILABLE => {}
            Err(error) => incidents.error(format!("internal address {address} on {DEVICE}: {error}")),
        }
    }
}

/// Switches IPv6 on for the device. Returns whether it was off.
fn switch_on_ipv6() -> std::io::Result<bool> {
    // Without IPv6 in the kernel, adding the address fails.
    let off = fs::read_to_string(DISABLE_IPV6).is_ok_and(|value| value.trim() == "1");
    if off {
        fs::write(DISABLE_IPV6, "0")?;
    }
    Ok(off)
}

/// Makes the device: a dummy, or a bridge without ports where the kernel has no dummy devices.
async fn create(handle: &Handle) -> Result<(), rtnetlink::Error> {
    let link = |message: LinkMessage| handle.link().add(message).execute();
    match link(LinkDummy::new(DEVICE).up().build()).await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code().saturating_neg() == NOT_SUPPORTED => {
            link(LinkBridge::new(DEVICE).up().build()).await
        }
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code().saturating_neg() == EXISTS => Ok(()),
        outcome => outcome,
    }
}

/// Removes the device with its addresses. Returns the number of devices removed.
pub(super) async fn remove_device(handle: &Handle) -> anyhow::Result<usize> {
    let observed = NetworkState::read(handle).await?;
    let Some(device) = observed.link(DEVICE) else { return Ok(0) };
    handle.link().del(device.index).execute().await.with_context(|| format!("deleting {DEVICE}"))?;
    Ok(1)
}

async fn add(handle: &Handle, device: u32, address: IpAddr) -> Result<(), rtnetlink::Error> {
    let mut request = handle.address().add(device, address, host_prefix(address));
    if address.is_ipv6() {
        // No neighbour can have the address, so it need not wait for duplicate address detection.
        let message = request.message_mut();
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.execute().await
}

async fn delete(handle: &Handle, device: u32, address: IpAddr) -> Result<(), rtnetlink::Error> {
    let filter = handle.address().get().set_link_index_filter(device).set_address_filter(address);
    let found: Vec<AddressMessage> = filter.execute().try_collect().await?;
    for message in found {
        handle.address().del(message).execute().await?;
    }
    Ok(())
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Returns the networks behind the peers that give this node addresses, each with the source of
/// this node's own packets to it. There is none while the address is not on the device.
pub(super) fn sources(
    desired: &Desired,
    observed: &NetworkState,
    given: &InternalAddresses,
) -> Vec<(IpNetwork, Option<IpAddr>)> {
    let present = observed.link(DEVICE).map(|link| link.addresses.as_slice()).unwrap_or_default();
    let asks = desired.tunnels.values().filter(|tunnel| tunnel.peer.address_assignment == AddressAssignment::Request);
    let mut sources: Vec<(IpNetwork, Option<IpAddr>)> = Vec::new();
    for tunnel in asks {
        let addresses = given.get(&tunnel.peer.name).map(Vec::as_slice).unwrap_or_default();
        for network in tunnel.peer.children().flat_map(|child| &child.remote) {
            let usable = |address: &&IpAddr| address.is_ipv4() == network.is_ipv4() && present.contains(address);
            sources.push((*network, addresses.iter().rev().find(usable).copied()));
        }
    }
    sources
}

/// Returns the networks to which the interfaces are connected. Those of internal addresses and of
/// loopback are left out.
pub(super) fn on_link_networks(observed: &NetworkState) -> Vec<IpNetwork> {
    let links = observed.links.iter().filter(|link| link.name != DEVICE && !link.loopback);
    let mut networks: Vec<IpNetwork> = links.flat_map(|link| &link.networks).copied().collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use interop_tests::netns::{UnnamedNamespace, enter, is_root_or_skips};

    use super::super::network_state::Link;
    use super::*;
    use crate::crl_files::CrlFiles;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_comes_with_its_ike_sa_and_goes_with_it() {
        let given: InternalAddresses = [
            (PeerName::new("a"), addresses(&["10.9.0.1", "fd09::1"])),
            (PeerName::new("b"), addresses(&["10.9.0.1", "10.8.0.1"])),
        ]
        .into();
        let found = changes(&addresses(&["10.9.0.1", "10.7.0.1"]), &given);
        let missing = addresses(&["10.8.0.1", "fd09::1"]);
        assert_eq!(found, Changes { missing, superfluous: addresses(&["10.7.0.1"]) });
        let found = changes(&addresses(&["10.9.0.1"]), &InternalAddresses::new());
        assert_eq!(found, Changes { missing: vec![], superfluous: addresses(&["10.9.0.1"]) });
    }

    #[test]
    fn the_device_is_repaired_when_somebody_takes_it_down_or_switches_ipv6_off() {
        if !is_root_or_skips() {
            return;
        }
        let namespace = UnnamedNamespace::new();
        let path = namespace.path();
        let in_namespace = move || {
            enter(Path::new(&path));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                let incidents = Incidents::default();
                let given: InternalAddresses = [(PeerName::new("gateway"), addresses(&["10.9.0.1", "fd09::1"]))].into();
                // Two passes: one may make or repair the device only.
                let pass = async || {
                    for _ in 0..2 {
                        let observed = NetworkState::read(&handle).await.unwrap();
                        reconcile(&handle, &observed, &given, &incidents).await;
                    }
                    let observed = NetworkState::read(&handle).await.unwrap();
                    let device = observed.link(DEVICE).unwrap();
                    let there = |address: &IpAddr| device.addresses.contains(address);
                    assert!(device.up && given.values().flatten().all(there), "{device:?} {:?}", incidents.latest());
                };
                pass().await;
                assert!(incidents.latest().is_empty(), "{:?}", incidents.latest());
                let index = NetworkState::read(&handle).await.unwrap().link(DEVICE).unwrap().index;
                handle.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await.unwrap();
                pass().await;
                fs::write(DISABLE_IPV6, "1").unwrap();
                pass().await;
                let repaired: Vec<String> = incidents.latest().into_iter().map(|incident| incident.what).collect();
                for what in ["was down", "IPv6 was off"] {
                    assert!(repaired.iter().any(|repaired| repaired.contains(what)), "{what}: {repaired:?}");
                }
            });
        };
        std::thread::spawn(in_namespace).join().unwrap();
    }

    #[test]
    fn an_internal_address_makes_no_network_on_link() {
        let link = |name: &str, network: &str| Link {
            name: name.into(),
            networks: vec![network.parse().unwrap()],
            loopback: name == "lo",
            ..Link::default()
        };
        let links = vec![link("eth0", "192.0.2.0/24"), link(DEVICE, "10.9.0.1/32"), link("lo", "127.0.0.0/8")];
        let observed = NetworkState { links, ..NetworkState::default() };
        assert_eq!(on_link_networks(&observed), ["192.0.2.0/24".parse::<IpNetwork>().unwrap()]);
    }

    #[test]
    fn packets_to_the_peers_networks_have_the_address_as_source_once_the_device_has_it() {
        let config = crate::config::Config::parse(
            r#"
            [[peer]]
            name = "gateway"
            remote = "192.0.2.1"
            local_id = "a"
            remote_id = "b"
            psk = "a secret of this test"
            remote_subnets = ["10.2.0.0/16", "fd02::/64"]
            request_address = true
            "#,
            std::path::Path::new("agent.toml"),
        )
        .unwrap();
        let peers: Vec<_> =
            config.peers.iter().map(|peer| peer.resolve(&config, &mut CrlFiles::default()).unwrap()).collect();
        let desired = Desired::compute(&config, &peers, None);
        let given: InternalAddresses = [(PeerName::new("gateway"), addresses(&["10.9.0.1", "10.9.0.2"]))].into();
        let with = |present: &[&str]| {
            let device = Link { name: DEVICE.into(), addresses: addresses(present), ..Link::default() };
            let observed = NetworkState { links: vec![device], ..NetworkState::default() };
            let found = sources(&desired, &observed, &given);
            found.into_iter().map(|(_, source)| source.map(|source| source.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(with(&[]), [None, None]);
        assert_eq!(with(&["10.9.0.1"]), [Some("10.9.0.1".to_owned()), None]);
        assert_eq!(with(&["10.9.0.1", "10.9.0.2"]), [Some("10.9.0.2".to_owned()), None], "the newest IKE SA's");
    }
}
