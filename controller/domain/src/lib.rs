//! The domain of the controller: the segments and certificates that it issues, the rows that it
//! stores, and the views that it computes for nodes. This crate depends on neither HTTP nor
//! Kubernetes.
//!
//! - Segments: [`segments`] are granted to nodes.
//! - Certificates: [`ca`] signs them, [`node_certificates`] decides which ones a node may use, and
//!   [`tokens`] let nodes join and get their first certificate.
//! - Rows: [`registry`] plans changes against the [`state`], commits them to the [`store`], then
//!   publishes them. [`archive`] writes all rows and authorities into one file; [`state_files`]
//!   names the files of a state directory.
//! - Views: [`views`] are built from the state, from the [`networks`] that the operator configures,
//!   and from addresses ([`node_addresses`]). [`reachability`] refuses networks that would cut
//!   nodes off from the controller.
//! - For the operator: [`node_reports`] keeps what nodes report, [`page_sessions`] manages the
//!   sessions of the operator's page, and [`connectivity`] checks whether nodes reach each other.
//! - Limits: [`mass_deletion`] limits how many nodes may disappear without the operator's
//!   confirmation, [`request_limits`] limits how often one node makes expensive requests, and
//!   [`source_shares`] divides a limited resource fairly among unknown sources.
//! - [`clock`], [`random`] and [`text`] are used by the other modules.
#![forbid(unsafe_code)]

pub mod archive;
pub mod ca;
pub mod clock;
pub mod connectivity;
pub mod mass_deletion;
pub mod networks;
pub mod node_addresses;
pub mod node_certificates;
pub mod node_reports;
pub mod page_sessions;
pub mod random;
pub mod reachability;
pub mod registry;
pub mod request_limits;
pub mod segments;
pub mod source_shares;
pub mod state;
pub mod state_files;
pub mod store;
pub mod text;
pub mod tokens;
pub mod views;
