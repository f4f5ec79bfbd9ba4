//! IKE identities (RFC 7296 3.5) as text.

use edge_ike::Identity;

/// Parses an identity: an address (ID_IPV4_ADDR, ID_IPV6_ADDR), `user@domain` (ID_RFC822_ADDR),
/// `keyid:TEXT` (ID_KEY_ID), else a name (ID_FQDN). A leading `@` or `fqdn:` makes it a name in any
/// case.
pub(super) fn parse(text: &str) -> Result<Identity, String> {
    if let Ok(address) = text.parse() {
        return Ok(Identity::Address(address));
    }
    if let Some(key_id) = text.strip_prefix("keyid:")
        && !key_id.is_empty()
    {
        return Ok(Identity::KeyId(key_id.into()));
    }
    let (name, fqdn) = match text.strip_prefix("fqdn:").or_else(|| text.strip_prefix('@')) {
        Some(name) => (name, true),
        None => (text, false),
    };
    let plain = !name.is_empty()
        && !name.ends_with(':')
        && name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '=' | ',' | '"' | '*' | '%'));
    match (plain, name.split_once('@')) {
        (true, None) => Ok(Identity::Fqdn(name.into())),
        (true, Some((user, domain))) if !fqdn && !user.is_empty() && !domain.is_empty() => {
            Ok(Identity::Email(name.into()))
        }
        _ => Err(format!(
            "{text:?} is not an identity: write an address, a host name, user@domain, or keyid:TEXT (distinguished names are not \
             supported; give the certificate's dNSName)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_tells_the_type() {
        assert_eq!(parse("192.0.2.1"), Ok(Identity::Address("192.0.2.1".parse().unwrap())));
        assert_eq!(parse("2001:db8::1"), Ok(Identity::Address("2001:db8::1".parse().unwrap())));
        assert_eq!(parse("moon.example"), Ok(Identity::Fqdn("moon.example".into())));
        assert_eq!(parse("@moon"), Ok(Identity::Fqdn("moon".into())));
        assert_eq!(parse("fqdn:192.0.2.1"), Ok(Identity::Fqdn("192.0.2.1".into())));
        assert_eq!(parse("a@moon"), Ok(Identity::Email("a@moon".into())));
        assert_eq!(parse("keyid:x y"), Ok(Identity::KeyId(b"x y".to_vec())));
        for bad in ["", "@", "a b", "CN=moon", "a@", "@a@b", "keyid:", "%any", "*"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
