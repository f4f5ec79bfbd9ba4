//! Names of the object identifiers of algorithms, for errors.

use data_encoding::HEXLOWER;
use x509_parser::asn1_rs::{Any, FromDer, Oid, Tag};
use x509_parser::x509::AlgorithmIdentifier;

/// Algorithms of keys and signatures and curves that a peer may use, with their names in RFC 3279,
/// RFC 4055, RFC 5480, RFC 5639, RFC 5758, RFC 8410 and RFC 9881.
const NAMES: [(&str, &str); 34] = [
    ("1.2.840.10040.4.1", "id-dsa"),
    ("1.2.840.10040.4.3", "id-dsa-with-sha1"),
    ("2.16.840.1.101.3.4.3.2", "id-dsa-with-sha256"),
    ("1.2.840.113549.1.1.1", "rsaEncryption"),
    ("1.2.840.113549.1.1.4", "md5WithRSAEncryption"),
    ("1.2.840.113549.1.1.5", "sha1WithRSAEncryption"),
    ("1.2.840.113549.1.1.10", "id-RSASSA-PSS"),
    ("1.2.840.113549.1.1.11", "sha256WithRSAEncryption"),
    ("1.2.840.113549.1.1.12", "sha384WithRSAEncryption"),
    ("1.2.840.113549.1.1.13", "sha512WithRSAEncryption"),
    ("1.2.840.113549.1.1.14", "sha224WithRSAEncryption"),
    ("1.2.840.10045.2.1", "id-ecPublicKey"),
    ("1.2.840.10045.4.1", "ecdsa-with-SHA1"),
    ("1.2.840.10045.4.3.1", "ecdsa-with-SHA224"),
    ("1.2.840.10045.4.3.2", "ecdsa-with-SHA256"),
    ("1.2.840.10045.4.3.3", "ecdsa-with-SHA384"),
    ("1.2.840.10045.4.3.4", "ecdsa-with-SHA512"),
    ("1.2.840.10045.3.1.1", "secp192r1"),
    ("1.2.840.10045.3.1.7", "secp256r1"),
    ("1.3.132.0.10", "secp256k1"),
    ("1.3.132.0.33", "secp224r1"),
    ("1.3.132.0.34", "secp384r1"),
    ("1.3.132.0.35", "secp521r1"),
    ("1.3.36.3.3.2.8.1.1.7", "brainpoolP256r1"),
    ("1.3.36.3.3.2.8.1.1.11", "brainpoolP384r1"),
    ("1.3.36.3.3.2.8.1.1.13", "brainpoolP512r1"),
    ("1.3.101.110", "id-X25519"),
    ("1.3.101.111", "id-X448"),
    ("1.3.101.112", "id-Ed25519"),
    ("1.3.101.113", "id-Ed448"),
    ("1.2.156.10197.1.301", "sm2p256v1"),
    ("2.16.840.1.101.3.4.3.17", "id-ml-dsa-44"),
    ("2.16.840.1.101.3.4.3.18", "id-ml-dsa-65"),
    ("2.16.840.1.101.3.4.3.19", "id-ml-dsa-87"),
];

/// Maximum number of octets of an AlgorithmIdentifier, or of the object identifier of a key, that
/// are shown. The peer chose its length.
const MAX_SHOWN: usize = 32;

/// Returns the name of an AlgorithmIdentifier (RFC 5280 4.1.1.2), DER, with its curve if there is
/// one. Without a known name it is in numbers.
pub(super) fn algorithm(identifier: &[u8]) -> String {
    match Any::from_der(identifier) {
        Ok((_, sequence)) => algorithm_contents(sequence.data),
        Err(_) => hexadecimal(identifier),
    }
}

/// Returns the name of the algorithm of a certificate's key, with its curve if there is one.
pub(super) fn key(identifier: &AlgorithmIdentifier<'_>) -> String {
    with_curve(&identifier.algorithm, identifier.parameters.as_ref())
}

/// Does the same as [`algorithm`], for the contents of the AlgorithmIdentifier.
pub(super) fn algorithm_contents(contents: &[u8]) -> String {
    // The longest name that is known has 11 octets.
    let shown = contents.get(..MAX_SHOWN).unwrap_or(contents);
    let Ok((parameters, oid)) = Oid::from_der(shown) else {
        return hexadecimal(contents);
    };
    let parameters = Any::from_der(parameters).ok().map(|(_, parameters)| parameters);
    with_curve(&oid, parameters.as_ref())
}

/// Adds the parameters if they are an object identifier, which is that of a curve (RFC 5480 2.1.1).
fn with_curve(algorithm: &Oid<'_>, parameters: Option<&Any<'_>>) -> String {
    let curve = parameters.filter(|parameters| parameters.tag() == Tag::Oid);
    match curve.and_then(|curve| curve.as_oid().ok()) {
        Some(curve) => format!("{} on {}", name(algorithm), name(&curve)),
        None => name(algorithm),
    }
}

fn name(oid: &Oid<'_>) -> String {
    if oid.as_bytes().len() > MAX_SHOWN {
        return hexadecimal(oid.as_bytes());
    }
    let numbers = oid.to_id_string();
    match NAMES.iter().find(|(known, _)| *known == numbers) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("OID {numbers}"),
    }
}

fn hexadecimal(octets: &[u8]) -> String {
    HEXLOWER.encode(octets.get(..MAX_SHOWN).unwrap_or(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_and_curves_have_their_names_and_others_are_in_numbers() {
        let p521 = [0x30, 0x10, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x23];
        assert_eq!(algorithm(&p521), "id-ecPublicKey on secp521r1");
        let sha1 = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5, 5, 0];
        assert_eq!(algorithm(&sha1), "sha1WithRSAEncryption");
        assert_eq!(algorithm_contents(&sha1[2..]), "sha1WithRSAEncryption");
        assert_eq!(algorithm(&[0x30, 5, 6, 3, 0x2b, 0x65, 0x71]), "id-Ed448");
        assert_eq!(algorithm(&[0x30, 4, 6, 2, 0x2a, 3]), "OID 1.2.3");
    }

    #[test]
    fn what_is_no_algorithm_is_shown_in_short() {
        assert_eq!(algorithm(&[0x30, 0, 1]), "");
        assert_eq!(algorithm(&[2; 200]).len(), 4, "an integer of two octets");
        assert_eq!(algorithm(&[0xff; 200]).len(), 64);
        assert!(algorithm(&[[0x30, 0x81, 200, 6, 0x81, 197].as_slice(), &[0x2a; 197]].concat()).len() <= 64);
    }

    #[test]
    fn a_long_identifier_of_a_key_is_shown_in_short() {
        let long = || Oid::new(vec![0x2a; 60_000].into());
        let curve = Any::from_tag_and_data(Tag::Oid, &[0x2a; 60_000]);
        let identifier = AlgorithmIdentifier { algorithm: long(), parameters: Some(curve) };
        assert_eq!(key(&identifier).len(), 64 + " on ".len() + 64);
    }

    #[test]
    fn no_identifier_is_listed_twice() {
        let numbers: std::collections::BTreeSet<_> = NAMES.iter().map(|(numbers, _)| numbers).collect();
        assert_eq!(numbers.len(), NAMES.len());
    }
}
