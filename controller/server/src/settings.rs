//! What the configuration says now: it may be read again while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use edge_controller_domain::ca::Ca;
use edge_controller_domain::networks::ClusterNetworks;
use edge_controller_domain::reach::{self, Before};
use edge_controller_domain::segments::{Ledger, Policy, Row, contains};
use edge_controller_domain::views::Common;
use edge_types::api::ReloadResponse;

use crate::api::Context;
use crate::config::{Config, ConfigError, Key, Reload, keys};
use crate::refusal::Refusal;

/// Holders of segments that are named in full.
const NAMED: usize = 10;

/// The configuration and what follows from it.
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// How segments are cut.
    pub policy: Policy,
    /// Networks that nodes reach through tunnels.
    pub networks: ClusterNetworks,
    /// Computes views.
    pub common: Common,
}

/// Reads the configuration again.
pub type Reader = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// The settings in force.
pub struct Live {
    now: RwLock<Arc<Settings>>,
    reader: Option<Reader>,
    ca: Arc<Ca>,
}

impl Live {
    /// In force from the start.
    pub fn new(config: Config, ca: Arc<Ca>, reader: Option<Reader>) -> Self {
        Self { now: RwLock::new(Arc::new(settings(config, &ca))), reader, ca }
    }

    /// What holds now. A plan looks inside itself: what it saw before it waited may not hold any
    /// more.
    pub fn now(&self) -> Arc<Settings> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn settings(config: Config, ca: &Arc<Ca>) -> Settings {
    let (policy, networks) = (config.segment_policy(), config.cluster_networks());
    Settings { common: Common::new(networks.clone(), policy.prefix, ca.clone()), policy, networks, config }
}

impl Context {
    /// What the configuration says now.
    pub fn settings(&self) -> Arc<Settings> {
        self.live.now()
    }

    /// Reads the configuration again, and lets what may change take effect; all of it or nothing.
    pub async fn reload(self: &Arc<Self>) -> Result<ReloadResponse, Refusal> {
        let reader =
            self.live.reader.as_ref().ok_or_else(|| Refusal::Reload("it was not read from anywhere".into()))?;
        let config = reader().map_err(|error| Refusal::Reload(error.to_string()))?;
        let (app, ways) = (self.clone(), reach::ways(&config.server_names).await);
        // In the order of plans: none that was made by the former ranges is carried out after this
        // one.
        let changed = self
            .registry
            .change(move |state| -> Result<_, Refusal> {
                let changed = changes(&app.settings().config, &config)?;
                check_held(state.ledger(), &config.segments.cluster_ranges).map_err(Refusal::Reload)?;
                let before = Before::from(&app.settings().networks);
                reach::check(&config.cluster_networks(), &config.listen, Some(&before), &ways, state)
                    .map_err(Refusal::Reload)?;
                let new = Arc::new(settings(config.clone(), &app.live.ca));
                *app.live.now.write().unwrap_or_else(PoisonError::into_inner) = new;
                Ok((changed, Vec::new()))
            })
            .await?;
        if changed.iter().any(|key| key.reload == Reload::Views) {
            self.registry.refresh().await;
        }
        reach::note(&self.registry, &self.settings().networks).await;
        let changed: Vec<String> = changed.iter().map(|key| key.path.clone()).collect();
        tracing::info!(?changed, "the configuration was read again");
        Ok(ReloadResponse { changed })
    }
}

/// Keys of which the value differs, if all of them may.
fn changes(before: &Config, after: &Config) -> Result<Vec<&'static Key>, Refusal> {
    let table = |config: &Config| toml::Table::try_from(config).unwrap_or_default();
    let (before, after) = (table(before), table(after));
    let changed: Vec<&Key> = keys().iter().filter(|key| key.get(&before) != key.get(&after)).collect();
    let fixed: Vec<&str> =
        changed.iter().filter(|key| key.reload == Reload::Never).map(|key| key.path.as_str()).collect();
    match fixed.as_slice() {
        [] => Ok(changed),
        fixed => Err(Refusal::Reload(format!("{} cannot change while the server runs; restart it", fixed.join(", ")))),
    }
}

/// Whether all that is held lies in one of the ranges; otherwise, who holds what does not.
pub fn check_held(ledger: &Ledger, ranges: &[edge_types::IpNetwork]) -> Result<(), String> {
    let outside = |row: &&Row| row.released_at.is_none() && !ranges.iter().any(|range| contains(range, &row.network));
    let outside: Vec<&Row> = ledger.rows().filter(outside).collect();
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
