//! Compares identities with each other and with the names in a certificate.

use std::fmt;
use std::net::IpAddr;

use data_encoding::HEXLOWER;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::config::Identity;

/// Returns whether two identities name the same peer. Compares domain names without regard to case
/// (RFC 4343). Compares distinguished names without regard to the string types of their values,
/// since the author of a configuration does not know which types the CA used. Compares everything
/// else octet by octet.
pub fn same_identity(a: &Identity, b: &Identity) -> bool {
    a == b || canonical_identity(a) == canonical_identity(b)
}

/// Returns the same canonical form for exactly those identities that [`same_identity`] treats as
/// equal, for lookups and sorting. This form is never sent: a distinguished name becomes a list of
/// its attributes.
pub fn canonical_identity(identity: &Identity) -> Identity {
    match identity {
        Identity::Fqdn(name) => Identity::Fqdn(canonical_domain(name)),
        Identity::Email(address) => Identity::Email(match address.rsplit_once('@') {
            Some((user, domain)) => format!("{user}@{}", canonical_domain(domain)),
            None => address.clone(),
        }),
        Identity::DistinguishedName(der) => Identity::DistinguishedName(match canonical_name(der) {
            Some(list) => list,
            // No list of attributes begins like this.
            None => [b"not a name: ", der.as_slice()].concat(),
        }),
        Identity::Address(address) => Identity::Address(address.to_canonical()),
        Identity::KeyId(id) => Identity::KeyId(id.clone()),
    }
}

fn canonical_domain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Returns the attributes of a name, RDN by RDN: types and values, without the string types of
/// those values that are text. Returns `None` if `der` is not a name.
fn canonical_name(der: &[u8]) -> Option<Vec<u8>> {
    let (_, name) = X509Name::from_der(der).ok()?;
    let mut list = Vec::new();
    let mut name_length = 0;
    for rdn in name.iter() {
        list.extend_from_slice(b"RDN");
        let mut rdn_length = 0;
        for attribute in rdn.iter() {
            // Tag 0 is no string type.
            let (tag, value) = match attribute.as_str() {
                Ok(text) => (0, text.as_bytes()),
                Err(_) => (attribute.attr_value().tag().0, attribute.as_slice()),
            };
            let kind = attribute.attr_type().as_bytes();
            list.extend_from_slice(&kind.len().to_be_bytes());
            list.extend_from_slice(kind);
            list.extend_from_slice(&tag.to_be_bytes());
            list.extend_from_slice(&value.len().to_be_bytes());
            list.extend_from_slice(value);
            rdn_length += encoded_length(encoded_length(kind.len()) + encoded_length(attribute.as_slice().len()));
        }
        name_length += encoded_length(rdn_length);
    }
    // The parser reads any type with the number of SEQUENCE, and skips what follows the last
    // element of a SEQUENCE or SET.
    let is_all = der.first() == Some(&SEQUENCE) && der.len() == encoded_length(name_length);
    is_all.then_some(list)
}

/// Identifier octet of a SEQUENCE (X.690 8.9).
const SEQUENCE: u8 = 0x30;

/// Returns the number of octets of a value in DER, if its contents have so many (X.690 8.1.3 and
/// 10.1).
fn encoded_length(contents: usize) -> usize {
    let length_octets = match contents {
        0..=0x7f => 1,
        _ => 1 + (contents.ilog2() / 8 + 1) as usize,
    };
    1 + length_octets + contents
}

/// Returns whether a certificate contains this identity, as a subjectAltName of the same type or,
/// for a distinguished name, as its subject (RFC 4945 3.1). Wildcards match nothing.
pub(super) fn certifies(certificate: &X509Certificate<'_>, identity: &Identity) -> bool {
    let names = alternative_names(certificate);
    match identity {
        Identity::Fqdn(claimed) => {
            names.iter().any(|name| matches!(name, GeneralName::DNSName(name) if same_domain(name, claimed)))
        }
        Identity::Email(claimed) => {
            names.iter().any(|name| matches!(name, GeneralName::RFC822Name(name) if same_email(name, claimed)))
        }
        Identity::Address(claimed) => names.iter().any(
            |name| matches!(name, GeneralName::IPAddress(octets) if address(octets) == Some(claimed.to_canonical())),
        ),
        Identity::DistinguishedName(claimed) => {
            let subject = certificate.subject().as_raw();
            subject == claimed || same_name(subject, claimed)
        }
        // RFC 4945 3.1.7: a key ID has no counterpart in a certificate.
        Identity::KeyId(_) => false,
    }
}

/// Returns whether a certificate (DER) is for this identity by the rules that a peer applies.
/// Returns `false` if the certificate cannot be parsed.
pub fn certificate_is_for(der: &[u8], identity: &Identity) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| certifies(&certificate, identity))
}

/// Returns whether a certificate has exactly this URI as a subjectAltName.
pub(super) fn has_uri(certificate: &X509Certificate<'_>, uri: &str) -> bool {
    alternative_names(certificate).iter().any(|name| matches!(name, GeneralName::URI(name) if *name == uri))
}

/// Returns the names in a certificate, at most 8, for logs and errors.
pub(super) fn describe(certificate: &X509Certificate<'_>) -> String {
    let mut names = vec![format!("subject {}", quoted_name(certificate.subject()))];
    for name in alternative_names(certificate) {
        names.push(match name {
            GeneralName::DNSName(name) => format!("DNS {}", Quoted(name)),
            GeneralName::RFC822Name(name) => format!("email {}", Quoted(name)),
            GeneralName::URI(name) => format!("URI {}", Quoted(name)),
            GeneralName::IPAddress(octets) => match address(octets) {
                Some(address) => format!("address {address}"),
                None => continue,
            },
            _ => continue,
        });
    }
    names.truncate(8);
    names.join(", ")
}

/// Returns a distinguished name, quoted for logs and errors.
pub(super) fn quoted_name(name: &X509Name<'_>) -> String {
    Quoted(&name.to_string()).to_string()
}

fn alternative_names<'a, 'c>(certificate: &'c X509Certificate<'a>) -> &'c [GeneralName<'a>] {
    match certificate.subject_alternative_name() {
        Ok(Some(names)) => &names.value.general_names,
        _ => &[],
    }
}

fn same_domain(a: &str, b: &str) -> bool {
    let a = a.strip_suffix('.').unwrap_or(a);
    let b = b.strip_suffix('.').unwrap_or(b);
    !a.is_empty() && a.eq_ignore_ascii_case(b)
}

fn same_email(a: &str, b: &str) -> bool {
    match (a.rsplit_once('@'), b.rsplit_once('@')) {
        (Some((a, a_domain)), Some((b, b_domain))) => a == b && same_domain(a_domain, b_domain),
        _ => a == b,
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|octets| IpAddr::from(octets).to_canonical())
}

/// Returns whether both are names with the same attributes.
fn same_name(a: &[u8], b: &[u8]) -> bool {
    canonical_name(a).is_some_and(|a| canonical_name(b) == Some(a))
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Fqdn(text) | Self::Email(text) => write!(f, "{}", Quoted(text)),
            Self::DistinguishedName(der) => match X509Name::from_der(der) {
                Ok((_, name)) => f.write_str(&quoted_name(&name)),
                Err(_) => f.write_str("a malformed distinguished name"),
            },
            Self::KeyId(id) => write!(f, "key ID 0x{}", HEXLOWER.encode(id.get(..MAX_SHOWN).unwrap_or(id))),
        }
    }
}

/// Maximum number of characters of a name that are shown. A longer name, which fits into a
/// datagram, would fill the log.
const MAX_SHOWN: usize = 128;

/// Text that may come from an unknown sender. It is quoted, so that it cannot forge a log line, and
/// shortened to [`MAX_SHOWN`] characters.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => write!(f, "{:?}...", self.0.get(..end).unwrap_or_default()),
            None => write!(f, "{:?}", self.0),
        }
    }
}
