//! Lets nodes join with the service account token of their pod.
//!
//! - [`check_token`]: checks a token without its signature, before the API server reviews it.
//! - [`ReviewLimits`]: limits how many reviews run at the same time.
//! - [`Reviewer`]: has the API server review a token; [`ReviewError`]: the reason why a token is
//!   refused.
//! - [`JoinAccounts`]: the service accounts for each role; [`RoleSelectors`]: the Nodes that may
//!   have each role.

mod accounts;
mod error;
mod limits;
mod review;
mod role_selectors;
mod token;

pub use accounts::{JoinAccounts, ServiceAccount};
pub use error::ReviewError;
pub use limits::{ReviewLimits, ReviewPermit};
pub use review::Reviewer;
pub use role_selectors::RoleSelectors;
pub use token::check as check_token;
