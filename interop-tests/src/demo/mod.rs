//! The demo.
pub mod wire;
