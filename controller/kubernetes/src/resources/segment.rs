//! The custom resource `Segment`: records which node holds a segment. The object is named after the
//! network, so creating the object grants the segment: if two replicas grant the same segment, the
//! API server accepts only one of the two requests.

use std::net::{IpAddr, Ipv6Addr};

use edge_controller_domain::segments::{Holding, SegmentRecord};
use edge_types::IpNetwork;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::timestamp::Timestamp;

/// The row of a segment.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "edge-cni.io",
    version = "v1alpha1",
    kind = "Segment",
    singular = "segment",
    plural = "segments",
    shortname = "eseg",
    category = "edge-cni",
    doc = "A range of addresses for one node's pods, granted by the controller. Written by the controller alone.",
    selectable = ".spec.node",
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.network"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Granted", type_ = "date", json_path = ".spec.grantedAt"),
    printcolumn(name = "Released", type_ = "date", json_path = ".spec.releasedAt"),
    // The rule does not use string(number): the API server estimates its cost as if numbers had no
    // limit.
    validation = Rule::new(
        "self.spec.network.contains(':') \
         ? ip(self.metadata.name.substring(0, self.metadata.name.lastIndexOf('-')).replace('-', ':')) == cidr(self.spec.network).ip() \
           && self.metadata.name.endsWith(self.spec.network.substring(self.spec.network.indexOf('/')).replace('/', '-')) \
         : self.metadata.name == self.spec.network.replace('/', '-')"
    ).message("metadata.name must be spec.network with '-' for '/', and for IPv6 all eight groups of four digits with '-' for ':'")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.network == oldSelf.network").message("a segment's network cannot be changed"),
    validation = Rule::new("oldSelf.state == 'released' || self.state == 'released' || self.node == oldSelf.node")
        .message("a segment that is held does not change hands: it must be released first"),
    validation = Rule::new("(self.state == 'released') == has(self.releasedAt)")
        .message("releasedAt stands with state released, and only with it"),
)]
pub struct SegmentSpec {
    /// The segment, in CIDR notation.
    #[schemars(length(max = 43))]
    #[x_kube(
        validation = Rule::new("isCIDR(self) && cidr(self) == cidr(self).masked()")
            .message("the network must be in CIDR notation, without bits beyond its prefix")
    )]
    pub network: String,
    /// Name of the node that holds the segment, or held it last.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Whether a node holds the segment. A released segment is not granted until its quarantine is
    /// over.
    pub state: SegmentState,
    /// ID of the request for which the segment was granted. A node that repeats the request gets
    /// the same segment.
    #[schemars(length(max = 253))]
    pub request_id: String,
    /// When it was granted.
    pub granted_at: Timestamp,
    /// When it was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Timestamp>,
    /// End of the quarantine. Until then the segment is not granted, because the node that held it
    /// may still use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<Timestamp>,
    /// Earlier grants, the most recent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub past: Vec<HoldingSpec>,
}

/// State of a segment.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentState {
    /// A node holds it.
    Held,
    /// No node holds it.
    Released,
}

/// An earlier grant.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HoldingSpec {
    /// Name of the node that held it.
    #[schemars(length(max = 253))]
    pub node: String,
    /// When it was granted.
    pub granted_at: Timestamp,
    /// When it was released.
    pub released_at: Timestamp,
}

impl SegmentSpec {
    /// Returns the spec for a segment's row.
    pub fn of(row: &SegmentRecord) -> Self {
        let SegmentRecord { network, node, request_id, granted_at, released_at, kept_until, past } = row;
        Self {
            network: network.to_string(),
            node: node.to_string(),
            state: if released_at.is_some() { SegmentState::Released } else { SegmentState::Held },
            request_id: request_id.clone(),
            granted_at: Timestamp(*granted_at),
            released_at: released_at.map(Timestamp),
            kept_until: kept_until.map(Timestamp),
            past: past.iter().map(HoldingSpec::of).collect(),
        }
    }

    /// Reads the row of the object with this name.
    ///
    /// # Errors
    /// Returns an error that names the wrong field and the reason.
    pub fn row(&self, name: &str) -> Result<SegmentRecord, String> {
        let network: IpNetwork = self.network.parse().map_err(|e| format!("spec.network {:?}: {e}", self.network))?;
        if object_name(&network) != name {
            return Err(format!("spec.network {network} is of the object {}, not of {name}", object_name(&network)));
        }
        let holding = |past: &HoldingSpec| {
            let node = past.node.parse().map_err(|e: edge_types::NameError| format!("spec.past: {e}"))?;
            Ok(Holding { node, granted_at: past.granted_at.0, released_at: past.released_at.0 })
        };
        Ok(SegmentRecord {
            network,
            node: self.node.parse().map_err(|e: edge_types::NameError| format!("spec.node: {e}"))?,
            request_id: self.request_id.clone(),
            granted_at: self.granted_at.0,
            released_at: self.released_at.map(|at| at.0),
            kept_until: self.kept_until.map(|at| at.0),
            past: self.past.iter().map(holding).collect::<Result<_, String>>()?,
        })
    }
}

impl HoldingSpec {
    fn of(holding: &Holding) -> Self {
        let Holding { node, granted_at, released_at } = holding;
        Self { node: node.to_string(), granted_at: Timestamp(*granted_at), released_at: Timestamp(*released_at) }
    }
}

/// Returns the name of a segment's object: `10.77.0.0-26`,
/// `fd77-0000-0000-0000-0000-0000-0000-0000-120`.
pub fn object_name(network: &IpNetwork) -> String {
    match network.network() {
        IpAddr::V4(ip) => format!("{ip}-{}", network.prefix()),
        IpAddr::V6(ip) => {
            let groups = ip.segments().map(|group| format!("{group:04x}")).join("-");
            format!("{groups}-{}", network.prefix())
        }
    }
}

/// Returns the network of the object with this name; `None` if the name has another form.
pub fn network_of(name: &str) -> Option<IpNetwork> {
    let (address, prefix) = name.rsplit_once('-')?;
    let ip: IpAddr = match address.contains('.') {
        true => IpAddr::V4(address.parse().ok()?),
        false => IpAddr::V6(address.replace('-', ":").parse::<Ipv6Addr>().ok()?),
    };
    let network = IpNetwork::new(ip, prefix.parse().ok()?).ok()?;
    (object_name(&network) == name).then_some(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_named_after_its_network_and_leads_back_to_it() {
        for (network, name) in [
            ("10.77.0.0/26", "10.77.0.0-26"),
            ("fd77::/120", "fd77-0000-0000-0000-0000-0000-0000-0000-120"),
            ("2001:db8:0:1::ab00/120", "2001-0db8-0000-0001-0000-0000-0000-ab00-120"),
        ] {
            let network: IpNetwork = network.parse().unwrap();
            assert_eq!(object_name(&network), name);
            assert_eq!(network_of(name), Some(network));
            assert!(name.split('.').all(|label| label.len() <= 63));
        }
        for odd in ["", "x", "10.77.0.0", "10.77.0.1-26", "10.77.0.0-33", "fd77-120", "fd77-0-0-0-0-0-0-0-120", "a-b-c"]
        {
            assert_eq!(network_of(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_row_comes_back_from_its_object_as_it_was() {
        let past = Holding { node: "b".parse().unwrap(), granted_at: 1_793_491_200, released_at: 1_793_491_300 };
        let network = "fd77::/120".parse().unwrap();
        for released_at in [None, Some(1_793_491_500)] {
            let row = SegmentRecord {
                past: vec![past.clone()],
                kept_until: released_at.map(|at| at + 3600),
                ..SegmentRecord::new(network, "a".parse().unwrap(), "r 1".into(), 1_793_491_400, released_at)
            };
            let json = serde_json::to_string(&SegmentSpec::of(&row)).unwrap();
            let spec: SegmentSpec = serde_json::from_str(&json).unwrap();
            assert_eq!(spec.row(&object_name(&network)).unwrap(), row);
            assert!(spec.row("10.77.0.0-26").unwrap_err().contains("10.77.0.0-26"));
        }
    }
}
