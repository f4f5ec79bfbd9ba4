//! Durable storage for the document with the certificate authorities. Controller replicas agree on
//! their authorities through it.

use futures_util::future::BoxFuture;

use super::document::CaDocument;
use super::error::CaError;

/// The version of the stored document, in the storage's own format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(pub String);

/// A storage for the document with all authorities: a file, or a Secret that replicas share.
pub trait CaStorage: Send + Sync {
    /// Reads the document; `None` if none is stored yet.
    fn load(&self) -> BoxFuture<'_, Result<Option<(CaDocument, Revision)>, CaError>>;

    /// Replaces the stored document durably if its revision is still `over`, or, if `over` is
    /// `None`, if no document is stored yet. Otherwise returns [`CaError::Conflict`] and changes
    /// nothing.
    fn store<'a>(
        &'a self,
        document: &'a CaDocument,
        over: Option<&'a Revision>,
    ) -> BoxFuture<'a, Result<Revision, CaError>>;

    /// Returns when another replica may have changed the document. For a storage with one user, the
    /// call never returns.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}
