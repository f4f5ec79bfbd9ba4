//! Builds networks of hosts, routers and pods.
//!
//! A [`NetworkPlan`] declares wires, and nodes with addresses on them. [`Net`] is the network that
//! is built from the plan. Each node is a network namespace with its own mount namespace (own
//! `/run`, `/var/lib/edge-cni`, `/etc/swanctl`, ...). Each wire is a bridge in another namespace,
//! so that the wire can be slowed down from outside the nodes.
//!
//! - `plan`, `build`, `namespace_holder`: declare a network and build it.
//! - [`Namespaces`]: runs programs in the namespaces of a [`Node`] or a [`Pod`].
//! - `clock`: gives a node a wall clock that a scenario can set.
//! - [`Process`], [`Ping`], [`Capture`]: run programs in the background.
//! - [`xfrm`]: reads the kernel's SAs and policies.

mod build;
mod capture;
mod clock;
mod dump;
mod namespace_holder;
mod namespaces;
mod ping;
mod plan;
mod process;
pub mod xfrm;

pub use build::{Net, Node, Pod};
pub use capture::Capture;
pub use dump::dump_all;
pub(crate) use dump::enter_commands;
pub use namespace_holder::main as namespace_holder;
pub use namespaces::Namespaces;
pub use ping::{Gap, Ping, PingReport};
pub use plan::{Netem, NetworkPlan, NodePlan};
pub use process::Process;
