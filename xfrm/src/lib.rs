//! The kernel's IPsec (XFRM): security associations, policies, and what the kernel has to say about
//! them, over netlink.
//!
//! Synchronous, without a runtime: each request is a system call or two. [`Xfrm`] holds the
//! databases, [`events::EventSocket`] what happens to them, [`reconcile`] compares what is wanted
//! with what is there, [`guard`] keeps pods' packets from ever leaving in clear. [`netlink`] is the
//! request socket below, for whoever speaks another netlink protocol.
//!
//! Nothing of another program's is ever touched: SAs of ours have a reqid from a range of our own
//! ([`reqid`]), policies of ours a template with such a reqid or, having no template, an index from
//! a range of our own.
//!
//! No key leaves through `Debug`, an error or a log.

#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod database;
pub mod error;
pub mod events;
pub mod guard;
mod message;
pub mod netlink;
pub mod policy;
pub mod reconcile;
pub mod reqid;
pub mod sa;
pub mod selector;
pub mod socket;
pub mod stat;
mod uapi;

pub use database::{IN_FLIGHT, Xfrm};
pub use error::{Error, Result};
pub use policy::{Action, Direction, InstalledPolicy, Policy, Template};
pub use reqid::Reqid;
pub use sa::{Aead, Algorithm, Counters, Encap, Limits, Replay, Sa, SaDirection, SaId, SaParams, SpiRange};
pub use selector::{Port, Selector};
