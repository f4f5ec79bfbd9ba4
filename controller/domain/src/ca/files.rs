//! The document as a file of the state directory: written aside, synced and renamed, so that a
//! power cut leaves the former or the new one, whole. Beside it the trusted certificates alone, for
//! people and for clients such as curl.

use futures_util::future::BoxFuture;
use std::path::{Path, PathBuf};

use edge_types::durable::{ReplaceError, replace_file};
use zeroize::Zeroizing;

use super::document::{AuthorityRecord, SecretPem, VERSION};
use super::keeper::{Keeper, Revision};
use super::{CaDocument, CaError, authority, hex, sha256};
use crate::clock::Seconds;

/// All authorities with their keys.
pub const DOCUMENT: &str = "ca.json";
/// The trusted certificates, PEM.
pub const CERTIFICATES: &str = "ca.crt";
/// What earlier releases kept the key in, beside [`CERTIFICATES`].
pub const FORMER_KEY: &str = "ca.key";

/// Keeps the document in a folder that only this process uses.
pub struct Files {
    folder: PathBuf,
    now: Seconds,
}

impl Files {
    /// In this folder.
    pub fn new(folder: &Path, now: Seconds) -> Self {
        Self { folder: folder.into(), now }
    }

    /// Whether an authority was ever kept in this folder, by this release or an earlier one.
    pub fn are_in(folder: &Path) -> bool {
        [DOCUMENT, CERTIFICATES, FORMER_KEY].iter().any(|name| folder.join(name).exists())
    }

    fn load_now(&self) -> Result<Option<(CaDocument, Revision)>, CaError> {
        let Some(text) = read(&self.folder, DOCUMENT)? else {
            let Some(former) = self.former()? else { return Ok(None) };
            let revision = self.store_now(&former, None)?;
            tracing::info!(file = %self.folder.join(DOCUMENT).display(), "the authority of an earlier release is kept here now");
            remove(&self.folder, FORMER_KEY)?;
            return Ok(Some((former, revision)));
        };
        // A power cut may have come between.
        remove(&self.folder, FORMER_KEY)?;
        let content = |why: String| content(&self.folder, DOCUMENT, why);
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
        let present = read(&self.folder, DOCUMENT)?;
        if present.as_deref().map(|text| revision_of(text)).as_ref() != over {
            return Err(CaError::Conflict);
        }
        let text = serde_json::to_string_pretty(document).map(Zeroizing::new);
        let text = text.map_err(|e| content(&self.folder, DOCUMENT, e.to_string()))?;
        write(&self.folder, DOCUMENT, &text)?;
        let trusted = document.authorities.iter().rev().filter(|authority| authority.retired_at.is_none());
        let certificates: String = trusted.map(|authority| authority.certificate.as_str()).collect();
        write(&self.folder, CERTIFICATES, &certificates)?;
        Ok(revision_of(&text))
    }

    /// What an earlier release left: a key that was written first, and its certificate.
    fn former(&self) -> Result<Option<CaDocument>, CaError> {
        let key = match (read(&self.folder, FORMER_KEY)?, read(&self.folder, CERTIFICATES)?) {
            (None, None) => return Ok(None),
            (Some(key), _) => key,
            (None, Some(_)) => {
                let why = format!(
                    "is missing while {CERTIFICATES} is there; restore it from a backup, or remove {CERTIFICATES} to begin a new \
                     authority: every node must then join again"
                );
                return Err(content(&self.folder, DOCUMENT, why));
            }
        };
        let pair = authority::key(&key)
            .map_err(|why| content(&self.folder, FORMER_KEY, format!("{why}; restore it from a backup")))?;
        let certificate = match read(&self.folder, CERTIFICATES)? {
            Some(certificate) => certificate.to_string(),
            None => authority::self_signed(&pair, self.now)?,
        };
        let record =
            AuthorityRecord { certificate, key: Some(SecretPem::new(key)), created_at: self.now, retired_at: None };
        authority::Authority::new(&record).map_err(|why| {
            content(
                &self.folder,
                CERTIFICATES,
                format!("does not fit {FORMER_KEY}: {why}; restore both from one backup"),
            )
        })?;
        Ok(Some(CaDocument { version: VERSION, authorities: vec![record], cross: Vec::new() }))
    }
}

impl Keeper for Files {
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

fn read(folder: &Path, name: &str) -> Result<Option<Zeroizing<String>>, CaError> {
    match std::fs::read_to_string(folder.join(name)) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::File { path: folder.join(name), source }),
    }
}

fn remove(folder: &Path, name: &str) -> Result<(), CaError> {
    match std::fs::remove_file(folder.join(name)) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(CaError::File { path: folder.join(name), source })
        }
        _ => Ok(()),
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), CaError> {
    let written = replace_file(&folder.join(name), text.as_bytes(), 0o600);
    written.map(drop).map_err(|ReplaceError { path, error, .. }| CaError::File { path, source: error })
}

fn content(folder: &Path, name: &str, why: String) -> CaError {
    CaError::Content { path: folder.join(name), why }
}
