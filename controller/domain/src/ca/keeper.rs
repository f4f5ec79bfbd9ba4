//! Where the authorities' document outlives the process, and where replicas of the controller agree
//! about it.

use std::future::Future;
use std::pin::Pin;

use super::{CaDocument, CaError};

/// What the methods of [`Keeper`] give: boxed, so that the keeper can be chosen when the program
/// starts.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Which state of the document it is, in the keeper's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(pub String);

/// Keeps one document.
pub trait Keeper: Send + Sync {
    /// What is kept; `None` where nothing is yet.
    fn load(&self) -> Answer<'_, Result<Option<(CaDocument, Revision)>, CaError>>;

    /// Replaces what is kept as a whole, durably, if it is still of revision `over` (`None`: if
    /// nothing is kept yet); [`CaError::Conflict`] if it is not: another was quicker, and nothing
    /// was changed.
    fn store<'a>(
        &'a self,
        document: &'a CaDocument,
        over: Option<&'a Revision>,
    ) -> Answer<'a, Result<Revision, CaError>>;

    /// Comes back when another may have changed it. For a keeper with one user that is never.
    fn changed(&self) -> Answer<'_, ()> {
        Box::pin(std::future::pending())
    }
}
