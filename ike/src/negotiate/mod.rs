//! Negotiation of algorithms (RFC 7296 2.7) and traffic selectors (2.9).

mod child;
mod proposal;
mod selectors;

pub(crate) use child::{Agreed, Disagreement, agree};
pub(crate) use proposal::{ChildKeyExchange, EspSuite, choose_esp, choose_ike, is_one_choice, offer_esp, offer_ike};
pub(crate) use selectors::{Narrowed, Traffic, accept_narrowed};
