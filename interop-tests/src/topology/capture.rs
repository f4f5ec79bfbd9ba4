//! Captures the packets on an interface.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use super::namespaces::Namespaces;
use super::process::Process;

/// A running capture of one interface, into `NODE-INTERFACE.pcap` in the scenario's directory.
pub struct Capture {
    process: Process,
    file: PathBuf,
    /// Whether tcpdump has written everything.
    stopped: bool,
}

impl Namespaces {
    /// Starts a capture of everything on one interface.
    ///
    /// # Errors
    /// Returns an error if tcpdump cannot be run.
    pub fn capture(&self, interface: &str) -> Result<Capture> {
        Capture::start(self, interface)
    }
}

impl Capture {
    pub(super) fn start(namespaces: &Namespaces, interface: &str) -> Result<Self> {
        let file = namespaces.out().join(format!("{}-{interface}.pcap", namespaces.name()));
        let mut process = namespaces.start(
            &format!("tcpdump-{interface}"),
            namespaces
                .command("tcpdump")
                // tcpdump writes each packet at once and stays root. Each packet takes up to 64 KiB
                // of the buffer, so a smaller one overflows when the machine is busy.
                .args(["--immediate-mode", "-U", "-n", "-s", "0", "-B", "32768", "-Z", "root"])
                .args(["-i", interface, "-w"])
                .arg(&file),
        )?;
        process.wait_log("listening on")?;
        Ok(Self { process, file, stopped: false })
    }

    /// Returns the path of the capture's file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the packets captured so far that match a filter (pcap-filter(7); empty for all),
    /// each as a line from tcpdump.
    ///
    /// # Errors
    /// Returns an error if the filter is invalid.
    pub fn packets(&self, filter: &str) -> Result<Vec<String>> {
        let out = Command::new("tcpdump")
            .args(["-n", "-tt", "-r"])
            .arg(&self.file)
            .args(Some(filter).filter(|filter| !filter.is_empty()))
            .output()
            .context("tcpdump cannot be run")?;
        let said = String::from_utf8_lossy(&out.stderr);
        // The file may end in the middle of a packet while tcpdump writes.
        if !out.status.success() && !said.contains("truncated dump file") {
            bail!("tcpdump -r {} {filter:?}: {said}", self.file.display());
        }
        Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
    }

    /// Returns the SPIs of the ESP packets captured so far, with and without UDP.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn esp_spis(&self) -> Result<std::collections::BTreeSet<u32>> {
        let mut spis = std::collections::BTreeSet::new();
        for line in self.packets("udp port 4500 or esp or ip6 proto 50")? {
            if let Some((_, rest)) = line.split_once("ESP(spi=0x")
                && let Some(digits) = rest.get(..8)
            {
                spis.insert(u32::from_str_radix(digits, 16)?);
            }
        }
        Ok(spis)
    }

    /// Fails if a packet of a capture that has ended matches the filter. The message contains the
    /// first matching packets.
    ///
    /// # Errors
    /// Returns an error if a packet matches, if nothing at all was captured, if the capture still
    /// runs, or if the filter is invalid.
    pub fn expect_none(&self, filter: &str) -> Result<()> {
        ensure!(self.stopped, "the capture still runs, so that its last packets may be missing");
        ensure!(!self.packets("")?.is_empty(), "{} has no packet, which proves nothing", self.file.display());
        self.expect_none_so_far(filter)
    }

    /// Fails if a packet captured so far matches the filter. The last packets may be missing, so
    /// the caller must show afterwards that such a packet is captured.
    ///
    /// # Errors
    /// Returns an error if a packet matches, or the filter is invalid.
    pub fn expect_none_so_far(&self, filter: &str) -> Result<()> {
        let packets = self.packets(filter)?;
        ensure!(
            packets.is_empty(),
            "{} packets in {} should not be on the wire ({filter}); the first ones:\n{}",
            packets.len(),
            self.file.display(),
            packets[..packets.len().min(5)].join("\n")
        );
        Ok(())
    }

    /// Waits until a packet matches the filter.
    ///
    /// # Errors
    /// Returns an error if no such packet is captured in time.
    pub fn wait_for(&self, filter: &str) -> Result<()> {
        crate::wait::for_event(&format!("a packet in {} ({filter})", self.file.display()), || {
            ensure!(!self.packets(filter)?.is_empty(), "none came");
            Ok(())
        })
    }

    /// Ends the capture. Fails if the kernel dropped packets before tcpdump saw them, since the
    /// capture would prove nothing.
    ///
    /// # Errors
    /// Returns an error if packets were dropped, or tcpdump does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::INT)?;
        self.process.wait_end(crate::wait::TIMEOUT)?;
        let log = self.process.log();
        ensure!(log.contains("\n0 packets dropped by kernel"), "this capture is not whole: {log}");
        self.stopped = true;
        Ok(())
    }
}
