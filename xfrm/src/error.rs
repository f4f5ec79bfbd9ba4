//! What can go wrong between us and the kernel.

use ipnetwork::IpNetwork;

use crate::netlink;
use crate::policy::{InstalledPolicy, Policy};
use crate::sa::{KeyLength, SaId};
use crate::selector::MixedFamilies;

/// The result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on the kernel's IPsec databases failed. No variant ever holds a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused, was silent, or could not be asked.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Somebody else has a policy with this direction and selector. It stays as it is; ours was not
    /// installed.
    #[error(
        "policy {wanted} cannot be installed: another program holds that selector with {theirs}; \
         remove it there (see `ip xfrm policy`), or leave its networks out of ours"
    )]
    OccupiedByOther {
        /// What we wanted.
        wanted: Box<Policy>,
        /// What stands there.
        theirs: Box<InstalledPolicy>,
    },
    /// An SA of that destination and SPI exists already.
    #[error("an SA to {id} exists already")]
    SaExists {
        /// Which.
        id: SaId,
    },
    /// There is no such SA.
    #[error("there is no SA to {id}: it was deleted by another, expired, or its reservation ran out")]
    NoSuchSa {
        /// Which.
        id: SaId,
    },
    /// The SA's reqid is outside our range, so that another program owns it. It was left alone.
    #[error("SA to {id} has reqid {reqid:#x}, which is not one of ours: left alone")]
    SaOfOther {
        /// Which.
        id: SaId,
        /// Its reqid.
        reqid: u32,
    },
    /// The policy is not tagged as ours, so that another program owns it. It was left alone.
    #[error("policy {policy} is not one of ours: left alone")]
    PolicyOfOther {
        /// What stands there.
        policy: Box<InstalledPolicy>,
    },
    /// One side is IPv4, the other IPv6.
    #[error(transparent)]
    MixedFamilies(#[from] MixedFamilies),
    /// A key of the wrong length for its algorithm.
    #[error(transparent)]
    KeyLength(#[from] KeyLength),
    /// The kernel has no ESP or lacks the algorithm.
    #[error(
        "this kernel cannot do ESP with {algorithm}: {reason} (CONFIG_INET_ESP, CONFIG_INET6_ESP, the cipher's module)"
    )]
    Unsupported {
        /// The algorithm asked for.
        algorithm: &'static str,
        /// The kernel's words.
        reason: String,
    },
    /// The guard's configuration contradicts itself.
    #[error(
        "guard: {network} ({what}) holds the whole cluster range {range}: allowing it would let every pod's packets out in clear; name narrower networks"
    )]
    GuardTooWide {
        /// The network to be allowed.
        network: IpNetwork,
        /// What it is.
        what: &'static str,
        /// The range.
        range: IpNetwork,
    },
    /// The guard's device is not ours to use.
    #[error("guard: {reason}")]
    GuardDevice {
        /// What stands in the way and what to do.
        reason: String,
    },
    /// A part of the guard could not be installed.
    #[error("guard: {what}: {source}")]
    Guard {
        /// Which part, and for which range or address.
        what: String,
        /// Why.
        source: Box<Error>,
    },
    /// A file of /proc could not be read or was not understood.
    #[error("{path}: {reason}")]
    Proc {
        /// Which file.
        path: &'static str,
        /// Why.
        reason: String,
    },
    /// A socket option was refused.
    #[error("cannot set {option} on the socket: {source}")]
    SocketOption {
        /// Which option.
        option: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether a notification socket lost messages: dump everything again.
    pub fn is_overrun(&self) -> bool {
        matches!(self, Error::Netlink(netlink::Error::Overrun))
    }
}
