//! What the controller reads from and writes to Kubernetes. Of its crates, this one alone names
//! `kube`.
//!
//! - [`resources`]: the custom resources.
//! - [`client`]: reaching the API server, and saying what is wrong when it refuses.
//! - [`authority`]: the certificate authorities, shared by all replicas.
//! - [`events`], [`shown`]: what is told to people, on objects.
//! - [`lease`]: who leads; [`garbage`]: what the leader finds left over.
//! - [`list_watch`]: a list that is kept up to date by a watch.
//! - [`identity`]: which cluster it is.
//! - [`store`]: rows as custom resources, shared by all replicas.
//! - [`nodes`]: membership and deregistration from Node objects; [`selector`]: which of them;
//!   [`node_role`]: which role a Node may have.
//! - [`counted`]: what counts of a Node, which its kubelet may write too.
//! - [`label_trust`]: whether labels of Node objects count; [`label_policy`]: the admission policy
//!   that they need.
//! - [`trust`]: the trusted certificates, published for the agents' pods.
//! - [`token_review`]: whose a service account token is, with which a node may join;
//!   [`service_token`]: what cannot be one; [`reviews`]: how many are asked about at once.
#![forbid(unsafe_code)]

pub mod authority;
pub mod client;
pub mod events;
pub mod identity;
pub mod label_policy;
pub mod label_trust;
pub mod lease;
pub mod list_watch;
pub mod node_role;
pub mod node_trust;
pub mod nodes;
pub mod orphans;
pub mod resources;
pub mod reviews;
pub mod selector;
pub mod service_token;
pub mod status_writer;
pub mod store;
pub mod token_review;
pub mod trust_bundle;
