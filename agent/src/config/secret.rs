//! A secret in the configuration file itself.

use std::fmt;

use edge_ike::Secret;
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// Text that `Debug` and errors never show.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Secret);

impl SecretText {
    /// The secret.
    pub fn secret(&self) -> &Secret {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        // serde's default errors quote the value; these do not.
        impl Visitor<'_> for Text {
            type Value = SecretText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<SecretText, E> {
                if text.is_empty() {
                    Err(E::custom("an empty secret"))
                } else {
                    Ok(SecretText(Secret::new(text.into())))
                }
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<SecretText, E> {
                Err(E::custom("a number, expected text in quotes"))
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<SecretText, E> {
                Err(E::custom("a number, expected text in quotes"))
            }
            fn visit_bool<E: Error>(self, _: bool) -> Result<SecretText, E> {
                Err(E::custom("a truth value, expected text in quotes"))
            }
        }
        from.deserialize_str(Text)
    }
}
