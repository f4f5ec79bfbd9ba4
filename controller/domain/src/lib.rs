//! The domain of the controller: what it hands out and records, and what it tells nodes. It knows
//! neither HTTP nor Kubernetes.
//!
//! - Segments: [`segments`].
//! - Certificates: [`ca`] signs them, [`certificates`] says which of them count, [`tokens`] let
//!   nodes ask for the first one.
//! - Rows: [`registry`] plans changes against the [`state`], commits them to the [`store`], then
//!   publishes them. [`archive`] is all rows and authorities as one file; [`state_files`] names the
//!   files of a state directory.
//! - What nodes are told: [`views`] are computed from the state, from [`networks`] that the
//!   operator configures, and from addresses ([`endpoints`]). [`reach`] refuses networks under
//!   which nodes could not reach the controller any more.
//! - What nodes report for people: [`tunnel_reports`].
//! - Limits: [`absence`] is how many nodes may disappear without a question, [`shares`] how much of
//!   something limited goes to strangers.
//! - [`clock`], [`random`] and [`text`] serve the others.
#![forbid(unsafe_code)]

pub mod absence;
pub mod archive;
pub mod ca;
pub mod certificates;
pub mod clock;
pub mod endpoints;
pub mod networks;
pub mod random;
pub mod reach;
pub mod registry;
pub mod segments;
pub mod shares;
pub mod state;
pub mod state_files;
pub mod store;
pub mod text;
pub mod tokens;
pub mod tunnel_reports;
pub mod views;
