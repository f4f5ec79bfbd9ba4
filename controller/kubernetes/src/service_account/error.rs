//! The reasons why a join with a service account token is refused.

/// The reason why a service account token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server refuses the token, or its review does not match the request.
    #[error("{0}")]
    Refused(String),
    /// The API server could not be reached.
    #[error("{0}")]
    Failed(String),
}
