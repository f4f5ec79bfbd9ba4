//! Reserves TCP ports, also while their servers are down.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context as _, Result};

/// First port of the range. The range is below the ports that the kernel gives to outgoing
/// connections. A client that repeatedly connects to a port in that other range while its server is
/// down may connect to itself, and then the server cannot bind to its port.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port on loopback that no other control plane uses.
#[derive(Debug)]
pub(super) struct ReservedPort {
    pub(super) number: u16,
    // The lock is held as long as the file is open.
    _claim: File,
}

impl ReservedPort {
    pub(super) fn claim() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("edge-kube-ports-{}", rustix::process::getuid().as_raw()));
        std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        // Each process begins at another port, so that the first attempt usually succeeds.
        let start = (std::process::id() % u32::from(COUNT)) as u16;
        for offset in 0..COUNT {
            let number = FIRST + (start + offset) % COUNT;
            let claim = File::create(directory.join(number.to_string()))?;
            if claim.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self { number, _claim: claim });
            }
        }
        anyhow::bail!("no TCP port from {FIRST} to {} is free on loopback", FIRST + COUNT - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::ReservedPort;

    #[test]
    fn a_port_is_given_once() {
        let (one, two) = (ReservedPort::claim().unwrap(), ReservedPort::claim().unwrap());
        assert_ne!(one.number, two.number);
    }
}
