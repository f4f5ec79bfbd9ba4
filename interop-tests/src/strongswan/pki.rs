//! Makes certificates for peers.

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, DnValue, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, date_time_ymd,
};

/// Type of an end entity's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Ed25519 (RFC 8410), as PKCS#8 version 1.
    Ed25519,
    /// ECDSA on P-256 with SHA-256.
    P256,
    /// RSA with 2048 bits.
    Rsa,
}

impl KeyKind {
    /// Makes a key with `openssl`. ring would write Ed25519 keys as PKCS#8 version 2, which few
    /// peers read.
    fn generate(self) -> Result<String> {
        let args: &[&str] = match self {
            Self::Ed25519 => &["-algorithm", "ed25519"],
            Self::P256 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Self::Rsa => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        };
        let out = std::process::Command::new("openssl")
            .arg("genpkey")
            .args(args)
            .output()
            .context("openssl cannot be run")?;
        anyhow::ensure!(out.status.success(), "openssl genpkey: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?)
    }
}

/// The organization in certificate subjects.
const ORGANIZATION: &str = "Edge Lab";

/// Returns the subject that [`Authority::issue_by_subject`] gives to `name`, as text.
#[must_use]
pub fn subject(name: &str) -> String {
    format!("C=DE, O={ORGANIZATION}, CN={name}")
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its self-signed certificate, PEM.
    pub certificate_pem: String,
}

/// An end entity's certificate and key.
#[derive(Clone)]
pub struct Credentials {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The private key, PKCS#8 in PEM.
    pub key_pem: String,
    /// The certificate's serial number.
    pub serial: u64,
}

impl Authority {
    /// Makes a new authority with an ECDSA key.
    ///
    /// # Errors
    /// Returns an error if the key or the certificate cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate_pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    /// Issues a certificate for one DNS name, which is the holder's identity in IKE.
    ///
    /// # Errors
    /// Returns an error if the key or the certificate cannot be made.
    pub fn issue(&self, name: &str, kind: KeyKind) -> Result<Credentials> {
        self.issue_for(vec![name.to_owned()], common_name(name), kind)
    }

    /// Issues a certificate without DNS name. Its subject, the holder's identity in IKE, is
    /// [`subject`], with a PrintableString for the country.
    ///
    /// # Errors
    /// Returns an error if the key or the certificate cannot be made.
    pub fn issue_by_subject(&self, name: &str, kind: KeyKind) -> Result<Credentials> {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CountryName, DnValue::PrintableString("DE".try_into()?));
        subject.push(DnType::OrganizationName, ORGANIZATION);
        subject.push(DnType::CommonName, name);
        self.issue_for(Vec::new(), subject, kind)
    }

    /// Issues a certificate as [`Self::issue`] does, with so many further names that the
    /// certificate does not fit into one datagram.
    ///
    /// # Errors
    /// Returns an error if the key or the certificate cannot be made.
    pub fn issue_long(&self, name: &str, kind: KeyKind) -> Result<Credentials> {
        let more = (0..40).map(|n| format!("one-more-name-that-nobody-asks-for-{n}.{name}"));
        self.issue_for([name.to_owned()].into_iter().chain(more).collect(), common_name(name), kind)
    }

    /// Issues a revocation list with these certificates, PEM. Of two lists the one with the higher
    /// `number` is newer.
    ///
    /// # Errors
    /// Returns an error if the list cannot be made.
    pub fn revocation_list(&self, number: u64, revoked: &[&Credentials]) -> Result<String> {
        let entry = |credentials: &&Credentials| RevokedCertParams {
            serial_number: credentials.serial.into(),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }

    fn issue_for(&self, names: Vec<String>, subject: DistinguishedName, kind: KeyKind) -> Result<Credentials> {
        let key_pem = kind.generate()?;
        let key = KeyPair::from_pem(&key_pem).context("reading openssl's key")?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = subject;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A serial number is positive (RFC 5280 4.1.2.2).
        let serial = fastrand::u64(1..1 << 63);
        params.serial_number = Some(serial.into());
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Credentials { certificate_pem: certificate.pem(), key_pem, serial })
    }
}
