//! Formats errors for logs.

use std::error::Error;

/// Returns the error with its causes in one line, separated by `: `. The outermost errors of an
/// HTTP client alone give little information. A cause whose text is already part of the line is not
/// repeated.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn every_cause_is_named_once() {
        let mut error = Link { text: "connection refused", source: None };
        for text in ["connection refused", "connect error", "request failed"] {
            error = Link { text, source: Some(Box::new(error)) };
        }
        assert_eq!(with_causes(&error), "request failed: connect error: connection refused");
    }
}
