//! What the controller asks of a Kubernetes API server.
//!
//! - [`client`]: reaching it.
//! - [`token_review`]: whose a service account token is, with which a node may join.

pub mod client;
pub mod token_review;
