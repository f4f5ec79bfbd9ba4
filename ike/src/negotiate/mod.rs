//! Negotiation of algorithms (RFC 7296 2.7), traffic selectors (2.9, 2.23.1) and the mode
//! (1.3.1).

mod child;
mod mode;
mod proposal;
mod selectors;
mod transport_nat;

pub(crate) use child::{Agreed, ChildOffer, Disagreement, agree};
pub(crate) use mode::{Ends, ModeObstacle, check_ends, check_response, mode_of, mode_payload};
pub(crate) use proposal::{ChildKeyExchange, EspSuite, choose_esp, choose_ike, is_one_choice, offer_esp, offer_ike};
pub(crate) use selectors::{Narrowed, Traffic, accept_narrowed};
pub(crate) use transport_nat::substitute;
