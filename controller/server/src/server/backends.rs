//! Opens the store and the storage of the certificate authorities, as configured.

use std::sync::Arc;

use edge_controller_domain::ca::Files;
use edge_controller_domain::ca::storage::CaStorage;
use edge_controller_domain::clock::Seconds;
use edge_controller_domain::store::Store;
use edge_controller_domain::store::embedded::{Embedded, FILE};
use edge_controller_kubernetes::ca_secret::CaSecret;
use edge_controller_kubernetes::client::{ApiFailures, Client, connect};
use edge_controller_kubernetes::events::EventRecorder;
use edge_controller_kubernetes::replica_leases;
use edge_controller_kubernetes::store::Kubernetes;

use crate::config::Config;

/// The configured store and the configured storage of the authorities.
pub(crate) struct Backends {
    /// The store of rows.
    pub(crate) store: Arc<dyn Store>,
    /// The storage of the authorities.
    pub(crate) ca_storage: Box<dyn CaStorage>,
    /// Client of the API server, if Kubernetes is configured.
    pub(crate) client: Option<Client>,
    /// The failures of requests to the API server.
    pub(crate) api_failures: ApiFailures,
    /// The writer of Kubernetes Events.
    pub(crate) events: EventRecorder,
    /// Name of this run of this replica.
    pub(crate) replica: String,
}

impl Backends {
    /// Opens the configured backends. The state directory must exist.
    ///
    /// # Errors
    /// Returns an error if the store cannot be opened, the API server cannot be reached, or a store
    /// that has been used before is missing.
    pub(crate) async fn open(config: &Config, now: Seconds) -> anyhow::Result<Self> {
        let (api_failures, replica) = (ApiFailures::default(), replica_leases::replica_name());
        let Some(kubernetes) = &config.kubernetes else {
            let (store, ca_storage) = embedded(config, now)?;
            return Ok(Self {
                store,
                ca_storage,
                client: None,
                api_failures,
                events: EventRecorder::default(),
                replica,
            });
        };
        let client = connect(kubernetes.kubeconfig.as_deref()).await?;
        let events = EventRecorder::start(&client, &replica, api_failures.clone());
        let (store, ca_storage): (Arc<dyn Store>, Box<dyn CaStorage>) = if kubernetes.store {
            let (namespace, sizes) = (&kubernetes.namespace, config.segment_policy().prefix);
            let store = Kubernetes::new(&client, namespace, sizes, api_failures.clone(), events.clone())
                .confirming(kubernetes.confirm_deregistrations);
            (Arc::new(store), Box::new(CaSecret::new(&client, namespace)))
        } else {
            embedded(config, now)?
        };
        Ok(Self { store, ca_storage, client: Some(client), api_failures, events, replica })
    }
}

fn embedded(config: &Config, now: Seconds) -> anyhow::Result<(Arc<dyn Store>, Box<dyn CaStorage>)> {
    let (directory, store) = (&config.state_dir, config.state_dir.join(FILE));
    // The store is created before the authority. If the authority exists without the store, a new
    // store would grant every segment a second time.
    anyhow::ensure!(
        !Files::are_in(directory) || store.exists(),
        "{} is missing, and the authority beside it has served before: restore a backup (edge-controller restore --replace FILE), or, to begin a \
         new cluster that every node joins again, move all that is in {} aside",
        store.display(),
        directory.display()
    );
    let store = Embedded::open(&config.state_dir)?;
    Ok((Arc::new(store), Box::new(Files::new(&config.state_dir, now))))
}
