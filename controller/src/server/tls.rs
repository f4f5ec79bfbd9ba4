//! TLS 1.3: the controller's own certificate, renewed in place, and nodes' certificates, verified against our own CA. A node without one is
//! let in, to join; what it may do then is for [`crate::api::caller`] to say.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

use crate::api::{App, Context};
use crate::ca;
use crate::clock::Clock;

/// How often it is looked whether the own certificate needs renewal.
const LOOK: Duration = Duration::from_secs(600);

/// TLS for nodes.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    own: Arc<OwnCertificate>,
}

#[derive(Debug)]
struct OwnCertificate(RwLock<Arc<CertifiedKey>>);

#[derive(Debug)]
struct Time(Clock);

impl Tls {
    /// Signs the controller's first certificate and sets up TLS.
    pub(super) fn new(app: &Context) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let own = Arc::new(OwnCertificate(RwLock::new(Arc::new(sign(app)?))));
        let mut roots = RootCertStore::empty();
        roots.add(app.ca.certificate().clone()).context("the CA's certificate")?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .context("verifier of nodes' certificates")?;
        let mut config = ServerConfig::builder_with_details(provider, Arc::new(Time(app.registry.clock.clone())))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(own.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A node has one long connection: a ticket would only keep an old certificate in use.
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), own })
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().ok().map(|own| own.clone())
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.now().max(0).unsigned_abs())))
    }
}

fn sign(app: &Context) -> anyhow::Result<CertifiedKey> {
    let days = app.config.certificates.server_days;
    let (chain, key) = app.ca.sign_server(&app.config.server_names, days, app.registry.clock.now())?;
    app.health.server_certificate(chain.first().map_or(0, |leaf| ca::not_after(leaf)));
    let key = rustls::crypto::ring::sign::any_supported_type(&key).context("the controller's own key")?;
    Ok(CertifiedKey::new(chain, key))
}

/// Renews the own certificate when a third of its life is left. Judged by the wall clock, again and again: it may have been set.
pub(super) async fn renew(tls: Tls, app: App) {
    let lifetime = i64::from(app.config.certificates.server_days) * 24 * 3600;
    let mut signed_at = app.registry.clock.now();
    loop {
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if app.registry.clock.now() < signed_at + lifetime / 3 * 2 {
            continue;
        }
        match sign(&app) {
            Ok(certificate) => {
                if let Ok(mut own) = tls.own.0.write() {
                    *own = Arc::new(certificate);
                }
                signed_at = app.registry.clock.now();
                tracing::info!("renewed the controller's own certificate");
            }
            Err(error) => tracing::error!("cannot renew the controller's own certificate: {error:#}"),
        }
    }
}
