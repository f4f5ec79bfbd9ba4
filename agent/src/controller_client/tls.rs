//! TLS 1.3 to the controller: verifies the controller's certificate and presents this node's
//! certificate.

use std::sync::Arc;

use edge_types::pki::CONTROLLER_URI;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::CertificateClock;
use crate::membership::NodeCredentials;

/// id-kp-serverAuth, 1.3.6.1.5.5.7.3.1 (RFC 5280 4.2.1.12), DER content.
const EKU_SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];

/// How the controller's certificate is verified.
#[derive(Debug, Clone)]
pub(super) enum ControllerTrust {
    /// The SHA-256 of the CA's DER SubjectPublicKeyInfo, for joining with a token. The server must
    /// send that CA certificate in its chain.
    Pinned([u8; 32]),
    /// CA certificates, DER.
    Anchors(Vec<Vec<u8>>),
}

/// The reason why the controller's certificate is rejected, and the remedy.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(super) struct CertificateRejected(String);

/// Creates the TLS configuration of a node that has no certificate yet.
pub(super) fn join_config(trust: ControllerTrust, clock: Arc<CertificateClock>) -> Result<ClientConfig, Error> {
    Ok(finish(builder(trust, clock)?.with_no_client_auth()))
}

/// Creates the TLS configuration of a member, with its client certificate.
pub(super) fn member_config(
    credentials: &NodeCredentials,
    clock: Arc<CertificateClock>,
) -> Result<ClientConfig, Error> {
    let chain = credentials.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credentials.key.expose().to_vec()));
    let trust = ControllerTrust::Anchors(credentials.trust_anchors.clone());
    builder(trust, clock)?.with_client_auth_cert(chain, key).map(finish)
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn builder(trust: ControllerTrust, clock: Arc<CertificateClock>) -> Result<Builder, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier { trust, clock, provider: provider.clone() };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn finish(mut config: ClientConfig) -> ClientConfig {
    // A resumed session would not present a renewed certificate.
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// Verifies the controller's certificate: certificate chain, validity, extended key usage, name,
/// and the URI that only controllers have.
#[derive(Debug)]
struct Verifier {
    trust: ControllerTrust,
    clock: Arc<CertificateClock>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }

    /// Returns the trust anchors. A pinned one is taken from `sent`, the certificates that the
    /// server sent.
    fn anchors<'a>(&'a self, sent: &'a [CertificateDer<'a>]) -> Result<Vec<CertificateDer<'a>>, CertificateRejected> {
        match &self.trust {
            ControllerTrust::Anchors(anchors) => {
                Ok(anchors.iter().map(|der| CertificateDer::from(der.as_slice())).collect())
            }
            ControllerTrust::Pinned(hash) => sent
                .iter()
                .find(|der| spki_sha256(der).is_some_and(|found| found == *hash))
                .map(|der| vec![CertificateDer::from(der.as_ref())])
                .ok_or_else(|| {
                    CertificateRejected(
                        "it shows no certificate of the CA that the join token names; the token's secret was not sent. \
                         Either the token is from another controller, or somebody stands between"
                            .into(),
                    )
                }),
        }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
    ) -> Result<(), CertificateRejected> {
        let anchors = self.anchors(intermediates)?;
        let anchors: Vec<_> = anchors.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
        let leaf = EndEntityCert::try_from(end_entity)
            .map_err(|e| CertificateRejected(format!("its certificate is malformed ({e})")))?;
        let (_, parsed) = X509Certificate::from_der(end_entity)
            .map_err(|e| CertificateRejected(format!("its certificate is malformed ({e})")))?;
        // A trusted CA signs a certificate no earlier than its notBefore, so notBefore is a lower
        // bound of the current time. Using it lets a device join even if its clock is years behind.
        // The clock's baseline rises only after all other checks have passed.
        let begins = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
        let now = self.clock.unix_time().max(begins);
        let verify_at = |now| {
            let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
            let usage = KeyUsage::required(EKU_SERVER_AUTH);
            leaf.verify_for_usage(self.algorithms().all, &anchors, intermediates, time, usage, None, None).map(drop)
        };
        let mut verified = verify_at(now);
        // A system clock that is far ahead makes every certificate look expired, this node's too.
        // Only the controller can tell that the clock is wrong, so it must be reached. It checks
        // this node's certificate by its own clock.
        if let (Err(webpki::Error::CertExpired { .. }), Some(known)) = (&verified, self.clock.time_if_ahead()) {
            verified = verify_at(known.max(begins));
        }
        verified.map_err(|error| CertificateRejected(explain(&error, &parsed, now)))?;
        leaf.verify_is_valid_for_subject_name(server_name).map_err(|_| {
            CertificateRejected(format!(
                "its certificate is not for {}, but for {}; use one of these in urls, or add the name to server_names of the controller",
                server_name.to_str(),
                names(&parsed)
            ))
        })?;
        if !uris(&parsed).any(|uri| uri == CONTROLLER_URI) {
            return Err(CertificateRejected(format!(
                "its certificate lacks the URI {CONTROLLER_URI}: it is not a controller's, but perhaps a node's"
            )));
        }
        self.clock.raise_floor(begins);
        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.verify(end_entity, intermediates, server_name) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(distrust) => Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(distrust))))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Only TLS 1.3 is offered.
        Err(Error::General("TLS 1.2 was not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// Computes the SHA-256 hash of a certificate's SubjectPublicKeyInfo in DER, which a join token
/// pins.
pub(super) fn spki_sha256(certificate: &[u8]) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    ::ring::digest::digest(&::ring::digest::SHA256, parsed.tbs_certificate.subject_pki.raw).as_ref().try_into().ok()
}

/// Returns the URIs among a certificate's subject alternative names.
pub(super) fn uris<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a str> {
    alternative_names(certificate).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    })
}

fn alternative_names<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a GeneralName<'a>> {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.into_iter().flat_map(|extension| &extension.value.general_names)
}

fn names(certificate: &X509Certificate<'_>) -> String {
    let names: Vec<String> = alternative_names(certificate)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(octets) => <[u8; 4]>::try_from(*octets)
                .map(|v4| std::net::IpAddr::from(v4).to_string())
                .or_else(|_| <[u8; 16]>::try_from(*octets).map(|v6| std::net::IpAddr::from(v6).to_string()))
                .ok(),
            _ => None,
        })
        .collect();
    if names.is_empty() { "no name".into() } else { names.join(", ") }
}

fn explain(error: &webpki::Error, certificate: &X509Certificate<'_>, now: u64) -> String {
    let serves = certificate.extended_key_usage().ok().flatten().is_some_and(|usages| usages.value.server_auth);
    match error {
        // If the issuer is another CA with the same name, webpki reports only a wrong signature.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => unknown_issuer(),
        // The leaf has the extended key usage, so the error refers to a CA certificate that the
        // server sent. That CA is not trusted.
        webpki::Error::RequiredEkuNotFoundContext(_) if serves => unknown_issuer(),
        webpki::Error::CertExpired { .. } => format!(
            "its certificate ended {}, and now it is {}: restart the controller, which renews it; or see whether this node's clock runs ahead",
            date(certificate.validity().not_after.timestamp()),
            date(i64::try_from(now).unwrap_or(i64::MAX)),
        ),
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            "its certificate lacks the extended key usage serverAuth: it is a node's, not a controller's".into()
        }
        other => format!("its certificate does not verify ({other})"),
    }
}

fn unknown_issuer() -> String {
    "its certificate is not from a CA that this node trusts: another controller, or somebody stands between; or this node was away while the \
     controller's CA was replaced, and a new join token for its name brings it back"
        .into()
}

/// Formats a Unix time, in seconds, as RFC 3339.
pub(super) fn date(unix_time: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix_time)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| unix_time.to_string())
}
