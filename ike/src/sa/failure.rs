//! Error texts for the operator: the exchange, what was expected, what was received, and what to
//! do.

use std::time::Duration;

use super::offer_text::list;
use super::path::Path;
use crate::auth::AuthError;
use crate::config::{ChildConfig, EspProposal, IkeProposal, NextLayer, PeerConfig};
use crate::create_child_rate::{INTERVAL, MAX_BURST};
use crate::event::{PeerError, PeerErrorKind};
use crate::negotiate::{ChildOffer, Disagreement, ModeObstacle};
use crate::purpose::{ChildName, Purpose};
use crate::wire::{InvalidMessage, Notify, NotifyType, Proposal, TrafficSelector};

pub(crate) const IKE_SA_INIT: &str = "IKE_SA_INIT";
pub(crate) const IKE_AUTH: &str = "IKE_AUTH";
pub(crate) const CREATE_CHILD_SA: &str = "CREATE_CHILD_SA";
pub(crate) const INFORMATIONAL: &str = "INFORMATIONAL";

/// Returns the error for a peer's error notification. `child` is the child that was requested, if
/// the notification is about one.
pub(crate) fn notified(
    exchange: &'static str,
    notify: NotifyType,
    peer: &PeerConfig,
    child: Option<&ChildConfig>,
) -> PeerError {
    let (kind, detail) = match notify {
        NotifyType::NoProposalChosen if exchange == IKE_SA_INIT => {
            (PeerErrorKind::NoProposalChosen, format!("the peer accepts none of our IKE proposals ({}), or it has no connection for the address from which we come; compare both with the peer's configuration", ike_texts(&peer.ike_proposals)))
        }
        NotifyType::NoProposalChosen => {
            (PeerErrorKind::NoProposalChosen, format!("the peer accepts none of our proposals (ESP: {}); compare them with the peer's", all_esp_texts(peer, child)))
        }
        NotifyType::AuthenticationFailed => (
            PeerErrorKind::RefusedByPeer,
            format!(
                "the peer does not accept that we are {}; compare the pre-shared key or certificates and the identities on both sides; the peer's log says more",
                peer.local_id
            ),
        ),
        NotifyType::TsUnacceptable | NotifyType::SinglePairRequired | NotifyType::InvalidSelectors => {
            (PeerErrorKind::TrafficSelectors, format!("the peer answered {notify}; {}", selectors(peer, child)))
        }
        NotifyType::InvalidKePayload => (
            PeerErrorKind::NoProposalChosen,
            "the peer asks repeatedly for another key exchange method, or for one that is not configured here; compare the groups".to_owned(),
        ),
        NotifyType::InvalidSyntax | NotifyType::UnsupportedCriticalPayload | NotifyType::InvalidMajorVersion => {
            (PeerErrorKind::Protocol, format!("the peer answered {notify}: it could not read what we sent; check that it is an IKEv2 daemon"))
        }
        other => (PeerErrorKind::Notified, format!("the peer answered {other}; its log says why")),
    };
    PeerError::new(exchange, kind, detail)
}

/// Returns the error for a peer that did not respond.
pub(crate) fn silence(exchange: &'static str, remote: std::net::SocketAddr, transmissions: u32) -> PeerError {
    let what = if exchange == IKE_AUTH {
        "it answered IKE_SA_INIT, so either its UDP port 4500 or large datagrams do not get through, or it dropped our request silently"
    } else {
        "check that it is up and that firewalls on the way pass UDP 500 and 4500"
    };
    PeerError::new(
        exchange,
        PeerErrorKind::Timeout,
        format!("{remote} did not answer any of {transmissions} transmissions: {what}"),
    )
}

/// Returns the error if the peer accepts none of the cookies that it has sent.
pub(crate) fn too_many_cookies() -> PeerError {
    let detail = "the peer asks for another cookie each time that it gets one back, so it may see each request come from another address; \
                  compare the NATs on the way, and look into its log";
    PeerError::new(IKE_SA_INIT, PeerErrorKind::Protocol, detail.to_owned())
}

/// Returns the error if none of the peer's IKE proposals, `theirs`, is acceptable.
pub(crate) fn no_ike_proposal(ours: &[IkeProposal], theirs: &[Proposal]) -> PeerError {
    let detail = match ours {
        [] => "an initiator connects, but no peer is configured here".to_owned(),
        ours => format!(
            "none of the peer's IKE proposals is acceptable; it offers: {}; configured here: {}",
            list(theirs),
            ike_texts(ours)
        ),
    };
    PeerError::new(IKE_SA_INIT, PeerErrorKind::NoProposalChosen, detail)
}

/// Returns the error if none of the peer's ESP proposals, `theirs`, is acceptable for this child,
/// or for any child.
pub(crate) fn no_esp_proposal(
    exchange: &'static str,
    peer: &PeerConfig,
    child: Option<&ChildConfig>,
    theirs: &[Proposal],
) -> PeerError {
    let detail = format!(
        "none of the peer's ESP proposals is acceptable; it offers: {}; configured here: {} (compare ciphers, groups and sequence numbers)",
        list(theirs),
        all_esp_texts(peer, child)
    );
    PeerError::new(exchange, PeerErrorKind::NoProposalChosen, detail)
}

/// Returns the error if the peer's selectors have nothing in common with those of this child, or of
/// any child, or if its response exceeds our request. `local` and `remote` are the peer's selectors
/// of our side and of its side.
pub(crate) fn no_selectors(
    exchange: &'static str,
    peer: &PeerConfig,
    child: Option<&ChildConfig>,
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> PeerError {
    let detail = format!(
        "the peer's traffic selectors do not fit; it offers: for our side {}, for its side {}; {}",
        list(local),
        list(remote),
        selectors(peer, child)
    );
    PeerError::new(exchange, PeerErrorKind::TrafficSelectors, detail)
}

/// Returns the error if no configured child matches the peer's request, and the notification for
/// the response.
pub(crate) fn disagreement(
    exchange: &'static str,
    found: &Disagreement,
    peer: &PeerConfig,
    offer: &ChildOffer<'_>,
) -> (PeerError, Notify) {
    match found {
        Disagreement::Proposals(child) => {
            let named = child.as_ref().and_then(|child| peer.child_named(child));
            let error = no_esp_proposal(exchange, peer, named, offer.proposals);
            let error = match child {
                Some(child) => of_child(error, &Purpose::whole(child), peer),
                None => error,
            };
            (error, Notify::new(NotifyType::NoProposalChosen))
        }
        //= RFC 7296 2.9 REQUIRED 4: TS_UNACCEPTABLE
        Disagreement::Selectors => {
            (no_selectors(exchange, peer, None, offer.local, offer.remote), Notify::new(NotifyType::TsUnacceptable))
        }
        Disagreement::Mode(child, obstacle) => {
            (mode(exchange, child, *obstacle), Notify::new(NotifyType::NoProposalChosen))
        }
    }
}

/// Returns the error if the mode of a child is not possible.
pub(crate) fn mode(exchange: &'static str, child: &ChildName, obstacle: ModeObstacle) -> PeerError {
    let why = match obstacle {
        ModeObstacle::Addresses => {
            "it is in transport mode, which is for the two addresses between which IKE runs, and other ones are configured for it; name those (of a peer behind a NAT that of the NAT, of this node its own), or configure tunnel mode at both ends"
        }
        ModeObstacle::TunnelAsked => {
            "it is in transport mode, and the peer asks for tunnel mode; configure the same at both ends"
        }
        ModeObstacle::Declined => {
            "it is in transport mode, and the peer made it in tunnel mode, so it was deleted; configure the same at both ends"
        }
        ModeObstacle::NotAsked => "it is in tunnel mode, and the peer answered with transport mode, so it was deleted",
    };
    PeerError::new(exchange, PeerErrorKind::TransportMode, format!("child {child}: {why}"))
}

/// Returns the error if our check of the peer's authentication failed, or if we cannot
/// authenticate.
pub(crate) fn auth(error: &AuthError) -> PeerError {
    PeerError::new(IKE_AUTH, error.kind(), error.to_string())
}

/// Returns the error for a message from the peer that violates the protocol.
pub(crate) fn invalid(exchange: &'static str, error: InvalidMessage) -> PeerError {
    let detail = match error {
        InvalidMessage::MajorVersion(_) => format!("{error}; configure the peer for IKEv2"),
        error => format!("the peer's message is malformed: {error}"),
    };
    PeerError::new(exchange, PeerErrorKind::Protocol, detail)
}

/// Returns the error if the peer refuses our address update (RFC 4555 3.5, 3.9).
pub(crate) fn update_refused(notify: NotifyType, path: &Path) -> PeerError {
    let (local, remote) = (path.local, path.remote);
    let detail = match notify {
        NotifyType::UnacceptableAddresses => format!(
            "the peer accepts no tunnel between {local} and {remote}; allow these addresses at the peer, or set mobike = false for it on both sides"
        ),
        NotifyType::UnexpectedNatDetected => format!(
            "there is a NAT between {local} and {remote}, and the peer does not support NAT traversal; enable it at the peer"
        ),
        other => format!("the peer answered {other} to our new addresses ({local} to {remote}); its log says why"),
    };
    PeerError::new(INFORMATIONAL, PeerErrorKind::Notified, detail)
}

/// Returns the error if the peer forbids NATs, but its request came through one (RFC 4555 3.9).
pub(crate) fn unexpected_nat(path: &Path) -> PeerError {
    let detail = format!(
        "the peer forbids NATs (NO_NATS_ALLOWED), but its request came from {} to {} with other addresses inside; enable NAT traversal at the peer",
        path.remote, path.local
    );
    PeerError::new(INFORMATIONAL, PeerErrorKind::Protocol, detail)
}

/// Returns the error if COOKIE2 was returned changed, or not at all (RFC 4555 3.7).
pub(crate) fn wrong_cookie2() -> PeerError {
    let detail = "the peer did not return our COOKIE2 as it is, so it may not receive at the address that it claims; if its MOBIKE is broken, set mobike = false";
    PeerError::new(INFORMATIONAL, PeerErrorKind::Protocol, detail.to_owned())
}

/// Returns the error if the kernel did not reserve an SPI.
pub(crate) fn no_spi(exchange: &'static str) -> PeerError {
    PeerError::new(
        exchange,
        PeerErrorKind::Local,
        "the kernel reserved no SPI for an inbound SA; see its errors before this one".to_owned(),
    )
}

/// Returns the error if the peer wants a CHILD_SA in IKE_AUTH although it must leave it out. It may
/// request the CHILD_SA afterwards.
pub(crate) fn child_in_auth(peer: &PeerConfig) -> (PeerError, Notify) {
    let detail = format!(
        "{} wants a CHILD_SA in IKE_AUTH, and childless = \"force\" is configured here; configure the same at the peer, or \"allow\" here",
        peer.remote_id
    );
    let error = PeerError::new(IKE_AUTH, PeerErrorKind::NoProposalChosen, detail);
    (error, Notify::new(NotifyType::NoAdditionalSas))
}

/// Returns the error if the peer does not support IKE_AUTH without a CHILD_SA.
pub(crate) fn no_childless() -> PeerError {
    let detail = "the peer does not support IKE_AUTH without a CHILD_SA (RFC 6023), and childless = \"force\" is configured here; \
                  set childless = \"prefer\", or enable it at the peer";
    PeerError::new(IKE_SA_INIT, PeerErrorKind::Protocol, detail.to_owned())
}

/// Returns the error if the peer refuses a CHILD_SA.
pub(crate) fn child_refused(notify: NotifyType, purpose: &Purpose, peer: &PeerConfig) -> PeerError {
    of_child(notified(CREATE_CHILD_SA, notify, peer, peer.child_named(&purpose.child)), purpose, peer)
}

/// Returns the error if the peer deletes a CHILD_SA right after its creation, several times.
pub(crate) fn child_deleted_soon(purpose: &Purpose, peer: &PeerConfig) -> PeerError {
    let detail = "the peer has deleted the CHILD_SA right after its creation; its log says why";
    of_child(PeerError::new(INFORMATIONAL, PeerErrorKind::Notified, detail.to_owned()), purpose, peer)
}

/// Adds when a child will be tried again that no new IKE SA can create, since IKE_AUTH creates only
/// the first configured child. `in_use` states whether a CHILD_SA of the child is in use.
pub(crate) fn tried_again(mut error: PeerError, in_use: bool, wait: Duration) -> PeerError {
    let what = match in_use {
        true => "the present CHILD_SA is used until its lifetime ends, and its rekey is tried again",
        false => "it is tried again",
    };
    error.detail = format!("{}; {what} every {wait:?}", error.detail);
    error
}

/// Returns the error if the peer deletes an IKE SA this time after its authentication.
pub(crate) fn deleted_soon(age: Duration) -> PeerError {
    let detail = format!("the peer deleted the IKE SA {age:.1?} after the authentication; its log says why");
    PeerError::new(INFORMATIONAL, PeerErrorKind::Notified, detail)
}

/// Returns the error if the peer does not answer a request on an IKE SA that ends this time after
/// its authentication.
pub(crate) fn silent_soon(exchange: &'static str, age: Duration) -> PeerError {
    let detail = format!(
        "the peer did not answer this request, so the IKE SA is given up {age:.1?} after the authentication; the peer may drop the request, and its log may say why"
    );
    PeerError::new(exchange, PeerErrorKind::Timeout, detail)
}

/// Returns the error for a CHILD_SA whose lifetime has ended.
pub(crate) fn not_rekeyed(purpose: &Purpose, peer: &PeerConfig) -> PeerError {
    let detail = "the peer did not let the CHILD_SA be rekeyed within one and a half of its lifetime, so it has ended; earlier errors say why";
    let error = PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Expired, detail.to_owned());
    of_child(error, purpose, peer)
}

/// Names the child, if there are several.
pub(crate) fn of_child(mut error: PeerError, purpose: &Purpose, peer: &PeerConfig) -> PeerError {
    if !peer.additional_children.is_empty() || purpose.part.is_some() {
        error.detail = format!("child {purpose}: {}", error.detail);
    }
    error
}

/// Returns the error if the peer requests more CHILD_SAs than are allowed.
pub(crate) fn too_many_children(purpose: &Purpose, peer: &PeerConfig) -> PeerError {
    let detail = format!(
        "the peer asks for another CHILD_SA ({purpose}) beside {} others, which is the most; let the peer put several subnets into one",
        peer.max_children
    );
    PeerError::new(CREATE_CHILD_SA, PeerErrorKind::TooManyChildren, detail)
}

/// Returns the error for a peer whose requests exceed the rate.
pub(crate) fn too_many_requests() -> PeerError {
    let rate = 1000_u128.checked_div(INTERVAL.as_millis()).unwrap_or_default();
    let detail = format!(
        "the peer has asked for more than {MAX_BURST} rekeys and CHILD_SAs in a row, and gets TEMPORARY_FAILURE for what exceeds {rate} a second; \
         compare its lifetimes with ours, and look into its log for the reason"
    );
    PeerError::new(CREATE_CHILD_SA, PeerErrorKind::TooManyRequests, detail)
}

/// Returns this child, or all of the peer's.
fn concerned<'a>(peer: &'a PeerConfig, child: Option<&'a ChildConfig>) -> Vec<&'a ChildConfig> {
    child.map_or_else(|| peer.children().collect(), |child| vec![child])
}

fn selectors(peer: &PeerConfig, child: Option<&ChildConfig>) -> String {
    let networks =
        |networks: &[ipnetwork::IpNetwork]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let text = |child: &ChildConfig| {
        let NextLayer { protocol, local_port, remote_port } = child.next_layer;
        let port = |port: Option<u16>| port.map_or(String::new(), |port| format!(" port {port}"));
        let protocol = if protocol == 0 { String::new() } else { format!(", protocol {protocol}") };
        let (local, remote) = (networks(&child.local), networks(&child.remote));
        format!("local {local}{}, remote {remote}{}{protocol}", port(local_port), port(remote_port))
    };
    format!(
        "configured here: {}; the peer must have them the other way round",
        concerned(peer, child).into_iter().map(text).collect::<Vec<_>>().join("; ")
    )
}

fn all_esp_texts(peer: &PeerConfig, child: Option<&ChildConfig>) -> String {
    let mut texts: Vec<String> = concerned(peer, child).into_iter().map(|child| esp_texts(&child.proposals)).collect();
    texts.dedup();
    texts.join(", ")
}

fn ike_texts(proposals: &[IkeProposal]) -> String {
    let text = |p: &IkeProposal| format!("{}/{}/{}", join(&p.ciphers), join(&p.prfs), join(&p.groups));
    proposals.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn esp_texts(proposals: &[EspProposal]) -> String {
    let text = |p: &EspProposal| {
        let groups = if p.groups.is_empty() { String::new() } else { format!("/{}", join(&p.groups)) };
        format!("{}{groups}{}", join(&p.ciphers), if p.esn { "/ESN" } else { "" })
    };
    proposals.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("|")
}
