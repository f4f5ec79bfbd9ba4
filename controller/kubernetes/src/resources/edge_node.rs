//! The custom resource `EdgeNode`: a registered node. Deleting the object deregisters the node.

use std::collections::BTreeMap;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::state::{Certificate, NodeObject, NodeRecord, PublicAddress};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::timestamp::Timestamp;

/// The record of a registered node.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "edge-cni.io",
    version = "v1alpha1",
    kind = "EdgeNode",
    singular = "edgenode",
    plural = "edgenodes",
    shortname = "en",
    category = "edge-cni",
    status = "EdgeNodeStatus",
    doc = "A node that joined the edge network. Written by the controller; deleting it deregisters the node.",
    selectable = ".spec.role",
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role"),
    printcolumn(name = "Communities", type_ = "string", json_path = ".status.communities"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".status.addresses"),
    printcolumn(name = "Segments", type_ = "string", json_path = ".status.segments"),
    printcolumn(name = "Tunnels", type_ = "string", json_path = ".status.tunnels.shown"),
    printcolumn(name = "Obstacles", type_ = "integer", json_path = ".status.obstacles.count"),
    printcolumn(name = "Connected", type_ = "date", json_path = ".status.connectedSince"),
    printcolumn(name = "Last seen", type_ = "date", json_path = ".status.lastSeen"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(name = "Certificate", type_ = "string", json_path = ".status.certificateUntil"),
    printcolumn(name = "Replica", type_ = "string", json_path = ".status.replica", priority = 1),
    printcolumn(name = "Joined", type_ = "date", json_path = ".spec.joinedAt", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.role == oldSelf.role")
        .message("a node's role cannot be changed: delete the EdgeNode, and join again with a token for the other role")
)]
pub struct EdgeNodeSpec {
    /// The node's role, from the token or service account with which it joined.
    pub role: Role,
    /// When the node was registered.
    pub joined_at: Timestamp,
    /// ID of the join token with which the node last joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub join_token: Option<String>,
    /// Labels that the operator set with edge-controller, for nodes without a Node object.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Communities that `labels` names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<String>,
    /// Data that the controller takes from the Node object of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_object: Option<NodeObjectSpec>,
    /// Addresses that the node reported, the most likely first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reported: Vec<String>,
    /// The node's UDP port for tunnels; 0 before its first report.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub port: i32,
    /// The source address of the node's last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
    /// Addresses and UDP ports from which its datagrams come to the hubs, as it reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mapped: Vec<String>,
    /// The TCP port on which a hub takes tunnels, as it reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub tcp_port: Option<i32>,
    /// Hubs to which an edge has no tunnel, while it has one to another hub, as it reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreached_hubs: Vec<String>,
    /// Certificates that the controller accepts from the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateSpec>,
    /// Start of validity of the first certificate that the node got at its latest join. Peers
    /// refuse certificates that start earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates_from: Option<Timestamp>,
    /// Time of the latest restore of the store after which the node has reported its segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_since_restore: Option<Timestamp>,
}

/// Role of a node.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An edge node. It has tunnels to the hubs and to the members of its communities.
    Edge,
    /// A hub: the cloud's end of the tunnels.
    Hub,
    /// Another node in the cloud, which routes to the hubs.
    Cloud,
}

/// Data that the controller takes from a Node object.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeObjectSpec {
    /// UID of the Node object. A Node of the same name with another UID is another node.
    pub uid: String,
    /// The machine ID that the Node reports. A Node with another UID on the same machine is the
    /// same node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub machine_id: String,
    /// Communities from the Node's labels, if the controller trusts these labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<String>,
    /// Communities from the label that kubelets cannot set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restricted_communities: Vec<String>,
    /// Addresses from the Node's annotation, with the port if one is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_addresses: Vec<String>,
    /// Networks of the pods on a hub, from `spec.podCIDRs` of the Node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_networks: Vec<String>,
}

/// A certificate that the controller accepts.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSpec {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// SHA-256 of the public key, hexadecimal.
    pub key: String,
    /// End of validity.
    pub not_after: Timestamp,
    /// Start of validity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Hash of the issuer's key, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// Whether the node has used this certificate. If so, the previous certificate is no longer
    /// needed.
    #[serde(default)]
    pub used: bool,
}

/// State of a node, as `kubectl` shows it.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EdgeNodeStatus {
    /// Communities to which the node belongs, from labels and `Community` objects.
    pub communities: Vec<String>,
    /// Addresses at which peers try to reach the node, the most likely first.
    pub addresses: Vec<String>,
    /// Segments that the node holds.
    pub segments: Vec<String>,
    /// Start of the node's connection to the controller; absent while the node is not connected.
    pub connected_since: Option<Timestamp>,
    /// When the node was last connected to the controller; absent while it is connected, and if it
    /// has never been connected.
    pub last_seen: Option<Timestamp>,
    /// The controller replica to which the node is connected.
    pub replica: Option<String>,
    /// End of validity of the node's certificate.
    pub certificate_until: Option<Timestamp>,
    /// State of the node's tunnels, as the node reports it.
    pub tunnels: Option<TunnelsStatus>,
    /// Release of the node's agent, as the agent reports it.
    pub agent_version: Option<String>,
    /// Obstacles that prevent the pods' packets from arriving, as the node's agent reports them.
    pub obstacles: Option<ObstaclesStatus>,
    /// Condition `Connected`: whether the node is connected to the controller.
    pub conditions: Vec<Condition>,
}

/// State of a node's tunnels.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelsStatus {
    /// Number of tunnels that are up.
    #[schemars(range(min = 0))]
    pub up: i32,
    /// Number of tunnels that should be up.
    #[schemars(range(min = 0))]
    pub wanted: i32,
    /// Both numbers as text, for a column of `kubectl get`.
    pub shown: String,
    /// The first of the peers to which a tunnel should be up and is not.
    #[serde(default)]
    pub down: Vec<String>,
}

/// Obstacles that prevent the packets of a node's pods from arriving.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObstaclesStatus {
    /// Number of obstacles.
    #[schemars(range(min = 0))]
    pub count: i32,
    /// The obstacles, one sentence each.
    pub list: Vec<String>,
}

impl EdgeNodeSpec {
    /// Returns the spec for a node's record.
    pub fn of(record: &NodeRecord) -> Self {
        let NodeRecord {
            name: _,
            role,
            labels,
            communities,
            object,
            reported,
            port,
            observed,
            mapped,
            tcp_port,
            unreached_hubs,
            certificates,
            certificates_from,
            joined_at,
            join_token,
            reported_since_restore,
        } = record;
        Self {
            role: (*role).into(),
            joined_at: Timestamp(*joined_at),
            join_token: join_token.clone(),
            labels: labels.clone(),
            communities: texts(communities),
            node_object: object.as_ref().map(NodeObjectSpec::of),
            reported: texts(reported),
            port: (*port).into(),
            observed: observed.map(|address| address.to_string()),
            mapped: texts(mapped),
            tcp_port: tcp_port.map(Into::into),
            unreached_hubs: texts(unreached_hubs),
            certificates: certificates.iter().map(CertificateSpec::of).collect(),
            certificates_from: known(*certificates_from),
            reported_since_restore: reported_since_restore.map(Timestamp),
        }
    }

    /// Reads the record of the object with this name.
    ///
    /// # Errors
    /// Returns an error that names the wrong field and the reason.
    pub fn record(&self, name: &str) -> Result<NodeRecord, String> {
        let read = |key: &str, error: &dyn std::fmt::Display| format!("spec.{key}: {error}");
        Ok(NodeRecord {
            name: name.parse().map_err(|e| read("name", &e))?,
            role: self.role.into(),
            labels: self.labels.clone(),
            communities: parsed("communities", &self.communities)?.into_iter().collect(),
            object: self.node_object.as_ref().map(NodeObjectSpec::object).transpose()?,
            reported: parsed("reported", &self.reported)?,
            port: self.port.try_into().map_err(|e| read("port", &e))?,
            observed: self.observed.as_ref().map(|ip| ip.parse().map_err(|e| read("observed", &e))).transpose()?,
            mapped: parsed("mapped", &self.mapped)?,
            tcp_port: self.tcp_port.map(|port| port.try_into().map_err(|e| read("tcpPort", &e))).transpose()?,
            unreached_hubs: parsed("unreachedHubs", &self.unreached_hubs)?.into_iter().collect(),
            certificates: self.certificates.iter().map(CertificateSpec::certificate).collect(),
            certificates_from: self.certificates_from.map_or(0, |from| from.0),
            joined_at: self.joined_at.0,
            join_token: self.join_token.clone(),
            reported_since_restore: self.reported_since_restore.map(|at| at.0),
        })
    }
}

impl NodeObjectSpec {
    fn of(object: &NodeObject) -> Self {
        let NodeObject { uid, machine_id, communities, restricted_communities, public_addresses, pod_networks } =
            object;
        Self {
            uid: uid.clone(),
            machine_id: machine_id.clone(),
            communities: texts(communities),
            restricted_communities: texts(restricted_communities),
            public_addresses: texts(public_addresses),
            pod_networks: texts(pod_networks),
        }
    }

    fn object(&self) -> Result<NodeObject, String> {
        Ok(NodeObject {
            uid: self.uid.clone(),
            machine_id: self.machine_id.clone(),
            communities: parsed("nodeObject.communities", &self.communities)?.into_iter().collect(),
            restricted_communities: parsed("nodeObject.restrictedCommunities", &self.restricted_communities)?
                .into_iter()
                .collect(),
            public_addresses: parsed::<PublicAddress>("nodeObject.publicAddresses", &self.public_addresses)?,
            pod_networks: parsed("nodeObject.podNetworks", &self.pod_networks)?,
        })
    }
}

impl CertificateSpec {
    fn of(certificate: &Certificate) -> Self {
        let Certificate { serial, key, not_after, not_before, issuer, used } = certificate;
        Self {
            serial: serial.clone(),
            key: key.clone(),
            not_after: Timestamp(*not_after),
            not_before: known(*not_before),
            issuer: issuer.clone(),
            used: *used,
        }
    }

    fn certificate(&self) -> Certificate {
        Certificate {
            serial: self.serial.clone(),
            key: self.key.clone(),
            not_after: self.not_after.0,
            not_before: self.not_before.map_or(0, |from| from.0),
            issuer: self.issuer.clone(),
            used: self.used,
        }
    }
}

impl From<edge_types::Role> for Role {
    fn from(role: edge_types::Role) -> Self {
        match role {
            edge_types::Role::Edge => Role::Edge,
            edge_types::Role::Hub => Role::Hub,
            edge_types::Role::Cloud => Role::Cloud,
        }
    }
}

impl From<Role> for edge_types::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Edge => edge_types::Role::Edge,
            Role::Hub => edge_types::Role::Hub,
            Role::Cloud => edge_types::Role::Cloud,
        }
    }
}

/// Converts a time that may be unknown; a record stores an unknown time as 0.
fn known(at: Seconds) -> Option<Timestamp> {
    (at != 0).then_some(Timestamp(at))
}

fn texts<'a, T: ToString + 'a>(values: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    values.into_iter().map(ToString::to_string).collect()
}

fn parsed<T: std::str::FromStr>(key: &str, values: &[String]) -> Result<Vec<T>, String>
where
    T::Err: std::fmt::Display,
{
    values.iter().map(|text| text.parse().map_err(|e| format!("spec.{key}: {text:?}: {e}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_from_its_object_as_it_was() {
        let mut record = NodeRecord::new("edge-1".parse().unwrap(), edge_types::Role::Edge, 1_793_491_200);
        let bare = record.clone();
        record.set_labels([("fabedge/edge-community".to_owned(), "alpha_beta".to_owned())].into()).unwrap();
        record.object = Some(NodeObject {
            uid: "u".into(),
            machine_id: "5f3c".into(),
            communities: ["gamma".parse().unwrap()].into(),
            restricted_communities: ["delta".parse().unwrap()].into(),
            public_addresses: ["203.0.113.7", "203.0.113.7:4501", "2001:db8::1", "[2001:db8::1]:4501"]
                .map(|text| text.parse().unwrap())
                .into(),
            pod_networks: ["10.244.3.0/24", "fd00:244:0:3::/64"].map(|text| text.parse().unwrap()).into(),
        });
        record.reported = vec!["192.0.2.1".parse().unwrap(), "2001:db8::2".parse().unwrap()];
        record.port = 4500;
        record.observed = Some("203.0.113.9".parse().unwrap());
        record.mapped = vec!["203.0.113.9:61000".parse().unwrap(), "[2001:db8::9]:61001".parse().unwrap()];
        record.tcp_port = Some(4500);
        record.unreached_hubs = ["hub-1".parse().unwrap()].into();
        record.certificates = vec![Certificate {
            serial: "4f".into(),
            key: "ab".into(),
            not_after: 1_800_000_000,
            not_before: 1_793_491_200,
            issuer: "cd".into(),
            used: true,
        }];
        record.certificates_from = 1_793_491_200;
        record.join_token = Some("Ab_-9".into());
        record.reported_since_restore = Some(1_793_491_300);
        for record in [record, bare] {
            let json = serde_json::to_string(&EdgeNodeSpec::of(&record)).unwrap();
            let spec: EdgeNodeSpec = serde_json::from_str(&json).unwrap();
            assert_eq!(spec.record("edge-1").unwrap(), record);
        }
    }

    #[test]
    fn an_object_that_is_no_record_says_which_key_is_wrong() {
        let good = EdgeNodeSpec::of(&NodeRecord::new("a".parse().unwrap(), edge_types::Role::Edge, 0));
        for (spec, key) in [
            (EdgeNodeSpec { reported: vec!["192.0.2".into()], ..good.clone() }, "spec.reported"),
            (EdgeNodeSpec { port: 70_000, ..good.clone() }, "spec.port"),
            (EdgeNodeSpec { observed: Some("x".into()), ..good.clone() }, "spec.observed"),
            (EdgeNodeSpec { mapped: vec!["192.0.2.1".into()], ..good.clone() }, "spec.mapped"),
            (EdgeNodeSpec { tcp_port: Some(70_000), ..good.clone() }, "spec.tcpPort"),
            (EdgeNodeSpec { communities: vec!["a_b".into()], ..good.clone() }, "spec.communities"),
        ] {
            let error = spec.record("a").unwrap_err();
            assert!(error.contains(key), "{error}");
        }
        assert!(good.record("A").is_err());
    }
}
