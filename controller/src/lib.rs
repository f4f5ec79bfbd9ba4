//! `edge-controller`: hands out segments and certificates, records who is a member of what, and
//! tells every node its view.
//!
//! Data flows one way: [`server`] accepts connections and knows who calls; [`api`] turns requests
//! into plans ([`tokens`], [`segments`], [`ca`]) that [`registry`] commits to the [`store`] and
//! applies to its [`state`]; [`views`] are computed from the state and pushed. [`networks`] are what
//! the operator says is reached through tunnels; [`endpoints`] are where peers are sent to look for a node. [`absence`] is how many nodes may disappear without a
//! question. [`settings`] are what the [`config`] says now; [`reach`] refuses one under which nodes
//! could not reach this controller any more. Strangers get `shares` of what is limited, and `logs`
//! are lines whatever they send. [`archive`] is all of it as one file. [`cli`] is the operator's
//! side of the same API, [`observe`] what his monitoring sees.
#![forbid(unsafe_code)]

pub mod absence;
pub mod api;
pub mod archive;
pub mod ca;
pub mod certificates;
pub mod cli;
pub mod clock;
pub mod config;
pub mod endpoints;
pub mod kubernetes;
mod logs;
pub mod networks;
pub mod observe;
pub mod random;
pub mod reach;
pub mod refusal;
pub mod registry;
pub mod segments;
pub mod server;
pub mod settings;
mod shares;
pub mod state;
pub mod state_files;
pub mod store;
pub mod text;
pub mod tokens;
pub mod tunnel_reports;
pub mod views;
