//! What the agent keeps in the kernel's XFRM.
//!
//! - [`reqids`]: which reqid a peer has, the same over restarts.
//! - [`sas`]: SAs, as the endpoint's events demand, and those that a former run left.

pub mod reqids;
pub mod sas;
