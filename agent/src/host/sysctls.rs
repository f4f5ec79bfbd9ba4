//! Forwarding, without which no pod's packet leaves this machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::observed::Observed;
use crate::journal::Journal;

/// Turns forwarding on where it is off. A host that learns its IPv6 default route from router advertisements would forget it with forwarding
/// on, so those interfaces are told to go on listening (`accept_ra` 2, ip-sysctl.rst).
pub(super) fn ensure(observed: &Observed, journal: &Journal) {
    let v6 = Path::new("/proc/sys/net/ipv6/conf");
    if v6.exists() && is(&v6.join("all/forwarding"), "0") {
        let uplinks = observed.routes.iter().filter(|route| route.is_default() && route.destination.is_ipv6());
        for name in uplinks.filter_map(|route| observed.name_of(route.device?)) {
            let accept = v6.join(name).join("accept_ra");
            if is(&accept, "1") {
                set(&accept, "2", journal);
            }
        }
        set(&v6.join("all/forwarding"), "1", journal);
    }
    let v4 = PathBuf::from("/proc/sys/net/ipv4/ip_forward");
    if is(&v4, "0") {
        set(&v4, "1", journal);
    }
}

fn is(path: &Path, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}

fn set(path: &Path, value: &str, journal: &Journal) {
    let outcome: io::Result<()> = fs::write(path, value);
    match outcome {
        Ok(()) => tracing::info!("{} set to {value}", path.display()),
        Err(error) => journal.error(format!("{} cannot be set to {value}: {error}", path.display())),
    }
}
