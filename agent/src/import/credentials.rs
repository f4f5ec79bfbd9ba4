//! The credentials that `swanctl --load-creds` would load: the secrets in the file, and the files
//! in the directories next to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_ike::config::{Auth, CertificateAuth};
use edge_ike::{Identity, Secret, certificate_is_for, check_credentials, same_identity};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use super::swanctl_file::Section;
use crate::config::parse_identity;

/// Directories of private keys, next to the file.
const KEY_DIRECTORIES: [&str; 4] = ["private", "pkcs8", "ecdsa", "rsa"];
/// Maximum number of files in one directory; more files are an error.
const MAX_FILES: usize = 1000;
/// Maximum size of a file, in octets; a larger file is an error, since it contains no certificate
/// and no key.
const MAX_FILE: u64 = 1 << 20;

/// Credentials of a connection that authenticates with certificates.
pub(super) struct Certificates {
    /// This node's certificate and the intermediates, DER, leaf first.
    pub(super) chain: Vec<Vec<u8>>,
    /// This node's private key, PKCS#8.
    pub(super) key: Zeroizing<Vec<u8>>,
    /// Certificates that prove the peer's identity, DER.
    pub(super) trust_anchors: Vec<Vec<u8>>,
    /// The directory with revocation lists, if it has any.
    pub(super) crls: Option<PathBuf>,
}

/// Returns the pre-shared key for a pair of identities, from the section `ike*` that names the most
/// of these identities. A section without identities applies to every pair.
pub(super) fn psk(secrets: Option<&Section>, local: &Identity, remote: &Identity) -> Result<Zeroizing<String>, String> {
    let mut best: Option<(u8, &str, &Section)> = None;
    for (name, section) in
        secrets.iter().flat_map(|secrets| secrets.sections()).filter(|(name, _)| name.starts_with("ike"))
    {
        let owners: Vec<&str> =
            section.keys().filter(|(key, _)| key.starts_with("id")).map(|(_, value)| value.text.as_str()).collect();
        let names = |identity: &Identity| {
            owners.iter().any(|owner| parse_identity(owner).is_ok_and(|owner| same_identity(&owner, identity)))
        };
        let any = owners.is_empty() || owners.iter().any(|owner| owner.starts_with("%any"));
        let score = 2 * u8::from(names(remote)) + u8::from(names(local));
        if score == 0 && !any {
            continue;
        }
        match best {
            Some((before, other, rival)) if before == score && rival.get("secret") != section.get("secret") => {
                return Err(format!(
                    "secrets {other} and {name} fit the connection equally well: name both identities in one of them"
                ));
            }
            Some((before, ..)) if before >= score => {}
            _ => best = Some((score, name, section)),
        }
    }
    match best.map(|(_, name, section)| (name, section.get("secret"))) {
        Some((_, Some(secret))) => Ok(Zeroizing::new(secret.to_owned())),
        Some((name, None)) => Err(format!("secrets {name} has no secret")),
        None => Err(format!("no section ike* of secrets is for {local} and {remote}")),
    }
}

/// Certificates and keys by their directories.
pub(super) struct CredentialFiles<'a> {
    /// The directory of the file.
    pub(super) directory: &'a Path,
    /// The whole file.
    pub(super) root: &'a Section,
}

impl CredentialFiles<'_> {
    /// Returns the credentials of a connection. `local_id` selects this node's certificate if the
    /// file does not name one.
    pub(super) fn of(
        &self,
        local: &Section,
        remote: &Section,
        local_id: Option<&Identity>,
    ) -> Result<Certificates, String> {
        let authorities = self.authorities()?;
        let trust_anchors = self.trust_anchors(remote, &authorities)?;
        let leaf = self.leaf(local, local_id)?;
        let chain = with_intermediates(leaf, &authorities);
        let key = self.key(&chain, &trust_anchors)?;
        Ok(Certificates { chain, key, trust_anchors, crls: self.crls()? })
    }

    fn leaf(&self, local: &Section, local_id: Option<&Identity>) -> Result<Vec<u8>, String> {
        match local.list("certs")[..] {
            [name] => first(certificates(&self.directory.join("x509").join(name))?),
            [] => {
                let Some(identity) = local_id else {
                    return Err(
                        "local has neither certs nor id, and no certificate can be chosen: name one in certs".into()
                    );
                };
                let mut fitting = Vec::new();
                for file in files(&self.directory.join("x509"))? {
                    if let Ok(leaf) = certificates(&file).and_then(first)
                        && certificate_is_for(&leaf, identity)
                    {
                        fitting.push((file, leaf));
                    }
                }
                match fitting.len() {
                    1 => Ok(fitting.remove(0).1),
                    0 => Err(format!("no certificate in x509 is for {identity}: name one in local.certs")),
                    _ => Err(format!(
                        "{} certificates in x509 are for {identity}: name one in local.certs",
                        fitting.len()
                    )),
                }
            }
            _ => Err("local.certs names several certificates; the agent has one for each peer".into()),
        }
    }

    /// Returns the certificates of all authorities from the directory `x509ca` and from the
    /// sections `authorities`.
    fn authorities(&self) -> Result<Vec<Vec<u8>>, String> {
        let directory = self.directory.join("x509ca");
        let mut paths = files(&directory)?;
        for (_, section) in self.root.section("authorities").iter().flat_map(|authorities| authorities.sections()) {
            paths.extend(section.get("cacert").map(|name| directory.join(name)));
        }
        let mut all = Vec::new();
        for path in paths {
            for certificate in certificates(&path)? {
                if !all.contains(&certificate) {
                    all.push(certificate);
                }
            }
        }
        Ok(all)
    }

    /// Returns the certificates that may prove the peer's identity: the certificate that `remote`
    /// pins, the authorities that `remote` names, or all authorities.
    fn trust_anchors(&self, remote: &Section, authorities: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
        let pinned = remote.list("certs").into_iter().map(|name| self.directory.join("x509").join(name));
        let named = remote.list("cacerts").into_iter().map(|name| self.directory.join("x509ca").join(name));
        let paths: Vec<PathBuf> = pinned.chain(named).collect();
        let mut anchors = Vec::new();
        for path in &paths {
            anchors.extend(certificates(path)?);
        }
        if paths.is_empty() {
            anchors.extend_from_slice(authorities);
        }
        if anchors.is_empty() {
            return Err("no certificate in x509ca proves the peer".into());
        }
        Ok(anchors)
    }

    /// Returns the directory of revocation lists if it has files.
    fn crls(&self) -> Result<Option<PathBuf>, String> {
        let directory = self.directory.join("x509crl");
        if files(&directory)?.is_empty() {
            return Ok(None);
        }
        let absolute = std::path::absolute(&directory);
        absolute.map(Some).map_err(|error| format!("{}: {error}", directory.display()))
    }

    /// Returns the private key that belongs to this node's certificate.
    fn key(&self, chain: &[Vec<u8>], trust_anchors: &[Vec<u8>]) -> Result<Zeroizing<Vec<u8>>, String> {
        let mut others = Vec::new();
        for path in KEY_DIRECTORIES
            .iter()
            .map(|name| files(&self.directory.join(name)))
            .collect::<Result<Vec<_>, _>>()?
            .concat()
        {
            match private_key(&path) {
                Ok(key) => {
                    let auth = CertificateAuth {
                        chain: chain.to_vec(),
                        key: Secret::new(key.to_vec()),
                        trust_anchors: trust_anchors.to_vec(),
                        remote_uri: None,
                        remote_key_usages: vec![],
                        remote_not_before: 0,
                        remote_grace: Duration::ZERO,
                        revocation: None,
                    };
                    match check_credentials(&Auth::Certificate(auth)) {
                        Ok(()) => return Ok(key),
                        Err(problem) => others.push(format!("{}: {problem}", path.display())),
                    }
                }
                Err(problem) => others.push(problem),
            }
        }
        let others = if others.is_empty() { "there is none".into() } else { others.join("; ") };
        Err(format!("no private key belongs to our certificate: {others}"))
    }
}

fn first(certificates: Vec<Vec<u8>>) -> Result<Vec<u8>, String> {
    certificates.into_iter().next().ok_or_else(|| "no certificate".into())
}

/// Returns this node's certificate and the intermediate certificates between it and the root.
fn with_intermediates(leaf: Vec<u8>, authorities: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut chain = vec![leaf];
    while let Some(next) = chain.last().and_then(|last| issuer(last, authorities))
        && !chain.contains(next)
    {
        chain.push(next.clone());
    }
    chain
}

/// Returns the certificate of the authority that issued `certificate`; `None` if that authority is
/// a root or unknown.
fn issuer<'a>(certificate: &[u8], authorities: &'a [Vec<u8>]) -> Option<&'a Vec<u8>> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    authorities.iter().find(|der| {
        parse_x509_certificate(der).is_ok_and(|(_, authority)| {
            authority.subject().as_raw() == certificate.issuer().as_raw()
                && authority.subject().as_raw() != authority.issuer().as_raw()
        })
    })
}

/// Returns the files of a directory, sorted by name. Returns none if the directory does not exist.
fn files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: cannot be read: {error}", directory.display())),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .take(MAX_FILES + 1)
        .collect();
    if files.len() > MAX_FILES {
        return Err(format!("{}: more than {MAX_FILES} files", directory.display()));
    }
    files.sort();
    Ok(files)
}

fn content(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |error| format!("{}: cannot be read: {error}", path.display());
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE {
        return Err(format!("{}: larger than {MAX_FILE} octets", path.display()));
    }
    fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

/// Returns the certificates in a file, PEM or DER.
fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    let content = content(path)?;
    if parse_x509_certificate(&content).is_ok_and(|(rest, _)| rest.is_empty()) {
        return Ok(vec![content.to_vec()]);
    }
    let all: Result<Vec<Vec<u8>>, _> = rustls_pki_types::CertificateDer::pem_slice_iter(&content)
        .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
        .collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(format!("{}: no certificate in PEM or DER", path.display())),
    }
}

/// Returns the private key in a file, PEM or DER, as PKCS#8.
fn private_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let content = content(path)?;
    let convert = || {
        let path = path.display();
        format!(
            "{path}: not PKCS#8 without a passphrase: `openssl pkcs8 -topk8 -nocrypt -in {path} -out NEW` converts it; put NEW in its place"
        )
    };
    if !content.starts_with(b"-----") {
        // PrivateKeyInfo begins with its version (RFC 5208 5). A key in SEC 1 format also begins
        // with a version, but with another number.
        return match PrivateKeyDer::try_from(content.as_slice()) {
            Ok(PrivateKeyDer::Pkcs8(_)) => Ok(content),
            _ => Err(convert()),
        };
    }
    match PrivateKeyDer::from_pem_slice(&content) {
        Ok(PrivateKeyDer::Pkcs8(key)) => Ok(Zeroizing::new(key.secret_pkcs8_der().to_vec())),
        _ => Err(convert()),
    }
}
