//! Connects the controller to the Kubernetes API server. Of the controller's crates, only this one
//! uses `kube`.
//!
//! - [`resources`]: the custom resources.
//! - [`client`]: connects to the API server and explains its errors.
//! - [`ca_secret`]: keeps the certificate authorities in a Secret that all replicas share.
//! - [`events`], [`status_writer`]: write Events and statuses, for people.
//! - [`node_statuses`]: reads what all replicas wrote into the statuses of nodes, for the operator.
//! - [`replica_leases`]: decides which replica leads; [`orphans`]: deletes objects that no node
//!   needs any more.
//! - [`list_watch`]: keeps a list up to date by a watch.
//! - [`own_rights`]: checks which rights the controller's account lacks.
//! - [`cluster_identity`]: checks that the API server still belongs to the same cluster.
//! - [`store`]: keeps rows as objects that all replicas share.
//! - [`nodes`]: takes communities, addresses and deregistrations from Node objects; [`selector`]:
//!   selects Nodes.
//! - [`node_trust`]: decides which labels and addresses of a Node count, since its kubelet can
//!   write them.
//! - [`label_trust`]: decides whether community labels of Nodes count; [`admission_policy`]: checks
//!   the admission policy that these labels need.
//! - `certificate_grace`: the time for which nodes' certificates are accepted after their end.
//! - [`trust_bundle`]: publishes the trusted certificates for the agents' pods.
//! - [`service_account`]: lets nodes join with the service account token of their pod.
#![forbid(unsafe_code)]

pub mod admission_policy;
pub mod ca_secret;
mod certificate_grace;
pub mod client;
pub mod cluster_identity;
pub mod events;
pub mod label_trust;
pub mod list_watch;
pub mod node_statuses;
pub mod node_trust;
pub mod nodes;
pub mod orphans;
pub mod own_rights;
pub mod replica_leases;
pub mod resources;
pub mod selector;
pub mod service_account;
pub mod status_writer;
pub mod store;
pub mod trust_bundle;

pub use certificate_grace::CertificateGrace;
