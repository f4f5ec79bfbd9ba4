//! Keeps the certificate authorities in a Secret that all replicas share. If two replicas create
//! them at the same time, the API server accepts one request, and the other replica takes over the
//! authorities of the first.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use edge_controller_domain::ca::document::VERSION;
use edge_controller_domain::ca::storage::{CaStorage, Revision};
use edge_controller_domain::ca::{CaDocument, CaError};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, ObjectMeta, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};

use super::client::{REQUEST, explain};

/// Name of the Secret.
pub const NAME: &str = "edge-cni-ca";
const TYPE: &str = "edge-cni.io/authorities";
/// Key in the Secret for the whole document, private keys included.
const DOCUMENT: &str = "ca.json";
/// Key in the Secret for the trusted certificates alone, for people who read the Secret.
const CERTIFICATES: &str = "ca.crt";
const WHAT: &str = "secrets";
/// Delay after a watch has failed.
const PAUSE: Duration = Duration::from_secs(5);
/// Seconds after which the API server ends a watch.
const WATCH: u32 = 240;

/// A storage for the document with the authorities, in a Secret in one namespace.
pub struct CaSecret {
    api: Api<Secret>,
    /// The version at which the next watch starts. The API server may already have compacted the
    /// Secret's own version.
    known: Mutex<String>,
}

impl CaSecret {
    /// Makes a storage that uses the Secret in this namespace.
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), known: Mutex::default() }
    }

    fn watch_from(&self, version: String) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }

    async fn read(&self) -> Result<Option<(CaDocument, Revision)>, CaError> {
        // Requests a list instead of the Secret, because only the response to a list contains the
        // version up to which the Secret is unchanged.
        let params = ListParams::default().fields(&only());
        let list = with_timeout(self.api.list(&params)).await?;
        self.watch_from(list.metadata.resource_version.unwrap_or_default());
        let Some(secret) = list.items.into_iter().next() else { return Ok(None) };
        let revision = revision(&secret)?;
        let kept = secret.data.as_ref().and_then(|data| data.get(DOCUMENT));
        let kept = kept.ok_or_else(|| CaError::Document(format!("Secret {NAME} has no key {DOCUMENT}")))?;
        let document: CaDocument = serde_json::from_slice(&kept.0)
            .map_err(|e| CaError::Document(format!("{DOCUMENT} of Secret {NAME} is damaged ({e})")))?;
        if document.version > VERSION {
            let found = document.version;
            return Err(CaError::Document(format!(
                "Secret {NAME} is of layout {found}, and this release reads {VERSION}; use the release that wrote it"
            )));
        }
        Ok(Some((document, revision)))
    }

    async fn write(&self, document: &CaDocument, over: Option<&Revision>) -> Result<Revision, CaError> {
        let kept = serde_json::to_vec(document).map_err(|e| CaError::Document(e.to_string()))?;
        let trusted = document.authorities.iter().rev().filter(|authority| authority.retired_at.is_none());
        let certificates: String = trusted.map(|authority| authority.certificate.as_str()).collect();
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                resource_version: over.map(|revision| revision.0.clone()),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.into()),
            data: Some(
                [
                    (DOCUMENT.to_owned(), ByteString(kept)),
                    (CERTIFICATES.to_owned(), ByteString(certificates.into_bytes())),
                ]
                .into(),
            ),
            ..Secret::default()
        };
        let post = PostParams::default();
        let written = match over {
            None => with_timeout(self.api.create(&post, &secret)).await?,
            Some(_) => with_timeout(self.api.replace(NAME, &post, &secret)).await?,
        };
        let revision = revision(&written)?;
        self.watch_from(revision.0.clone());
        Ok(revision)
    }

    /// Waits until the Secret changes.
    async fn happened(&self) -> Result<(), CaError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let params = WatchParams::default().fields(&only()).timeout(WATCH);
        let mut events = with_timeout(self.api.watch(&params, &known)).await?.boxed();
        loop {
            match events.next().await {
                Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                    self.watch_from(bookmark.metadata.resource_version);
                }
                Some(Ok(WatchEvent::Error(status))) if status.code != 410 => {
                    return Err(CaError::Storage(explain(WHAT, &kube::Error::Api(status))));
                }
                Some(Ok(_)) => return Ok(()),
                Some(Err(error)) => return Err(CaError::Storage(explain(WHAT, &error))),
                None => return Ok(()),
            }
        }
    }
}

/// Returns the field selector that selects the Secret.
fn only() -> String {
    format!("metadata.name={NAME}")
}

fn revision(secret: &Secret) -> Result<Revision, CaError> {
    let version = secret.metadata.resource_version.clone();
    version.map(Revision).ok_or_else(|| CaError::Storage(format!("Secret {NAME} has no version")))
}

async fn with_timeout<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, CaError> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(CaError::Conflict),
        Ok(Err(error)) => Err(CaError::Storage(explain(WHAT, &error))),
        Err(_) => {
            Err(CaError::Storage(format!("the API server did not answer about {WHAT} within {} s", REQUEST.as_secs())))
        }
    }
}

impl CaStorage for CaSecret {
    fn load(&self) -> BoxFuture<'_, Result<Option<(CaDocument, Revision)>, CaError>> {
        Box::pin(self.read())
    }

    fn store<'a>(
        &'a self,
        document: &'a CaDocument,
        over: Option<&'a Revision>,
    ) -> BoxFuture<'a, Result<Revision, CaError>> {
        Box::pin(self.write(document, over))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.happened().await {
                tracing::debug!(%error, "the authorities are not watched for a moment");
                tokio::time::sleep(PAUSE).await;
            }
        })
    }
}
