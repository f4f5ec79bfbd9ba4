//! Settings below `/proc/sys/net`, of the network namespace that the thread is in. Each is read
//! first: where the value is right nothing is written, so that a read-only `/proc/sys` does no
//! harm.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};

const ROOT: &str = "/proc/sys/net";

/// Sets one, e.g. `ipv4/ip_forward`. One that this kernel has not is an error.
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

/// Sets one where this kernel has it.
pub(crate) fn set_if_present(name: &str, value: &str) -> Result<()> {
    if Path::new(ROOT).join(name).exists() { set(name, value) } else { Ok(()) }
}

/// An interface takes no routes and addresses from router advertisements, where this kernel has
/// IPv6.
pub(crate) fn ignore_router_advertisements(interface: &str) -> Result<()> {
    set_if_present(&format!("ipv6/conf/{interface}/accept_ra"), "0")?;
    set_if_present(&format!("ipv6/conf/{interface}/autoconf"), "0")
}

/// Turns forwarding on.
pub(crate) fn forward_ipv4() -> Result<()> {
    set("ipv4/ip_forward", "1")
}

/// Whether this kernel has IPv6: not with the boot parameter `ipv6.disable=1`.
pub(crate) fn has_ipv6() -> bool {
    Path::new(ROOT).join("ipv6").join("conf").exists()
}

/// Turns forwarding on. A host that forwards ignores router advertisements unless told to go on
/// (`accept_ra` 2), and would lose its default route: so its uplinks are told first. Others are
/// not, since nobody there may give this host a route.
pub(crate) fn forward_ipv6(uplinks: impl FnOnce() -> Result<Vec<String>>) -> Result<()> {
    let conf = Path::new(ROOT).join("ipv6/conf");
    let forwarding = conf.join("all/forwarding");
    if read(&forwarding).map_err(|error| Error::io("read", &forwarding, error))? == "1" {
        return Ok(());
    }
    for uplink in uplinks()? {
        accept_ra_while_forwarding(&conf.join(uplink).join("accept_ra"))?;
    }
    set("ipv6/conf/all/forwarding", "1")
}

fn accept_ra_while_forwarding(accept_ra: &Path) -> Result<()> {
    if read(accept_ra).is_ok_and(|value| value == "1")
        && let Err(error) = fs::write(accept_ra, "2")
        // The interface may have gone meanwhile.
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(Error::io("write", accept_ra, error));
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}
