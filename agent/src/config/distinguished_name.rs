//! Distinguished names as text, with the attributes in the order of the certificate: `C=DE,
//! O=Example, CN=moon`.
//!
//! strongSwan, `openssl x509 -subject` and this program's errors use this form. RFC 4514 uses the
//! opposite order. That order is not accepted, because the order cannot be determined from the
//! text.

use yasna::Tag;
use yasna::models::ObjectIdentifier;
use yasna::tags::{TAG_IA5STRING, TAG_PRINTABLESTRING, TAG_UTF8STRING};

/// Attribute types by name (RFC 4519 2, RFC 5280 4.1.2.4 and appendix A.1), with the abbreviations
/// that OpenSSL and strongSwan use. The string type is the one that RFC 5280 requires, or
/// UTF8String if it requires none. The comparison of identities ignores the string type.
const ATTRIBUTES: [(&[&str], &[u64], Tag); 17] = [
    (&["C", "countryName"], &[2, 5, 4, 6], TAG_PRINTABLESTRING),
    (&["ST", "S", "stateOrProvinceName"], &[2, 5, 4, 8], TAG_UTF8STRING),
    (&["L", "localityName"], &[2, 5, 4, 7], TAG_UTF8STRING),
    (&["street", "streetAddress"], &[2, 5, 4, 9], TAG_UTF8STRING),
    (&["O", "organizationName"], &[2, 5, 4, 10], TAG_UTF8STRING),
    (&["OU", "organizationalUnitName"], &[2, 5, 4, 11], TAG_UTF8STRING),
    (&["CN", "commonName"], &[2, 5, 4, 3], TAG_UTF8STRING),
    (&["serialNumber"], &[2, 5, 4, 5], TAG_PRINTABLESTRING),
    (&["surname"], &[2, 5, 4, 4], TAG_UTF8STRING),
    (&["givenName", "GN"], &[2, 5, 4, 42], TAG_UTF8STRING),
    (&["initials"], &[2, 5, 4, 43], TAG_UTF8STRING),
    (&["generationQualifier"], &[2, 5, 4, 44], TAG_UTF8STRING),
    (&["title", "T"], &[2, 5, 4, 12], TAG_UTF8STRING),
    (&["name"], &[2, 5, 4, 41], TAG_UTF8STRING),
    (&["UID", "userId"], &[0, 9, 2342, 19_200_300, 100, 1, 1], TAG_UTF8STRING),
    (&["DC", "domainComponent"], &[0, 9, 2342, 19_200_300, 100, 1, 25], TAG_IA5STRING),
    (&["emailAddress", "E", "email"], &[1, 2, 840, 113_549, 1, 9, 1], TAG_IA5STRING),
];

/// One `TYPE=VALUE` pair, and the character after it.
struct Attribute {
    oid: ObjectIdentifier,
    tag: Tag,
    value: String,
    end: Option<char>,
}

/// Parses a name into DER (RFC 5280 4.1.2.4). Attributes are separated by `,`, or by `/` if the
/// text begins with one; `+` joins attributes of one RDN. The character after a backslash and the
/// text in quotes around a value are taken literally.
pub(super) fn to_der(text: &str) -> Result<Vec<u8>, String> {
    let (text, separator) = match text.strip_prefix('/') {
        Some(rest) => (rest, '/'),
        None => (text, ','),
    };
    let mut rdns: Vec<Vec<Attribute>> = vec![vec![]];
    let mut rest = text;
    loop {
        let (attribute, after) = attribute(rest, separator)?;
        let end = attribute.end;
        if let Some(rdn) = rdns.last_mut() {
            rdn.push(attribute);
        }
        rest = after;
        match end {
            None => break,
            Some('+') => {}
            Some(_) => rdns.push(vec![]),
        }
    }
    Ok(yasna::construct_der(|writer| {
        writer.write_sequence(|name| {
            for rdn in &rdns {
                name.next().write_set_of(|set| {
                    for attribute in rdn {
                        set.next().write_sequence(|pair| {
                            pair.next().write_oid(&attribute.oid);
                            let value = attribute.value.as_bytes();
                            pair.next().write_tagged_implicit(attribute.tag, |value_of| value_of.write_bytes(value));
                        });
                    }
                });
            }
        });
    }))
}

/// Parses one attribute. Returns the attribute and the rest of the text.
fn attribute(text: &str, separator: char) -> Result<(Attribute, &str), String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(format!("{:?} is not TYPE=VALUE", text.trim()));
    };
    let name = name.trim();
    let (oid, tag) = attribute_type(name)?;
    let (mut parsed, mut quoted, mut kept) = (String::new(), false, 0);
    let mut characters = value.trim_start().char_indices();
    let (mut end, mut after) = (None, "");
    while let Some((_, character)) = characters.next() {
        match character {
            '\\' => {
                let Some((_, escaped)) = characters.next() else {
                    return Err(format!("the value of {name} ends with a backslash, which needs a character"));
                };
                parsed.push(escaped);
                kept = parsed.len();
            }
            '"' => {
                quoted = !quoted;
                kept = parsed.len();
            }
            _ if !quoted && (character == separator || character == '+') => {
                end = Some(character);
                after = characters.as_str();
                break;
            }
            _ => parsed.push(character),
        }
    }
    if quoted {
        return Err(format!("the value of {name} has a quote at its beginning only"));
    }
    // Spaces before a separator are not part of the value, unless they were escaped or quoted.
    let length = parsed.trim_end().len().max(kept);
    parsed.truncate(length);
    if parsed.is_empty() {
        return Err(format!("{name} has no value"));
    }
    let fits = match tag {
        // X.680 41.4.
        TAG_PRINTABLESTRING => parsed.chars().all(|c| c.is_ascii_alphanumeric() || " '()+,-./:=?".contains(c)),
        TAG_IA5STRING => parsed.is_ascii(),
        _ => true,
    };
    let tag = if fits { tag } else { TAG_UTF8STRING };
    Ok((Attribute { oid, tag, value: parsed, end }, after))
}

fn attribute_type(name: &str) -> Result<(ObjectIdentifier, Tag), String> {
    let known = ATTRIBUTES.iter().find(|(names, ..)| names.iter().any(|known| known.eq_ignore_ascii_case(name)));
    if let Some((_, oid, tag)) = known {
        return Ok((ObjectIdentifier::from_slice(oid), *tag));
    }
    if name.eq_ignore_ascii_case("SN") {
        return Err(
            "SN is a serial number to some programs and a surname to others: write serialNumber or surname".into()
        );
    }
    let arcs: Option<Vec<u64>> = name.split('.').map(|arc| arc.parse().ok()).collect();
    match arcs.as_deref() {
        Some(arcs @ [0..=1, 0..=39, _, ..] | arcs @ [2, 0..=1000, _, ..]) if arcs.len() <= 32 => {
            Ok((ObjectIdentifier::from_slice(arcs), TAG_UTF8STRING))
        }
        _ => Err(format!(
            "{name:?} is not a type of attribute: write C, ST, L, O, OU, CN, serialNumber, DC, UID, emailAddress, or an OID in digits"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509Name};

    fn shown(text: &str) -> String {
        let der = to_der(text).unwrap();
        let (rest, name) = X509Name::from_der(&der).unwrap();
        assert!(rest.is_empty());
        name.to_string()
    }

    #[test]
    fn names_are_read_in_the_order_of_the_certificate() {
        let expected = "C=DE, ST=sn, O=l, OU=it, OU=net, CN=testrouter01";
        assert_eq!(shown("C=DE, ST=sn, O=l, OU=it, OU=net, CN=testrouter01"), expected);
        assert_eq!(shown("C = DE,ST=sn,O = l,  OU=it , ou=net,CN=testrouter01"), expected);
        assert_eq!(shown("/C=DE/ST=sn/O=l/OU=it/OU=net/CN=testrouter01"), expected);
        assert_eq!(shown("2.5.4.6=DE, S=sn, 2.5.4.10=l, OU=it, OU=net, commonName=testrouter01"), expected);
    }

    #[test]
    fn separators_in_values_are_escaped_or_quoted() {
        assert_eq!(shown(r"O=a\, b, CN=c"), "O=a, b, CN=c");
        assert_eq!(shown(r#"O="a, b+c ", CN=c"#), "O=a, b+c , CN=c");
        assert_eq!(shown(r"CN=a/b"), "CN=a/b");
        assert_eq!(shown(r"/CN=a\/b, c"), "CN=a/b, c");
        assert_eq!(shown("CN=x=y"), "CN=x=y");
    }

    #[test]
    fn the_bytes_are_those_of_a_certificate_with_the_usual_string_types() {
        let mut name = rcgen::DistinguishedName::new();
        let country = rcgen::string::PrintableString::try_from("DE").unwrap();
        name.push(rcgen::DnType::CountryName, rcgen::DnValue::PrintableString(country));
        name.push(rcgen::DnType::OrganizationName, "Ä & Co");
        name.push(rcgen::DnType::CommonName, "moon");
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = name;
        let certificate = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
        assert_eq!(to_der("C=DE, O=Ä & Co, CN=moon").unwrap(), certificate.subject().as_raw());
    }

    #[test]
    fn attributes_of_one_rdn_are_sorted_as_der_demands() {
        let der = to_der("OU=z + CN=a, O=x").unwrap();
        assert_eq!(der, to_der("CN=a+OU=z,O=x").unwrap());
        let (_, name) = X509Name::from_der(&der).unwrap();
        assert_eq!(name.iter().map(|rdn| rdn.iter().count()).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_part_that_is_wrong() {
        for (text, part) in [
            ("", "TYPE=VALUE"),
            ("CN", "\"CN\""),
            ("CN=", "CN has no value"),
            ("CN=a,", "TYPE=VALUE"),
            ("CN=a,,O=b", "\",O\""),
            ("XY=a", "\"XY\""),
            ("SN=a", "surname"),
            ("9.1.1=a", "\"9.1.1\""),
            ("1=a", "\"1\""),
            (r"CN=a\", "backslash"),
            ("CN=\"a", "quote"),
        ] {
            let error = to_der(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
