//! `edge-controller`: grants segments, issues certificates, records the members of communities, and
//! sends every node its view.
//!
//! The rules are in `edge_controller_domain`, and the access to Kubernetes is in
//! `edge_controller_kubernetes`. This crate is the program: [`server`] accepts connections and
//! identifies callers; [`api`] turns requests into plans for the registry, and errors into problem
//! documents ([`api::ApiError`]). [`live_config`] holds the [`config`] in force. `logs` keeps each
//! log event on one line, whatever callers send. [`cli`] is the operator's client of the same API,
//! [`observe`] serves monitoring, and `page` serves the operator's browser. `node_problems` lists
//! what the operator should check, and `state_disk` checks the disk of the store.
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod config;
pub mod live_config;
mod logs;
mod node_problems;
pub mod observe;
mod page;
pub mod server;
mod state_disk;
