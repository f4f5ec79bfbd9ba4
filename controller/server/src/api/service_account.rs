//! Checks the service account tokens with which nodes join.

use std::sync::Arc;

use edge_controller_domain::clock::Seconds;
use edge_controller_kubernetes::client::REQUEST;
use edge_controller_kubernetes::service_account::{ReviewError, ReviewLimits, Reviewer, check_token};
use edge_types::{NodeName, Role};

use super::caller::Caller;
use super::error::ApiError;
use super::state::from_substates;

/// The parts of the server that have service account tokens reviewed by the API server.
#[derive(Clone)]
pub(super) struct AccountReviews {
    reviewer: Option<Reviewer>,
    limits: Arc<ReviewLimits>,
}

from_substates!(AccountReviews { reviewer, limits });

impl AccountReviews {
    /// Refuses texts that cannot be a valid token, without a request to the API server.
    pub(super) fn check(&self, token: &str, now: Seconds) -> Result<(), ApiError> {
        self.reviewer()?;
        check_token(token, now).map_err(ApiError::ServiceAccount)
    }

    fn reviewer(&self) -> Result<&Reviewer, ApiError> {
        self.reviewer.as_ref().ok_or_else(|| {
            ApiError::ServiceAccount(
                "this controller takes none: [kubernetes.join] of its configuration names no service account".into(),
            )
        })
    }

    /// Requests a review by the API server. Returns the role with which the holder of this token
    /// may join as `node`.
    pub(super) async fn review(&self, token: &str, node: &NodeName, caller: &Caller) -> Result<Role, ApiError> {
        let permit = self.limits.acquire(caller.address).await;
        let _permit = permit.ok_or_else(|| ApiError::TokenReview("too many tokens wait for it; try again".into()))?;
        let review = tokio::time::timeout(REQUEST, self.reviewer()?.review(token, node)).await;
        let late = || ReviewError::Failed(format!("no response in {} s", REQUEST.as_secs()));
        Ok(review.unwrap_or_else(|_| Err(late()))?)
    }
}
