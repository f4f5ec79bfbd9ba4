//! The guard's routes, which lead to its device.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Name of the device.
pub const DEVICE: &str = "ecni-guard";
/// Protocol number of our routes (`ip route show proto 236`).
pub const ROUTE_PROTOCOL: u8 = 0xEC;

/// A route of the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuardRoute {
    /// Cluster range.
    pub range: IpNetwork,
    /// Source address of the node's own packets, if the bridge has one.
    pub source: Option<IpAddr>,
}

impl fmt::Display for GuardRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {DEVICE}", self.range)?;
        self.source.map_or(Ok(()), |source| write!(f, " src {source}"))
    }
}
