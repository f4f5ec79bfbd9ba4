//! Takes information from Node objects: labels put nodes into communities, an annotation gives the
//! addresses at which nodes are reached, and the deletion of a Node deregisters its node.
//!
//! Every replica acts on the Nodes that it sees; a plan that would change nothing writes nothing.
//! Everything that comes from a Node is kept in the node's record, so losing the connection to the
//! API server changes nothing either. A Node counts as deleted only when the API server responds
//! that no Node with its name exists: a failed or empty list, or the state NotReady, does not count
//! as a deletion.
//!
//! - [`watch`]: watches Nodes with [`NodeWatch`], which records the work to be done.
//! - [`facts`]: reads what the controller takes from a Node object.
//! - [`record`]: writes that information into the node's record.
//! - [`pod_networks`]: says which networks of their pods hubs do not get.
//! - [`labelled`]: holds the Nodes with a community label, whether they joined or not.
//! - [`deleted`]: handles nodes whose Node object is missing or was replaced; [`pending`]: holds
//!   these nodes.

mod deleted;
mod facts;
mod labelled;
mod pending;
mod pod_networks;
mod record;
mod watch;

pub use facts::ADDRESSES;
pub use labelled::LabelledNodes;
pub use pending::PendingDeregistrations;
pub use pod_networks::NetworksInForce;
pub(crate) use watch::CLUSTER;
pub use watch::{NEEDED_AT_START, NodeWatch};
