//! An authority that the operator provides: a certificate and its key, PEM. The authority must be
//! able to sign every certificate for nodes and for the controller.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::authority::{self, Authority};
use super::document::{AuthorityRecord, SecretPem};
use super::error::CaError;
use crate::clock::{Seconds, rfc3339};

/// The files of the operator's authority: `ca_certificate` and `ca_key` in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorCa {
    /// Path of the certificate file.
    pub certificate: PathBuf,
    /// Path of the key file.
    pub key: PathBuf,
}

impl OperatorCa {
    /// Reads the files and checks that the authority can sign.
    pub(super) fn load(&self, now: Seconds) -> Result<AuthorityRecord, CaError> {
        let wrong = |path: &Path, why: String| CaError::Content { path: path.into(), why };
        let text = read(&self.certificate)?;
        let mut all = CertificateDer::pem_slice_iter(text.as_bytes());
        let certificate = match (all.next(), all.next()) {
            (Some(Ok(der)), None) => der,
            (Some(Ok(_)), Some(_)) => {
                let why = "holds several certificates; expected only the authority's own, which nodes will trust";
                return Err(wrong(&self.certificate, why.into()));
            }
            _ => return Err(wrong(&self.certificate, "is not a certificate in PEM".into())),
        };
        check(&certificate, now).map_err(|why| wrong(&self.certificate, why))?;
        let file = |error| CaError::File { path: self.key.clone(), error };
        let mode = std::fs::metadata(&self.key).map_err(file)?.permissions().mode();
        // The file's group may read the key, because Kubernetes mounts Secrets like this for a user
        // that is not root.
        if mode & 0o027 != 0 {
            let why = format!("may be read by others, or changed by its group (mode {:04o}): chmod 600", mode & 0o7777);
            return Err(wrong(&self.key, why));
        }
        let key = read(&self.key)?;
        authority::key(&key).map_err(|why| wrong(&self.key, why))?;
        let record = AuthorityRecord {
            certificate: authority::pem(&certificate),
            key: Some(SecretPem::new(key)),
            created_at: now,
            retired_at: None,
        };
        Authority::new(&record).map_err(|why| {
            wrong(&self.certificate, format!("and {} cannot be used together: {why}", self.key.display()))
        })?;
        Ok(record)
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, CaError> {
    let text = std::fs::read_to_string(path).map_err(|error| CaError::File { path: path.into(), error })?;
    Ok(Zeroizing::new(text))
}

/// Checks that a certificate belongs to an authority (RFC 5280 4.2.1.3, 4.2.1.9) and is valid now.
fn check(der: &CertificateDer<'_>, now: Seconds) -> Result<(), String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| format!("is not an X.509 certificate ({e})"))?;
    let constraints = certificate.basic_constraints().ok().flatten();
    if !constraints.is_some_and(|extension| extension.value.ca) {
        return Err("is not an authority's certificate: its basicConstraints do not say CA:TRUE".into());
    }
    let usage = certificate.key_usage().ok().flatten();
    if !usage.is_some_and(|extension| extension.value.key_cert_sign()) {
        return Err("may not sign certificates: its keyUsage lacks keyCertSign".into());
    }
    if certificate.subject().iter_rdn().next().is_none() {
        return Err("has no subject; nodes need one to find the authority".into());
    }
    let (begins, ends) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    if now >= ends {
        return Err(format!("expired at {}; renew it, or provide another authority", rfc3339(ends)));
    }
    if now < begins {
        return Err(format!("is valid only from {} on, and now it is {}", rfc3339(begins), rfc3339(now)));
    }
    Ok(())
}
