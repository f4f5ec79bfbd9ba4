//! The agent of an edge-cni node. From the controller's view, or from the static peers in its TOML
//! file, it derives this node's tunnels, policies and routes, and keeps the kernel in that state.
//!
//! Data flows in one direction: [`controller_client`] and [`config`] provide the peers; [`desired`]
//! computes the desired state; [`tunnels`] and [`host`] bring the kernel to that state; [`status`]
//! reports it to the operator.
//!
//! - [`cli`]: the commands of `edge-agent`.
//! - [`config`]: the agent's TOML file.
//! - [`membership`]: the channels between the controller client and the rest of the agent.
//! - [`controller_client`]: the controller client, which joins, renews the certificate, follows the
//!   view and requests segments.
//! - [`install_cni`]: the conflist, through which the container runtime finds the plugin.
//! - [`plugin_server`]: the server for the CNI plugin, which also decides when to request a
//!   segment.
//! - [`state_dir`]: the agent's files in the state directory.
//! - [`clock`]: the clocks, boot time for lifetimes and wall-clock time for certificates.
//! - [`static_peers`]: the static peers, with their addresses and revocation lists.
//! - [`desired`]: the desired state, computed from the view and the static peers. It does no I/O.
//! - [`candidate_addresses`]: the addresses that nodes report for themselves, and those at which
//!   they try to reach peers. It does no I/O.
//! - [`underlay`]: the addresses that this node needs outside of every tunnel, and the check
//!   whether a view would make them unreachable. It does no I/O.
//! - [`tcp_encapsulation`]: the TCP connections of IKE and ESP, for edges whose network blocks UDP.
//! - `source_address`: the source addresses that the kernel chooses.
//! - [`tunnels`]: the IKE driver, which runs the IKE endpoint, its sockets and XFRM in one loop.
//! - [`path_mtu`]: the search for the largest packet that the path to a peer carries. It does no
//!   I/O.
//! - [`init_probe`]: IKE_SA_INIT requests that check whether a responder answers.
//! - [`relay`]: relays on hubs for pairs of nodes that find no direct path to each other.
//! - [`host`]: the agent's other objects on the host: routes, bridge, firewall and sysctls.
//! - [`incidents`]: the latest repairs, conflicts with other programs, and errors.
//! - [`logging`]: the log, its filter, and the spans that name node and peer.
//! - [`status`]: the document of `status --json` and the table of `status`.
//! - `observe`: the metrics and probes for monitoring.
//! - [`hardening`]: the process settings that protect keys from other users.
//! - [`netns_lock`]: the lock that allows only one agent in each network namespace.
//! - `peer_credentials`: the user of the process at the other end of a unix socket.
//! - [`run`]: the command `run`, which starts and ends the parts of the agent.
//! - [`join`]: the command `join`, which turns a machine into a node.
//! - [`down`]: the command `down`, which removes everything that an agent installed in the kernel.
//! - [`uninstall`]: the command `uninstall`, which removes everything, so that the host is as
//!   before.
//! - [`import`]: the command `import`, which converts a `swanctl.conf` into the agent's
//!   configuration.
//! - [`check`]: the command `check`, which checks a configuration without a running agent.
//! - [`diagnose`]: the command `diagnose`, which finds the reason why a node, a peer or a pod
//!   cannot be reached.
//! - [`ping`]: the command `ping`, which measures round-trip time and packet loss through a tunnel.
//! - [`capture`]: the command `capture`, which writes the decrypted IKE messages to and from a
//!   peer.
//! - [`stdout`]: the standard output of the commands.
//! - [`admin`]: the socket on which the operator's commands send requests to a running agent.
// Only `tunnels::datagram_socket` (IP_PKTINFO, and descriptors that come from systemd or are passed
// to tokio), `peer_credentials` and `clock` contain unsafe code.
#![deny(unsafe_code)]

pub mod admin;
mod attached_pods;
pub mod candidate_addresses;
pub mod capture;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller_client;
pub mod crl_files;
pub mod desired;
pub mod diagnose;
pub mod down;
pub mod hardening;
pub mod host;
pub mod import;
pub mod incidents;
pub mod init_probe;
pub mod install_cni;
pub mod join;
pub mod logging;
pub mod membership;
pub mod netns_lock;
mod observe;
pub mod path_mtu;
mod peer_credentials;
pub mod ping;
pub mod plugin_server;
pub mod relay;
pub mod run;
pub mod socket_holder;
mod source_address;
pub mod state_dir;
pub mod static_peers;
pub mod status;
pub mod stdout;
pub mod tcp_encapsulation;
#[cfg(test)]
mod test_view;
pub mod tunnels;
pub mod underlay;
pub mod uninstall;
