//! The authority's two files. The key is written first and is never replaced; each is written aside, synced and renamed, so that a power cut
//! leaves either none or a whole one.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::CaError;

pub(super) const KEY: &str = "ca.key";
pub(super) const CERTIFICATE: &str = "ca.crt";

/// Reads key and certificate (PEM), making what is missing.
pub(super) fn open(
    state_dir: &Path,
    sign: impl FnOnce(&KeyPair) -> Result<String, CaError>,
) -> Result<(KeyPair, String), CaError> {
    let key = match (read(state_dir, KEY)?, read(state_dir, CERTIFICATE)?) {
        (Some(key), _) => {
            let key = Zeroizing::new(key);
            KeyPair::from_pem(&key)
                .map_err(|e| content(state_dir, KEY, format!("is not a PKCS #8 key ({e}); restore it from a backup")))?
        }
        (None, Some(_)) => {
            let why = format!(
                "is missing while {CERTIFICATE} is there; restore it from a backup, or remove {CERTIFICATE} to begin \
                a new authority: every node must then join again"
            );
            return Err(content(state_dir, KEY, why));
        }
        (None, None) => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            write(state_dir, KEY, &Zeroizing::new(key.serialize_pem()), 0o600)?;
            tracing::info!(file = %state_dir.join(KEY).display(), "made the key of a new certificate authority");
            key
        }
    };
    let pem = match read(state_dir, CERTIFICATE)? {
        Some(pem) => pem,
        None => {
            let pem = sign(&key)?;
            write(state_dir, CERTIFICATE, &pem, 0o644)?;
            pem
        }
    };
    let der = certificate(&pem, state_dir)?;
    let parsed = X509Certificate::from_der(&der);
    if !parsed.is_ok_and(|(_, certificate)| certificate.public_key().raw == key.subject_public_key_info()) {
        return Err(content(
            state_dir,
            CERTIFICATE,
            format!("is of another key than {KEY}; restore both from one backup"),
        ));
    }
    Ok((key, pem))
}

/// The one certificate in the PEM.
pub(super) fn certificate(pem: &str, state_dir: &Path) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| {
        content(state_dir, CERTIFICATE, format!("is not a PEM certificate ({e}); remove it to have it made again"))
    })
}

fn read(state_dir: &Path, name: &str) -> Result<Option<String>, CaError> {
    match std::fs::read_to_string(state_dir.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::File { path: state_dir.join(name), source }),
    }
}

fn write(state_dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), CaError> {
    let aside = state_dir.join(format!("{name}.tmp"));
    let written = (|| {
        // A left-over from a power cut may have other permissions.
        match std::fs::remove_file(&aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, state_dir.join(name))?;
        std::fs::File::open(state_dir)?.sync_all()
    })();
    written.map_err(|source| CaError::File { path: state_dir.join(name), source })
}

fn content(state_dir: &Path, name: &str, why: String) -> CaError {
    CaError::Content { path: state_dir.join(name), why }
}
