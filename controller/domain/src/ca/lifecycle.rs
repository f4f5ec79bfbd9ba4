//! Manages the certificate authorities in use: creates the first one, rolls over to a new one and
//! retires old ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::authorities::Authorities;
use super::authority::{self, Authority};
use super::document::{self, CaDocument, CrossRecord};
use super::error::{CaError, MOST_TRUSTED};
use super::operator_ca::OperatorCa;
use super::storage::{CaStorage, Revision};
use crate::clock::Seconds;

/// The authorities in use. Every change is stored before it takes effect.
pub struct Ca {
    storage: Box<dyn CaStorage>,
    operator_ca: Option<OperatorCa>,
    /// Held during a change, so that changes are made one at a time.
    changing: tokio::sync::Mutex<()>,
    current: watch::Sender<Arc<Authorities>>,
}

impl Ca {
    /// Checks that the stored authorities include one that nodes trust, before a new authority is
    /// created in addition. `issuers` are the key hashes of the authorities that signed the
    /// certificates of registered nodes.
    pub async fn check_stored(
        storage: &dyn CaStorage,
        operator_ca: Option<&OperatorCa>,
        issuers: &BTreeSet<String>,
        now: Seconds,
    ) -> Result<(), CaError> {
        let Some(lost) = issuers.first() else { return Ok(()) };
        if let Some((document, _)) = storage.load().await? {
            // The document lists all authorities that were ever in use.
            let known = Authorities::of(&document, None)?.ids().any(|id| issuers.contains(&id));
            return if known { Ok(()) } else { Err(CaError::Lost(lost.clone())) };
        }
        let provided = operator_ca.map(|operator_ca| operator_ca.load(now)).transpose()?;
        let provided = provided.map(|record| Authority::new(&record).map_err(CaError::Document)).transpose()?;
        match provided {
            Some(provided) if issuers.contains(&provided.id()) => Ok(()),
            _ => Err(CaError::Lost(lost.clone())),
        }
    }

    /// Reads the stored authorities. If none are stored, stores the operator's authority or a newly
    /// created one.
    pub async fn open(
        storage: Box<dyn CaStorage>,
        operator_ca: Option<OperatorCa>,
        now: Seconds,
    ) -> Result<Self, CaError> {
        let provided = operator_ca.as_ref().map(|operator_ca| operator_ca.load(now)).transpose()?;
        let document = loop {
            if let Some((document, _)) = storage.load().await? {
                break document;
            }
            let record = match &provided {
                Some(record) => record.clone(),
                None => authority::generate(now)?,
            };
            let document = CaDocument { version: document::VERSION, authorities: vec![record], cross: Vec::new() };
            match storage.store(&document, None).await {
                Ok(_) => tracing::info!(given = provided.is_some(), "a new certificate authority is in use"),
                // Another replica stored its authority first, so that authority is in use.
                Err(CaError::Conflict) => continue,
                Err(error) => return Err(error),
            }
            break document;
        };
        let current = Authorities::of(&document, None)?;
        if let Some((operator_ca, record)) = operator_ca.as_ref().zip(provided) {
            let authority = Authority::new(&record).map_err(CaError::Document)?;
            if authority.key_hash() != current.active().key_hash() {
                tracing::warn!(
                    file = %operator_ca.certificate.display(),
                    "holds another authority than the one in use; `edge-controller ca rollover` begins to sign with it"
                );
            }
        }
        Ok(Self { storage, operator_ca, changing: Default::default(), current: watch::Sender::new(Arc::new(current)) })
    }

    /// Returns the authorities in use. They may be replaced after this call.
    pub fn current(&self) -> Arc<Authorities> {
        self.current.borrow().clone()
    }

    /// Returns the stored document with all private keys, for a backup.
    pub async fn document(&self) -> Result<Option<CaDocument>, CaError> {
        Ok(self.storage.load().await?.map(|(document, _)| document))
    }

    /// Returns `notAfter` of the signing authority's certificate.
    pub fn not_after(&self) -> Seconds {
        self.current().active().not_after()
    }

    /// Returns a receiver that gets the authorities after every change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Authorities>> {
        self.current.subscribe()
    }

    /// Follows the changes that other replicas make. Never returns.
    pub async fn follow(&self) {
        loop {
            self.storage.changed().await;
            let _changing = self.changing.lock().await;
            match self.storage.load().await {
                Ok(Some((document, _))) => self.apply(&document),
                Ok(None) => self.store_again().await,
                Err(error) => tracing::error!(%error, "the authorities cannot be read; those in memory stay in use"),
            }
        }
    }

    /// Stores the authorities again from memory after somebody deleted the stored document. Until
    /// then the keys exist only in memory.
    async fn store_again(&self) {
        let current = self.current();
        match self.storage.store(&current.document, None).await {
            Ok(_) => {
                tracing::error!("the stored authorities were deleted; they were stored again from memory")
            }
            // Another replica has stored the authorities again.
            Err(CaError::Conflict) => {}
            Err(error) => tracing::error!(
                %error,
                "the authorities are not stored anywhere any more; those in memory stay in use: take a backup before this process ends"
            ),
        }
    }

    /// Starts to sign with a new authority, which is either the operator's or newly created. The
    /// former authorities stay trusted, and each signs a cross certificate for the new one.
    pub async fn rollover(&self, now: Seconds) -> Result<Arc<Authority>, CaError> {
        let provided = self.operator_ca.as_ref().map(|operator_ca| operator_ca.load(now)).transpose()?;
        self.change(move |document| {
            let before = Authorities::of(document, None)?;
            if before.trusted.len() >= MOST_TRUSTED {
                return Err(CaError::TooMany);
            }
            let record = match &provided {
                Some(record) => record.clone(),
                None => authority::generate(now)?,
            };
            let new = Authority::new(&record).map_err(CaError::Document)?;
            if let Some(operator_ca) = &self.operator_ca {
                if new.key_hash() == before.active().key_hash() {
                    return Err(CaError::SameOperatorCa(operator_ca.certificate.clone()));
                }
                if before.ids().any(|id| id == new.id()) {
                    return Err(CaError::FormerOperatorCa(operator_ca.certificate.clone()));
                }
            }
            for old in &before.trusted {
                match old.cross_sign(&new, now) {
                    Ok(certificate) => {
                        document.cross.push(CrossRecord { subject: new.id(), issuer: old.id(), certificate });
                    }
                    // The authority has expired, and so have all certificates that it signed.
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

    /// Stops trusting an authority and wipes its key.
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

    /// Changes the stored document first, then the authorities in use. Repeats `plan` if another
    /// replica changed the document first.
    async fn change(&self, plan: impl Fn(&mut CaDocument) -> Result<(), CaError>) -> Result<(), CaError> {
        let _changing = self.changing.lock().await;
        loop {
            let Some((mut document, revision)) = self.storage.load().await? else {
                return Err(CaError::Document("there are none".into()));
            };
            plan(&mut document)?;
            match self.replace(&document, &revision).await {
                Err(CaError::Conflict) => {}
                stored => return stored,
            }
        }
    }

    async fn replace(&self, document: &CaDocument, over: &Revision) -> Result<(), CaError> {
        // A document that cannot be used must not be stored.
        Authorities::of(document, None)?;
        self.storage.store(document, Some(over)).await?;
        self.apply(document);
        Ok(())
    }

    fn apply(&self, document: &CaDocument) {
        let before = self.current();
        match Authorities::of(document, Some(&before)) {
            Ok(now) => {
                // A watch may report the document without a change. Publishing it would send every
                // node a complete view.
                if now.same_as(&before) {
                    return;
                }
                // Retired authorities stay in the document. If it lists none of the present
                // authorities, it belongs to another cluster, or new authorities have replaced
                // ours.
                if !before.ids().any(|id| now.ids().any(|other| other == id)) {
                    tracing::error!(
                        stored = now.active().id(),
                        "other authorities are stored now, which no node trusts; those in memory stay in use until the controller restarts"
                    );
                    return;
                }
                let gone = before.trusted.iter().filter(|old| !now.trusted.iter().any(|other| Arc::ptr_eq(old, other)));
                let gone: Vec<Arc<Authority>> = gone.cloned().collect();
                self.current.send_replace(Arc::new(now));
                gone.iter().for_each(|authority| authority.valid().cancel());
            }
            Err(error) => tracing::error!(%error, "the authorities in memory stay in use"),
        }
    }
}
