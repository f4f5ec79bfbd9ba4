//! The join token, which an operator copies from the controller to a new node.
//!
//! Its text is `ecni1.` and the base64url (RFC 4648 section 5, no padding) of a JSON object:
//!
//! ```json
//! {"ca":"<base64url of 32 octets>","role":"edge","node":"edge-1","id":"<base64url>",
//!  "secret":"<base64url>"}
//! ```
//!
//! - `ca`: SHA-256 of the DER SubjectPublicKeyInfo of the controller's CA. The controller sends the
//!   certificates of all trusted CAs last in its TLS chain. A joining node searches the chain for
//!   the certificate whose key has this hash and uses it as its only trust anchor. It then verifies
//!   the controller's certificate: the name in the controller's URL, extended key usage
//!   id-kp-serverAuth, and URI [`crate::pki::CONTROLLER_URI`]. Without such a chain the node does
//!   not join and does not send the token's secret.
//! - `role`, and `node` if the token is bound to one name, inform the node. The controller keeps
//!   its own record.
//! - `id` and `secret` are sent as the [`JoinToken::credential`] in
//!   [`crate::api::JoinRequest::token`], after the TLS handshake.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::name::NodeName;
use crate::view::Role;

/// The beginning of every token. The digit is the version of the layout.
pub const PREFIX: &str = "ecni1.";

/// Maximum size of a token that is accepted, bytes.
const MAX_LENGTH: usize = 2048;

/// A join token. `Debug` does not show the secret, and it is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the DER SubjectPublicKeyInfo of the controller's CA.
    pub ca_hash: [u8; 32],
    /// The role of a node that joins with the token.
    pub role: Role,
    /// The only name that may join with the token, if it is bound to one.
    pub node: Option<NodeName>,
    /// Identifies the token in the operator's lists. It is not secret.
    pub id: String,
    /// Proves that a node has the token.
    pub secret: Zeroizing<String>,
}

/// The reason why a text is not a join token. No variant holds any part of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    /// The text does not begin with [`PREFIX`].
    #[error("a join token begins with \"{PREFIX}\"; copy it whole from `edge-controller token create`")]
    Prefix,
    /// The text after the prefix cannot be decoded.
    #[error("the join token is damaged or cut short ({0}); copy it whole from `edge-controller token create`")]
    Malformed(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Body {
    ca: String,
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
    id: String,
    secret: String,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl JoinToken {
    /// Encodes the token as text.
    pub fn encode(&self) -> Zeroizing<String> {
        let body = Body {
            ca: URL_SAFE_NO_PAD.encode(self.ca_hash),
            role: self.role,
            node: self.node.clone(),
            id: self.id.clone(),
            secret: self.secret.to_string(),
        };
        // Serialising a struct of strings cannot fail.
        let json = Zeroizing::new(serde_json::to_vec(&body).unwrap_or_default());
        let mut text = Zeroizing::new(PREFIX.to_owned());
        URL_SAFE_NO_PAD.encode_string(&*json, &mut text);
        text
    }

    /// Returns the value of [`crate::api::JoinRequest::token`]: `id.secret`.
    pub fn credential(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}.{}", self.id, *self.secret))
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    /// Parses a token. Leading and trailing white space, such as a file's last newline, is ignored.
    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(ParseTokenError::Prefix)?;
        if body.len() > MAX_LENGTH {
            return Err(ParseTokenError::Malformed("it is too long"));
        }
        let json =
            Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| ParseTokenError::Malformed("not base64url"))?);
        let mut body: Body =
            serde_json::from_slice(&json).map_err(|_| ParseTokenError::Malformed("unexpected content"))?;
        let ca_hash = URL_SAFE_NO_PAD
            .decode(&body.ca)
            .ok()
            .and_then(|hash| hash.try_into().ok())
            .ok_or(ParseTokenError::Malformed("the hash of the CA is not 32 octets"))?;
        if body.id.is_empty() || body.id.contains('.') || body.secret.is_empty() {
            return Err(ParseTokenError::Malformed("id or secret is missing"));
        }
        Ok(Self {
            ca_hash,
            role: body.role,
            node: body.node.take(),
            id: std::mem::take(&mut body.id),
            secret: Zeroizing::new(std::mem::take(&mut body.secret)),
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("role", &self.role)
            .field("node", &self.node)
            .field("secret", &"<secret>")
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            ca_hash: [7; 32],
            role: Role::Hub,
            node: Some("cloud-1".parse().unwrap()),
            id: "AbC-_9".into(),
            secret: Zeroizing::new("hush-hush".into()),
        }
    }

    #[test]
    fn a_token_survives_its_text_and_a_trailing_newline() {
        let text = format!("{}\n", *token().encode());
        assert!(text.starts_with(PREFIX));
        assert_eq!(text.parse::<JoinToken>().unwrap(), token());
        assert_eq!(*token().credential(), "AbC-_9.hush-hush");
    }

    #[test]
    fn debug_output_and_errors_hold_no_secret() {
        assert!(!format!("{:?}", token()).contains("hush"));
        let text = token().encode();
        let error = text[..text.len() - 3].parse::<JoinToken>().unwrap_err();
        assert!(matches!(error, ParseTokenError::Malformed(_)), "{error}");
        assert!(!text.contains(&error.to_string()));
    }

    #[test]
    fn other_texts_are_not_tokens() {
        assert_eq!("".parse::<JoinToken>(), Err(ParseTokenError::Prefix));
        assert_eq!("ecni2.e30".parse::<JoinToken>(), Err(ParseTokenError::Prefix));
        assert!(matches!("ecni1.e30".parse::<JoinToken>(), Err(ParseTokenError::Malformed(_))));
        assert!(matches!("ecni1.ä".parse::<JoinToken>(), Err(ParseTokenError::Malformed(_))));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = text.parse::<JoinToken>();
            let _ = format!("{PREFIX}{text}").parse::<JoinToken>();
        }
    }
}
