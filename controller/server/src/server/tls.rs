//! Sets up TLS 1.3. The controller's own certificate is renewed while the controller runs, and
//! nodes' certificates are verified against the controller's own authorities. A node without a
//! certificate is admitted in order to join; [`crate::api::caller`] decides what it may do.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use edge_controller_domain::ca::{self, Authorities, Ca, Term};
use edge_controller_domain::clock::{Clock, Seconds};
use edge_controller_domain::registry::Registry;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_util::sync::CancellationToken;

use crate::api::caller::Caller;
use crate::live_config::LiveConfig;
use crate::observe::Health;

/// Interval at which the age of the controller's own certificate is checked.
const CHECK_PERIOD: Duration = Duration::from_secs(600);

/// TLS for nodes.
#[derive(Clone)]
pub(super) struct Tls {
    from: TlsSources,
    built: Arc<RwLock<BuiltTls>>,
}

/// The sources of the controller's certificate and key, the authorities and the registered nodes.
#[derive(Clone)]
pub(super) struct TlsSources {
    pub(super) registry: Registry,
    pub(super) ca: Arc<Ca>,
    pub(super) live: Arc<LiveConfig>,
    pub(super) health: Arc<Health>,
}

/// TLS for one set of authorities.
struct BuiltTls {
    authorities: Arc<Authorities>,
    signed_at: Seconds,
    config: Arc<ServerConfig>,
}

/// The controller's certificate, for any requested name: a node may use a name that is not in the
/// controller's configuration.
#[derive(Debug)]
struct OwnCertificate(Arc<CertifiedKey>);

#[derive(Debug)]
struct Time(Clock);

impl Tls {
    /// Signs the controller's first certificate and sets up TLS.
    pub(super) fn new(from: TlsSources) -> anyhow::Result<Self> {
        Ok(Self { built: Arc::new(RwLock::new(BuiltTls::new(&from)?)), from })
    }

    /// Returns TLS for the next connection, with the present authorities.
    pub(super) fn now(&self) -> (Arc<ServerConfig>, Arc<Authorities>) {
        let current = self.from.ca.current();
        {
            let built = self.built.read().unwrap_or_else(PoisonError::into_inner);
            if Arc::ptr_eq(&built.authorities, &current) {
                return (built.config.clone(), current);
            }
        }
        self.build();
        let built = self.built.read().unwrap_or_else(PoisonError::into_inner);
        (built.config.clone(), built.authorities.clone())
    }

    /// Returns whether the caller is a registered node with a certificate that is valid or can
    /// still be renewed. A node that was deregistered, or that shows a replaced certificate, counts
    /// as a caller without a certificate.
    pub(super) async fn is_known(&self, caller: &Caller) -> bool {
        let (registry, grace) = (&self.from.registry, self.from.live.now().config.certificate_grace());
        caller.is_registered_node(&registry.read().await, registry.clock.now(), grace)
    }

    /// Signs a new certificate for the controller itself.
    fn build(&self) {
        match BuiltTls::new(&self.from) {
            Ok(new) => {
                *self.built.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!("renewed the controller's own certificate");
            }
            Err(error) => tracing::error!("cannot renew the controller's own certificate: {error:#}"),
        }
    }
}

impl BuiltTls {
    fn new(from: &TlsSources) -> anyhow::Result<Self> {
        let (authorities, signed_at) = (from.ca.current(), from.registry.clock.now());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut term = Term::days(from.live.now().config.certificates.server_days, signed_at)?;
        term.not_before = term.not_before.min(from.registry.clock.issue_time() - ca::BACKDATED);
        let (chain, key) = authorities.sign_server(&from.live.now().config.server_names, &term)?;
        from.health.server_certificate(chain.first().map_or(0, |leaf| ca::not_after(leaf)));
        let key = rustls::crypto::ring::sign::any_supported_type(&key).context("the controller's own key")?;
        let own = OwnCertificate(Arc::new(CertifiedKey::new(chain, key)));
        let mut roots = RootCertStore::empty();
        for authority in authorities.trusted() {
            roots.add(authority.certificate().clone()).context("an authority's certificate")?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .context("verifier of nodes' certificates")?;
        let mut config = ServerConfig::builder_with_details(provider, Arc::new(Time(from.registry.clock.clone())))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(NodeVerifier { inner: verifier, live: from.live.clone() }))
            .with_cert_resolver(Arc::new(own));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A node has one long-lived connection, so a session ticket would only extend the use of an
        // old certificate.
        config.send_tls13_tickets = 0;
        Ok(Self { authorities, signed_at, config: Arc::new(config) })
    }
}

/// Verifies nodes' certificates. In addition to those that `inner` accepts, it accepts certificates
/// that ended within the configured grace. [`crate::api`] then accepts such a certificate only for
/// its own renewal.
struct NodeVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    live: Arc<LiveConfig>,
}

impl std::fmt::Debug for NodeVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeVerifier").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        let Err(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) =
            verified
        else {
            return verified;
        };
        let end = u64::try_from(ca::not_after(end_entity)).unwrap_or(0);
        let grace = u64::try_from(self.live.now().config.certificate_grace()).unwrap_or(0);
        if now.as_secs() <= end || now.as_secs() >= end.saturating_add(grace) {
            return verified;
        }
        self.inner.verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(Duration::from_secs(end)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.now().max(0).unsigned_abs())))
    }
}

/// Renews the controller's own certificate when a third of its validity period is left. The wall
/// clock is read each time, because the clock may have been set.
pub(super) async fn renew(tls: Tls, stopping: CancellationToken) {
    let lifetime = i64::from(tls.from.live.now().config.certificates.server_days) * 24 * 3600;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(CHECK_PERIOD) => {}
        }
        let signed_at = tls.built.read().unwrap_or_else(PoisonError::into_inner).signed_at;
        if tls.from.registry.clock.now() >= signed_at + lifetime / 3 * 2 {
            tls.build();
        }
    }
}
