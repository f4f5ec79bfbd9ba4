//! `edge-controller`: hands out segments and certificates, records who is a member of what, and
//! tells every node its view.
//!
//! The rules are in `edge_controller_domain`, and what is read from and written to Kubernetes in
//! `edge_controller_kubernetes`. This crate is the program: [`server`] accepts connections and
//! knows who calls; [`api`] turns requests into plans for the registry, and errors into problem
//! documents ([`api::ApiError`]). [`live_config`] holds the [`config`] in force. `logs` keeps each
//! record on one line, whatever strangers send. [`cli`] is the operator's side of the same API,
//! [`observe`] what monitoring sees, and `page` what the operator's browser shows. `node_problems`
//! says what the operator should look at.
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
