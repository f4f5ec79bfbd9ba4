//! Node objects: their labels put nodes into communities, an annotation gives the addresses at
//! which they are reached, and their deletion deregisters nodes.
//!
//! Every replica acts on the Nodes that it sees; a plan that would change nothing writes nothing.
//! All that is taken from a Node is kept in the node's record, so a lost API server changes nothing
//! either. A Node counts as deleted only when the API server says so for its name: a failed or
//! empty list or NotReady does not count.
//!
//! - [`watch`]: [`NodeWatch`], which takes events of Nodes and holds what is to be done.
//! - [`facts`]: what the controller takes from a Node object.
//! - [`record`]: puts that into the node's record.
//! - [`deleted`]: what a missing Node object means; [`pending`]: the nodes in question.

mod deleted;
mod facts;
mod pending;
mod record;
mod watch;

pub use facts::ADDRESSES;
pub use pending::PendingDeregistrations;
pub(crate) use watch::CLUSTER;
pub use watch::NodeWatch;
