//! Errors of this crate.

use ipnetwork::IpNetwork;

use crate::netlink;
use crate::policy::{InstalledPolicy, Policy};
use crate::sa::{KeyLength, SaId};
use crate::selector::MixedFamilies;

/// The result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why an operation on the kernel's IPsec databases failed. No variant holds a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a request, did not answer it, or could not be reached.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Another program has a policy with this direction and selector. That policy stays, and ours
    /// was not installed.
    #[error(
        "policy {wanted} cannot be installed: another program holds that selector with {theirs}; \
         remove it there (see `ip xfrm policy`), or leave its networks out of ours"
    )]
    OccupiedByOther {
        /// The policy that should have been installed.
        wanted: Box<Policy>,
        /// The installed policy.
        theirs: Box<InstalledPolicy>,
    },
    /// An SA with this destination and SPI exists already.
    #[error("an SA to {id} exists already")]
    SaExists {
        /// Destination and SPI of the SA.
        id: SaId,
    },
    /// There is no such SA.
    #[error("there is no SA to {id}: it was deleted by another, expired, or its reservation ran out")]
    NoSuchSa {
        /// Destination and SPI of the SA.
        id: SaId,
    },
    /// The SA's reqid is outside our range, so another program owns it. It was not changed.
    #[error("SA to {id} has reqid {reqid:#x}, which is not one of ours: left alone")]
    SaOfOther {
        /// Destination and SPI of the SA.
        id: SaId,
        /// The reqid of the SA.
        reqid: u32,
    },
    /// The policy is not tagged as ours, so another program owns it. It was not changed.
    #[error("policy {policy} is not one of ours: left alone")]
    PolicyOfOther {
        /// The installed policy.
        policy: Box<InstalledPolicy>,
    },
    /// One address or network is IPv4, the other IPv6.
    #[error(transparent)]
    MixedFamilies(#[from] MixedFamilies),
    /// A key has the wrong length for its algorithm.
    #[error(transparent)]
    KeyLength(#[from] KeyLength),
    /// The kernel has no ESP or lacks the algorithm.
    #[error(
        "this kernel cannot do ESP with {algorithm}: {reason} (CONFIG_INET_ESP, CONFIG_INET6_ESP, the cipher's module)"
    )]
    Unsupported {
        /// The requested algorithm.
        algorithm: &'static str,
        /// The kernel's reason.
        reason: String,
    },
    /// The guard's configuration would allow a whole cluster range.
    #[error(
        "guard: {network} ({what}) contains the whole cluster range {range}: allowing it would let every pod's packets leave in clear; name narrower networks"
    )]
    GuardTooWide {
        /// The network that would be allowed.
        network: IpNetwork,
        /// What kind of network it is.
        what: &'static str,
        /// The cluster range.
        range: IpNetwork,
    },
    /// Another program has an interface with the name of the guard's device.
    #[error("guard: {reason}")]
    GuardDevice {
        /// The conflict, and how to resolve it.
        reason: String,
    },
    /// A part of the guard could not be installed.
    #[error("guard: {what}: {error}")]
    Guard {
        /// The part of the guard, and its range or address.
        what: String,
        /// The cause.
        error: Box<Error>,
    },
    /// A file of /proc could not be read or parsed.
    #[error("{path}: {reason}")]
    Proc {
        /// Path of the file.
        path: &'static str,
        /// The cause.
        reason: String,
    },
    /// A socket option was refused.
    #[error("cannot set {option} on the socket: {error}")]
    SocketOption {
        /// Name of the option.
        option: &'static str,
        /// The kernel's reason.
        error: std::io::Error,
    },
}

impl Error {
    /// Returns whether a notification socket lost messages. In that case, read all SAs and policies
    /// again.
    pub fn is_overrun(&self) -> bool {
        matches!(self, Error::Netlink(netlink::Error::Overrun))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// If `source` returned such a cause, a program that prints an error with its causes would
    /// print it twice.
    #[test]
    fn an_error_whose_text_has_the_cause_does_not_give_it_as_source_too() {
        let refused = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let io = || netlink::Error::Io { doing: "cannot send", error: refused() };
        assert!(io().to_string().contains(&refused().to_string()) && io().source().is_none());
        let guard = Error::Guard { what: "route".into(), error: Box::new(io().into()) };
        assert!(guard.to_string().contains("cannot send") && guard.source().is_none());
        let option = Error::SocketOption { option: "SO_RCVBUF", error: refused() };
        assert!(option.to_string().contains(&refused().to_string()) && option.source().is_none());
    }
}
