//! Holds all certificate authorities at one moment: the trusted ones (one of which signs) and the
//! retired ones.

use std::sync::Arc;

use edge_types::{NodeName, Role};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{self, Authority, Term};
use super::document::{AuthorityRecord, CaDocument};
use super::error::CaError;
use super::hash::{hex, sha256};
use super::request::NodeKey;
use crate::clock::Seconds;

/// All authorities at one moment.
pub struct Authorities {
    /// The trusted authorities, oldest first. The last one signs.
    pub(super) trusted: Vec<Arc<Authority>>,
    active: Arc<Authority>,
    /// The cross certificates for the signing authority. They accompany every certificate that it
    /// signs.
    cross: Vec<CertificateDer<'static>>,
    /// The retired authorities, oldest first.
    retired: Vec<RetiredAuthority>,
    /// Key hash of the first authority that was ever in use. It is the issuer of every certificate
    /// whose issuer was not recorded.
    first: String,
    /// The document from which these authorities were made.
    pub(super) document: CaDocument,
}

/// An authority that is not trusted any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetiredAuthority {
    /// SHA-256 of the authority's key, hexadecimal.
    pub id: String,
    /// Subject of the authority's certificate (RFC 5280), as text.
    pub subject: String,
    /// The authority's self-signed certificate, PEM.
    pub pem: String,
    /// Time at which the authority began to sign, seconds since 1970-01-01 UTC.
    pub created_at: Seconds,
    /// Time at which the authority was retired, seconds since 1970-01-01 UTC.
    pub retired_at: Seconds,
    /// `notAfter` of the authority's certificate.
    pub not_after: Seconds,
}

/// A certificate that was just signed for a node.
pub struct Issued {
    /// The certificate, then the cross certificates that lead from older authorities to its issuer,
    /// PEM.
    pub chain: String,
    /// Serial number and validity of the certificate.
    pub term: Term,
    /// SHA-256 of its issuer's key, hexadecimal.
    pub issuer: String,
}

impl Authorities {
    /// Returns whether `other` has the same authorities, from another read of the document.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        let same = self.trusted.iter().zip(&other.trusted).all(|(one, other)| Arc::ptr_eq(one, other));
        same && self.trusted.len() == other.trusted.len()
            && Arc::ptr_eq(&self.active, &other.active)
            && (&self.cross, &self.retired, &self.first) == (&other.cross, &other.retired, &other.first)
    }

    /// Reads the authorities from a document. Authorities that `before` already has are reused.
    pub(super) fn of(document: &CaDocument, before: Option<&Authorities>) -> Result<Self, CaError> {
        let mut trusted: Vec<Arc<Authority>> = Vec::new();
        let mut retired = Vec::new();
        let mut first = None;
        for record in &document.authorities {
            let id = match record.retired_at {
                Some(retired_at) => {
                    let authority = read_retired(record, retired_at)?;
                    let id = authority.id.clone();
                    retired.push(authority);
                    id
                }
                None => {
                    let authority = Authority::new(record).map_err(CaError::Document)?;
                    let known = before.and_then(|before| {
                        before.trusted.iter().find(|known| known.certificate() == authority.certificate())
                    });
                    let authority = known.cloned().unwrap_or_else(|| Arc::new(authority));
                    let id = authority.id();
                    trusted.push(authority);
                    id
                }
            };
            first.get_or_insert(id);
        }
        let (Some(active), Some(first)) = (trusted.last().cloned(), first) else {
            return Err(CaError::Document("none of them is trusted".into()));
        };
        let cross = document.cross.iter().filter(|cross| cross.subject == active.id());
        let cross = cross.map(|cross| {
            CertificateDer::from_pem_slice(cross.certificate.as_bytes())
                .map_err(|e| CaError::Document(format!("a cross certificate is not PEM ({e})")))
        });
        let cross = cross.collect::<Result<_, _>>()?;
        Ok(Self { cross, trusted, active, retired, first, document: document.clone() })
    }

    /// Returns the signing authority.
    pub fn active(&self) -> &Arc<Authority> {
        &self.active
    }

    /// Returns all trusted authorities, oldest first. The last one signs.
    pub fn trusted(&self) -> &[Arc<Authority>] {
        &self.trusted
    }

    /// Returns the retired authorities, oldest first.
    pub fn retired(&self) -> &[RetiredAuthority] {
        &self.retired
    }

    /// Returns the certificates of all trusted authorities, PEM. The signing authority's
    /// certificate is the first.
    pub fn anchors(&self) -> Vec<String> {
        self.trusted.iter().rev().map(|authority| authority.pem().to_owned()).collect()
    }

    /// Finds a trusted authority by its key hash, or by at least the first eight digits of its key
    /// hash.
    pub fn find(&self, id: &str) -> Result<&Arc<Authority>, CaError> {
        let mut found = self.trusted.iter().filter(|authority| id.len() >= 8 && authority.id().starts_with(id));
        match (found.next(), found.next()) {
            (Some(authority), None) => Ok(authority),
            _ => Err(CaError::NoSuch(id.into())),
        }
    }

    /// Returns whether `issuer`, as recorded for a certificate, is this authority. Releases that
    /// had only one authority recorded an empty issuer.
    pub fn is_issuer(&self, issuer: &str, authority: &Authority) -> bool {
        authority.id() == if issuer.is_empty() { self.first.as_str() } else { issuer }
    }

    /// Returns the trusted authority that signed a certificate. The caller has already verified the
    /// certificate.
    pub fn issuer_of(&self, certificate: &CertificateDer<'_>) -> Option<&Arc<Authority>> {
        if let [only] = self.trusted.as_slice() {
            return Some(only);
        }
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        self.trusted.iter().rev().find(|authority| authority.has_signed(&certificate))
    }

    /// Signs a node's certificate.
    pub fn sign_node(&self, node: &NodeName, role: Role, key: &NodeKey, term: &Term) -> Result<Issued, CaError> {
        let (leaf, term) = self.active().sign_node(node, role, key, term)?;
        let chain = std::iter::once(leaf).chain(self.cross.iter().map(authority::pem)).collect();
        Ok(Issued { chain, term, issuer: self.active().id() })
    }

    /// Creates a key for the controller's own TLS and signs its certificate. Returns the chain,
    /// leaf first, and the key.
    pub fn sign_server(
        &self,
        names: &[String],
        term: &Term,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let (leaf, key) = self.active().sign_server(names, term)?;
        // The chain ends with the self-signed certificates of all trusted authorities, the signing
        // authority's last, because a joining node has only the key hash of one authority.
        let roots = self.trusted.iter().map(|authority| authority.certificate().clone());
        Ok((std::iter::once(leaf).chain(self.cross.iter().cloned()).chain(roots).collect(), key))
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = String> + '_ {
        let trusted = self.trusted.iter().map(|authority| authority.id());
        trusted.chain(self.retired.iter().map(|retired| retired.id.clone()))
    }
}

fn read_retired(record: &AuthorityRecord, retired_at: Seconds) -> Result<RetiredAuthority, CaError> {
    let der = CertificateDer::from_pem_slice(record.certificate.as_bytes())
        .map_err(|e| CaError::Document(format!("a retired authority's certificate is not PEM ({e})")))?;
    let (_, certificate) = X509Certificate::from_der(&der)
        .map_err(|e| CaError::Document(format!("a retired authority's certificate is not X.509 ({e})")))?;
    Ok(RetiredAuthority {
        id: hex(&sha256(certificate.public_key().raw)),
        subject: certificate.subject().to_string(),
        pem: record.certificate.clone(),
        created_at: record.created_at,
        retired_at,
        not_after: certificate.validity().not_after.timestamp(),
    })
}
