//! Checks that a1's pod reaches a2's pod without a lost ping and through the same SAs while the
//! caller does something else.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::reach::Pods;
use super::world::World;
use crate::topology::Ping;

/// A watch from [`Self::begin`] to [`Self::end`].
pub(super) struct TunnelWatch<'a> {
    world: &'a World<'a>,
    ping: Ping,
    /// SPIs of a1's SAs at the beginning.
    tunnels: BTreeSet<u32>,
}

impl<'a> TunnelWatch<'a> {
    /// Starts pings, and waits until they are answered.
    ///
    /// # Errors
    /// Returns an error if no ping is answered.
    pub(super) fn begin(world: &'a World<'a>, pods: &Pods) -> Result<Self> {
        let tunnels = tunnels(world)?;
        let address = pods.of("edge-a2").v4.context("no IPv4")?.to_string();
        let mut ping = Ping::start(&pods.of("edge-a1").pod, &address, Duration::from_millis(20))?;
        ping.wait_more(10)?;
        Ok(Self { world, ping, tunnels })
    }

    /// Waits for some more pings, and checks that none was lost.
    ///
    /// # Errors
    /// Returns an error if a ping was lost, or if SAs were added or removed.
    pub(super) fn end(mut self) -> Result<()> {
        self.ping.wait_more(10)?;
        let said = "no ping of a1's pod to a2's was lost meanwhile, and a1's SAs are the same";
        self.world.checks.check(said, "ping logs", || {
            let report = self.ping.stop()?;
            report.expect_none_lost()?;
            let (before, now) = (&self.tunnels, tunnels(self.world)?);
            ensure!(now == *before, "they were {before:x?} and are {now:x?}");
            Ok(format!("{} pings", report.sent))
        })
    }

    /// Ends the watch as [`Self::end`] does, but SAs may be replaced.
    ///
    /// # Errors
    /// Returns an error if a ping was lost.
    pub(super) fn end_after_replacements(mut self) -> Result<()> {
        self.ping.wait_more(10)?;
        self.world.checks.check("no ping of a1's pod to a2's was lost meanwhile", "ping logs", || {
            let report = self.ping.stop()?;
            report.expect_none_lost()?;
            Ok(format!("{} pings", report.sent))
        })
    }
}

/// Returns the SPIs of a1's SAs.
pub(super) fn tunnels(world: &World) -> Result<BTreeSet<u32>> {
    Ok(world.node("edge-a1").xfrm_states()?.into_iter().map(|state| state.spi).collect())
}
