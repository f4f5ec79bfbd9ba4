//! The log: its destination, its filter, and the spans that contain the names of node and peer.
//!
//! All events about one peer are logged within a span `peer{peer=NAME}`, in the agent and in
//! `edge-ike`, so that a filter can select one peer.

use std::io::IsTerminal;

use edge_ike::PeerName;
use edge_types::NodeName;
use tracing::{Span, field};
use tracing_subscriber::EnvFilter;

/// Logs to standard error. `EDGE_AGENT_LOG` is a filter, e.g. `debug`, `edge_ike=trace` or
/// `info,[peer{peer=edge-2}]=debug`; `info` if not set. With `json`, each line is one object, whose
/// `spans` contain the names of node and peer.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env("EDGE_AGENT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // netlink-proto traces whole messages, including keys, so its log is always off, regardless of
    // the filter.
    let filter = ["netlink_proto=off", "netlink_packet_xfrm=off"]
        .iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, EnvFilter::add_directive);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(!json && std::io::stderr().is_terminal());
    let _ = if json { log.json().try_init() } else { log.try_init() };
}

/// Creates the span for all events in this agent, `node{node=NAME}`. The name is missing until
/// [`set_node`] is called.
pub fn node_span() -> Span {
    tracing::info_span!("node", node = field::Empty)
}

/// Records the node's name in its span. Must be called only once.
pub fn set_node(span: &Span, node: &NodeName) {
    span.record("node", field::display(node));
}

/// Creates the span for events about one peer, `peer{peer=NAME}`.
pub fn peer_span(peer: &PeerName) -> Span {
    tracing::info_span!("peer", %peer)
}
