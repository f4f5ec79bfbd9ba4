//! The IKE driver: sockets, the endpoint, and its events carried out in the kernel. One thread,
//! since kernel and endpoint must be changed in step.
//!
//! - `socket`: UDP sockets that know which of our addresses was meant.
//! - `sockets`: the four of them, which systemd may have opened.
//! - `environment`: what the endpoint asks of its owner.
//! - [`driver`]: the loop.
//! - `endpoint_events`: one event of the endpoint, carried out.
//! - `reconcile`: kernel against what is wanted.
//! - `sa_table`: SAs, as the endpoint's events demand, and those that a former run left.
//! - `reqids`: which reqid a peer has, the same over restarts.
//! - `report`: what `status` shows of all this.

pub mod driver;
mod endpoint_events;
mod environment;
mod reconcile;
mod report;
mod reqids;
mod sa_table;
#[allow(unsafe_code)]
mod socket;
mod sockets;

pub use driver::{Command, Driver};
