//! Many IKE initiators in one process, against one responder.
//!
//! Each peer is an [`edge_ike::Endpoint`] with an address and a UDP socket of its own. Its SAs are
//! in no kernel: the peers negotiate and answer, and carry no traffic. So thousands of them cost
//! the responder what as many real nodes would, and cost the lab little.
//!
//! - [`IkePeers`]: starts the process on a node and asks it to work.
//! - `protocol`: what a scenario and the process say to each other, a line of JSON each.
//! - `engine`: the process. `system`: its randomness, clock and SPIs.

mod control;
mod engine;
mod protocol;
mod system;

pub use control::IkePeers;
pub use engine::main;
pub use protocol::{Authentication, PeerSet, Progress};
