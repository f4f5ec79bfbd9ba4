//! Checks that the disk of the embedded store has room for changes.

use crate::config::Config;

/// Minimum free space of the state directory, in bytes. The store's file grows by up to this much
/// at once while it is small.
const ENOUGH_SPACE: u64 = 8 << 20;

/// Returns what is wrong with the disk of the state directory: it is nearly full or read-only.
/// `None` if it has room, if the store is at the API server, or if the disk cannot be examined.
pub(crate) fn problem(config: &Config) -> Option<String> {
    if config.store_is_at_api_server() {
        return None;
    }
    let found = rustix::fs::statvfs(&config.state_dir).ok()?;
    let at = config.state_dir.display();
    if found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Some(format!("{at} is read-only: nothing can be changed"));
    }
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    (free < ENOUGH_SPACE).then(|| format!("{at} has {} KiB left: changes cannot be stored soon; make room", free >> 10))
}
