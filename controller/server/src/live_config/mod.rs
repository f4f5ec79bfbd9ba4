//! Holds the configuration in force. The configuration can be read again while the server runs.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use edge_controller_domain::ca::Ca;
use edge_controller_domain::networks::ClusterNetworks;
use edge_controller_domain::reachability::{self, PreviousNetworks};
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::{Ledger, SegmentPolicy, SegmentRecord, contains};
use edge_controller_domain::state::State;
use edge_controller_domain::store::StoreError;
use edge_controller_domain::views::ViewBuilder;
use edge_types::api::ReloadResponse;

use crate::config::{Config, ConfigError, ConfigKey, Reload, keys};

/// Maximum number of segments that an error names.
const NAMED: usize = 10;

/// A configuration with the values that follow from it.
pub struct ConfigInForce {
    /// The values of all keys.
    pub config: Config,
    /// The rules for segments.
    pub policy: SegmentPolicy,
    /// The networks that nodes reach through tunnels.
    pub networks: ClusterNetworks,
    /// The builder of views with these networks.
    pub views: ViewBuilder,
}

impl ConfigInForce {
    fn new(config: Config, ca: &Arc<Ca>) -> Self {
        let (policy, mut networks) = (config.segment_policy(), config.cluster_networks());
        networks.services = known_services();
        let grace = config.certificate_grace();
        Self { views: ViewBuilder::new(networks.clone(), policy.prefix, grace, ca.clone()), policy, networks, config }
    }
}

/// Returns the address of the API server's Service, which Kubernetes tells every container. Empty
/// outside of a pod.
fn known_services() -> Vec<IpAddr> {
    std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|address| address.parse().ok()).into_iter().collect()
}

/// A function that reads the configuration again.
pub type Reader = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// The reason why a configuration is not put in force. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration cannot be read, or must not take effect while the server runs.
    #[error("{0}; nothing was changed")]
    Refused(String),
    /// The store could not be read. Nothing was changed.
    #[error("{0}; nothing was changed, try again")]
    Store(#[from] StoreError),
}

/// The configuration in force, with the means to read it again.
pub struct LiveConfig {
    in_force: RwLock<Arc<ConfigInForce>>,
    reader: Option<Reader>,
    ca: Arc<Ca>,
    /// Held while the configuration is read again.
    reloading: tokio::sync::Mutex<()>,
}

impl LiveConfig {
    /// Puts a configuration in force: from now on the server uses it. Without a `reader` the
    /// configuration cannot be read again.
    pub fn new(config: Config, ca: Arc<Ca>, reader: Option<Reader>) -> Self {
        let in_force = RwLock::new(Arc::new(ConfigInForce::new(config, &ca)));
        Self { in_force, reader, ca, reloading: tokio::sync::Mutex::default() }
    }

    /// Returns the configuration in force. A plan calls this when it runs, because the
    /// configuration may have changed since its caller read it.
    pub fn now(&self) -> Arc<ConfigInForce> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put_in_force(&self, config: Arc<ConfigInForce>) {
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Reads the configuration again and puts it in force, either completely or not at all. Calls
    /// wait for each other.
    pub async fn reload(self: &Arc<Self>, registry: &Registry) -> Result<ReloadResponse, ReloadError> {
        let refused = ReloadError::Refused;
        let _one = self.reloading.lock().await;
        let reader = self.reader.as_ref().ok_or_else(|| refused("it was not read from anywhere".into()))?;
        let config = reader().map_err(|error| refused(error.to_string()))?;
        let ways = reachability::resolve(&config.server_names).await;
        // The registry repeats the plan if an earlier plan of its batch was not committed. Every
        // attempt compares with the configuration from before the first one. An attempt puts its
        // configuration in force, so a later one that compared with that would find no change.
        let (live, before) = (self.clone(), self.now());
        let (former, was_in_force) = (before.clone(), Arc::new(AtomicBool::new(false)));
        let put = was_in_force.clone();
        // The change is a plan, because plans run one after the other: no plan that used the former
        // ranges is carried out after this one.
        let plan = move |state: &mut State| -> Result<_, ReloadError> {
            live.put_in_force(former.clone());
            let changed = changes(&former.config, &config).map_err(refused)?;
            let new = ConfigInForce::new(config.clone(), &live.ca);
            check_held(state.ledger(), &new.networks.ranges).map_err(refused)?;
            let networks = PreviousNetworks::from(&former.networks);
            reachability::check(&new.networks, &config.listen, Some(&networks), &ways, state).map_err(refused)?;
            live.put_in_force(Arc::new(new));
            put.store(true, Ordering::Relaxed);
            Ok((changed, Vec::new()))
        };
        let changed = match registry.change(plan).await {
            Ok(changed) => changed,
            Err(error) => {
                if was_in_force.load(Ordering::Relaxed) {
                    self.take_back(before, registry).await;
                }
                return Err(error);
            }
        };
        if changed.iter().any(|key| key.reload == Reload::Views) {
            registry.refresh().await;
        }
        reachability::store_current(registry, &self.now().networks).await;
        let changed: Vec<String> = changed.iter().map(|key| key.path.clone()).collect();
        tracing::info!(?changed, "the configuration was read again");
        for warning in self.now().config.warnings() {
            tracing::warn!("{warning}");
        }
        Ok(ReloadResponse { changed })
    }

    /// Puts the former configuration in force again, because the change failed after an attempt had
    /// put the new one in force. Views may show the new one until the refresh.
    async fn take_back(self: &Arc<Self>, former: Arc<ConfigInForce>, registry: &Registry) {
        let live = self.clone();
        let plan = move |_: &mut State| {
            live.put_in_force(former.clone());
            Ok::<_, StoreError>(((), Vec::new()))
        };
        if let Err(error) = registry.change(plan).await {
            tracing::warn!(%error, "the former configuration is in force again, but not every plan knew it");
        }
        registry.refresh().await;
    }
}

/// Returns the keys whose values differ. Refuses if one of them must not change while the server
/// runs.
fn changes(before: &Config, after: &Config) -> Result<Vec<&'static ConfigKey>, String> {
    let table = |config: &Config| toml::Table::try_from(config).unwrap_or_default();
    let (before, after) = (table(before), table(after));
    let changed: Vec<&ConfigKey> = keys().iter().filter(|key| key.get(&before) != key.get(&after)).collect();
    let fixed: Vec<&str> =
        changed.iter().filter(|key| key.reload == Reload::Never).map(|key| key.path.as_str()).collect();
    match fixed.as_slice() {
        [] => Ok(changed),
        fixed => Err(format!("{} cannot change while the server runs; restart it", fixed.join(", "))),
    }
}

/// Refuses ranges that do not contain a held segment. The error names the segments and their nodes.
pub fn check_held(ledger: &Ledger, ranges: &[edge_types::IpNetwork]) -> Result<(), String> {
    let outside =
        |row: &&SegmentRecord| row.released_at.is_none() && !ranges.iter().any(|range| contains(range, &row.network));
    let outside: Vec<&SegmentRecord> = ledger.rows().filter(outside).collect();
    if outside.is_empty() {
        return Ok(());
    }
    let mut holders: Vec<String> =
        outside.iter().take(NAMED).map(|row| format!("{} by {}", row.network, row.node)).collect();
    if outside.len() > NAMED {
        holders.push(format!("and {} more", outside.len() - NAMED));
    }
    Err(format!(
        "segments.cluster_ranges lacks a range of which segments are held: {}; keep the range, or deregister these nodes first",
        holders.join(", ")
    ))
}

#[cfg(test)]
mod tests;
