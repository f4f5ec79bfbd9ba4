//! The settings of the host that are read from files: sysctls, and the name servers. They are
//! dozens of files, so they are not read in passes that only follow a change of peers.

use std::net::IpAddr;

use super::Obstacle;
use super::network_state::NetworkState;
use super::sysctls::{SysctlOutcome, Sysctls};
use crate::config::Config;
use crate::incidents::Incidents;
use crate::underlay;

/// Reads and writes the settings, and keeps what was found last.
#[derive(Debug)]
pub(super) struct HostSettings {
    sysctls: Sysctls,
    found: SysctlOutcome,
    resolvers: Vec<IpAddr>,
    read: bool,
    /// Whether forwarding is off, for IPv4 and IPv6.
    off: [bool; 2],
}

/// What the desired state requires of sysctls.
#[derive(Debug, Clone, Copy)]
pub(super) struct SysctlRequirements {
    /// Whether pods need forwarding, for IPv4 and IPv6.
    pub(super) forward: [bool; 2],
    /// Whether packets must not bypass policies.
    pub(super) guards: bool,
}

impl HostSettings {
    /// Creates a value without anything found.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            sysctls: Sysctls::new(&config.state_dir, &config.run_dir),
            found: SysctlOutcome::default(),
            resolvers: vec![],
            read: false,
            off: [false; 2],
        }
    }

    /// Reads the settings, and turns off those that let packets bypass policies.
    pub(super) fn read(
        &mut self,
        observed: &NetworkState,
        config: &Config,
        needs: SysctlRequirements,
        incidents: &Incidents,
    ) {
        self.read = true;
        self.resolvers = underlay::host_resolvers(&config.resolvers_behind_tunnels);
        self.found = self.sysctls.prepare(observed, &config.bridge, needs.forward, needs.guards, incidents);
    }

    /// Returns whether the settings have been read.
    pub(super) fn are_read(&self) -> bool {
        self.read
    }

    /// Turns on forwarding if the table `inet edge-cni` is in place, and then looks whether it is
    /// on.
    pub(super) fn forward(&mut self, observed: &NetworkState, bridge: &str, forward: [bool; 2], firewall: bool) {
        if firewall {
            self.sysctls.forward(observed, bridge, forward, &mut self.found);
        }
        self.off = self.sysctls.forwarding_is_off();
    }

    /// Returns the name servers that must be reachable outside of tunnels.
    pub(super) fn resolvers(&self) -> &[IpAddr] {
        &self.resolvers
    }

    /// Returns for IPv4 and IPv6 whether the agent or the plugin has turned forwarding on.
    pub(super) fn turned_on(&self) -> [bool; 2] {
        self.found.ours
    }

    /// Returns whether the node does not forward packets of a family that pods need.
    pub(super) fn is_forwarding_missing(&self, forward: [bool; 2]) -> bool {
        forward.into_iter().zip(self.off).any(|(needs, off)| needs && off)
    }

    /// Returns the settings that could not be written.
    pub(super) fn obstacles(&self) -> &[Obstacle] {
        &self.found.obstacles
    }
}
