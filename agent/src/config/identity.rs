//! IKE identities (RFC 7296 3.5) as text.
//!
//! The agent accepts the same forms as strongSwan and libreswan, so that a value can be copied.
//! Unsupported forms are refused, and are never parsed as another type of identity.

use std::net::IpAddr;

use data_encoding::HEXLOWER_PERMISSIVE;
use edge_ike::Identity;
use x509_parser::prelude::{FromDer, X509Name};

use super::distinguished_name;

/// strongSwan's identity types that the agent does not support (`swanctl.conf(5)`).
const UNSUPPORTED: [&str; 11] =
    ["asn1gn", "ipv4net", "ipv6net", "ipv4range", "ipv6range", "uri", "url", "xmppaddr", "ec_to_id", "ascii", "other"];

const FORMS: &str = "write an address, a host name, user@domain, a distinguished name (C=DE, O=Example, CN=moon), or keyid:TEXT; \
    a prefix states the type: fqdn:, email:, ipv4:, ipv6:, asn1dn:, keyid:";

/// Parses an identity. Without a prefix, the form determines the type: an address (ID_IPV4_ADDR,
/// ID_IPV6_ADDR), `user@domain` (ID_RFC822_ADDR), `TYPE=VALUE, ...` (ID_DER_ASN1_DN), otherwise a
/// name (ID_FQDN).
///
/// Prefixes: `@` and `fqdn:` for a name, `@@` and `email:` for a mailbox, `ipv4:` and `ipv6:` for
/// an address, `asn1dn:` for a distinguished name, `keyid:` for octets (ID_KEY_ID). `keyid:#` and
/// `asn1dn:#` are followed by hexadecimal digits, as is `@#` for a key ID. `@[TEXT]` is libreswan's
/// form of a key ID.
pub(crate) fn parse(text: &str) -> Result<Identity, String> {
    parse_form(text.trim()).map_err(|problem| format!("{text:?} is not an identity: {problem}"))
}

fn parse_form(text: &str) -> Result<Identity, String> {
    if text.is_empty() {
        return Err(format!("it is empty; {FORMS}"));
    }
    if let Some(rest) = text.strip_prefix("@#") {
        return Ok(Identity::KeyId(hexadecimal(rest)?));
    }
    if let Some(rest) = text.strip_prefix("@@") {
        return email(rest);
    }
    if let Some(rest) = text.strip_prefix("@[").and_then(|rest| rest.strip_suffix(']')) {
        return key_id(rest);
    }
    if let Some(rest) = text.strip_prefix('@') {
        return fqdn(rest);
    }
    // Addresses are tried before the prefixes, because an IPv6 address also contains colons.
    if let Ok(literal) = text.parse() {
        return address(literal);
    }
    if text.starts_with('%') || text.starts_with('*') {
        return Err(
            "patterns such as %any, %fromcert or * match nothing here: write the identity that the certificate or the other end has"
                .into(),
        );
    }
    if let Some((prefix, rest)) = text.split_once(':')
        && !prefix.contains('=')
    {
        return prefixed(&prefix.to_ascii_lowercase(), rest);
    }
    if text.contains('=') {
        return distinguished_name::to_der(text).map(Identity::DistinguishedName);
    }
    if text.contains('@') {
        return email(text);
    }
    if text.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '/')) {
        return Err("it looks like an address, and is none; for a host name of digits write fqdn:NAME".into());
    }
    fqdn(text)
}

fn prefixed(prefix: &str, rest: &str) -> Result<Identity, String> {
    match prefix {
        "fqdn" | "dns" => fqdn(rest),
        "email" | "rfc822" | "userfqdn" => email(rest),
        "ipv4" => rest.parse().map(IpAddr::V4).map_err(|_| "no IPv4 address follows ipv4:".into()).and_then(address),
        "ipv6" => rest.parse().map(IpAddr::V6).map_err(|_| "no IPv6 address follows ipv6:".into()).and_then(address),
        "asn1dn" => match rest.strip_prefix('#') {
            Some(digits) => {
                let der = hexadecimal(digits)?;
                match X509Name::from_der(&der) {
                    Ok(([], _)) => Ok(Identity::DistinguishedName(der)),
                    _ => Err("the digits are not the DER of a distinguished name".into()),
                }
            }
            None => distinguished_name::to_der(rest).map(Identity::DistinguishedName),
        },
        "keyid" => match rest.strip_prefix('#') {
            Some(digits) => Ok(Identity::KeyId(hexadecimal(digits)?)),
            None => key_id(rest),
        },
        // The form `{type}:` of strongSwan contains a number.
        _ if UNSUPPORTED.contains(&prefix) || prefix.starts_with('{') => {
            Err(format!("the type {prefix}: is not supported; {FORMS}"))
        }
        _ => Err(format!("it is no IPv6 address, and {prefix}: is no type of identity; {FORMS}")),
    }
}

fn address(address: IpAddr) -> Result<Identity, String> {
    if address.is_unspecified() {
        return Err(
            "the unspecified address stands for any peer, which is not supported: write the peer's identity".into()
        );
    }
    Ok(Identity::Address(address))
}

fn fqdn(name: &str) -> Result<Identity, String> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '=' | ',' | '"' | '*' | '%' | '@' | ':' | '/');
    // An identity need not be in DNS, but its length is limited as in DNS (RFC 1035).
    if name.is_empty() || name.len() > 253 || name.chars().all(|c| c == '.') {
        return Err("a host name has 1 to 253 characters".into());
    }
    match name.chars().find(|c| !plain(*c)) {
        None => Ok(Identity::Fqdn(name.into())),
        Some(other) => Err(format!("{other:?} cannot stand in a host name; {FORMS}")),
    }
}

fn email(text: &str) -> Result<Identity, String> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '*' | '%' | ',');
    match text.rsplit_once('@') {
        Some((user, domain))
            if !user.is_empty() && !domain.is_empty() && !user.contains('@') && text.chars().all(plain) =>
        {
            Ok(Identity::Email(text.into()))
        }
        _ => Err("a mailbox is user@domain".into()),
    }
}

fn key_id(text: &str) -> Result<Identity, String> {
    if text.is_empty() { Err("the key ID is empty".into()) } else { Ok(Identity::KeyId(text.into())) }
}

fn hexadecimal(digits: &str) -> Result<Vec<u8>, String> {
    match HEXLOWER_PERMISSIVE.decode(digits.as_bytes()) {
        Ok(octets) if !octets.is_empty() => Ok(octets),
        _ => Err("after # come hexadecimal digits, two for each octet".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Identity {
        Identity::DistinguishedName(distinguished_name::to_der(text).unwrap())
    }

    #[test]
    fn the_form_tells_the_type() {
        assert_eq!(parse("192.0.2.1"), Ok(Identity::Address("192.0.2.1".parse().unwrap())));
        assert_eq!(parse("2001:db8::1"), Ok(Identity::Address("2001:db8::1".parse().unwrap())));
        assert_eq!(parse(" moon.example "), Ok(Identity::Fqdn("moon.example".into())));
        assert_eq!(parse("a@moon"), Ok(Identity::Email("a@moon".into())));
        assert_eq!(parse("C=DE, O=l, CN=moon"), Ok(name("C=DE, O=l, CN=moon")));
        assert_eq!(parse("/C=DE/O=l/CN=moon"), Ok(name("C=DE, O=l, CN=moon")));
        assert_eq!(parse("C=DE, O=a:b, CN=moon"), Ok(name("C=DE, O=a:b, CN=moon")));
    }

    #[test]
    fn prefixes_of_strongswan_and_libreswan_say_the_type() {
        assert_eq!(parse("@moon"), Ok(Identity::Fqdn("moon".into())));
        assert_eq!(parse("fqdn:192.0.2.1"), Ok(Identity::Fqdn("192.0.2.1".into())));
        assert_eq!(parse("FQDN:moon"), Ok(Identity::Fqdn("moon".into())));
        assert_eq!(parse("email:a@moon"), Ok(Identity::Email("a@moon".into())));
        assert_eq!(parse("@@a@moon"), Ok(Identity::Email("a@moon".into())));
        assert_eq!(parse("ipv4:192.0.2.1"), parse("192.0.2.1"));
        assert_eq!(parse("ipv6:2001:db8::1"), parse("2001:db8::1"));
        assert_eq!(parse("asn1dn:C=DE, CN=moon"), parse("C=DE, CN=moon"));
        assert_eq!(parse("asn1dn:#300f310d300b06035504030c046d6f6f6e"), parse("CN=moon"));
        assert_eq!(parse("keyid:x y"), Ok(Identity::KeyId(b"x y".to_vec())));
        assert_eq!(parse("keyid:#00Ff"), Ok(Identity::KeyId(vec![0, 0xff])));
        assert_eq!(parse("@#00ff"), Ok(Identity::KeyId(vec![0, 0xff])));
        assert_eq!(parse("@[moon]"), Ok(Identity::KeyId(b"moon".to_vec())));
    }

    #[test]
    fn what_is_none_of_these_is_never_taken_for_something_else() {
        for (bad, why) in [
            ("", "empty"),
            ("@", "host name"),
            ("a b", "' '"),
            ("a@", "user@domain"),
            ("@a@b", "'@'"),
            ("@@a", "user@domain"),
            ("keyid:", "empty"),
            ("keyid:#0", "two for each octet"),
            ("@#", "two for each octet"),
            ("%any", "patterns"),
            ("%fromcert", "patterns"),
            ("*.example", "patterns"),
            ("moon.*", "'*'"),
            ("0.0.0.0", "any peer"),
            ("::", "any peer"),
            ("192.0.2.300", "looks like an address"),
            ("192.0.2", "looks like an address"),
            ("192.0.2.0/24", "looks like an address"),
            ("2001:db8::g", "no IPv6 address"),
            ("2001:db8::1%eth0", "no IPv6 address"),
            ("ipv4:2001:db8::1", "no IPv4 address"),
            ("ipv4:moon", "no IPv4 address"),
            ("ipv6:192.0.2.1", "no IPv6 address"),
            ("xmppaddr:a@moon", "not supported"),
            ("ipv4net:192.0.2.0/24", "not supported"),
            ("{11}:moon", "not supported"),
            ("asn1dn:#3003", "DER"),
            ("CN=moon, XY=a", "XY"),
            ("fqdn:a@b", "'@'"),
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains(why) && error.contains(&format!("{bad:?}")), "{bad}: {error}");
        }
    }
}
