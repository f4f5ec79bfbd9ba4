//! Keeps the times when nodes were last seen in the state directory across restarts. This is for
//! the embedded store: with the store at the API server, the status of each EdgeNode has the time.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::registry::{Registry, StateGuard};
use edge_controller_domain::state::NodeRecord;
use edge_controller_domain::state_files::LAST_SEEN;
use edge_types::NodeName;
use edge_types::durable::replace_file;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// Time between two writes of the file. A controller that is killed loses the times from at most
/// this period.
const PERIOD: Duration = Duration::from_secs(300);
/// Maximum size of the file, in octets: 100,000 nodes with names of 100 octets. A larger file is
/// ignored.
const LARGEST: u64 = 16 << 20;
/// Layout version of the file.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct LastSeenFile {
    version: u32,
    /// Seconds since 1970-01-01 UTC.
    last_seen: BTreeMap<NodeName, Seconds>,
}

/// A task that writes the file periodically, and when the server stops.
pub(super) struct LastSeen {
    path: PathBuf,
    registry: Registry,
    reports: NodeReports,
    written: BTreeMap<NodeName, Seconds>,
}

impl LastSeen {
    /// Loads the file into `reports`. Only people read the times, so a file that cannot be used is
    /// logged and ignored.
    pub(super) fn load(state_dir: &Path, registry: Registry, reports: NodeReports) -> Self {
        let path = state_dir.join(LAST_SEEN);
        let written = read(&path).unwrap_or_else(|why| {
            tracing::warn!("{}: {why}; it is not known when nodes were last seen", path.display());
            BTreeMap::new()
        });
        reports.restore_last_seen(&written);
        Self { path, registry, reports, written }
    }

    /// Writes the file periodically until `stopping`, then one last time.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick comes immediately, when there is nothing new to write yet.
        period.tick().await;
        loop {
            let last = stopping.run_until_cancelled(period.tick()).await.is_none();
            self.write().await;
            if last {
                return;
            }
        }
    }

    async fn write(&mut self) {
        let now = self.registry.clock.now();
        // Nodes that are no longer registered are left out.
        let mut seen: BTreeMap<NodeName, Seconds> = BTreeMap::new();
        let look = |state: &StateGuard<'_>, node: &NodeRecord| {
            let connected = state.is_connected(&node.name).then_some(now);
            if let Some(at) = connected.or_else(|| self.reports.last_seen(&node.name)) {
                seen.insert(node.name.clone(), at);
            }
        };
        self.registry.each_node(look).await;
        let state = self.registry.read().await;
        // A stream that ends after its node was deregistered records that the node was seen.
        self.reports.retain(|name| state.node(name).is_some());
        drop(state);
        if seen == self.written {
            return;
        }
        let (path, file) = (self.path.clone(), LastSeenFile { version: VERSION, last_seen: seen.clone() });
        let written = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec(&file).map_err(|error| error.to_string())?;
            replace_file(&path, &text, 0o600).map(drop).map_err(|error| error.to_string())
        });
        match written.await {
            Ok(Ok(())) => self.written = seen,
            Ok(Err(why)) => tracing::warn!("cannot store when nodes were last seen: {why}"),
            Err(error) => tracing::warn!(%error, "cannot store when nodes were last seen"),
        }
    }
}

fn read(path: &Path) -> Result<BTreeMap<NodeName, Seconds>, String> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        opened => opened.map_err(|error| error.to_string())?,
    };
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > LARGEST {
        return Err(format!("it has more than {LARGEST} octets"));
    }
    let file: LastSeenFile = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    match file.version {
        VERSION => Ok(file.last_seen),
        found => Err(format!("it is of layout {found}, and this release reads {VERSION}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use edge_controller_domain::clock::Clock;
    use edge_controller_domain::store::embedded::Embedded;

    use super::*;

    #[tokio::test]
    async fn what_is_recorded_of_a_node_that_is_gone_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(directory.path()).unwrap());
        let registry = Registry::start(store, Clock::system(), true).await.unwrap();
        let (reports, gone) = (NodeReports::default(), "gone".parse().unwrap());
        let mut last_seen = LastSeen::load(directory.path(), registry, reports.clone());
        reports.begins(&gone, 7);
        last_seen.write().await;
        assert_eq!(reports.last_seen(&gone), None);
        assert!(reports.take_unseen().changed.is_empty());
    }

    #[test]
    fn a_missing_file_is_empty_and_one_that_is_cut_or_newer_or_huge_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LAST_SEEN);
        assert_eq!(read(&path), Ok(BTreeMap::new()));
        std::fs::write(&path, r#"{"version":1,"last_seen":{"edge-1":7},"later":true}"#).unwrap();
        assert_eq!(read(&path), Ok([("edge-1".parse().unwrap(), 7)].into()));
        for (text, says) in [
            (r#"{"version":2,"last_seen":{}}"#, "layout 2"),
            (r#"{"version":1,"last_seen":{"edge"#, "EOF"),
            (r#"{"version":1,"last_seen":{"../x":7}}"#, "../x"),
            ("", "EOF"),
        ] {
            std::fs::write(&path, text).unwrap();
            let why = read(&path).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
        }
        std::fs::File::create(&path).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(read(&path).unwrap_err().contains("more than"));
    }
}
