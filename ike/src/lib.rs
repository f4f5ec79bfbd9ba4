//! IKEv2 (RFC 7296) as a library that does no I/O: it takes datagrams and the time, and returns
//! datagrams and events.
//!
//! One [`Endpoint`] holds all IKE SAs of a node. Its owner passes it datagrams
//! ([`Endpoint::handle`]) and the time ([`Endpoint::handle_timeout`]), and then drains
//! [`Endpoint::poll_event`], [`Endpoint::poll_transmit`] and [`Endpoint::poll_timeout`]. Random
//! numbers, the wall clock and SPIs come from an [`Environment`], so a test can run a whole network
//! of endpoints in one thread.
//!
//! ```
//! use std::net::IpAddr;
//!
//! use edge_ike::config::{AgentNotifications, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer, Prf, Timing};
//! use edge_ike::wire::{ExchangeType, Message};
//! use edge_ike::{AddressAssignment, Auth, ChildConfig, ChildName, Childless, Endpoint, EndpointConfig, Environment};
//! use edge_ike::{Identity, Instant, PeerConfig, PeerName, Secret};
//!
//! /// The functions that an endpoint needs from the system.
//! struct System;
//!
//! impl Environment for System {
//!     fn fill_random(&mut self, bytes: &mut [u8]) {
//!         use ring::rand::SecureRandom;
//!         ring::rand::SystemRandom::new().fill(bytes).expect("the system has randomness");
//!     }
//!     fn unix_time(&self) -> u64 {
//!         1_767_225_600
//!     }
//!     fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
//!         Some(0x1000) // from the kernel
//!     }
//!     fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
//! }
//!
//! let peer = PeerConfig {
//!     name: PeerName::new("hub"),
//!     local: Some("192.0.2.1".parse()?),
//!     remotes: vec!["198.51.100.1:500".parse()?],
//!     local_id: Identity::Fqdn("edge-1.example".into()),
//!     remote_id: Identity::Fqdn("hub.example".into()),
//!     auth: Auth::Psk(Secret::new(b"a secret that both ends were given".to_vec())),
//!     ike_proposals: vec![IkeProposal {
//!         ciphers: vec![Cipher::Aes256Gcm16],
//!         prfs: vec![Prf::HmacSha256],
//!         groups: vec![Group::X25519],
//!     }],
//!     child: ChildConfig {
//!         name: ChildName::new("net"),
//!         proposals: vec![EspProposal {
//!             ciphers: vec![Cipher::Aes256Gcm16],
//!             groups: vec![],
//!             esn: true,
//!         }],
//!         local: vec!["0.0.0.0/0".parse()?],
//!         remote: vec!["0.0.0.0/0".parse()?],
//!         next_layer: NextLayer::ANY,
//!         mode: Mode::Tunnel,
//!     },
//!     additional_children: vec![],
//!     max_children: 1,
//!     initiate: true,
//!     force_encapsulation: true,
//!     mobike: true,
//!     keep_existing: false,
//!     agent_notifications: AgentNotifications::Off,
//!     address_assignment: AddressAssignment::Off,
//!     childless: Childless::Allow,
//!     timing: Timing::default(),
//! };
//! let mut endpoint = Endpoint::new(EndpointConfig::default());
//! endpoint.set_peer(peer, Instant::default(), &mut System)?;
//!
//! // The endpoint initiates: its first datagram is an IKE_SA_INIT request to the peer.
//! let transmit = endpoint.poll_transmit().expect("a datagram to send");
//! assert_eq!(transmit.remote, "198.51.100.1:500".parse()?);
//! assert_eq!(Message::decode(&transmit.payload)?.header.exchange, ExchangeType::IkeSaInit);
//! // The owner must call the endpoint again when it is time to retransmit the request.
//! assert!(endpoint.poll_timeout().is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/loopback.rs` shows the loop that drives an endpoint over sockets.
//!
//! - [`config`]: the peers, and the parameters that may be negotiated with them.
//! - [`crl`]: certificate revocation lists.
//! - [`endpoint`]: the [`Endpoint`] itself, and the order in which its owner must call it.
//! - [`event`]: the events that the owner must carry out in the kernel and may display.
//! - [`capture`]: copies of messages with their payloads decrypted.
//! - [`wire`]: the encoding of messages.
//! - [`crypto`]: key exchange, key derivation, and the protection of messages.
//! - [`auth`]: the authentication of both ends.
//!
//! Private modules: `sa` contains the states and exchanges of one IKE SA. `child_sas` contains the
//! CHILD_SAs of one peer and the order of their events. `negotiate` chooses algorithms and
//! selectors that both ends accept. `address_assignment` contains the internal addresses that one
//! end gives the other one. `childless` decides whether IKE_AUTH creates a CHILD_SA.
//! `create_child_rate` limits the rate of one peer's requests. `deadlines` stores deadlines, and
//! `output` stores datagrams and events until the owner takes them.
//! `tests/simulation` tests whole networks of endpoints, and `tests/hostile` tests hostile peers.
//! `mutations` contains deliberate mistakes, which these tests must detect. Release builds do not
//! contain them.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

#[macro_use]
pub mod mutations;

mod address_assignment;
pub mod auth;
pub mod capture;
mod child_sas;
mod childless;
pub mod config;
mod create_child_rate;
pub mod crl;
pub mod crypto;
mod deadlines;
pub mod endpoint;
mod environment;
pub mod event;
mod jitter;
mod negotiate;
mod output;
mod own_keys;
mod purpose;
mod sa;
pub mod secret;
mod suite;
mod tcp_connection;
pub mod time;
pub mod wire;

pub use address_assignment::AddressAssignment;
pub use auth::{canonical_identity, certificate_is_for, check_credentials, same_identity};
pub use childless::Childless;
pub use config::{Auth, ChildConfig, EndpointConfig, Identity, PeerConfig, PeerName};
pub use endpoint::Endpoint;
pub use environment::{Environment, Transmit};
pub use event::{ChildId, ChildSa, Event, IkeId, OutboundSwitch};
pub use output::SentRequests;
pub use purpose::{ChildName, InvalidPurpose, Purpose, TrafficPart};
pub use sa::LocalMove;
pub use secret::Secret;
pub use tcp_connection::{TcpConnectionId, is_reserved_for_tcp};
pub use time::Instant;
