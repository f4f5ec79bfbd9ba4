//! Repairs the pods' bridge after other programs have deleted it, its ports or its routes. The
//! plugin owns and creates the bridge; the agent runs `edge-cni up` when the bridge must be
//! created.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::spawn_blocking;

use super::Obstacle;
use super::network_state::{Link, NetworkState};
use crate::config::Config;
use crate::desired::Desired;
use crate::incidents::Incidents;

/// `EEXIST`, as a positive number.
const ALREADY_THERE: i32 = 17;
/// The metric of IPv6 routes that the kernel creates (`IP6_RT_PRIO_ADDRCONF`).
const KERNEL_IPV6_METRIC: u32 = 256;
/// Maximum number of interfaces that one message names.
const NAMED_PORTS: usize = 10;

/// Runs the plugin to create the bridge, and stores the last failure.
#[derive(Debug)]
pub(super) struct PodBridge {
    config: Arc<Config>,
    incidents: Incidents,
    /// The reason why the last `edge-cni up` failed.
    failure: Option<String>,
    /// Interfaces of pods that were not attached to a bridge after the last `edge-cni up`.
    left_detached: Vec<u32>,
}

impl PodBridge {
    pub(super) fn new(config: Arc<Config>, incidents: Incidents) -> Self {
        Self { config, incidents, failure: None, left_detached: vec![] }
    }

    /// Creates the bridge and attaches pods to it again, if necessary. Returns the resulting links
    /// and routes.
    pub(super) async fn reconcile(
        &mut self,
        handle: &Handle,
        desired: &Desired,
        mut observed: NetworkState,
    ) -> anyhow::Result<NetworkState> {
        let missing = self.is_missing(desired, &observed);
        let detached = detached_ports(&observed);
        // Pods of another network cannot be attached with this conflist, so this is tried only once
        // for each of them.
        let newly_detached = detached.iter().any(|index| !self.left_detached.contains(index));
        let failed = self.failure.is_some() && !detached.is_empty();
        if self.is_installed() && (missing || newly_detached || failed) {
            self.up().await;
            observed = NetworkState::read(handle).await?;
        } else if !missing {
            self.failure = None;
        }
        self.left_detached = detached_ports(&observed);
        for message in missing_routes(&observed, &self.config.bridge) {
            let shown = shown(&observed, &message);
            match handle.route().add(message).execute().await {
                Ok(()) => self.incidents.repaired(format!("{shown} was missing, so that pods were cut off")),
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code().saturating_neg() == ALREADY_THERE => {}
                Err(error) => self.incidents.error(format!("{shown} is missing and cannot be added: {error}")),
            }
        }
        Ok(observed)
    }

    /// Returns whether the last attempt to create the bridge failed. The attempt is repeated.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Returns the obstacles if the bridge cannot be created or pods cannot be attached to it.
    pub(super) fn obstacles(&self, observed: &NetworkState) -> Vec<Obstacle> {
        let command = format!("edge-cni up {}", self.conflist().display());
        let failed = self.failure.as_ref().map(|failure| Obstacle {
            what: format!("the bridge {} cannot be made ({failure}): pods are cut off", self.config.bridge),
            command: command.clone(),
        });
        let names: Vec<&str> =
            self.left_detached.iter().filter_map(|index| observed.name_of(*index)).take(NAMED_PORTS).collect();
        let more = self.left_detached.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let detached = (!names.is_empty()).then(|| Obstacle {
            what: format!(
                "interfaces of pods are ports of no bridge, so that these pods are cut off: {}{more}",
                names.join(", ")
            ),
            command: format!("{command}, or with the file of their own network"),
        });
        failed.into_iter().chain(detached).collect()
    }

    /// Runs `edge-cni up`, which creates the bridge as it does when a pod is added. Returns whether
    /// it succeeded.
    pub(super) async fn up(&mut self) -> bool {
        let (plugin, conflist) = (self.plugin(), self.conflist());
        let outcome =
            spawn_blocking(move || Command::new(&plugin).arg("up").arg(&conflist).stdin(Stdio::null()).output());
        self.failure = match outcome.await {
            Ok(Ok(output)) if output.status.success() => {
                let printed = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default();
                match printed["attached"].as_array().map_or(0, Vec::len) {
                    0 => tracing::info!("bridge {} made", self.config.bridge),
                    pods => self.incidents.repaired(format!(
                        "the bridge {} had lost {pods} pods, which were cut off: they are attached again",
                        self.config.bridge
                    )),
                }
                None
            }
            Ok(Ok(output)) => {
                let said = [output.stdout, output.stderr].concat();
                Some(format!("edge-cni up: {}", String::from_utf8_lossy(&said).trim()))
            }
            Ok(Err(error)) => Some(format!("edge-cni up: {error}")),
            Err(error) => Some(format!("edge-cni up: {error}")),
        };
        if let Some(failure) = &self.failure {
            self.incidents.error(format!("bridge {} cannot be made: {failure}", self.config.bridge));
        }
        self.failure.is_none()
    }

    /// Returns whether the plugin and its conflist exist, so that the plugin can be run.
    pub(super) fn is_installed(&self) -> bool {
        self.conflist().exists() && self.plugin().exists()
    }

    pub(super) fn conflist(&self) -> PathBuf {
        self.config.cni.conflist()
    }

    pub(super) fn plugin(&self) -> PathBuf {
        self.config.cni.bin_dir.join("edge-cni")
    }

    /// Returns whether the bridge must be created. After a reboot, the bridge and its address,
    /// which is the source of the node's own packets, are missing until the first pod starts.
    fn is_missing(&self, desired: &Desired, observed: &NetworkState) -> bool {
        let segments = &desired.guard.segments;
        !segments.is_empty()
            && desired.complete
            && bridge_addresses(observed, &self.config.bridge, segments).len() < families(segments, kernel_has_ipv6())
    }
}

/// Returns the host ends of attached pods' interfaces that are not ports of any bridge.
fn detached_ports(observed: &NetworkState) -> Vec<u32> {
    observed.links.iter().filter(|link| link.pod_port && link.controller.is_none()).map(|link| link.index).collect()
}

/// Returns the bridge's addresses within this node's segments, one for each family, in the order of
/// the segments.
pub(super) fn bridge_addresses(observed: &NetworkState, bridge: &str, segments: &[IpNetwork]) -> Vec<IpAddr> {
    let Some(link) = observed.link(bridge) else { return vec![] };
    let mut found: Vec<IpAddr> = Vec::new();
    for segment in segments {
        if found.iter().any(|address| address.is_ipv4() == segment.is_ipv4()) {
            continue;
        }
        found.extend(link.addresses.iter().find(|address| segment.contains(**address)));
    }
    found
}

/// Returns the number of address families in which the bridge gets an address.
fn families(segments: &[IpNetwork], has_ipv6: bool) -> usize {
    let (ipv4, ipv6) = (segments.iter().any(IpNetwork::is_ipv4), segments.iter().any(IpNetwork::is_ipv6));
    usize::from(ipv4) + usize::from(ipv6 && has_ipv6)
}

/// Returns whether the kernel has IPv6. It has none if it was booted with `ipv6.disable=1`; the
/// plugin then leaves out IPv6 segments.
fn kernel_has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Returns the missing routes to the networks of the pods' bridges, which the kernel created with
/// the addresses and another program has deleted (for example with `ip route flush`). A bridge in a
/// VRF has its routes in another table.
fn missing_routes(observed: &NetworkState, own: &str) -> Vec<RouteMessage> {
    let bridges = observed.links.iter().filter(|link| link.pod_bridge || link.name == own);
    let bridges = bridges.filter(|link| link.bridge && link.up && link.controller.is_none());
    bridges
        .flat_map(|link| {
            let ipv6 = link.networks.iter().any(IpNetwork::is_ipv6);
            let link_local = Some("fe80::/64").filter(|_| ipv6).and_then(|text| text.parse().ok());
            let host_only = |network: &IpNetwork| network.prefix() == if network.is_ipv4() { 32 } else { 128 };
            let routed = move |network: &IpNetwork| {
                observed.routes.iter().any(|route| route.destination == *network && route.device == Some(link.index))
            };
            let networks = link.networks.iter().copied().filter(move |network| !host_only(network)).chain(link_local);
            networks.filter(move |network| !routed(network)).filter_map(|network| connected_route(link, network))
        })
        .collect()
}

fn connected_route(link: &Link, network: IpNetwork) -> Option<RouteMessage> {
    match network {
        IpNetwork::V4(network) => {
            let source = link.addresses.iter().find_map(|address| match address {
                IpAddr::V4(address) if network.contains(*address) => Some(*address),
                _ => None,
            })?;
            Some(
                RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(network.network(), network.prefix())
                    .output_interface(link.index)
                    .pref_source(source)
                    .scope(RouteScope::Link)
                    .protocol(RouteProtocol::Kernel)
                    .build(),
            )
        }
        IpNetwork::V6(network) => Some(
            RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(network.network(), network.prefix())
                .output_interface(link.index)
                .priority(KERNEL_IPV6_METRIC)
                .protocol(RouteProtocol::Kernel)
                .build(),
        ),
    }
}

/// Formats a route for the log.
fn shown(observed: &NetworkState, message: &RouteMessage) -> String {
    match super::network_state::route(message.clone()) {
        Some(route) => {
            let device = route.device.and_then(|index| observed.name_of(index)).unwrap_or("the bridge");
            format!("the route to {} through {device}", route.destination)
        }
        None => "a route of the bridge".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::tests::config;
    use crate::host::network_state::route;

    fn bridge() -> Link {
        Link {
            index: 5,
            name: "ecni0".into(),
            up: true,
            bridge: true,
            pod_bridge: true,
            addresses: ["10.77.1.1", "fd77::1"].map(|text| text.parse().unwrap()).to_vec(),
            networks: ["10.77.1.0/26", "fd77::/120", "10.77.9.1/32"].map(|text| text.parse().unwrap()).to_vec(),
            ..Link::default()
        }
    }

    #[test]
    fn no_address_is_expected_of_a_family_that_the_kernel_lacks() {
        let segments = ["10.77.1.0/26", "fd77::/120", "fd77::100/120"].map(|text| text.parse().unwrap());
        assert_eq!(families(&segments, true), 2);
        assert_eq!(families(&segments, false), 1);
        assert_eq!(families(&segments[1..], false), 0);
    }

    #[test]
    fn routes_of_the_bridge_that_were_flushed_are_made_as_the_kernel_makes_them() {
        let uplink = Link { index: 2, up: true, networks: vec!["192.0.2.0/24".parse().unwrap()], ..Link::default() };
        let mut observed = NetworkState { links: vec![uplink, bridge()], ..NetworkState::default() };
        let missing = missing_routes(&observed, "ecni0");
        let shown: Vec<String> = missing.iter().map(|message| shown(&observed, message)).collect();
        let expected =
            ["10.77.1.0/26", "fd77::/120", "fe80::/64"].map(|network| format!("the route to {network} through ecni0"));
        assert_eq!(shown, expected, "uplinks' routes belong to the host");
        let first = route(missing[0].clone()).unwrap();
        assert_eq!((first.source, first.protocol), (Some("10.77.1.1".parse().unwrap()), 2));
        observed.routes = missing.into_iter().filter_map(route).collect();
        assert_eq!(missing_routes(&observed, "ecni0"), []);
        observed.routes.clear();
        observed.links[1].controller = Some(9);
        assert_eq!(missing_routes(&observed, "ecni0"), [], "in a VRF");
    }

    #[test]
    fn pods_without_a_bridge_are_named() {
        let port = |index, controller| Link {
            index,
            name: format!("ecnip{index}"),
            veth: true,
            pod_port: true,
            controller,
            ..Link::default()
        };
        let other = Link { index: 9, veth: true, ..Link::default() };
        let observed =
            NetworkState { links: vec![bridge(), port(6, Some(5)), port(7, None), other], ..NetworkState::default() };
        assert_eq!(detached_ports(&observed), [7]);
        let mut reconciler = PodBridge::new(Arc::new(config("")), Incidents::default());
        assert_eq!(reconciler.obstacles(&observed), []);
        reconciler.left_detached = detached_ports(&observed);
        let obstacles = reconciler.obstacles(&observed);
        assert!(obstacles[0].what.ends_with("are cut off: ecnip7"), "{obstacles:?}");
        assert!(obstacles[0].command.contains("edge-cni up"), "{obstacles:?}");
    }
}
