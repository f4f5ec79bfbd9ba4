//! A node's certificate request (PKCS #10, RFC 2986). Only the key in the request is used. The
//! controller decides the names in the certificate.

use edge_types::NodeName;
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519, OID_X509_COMMON_NAME};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo as Spki;

/// The reason why a certificate request is refused.
#[derive(Debug, thiserror::Error)]
#[error("the certificate request is refused: {0}")]
pub struct CsrError(String);

/// A public key whose holder has proved that it has the private key.
pub struct NodeKey {
    public: SubjectPublicKeyInfo,
    /// SHA-256 of the DER SubjectPublicKeyInfo, hexadecimal.
    pub fingerprint: String,
}

impl NodeKey {
    pub(super) fn public(&self) -> &SubjectPublicKeyInfo {
        &self.public
    }
}

/// Computes SHA-256 of a DER SubjectPublicKeyInfo.
pub fn hash(spki: &[u8]) -> [u8; 32] {
    super::hash::sha256(spki)
}

/// Reads a request. Checks its signature and key type, and that it requests no name other than the
/// node's.
pub fn read(pem: &str, node: &NodeName) -> Result<NodeKey, CsrError> {
    let refuse = CsrError;
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| refuse(format!("it is not a PEM \"CERTIFICATE REQUEST\": {e}")))?;
    let (rest, csr) =
        X509CertificationRequest::from_der(&der).map_err(|e| refuse(format!("it is not PKCS #10: {e}")))?;
    if !rest.is_empty() {
        return Err(refuse(format!("{} bytes follow it", rest.len())));
    }
    let info = &csr.certification_request_info;
    check_key(&info.subject_pki)?;
    csr.verify_signature().map_err(|_| refuse("its signature is not by its own key".into()))?;
    check_names(&csr, node)?;
    let public = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|e| refuse(format!("its key: {e}")))?;
    Ok(NodeKey { public, fingerprint: super::hash::hex(&hash(info.subject_pki.raw)) })
}

fn check_key(spki: &Spki<'_>) -> Result<(), CsrError> {
    let algorithm = &spki.algorithm.algorithm;
    let curve = || spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let kind = if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY { curve() } else { Some(algorithm.clone()) };
    match kind {
        Some(kind) if kind == OID_SIG_ED25519 || kind == OID_EC_P256 => Ok(()),
        kind => {
            let kind = kind.map_or_else(|| "a curve without a name".into(), |kind| kind.to_id_string());
            Err(CsrError(format!("its key is of kind {kind}; expected Ed25519 or ECDSA with P-256")))
        }
    }
}

fn check_names(csr: &X509CertificationRequest<'_>, node: &NodeName) -> Result<(), CsrError> {
    let foreign = |name: &str| Err(CsrError(format!("it asks for {name:?}, and the node is {node}")));
    for attribute in csr.certification_request_info.subject.iter_attributes() {
        let value = attribute.as_str().unwrap_or("an unreadable name");
        if *attribute.attr_type() != OID_X509_COMMON_NAME || value != node.as_str() {
            return foreign(value);
        }
    }
    for extension in csr.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(name) if *name == node.as_str() => {}
                        other => return foreign(&other.to_string()),
                    }
                }
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err(CsrError("it asks to be a certificate authority".into()));
            }
            // The node's role decides the key usages, whatever the request contains.
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, IsCa, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType};

    fn name() -> NodeName {
        "edge-1".parse().unwrap()
    }

    fn pem(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = Default::default();
        change(&mut params);
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    fn refused(pem: &str) -> String {
        read(pem, &name()).err().expect("refused").to_string()
    }

    #[test]
    fn both_kinds_of_key_are_taken_with_the_name_or_without() {
        for key in [KeyPair::generate().unwrap(), KeyPair::generate_for(&PKCS_ED25519).unwrap()] {
            read(&pem(&key, |_| {}), &name()).unwrap();
            let named = pem(&key, |params| {
                params.distinguished_name.push(DnType::CommonName, "edge-1");
                params.subject_alt_names.push(SanType::DnsName("edge-1".try_into().unwrap()));
            });
            read(&named, &name()).unwrap();
        }
    }

    #[test]
    fn foreign_names_are_refused_wherever_they_stand() {
        let key = KeyPair::generate().unwrap();
        let uri = "edge-cni://hub/edge-1";
        for request in [
            pem(&key, |params| params.distinguished_name.push(DnType::CommonName, "edge-2")),
            pem(&key, |params| params.distinguished_name.push(DnType::OrganizationName, "edge-1")),
            pem(&key, |params| params.subject_alt_names.push(SanType::DnsName("edge-2".try_into().unwrap()))),
            pem(&key, |params| params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()))),
            pem(&key, |params| params.subject_alt_names.push(SanType::IpAddress([192, 0, 2, 1].into()))),
        ] {
            assert!(refused(&request).contains("it asks for"), "{}", refused(&request));
        }
        let authority = pem(&key, |params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
        assert!(refused(&authority).contains("authority"));
    }

    #[test]
    fn weak_and_unusual_keys_are_refused_by_kind() {
        let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(refused(&pem(&p384, |_| {})).contains("expected Ed25519 or ECDSA with P-256"));
        // openssl req -new -newkey rsa:1024 -nodes -subj /CN=edge-1
        assert!(refused(include_str!("../../tests/data/rsa-1024.csr")).contains("1.2.840.113549.1.1.1"));
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let key = KeyPair::generate().unwrap();
        let text = pem(&key, |_| {});
        let mut der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).unwrap().as_ref().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &der);
        let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(refused(&forged).contains("signature") || refused(&forged).contains("PKCS"), "{}", refused(&forged));
        for garbage in ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
            refused(garbage);
        }
    }
}
