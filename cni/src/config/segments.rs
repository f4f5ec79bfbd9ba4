//! The key `segments`. Each entry is a network, or an object in the format of host-local's
//! `ranges`.

use std::net::IpAddr;

use edge_types::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::reserved::AddressRange;
use crate::segment;

/// One segment.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Value")]
pub(super) enum SegmentEntry {
    Network(IpNetwork),
    Range(HostLocalRange),
}

/// An entry in the format of host-local.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HostLocalRange {
    subnet: IpNetwork,
    #[serde(default)]
    range_start: Option<IpAddr>,
    #[serde(default)]
    range_end: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

impl TryFrom<Value> for SegmentEntry {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let text = value.to_string();
        let entry = match value {
            Value::Object(_) => serde_json::from_value(value).map(Self::Range),
            _ => serde_json::from_value(value).map(Self::Network),
        };
        entry.map_err(|error| format!("the segment {text}: {error}"))
    }
}

impl SegmentEntry {
    pub(super) const fn network(&self) -> &IpNetwork {
        match self {
            Self::Network(network) => network,
            Self::Range(range) => &range.subnet,
        }
    }

    /// Returns the addresses that `rangeStart` and `rangeEnd` exclude. Fails if they do not fit the
    /// subnet, or if the gateway is not the bridge's address.
    pub(super) fn left_out(&self) -> Result<Vec<AddressRange>, String> {
        let Self::Range(range) = self else { return Ok(vec![]) };
        let subnet = &range.subnet;
        let (lowest, highest) = segment::pod_range(subnet);
        for (key, address) in [("rangeStart", range.range_start), ("rangeEnd", range.range_end)] {
            if let Some(address) = address.filter(|address| !subnet.contains(*address)) {
                return Err(format!("{key} {address} is not in {subnet}"));
            }
        }
        if let Some(gateway) = range.gateway.filter(|gateway| *gateway != segment::gateway(subnet)) {
            return Err(format!(
                "the gateway {gateway} of {subnet} is not {}: the bridge has the first host address, and other nodes expect it there; leave it out",
                segment::gateway(subnet)
            ));
        }
        if let (Some(start), Some(end)) = (range.range_start, range.range_end)
            && start > end
        {
            return Err(format!("rangeStart {start} comes after rangeEnd {end}"));
        }
        let before = range.range_start.and_then(segment::previous).and_then(|last| AddressRange::new(lowest, last));
        let after = range.range_end.and_then(segment::next).and_then(|first| AddressRange::new(first, highest));
        Ok(before.into_iter().chain(after).collect())
    }
}
