//! Sends the requests for the operator's commands and prints the responses.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use axum::http::Method;
use edge_controller_domain::clock::rfc3339;
use edge_types::api::{
    AuthorityInfo, AuthorityState, CommunityInfo, CommunityMembers, LabelsPatch, NodeInfo, ReloadResponse, SegmentInfo,
    SegmentState, TokenCreated, TokenInfo, TokenRequest,
};
use edge_types::{AddressSource, NodeName, Role};
use serde::Serialize;

use super::args::{CaCommand, Command, CommunityCommand, NodeCommand, SegmentCommand, TokenCommand};
use super::client::Client;
use super::status;
use super::table::{list, print, print_line, print_required_line};
use super::{archive, connectivity, gather, import_fabedge, page};
use crate::node_problems::problems;

const NOTHING: Option<&()> = None;
/// Maximum number of nodes that are named in a table cell.
const NAMED: usize = 10;

pub(super) async fn carry_out(client: &Client, json: bool, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { .. }
        | Command::Config { .. }
        | Command::Crds
        | Command::Restore { .. }
        | Command::Export { .. }
        | Command::Import { .. }
        | Command::Restored { .. } => {
            bail!("this is not asked of a server")
        }
        Command::Reload => {
            let reloaded: ReloadResponse = client.ask(Method::POST, "/v1/reload", NOTHING).await?;
            if json {
                return show_json(&reloaded);
            }
            print_line(format_args!("in force, and changed: {}", list(&reloaded.changed)))
        }
        Command::Page { end: false } => page::open(client, json).await,
        Command::Page { end: true } => page::end_all(client).await,
        Command::CheckConnectivity(arguments) => connectivity::check(client, json, arguments).await,
        Command::Status(arguments) => status::show(client, json, &arguments).await,
        Command::ImportFabedge { file, cluster, apply, replace } => {
            let mapping = import_fabedge::read(&file, cluster.as_deref())?;
            if apply { mapping.list_communities(client, replace).await } else { Ok(()) }
        }
        Command::Gather { file, sources } => gather::gather(client, &file, &sources).await,
        Command::Backup { target } => archive::backup(client, &target).await,
        Command::Node(NodeCommand::List) => {
            let nodes: Vec<NodeInfo> = client.ask(Method::GET, "/v1/nodes", NOTHING).await?;
            if json { show_json(&nodes) } else { show_nodes(&nodes) }
        }
        Command::Node(NodeCommand::Show { node }) => {
            let nodes: Vec<NodeInfo> = client.ask(Method::GET, "/v1/nodes", NOTHING).await?;
            let info = nodes.into_iter().find(|info| info.name == node);
            let info = info.ok_or_else(|| crate::api::ApiError::NoSuchNode(node).problem())?;
            if json { show_json(&info) } else { show_node(&info) }
        }
        Command::Node(NodeCommand::Label { node, labels }) => {
            let patch = labels.iter().map(|text| label(text)).collect::<anyhow::Result<LabelsPatch>>()?;
            let path = format!("/v1/nodes/{node}/labels");
            let info: NodeInfo = client.ask(Method::PATCH, &path, Some(&patch)).await?;
            if json { show_json(&info) } else { show_node(&info) }
        }
        Command::Node(NodeCommand::Deregister { node: Some(node), .. }) => deregister(client, json, &node).await,
        Command::Node(NodeCommand::Deregister { node: None, .. }) => deregister_missing(client, json).await,
        Command::Segment(SegmentCommand::List) => {
            let segments: Vec<SegmentInfo> = client.ask(Method::GET, "/v1/segments", NOTHING).await?;
            if json { show_json(&segments) } else { show_segments(&segments) }
        }
        Command::Community(CommunityCommand::Set { community, members, tunnels }) => {
            // No member was named only if `tunnels` was: the list then stays as it is.
            let members = (!members.is_empty()).then(|| members.into_iter().collect());
            let body = CommunityMembers { members, tunnels };
            client.ask(Method::PUT, &format!("/v1/communities/{community}"), Some(&body)).await
        }
        Command::Community(CommunityCommand::Delete { community }) => {
            client.ask(Method::DELETE, &format!("/v1/communities/{community}"), NOTHING).await
        }
        Command::Community(CommunityCommand::List) => {
            let communities: Vec<CommunityInfo> = client.ask(Method::GET, "/v1/communities", NOTHING).await?;
            if json { show_json(&communities) } else { show_communities(&communities) }
        }
        Command::Token(TokenCommand::Create { role, node, ttl, uses }) => {
            let request = TokenRequest { role, node, ttl_seconds: ttl, uses };
            let created: TokenCreated = client.ask(Method::POST, "/v1/tokens", Some(&request)).await?;
            // Only the token goes to standard output, so that it can be piped into a file.
            let shown = if json { serde_json::to_string_pretty(&created)? } else { created.token.to_string() };
            let id = &created.info.id;
            print_required_line(shown).with_context(|| {
                format!("token {id} is made, but was not shown: edge-controller token delete {id}, and make another")
            })?;
            if json {
                return Ok(());
            }
            let info = created.info;
            let whom = info.node.map_or_else(|| format!("{} node(s)", info.uses), |node| format!("node {node}"));
            eprintln!("token {}: lets {whom} join as {role} until {}", info.id, rfc3339(info.expires_at));
            Ok(())
        }
        Command::Token(TokenCommand::List) => {
            let tokens: Vec<TokenInfo> = client.ask(Method::GET, "/v1/tokens", NOTHING).await?;
            if json { show_json(&tokens) } else { show_tokens(&tokens) }
        }
        Command::Token(TokenCommand::Delete { id }) => {
            if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) || id.is_empty() {
                return Err(crate::api::ApiError::NoSuchToken(id).problem().into());
            }
            client.ask(Method::DELETE, &format!("/v1/tokens/{id}"), NOTHING).await
        }
        Command::Ca(CaCommand::List) => {
            let authorities: Vec<AuthorityInfo> = client.ask(Method::GET, "/v1/ca", NOTHING).await?;
            if json { show_json(&authorities) } else { show_authorities(&authorities) }
        }
        Command::Ca(CaCommand::Rollover) => {
            let new: AuthorityInfo = client.ask(Method::POST, "/v1/ca/rollover", NOTHING).await?;
            if json {
                return show_json(&new);
            }
            print_line(format_args!(
                "authority {} signs from now on; those before it stay trusted until they are retired",
                new.id
            ))
        }
        Command::Ca(CaCommand::Retire { id, force }) => {
            if !id.bytes().all(|byte| byte.is_ascii_hexdigit()) || id.is_empty() {
                return Err(crate::api::ApiError::from(edge_controller_domain::ca::CaError::NoSuch(id))
                    .problem()
                    .into());
            }
            let path = format!("/v1/ca/{id}?force={force}");
            let retired: AuthorityInfo = client.ask(Method::DELETE, &path, NOTHING).await?;
            if json {
                return show_json(&retired);
            }
            print_line(format_args!("authority {} is retired; certificates of it are refused from now on", retired.id))
        }
    }
}

async fn deregister(client: &Client, json: bool, node: &NodeName) -> anyhow::Result<()> {
    let released: Vec<SegmentInfo> = client.ask(Method::DELETE, &format!("/v1/nodes/{node}"), NOTHING).await?;
    if json {
        return show_json(&released);
    }
    print_line(format_args!("node {node} is deregistered; its certificate is refused from now on"))?;
    if released.is_empty() { Ok(()) } else { show_segments(&released) }
}

/// Deregisters all nodes that wait for the operator's confirmation.
async fn deregister_missing(client: &Client, json: bool) -> anyhow::Result<()> {
    let nodes: Vec<NodeInfo> = client.ask(Method::GET, "/v1/nodes", NOTHING).await?;
    let missing: Vec<NodeName> = nodes.into_iter().filter(|info| info.missing).map(|info| info.name).collect();
    if missing.is_empty() && !json {
        print_line("no node waits for that")?;
    }
    for node in &missing {
        deregister(client, json, node).await?;
    }
    Ok(())
}

/// Reads `key=value` or `key-`.
fn label(text: &str) -> anyhow::Result<(String, Option<String>)> {
    if let Some((key, value)) = text.split_once('=') {
        return Ok((key.into(), Some(value.into())));
    }
    let key = text.strip_suffix('-').with_context(|| format!("{text:?} is neither KEY=VALUE nor KEY-"))?;
    Ok((key.into(), None))
}

fn show_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(serde_json::to_string_pretty(value)?)
}

fn show_nodes(nodes: &[NodeInfo]) -> anyhow::Result<()> {
    print(
        ["NAME", "ROLE", "CONNECTED", "COMMUNITIES", "SEGMENTS", "ENDPOINTS"],
        nodes.iter().map(|node| {
            [
                node.name.to_string(),
                node.role.to_string(),
                yes_or_no(node.connected),
                list(&node.communities),
                list(&node.segments),
                list(node.endpoints.iter().map(|endpoint| endpoint.address)),
            ]
        }),
    )?;
    for node in nodes {
        for problem in problems(node) {
            print_line(format_args!("{}: {problem}", node.name))?;
        }
    }
    for (address, names) in shared(nodes) {
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        print_line(format_args!(
            "{address}: the controller sees {} there: a NAT before all of them, or something before the controller that hides where they are \
             (externalTrafficPolicy: Cluster, an ingress); peers try it last",
            names.join(", ")
        ))?;
    }
    Ok(())
}

/// Returns the addresses at which the controller sees several edges, and which these edges do not
/// report themselves.
fn shared(nodes: &[NodeInfo]) -> BTreeMap<SocketAddr, Vec<&NodeName>> {
    let mut seen: BTreeMap<SocketAddr, Vec<&NodeName>> = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.role == Role::Edge) {
        for endpoint in node.endpoints.iter().filter(|endpoint| endpoint.source == AddressSource::Observed) {
            seen.entry(endpoint.address).or_default().push(&node.name);
        }
    }
    seen.retain(|_, names| names.len() > 1);
    seen
}

fn show_node(node: &NodeInfo) -> anyhow::Result<()> {
    let endpoint = |endpoint: &edge_types::NodeAddress| {
        let source = match endpoint.source {
            AddressSource::Configured => "configured",
            AddressSource::Reported => "reported",
            AddressSource::Observed => "observed",
        };
        format!("{} ({source})", endpoint.address)
    };
    let row = |name: &str, value: String| [name.to_owned(), value];
    print(
        ["NODE", node.name.as_str()],
        [
            row("role", node.role.to_string()),
            row("connected", yes_or_no(node.connected)),
            row("replica", list(&node.replica)),
            row("last seen", node.last_seen.map_or("-".into(), rfc3339)),
            row("agent", list(&node.version)),
            row("view refused", node.refused_view.clone().unwrap_or_else(|| "-".into())),
            row(
                "tunnels up",
                node.tunnels.as_ref().map_or("-".into(), |count| format!("{} of {}", count.up, count.wanted)),
            ),
            row("labels", list(node.labels.iter().map(|(key, value)| format!("{key}={value}")))),
            row("communities", list(&node.communities)),
            row("segments", list(&node.segments)),
            row("endpoints", list(node.endpoints.iter().map(endpoint))),
            row("certificate until", rfc3339(node.certificate_not_after)),
            row("problems", list(problems(node))),
            row("obstacles", list(&node.obstacles)),
        ],
    )
}

fn show_segments(segments: &[SegmentInfo]) -> anyhow::Result<()> {
    print(
        ["SEGMENT", "NODE", "STATE", "GRANTED", "BEFORE"],
        segments.iter().map(|row| {
            let state = match (row.state, row.quarantined_until) {
                (SegmentState::Quarantined, Some(end)) => format!("quarantined until {}", rfc3339(end)),
                (SegmentState::Quarantined, None) => "quarantined".into(),
                (SegmentState::Held, _) => "held".into(),
                (SegmentState::Free, _) => "free".into(),
            };
            let before = row.past.first().map(|last| format!("{} until {}", last.node, rfc3339(last.released_at)));
            [row.segment.to_string(), row.node.to_string(), state, rfc3339(row.granted_at), list(&before)]
        }),
    )
}

fn show_communities(communities: &[CommunityInfo]) -> anyhow::Result<()> {
    print(
        ["COMMUNITY", "TUNNELS", "MEMBERS", "NOT REGISTERED"],
        communities
            .iter()
            .map(|row| [row.name.to_string(), row.tunnels.to_string(), list(&row.members), list(&row.not_registered)]),
    )
}

fn show_tokens(tokens: &[TokenInfo]) -> anyhow::Result<()> {
    print(
        ["ID", "ROLE", "NODE", "USED", "EXPIRES", "USED BY"],
        tokens.iter().map(|token| {
            [
                token.id.clone(),
                token.role.to_string(),
                list(&token.node),
                format!("{}/{}", token.used, token.uses),
                rfc3339(token.expires_at),
                first_of(&token.used_by),
            ]
        }),
    )
}

/// Returns text with the first few of several nodes and the number of further nodes.
pub(super) fn first_of(nodes: &[NodeName]) -> String {
    if nodes.is_empty() {
        return "-".into();
    }
    let named: Vec<&str> = nodes.iter().take(NAMED).map(NodeName::as_str).collect();
    match nodes.len() - named.len() {
        0 => named.join(" "),
        more => format!("{} and {more} more", named.join(" ")),
    }
}

fn show_authorities(authorities: &[AuthorityInfo]) -> anyhow::Result<()> {
    print(
        ["ID", "STATE", "SINCE", "ENDS", "NEEDED BY", "SUBJECT"],
        authorities.iter().map(|authority| {
            let state = match (authority.state, authority.retired_at) {
                (AuthorityState::Active, _) => "signs".into(),
                (AuthorityState::Trusted, _) => "trusted".into(),
                (AuthorityState::Retired, Some(at)) => format!("retired {}", rfc3339(at)),
                (AuthorityState::Retired, None) => "retired".into(),
            };
            let tokens = authority.pinned_by.iter().map(|id| format!("join token {id}"));
            [
                authority.id.chars().take(16).collect(),
                state,
                rfc3339(authority.created_at),
                rfc3339(authority.not_after),
                list(
                    edge_controller_domain::node_certificates::shortened(authority.needed_by.iter())
                        .into_iter()
                        .chain(tokens),
                ),
                authority.subject.clone(),
            ]
        }),
    )
}

fn yes_or_no(it: bool) -> String {
    if it { "yes" } else { "no" }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_written() {
        assert_eq!(label("a/b=c=d").unwrap(), ("a/b".into(), Some("c=d".into())));
        assert_eq!(label("a/b-").unwrap(), ("a/b".into(), None));
        assert!(label("a").is_err());
    }

    #[test]
    fn an_address_at_which_several_edges_are_seen_is_named_with_them() {
        let node = |name: &str, role: &str, observed: &str| -> NodeInfo {
            serde_json::from_value(serde_json::json!({
                "name": name, "role": role, "labels": {}, "communities": [], "segments": [], "connected": true,
                "certificate_not_after": 0,
                "endpoints": [{"address": "192.168.1.10:4500", "source": "reported"}, {"address": observed, "source": "observed"}],
            }))
            .unwrap()
        };
        let nodes = [
            node("a", "edge", "203.0.113.7:4500"),
            node("b", "edge", "203.0.113.7:4500"),
            node("c", "edge", "203.0.113.7:4501"),
            node("hub", "hub", "203.0.113.7:4501"),
        ];
        let shared = shared(&nodes);
        assert_eq!(shared.len(), 1);
        assert_eq!(shared[&"203.0.113.7:4500".parse().unwrap()], [&nodes[0].name, &nodes[1].name]);
    }
}
