//! Checks the state directory that the configuration names.

use std::path::{Component, Path};

/// Directories that many programs use.
const SHARED_DIRS: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/etc",
    "/etc/cni",
    "/etc/cni/net.d",
    "/home",
    "/lib",
    "/mnt",
    "/opt",
    "/opt/cni",
    "/opt/cni/bin",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/tmp",
    "/usr",
    "/usr/lib",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/run",
    "/var/tmp",
];

/// Directories whose files belong to the kernel.
const KERNEL_DIRS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Refuses a state directory that other programs also use. File names such as `lock` and `leases`
/// could conflict with those of other programs, and the plugin would remove files of other
/// programs.
pub(super) fn check(directory: &Path) -> Result<(), String> {
    let expected = "expected a directory for the plugin alone, such as /var/lib/edge-cni";
    if directory.components().any(|part| part == Component::ParentDir) {
        return Err(format!("stateDir is {directory:?}, with \"..\" in it; {expected}"));
    }
    if SHARED_DIRS.iter().any(|shared| directory == Path::new(shared)) {
        return Err(format!("stateDir is {directory:?}, which other programs use; {expected}"));
    }
    if let Some(system) = KERNEL_DIRS.iter().find(|system| directory.starts_with(system)) {
        return Err(format!("stateDir is {directory:?}, but {system} holds no files that stay; {expected}"));
    }
    Ok(())
}
