//! Where the authorities' document outlives the process, and where replicas of the controller agree
//! about it.

use futures_util::future::BoxFuture;

use super::{CaDocument, CaError};

/// Which state of the document it is, in the keeper's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(pub String);

/// Keeps one document.
pub trait Keeper: Send + Sync {
    /// What is kept; `None` where nothing is yet.
    fn load(&self) -> BoxFuture<'_, Result<Option<(CaDocument, Revision)>, CaError>>;

    /// Replaces what is kept as a whole, durably, if it is still of revision `over` (`None`: if
    /// nothing is kept yet); [`CaError::Conflict`] if it is not: another was quicker, and nothing
    /// was changed.
    fn store<'a>(
        &'a self,
        document: &'a CaDocument,
        over: Option<&'a Revision>,
    ) -> BoxFuture<'a, Result<Revision, CaError>>;

    /// Comes back when another may have changed it. For a keeper with one user that is never.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}
