//! The agent of an edge-cni node. From the controller's view, or from static peers in its TOML
//! file, it derives the tunnels, policies and routes of this node, and keeps the kernel in that
//! state.
//!
//! Data flows in one direction: [`controller_client`] and [`config`] provide the peers; [`desired`]
//! computes the desired state; [`tunnels`] and [`host`] carry it out; [`status`] reports it to
//! people.
//!
//! - [`cli`]: the commands.
//! - [`config`]: the TOML file.
//! - [`membership`]: the view and the credentials, which the controller's side passes to the node's
//!   side.
//! - [`controller_client`]: joining, certificate, view, requests for segments.
//! - [`install_cni`]: the conflist, by which the container runtime finds the plugin.
//! - [`plugin_server`]: the plugin's socket, and the decision when to request a segment.
//! - [`state_dir`]: the files on disk.
//! - [`clock`]: boot time for lifetimes, and wall-clock time for certificates.
//! - [`static_peer_names`]: the static peers, with their host names resolved.
//! - [`desired`]: the tunnels, policies and routes that follow from view and static peers. No I/O.
//! - [`candidate_addresses`]: the addresses at which nodes find each other. No I/O.
//! - [`underlay`]: the addresses that this node needs outside of every tunnel, and the views that
//!   would take them away. No I/O.
//! - [`tunnels`]: the IKE driver: endpoint, sockets and XFRM in one loop.
//! - [`host`]: routes, bridge, firewall, uplinks.
//! - [`incidents`]: repairs, conflicts and errors.
//! - [`logging`]: the log, its filter, and spans for node and peer.
//! - [`status`]: the document of `status --json`, and the table.
//! - `observe`: metrics and probes.
//! - [`hardening`]: no core dumps, private files.
//! - [`netns_lock`]: allows one agent in a network namespace.
//! - [`run`]: starts the parts of `edge-agent run` and ends them.
//! - [`join`]: makes a plain machine a node.
//! - [`down`]: takes away what is in the kernel.
//! - [`uninstall`]: takes away everything, so that the host is as before.
//! - [`import`]: makes a configuration of a `swanctl.conf`.
//! - [`check`]: judges a configuration without a running agent.
//! - [`diagnose`]: says what keeps a node, a peer or a pod from being reached.
//! - [`ping`]: round trip and loss through a tunnel.
//! - [`capture`]: writes IKE messages of a peer without their encryption.
//! - [`stdout`]: prints what the commands say.
//! - [`admin`]: the socket on which `status` and `rekey` ask a running agent.
// Only `tunnels::datagram_socket` (IP_PKTINFO, descriptors from systemd and for tokio) and the
// clock need it.
#![deny(unsafe_code)]

pub mod admin;
pub mod candidate_addresses;
pub mod capture;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller_client;
pub mod desired;
pub mod diagnose;
pub mod down;
pub mod hardening;
pub mod host;
pub mod import;
pub mod incidents;
pub mod install_cni;
pub mod join;
pub mod logging;
pub mod membership;
pub mod netns_lock;
mod observe;
pub mod ping;
pub mod plugin_server;
pub mod run;
pub mod socket_holder;
pub mod state_dir;
pub mod static_peer_names;
pub mod status;
pub mod stdout;
#[cfg(test)]
mod test_view;
pub mod tunnels;
pub mod underlay;
pub mod uninstall;
