//! Cuts the power at random moments of ADD and DEL: the lab's kernel is killed, with the state
//! directory on an ext4 disk, and boots again with the same disk.
//!
//! A boot attaches a pod for each address of a segment, detaches two of them, and then attaches two
//! more while it detaches a third (`guest.sh`). Everything that the boot reported before the cut
//! must be on the disk after the cut. The next boot's pods get all addresses in the segment, each
//! address once. So no address is lost forever, and no two pods hold the same address.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guest::{Event, Guest, Job, Output, Spec, choose};
use crate::kernel::Purpose;
use crate::runner::programs;
use crate::scenario::{Outcome, TestResult};

/// The script that a boot runs.
const SCRIPT: &str = include_str!("guest.sh");

/// Addresses for pods in the segment of [`SCRIPT`].
const ADDRESSES: usize = 5;

/// Size of the disk, in bytes.
const DISK: u64 = 16 << 20;

/// Maximum number of cuts of one run. Each takes seconds.
const MOST_CUTS: u32 = 10_000;

/// Time limit for a complete boot, on a busy machine. A boot that takes longer fails the run.
const PATIENCE: Duration = Duration::from_secs(600);

/// Interval at which the host reads a guest's reports.
const PACE: Duration = Duration::from_millis(20);

/// Cuts the power `cuts` times at moments that follow from `seed`, and writes an outcome in the
/// form of scenarios to standard output. The exit status is 1 if an address was lost or held twice.
///
/// # Errors
/// Returns an error if there is no lab, no `mkfs.ext4`, or the programs do not build.
pub fn main(cuts: u32, seed: u64) -> Result<ExitCode> {
    ensure!((1..=MOST_CUTS).contains(&cuts), "--cuts must be from 1 to {MOST_CUTS}");
    let machine = Machine::new(programs()?.join("edge-cni"))?;
    let begun = Instant::now();
    let ended = machine.cut_often(cuts, seed);
    let (result, why) = match ended {
        Ok(()) => (TestResult::Pass, String::new()),
        Err(error) => (TestResult::Fail, format!("seed {seed}: {error:#}")),
    };
    let seconds = begun.elapsed().as_secs_f64();
    let outcome = Outcome { scenario: "cni/power-cuts".to_owned(), result, seconds, why };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(ExitCode::from(u8::from(result != TestResult::Pass)))
}

/// A machine with a disk that outlives its boots.
struct Machine {
    backend: crate::guest::Backend,
    plugin: PathBuf,
    folder: tempfile::TempDir,
}

impl Machine {
    fn new(plugin: PathBuf) -> Result<Self> {
        // Uses a lab kernel, since the host's kernel cannot be killed.
        let backend = choose(Some("uml"), Purpose::Scenarios)?;
        // The path is on the kernel's command line, where a comma has a meaning.
        let folder = tempfile::Builder::new().prefix("edge-power-cuts-").tempdir_in("/tmp")?;
        fs::write(folder.path().join("guest.sh"), SCRIPT)?;
        let image = folder.path().join("disk");
        fs::File::create(&image)?.set_len(DISK)?;
        let path = crate::executables::search_path();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).env("PATH", path).output();
        let made = made.context("mkfs.ext4 cannot be run: install Debian's package e2fsprogs")?;
        ensure!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr).trim());
        Ok(Self { backend, plugin, folder })
    }

    /// Cuts the power `cuts` times. The first boot runs to its end, to measure its duration. The
    /// last boot only reads the state that the last cut left.
    fn cut_often(&self, cuts: u32, seed: u64) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut before = Reports::default();
        let mut whole = None;
        for boot in 0..=cuts {
            let report = self.folder.path().join(format!("report-{boot}"));
            fs::create_dir(&report)?;
            let mut guest = Guest::start(&self.backend, &self.spec(&report), Output::Inherit)?;
            let mounted = wait_for(&mut guest, &report, "mounted")?;
            before
                .compare(&fs::read(report.join("journal")).unwrap_or_default())
                .with_context(|| format!("after cut {boot} of {cuts}, which came after {:?}", before.names))?;
            match whole {
                Some(whole) if boot < cuts => {
                    // Some cuts come after the script's last step.
                    let moment = Duration::mul_f64(whole, random.f64() * 1.1);
                    wait_until(&mut guest, &report, mounted + moment)?;
                }
                _ => whole = Some(wait_for(&mut guest, &report, "ended")?.duration_since(mounted)),
            }
            guest.kill();
            let failure = fs::read_to_string(report.join("failure")).unwrap_or_default();
            before = Reports::read(&report)?;
            before.none_failed(&failure).and_then(|()| before.addresses_are_apart()).with_context(|| {
                format!("in the boot after cut {boot} of {cuts}, which reported {:?}", before.names)
            })?;
            if boot < cuts {
                eprintln!("cut {} of {cuts} after {} reports", boot + 1, before.names.len());
            }
            fs::remove_dir_all(&report)?;
        }
        Ok(())
    }

    fn spec(&self, report: &Path) -> Spec {
        let text = |path: &Path| path.display().to_string();
        let script = self.folder.path().join("guest.sh");
        Spec {
            writable: vec![report.to_owned()],
            disk: Some(self.folder.path().join("disk")),
            cwd: "/".into(),
            env: crate::exec::environment(),
            window: None,
            job: Job::Exec {
                argv: vec!["sh".to_owned(), text(&script), text(report), text(&self.plugin)],
                terminal: false,
            },
        }
    }
}

/// Waits for a report. Returns the time when it was seen.
fn wait_for(guest: &mut Guest, report: &Path, name: &str) -> Result<Instant> {
    let begun = Instant::now();
    while !report.join(name).exists() {
        ensure!(
            begun.elapsed() < PATIENCE,
            "the guest did not report {name:?} within {PATIENCE:?}:\n{}",
            guest.console()
        );
        step(guest, report, PACE)?;
    }
    Ok(Instant::now())
}

/// Waits for a moment, while the guest runs.
fn wait_until(guest: &mut Guest, report: &Path, moment: Instant) -> Result<()> {
    loop {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        step(guest, report, left)?;
    }
}

/// Waits for the guest's next event, at most for this time. The guest must not end by itself.
fn step(guest: &mut Guest, report: &Path, time: Duration) -> Result<()> {
    match guest.event(Some(time))? {
        None | Some(Event::Ready) => Ok(()),
        Some(event) => {
            let answer = fs::read_to_string(report.join("failure")).unwrap_or_default();
            bail!("the guest ended by itself ({event:?}): {answer}\n{}", guest.console())
        }
    }
}

/// The reports from a boot, in no particular order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reports {
    names: BTreeSet<String>,
}

impl Reports {
    fn read(directory: &Path) -> Result<Self> {
        let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        Ok(Self { names: names.collect::<Result<_>>()? })
    }

    /// Returns the pods with a report that begins with `beginning`.
    fn pods(&self, beginning: &str) -> BTreeSet<&str> {
        self.names.iter().filter_map(|name| name.strip_prefix(beginning)).collect()
    }

    /// Compares the leases on the disk with the reports: an ADD that answered has its lease unless
    /// a DEL has begun, and a DEL that answered has ended the lease.
    fn compare(&self, journal: &[u8]) -> Result<()> {
        let leased = leased(journal);
        let shown = || String::from_utf8_lossy(journal);
        for pod in self.pods("attached-").difference(&self.pods("detaching-")) {
            ensure!(leased.contains(*pod), "the lease of {pod} is lost, and its ADD had answered:\n{}", shown());
        }
        for pod in self.pods("detached-") {
            ensure!(!leased.contains(pod), "the lease of {pod} is back, and its DEL had answered:\n{}", shown());
        }
        Ok(())
    }

    /// Checks that each call that answered was successful.
    fn none_failed(&self, answer: &str) -> Result<()> {
        let failed = self.pods("failed-");
        ensure!(failed.is_empty(), "{failed:?} failed: {answer}");
        Ok(())
    }

    /// Checks that each pod has a different address, and that the first pods have all addresses.
    fn addresses_are_apart(&self) -> Result<()> {
        let mut held = BTreeSet::new();
        let detaching = self.pods("detaching-");
        for name in self.pods("address-") {
            let (address, pod) = name.split_once('-').context("a report without a pod")?;
            ensure!(detaching.contains(pod) || held.insert(address), "{address} is held by two pods: {:?}", self.names);
        }
        let first: BTreeSet<_> = self
            .pods("address-")
            .into_iter()
            .filter_map(|name| name.split_once('-').filter(|(_, pod)| !pod.starts_with("late-")))
            .map(|(address, _)| address)
            .collect();
        ensure!(
            !self.names.contains("full") || first.len() == ADDRESSES,
            "{ADDRESSES} pods should have {ADDRESSES} addresses, and have {first:?}"
        );
        Ok(())
    }
}

/// Returns the containers that have a lease in a journal (docs/cni.md, "On disk"). A line without a
/// line end is ignored.
fn leased(journal: &[u8]) -> BTreeSet<String> {
    let mut leased = BTreeSet::new();
    for line in String::from_utf8_lossy(journal).split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        match *line.split(' ').collect::<Vec<_>>() {
            [_, "+", container, ..] => leased.insert(container.to_owned()),
            [_, "-", container, ..] => leased.remove(container),
            _ => false,
        };
    }
    leased
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(names: &[&str]) -> Reports {
        Reports { names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    const JOURNAL: &[u8] =
        b"1 edge-cni-leases 1 1 boot\n2 + a eth0 pods - 10.77.3.2\n3 + b eth0 pods - 10.77.3.3\n4 - a eth0 17\n";

    #[test]
    fn a_lease_that_was_reported_and_is_not_on_the_disk_is_lost() {
        reports(&["attached-b", "attached-a", "detaching-a", "detached-a"]).compare(JOURNAL).unwrap();
        reports(&["attached-a", "detaching-a"]).compare(JOURNAL).unwrap();
        let error = reports(&["attached-c"]).compare(JOURNAL).unwrap_err().to_string();
        assert!(error.contains("the lease of c is lost"), "{error}");
        let error = reports(&["attached-b", "detaching-b", "detached-b"]).compare(JOURNAL).unwrap_err().to_string();
        assert!(error.contains("the lease of b is back"), "{error}");
        // An incomplete line is ignored.
        assert!(reports(&["attached-d"]).compare(b"1 + d eth0 pods - 10.77.3.2").is_err());
    }

    #[test]
    fn an_address_that_two_pods_hold_is_seen_and_one_that_was_given_on_is_not() {
        reports(&["address-10.0.0.2-a", "address-10.0.0.3-b"]).addresses_are_apart().unwrap();
        assert!(reports(&["address-10.0.0.2-a", "address-10.0.0.2-b"]).addresses_are_apart().is_err());
        reports(&["address-10.0.0.2-a", "detaching-a", "address-10.0.0.2-b"]).addresses_are_apart().unwrap();
        assert!(reports(&["full", "address-10.0.0.2-a"]).addresses_are_apart().is_err());
    }
}
