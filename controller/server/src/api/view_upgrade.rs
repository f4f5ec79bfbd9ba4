//! Hands a view stream over from the request that asks for it to the connection. The connection
//! then leaves HTTP and sends the stream in frames ([`edge_types::view_frames`]), because the
//! buffers of an HTTP connection take more memory than everything else that a connected node needs.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use edge_types::NodeName;
use edge_types::view_frames::PROTOCOL;

use super::line_slot::LineReceiver;

/// Where a request puts its stream. The connection adds it to the extensions of a request that asks
/// for the upgrade, if the connection can be upgraded.
#[derive(Clone, Default)]
pub(crate) struct ViewUpgrade(Arc<Mutex<Option<UpgradedView>>>);

/// A view stream for a connection that leaves HTTP.
pub(crate) struct UpgradedView {
    /// The node that reads its view.
    pub(crate) node: NodeName,
    /// The lines of the stream.
    pub(crate) lines: LineReceiver,
    /// Makes the lines, until the stream ends. The connection must run it.
    pub(crate) work: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl ViewUpgrade {
    /// Hands over a stream. Returns the response after which the connection leaves HTTP.
    pub(super) fn hand_over(&self, view: UpgradedView) -> Response {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(view);
        let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
        (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
    }

    /// Returns the stream, if one was handed over.
    pub(crate) fn take(&self) -> Option<UpgradedView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Returns whether the headers of a request ask for the upgrade (RFC 9110 section 7.8).
pub(crate) fn is_asked_for(headers: &HeaderMap) -> bool {
    let lists = |name, word: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|listed| listed.trim().eq_ignore_ascii_case(word))
    };
    lists(header::CONNECTION, "upgrade") && lists(header::UPGRADE, PROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_headers_ask_for_the_upgrade_and_one_of_them_does_not() {
        let asked = |pairs: &[(header::HeaderName, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            is_asked_for(&pairs.collect())
        };
        let (connection, upgrade) = (header::CONNECTION, header::UPGRADE);
        assert!(asked(&[(connection.clone(), "keep-alive, Upgrade"), (upgrade.clone(), "h2c, edge-view")]));
        assert!(!asked(&[(upgrade.clone(), "edge-view")]));
        assert!(!asked(&[(connection.clone(), "upgrade")]));
        assert!(!asked(&[(connection, "upgrade"), (upgrade, "websocket, edge-views")]));
    }
}
