//! Finds host settings that break the pods' network, and determines the commands that correct them.
//! STATUS and `edge-cni up` report these settings.

use std::path::Path;

use edge_types::api::Family;
use edge_types::shared_files::SegmentsFile;
use edge_xfrm::guard::{self, Bypass};

use crate::config::Config;
use crate::error::Result;
use crate::net::link::Links;
use crate::net::{sysctl, uplink};
use crate::{cluster_ranges, segment};

/// A setting that breaks the pods' network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// Whether the setting bypasses the guard, so that no pod should be placed on this node.
    pub(crate) bypasses_guard: bool,
    /// The setting, its consequence, and how to correct it.
    pub(crate) message: String,
}

/// Finds all obstacles on this host.
pub(crate) fn find(links: &mut Links, config: &Config, segments: Option<&SegmentsFile>) -> Result<Vec<Obstacle>> {
    let uplinks = uplink::names(links)?;
    let mut obstacles: Vec<Obstacle> =
        guard::bypasses().iter().filter_map(|bypass| of_bypass(bypass, config, &uplinks)).collect();
    let families = segments.map(|segments| segment::families(&segments.segments)).unwrap_or_default();
    obstacles.extend(families.iter().filter_map(|family| of_bridge_filter(*family)).map(minor));
    let ranges = cluster_ranges::all(config, segments);
    obstacles.extend(without_ipv6(ranges.iter().chain(&config.segments).any(|range| range.is_ipv6())).map(minor));
    Ok(obstacles)
}

/// Returns a message for a node without IPv6 in a cluster that uses IPv6 (`wanted`).
pub(crate) fn without_ipv6(wanted: bool) -> Option<String> {
    (wanted && !sysctl::has_ipv6()).then(|| {
        "this kernel has no IPv6 (ipv6.disable=1 at boot?), so pods of this node get IPv4 addresses alone".into()
    })
}

fn minor(message: String) -> Obstacle {
    Obstacle { bypasses_guard: false, message }
}

/// Returns the obstacle for an interface that bypasses IPsec. `None` if it does not affect pods.
/// VTI interfaces bypass IPsec intentionally.
fn of_bypass(bypass: &Bypass, config: &Config, uplinks: &[String]) -> Option<Obstacle> {
    let interface = &bypass.interface;
    let everywhere = interface == "all";
    let concerned = if bypass.is_inbound() {
        everywhere || *interface == config.bridge || uplinks.contains(interface)
    } else {
        // Packets to pods of other nodes are routed to the guard's device, where policies encrypt
        // them.
        everywhere || interface == guard::DEVICE
    };
    let bypasses_guard = bypass.is_inbound() && *interface != config.bridge;
    concerned.then(|| Obstacle { bypasses_guard, message: bypass.to_string() })
}

/// Returns the obstacle for Services with an endpoint on the same node. Without br_netfilter the
/// bridge forwards the reply directly, and the host's NAT does not translate its source back.
fn of_bridge_filter(family: Family) -> Option<String> {
    let (name, setting) = match family {
        Family::V4 => ("IPv4", "bridge-nf-call-iptables"),
        Family::V6 => ("IPv6", "bridge-nf-call-ip6tables"),
    };
    let text = std::fs::read_to_string(Path::new("/proc/sys/net/bridge").join(setting));
    let command = match text {
        Ok(text) if text.trim() == "1" => return None,
        Ok(_) => format!("`sysctl -w net.bridge.{setting}=1`"),
        Err(_) => "`modprobe br_netfilter`".into(),
    };
    Some(format!(
        "bridged {name} packets bypass the host's NAT, so that a pod cannot reach a Service with an endpoint on another pod of this node; run {command}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_that_bypass_the_guard_are_failures() {
        let json = serde_json::json!({"cniVersion": "1.1.0", "name": "pods"});
        let config = Config::from_object(json.as_object().unwrap().clone()).unwrap();
        let of = |interface: &str, setting| {
            let bypass = Bypass { family: "ipv4", interface: interface.into(), setting };
            of_bypass(&bypass, &config, &["eth0".into()]).map(|obstacle| obstacle.bypasses_guard)
        };
        for (interface, setting, bypasses_guard) in [
            ("all", "disable_policy", Some(true)),
            ("eth0", "disable_policy", Some(true)),
            ("ecni0", "disable_policy", Some(false)),
            ("vti0", "disable_policy", None),
            ("default", "disable_policy", None),
            ("all", "disable_xfrm", Some(false)),
            ("ecni-guard", "disable_xfrm", Some(false)),
            ("eth0", "disable_xfrm", None),
        ] {
            assert_eq!(of(interface, setting), bypasses_guard, "{interface} {setting}");
        }
    }
}
