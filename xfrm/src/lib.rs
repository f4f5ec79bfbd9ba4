//! The kernel's IPsec (XFRM) over netlink: security associations, policies, and the kernel's
//! notifications about them.
//!
//! All calls are synchronous and need no runtime: each request is one or two system calls. [`Xfrm`]
//! reads and changes the databases of SAs and policies. [`events::EventSocket`] reports changes to
//! them. [`reconcile`] compares desired with existing SAs and policies. [`guard`] prevents pods'
//! packets from leaving in clear. [`netlink`] is the underlying request socket, which also works
//! with other netlink protocols.
//!
//! The crate never changes SAs and policies of other programs. Our SAs have a reqid from our own
//! range ([`reqid`]). Our policies have a template with such a reqid; those without a template have
//! an index from our own range.
//!
//! ```
//! use edge_xfrm::{Direction, Policy, Reqid, Selector, reconcile};
//!
//! // Pods here reach the pods of one peer through tunnel 7, and the peer's pods reach them.
//! let outward = Selector::new("10.77.0.0/26".parse()?, "10.77.1.0/26".parse()?)?;
//! let reqid = Reqid::tunnel(7).expect("below the limit");
//! let desired = [
//!     Policy::protect_out(outward, reqid, "192.0.2.1".parse()?, "198.51.100.1".parse()?),
//!     Policy::protect_in(Direction::In, outward.reversed(), reqid),
//!     Policy::protect_in(Direction::Fwd, outward.reversed(), reqid),
//! ];
//!
//! // In a kernel without policies, all are missing. `Xfrm::reconcile_policies` installs them.
//! let plan = reconcile::policies(&desired, &[]);
//! assert_eq!(plan.missing, desired);
//! assert!(plan.stray.is_empty() && plan.occupied.is_empty());
//! assert!(desired[0].to_string().ends_with("esp reqid 0xec000007 192.0.2.1 -> 198.51.100.1"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! No `Debug` output, error or log contains a key.

#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod database;
pub mod error;
pub mod events;
pub mod guard;
mod message;
mod mode;
pub mod netlink;
pub mod policy;
mod policy_hash;
pub mod reconcile;
pub mod reqid;
pub mod sa;
pub mod selector;
pub mod socket;
pub mod stat;
mod uapi;

pub use database::{IN_FLIGHT, TunnelOutcome, Xfrm};
pub use error::{Error, Result};
pub use mode::Mode;
pub use policy::{Action, Direction, InstalledPolicy, Policy, Template};
pub use policy_hash::{PolicyHash, Threshold};
pub use reqid::Reqid;
pub use sa::{
    AesKeyLength, Algorithm, Counters, Encap, EncapProtocol, EspKey, Integrity, Limits, Replay, Sa, SaDirection, SaId,
    SaParams, SpiRange,
};
pub use selector::{PortMask, Selector};
