//! Counts what IKE does, for metrics.

use std::collections::BTreeMap;

use edge_ike::event::PeerErrorKind;
use edge_ike::{Event, SentRequests};

use crate::status::IkeCounters;

/// Counts of the endpoint's events since the agent started.
#[derive(Debug, Default)]
pub(super) struct IkeCounts {
    child_rekeys: u64,
    ike_rekeys: u64,
    /// At most one entry for each kind.
    failures: BTreeMap<&'static str, u64>,
}

impl IkeCounts {
    /// Counts an event.
    pub(super) fn count(&mut self, event: &Event) {
        let counter = match event {
            Event::ChildRekeyed { .. } => &mut self.child_rekeys,
            Event::IkeReplaced { .. } => &mut self.ike_rekeys,
            Event::PeerFailed { error, .. } | Event::Refused { error, .. } => {
                self.failures.entry(name(error.kind)).or_default()
            }
            _ => return,
        };
        *counter = counter.saturating_add(1);
    }

    /// Returns the counts, with those of the endpoint.
    pub(super) fn with(&self, sent: SentRequests) -> IkeCounters {
        IkeCounters {
            child_rekeys: self.child_rekeys,
            ike_rekeys: self.ike_rekeys,
            retransmissions: sent.retransmissions,
            liveness_checks: sent.liveness_checks,
            failures: self.failures.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        }
    }
}

/// Returns the name of a kind of failure as the value of a label.
fn name(kind: PeerErrorKind) -> &'static str {
    match kind {
        PeerErrorKind::Timeout => "timeout",
        PeerErrorKind::NoProposalChosen => "no_proposal_chosen",
        PeerErrorKind::RefusedByPeer => "refused_by_peer",
        PeerErrorKind::AuthenticationFailed => "authentication_failed",
        PeerErrorKind::UntrustedCertificate => "untrusted_certificate",
        PeerErrorKind::WrongIdentity => "wrong_identity",
        PeerErrorKind::UnknownIdentity => "unknown_identity",
        PeerErrorKind::TrafficSelectors => "traffic_selectors",
        PeerErrorKind::TransportMode => "transport_mode",
        PeerErrorKind::Protocol => "protocol",
        PeerErrorKind::Local => "local",
        PeerErrorKind::Expired => "expired",
        PeerErrorKind::TooManyChildren => "too_many_children",
        PeerErrorKind::TooManyRequests => "too_many_requests",
        PeerErrorKind::InternalAddress => "internal_address",
        PeerErrorKind::Notified => "notified",
    }
}
