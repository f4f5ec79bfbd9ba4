//! Stores the document with the certificate authorities as a file in the state directory. A new
//! version is written to another file, synced and renamed, so a power cut leaves either the former
//! or the new version complete. A second file has only the trusted certificates, for people and for
//! clients such as curl.

use std::path::{Path, PathBuf};

use edge_types::durable::{ReplaceError, replace_file};
use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::authority;
use super::document::{AuthorityRecord, CaDocument, SecretPem, VERSION};
use super::error::CaError;
use super::hash::{hex, sha256};
use super::storage::{CaStorage, Revision};
use crate::clock::Seconds;

/// File with all authorities and their keys.
pub const DOCUMENT: &str = "ca.json";
/// File with the trusted certificates, PEM.
pub const CERTIFICATES: &str = "ca.crt";
/// File in which earlier releases kept the private key, next to [`CERTIFICATES`].
pub const FORMER_KEY: &str = "ca.key";

/// A storage for the document in a directory that only this process uses.
pub struct Files {
    directory: PathBuf,
    now: Seconds,
}

impl Files {
    /// Makes a storage in this directory. `now` becomes the creation time of an authority that an
    /// earlier release stored.
    pub fn new(directory: &Path, now: Seconds) -> Self {
        Self { directory: directory.into(), now }
    }

    /// Returns whether this directory has an authority that this or an earlier release stored.
    pub fn are_in(directory: &Path) -> bool {
        [DOCUMENT, CERTIFICATES, FORMER_KEY].iter().any(|name| directory.join(name).exists())
    }

    fn load_now(&self) -> Result<Option<(CaDocument, Revision)>, CaError> {
        let Some(text) = read(&self.directory, DOCUMENT)? else {
            let Some(former) = self.former()? else { return Ok(None) };
            let revision = self.store_now(&former, None)?;
            tracing::info!(file = %self.directory.join(DOCUMENT).display(), "the authority of an earlier release is stored here now");
            remove(&self.directory, FORMER_KEY)?;
            return Ok(Some((former, revision)));
        };
        // A power cut may have prevented the removal of the key file earlier.
        remove(&self.directory, FORMER_KEY)?;
        let content = |why: String| content(&self.directory, DOCUMENT, why);
        let document: CaDocument =
            serde_json::from_str(&text).map_err(|e| content(format!("is damaged ({e}); restore it from a backup")))?;
        if document.version > VERSION {
            let found = document.version;
            return Err(content(format!(
                "is of layout {found}, and this release reads {VERSION}; use the release that wrote it"
            )));
        }
        Ok(Some((document, revision_of(&text))))
    }

    fn store_now(&self, document: &CaDocument, over: Option<&Revision>) -> Result<Revision, CaError> {
        let present = read(&self.directory, DOCUMENT)?;
        if present.as_deref().map(|text| revision_of(text)).as_ref() != over {
            return Err(CaError::Conflict);
        }
        let text = serde_json::to_string_pretty(document).map(Zeroizing::new);
        let text = text.map_err(|e| content(&self.directory, DOCUMENT, e.to_string()))?;
        write(&self.directory, DOCUMENT, &text)?;
        let trusted = document.authorities.iter().rev().filter(|authority| authority.retired_at.is_none());
        let certificates: String = trusted.map(|authority| authority.certificate.as_str()).collect();
        write(&self.directory, CERTIFICATES, &certificates)?;
        Ok(revision_of(&text))
    }

    /// Reads the files of an earlier release: the key and, unless a power cut came between
    /// the two writes, the certificate.
    fn former(&self) -> Result<Option<CaDocument>, CaError> {
        let key = match (read(&self.directory, FORMER_KEY)?, read(&self.directory, CERTIFICATES)?) {
            (None, None) => return Ok(None),
            (Some(key), _) => key,
            (None, Some(_)) => {
                let why = format!(
                    "is missing while {CERTIFICATES} is there; restore it from a backup, or remove {CERTIFICATES} to begin a new \
                     authority: every node must then join again"
                );
                return Err(content(&self.directory, DOCUMENT, why));
            }
        };
        let pair = authority::key(&key)
            .map_err(|why| content(&self.directory, FORMER_KEY, format!("{why}; restore it from a backup")))?;
        let certificate = match read(&self.directory, CERTIFICATES)? {
            Some(certificate) => certificate.to_string(),
            None => authority::self_signed(&pair, self.now)?,
        };
        let record =
            AuthorityRecord { certificate, key: Some(SecretPem::new(key)), created_at: self.now, retired_at: None };
        authority::Authority::new(&record).map_err(|why| {
            content(
                &self.directory,
                CERTIFICATES,
                format!("does not fit {FORMER_KEY}: {why}; restore both from one backup"),
            )
        })?;
        Ok(Some(CaDocument { version: VERSION, authorities: vec![record], cross: Vec::new() }))
    }
}

impl CaStorage for Files {
    fn load(&self) -> BoxFuture<'_, Result<Option<(CaDocument, Revision)>, CaError>> {
        Box::pin(async { self.load_now() })
    }

    fn store<'a>(
        &'a self,
        document: &'a CaDocument,
        over: Option<&'a Revision>,
    ) -> BoxFuture<'a, Result<Revision, CaError>> {
        Box::pin(async move { self.store_now(document, over) })
    }
}

fn revision_of(text: &str) -> Revision {
    Revision(hex(&sha256(text.as_bytes())))
}

fn read(directory: &Path, name: &str) -> Result<Option<Zeroizing<String>>, CaError> {
    match std::fs::read_to_string(directory.join(name)) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CaError::File { path: directory.join(name), error }),
    }
}

fn remove(directory: &Path, name: &str) -> Result<(), CaError> {
    match std::fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CaError::File { path: directory.join(name), error })
        }
        _ => Ok(()),
    }
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), CaError> {
    let written = replace_file(&directory.join(name), text.as_bytes(), 0o600);
    written.map(drop).map_err(|ReplaceError { path, error, .. }| CaError::File { path, error })
}

fn content(directory: &Path, name: &str, why: String) -> CaError {
    CaError::Content { path: directory.join(name), why }
}
