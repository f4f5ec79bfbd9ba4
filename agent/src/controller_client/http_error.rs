//! Returns the [`ControllerError`] for failures of connections: of TCP, TLS and HTTP.

use std::io;

use edge_types::error::with_causes;
use hyper::Uri;
use rustls::{AlertDescription, CertificateError};
use tracing::warn;

use super::error::ControllerError;
use super::tls::CertificateRejected;

/// Returns the error for a broken connection, with the TLS error if TLS is the cause.
pub(super) fn io_error(url: &Uri, error: &io::Error) -> ControllerError {
    tls_error(url, error)
        .unwrap_or_else(|| ControllerError::Unreachable { url: url.to_string(), why: error.to_string() })
}

/// Returns whether the TLS handshake failed because the server speaks none of the offered protocols
/// (ALPN, RFC 7301).
pub(super) fn is_other_protocol(error: &io::Error) -> bool {
    matches!(tls_cause(error), Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)))
}

/// Returns the error for a broken connection or stream, with the TLS error if TLS is the cause.
pub(super) fn hyper_error(url: &Uri, error: &hyper::Error) -> ControllerError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref::<io::Error>().and_then(|io| tls_error(url, io)) {
            return found;
        }
        source = cause.source();
    }
    ControllerError::Unreachable { url: url.to_string(), why: with_causes(error) }
}

/// Returns the error for a failed TLS handshake; `None` if TLS is not the cause.
pub(super) fn tls_error(url: &Uri, error: &io::Error) -> Option<ControllerError> {
    let tls = tls_cause(error)?;
    let url = url.to_string();
    Some(match tls {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            let why = other
                .0
                .downcast_ref::<CertificateRejected>()
                .map_or_else(|| other.to_string(), CertificateRejected::to_string);
            ControllerError::Untrusted { url, why }
        }
        rustls::Error::InvalidCertificate(error) => ControllerError::Untrusted { url, why: error.to_string() },
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired),
        ) => ControllerError::CertificateRefused { url, alert: *alert },
        other => {
            warn!(%url, error = %other, "TLS with the controller failed");
            ControllerError::Unreachable { url, why: format!("TLS: {other}") }
        }
    })
}

/// Returns the rustls error inside nested I/O errors.
fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref::<rustls::Error>().or_else(|| tls_cause(inner.downcast_ref::<io::Error>()?))
}
