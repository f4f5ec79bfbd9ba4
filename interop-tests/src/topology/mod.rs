//! Networks of hosts, routers and pods.
//!
//! A [`Plan`] says what there is: wires, and nodes with addresses on them. [`Net`] is the plan come
//! true: every node is a network namespace with a mount namespace of its own (own `/run`,
//! `/var/lib/edge-cni`, `/etc/swanctl`, ...), every wire a bridge in a namespace that belongs to
//! nobody, so that it can be watched and slowed down from outside.
//!
//! - `plan`, `build`, `holder`: declaring a network and making it.
//! - [`Namespaces`]: where a program can be run; a [`Node`] or a [`Pod`].
//! - [`Process`], [`Ping`], [`Capture`]: what runs there.
//! - [`xfrm`]: what the kernel says about it.

mod build;
mod capture;
mod dump;
mod holder;
mod namespaces;
mod ping;
mod plan;
mod process;
pub mod xfrm;

pub use build::{Net, Node, Pod};
pub use capture::Capture;
pub use dump::dump_all;
pub(crate) use dump::enter_commands;
pub use holder::main as holder;
pub use namespaces::Namespaces;
pub use ping::{Gap, Ping, PingReport};
pub use plan::{Netem, NodePlan, Plan};
pub use process::Process;
