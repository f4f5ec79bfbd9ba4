//! The differences between the installed guard and its configuration.

use std::fmt;

use super::route::{DEVICE, GuardRoute};
use crate::policy::{InstalledPolicy, Policy};

/// A part of the guard that is missing or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Defect {
    /// The device is missing or down.
    Device,
    /// A route is missing.
    Route(GuardRoute),
    /// A policy is missing.
    Missing(Policy),
    /// A policy of ours was changed.
    Changed(Policy, Box<InstalledPolicy>),
    /// Another program holds the policy's selector. [`install`](super::install) cannot repair this.
    Occupied(Policy, Box<InstalledPolicy>),
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Defect::Device => write!(f, "device {DEVICE} is missing or down"),
            Defect::Route(route) => write!(f, "route {route} is missing"),
            Defect::Missing(policy) => write!(f, "policy {policy} is missing"),
            Defect::Changed(policy, found) => write!(f, "policy {policy} was changed to {found}"),
            Defect::Occupied(policy, found) => {
                write!(f, "policy {policy}: another program holds the selector with {found}")
            }
        }
    }
}
