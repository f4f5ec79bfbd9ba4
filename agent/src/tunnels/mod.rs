//! The IKE driver: passes datagrams to the IKE endpoint, and installs in the kernel the SAs and
//! policies that the endpoint negotiates. All of this runs on one thread, since the state of the
//! kernel and of the endpoint must change together.
//!
//! - `better_uplinks`: the tunnels that use another uplink than the best one.
//! - `capture`: the copies of IKE messages for `edge-agent capture`.
//! - `check_interval`: the time until the next comparison of all policies and SAs with the kernel.
//! - `commands`: the handling of the requests from `edge-agent` commands.
//! - `datagram_socket`: the UDP socket, which reports the local address of each datagram.
//! - `deferred_switch`: the switch to a new outbound SA, deferred until the peer is ready.
//! - `desired_changes`: carries out the difference between two desired states.
//! - `ike_sockets`: the four UDP sockets for IKE, which systemd may have opened.
//! - `held_sockets`: has a holder keep them open while no agent runs.
//! - `environment`: the implementation of [`edge_ike::Environment`] on this machine.
//! - [`driver`]: the event loop.
//! - `enforced_revocations`: the revocations of certificates that no SA of an earlier run outlived.
//! - `endpoint_events`: the handling of the endpoint's events.
//! - `event_log`: the choice of the events of peers that get a separate log line.
//! - `event_sources`: the reading of datagrams and of the kernel's notifications.
//! - `failure_log`: the choice of the failures that get a separate log line.
//! - `former_policies`: the policies that an earlier run left in the kernel.
//! - `hand_over`: the state of a hub that ends.
//! - `hub_returns`: the hubs that were lost and came back.
//! - `idle_tunnels`: the on-demand tunnels that are up, and the time at which each was last used.
//! - `ike_counts`: counts what IKE does, for metrics.
//! - `inherited_sas`: the SAs that an earlier run left in the kernel.
//! - `installed_sa`: one of the agent's SAs in the kernel.
//! - `internal_address_store`: the internal addresses of static peers, across restarts.
//! - `kernel_events`: the handling of the kernel's notifications.
//! - `kernel_policies`: the policies in the kernel, and their comparison with the desired policies.
//! - `kernel_refusals`: the ciphers that the kernel lacks, and the SAs that it refused.
//! - `leaving_hub`: a hub's last seconds, in which edges and cloud nodes change to another hub.
//! - `mapped_addresses`: this node's addresses as the hubs see them.
//! - `unreached_hubs`: the hubs to which this node has no tunnel, for cloud nodes. `hub_reports`:
//!   publishes them.
//! - `not_carried`: the networks that are configured for a peer but that no CHILD_SA carries.
//! - `on_demand`: the tunnels that the first packet sets up.
//! - `path_mtu`: the probes of the paths of tunnels that carry traffic.
//! - `reconcile`: the comparison of the policies and SAs in the kernel with the desired ones, and
//!   the correction of differences.
//! - `policy_hash`: has the kernel find policies by a hash.
//! - `retiring_sas`: the outbound SAs that were replaced, until they are deleted.
//! - `sa_params`: derives the SAs of the kernel from a CHILD_SA.
//! - `sa_table`: the SAs that the agent has installed in the kernel.
//! - `source_ports`: other UDP source ports towards hubs that do not answer.
//! - `source_port_changes`: the change to such a port, and back.
//! - `tcp`: the state of TCP connections.
//! - `tcp_fallback`: tunnels to hubs in TCP connections, where UDP is blocked.
//! - `tcp_relays`: tunnels to other edges in TCP connections to relays of hubs.
//! - `reqids`: the peers' reqids, which stay the same across restarts.
//! - `route_retry`: when to look for a route again, for tunnels from an address that is gone.
//! - `requests`: the requests that `edge-agent` commands send to the driver.
//! - `refusals`: the initiators that were refused before they were known as a peer.
//! - `relay_connections`: an edge's TCP connections to relays, where UDP is blocked.
//! - `relays`: the requests for relays on edges, and the answers on hubs.
//! - `overview`: the SAs and policies that the kernel should have, in the form of the status.
//! - `report`: the driver's data for the part of the status about tunnels.
//! - `report_request`: the request for that part of the status, which does not occupy the driver
//!   for long.
//! - `traffic`: the sums of the bytes that the SAs have carried.
//! - `uplink_moves`: the moves of tunnels to better uplinks.

mod better_uplinks;
mod capture;
mod check_interval;
mod commands;
#[allow(unsafe_code)]
mod datagram_socket;
mod deferred_switch;
mod desired_changes;
pub mod driver;
mod endpoint_events;
mod enforced_revocations;
mod environment;
mod esp_key;
mod event_log;
mod event_sources;
mod failure_log;
mod former_policies;
mod hand_over;
mod held_sockets;
mod hub_reports;
mod hub_returns;
mod idle_tunnels;
mod ike_counts;
mod ike_sockets;
mod inherited_sas;
mod installed_sa;
mod internal_address_obstacle;
mod internal_address_store;
mod kernel_events;
mod kernel_policies;
mod kernel_refusals;
mod leaving_hub;
mod mapped_addresses;
mod not_carried;
mod on_demand;
mod overview;
mod path_mtu;
mod path_mtu_probes;
mod policy_hash;
mod reconcile;
mod refusals;
mod relay_connections;
mod relays;
mod report;
mod report_request;
mod reqids;
mod requests;
mod retiring_sas;
mod route_retry;
mod sa_params;
mod sa_table;
mod source_port_changes;
mod source_ports;
mod tcp;
mod tcp_fallback;
mod tcp_relays;
mod traffic;
mod unreached_hubs;
mod uplink_moves;

pub use capture::{CaptureReader, CapturedBatch, CapturedIke};
#[cfg(test)]
pub(crate) use capture::{open as open_capture, reader_gone};
pub use driver::Driver;
pub use overview::{PolicyList, StateList};
pub use report_request::{PeerReports, TunnelsReport, report};
pub use requests::{DriverRequest, SasToRekey};
pub use unreached_hubs::TunnelsToController;

#[cfg(test)]
mod tests;
