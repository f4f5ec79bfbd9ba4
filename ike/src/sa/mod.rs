//! IKE SAs. IKE_SA_INIT and IKE_AUTH are states, each of which consumes the previous one. Each
//! exchange after them has a separate module.
//!
//! ```text
//! InitiatorInit -> InitiatorAuth -> IkeSa      we begin
//! HalfOpen                       -> IkeSa      the peer begins
//! ```

mod agent_peer;
mod channel;
mod child;
mod child_in_auth;
mod childless;
mod exchange;
pub(crate) mod failure;
mod ike_sa;
mod in_flight;
mod init_transcript;
mod initiation;
mod initiator_auth;
mod initiator_init;
mod internal_address;
mod last_response;
mod lifetime;
mod message_path;
mod missing_children;
mod mobike;
mod nat_detection;
mod negotiated;
mod new_ike_sa;
mod offer_text;
mod outcome;
mod own_requests;
mod partial_message;
mod path;
mod profile;
mod receive_window;
mod refused_first_child;
mod rekey_collision;
mod reports;
mod request_queue;
mod responder;
mod retransmission_timer;
mod signs_of_life;

pub(crate) use channel::Channel;
pub(crate) use exchange::Survivor;
pub(crate) use ike_sa::{CloseReason, IkeSa, Lifecycle, SaStep};
pub(crate) use initiator_auth::{AuthStep, InitiatorAuth};
pub(crate) use initiator_init::{AuthTurn, InitStep, InitiatorInit};
pub(crate) use internal_address::WantedAddresses;
pub(crate) use last_response::LastResponse;
pub use mobike::LocalMove;
pub(crate) use own_requests::QueuedRequest;
pub(crate) use profile::Profile;
pub(crate) use receive_window::HeldDatagram;
pub(crate) use responder::{AuthOutcome, HalfOpen, InitOutcome, InitPolicy, Peers};

#[cfg(test)]
mod tests;
