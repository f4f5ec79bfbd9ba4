//! `[relay]`: relays between two nodes that find no path to each other.

use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer};

/// Default UDP ports of a hub for relays: two for each of 512 pairs of nodes. They are below the
/// ports that the kernel gives to other sockets (`net.ipv4.ip_local_port_range`).
const PORTS: RangeInclusive<u16> = 24_000..=25_023;
/// Minimum number of ports.
const MIN_PORTS: usize = 16;
/// Ports that Kubernetes gives to Services of the type `NodePort` unless configured otherwise.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Ports that only privileged programs may open, and that other services have.
const WELL_KNOWN: RangeInclusive<u16> = 0..=1023;

/// The table `[relay]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySection {
    /// On an edge: whether it asks hubs for relays, and agrees to those that others ask for. On a
    /// hub: whether it relays.
    pub enabled: bool,
    /// On a hub: the UDP ports for relays, two for each pair of nodes.
    #[serde(deserialize_with = "ports")]
    pub ports: RangeInclusive<u16>,
}

impl Default for RelaySection {
    fn default() -> Self {
        Self { enabled: true, ports: PORTS }
    }
}

impl RelaySection {
    /// Checks the ports against the two ports for IKE.
    pub(super) fn check(&self, ike: [u16; 2]) -> Result<(), String> {
        // A port of the default range that another program has is passed over.
        if self.ports == PORTS {
            return Ok(());
        }
        let (first, last) = (self.ports.start(), self.ports.end());
        let overlaps = |other: &RangeInclusive<u16>| first <= other.end() && other.start() <= last;
        let count = self.ports.clone().count();
        if count < MIN_PORTS {
            return Err(format!(
                "[relay]: ports is \"{first}-{last}\", {count} ports; expected at least {MIN_PORTS}, since each pair of nodes needs two"
            ));
        }
        if let Some(port) = ike.into_iter().find(|port| self.ports.contains(port)) {
            return Err(format!(
                "[relay]: ports is \"{first}-{last}\" and holds {port}, which is IKE's; choose other ports"
            ));
        }
        for (taken, what) in [
            (NODE_PORTS, "which Kubernetes gives to Services of the type NodePort"),
            (WELL_KNOWN, "which belong to other services"),
        ] {
            if overlaps(&taken) {
                return Err(format!(
                    "[relay]: ports is \"{first}-{last}\" and overlaps {}-{}, {what}; choose other ports, such as \"{}-{}\"",
                    taken.start(),
                    taken.end(),
                    PORTS.start(),
                    PORTS.end()
                ));
            }
        }
        Ok(())
    }
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RangeInclusive<u16>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let range = text.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(first..=last)
    });
    range.ok_or_else(|| {
        serde::de::Error::custom(format!(
            "ports is {text:?}; expected two ports, the smaller first, like \"24000-25023\""
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<RelaySection, String> {
        let section: RelaySection = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        section.check([500, 4500]).map(|()| section)
    }

    #[test]
    fn relays_are_on_and_the_ports_can_be_chosen() {
        assert_eq!(checked("").unwrap(), RelaySection { enabled: true, ports: 24_000..=25_023 });
        let chosen = checked("enabled = false\nports = \"40000 - 40015\"").unwrap();
        assert_eq!(chosen, RelaySection { enabled: false, ports: 40_000..=40_015 });
    }

    #[test]
    fn careless_ranges_of_ports_are_refused_in_words() {
        for (ports, expected) in [
            ("4000-5000", "holds 4500, which is IKE's"),
            ("30100-30200", "overlaps 30000-32767, which Kubernetes gives to Services of the type NodePort"),
            ("29000-40000", "overlaps 30000-32767"),
            ("1000-2000", "overlaps 0-1023, which belong to other services"),
            ("0-65535", "which is IKE's"),
            ("40000-40014", "15 ports; expected at least 16"),
            ("40015-40000", "expected two ports, the smaller first"),
            ("40000", "expected two ports"),
            ("40000-70000", "expected two ports"),
            ("", "expected two ports"),
        ] {
            let error = checked(&format!("ports = {ports:?}")).unwrap_err();
            assert!(error.contains(expected), "{ports}: {error}");
        }
    }
}
