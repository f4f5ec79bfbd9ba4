//! What the responder can do with a request.

use crate::oracle::octets::{Message, PROTOCOL_IKE, exchange, payload};

/// What a request of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Init,
    Auth,
    /// A CHILD_SA for this configured child. `rekey` states whether it replaces another one.
    Child {
        child: usize,
        rekey: bool,
    },
    IkeRekey,
    ChildDeletion,
    IkeDeletion,
    /// A liveness check, or a notification.
    Informational,
}

impl Asked {
    pub fn of(request: &Message) -> Self {
        match request.header.exchange {
            exchange::IKE_SA_INIT => Self::Init,
            exchange::IKE_AUTH => Self::Auth,
            exchange::CREATE_CHILD_SA => match request.proposals().first() {
                Some(offer) if offer.protocol == PROTOCOL_IKE => Self::IkeRekey,
                _ => Self::Child { child: child(request), rekey: request.rekeys().is_some() },
            },
            _ if request.deletes_ike_sa() => Self::IkeDeletion,
            _ if !request.deletes().is_empty() => Self::ChildDeletion,
            _ => Self::Informational,
        }
    }
}

/// Returns the number of the child in [`crate::peers::with_children`].
fn child(request: &Message) -> usize {
    let selectors = request.selectors(payload::TS_INITIATOR);
    let second = |address| match address {
        std::net::IpAddr::V4(address) => usize::from(address.octets()[1]),
        std::net::IpAddr::V6(_) => 0,
    };
    selectors.first().map_or(0, |selector| second(selector.addresses.0))
}

/// A request of the responder's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    Liveness,
    /// About its newest CHILD_SA.
    ChildDeletion,
    /// About its newest CHILD_SA.
    ChildRekey,
    IkeDeletion,
    IkeRekey,
}

/// What the responder does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It agrees.
    Agree,
    /// It never receives the request.
    Silence,
    /// It agrees, but the first transmission of its response is lost.
    Loss,
    /// Nothing but this error. In IKE_AUTH there is no AUTH.
    Error(u16),
    /// INVALID_KE_PAYLOAD for this method.
    OtherGroup(u16),
    /// Nothing but a new cookie.
    Cookie,
    /// Nothing but REDIRECT (RFC 5685) to another address.
    Redirect,
    /// IKE_AUTH with AUTH, and this error instead of the CHILD_SA.
    RefusedChild(u16),
    /// It agrees, and adds this error.
    ErrorBeside(u16),
    /// IKE_AUTH with an AUTH that is wrong.
    WrongAuth,
    /// It agrees, and adds an unknown critical payload.
    Critical,
    /// It agrees, and adds unknown notifications, payloads and a vendor ID.
    Unknown,
    /// It agrees to another cipher than we offered.
    OtherCipher,
    /// It agrees to half of each side's first selector.
    Narrowed,
    /// It agrees to more than we asked for.
    Widened,
    /// It agrees without a nonce.
    NoNonce,
    /// It agrees, and sends a request right after its response.
    Then(Own),
    /// It agrees, and sends a request right before its response.
    Before(Own),
}
