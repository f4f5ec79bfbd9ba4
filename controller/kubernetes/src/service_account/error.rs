//! Why a join with a service account token is refused.

/// Why a service account token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server refuses the token, or what it says of the token does not fit.
    #[error("{0}")]
    Refused(String),
    /// The API server could not be asked.
    #[error("{0}")]
    Failed(String),
}
