//! The certificate authorities: one signs nodes' and the controller's own certificates; those
//! before it are trusted until they are retired.
//!
//! - [`Ca`]: the authorities as they are now, and how they change: made or given at first, rolled
//!   over, retired.
//! - [`authority`]: one of them, and what it signs. [`given`]: one that the operator brings.
//! - [`document`]: what is kept of them. [`keeper`]: where; [`files`]: in the state directory.
//! - [`request`]: what a node's certificate request may hold.
//!
//! At a rollover every authority that is still trusted vouches for the new one by a cross
//! certificate (the new one's name and key, signed by the old one). It travels with everything that
//! the new one signs, so that a node which has not heard of the rollover believes it all the same;
//! and so no tunnel depends on who hears of it first.

mod authority;
pub mod document;
mod files;
mod given;
pub mod keeper;
pub mod request;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use edge_types::{NodeName, Role};
use ring::digest::{SHA256, digest};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::Seconds;
pub use authority::{Authority, BACKDATED, Term};
pub use document::CaDocument;
use document::{AuthorityRecord, CrossRecord};
pub use files::Files;
pub use files::{CERTIFICATES, DOCUMENT, FORMER_KEY};
pub use given::Given;
use keeper::{Keeper, Revision};
use request::NodeKey;

/// Authorities that are trusted at once, at most: each is one more certificate in every chain.
const MOST_TRUSTED: usize = 4;

/// Why the authorities cannot work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of theirs cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of theirs does not hold what it should.
    #[error("{path} {why}")]
    Content {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// Wherever they are kept, it failed.
    #[error("the authorities cannot be kept: {0}")]
    Keeper(String),
    /// What is kept makes no sense.
    #[error("the kept authorities cannot be used: {0}; restore them from a backup")]
    Document(String),
    /// Nodes trust others than those that are kept, or none are kept.
    #[error(
        "nodes are registered whose certificates were signed by an authority ({0}) that is kept no more: put it back from a backup (the Secret \
         edge-cni-ca, or ca.json in state_dir); if there is none, nodes have to join anew: begin with an empty store"
    )]
    Lost(String),
    /// Another has changed them at the same moment.
    #[error("the authorities were changed by another at the same moment; try again")]
    Conflict,
    /// The authority's own certificate has ended.
    #[error("the authority {subject} ended at {at}; `edge-controller ca rollover` makes a new one")]
    Ended {
        /// Its name.
        subject: String,
        /// When.
        at: String,
    },
    /// Too many are trusted.
    #[error(
        "{MOST_TRUSTED} authorities are trusted already; retire the oldest first: `edge-controller ca list`, `edge-controller ca retire`"
    )]
    TooMany,
    /// The operator brings the authority, and has brought no new one.
    #[error("{0} holds the authority that is in use; put the new authority into ca_certificate and ca_key first")]
    SameGiven(std::path::PathBuf),
    /// The operator brings an authority that was here before.
    #[error("{0} holds an authority that was in use before; give a new one, with a new key")]
    FormerGiven(std::path::PathBuf),
    /// There is none of this name.
    #[error("no one authority's key hash begins with {0:?}; `edge-controller ca list` shows those that are")]
    NoSuch(String),
    /// The one that signs cannot be retired.
    #[error("authority {0} is the one that signs; roll over first: `edge-controller ca rollover`")]
    Active(String),
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// A serial number is not one.
    #[error("a kept serial number is not hexadecimal")]
    Serial,
    /// The system gives no random numbers.
    #[error(transparent)]
    Random(#[from] crate::random::NoRandomness),
}

/// The authorities, and how they change.
pub struct Ca {
    keeper: Box<dyn Keeper>,
    given: Option<Given>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    current: watch::Sender<Arc<Authorities>>,
}

/// The authorities as they are at one moment.
pub struct Authorities {
    /// Those that are trusted, oldest first; the last one signs.
    trusted: Vec<Arc<Authority>>,
    active: Arc<Authority>,
    /// What travels with everything that is signed.
    cross: Vec<CertificateDer<'static>>,
    /// Those that are trusted no more, oldest first.
    retired: Vec<Retired>,
    /// The first that there ever was, by its key's hash: certificates whose issuer was not noted
    /// are its.
    first: String,
    /// All that is kept of them.
    document: CaDocument,
}

/// An authority that is trusted no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// Its key's hash, hexadecimal.
    pub id: String,
    /// Its name for people.
    pub subject: String,
    /// Its certificate, PEM.
    pub pem: String,
    /// Since when it signed.
    pub created_at: Seconds,
    /// Since when it is retired.
    pub retired_at: Seconds,
    /// The end of its certificate.
    pub not_after: Seconds,
}

/// A certificate that was just signed for a node.
pub struct Issued {
    /// PEM, followed by what leads from older authorities to its issuer.
    pub chain: String,
    /// Number and time.
    pub term: Term,
    /// Hash of its issuer's key, hexadecimal.
    pub issuer: String,
}

impl Ca {
    /// Makes sure that no new authority is begun beside nodes that trust another one: `issuers` are
    /// the hashes of the keys that have signed the certificates of registered nodes.
    pub async fn check_kept(
        keeper: &dyn Keeper,
        given: Option<&Given>,
        issuers: &BTreeSet<String>,
        now: Seconds,
    ) -> Result<(), CaError> {
        let Some(lost) = issuers.first() else { return Ok(()) };
        if let Some((document, _)) = keeper.load().await? {
            // All that there ever were are listed.
            let known = Authorities::of(&document, None)?.ids().any(|id| issuers.contains(&id));
            return if known { Ok(()) } else { Err(CaError::Lost(lost.clone())) };
        }
        let brought = given.map(|given| given.load(now)).transpose()?;
        let brought = brought.map(|record| Authority::new(&record).map_err(CaError::Document)).transpose()?;
        match brought {
            Some(brought) if issuers.contains(&brought.id()) => Ok(()),
            _ => Err(CaError::Lost(lost.clone())),
        }
    }

    /// Reads the authorities. Where there are none, takes the given one, or makes one.
    pub async fn open(keeper: Box<dyn Keeper>, given: Option<Given>, now: Seconds) -> Result<Self, CaError> {
        let brought = given.as_ref().map(|given| given.load(now)).transpose()?;
        let document = loop {
            if let Some((document, _)) = keeper.load().await? {
                break document;
            }
            let record = match &brought {
                Some(record) => record.clone(),
                None => authority::generate(now)?,
            };
            let document = CaDocument { version: document::VERSION, authorities: vec![record], cross: Vec::new() };
            match keeper.store(&document, None).await {
                Ok(_) => tracing::info!(given = brought.is_some(), "a new certificate authority is in use"),
                // Another replica was quicker: its authority holds.
                Err(CaError::Conflict) => continue,
                Err(error) => return Err(error),
            }
            break document;
        };
        let current = Authorities::of(&document, None)?;
        if let Some((given, record)) = given.as_ref().zip(brought) {
            let brought = Authority::new(&record).map_err(CaError::Document)?;
            if brought.key_hash() != current.active().key_hash() {
                tracing::warn!(
                    file = %given.certificate.display(),
                    "holds another authority than the one in use; `edge-controller ca rollover` changes over to it"
                );
            }
        }
        Ok(Self { keeper, given, changing: Default::default(), current: watch::Sender::new(Arc::new(current)) })
    }

    /// The authorities as they are now.
    pub fn current(&self) -> Arc<Authorities> {
        self.current.borrow().clone()
    }

    /// All that is kept of the authorities, with their private keys: for a backup.
    pub async fn document(&self) -> Result<Option<CaDocument>, CaError> {
        Ok(self.keeper.load().await?.map(|(document, _)| document))
    }

    /// The end of the certificate of the authority that signs.
    pub fn not_after(&self) -> Seconds {
        self.current().active().not_after()
    }

    /// Hears of every change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Authorities>> {
        self.current.subscribe()
    }

    /// Takes what another replica has changed, whenever it does.
    pub async fn follow(&self) {
        loop {
            self.keeper.changed().await;
            let _changing = self.changing.lock().await;
            match self.keeper.load().await {
                Ok(Some((document, _))) => self.apply(&document),
                Ok(None) => self.put_back().await,
                Err(error) => tracing::error!(%error, "the authorities cannot be read; going on with those in memory"),
            }
        }
    }

    /// Keeps what is in memory where somebody has deleted it: nothing else knows the keys.
    async fn put_back(&self) {
        let current = self.current();
        match self.keeper.store(&current.document, None).await {
            Ok(_) => {
                tracing::error!("the authorities were deleted where they are kept; they were put back from memory")
            }
            // Another replica has done it.
            Err(CaError::Conflict) => {}
            Err(error) => tracing::error!(
                %error,
                "the authorities are no longer kept anywhere; going on with those in memory: take a backup before this process ends"
            ),
        }
    }

    /// Begins to sign with a new authority: the given one, or one that is made. Those before it
    /// stay trusted, and vouch for it.
    pub async fn rollover(&self, now: Seconds) -> Result<Arc<Authority>, CaError> {
        let brought = self.given.as_ref().map(|given| given.load(now)).transpose()?;
        self.change(move |document| {
            let before = Authorities::of(document, None)?;
            if before.trusted.len() >= MOST_TRUSTED {
                return Err(CaError::TooMany);
            }
            let record = match &brought {
                Some(record) => record.clone(),
                None => authority::generate(now)?,
            };
            let new = Authority::new(&record).map_err(CaError::Document)?;
            if let Some(given) = &self.given {
                if new.key_hash() == before.active().key_hash() {
                    return Err(CaError::SameGiven(given.certificate.clone()));
                }
                if before.ids().any(|id| id == new.id()) {
                    return Err(CaError::FormerGiven(given.certificate.clone()));
                }
            }
            for old in &before.trusted {
                match old.vouch_for(&new, now) {
                    Ok(certificate) => {
                        document.cross.push(CrossRecord { subject: new.id(), issuer: old.id(), certificate });
                    }
                    // Nothing that it has signed is valid any more either.
                    Err(CaError::Ended { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            document.authorities.push(record);
            Ok(())
        })
        .await?;
        let active = self.current().active().clone();
        tracing::info!(
            authority = active.id(),
            subject = active.subject(),
            "rolled over to a new certificate authority"
        );
        Ok(active)
    }

    /// Trusts an authority no more, and wipes its key.
    pub async fn retire(&self, id: &str, now: Seconds) -> Result<(), CaError> {
        self.change(|document| {
            let before = Authorities::of(document, None)?;
            let authority = before.find(id)?;
            if authority.id() == before.active().id() {
                return Err(CaError::Active(authority.id()));
            }
            for record in &mut document.authorities {
                let retires = record.retired_at.is_none()
                    && Authority::new(record).is_ok_and(|other| other.key_hash() == authority.key_hash());
                if retires {
                    record.key = None;
                    record.retired_at = Some(now);
                }
            }
            document.cross.retain(|cross| cross.issuer != authority.id() && cross.subject != authority.id());
            Ok(())
        })
        .await?;
        tracing::info!(authority = id, "retired a certificate authority");
        Ok(())
    }

    /// Changes what is kept, on whatever is kept at that moment, and then what is in use.
    async fn change(&self, plan: impl Fn(&mut CaDocument) -> Result<(), CaError>) -> Result<(), CaError> {
        let _changing = self.changing.lock().await;
        loop {
            let Some((mut document, revision)) = self.keeper.load().await? else {
                return Err(CaError::Document("there are none".into()));
            };
            plan(&mut document)?;
            match self.store(&document, &revision).await {
                Err(CaError::Conflict) => {}
                stored => return stored,
            }
        }
    }

    async fn store(&self, document: &CaDocument, over: &Revision) -> Result<(), CaError> {
        // What could not be used must not be kept.
        Authorities::of(document, None)?;
        self.keeper.store(document, Some(over)).await?;
        self.apply(document);
        Ok(())
    }

    fn apply(&self, document: &CaDocument) {
        let before = self.current();
        match Authorities::of(document, Some(&before)) {
            Ok(now) => {
                // Whoever watches may hear of it without a change; telling it on would cost every
                // node a whole view.
                if now.is(&before) {
                    return;
                }
                // Also one that was retired since would be listed: this is another cluster's, or
                // one that was begun anew.
                if !before.ids().any(|id| now.ids().any(|other| other == id)) {
                    tracing::error!(
                        kept = now.active().id(),
                        "what is kept now are other authorities, and no node trusts them; going on with those in memory until restarted"
                    );
                    return;
                }
                let gone = before.trusted.iter().filter(|old| !now.trusted.iter().any(|other| Arc::ptr_eq(old, other)));
                let gone: Vec<Arc<Authority>> = gone.cloned().collect();
                self.current.send_replace(Arc::new(now));
                gone.iter().for_each(|authority| authority.valid().cancel());
            }
            Err(error) => tracing::error!(%error, "going on with the authorities in memory"),
        }
    }
}

impl Authorities {
    /// Whether these are the others, read once more.
    fn is(&self, other: &Self) -> bool {
        let same = self.trusted.iter().zip(&other.trusted).all(|(one, other)| Arc::ptr_eq(one, other));
        same && self.trusted.len() == other.trusted.len()
            && Arc::ptr_eq(&self.active, &other.active)
            && (&self.cross, &self.retired, &self.first) == (&other.cross, &other.retired, &other.first)
    }

    /// Reads a document. Authorities that are in `before` already are taken from there.
    fn of(document: &CaDocument, before: Option<&Authorities>) -> Result<Self, CaError> {
        let mut trusted: Vec<Arc<Authority>> = Vec::new();
        let mut retired = Vec::new();
        let mut first = None;
        for record in &document.authorities {
            let id = match record.retired_at {
                Some(retired_at) => {
                    let former = former(record, retired_at)?;
                    let id = former.id.clone();
                    retired.push(former);
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

    /// The one that signs.
    pub fn active(&self) -> &Arc<Authority> {
        &self.active
    }

    /// All that are trusted, oldest first; the last one signs.
    pub fn trusted(&self) -> &[Arc<Authority>] {
        &self.trusted
    }

    /// Those that are trusted no more, oldest first.
    pub fn retired(&self) -> &[Retired] {
        &self.retired
    }

    /// Certificates of all that are trusted, PEM. The first one is of the authority that signs.
    pub fn anchors(&self) -> Vec<String> {
        self.trusted.iter().rev().map(|authority| authority.pem().to_owned()).collect()
    }

    /// A trusted one, by its key's hash or by the beginning of it, at least eight digits.
    pub fn find(&self, id: &str) -> Result<&Arc<Authority>, CaError> {
        let mut found = self.trusted.iter().filter(|authority| id.len() >= 8 && authority.id().starts_with(id));
        match (found.next(), found.next()) {
            (Some(authority), None) => Ok(authority),
            _ => Err(CaError::NoSuch(id.into())),
        }
    }

    /// Whether `issuer`, as noted for a certificate, is this authority. Releases that knew only one
    /// authority noted nothing.
    pub fn is_issuer(&self, issuer: &str, authority: &Authority) -> bool {
        authority.id() == if issuer.is_empty() { self.first.as_str() } else { issuer }
    }

    /// The authority that has signed a certificate which was verified before.
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

    /// Makes a key for the controller's own TLS and signs its certificate: the chain, leaf first,
    /// and the key.
    pub fn sign_server(
        &self,
        names: &[String],
        term: &Term,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let (leaf, key) = self.active().sign_server(names, term)?;
        // The authorities themselves go along, the one that signs last: whoever joins knows only
        // the hash of one of them.
        let roots = self.trusted.iter().map(|authority| authority.certificate().clone());
        Ok((std::iter::once(leaf).chain(self.cross.iter().cloned()).chain(roots).collect(), key))
    }

    fn ids(&self) -> impl Iterator<Item = String> + '_ {
        let trusted = self.trusted.iter().map(|authority| authority.id());
        trusted.chain(self.retired.iter().map(|retired| retired.id.clone()))
    }
}

fn former(record: &AuthorityRecord, retired_at: Seconds) -> Result<Retired, CaError> {
    let der = CertificateDer::from_pem_slice(record.certificate.as_bytes())
        .map_err(|e| CaError::Document(format!("a retired authority's certificate is not PEM ({e})")))?;
    let (_, certificate) = X509Certificate::from_der(&der)
        .map_err(|e| CaError::Document(format!("a retired authority's certificate is not X.509 ({e})")))?;
    Ok(Retired {
        id: hex(&request::hash(certificate.public_key().raw)),
        subject: certificate.subject().to_string(),
        pem: record.certificate.clone(),
        created_at: record.created_at,
        retired_at,
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// The end of a certificate that can be parsed; the epoch for one that cannot.
pub fn not_after(der: &[u8]) -> Seconds {
    X509Certificate::from_der(der).map_or(0, |(_, certificate)| certificate.validity().not_after.timestamp())
}

/// Hexadecimal, lower case.
pub fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}
