//! The reasons why a node gets no segment, or may not join.

use edge_types::{NodeName, Role};

use crate::segments::{Exhausted, GrantsPaused};

/// The reason why a node gets no segment.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The node is not registered.
    #[error("node {0} is not registered")]
    NotRegistered(NodeName),
    /// No segment is left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// No segment is granted yet after a restore.
    #[error(transparent)]
    GrantsPaused(#[from] GrantsPaused),
    /// The node already holds the maximum number of segments of the family.
    #[error("node {node} holds {held} {family} segments, the most that max_per_node allows")]
    TooMany {
        /// Name of the node that requests a segment.
        node: NodeName,
        /// Number of segments that it holds.
        held: usize,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// There is no range of this family.
    #[error("there is no {0} cluster range; ask the operator to add one to cluster_ranges")]
    NoSuchFamily(&'static str),
    /// An earlier request with the same id was for other families.
    #[error("request id {0:?} was used for other families; a new request needs a new id")]
    RequestIdReused(String),
}

/// The reason why a node may not join under its name.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A node of this name is registered with another key.
    #[error(
        "a node {0} is registered already, with another key; choose another name, or, if this is that machine with its disk lost, join \
         with a token bound to the name (edge-controller token create --node {0})"
    )]
    NameTaken(NodeName),
    /// The name does not stand for a node.
    #[error("no node may have the name {0}, which holds segments that cannot be read; choose another name")]
    Reserved(NodeName),
    /// The node is registered with another role.
    #[error(
        "node {node} is registered as {registered}, and the token is for a {token}; deregister it first if its role is to change"
    )]
    RoleChange {
        /// Name of the node that joins.
        node: NodeName,
        /// The role with which it is registered.
        registered: Role,
        /// The role that the token gives.
        token: Role,
    },
}
