//! Tests of authentication. rcgen makes the certificates, both valid ones and ones that are invalid
//! in many ways. Some tests use pre-shared keys.

mod certificates;
mod credentials;
mod ecdsa;
mod mutilated;
mod names;
mod psk;
mod revocation;
mod rsa;

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, SignatureAlgorithm, date_time_ymd,
};

use super::*;
use crate::config::{Auth, CertificateAuth, Cipher, Group, Identity, Prf};
use crate::crypto::{IkeKeys, IkeSuite, Nonces};
use crate::event::{IkeId, PeerErrorKind};
use crate::secret::Secret;
use crate::wire::{AuthMethod, Authentication, Certificate, CertificateEncoding, HashAlgorithm, Id};

/// 2026-01-01 UTC.
const NOW: u64 = 1_767_225_600;
const IPSEC_IKE: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];
const IPSEC_IKE_DER: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 17];
const HASHES: Option<&[HashAlgorithm]> = Some(&Authenticator::HASHES);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Authority {
    fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = Self::params(name);
        change(&mut params);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn intermediate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = Self::params(name);
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// Issues a node's certificate, changed by `change`. Returns it with its key.
    fn issue(
        &self,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (Vec<u8>, Secret) {
        self.certify(KeyPair::generate_for(algorithm).unwrap(), change)
    }

    /// Issues a certificate for this key, changed by `change`. Returns it with the key.
    fn certify(&self, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, Secret) {
        let mut params = CertificateParams::default();
        params.distinguished_name = named("edge-a1");
        params.not_before = date_time_ymd(2025, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        params.subject_alt_names = vec![
            SanType::DnsName("edge-a1.example".try_into().unwrap()),
            SanType::URI("edge-cni://edge/edge-a1".try_into().unwrap()),
            SanType::Rfc822Name("ops@edge.example".try_into().unwrap()),
            SanType::IpAddress("192.0.2.1".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Other(IPSEC_IKE.to_vec())];
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        (der, Secret::new(key.serialize_der()))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn fqdn() -> Identity {
    Identity::Fqdn("edge-a1.example".into())
}

fn config(root: &Authority, (der, key): (Vec<u8>, Secret)) -> CertificateAuth {
    CertificateAuth {
        chain: vec![der],
        key,
        trust_anchors: vec![root.der.clone()],
        remote_uri: None,
        remote_key_usages: vec![],
        remote_not_before: 0,
        remote_grace: Duration::ZERO,
        revocation: None,
    }
}

fn authenticator(auth: &CertificateAuth) -> Authenticator {
    Authenticator::new(&Auth::Certificate(auth.clone())).unwrap()
}

fn keys(prf: Prf) -> IkeKeys {
    let suite = IkeSuite { cipher: Cipher::Aes256Gcm16, prf, group: Group::X25519 };
    let (ni, nr): (Vec<u8>, Vec<u8>) = ((0x10..0x30).collect(), (0x80..0x98).collect());
    let shared = Secret::new((0..32_u8).map(|at| at.wrapping_mul(7).wrapping_add(3)).collect());
    let ike = IkeId { initiator: 0x0102_0304_0506_0708, responder: 0x1112_1314_1516_1718 };
    IkeKeys::initial(suite, Nonces { initiator: &ni, responder: &nr }, ike, &shared)
}

fn octets(id: &Id) -> SignedOctets {
    SignedOctets::initiator(&keys(Prf::HmacSha256), b"message", &(0x80..0x98).collect::<Vec<u8>>(), id)
}

/// Authenticates with `prover` as `identity`, and returns what `judge` decides.
fn judged(judge: &Authenticator, prover: &Authenticator, identity: &Identity) -> Result<Proof, AuthError> {
    let id = Id::from(identity);
    let authentication = prover.prove(&octets(&id), HASHES)?;
    let presented = Presented { id: &id, certificates: prover.certificates(), authentication: &authentication };
    judge.verify(identity, presented, &octets(&id), NOW)
}

/// Returns the result of checking a certificate changed by `change`, at a peer that trusts the
/// issuer.
fn verdict(identity: &Identity, change: impl FnOnce(&mut CertificateParams)) -> Result<Proof, AuthError> {
    let root = Authority::root("root");
    let auth = config(&root, root.issue(&PKCS_ED25519, change));
    let mut judge = auth.clone();
    judge.remote_uri = Some("edge-cni://edge/edge-a1".into());
    judge.remote_key_usages = vec![IPSEC_IKE_DER.to_vec()];
    judged(&authenticator(&judge), &authenticator(&auth), identity)
}
