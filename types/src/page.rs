//! Sessions on the operator's page, which the controller serves on a separate listener.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Response to `POST /v1/page-sessions`, for the operator. The credential is shown only here.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageSession {
    /// The page's URL for each address on which it is served, without the credential.
    pub urls: Vec<String>,
    /// The credential for signing in to the page, with read access only.
    pub credential: String,
    /// End of the session, seconds since 1970-01-01 UTC.
    pub expires_at: i64,
}

impl fmt::Debug for PageSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { urls, credential: _, expires_at } = self;
        let mut shown = f.debug_struct("PageSession");
        shown.field("urls", urls).field("credential", &"<secret>").field("expires_at", expires_at).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_not_printed() {
        let session = PageSession { urls: vec![], credential: "s3cret".into(), expires_at: 1 };
        assert!(!format!("{session:?}").contains("s3cret"));
    }
}
