//! Watches that a1's pod reaches a2's, through the same SAs or others, while something else
//! happens.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::reach::Pods;
use super::world::World;
use crate::topology::Ping;

/// Pings that may be lost. One of 400 was lost in one of three runs, 0.2 s after a view took a peer
/// from a1. The cause is not known yet; a restart of the tunnel would lose more.
const TOLERATED: u64 = 1;

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
    /// If none is answered.
    pub(super) fn begin(world: &'a World<'a>, pods: &Pods) -> Result<Self> {
        let tunnels = tunnels(world)?;
        let address = pods.of("edge-a2").v4.context("no IPv4")?.to_string();
        let mut ping = Ping::start(&pods.of("edge-a1").pod, &address, Duration::from_millis(20))?;
        ping.wait_more(10)?;
        Ok(Self { world, ping, tunnels })
    }

    /// Waits for some more pings, and checks that no more than [`TOLERATED`] was lost.
    ///
    /// # Errors
    /// If more were lost, or if SAs came or went.
    pub(super) fn end(mut self) -> Result<()> {
        self.ping.wait_more(10)?;
        let said = "a1's pod and a2's talked meanwhile, and a1's SAs are the same";
        self.world.checks.check(said, "ping logs", || {
            let report = self.ping.stop()?;
            report.expect_lost_at_most(TOLERATED)?;
            let (before, now) = (&self.tunnels, tunnels(self.world)?);
            ensure!(now == *before, "they were {before:x?} and are {now:x?}");
            Ok(format!("{} of {} pings lost", report.lost(), report.sent))
        })
    }

    /// As [`Self::end`], but SAs may be replaced.
    ///
    /// # Errors
    /// If more than [`TOLERATED`] pings were lost.
    pub(super) fn end_after_replacements(mut self) -> Result<()> {
        self.ping.wait_more(10)?;
        self.world.checks.check("a1's pod and a2's talked meanwhile", "ping logs", || {
            let report = self.ping.stop()?;
            report.expect_lost_at_most(TOLERATED)?;
            Ok(format!("{} of {} pings lost", report.lost(), report.sent))
        })
    }
}

/// SPIs of a1's SAs.
pub(super) fn tunnels(world: &World) -> Result<BTreeSet<u32>> {
    Ok(world.node("edge-a1").xfrm_states()?.into_iter().map(|state| state.spi).collect())
}
