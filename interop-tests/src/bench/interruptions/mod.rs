//! Measures the pings through tunnels that are lost at an event, such as a restart.
//!
//! Pods on both sides ping each other a hundred times a second. `make interruptions` lets each
//! event happen three times. It reports the medians, and fails if a median misses its goal by more
//! than the allowance. Scenarios that `make test` runs let their event happen once and check only
//! that nothing is lost, since that does not depend on the speed of the machine.
//!
//! - `measurement`: the goals and allowances, and the measurement of an event.
//! - `nat`: what happens to routers that translate addresses.
//! - `static_peers`: events at an edge behind a NAT and a hub, without a controller.
//! - `community`: events at two edges and a hub with a controller: addresses, uplinks, certificates
//!   and the path MTU.
//! - `host_changes`: another program changes the host of an edge or of a hub.
//! - `two_hubs`: a hub dies, stops or comes back, and another hub fronts the same networks.

mod community;
mod host_changes;
mod measurement;
mod nat;
mod static_peers;
mod two_hubs;

use crate::scenario::Scenario;

pub(super) use measurement::{RUNS, RUNS_VARIABLE};

/// Prefix that distinguishes the names of these measurements from other scenarios.
pub(super) const AREA: &str = "interruption/";

/// Returns all measurements of events.
pub(super) fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    static_peers::SCENARIOS.iter().chain(community::SCENARIOS).chain(host_changes::SCENARIOS).chain(two_hubs::SCENARIOS)
}
