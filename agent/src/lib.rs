//! The agent of an edge-cni node. From the controller's view, or from static peers in its TOML
//! file, it derives which tunnels, policies and routes this node wants, and keeps the kernel in
//! that state.
//!
//! Data flows one way: [`cloud`] and [`config`] say who the peers are; [`desired`] computes what
//! follows from that; [`tunnels`] negotiates it and [`kernel`] and [`host`] carry it out;
//! [`status`] tells people.
//!
//! - [`cli`]: the commands.
//! - [`config`]: the TOML file.
//! - [`membership`]: the seam between the cloud's side and the node's side: view and credentials.
//! - [`cloud`]: the controller's side: joining, certificate, view, applications for segments.
//! - [`install_cni`]: the conflist, by which the container runtime finds the plugin.
//! - [`local`]: the plugin's side: its socket, and when to apply for a segment.
//! - [`store`]: the state directory.
//! - [`clock`]: boot time for lifetimes, and the time of the world for certificates.
//! - [`desired`]: which tunnels, policies and routes follow from view and static peers. Pure.
//! - [`endpoints`]: at which addresses nodes find each other. Pure.
//! - [`surroundings`]: what this node needs outside of every tunnel, and which view would take it
//!   away. Pure.
//! - [`tunnels`]: the IKE driver: endpoint, sockets and XFRM in one loop.
//! - [`kernel`]: SAs and reqids.
//! - [`host`]: routes, bridge, firewall, uplinks.
//! - [`journal`]: what was repaired, what is in the way, what went wrong.
//! - [`status`]: the document of `status --json`, and the table.
//! - [`hardening`]: no core dumps, private files.
//! - [`instance`]: one agent in a network namespace.
//! - [`run`]: starts the parts of `edge-agent run` and ends them.
//! - [`down`]: takes everything away.
//! - [`admin`]: the socket on which `status` and `rekey` ask a running agent.
// Only `tunnels::socket` (IP_PKTINFO, descriptors from systemd and for tokio) and the clock need
// it.
#![deny(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod clock;
pub mod cloud;
pub mod config;
pub mod desired;
pub mod down;
pub mod endpoints;
pub mod hardening;
pub mod host;
pub mod install_cni;
pub mod instance;
pub mod journal;
pub mod kernel;
pub mod local;
pub mod membership;
pub mod run;
pub mod status;
pub mod store;
pub mod surroundings;
pub mod tunnels;
