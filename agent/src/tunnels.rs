//! The IKE driver: sockets, the endpoint, and its events carried out in the kernel. One thread,
//! since kernel and endpoint must be changed in step.
//!
//! - `socket`: UDP sockets that know which of our addresses was meant.
//! - `sockets`: the four of them, which systemd may have opened.
//! - `environment`: what the endpoint asks of its owner.
//! - [`driver`]: the loop.
//! - `events`: one event of the endpoint, carried out.
//! - `repair`: kernel against what is wanted.
//! - `report`: what `status` shows of all this.

pub mod driver;
mod environment;
mod events;
mod repair;
mod report;
#[allow(unsafe_code)]
mod socket;
mod sockets;

pub use driver::{Command, Driver};
