//! Settings below `/proc/sys/net` in the thread's network namespace. A setting is written only if
//! it has another value, so that a read-only `/proc/sys` with the right values causes no error.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use edge_types::api::Family;
use rustix::fs::{Access, CWD};
use rustix::io::Errno;

use crate::error::{Code, Error, Result};
use crate::proc_file;

const ROOT: &str = "/proc/sys/net";

/// The settings of an interface for one family.
///
/// Its directory is open. The kernel keeps the names below `/proc/sys/net` of all network
/// namespaces in one table, so looking up a whole path takes longer with each pod of the node.
#[derive(Debug)]
pub(crate) struct InterfaceSettings {
    path: String,
    /// `None` if the kernel lacks the family, or if there is no such interface.
    directory: Option<OwnedFd>,
}

impl InterfaceSettings {
    /// Opens the settings.
    pub(crate) fn open(interface: &str, family: Family) -> Result<Self> {
        let family = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let path = format!("{ROOT}/{family}/conf/{interface}");
        match proc_file::directory(&path) {
            Ok(directory) => Ok(Self { path, directory: Some(directory) }),
            Err(Errno::NOENT) => Ok(Self { path, directory: None }),
            Err(error) => Err(failed(&path, error)),
        }
    }

    /// Sets a setting. Fails if this kernel does not have it.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<()> {
        let directory = self.directory.as_ref().ok_or(Errno::NOENT);
        let outcome = directory.and_then(|directory| proc_file::set(directory.as_fd(), name, value));
        outcome.map_err(|error| not_set(&format!("{}/{name}", self.path), value, error))
    }

    /// Sets a setting if this kernel has it.
    pub(crate) fn set_if_present(&self, name: &str, value: &str) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        match proc_file::set(directory.as_fd(), name, value) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(not_set(&format!("{}/{name}", self.path), value, error)),
        }
    }

    /// Configures the interface to ignore routes and addresses from router advertisements, if these
    /// are its settings for IPv6.
    pub(crate) fn ignore_router_advertisements(&self) -> Result<()> {
        self.set_if_present("accept_ra", "0")?;
        self.set_if_present("autoconf", "0")
    }
}

/// Configures the kernel to announce the interface's addresses whenever its MAC address is set,
/// with gratuitous ARP (RFC 5227 2.3) and unsolicited neighbour advertisements (RFC 4861 7.2.6).
pub(crate) fn announce_addresses(ipv4: &InterfaceSettings, ipv6: &InterfaceSettings) -> Result<()> {
    ipv4.set("arp_notify", "1")?;
    ipv6.set_if_present("ndisc_notify", "1")
}

/// Returns whether this host forwards packets of this family. A setting that cannot be read counts
/// as off.
pub(crate) fn forwards(family: Family) -> bool {
    let name = if family == Family::V4 { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
    proc_file::read(&format!("{ROOT}/{name}")).is_ok_and(|value| value == "1")
}

/// Turns IPv4 forwarding on.
pub(crate) fn forward_ipv4() -> Result<()> {
    set(&format!("{ROOT}/ipv4/ip_forward"), "1")
}

/// Returns whether this kernel has IPv6. With the boot parameter `ipv6.disable=1` it does not.
pub(crate) fn has_ipv6() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| rustix::fs::access(format!("{ROOT}/ipv6/conf"), Access::EXISTS).is_ok())
}

/// Turns IPv6 forwarding on. A host that forwards ignores router advertisements unless `accept_ra`
/// is 2, and would lose its default route. Therefore `accept_ra` of the uplinks is set to 2 first.
/// Other interfaces are not changed, since this host must not accept routes from their networks.
/// `note` is called before each change.
pub(crate) fn forward_ipv6(uplinks: &[String], mut note: impl FnMut(&str)) -> Result<()> {
    for uplink in uplinks {
        let path = format!("{ROOT}/ipv6/conf/{uplink}/accept_ra");
        if proc_file::read(&path).is_ok_and(|value| value == "1") {
            note(uplink);
            set_unless_gone(&path, "2")?;
        }
    }
    set(&format!("{ROOT}/ipv6/conf/all/forwarding"), "1")
}

fn set(path: &str, value: &str) -> Result<()> {
    proc_file::set(CWD, path, value).map_err(|error| not_set(path, value, error))
}

/// Does the same as [`set`], unless the interface has been removed meanwhile.
fn set_unless_gone(path: &str, value: &str) -> Result<()> {
    match proc_file::set(CWD, path, value) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(not_set(path, value, error)),
    }
}

fn not_set(path: &str, value: &str, error: Errno) -> Error {
    let remedy = match error {
        Errno::NOENT => "this kernel does not have it; if it is one of IPv6, boot without ipv6.disable=1",
        _ => "set it with sysctl, or make /proc/sys/net writable for the container runtime",
    };
    failed(path, error).with_details(format!("needs to be {value}; {remedy}"))
}

fn failed(path: &str, error: Errno) -> Error {
    Error::new(Code::Io, format!("cannot set {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_set_a_setting_that_the_kernel_does_not_have() {
        let text = set("/proc/sys/net/missing", "1").unwrap_err().to_string();
        assert!(text.contains("this kernel does not have it") && !text.contains("sysctl"), "{text}");
        let text = not_set("/proc/sys/net/there", "1", Errno::ROFS).to_string();
        assert!(text.contains("set it with sysctl"), "{text}");
    }
}
