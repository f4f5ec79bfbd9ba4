//! Implements `import-fabedge`, which translates FabEdge's resources.
//!
//! FabEdge names a node `CLUSTER.NODE`, and the hub of a cluster `CLUSTER.connector`. Its resources
//! are read from a file with the output of `kubectl get -o json`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use axum::http::Method;
use edge_types::api::{CommunityInfo, CommunityMembers};
use edge_types::network::contains;
use edge_types::{Community, IpNetwork, NodeName};
use serde::Deserialize;

use super::client::Client;
use super::table::print_line;

/// API group of FabEdge's resources.
const GROUP: &str = "fabedge.io/";
/// Annotation of a Node with the networks of the node's pods, separated by commas.
const SUBNETS: &str = "fabedge.io/subnets";
/// Annotation of a Node with the addresses at which peers reach the node, separated by commas.
const PUBLIC_ADDRESSES: &str = "fabedge.io/node-public-addresses";
/// The equivalent annotation in this project.
const OUR_PUBLIC_ADDRESSES: &str = "edge-cni.io/public-addresses";
/// Name and type of the hub in FabEdge.
const CONNECTOR: (&str, &str) = ("connector", "Connector");

/// The fields of an object, or of a list of objects, that are read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    items: Vec<Object>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    members: Vec<String>,
    #[serde(default)]
    end_points: Vec<EndPoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndPoint {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    public_addresses: Vec<String>,
    #[serde(default)]
    subnets: Vec<String>,
    #[serde(default)]
    node_subnets: Vec<String>,
}

/// The translated resources.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mapping {
    communities: BTreeMap<Community, BTreeSet<NodeName>>,
    /// Addresses for the annotation of a Node.
    addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Networks of the cloud, for the key `networks`.
    networks: BTreeSet<IpNetwork>,
    /// Networks that FabEdge's edges use, for the key `reserved`.
    reserved: BTreeSet<IpNetwork>,
    /// The parts that are not carried over, with the reasons.
    notes: Vec<String>,
}

/// Translates the resources in a file, and prints the result.
pub(super) fn read(file: &Path, cluster: Option<&str>) -> anyhow::Result<Mapping> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let object: Object = serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is not what kubectl get communities.fabedge.io,clusters.fabedge.io,nodes -o json prints",
            file.display()
        )
    })?;
    let mapping = map(object, cluster).with_context(|| file.display().to_string())?;
    print_line(mapping.text())?;
    for note in &mapping.notes {
        eprintln!("not carried over: {note}");
    }
    Ok(mapping)
}

fn map(object: Object, cluster: Option<&str>) -> anyhow::Result<Mapping> {
    let objects = if object.kind.ends_with("List") { object.items } else { vec![object] };
    let of = |kind: &str| {
        let kind = kind.to_owned();
        objects.iter().filter(move |object| object.kind == kind && object.api_version.starts_with(GROUP))
    };
    if of("Community").chain(of("Cluster")).next().is_none() {
        bail!("there is no Community and no Cluster of {GROUP} in it");
    }
    let members = of("Community").flat_map(|object| &object.spec.members).map(String::as_str);
    let ends = of("Cluster").flat_map(|object| &object.spec.end_points).map(|end| end.name.as_str());
    let clusters: BTreeSet<&str> = members.chain(ends).filter_map(|name| Some(name.split_once('.')?.0)).collect();
    let cluster = match (cluster, clusters.iter().collect::<Vec<_>>().as_slice()) {
        (Some(cluster), _) if clusters.contains(cluster) => cluster.to_owned(),
        (Some(cluster), _) => bail!("no node of the cluster {cluster} is in it, but of {}", list(&clusters)),
        (None, [only]) => (**only).to_owned(),
        (None, []) => String::new(),
        (None, _) => bail!("it has nodes of {}: say with --cluster which one this is", list(&clusters)),
    };
    let mut mapping = Mapping::default();
    of("Community").for_each(|object| mapping.add_community(&cluster, object));
    of("Cluster").flat_map(|object| &object.spec.end_points).for_each(|end| mapping.add_end_point(&cluster, end));
    objects
        .iter()
        .filter(|object| object.kind == "Node" && object.api_version == "v1")
        .for_each(|object| mapping.add_node(object));
    // Networks inside a larger one need not be named.
    let all = mapping.reserved.clone();
    mapping.reserved.retain(|network| !all.iter().any(|other| other != network && contains(other, network)));
    Ok(mapping)
}

/// Returns the members to list, and those in `listed` that FabEdge does not have.
fn members_to_list<'a>(
    of_fabedge: &'a BTreeSet<NodeName>,
    listed: &'a BTreeSet<NodeName>,
    replace: bool,
) -> (BTreeSet<NodeName>, Vec<&'a NodeName>) {
    let others: Vec<&NodeName> = listed.difference(of_fabedge).collect();
    let kept = others.iter().copied().filter(|_| !replace);
    (of_fabedge.iter().chain(kept).cloned().collect(), others)
}

fn list(names: &BTreeSet<&str>) -> String {
    names.iter().copied().collect::<Vec<_>>().join(", ")
}

impl Mapping {
    /// Lists the communities at the running server. Members that are listed there already and that
    /// FabEdge does not have stay, or are removed if `replace` says so.
    pub(super) async fn list_communities(&self, client: &Client, replace: bool) -> anyhow::Result<()> {
        let present: Vec<CommunityInfo> = client.ask(Method::GET, "/v1/communities", None::<&()>).await?;
        for (name, members) in &self.communities {
            let listed = present.iter().find(|community| community.name == *name).map(|community| &community.listed);
            let listed: BTreeSet<NodeName> = match listed {
                Some(Some(listed)) => listed.iter().cloned().collect(),
                None => BTreeSet::new(),
                Some(None) if replace => BTreeSet::new(),
                Some(None) => bail!(
                    "the server is of an older release and does not say whom community {name} lists: upgrade it first, or remove members \
                     that FabEdge does not have with --replace"
                ),
            };
            let (members, others) = members_to_list(members, &listed, replace);
            let others: Vec<&str> = others.iter().map(|node| node.as_str()).collect();
            let body = CommunityMembers { members: Some(members), tunnels: None };
            client.ask::<()>(Method::PUT, &format!("/v1/communities/{name}"), Some(&body)).await?;
            eprintln!("community {name} is listed");
            if !others.is_empty() {
                let others = others.join(", ");
                eprintln!(
                    "{}",
                    if replace {
                        format!("community {name}: {others} removed, which FabEdge does not have")
                    } else {
                        format!("community {name}: {others} kept, which FabEdge does not have; --replace removes them")
                    }
                );
            }
        }
        Ok(())
    }

    fn add_community(&mut self, cluster: &str, object: &Object) {
        let name = &object.metadata.name;
        let community: Community = match name.parse() {
            Ok(community) => community,
            Err(error) => return self.notes.push(format!("community {name}: {error}; choose another name")),
        };
        let mut members = BTreeSet::new();
        for member in &object.spec.members {
            let note = match member.split_once('.') {
                Some((of, node)) if of == cluster && node != CONNECTOR.0 => match node.parse::<NodeName>() {
                    Ok(node) => {
                        members.insert(node);
                        continue;
                    }
                    Err(error) => error.to_string(),
                },
                Some((of, _)) if of == cluster => "every edge reaches the hubs in any case".into(),
                Some((of, _)) => format!("it is of the cluster {of}, and communities are of one cluster"),
                None => "expected CLUSTER.NODE".into(),
            };
            self.notes.push(format!("community {name}, member {member}: {note}"));
        }
        if !members.is_empty() {
            self.communities.insert(community, members);
        }
    }

    fn add_end_point(&mut self, cluster: &str, end: &EndPoint) {
        let EndPoint { name, kind, public_addresses, subnets, node_subnets } = end;
        let Some((of, node)) = name.split_once('.') else {
            return self.notes.push(format!("end point {name}: expected CLUSTER.NODE"));
        };
        if of != cluster {
            return self.notes.push(format!("end point {name}: it is of another cluster"));
        }
        if kind == CONNECTOR.1 {
            for text in subnets.iter().chain(node_subnets) {
                let network = self.network(name, text);
                self.networks.extend(network);
            }
            let list = public_addresses.join(", ");
            self.notes.push(format!(
                "end point {name}: its public addresses ({list}) are those of the hub that you join here, by [hub.NAME] endpoints or \
                 the annotation {OUR_PUBLIC_ADDRESSES} of its Node"
            ));
            return;
        }
        for text in subnets {
            let network = self.network(name, text);
            self.reserved.extend(network);
        }
        self.add_addresses(node, public_addresses.iter().map(String::as_str));
    }

    fn add_node(&mut self, object: &Object) {
        let Metadata { name, annotations } = &object.metadata;
        let values = |key| annotations.get(key).into_iter().flat_map(|text| text.split(','));
        for text in values(SUBNETS) {
            let network = self.network(name, text);
            self.reserved.extend(network);
        }
        self.add_addresses(name, values(PUBLIC_ADDRESSES));
    }

    fn add_addresses<'a>(&mut self, node: &str, texts: impl Iterator<Item = &'a str>) {
        for text in texts.map(str::trim).filter(|text| !text.is_empty()) {
            match text.parse::<IpAddr>() {
                Ok(address) => drop(self.addresses.entry(node.into()).or_default().insert(address)),
                Err(_) => {
                    self.notes.push(format!("node {node}, public address {text}: only addresses are taken, no names"));
                }
            }
        }
    }

    /// Reads a network; a single address counts as a network of one address.
    fn network(&mut self, of: &str, text: &str) -> Option<IpNetwork> {
        match text.trim().parse::<IpNetwork>() {
            Ok(network) => IpNetwork::new(network.network(), network.prefix()).ok(),
            Err(error) => {
                self.notes.push(format!("{of}, network {text}: {error}"));
                None
            }
        }
    }

    fn text(&self) -> String {
        let networks = |networks: &BTreeSet<IpNetwork>| {
            networks.iter().map(|network| format!("\"{network}\"")).collect::<Vec<_>>().join(", ")
        };
        let mut lines = vec!["# communities: with --apply this command does it".to_owned()];
        for (community, members) in &self.communities {
            let members: Vec<&str> = members.iter().map(NodeName::as_str).collect();
            lines.push(format!("edge-controller community set {community} {}", members.join(" ")));
        }
        if !self.addresses.is_empty() {
            lines.push("# where peers find nodes".into());
        }
        for (node, addresses) in &self.addresses {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            lines.push(format!("kubectl annotate node {node} {OUR_PUBLIC_ADDRESSES}={}", addresses.join(",")));
        }
        lines.push("# controller.toml: what pods and hosts of the cloud have, which edges reach through a hub".into());
        lines.push(format!("networks = [{}]", networks(&self.networks)));
        lines.push("# controller.toml, [segments]: what FabEdge's edges have, as long as both run side by side".into());
        lines.push(format!("reserved = [{}]", networks(&self.reserved)));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resources() -> Value {
        let fabedge = "fabedge.io/v1alpha1";
        json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": fabedge, "kind": "Community", "metadata": {"name": "alpha"},
             "spec": {"members": ["beijing.edge1", "beijing.edge-2.site", "beijing.connector", "shanghai.edge9", "x"]}},
            {"apiVersion": fabedge, "kind": "Cluster", "metadata": {"name": "beijing"}, "spec": {"token": "secret", "endPoints": [
                {"id": "1", "name": "beijing.connector", "type": "Connector", "publicAddresses": ["203.0.113.1"],
                 "subnets": ["10.233.0.0/18", "10.233.64.0/18"], "nodeSubnets": ["10.20.8.1"]},
                {"name": "beijing.edge1", "type": "EdgeNode", "publicAddresses": ["60.247.88.194", "edge1.test"],
                 "subnets": ["10.233.103.192/26"]}]}},
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-2.site", "annotations": {
                "fabedge.io/subnets": "10.233.103.0/24,2001:db8::/120", "fabedge.io/node-public-addresses": "60.247.88.195, "}}},
            // A resource of the same kind from another project.
            {"apiVersion": "cluster.x-k8s.io/v1", "kind": "Cluster", "metadata": {"name": "shenzhen"}, "spec": {}}
        ]})
    }

    fn mapped(resources: Value, cluster: Option<&str>) -> Result<Mapping, String> {
        map(serde_json::from_value(resources).unwrap(), cluster).map_err(|error| error.to_string())
    }

    #[test]
    fn the_resources_of_one_cluster_are_mapped_and_what_is_left_is_named() {
        let mapping = mapped(resources(), Some("beijing")).unwrap();
        assert_eq!(
            mapping.text(),
            "# communities: with --apply this command does it\n\
             edge-controller community set alpha edge-2.site edge1\n\
             # where peers find nodes\n\
             kubectl annotate node edge-2.site edge-cni.io/public-addresses=60.247.88.195\n\
             kubectl annotate node edge1 edge-cni.io/public-addresses=60.247.88.194\n\
             # controller.toml: what pods and hosts of the cloud have, which edges reach through a hub\n\
             networks = [\"10.20.8.1/32\", \"10.233.0.0/18\", \"10.233.64.0/18\"]\n\
             # controller.toml, [segments]: what FabEdge's edges have, as long as both run side by side\n\
             reserved = [\"10.233.103.0/24\", \"2001:db8::/120\"]"
        );
        for (index, note) in [
            "beijing.connector: every edge",
            "shanghai.edge9: it is of the cluster shanghai",
            "x: expected",
            "203.0.113.1",
            "edge1.test",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(mapping.notes[index].contains(note), "{note}: {:?}", mapping.notes);
        }
        assert_eq!(mapping.notes.len(), 5);
        assert!(!format!("{mapping:?}").contains("secret"), "the token of a cluster");
    }

    #[test]
    fn what_is_not_fabedges_or_not_of_one_cluster_is_refused() {
        let several = mapped(resources(), None).unwrap_err();
        assert!(several.contains("beijing, shanghai") && several.contains("--cluster"), "{several}");
        assert!(mapped(resources(), Some("paris")).unwrap_err().contains("no node of the cluster paris"));
        let none = json!({"apiVersion": "v1", "kind": "List", "items": []});
        assert!(mapped(none, None).unwrap_err().contains("no Community"));
    }
}
