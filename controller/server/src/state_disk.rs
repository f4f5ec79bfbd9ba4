//! Checks that the disk of the embedded store has room for changes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::StatVfsMountFlags;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::config::Config;

/// Minimum free space of the state directory, in bytes.
const ENOUGH_SPACE: u64 = 8 << 20;
/// Maximum time to wait for the file system. One on the network may never answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Interval at which a caller looks whether another one's examination has ended.
const AGAIN: Duration = Duration::from_millis(5);
/// Whether an examination runs. A file system that does not answer takes one thread.
static EXAMINING: AtomicBool = AtomicBool::new(false);

/// Returns what is wrong with the disk of the state directory: it is nearly full or read-only, or
/// its file system does not answer. `None` if it has room, if the store is at the API server, or if
/// the file system does not say how much room it has.
pub(crate) async fn problem(config: &Config) -> Option<String> {
    if config.store_is_at_api_server() {
        return None;
    }
    let wait = async {
        while EXAMINING.swap(true, Ordering::AcqRel) {
            tokio::time::sleep(AGAIN).await;
        }
        let directory = config.state_dir.clone();
        let examined = spawn_blocking(move || {
            let found = examine(&directory);
            EXAMINING.store(false, Ordering::Release);
            found
        });
        examined.await.ok().flatten()
    };
    let silent = || format!("the file system of {} does not answer", config.state_dir.display());
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| Some(silent()))
}

fn examine(directory: &Path) -> Option<String> {
    let found = rustix::fs::statvfs(directory).ok()?;
    let at = directory.display();
    if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Some(format!("{at} is read-only: nothing can be changed"));
    }
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let is_full = found.f_blocks != 0 && free < ENOUGH_SPACE;
    is_full.then(|| format!("{at} has {} KiB left: changes cannot be stored soon; make room", free >> 10))
}
