//! The time for which the certificates of nodes are accepted after their end.

use std::sync::Arc;

use edge_controller_domain::clock::Seconds;

/// Returns the configured time. A function, because the configuration can be read again.
pub type CertificateGrace = Arc<dyn Fn() -> Seconds + Send + Sync>;

/// Accepts no certificate after its end.
pub(crate) fn no_grace() -> CertificateGrace {
    Arc::new(|| 0)
}
