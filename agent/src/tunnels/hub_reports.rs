//! Reports the hubs that an edge does not reach, which [`super::unreached_hubs`] determines.

use edge_types::Role;

use super::driver::Driver;
use crate::clock::boot_time;

impl Driver {
    /// Publishes the hubs to which this edge has no tunnel, if they have changed.
    pub(super) fn publish_unreached_hubs(&mut self) {
        if let Some(states) = self.hub_returns.take_states()
            && self.desired.role == Some(Role::Edge)
        {
            self.unreached_hubs.update(states, boot_time());
        }
        self.unreached_hubs.publish_due(boot_time());
    }
}
