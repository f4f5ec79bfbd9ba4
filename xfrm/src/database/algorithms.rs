//! Finds out which algorithms the kernel has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Xfrm;
use crate::error::{Error, Result};
use crate::mode::Mode;
use crate::reqid::Reqid;
use crate::sa::{EspKey, Limits, Replay, SaDirection, SaParams};

/// SPI of the SA that is installed for a moment. It is outside of [`crate::SpiRange::default`], so
/// it is never that of an inbound SA of ours.
const SCRATCH_SPI: u32 = 0xFFFF_EC00;

impl Xfrm {
    /// Returns whether this kernel can do ESP with the algorithm of this key, in at least one
    /// address family. Installs an SA from loopback to loopback, which no policy uses, and deletes
    /// it. The kernel loads the algorithm's module if there is one. Use a random key.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses the SA for another reason than that it lacks ESP or
    /// the algorithm, for example because the process may not change SAs.
    pub fn supports(&mut self, key: &EspKey) -> Result<bool> {
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let scratch = SaParams {
                direction: SaDirection::In,
                source: address,
                destination: address,
                spi: SCRATCH_SPI,
                reqid: Reqid::FROM_HUBS,
                mode: Mode::Tunnel,
                key: key.clone(),
                encap: None,
                replay: Replay::PLAIN,
                selector: None,
                limits: Limits::default(),
            };
            let added = match self.add_sa(&scratch) {
                // A process that was killed in between has left it.
                Err(Error::SaExists { id }) => self.delete_sa(id).and_then(|()| self.add_sa(&scratch)),
                added => added,
            };
            match added {
                Ok(()) => return self.delete_sa(scratch.id()).map(|()| true),
                Err(Error::Unsupported { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}
