//! The IKE driver: it passes datagrams to the IKE endpoint and installs the SAs and policies that
//! the endpoint negotiates in the kernel. All of it runs in one thread, since kernel and endpoint
//! must change together.
//!
//! - `capture`: copies of IKE messages on their way to `edge-agent capture`.
//! - `check_interval`: when everything is compared with the kernel next.
//! - `commands`: carries out what commands of `edge-agent` ask for.
//! - `datagram_socket`: a UDP socket that knows the local address of each datagram.
//! - `deferred_switch`: the switch to an outbound SA that waits for the peer.
//! - `ike_sockets`: the four sockets of IKE, which systemd may have opened.
//! - `environment`: [`edge_ike::Environment`] on this machine.
//! - [`driver`]: the event loop.
//! - `endpoint_events`: handles the events of the endpoint.
//! - `failure_log`: which failures of peers get a separate log line.
//! - `hub_returns`: hubs that were lost and came back.
//! - `idle_tunnels`: tunnels on demand, and when each was last used.
//! - `inherited_sas`: the SAs of an earlier run.
//! - `installed_sa`: an SA of ours in the kernel.
//! - `kernel_events`: handles the notifications of the kernel.
//! - `kernel_policies`: installs the desired policies, and compares them with the kernel's.
//! - `not_carried`: configured networks of a peer that no CHILD_SA carries.
//! - `on_demand`: tunnels that the first packet sets up.
//! - `reconcile`: compares policies and SAs with the kernel's and corrects differences.
//! - `retiring_sas`: outbound SAs that were replaced, until they are deleted.
//! - `sa_table`: the SAs in the kernel.
//! - `reqids`: reqids of the peers, which stay the same over restarts.
//! - `requests`: the requests of `edge-agent` commands, as messages.
//! - `report`: the part of the status about tunnels.

mod capture;
mod check_interval;
mod commands;
#[allow(unsafe_code)]
mod datagram_socket;
mod deferred_switch;
pub mod driver;
mod endpoint_events;
mod environment;
mod esp_key;
mod failure_log;
mod hub_returns;
mod idle_tunnels;
mod ike_sockets;
mod inherited_sas;
mod installed_sa;
mod kernel_events;
mod kernel_policies;
mod not_carried;
mod on_demand;
mod reconcile;
mod report;
mod reqids;
mod requests;
mod retiring_sas;
mod sa_table;

pub use capture::{CaptureReader, CapturedBatch, CapturedIke};
#[cfg(test)]
pub(crate) use capture::{open as open_capture, reader_gone};
pub use driver::Driver;
pub use requests::{DriverRequest, SasToRekey};
