//! Makes the data for the operator's page. Only the page from the same release reads this data;
//! scripts read `/v1/status`.

use std::collections::HashMap;

use edge_controller_domain::registry::StateGuard;
use edge_controller_domain::state::NodeRecord;
use edge_controller_domain::tokens;
use edge_types::api::{NodeInfo, RangeUsage, TokenInfo, TunnelCount};
use edge_types::traffic::TunnelTraffic;
use edge_types::{Communities, IpNetwork, NodeName, Role};
use serde::Serialize;

use crate::api::Overview;
use crate::node_problems::{common_problems, never_connected, node_problems};

/// Maximum number of open join tokens that are shown. The tokens that expire first are shown, and
/// the others are only counted.
const MOST_TOKENS: usize = 50;

/// All data for the page. The data stays the same while nothing happens, so it does not contain the
/// present time.
#[derive(Debug, Serialize)]
pub(super) struct PageData {
    version: String,
    nodes: Vec<PageNode>,
    communities: Vec<PageCommunity>,
    ranges: Vec<RangeUsage>,
    authority_not_after: i64,
    /// Problems that concern no single node.
    problems: Vec<String>,
    /// Join tokens that may still be used.
    tokens: Vec<OpenToken>,
    /// Number of such tokens that are not shown.
    more_tokens: usize,
}

#[derive(Debug, Serialize)]
struct PageNode {
    name: NodeName,
    role: Role,
    communities: Communities,
    segments: Vec<IpNetwork>,
    addresses: Vec<String>,
    connected: bool,
    /// `None` while the node is connected or if the time is unknown.
    last_seen: Option<i64>,
    never_connected: bool,
    replica: Option<String>,
    tunnels: Option<TunnelCount>,
    /// `None` unless the node is connected to this replica and its agent reports traffic.
    traffic: Option<TunnelTraffic>,
    version: Option<String>,
    joined_at: Option<i64>,
    certificate_not_after: i64,
    certificate_ends_soon: bool,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PageCommunity {
    name: edge_types::Community,
    /// Number of members, including those that are not registered.
    members: usize,
}

#[derive(Debug, Serialize)]
struct OpenToken {
    id: String,
    role: Role,
    node: Option<NodeName>,
    /// Number of nodes that may still join with the token.
    left: u32,
    expires_at: i64,
}

impl PageData {
    pub(super) async fn read(overview: &Overview) -> Self {
        let status = overview.read().await;
        let now = status.time;
        let problems = common_problems(&status);
        let mut joined = HashMap::new();
        let registry = &overview.registry;
        let look = |_: &StateGuard<'_>, record: &NodeRecord| {
            joined.insert(record.name.clone(), record.joined_at);
        };
        registry.each_node(look).await;
        let node = |info: NodeInfo| {
            let joined_at = joined.get(&info.name).copied();
            PageNode::new(info, joined_at, now)
        };
        let communities = status.communities.into_iter();
        let (tokens, more_tokens) = open_tokens(tokens::infos(&*registry.read().await), now);
        Self {
            version: status.version,
            nodes: status.nodes.into_iter().map(node).collect(),
            communities: communities
                .map(|community| PageCommunity {
                    members: community.members.len() + community.not_registered.len(),
                    name: community.name,
                })
                .collect(),
            ranges: status.ranges,
            authority_not_after: status.authority_not_after,
            problems,
            tokens,
            more_tokens,
        }
    }
}

impl PageNode {
    fn new(info: NodeInfo, joined_at: Option<i64>, now: i64) -> Self {
        let problems = node_problems(&info, now);
        let never_connected = !info.connected && info.last_seen.is_none() && never_connected(&info);
        Self {
            addresses: info.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect(),
            last_seen: info.last_seen.filter(|_| !info.connected),
            never_connected,
            name: info.name,
            role: info.role,
            communities: info.communities,
            segments: info.segments,
            connected: info.connected,
            replica: info.replica,
            tunnels: info.tunnels,
            traffic: info.traffic.filter(|_| info.connected),
            version: info.version,
            joined_at,
            certificate_not_after: info.certificate_not_after,
            certificate_ends_soon: info.certificate_ends_soon,
            problems,
        }
    }
}

/// Returns the first tokens to expire among those that may still be used, and the number of the
/// other usable tokens.
fn open_tokens(tokens: Vec<TokenInfo>, now: i64) -> (Vec<OpenToken>, usize) {
    let open = tokens.into_iter().filter(|token| token.expires_at > now && token.used < token.uses);
    let mut open: Vec<OpenToken> = open
        .map(|token| OpenToken {
            left: token.uses - token.used,
            id: token.id,
            role: token.role,
            node: token.node,
            expires_at: token.expires_at,
        })
        .collect();
    open.sort_by(|one, other| (one.expires_at, &one.id).cmp(&(other.expires_at, &other.id)));
    let more = open.len().saturating_sub(MOST_TOKENS);
    open.truncate(MOST_TOKENS);
    (open, more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_may_be_used_are_shown_those_that_end_first_and_the_others_are_counted() {
        let token = |id: usize, used, expires_at| TokenInfo {
            id: format!("{id:03}"),
            role: Role::Edge,
            node: None,
            uses: 3,
            used,
            used_by: vec![],
            created_at: 0,
            expires_at,
        };
        let ids = |tokens: Vec<OpenToken>| tokens.into_iter().map(|token| token.id).collect::<Vec<_>>();
        let (open, more) =
            open_tokens(vec![token(1, 3, 200), token(2, 2, 200), token(3, 0, 100), token(4, 0, 101)], 100);
        assert_eq!((open[0].left, open[1].left, more), (3, 1, 0));
        assert_eq!(ids(open), ["004", "002"]);
        let (open, more) = open_tokens((0..MOST_TOKENS + 7).map(|id| token(id, 0, 1000 - id as i64)).collect(), 0);
        assert_eq!((open.len(), more), (MOST_TOKENS, 7));
        assert_eq!(open[0].id, format!("{:03}", MOST_TOKENS + 6));
    }
}
