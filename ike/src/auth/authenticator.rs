//! Our credentials towards a peer, and the check of the peer's credentials (RFC 7296 2.15).

use super::certificate_validator::{self, CertificateValidator};
use super::error::{AuthError, CredentialError};
use super::identity::same_identity;
use super::limits::{MAX_CERTIFICATE, MAX_CHAIN};
use super::proof::Proof;
use super::psk;
use super::signature::SigningKey;
use super::signed_octets::SignedOctets;
use crate::config::{Auth, CertificateAuth, Identity};
use crate::event::PeerCertificate;
use crate::secret::Secret;
use crate::wire::{
    AuthMethod, Authentication, Certificate, CertificateEncoding, CertificateRequest, HashAlgorithm, Id,
};

/// Our credentials towards a peer, and what the peer's credentials must satisfy. An authenticator
/// is made once and used for every IKE_AUTH.
#[derive(Debug)]
pub struct Authenticator(Method);

#[derive(Debug)]
enum Method {
    Psk(Secret),
    Certificate(Box<Credentials>),
}

#[derive(Debug)]
struct Credentials {
    chain: Vec<Certificate>,
    key: SigningKey,
    validator: CertificateValidator,
    /// notAfter of our own certificate, seconds since 1970-01-01 UTC.
    not_after: u64,
}

/// Checks credentials as [`Endpoint::set_peer`](crate::Endpoint::set_peer) does.
///
/// # Errors
/// Returns an error if a certificate or the key cannot be used, or if they do not belong together.
pub fn check_credentials(auth: &Auth) -> Result<(), CredentialError> {
    Authenticator::new(auth).map(drop)
}

/// The payloads with which a peer authenticates in IKE_AUTH.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// IDi of an initiator, IDr of a responder.
    pub id: &'a Id,
    /// The certificates from the CERT payloads, in the order of the payloads.
    pub certificates: &'a [Certificate],
    /// The AUTH payload (RFC 7296 3.8).
    pub authentication: &'a Authentication,
}

impl Authenticator {
    /// Hash algorithms that we accept in signatures, for SIGNATURE_HASH_ALGORITHMS (RFC 7427 4).
    pub const HASHES: [HashAlgorithm; 4] =
        [HashAlgorithm::Identity, HashAlgorithm::Sha2_256, HashAlgorithm::Sha2_384, HashAlgorithm::Sha2_512];

    /// Checks and prepares the configured credentials.
    ///
    /// # Errors
    /// Returns an error if a certificate or the key cannot be used, or if they do not belong
    /// together.
    pub fn new(auth: &Auth) -> Result<Self, CredentialError> {
        Ok(Self(match auth {
            Auth::Psk(psk) if psk.expose().is_empty() => return Err(CredentialError::EmptyPsk),
            Auth::Psk(psk) => Method::Psk(psk.clone()),
            Auth::Certificate(auth) => Method::Certificate(Box::new(Credentials::new(auth)?)),
        }))
    }

    /// Returns our certificates for CERT payloads. Empty with a pre-shared key.
    pub fn certificates(&self) -> &[Certificate] {
        match &self.0 {
            Method::Psk(_) => &[],
            Method::Certificate(credentials) => &credentials.chain,
        }
    }

    /// Returns the CERTREQ with our trust anchors, or `None` with a pre-shared key.
    pub fn certificate_request(&self) -> Option<CertificateRequest> {
        match &self.0 {
            Method::Psk(_) => None,
            Method::Certificate(credentials) => Some(CertificateRequest {
                //= RFC 7296 3.7 SHOULD NOT 1: X.509 only
                encoding: CertificateEncoding::X509Signature,
                authorities: credentials.validator.authorities().to_vec(),
            }),
        }
    }

    /// Makes our AUTH payload. `peer_hashes` are the algorithms in the peer's
    /// SIGNATURE_HASH_ALGORITHMS. If it is `None`, the peer sent no such payload and may not
    /// support RFC 7427, so only ECDSA by RFC 4754 and RSA by method 1 are possible.
    ///
    /// # Errors
    /// Returns an error if our key can make no signature that the peer supports.
    pub fn prove(
        &self,
        octets: &SignedOctets,
        peer_hashes: Option<&[HashAlgorithm]>,
    ) -> Result<Authentication, AuthError> {
        match &self.0 {
            Method::Psk(psk) => {
                let data = psk::shared_key_mic(octets, psk).expose().to_vec();
                Ok(Authentication { method: AuthMethod::SharedKey, data })
            }
            Method::Certificate(credentials) => credentials.key.sign(octets.as_slice(), peer_hashes),
        }
    }

    /// Checks what the peer presented: its ID must be `expected`, and AUTH must prove it.
    /// `unix_time` comes from [`Environment::unix_time`](crate::Environment::unix_time).
    ///
    /// # Errors
    /// Returns the reason why the check failed. The peer receives AUTHENTICATION_FAILED in all
    /// cases.
    pub fn verify(
        &self,
        expected: &Identity,
        presented: Presented<'_>,
        octets: &SignedOctets,
        unix_time: u64,
    ) -> Result<Proof, AuthError> {
        self.authenticate(expected, presented, octets, unix_time).map(|(proof, _)| proof)
    }

    /// Does the same as [`Self::verify`], and also returns the stored part of the peer's
    /// certificate, or `None` if the peer has a pre-shared key.
    pub(crate) fn authenticate(
        &self,
        expected: &Identity,
        presented: Presented<'_>,
        octets: &SignedOctets,
        unix_time: u64,
    ) -> Result<(Proof, Option<PeerCertificate>), AuthError> {
        let claimed = presented.id.identity().ok_or(AuthError::UnknownIdType(presented.id.kind))?;
        //= RFC 7296 1.2 MUST 3: the name belongs to the secret
        if !same_identity(expected, &claimed) {
            return Err(AuthError::UnexpectedIdentity { expected: expected.clone(), claimed });
        }
        let authentication = presented.authentication;
        match &self.0 {
            //= RFC 7296 1.2 MUST 2: verify signatures and MACs
            Method::Psk(psk) => psk::verify(octets, psk, authentication).map(|()| (Proof::Psk, None)),
            Method::Certificate(_) if authentication.method == AuthMethod::SharedKey => {
                Err(AuthError::Method { expected: "a signature", found: authentication.method })
            }
            Method::Certificate(credentials) => {
                let valid = credentials.validator.validate(presented.certificates, &claimed, unix_time)?;
                //= RFC 7296 1.2 MUST 2: verify signatures and MACs
                let proof = valid.key.verify(octets.as_slice(), authentication)?;
                Ok((proof, Some(valid.shown)))
            }
        }
    }

    /// Returns notAfter of our own certificate, seconds since 1970-01-01 UTC. `None` with a
    /// pre-shared key.
    pub(crate) fn not_after(&self) -> Option<u64> {
        match &self.0 {
            Method::Psk(_) => None,
            Method::Certificate(credentials) => Some(credentials.not_after),
        }
    }

    /// Returns the seconds for which the peer's certificate is accepted after its notAfter.
    pub(crate) fn certificate_grace(&self) -> u64 {
        match &self.0 {
            Method::Psk(_) => 0,
            Method::Certificate(credentials) => credentials.validator.grace(),
        }
    }

    /// Checks again whether the certificate that `peer` presented earlier is revoked.
    ///
    /// # Errors
    /// Returns an error if it is revoked.
    pub fn check_not_revoked(&self, shown: &PeerCertificate, peer: &Identity) -> Result<(), AuthError> {
        match &self.0 {
            Method::Psk(_) => Ok(()),
            Method::Certificate(credentials) => credentials.validator.check_revocation(shown, peer),
        }
    }
}

impl Credentials {
    fn new(auth: &CertificateAuth) -> Result<Self, CredentialError> {
        let leaf = auth.chain.first().ok_or(CredentialError::NoCertificate)?;
        if auth.chain.len() > MAX_CHAIN {
            return Err(CredentialError::ChainTooLong(auth.chain.len()));
        }
        if let Some(large) = auth.chain.iter().find(|certificate| certificate.len() > MAX_CERTIFICATE) {
            return Err(CredentialError::CertificateTooLarge(large.len()));
        }
        let key = SigningKey::new(&auth.key)?;
        let certified = certificate_validator::public_key(leaf).ok_or(CredentialError::MalformedCertificate)?;
        //= RFC 7296 1.2 MUST 1: the key's certificate is first
        if !key.belongs_to(&certified) {
            return Err(CredentialError::KeyMismatch);
        }
        let x509 = |data: &Vec<u8>| Certificate { encoding: CertificateEncoding::X509Signature, data: data.clone() };
        let not_after = certificate_validator::not_after(leaf);
        let validator = CertificateValidator::new(auth)?;
        Ok(Self { chain: auth.chain.iter().map(x509).collect(), key, validator, not_after })
    }
}
