//! The revocation lists of static peers: reads the files that `crls` names, and reads them again
//! when they change.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_ike::crl::{MAX_CRL, MAX_CRLS, Revocation, RevocationLists, RevocationPolicy};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;

use crate::incidents::Incidents;

/// Maximum size of all files of one path in `crls`, octets. Beyond it, none of them is used: a list
/// in memory takes about three times its size.
const MAX_FILES_SIZE: u64 = 2 * MAX_CRL as u64;

/// What happens if new lists cannot be used.
pub const FORMER_STAY: &str = "the revocation lists from before stay in force";

/// How the text form of a list begins.
const PEM: &[u8] = b"-----BEGIN X509 CRL-----";

/// The lists of one path, which peers share.
#[derive(Debug, Clone)]
struct Loaded {
    /// The files when they were last read.
    files: Vec<FileState>,
    lists: Arc<RevocationLists>,
}

/// A file's name, inode, size and time of modification. A file with the same ones is unchanged.
type FileState = (PathBuf, u64, u64, (i64, i64));

/// The files of all peers. Each one is read once, no matter how many peers use it.
#[derive(Debug, Clone, Default)]
pub struct CrlFiles(BTreeMap<PathBuf, Loaded>);

impl CrlFiles {
    /// Returns the lists in a file or directory. Fails if there is none, or if one cannot be used.
    pub fn load(&mut self, path: &Path, policy: RevocationPolicy) -> Result<Revocation, String> {
        if !self.0.contains_key(path) {
            let files = states(path)?;
            let lists = read(path, &files)?;
            self.0.insert(path.to_owned(), Loaded { files, lists });
        }
        let lists = self.0.get(path).map(|loaded| Arc::clone(&loaded.lists));
        lists.map(|lists| Revocation { lists, policy }).ok_or_else(|| format!("{}: not read", path.display()))
    }

    /// Returns whether there are no files.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the files that have changed. Returns the paths that have other lists now. If new lists
    /// cannot be used, the former ones stay.
    pub fn refresh(&mut self, incidents: &Incidents) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        for (path, loaded) in &mut self.0 {
            let outcome = states(path).and_then(|files| {
                if files == loaded.files {
                    return Ok(None);
                }
                // The files are not read again before they change again.
                loaded.files.clone_from(&files);
                read(path, &files).map(Some)
            });
            match outcome {
                Ok(None) => {}
                Ok(Some(lists)) => {
                    tracing::info!(path = %path.display(), entries = lists.entries(), "revocation lists read again");
                    loaded.lists = lists;
                    changed.push(path.clone());
                }
                Err(problem) => incidents.error(format!("crls: {problem}; {FORMER_STAY}")),
            }
        }
        changed
    }
}

/// Returns the files of a path, sorted by name: the file itself, or those in the directory without
/// a leading dot.
fn states(path: &Path) -> Result<Vec<FileState>, String> {
    let unreadable = |error| format!("{}: cannot be read: {error}", path.display());
    let mut paths = vec![path.to_owned()];
    if fs::metadata(path).map_err(unreadable)?.is_dir() {
        paths.clear();
        for entry in fs::read_dir(path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.push(entry.path());
            }
            if paths.len() > MAX_CRLS {
                return Err(format!(
                    "{}: more than {MAX_CRLS} files; remove those that are no longer needed",
                    path.display()
                ));
            }
        }
        paths.sort();
    }
    let state = |path: PathBuf| {
        let data = fs::metadata(&path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
        if !data.is_file() {
            return Err(format!("{}: not a file; expected a revocation list", path.display()));
        }
        Ok((path, data.ino(), data.size(), (data.mtime(), data.mtime_nsec())))
    };
    paths.into_iter().map(state).collect()
}

/// Reads all lists of these files.
fn read(path: &Path, files: &[FileState]) -> Result<Arc<RevocationLists>, String> {
    let mut sources = Vec::new();
    let mut left = MAX_FILES_SIZE;
    for (file, ..) in files {
        let unreadable = |error| format!("{}: cannot be read: {error}", file.display());
        let mut content = Vec::new();
        fs::File::open(file).map_err(unreadable)?.take(left + 1).read_to_end(&mut content).map_err(unreadable)?;
        left = left.checked_sub(content.len() as u64).ok_or_else(|| {
            format!("{}: the files have more than {MAX_FILES_SIZE} octets together; expected less", path.display())
        })?;
        let name = file.display().to_string();
        sources.extend(
            ders(&content).map_err(|problem| format!("{name}: {problem}"))?.into_iter().map(|der| (name.clone(), der)),
        );
    }
    if sources.is_empty() {
        return Err(format!("{}: no revocation list is in it", path.display()));
    }
    let lists = RevocationLists::new(&sources).map_err(|(name, problem)| format!("{name}: {problem}"))?;
    Ok(Arc::new(lists))
}

/// Returns the lists in a file's content, DER. In PEM, a file may have several.
fn ders(content: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if !content.windows(PEM.len()).any(|window| window == PEM) {
        return Ok(vec![content.to_vec()]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(content);
    let lists: Result<Vec<_>, _> = lists.map(|list| list.map(|list| list.to_vec())).collect();
    lists.map_err(|error| format!("not revocation lists in PEM: {error}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams,
        CertifiedIssuer, DnType, IsCa, KeyIdMethod, KeyPair, PKCS_ED25519, date_time_ymd,
    };

    use super::*;

    fn list(issuer: &str) -> CertificateRevocationList {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, issuer);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&issuer).unwrap()
    }

    fn names(path: &Path) -> Vec<String> {
        let loaded = CrlFiles::default().load(path, RevocationPolicy::Strict).unwrap();
        let names = loaded.lists.next_updates().map(|(name, _)| name.rsplit('/').next().unwrap_or_default().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_a_list_in_der_or_several_in_pem_and_a_directory_has_such_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("a.crl"), list("a").der()).unwrap();
        fs::write(path("b c.pem"), list("b").pem().unwrap() + &list("c").pem().unwrap()).unwrap();
        fs::write(path(".b.pem.swp"), "not a list").unwrap();
        assert_eq!(names(&path("a.crl")), ["a.crl"]);
        assert_eq!(names(&path("b c.pem")), ["b c.pem", "b c.pem"]);
        assert_eq!(names(directory.path()), ["a.crl", "b c.pem", "b c.pem"]);
    }

    #[test]
    fn a_path_that_holds_no_lists_is_refused_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let refused = |path: &Path| CrlFiles::default().load(path, RevocationPolicy::Relaxed).unwrap_err();
        assert!(refused(&path("missing")).contains("missing: cannot be read"));
        assert!(refused(directory.path()).contains("no revocation list is in it"));
        fs::create_dir(path("inner")).unwrap();
        assert!(refused(directory.path()).contains("inner: not a file"));
        fs::remove_dir(path("inner")).unwrap();
        fs::write(path("README"), "lists of our CA").unwrap();
        assert!(refused(directory.path()).contains("README: it is not DER of a CRL"));
        let cut = list("a").pem().unwrap();
        fs::write(path("README"), cut.get(..cut.len() - 60).unwrap_or_default()).unwrap();
        assert!(refused(directory.path()).contains("README: not revocation lists in PEM"));
        fs::write(path("README"), vec![0; MAX_CRL + 1]).unwrap();
        assert!(refused(directory.path()).contains("limit"));
        fs::File::create(path("large")).unwrap().set_len(MAX_FILES_SIZE).unwrap();
        assert!(refused(directory.path()).contains("together"));
        for nth in 0..=MAX_CRLS {
            fs::write(path(&format!("{nth}")), "").unwrap();
        }
        assert!(refused(directory.path()).contains("more than 64 files"));
    }

    #[test]
    fn peers_with_the_same_path_share_its_lists() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), list("a").der()).unwrap();
        let mut files = CrlFiles::default();
        let mut load = |policy| files.load(file.path(), policy).unwrap();
        let (one, other) = (load(RevocationPolicy::Strict), load(RevocationPolicy::Relaxed));
        assert!(Arc::ptr_eq(&one.lists, &other.lists) && one.policy != other.policy);
    }
}
