//! Settings below `/proc/sys/net` in the thread's network namespace. A setting is written only if
//! it has another value, so that a read-only `/proc/sys` with the right values causes no error.

use std::fs;
use std::io;
use std::path::Path;

use edge_types::api::Family;

use crate::error::{Error, Result};

const ROOT: &str = "/proc/sys/net";

/// Sets a setting such as `ipv4/ip_forward`. Fails if this kernel does not have it.
pub(crate) fn set(name: &str, value: &str) -> Result<()> {
    let path = Path::new(ROOT).join(name);
    if read(&path).map_err(|error| Error::io("read", &path, error))? == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(|error| {
        Error::io("write", &path, error).with_details(format!(
            "needs to be {value}; set it with sysctl, or make /proc/sys/net writable for the container runtime"
        ))
    })
}

/// Sets a setting if this kernel has it.
pub(crate) fn set_if_present(name: &str, value: &str) -> Result<()> {
    if Path::new(ROOT).join(name).exists() { set(name, value) } else { Ok(()) }
}

/// Configures an interface to ignore routes and addresses from router advertisements. Does nothing
/// on a kernel without IPv6.
pub(crate) fn ignore_router_advertisements(interface: &str) -> Result<()> {
    set_if_present(&format!("ipv6/conf/{interface}/accept_ra"), "0")?;
    set_if_present(&format!("ipv6/conf/{interface}/autoconf"), "0")
}

/// Configures the kernel to announce the interface's addresses whenever its MAC address is set,
/// with gratuitous ARP (RFC 5227 2.3) and unsolicited neighbour advertisements (RFC 4861 7.2.6).
pub(crate) fn announce_addresses(interface: &str) -> Result<()> {
    set(&format!("ipv4/conf/{interface}/arp_notify"), "1")?;
    set_if_present(&format!("ipv6/conf/{interface}/ndisc_notify"), "1")
}

/// Returns whether this host forwards packets of this family. A setting that cannot be read counts
/// as off.
pub(crate) fn forwards(family: Family) -> bool {
    let name = if family == Family::V4 { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
    read(&Path::new(ROOT).join(name)).is_ok_and(|value| value == "1")
}

/// Turns IPv4 forwarding on.
pub(crate) fn forward_ipv4() -> Result<()> {
    set("ipv4/ip_forward", "1")
}

/// Returns whether this kernel has IPv6. With the boot parameter `ipv6.disable=1` it does not.
pub(crate) fn has_ipv6() -> bool {
    Path::new(ROOT).join("ipv6").join("conf").exists()
}

/// Turns IPv6 forwarding on. A host that forwards ignores router advertisements unless `accept_ra`
/// is 2, and would lose its default route. Therefore `accept_ra` of the uplinks is set to 2 first.
/// Other interfaces are not changed, since this host must not accept routes from their networks.
/// `note` is called before each change.
pub(crate) fn forward_ipv6(uplinks: &[String], mut note: impl FnMut(&str)) -> Result<()> {
    let conf = Path::new(ROOT).join("ipv6/conf");
    for uplink in uplinks {
        accept_ra_while_forwarding(&conf.join(uplink).join("accept_ra"), || note(uplink))?;
    }
    set("ipv6/conf/all/forwarding", "1")
}

fn accept_ra_while_forwarding(accept_ra: &Path, note: impl FnOnce()) -> Result<()> {
    if !read(accept_ra).is_ok_and(|value| value == "1") {
        return Ok(());
    }
    note();
    if let Err(error) = fs::write(accept_ra, "2")
        // The interface may have been removed in the meantime.
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(Error::io("write", accept_ra, error));
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}
