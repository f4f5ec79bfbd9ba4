//! Joins with the service account token of the node's pod.
//!
//! - [`check_token`]: checks a token without its signature, before the API server is asked.
//! - [`ReviewLimits`]: how many reviews may run at once.
//! - [`Reviewer`]: has the API server review a token; [`ReviewError`]: why it is not accepted.
//! - [`JoinAccounts`]: the service account of each role; [`RoleSelectors`]: which role a Node may
//!   have.

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
