//! Pre-shared keys, in the configuration file itself or in separate files.

use std::fmt;

use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER_PERMISSIVE};
use edge_ike::Secret;
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// Text that `Debug` and errors never show.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Secret);

impl SecretText {
    /// Returns the pre-shared key that the text encodes, as [`psk`] reads it.
    pub(super) fn psk(&self) -> Result<Secret, String> {
        psk(self.0.expose())
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Returns the pre-shared key in the content of a `psk_file`, which must be a single line. The line
/// end (LF or CRLF) is not part of the key.
pub(super) fn psk_of_file(content: &[u8]) -> Result<Secret, String> {
    let text = content.strip_suffix(b"\n").unwrap_or(content);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    // A binary key may contain an octet that looks like a line end.
    let is_text =
        std::str::from_utf8(text).is_ok_and(|text| !text.contains(|c: char| c.is_control() && c != '\n' && c != '\r'));
    if is_text && text.contains(&b'\n') {
        return Err("the file has several lines; it must hold the key alone, without name, quotes or comments".into());
    }
    psk(text)
}

/// Decodes a key in the forms of strongSwan and libreswan: `0x` followed by hexadecimal digits,
/// `0s` by base64, `0t` by text; without a prefix, the text itself.
fn psk(text: &[u8]) -> Result<Secret, String> {
    let malformed = |prefix: &str, form: &str| {
        format!("the key begins with {prefix}, but is not {form}; if it is text that begins so, write 0t before it")
    };
    let octets = if let Some(digits) = text.strip_prefix(b"0x") {
        HEXLOWER_PERMISSIVE.decode(digits).map_err(|_| malformed("0x", "an even number of hexadecimal digits"))?
    } else if let Some(digits) = text.strip_prefix(b"0s") {
        let decoded = BASE64.decode(digits).or_else(|_| BASE64_NOPAD.decode(digits));
        decoded.map_err(|_| malformed("0s", "base64"))?
    } else {
        text.strip_prefix(b"0t").unwrap_or(text).to_vec()
    };
    if octets.is_empty() {
        return Err("the key is empty".into());
    }
    Ok(Secret::new(octets))
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        // serde's default errors quote the value; the errors of this visitor do not.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn octets(file: &[u8]) -> Vec<u8> {
        psk_of_file(file).unwrap().expose().to_vec()
    }

    #[test]
    fn keys_are_read_as_strongswan_and_libreswan_read_them() {
        assert_eq!(octets(b"correct horse\n"), b"correct horse");
        assert_eq!(octets(b"correct horse\r\n"), b"correct horse");
        assert_eq!(octets(b" correct horse "), b" correct horse ");
        assert_eq!(octets(b"0x00Ff7a\n"), [0, 0xff, 0x7a]);
        assert_eq!(octets(b"0sAP96\n"), [0, 0xff, 0x7a]);
        assert_eq!(octets(b"0sAP8=\r\n"), [0, 0xff]);
        assert_eq!(octets(b"0sAP8"), [0, 0xff]);
        assert_eq!(octets(b"0t0x00ff"), b"0x00ff");
        assert_eq!(octets(b"\xff\n\x00"), b"\xff\n\x00");
    }

    #[test]
    fn a_key_that_is_none_is_refused_and_not_shown() {
        for (file, why) in [
            (&b""[..], "empty"),
            (b"\n", "empty"),
            (b"0x\n", "empty"),
            (b"0x123horse", "hexadecimal"),
            (b"0x123", "even number"),
            (b"0shorse!", "base64"),
            (b"0s ", "base64"),
            (b": PSK \"horse\"\nmoon : PSK 0sAP96\n", "several lines"),
        ] {
            let problem = psk_of_file(file).unwrap_err();
            assert!(problem.contains(why) && !problem.contains("horse"), "{problem}");
        }
    }
}
