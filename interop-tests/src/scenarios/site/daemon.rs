//! What the checks of a [`Site`](super::Site) need from another project's IKE daemon.

use anyhow::Result;

use crate::libreswan::Pluto;
use crate::strongswan::Charon;

/// Another project's IKE daemon with one connection, which has one child.
pub(in crate::scenarios) trait Daemon {
    /// Returns the program's name, for messages.
    fn name(&self) -> &'static str;

    /// Initiates the connection and waits until the child is up.
    fn initiate(&self) -> Result<()>;

    /// Waits until there is exactly one IKE SA with exactly one CHILD_SA.
    fn wait_up(&self) -> Result<DaemonSpis>;

    /// Returns the number of CHILD_SAs that carry traffic.
    fn count_children(&self) -> Result<usize>;

    /// Rekeys the CHILD_SA, and waits until only the new one is left.
    fn rekey_child(&self) -> Result<()>;

    /// Rekeys the IKE SA, and waits until only the new one is left.
    fn rekey_ike(&self) -> Result<()>;

    /// Returns whether it has neither an IKE SA nor a CHILD_SA.
    fn is_idle(&self) -> Result<bool>;

    /// Ends the connection's IKE SA.
    fn terminate(&self) -> Result<()>;

    /// Returns whether it sends with a new CHILD_SA as soon as it has answered our rekey, when this
    /// end may not have the keys yet. RFC 7296 2.8 has it wait for a packet or for the deletion of
    /// the old CHILD_SA.
    fn sends_early(&self) -> bool;
}

/// SPIs of a CHILD_SA, as the daemon shows them.
#[derive(Debug)]
pub(in crate::scenarios) struct DaemonSpis {
    /// SPI of packets that the daemon's host receives.
    pub(in crate::scenarios) spi_in: u32,
    /// SPI of packets that the daemon's host sends.
    pub(in crate::scenarios) spi_out: u32,
}

impl Daemon for Charon<'_> {
    fn name(&self) -> &'static str {
        "charon"
    }

    fn initiate(&self) -> Result<()> {
        Charon::initiate(self)
    }

    fn wait_up(&self) -> Result<DaemonSpis> {
        let child = Charon::wait_up(self)?;
        Ok(DaemonSpis { spi_in: child.spi_in, spi_out: child.spi_out })
    }

    fn count_children(&self) -> Result<usize> {
        Ok(self.installed()?.len())
    }

    fn rekey_child(&self) -> Result<()> {
        Charon::rekey_child(self)
    }

    fn rekey_ike(&self) -> Result<()> {
        Charon::rekey_ike(self)
    }

    fn is_idle(&self) -> Result<bool> {
        Ok(self.sas()?.is_empty())
    }

    fn terminate(&self) -> Result<()> {
        Charon::terminate(self)
    }

    fn sends_early(&self) -> bool {
        false
    }
}

impl Daemon for Pluto<'_> {
    fn name(&self) -> &'static str {
        "pluto"
    }

    fn initiate(&self) -> Result<()> {
        Pluto::initiate(self)
    }

    fn wait_up(&self) -> Result<DaemonSpis> {
        let child = Pluto::wait_up(self)?;
        Ok(DaemonSpis { spi_in: child.spi_in, spi_out: child.spi_out })
    }

    fn count_children(&self) -> Result<usize> {
        Ok(self.children()?.len())
    }

    fn rekey_child(&self) -> Result<()> {
        Pluto::rekey_child(self)
    }

    fn rekey_ike(&self) -> Result<()> {
        Pluto::rekey_ike(self)
    }

    fn is_idle(&self) -> Result<bool> {
        Pluto::is_idle(self)
    }

    fn terminate(&self) -> Result<()> {
        Pluto::terminate(self)
    }

    fn sends_early(&self) -> bool {
        true
    }
}
