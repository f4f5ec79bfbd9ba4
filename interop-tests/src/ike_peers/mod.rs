//! Runs many IKE initiators in one process, against one responder.
//!
//! Each peer is an [`edge_ike::Endpoint`] with its own address and UDP socket. Its SAs are in no
//! kernel: the peers negotiate and answer but carry no traffic. So thousands of peers cost the
//! responder as much as real nodes but cost the lab little.
//!
//! - [`IkePeers`]: starts the process on a node and sends it requests.
//! - `protocol`: defines the messages between a scenario and the process, each a line of JSON.
//! - `engine`: runs the process with the peers. `system`: provides the peers with randomness, a
//!   clock and SPIs.

mod control;
mod engine;
mod protocol;
mod system;

pub use control::IkePeers;
pub use engine::main;
pub use protocol::{Authentication, PeerSet, Progress};
