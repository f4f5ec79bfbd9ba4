//! Runs OpenBSD's IKE daemon (OpenIKED's `iked`) on a host of the lab, and asks it with `ikectl`.
//!
//! iked programs the kernel by PF_KEY, which the lab's kernel has. Debian's package starts a
//! service and makes a key, so `.ci/install` only unpacks it into
//! `$XDG_CACHE_HOME/edge-cni/openiked`.

mod iked;
mod sas;

pub use iked::{Iked, Policy};
pub use sas::Sas;
