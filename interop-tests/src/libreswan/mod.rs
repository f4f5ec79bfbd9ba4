//! Runs libreswan's IKE daemon on a host of the lab and controls it with `whack`.
//!
//! Debian's package conflicts with strongSwan's. So `.ci/install` unpacks it into
//! `$XDG_CACHE_HOME/edge-cni/libreswan`, and installs only the libraries that it needs.

mod nss;
mod pluto;
mod states;

pub use pluto::{Conn, Pluto};
pub use states::ChildSa;
