//! Reads from and writes to Kubernetes for the controller. Of the controller's crates, only this
//! one uses `kube`.
//!
//! - [`resources`]: the custom resources.
//! - [`client`]: connects to the API server and explains its errors.
//! - [`ca_secret`]: the certificate authorities in a Secret that all replicas share.
//! - [`events`], [`status_writer`]: Events and statuses, for people.
//! - [`node_statuses`]: reads what all replicas wrote into the statuses of nodes, for the operator.
//! - [`replica_leases`]: which replica leads; [`orphans`]: what the leader collects.
//! - [`list_watch`]: a list that is kept up to date by a watch.
//! - [`own_rights`]: which rights the controller's account lacks.
//! - [`cluster_identity`]: checks that the API server still belongs to the same cluster.
//! - [`store`]: rows as custom resources that all replicas share.
//! - [`nodes`]: communities and deregistration from Node objects; [`selector`]: selects Nodes.
//! - [`node_trust`]: which labels and addresses of a Node count, since its kubelet can write them.
//! - [`label_trust`]: whether community labels of Nodes count; [`admission_policy`]: the admission
//!   policy that they need.
//! - [`trust_bundle`]: publishes the trusted certificates for the agents' pods.
//! - [`service_account`]: joins with the service account token of the node's pod.
#![forbid(unsafe_code)]

pub mod admission_policy;
pub mod ca_secret;
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
