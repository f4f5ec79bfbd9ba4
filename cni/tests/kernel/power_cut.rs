//! Tests power cuts at random moments during ADD and DEL, with the state directory on an ext4 disk.
//!
//! The disk is an image in a file. `EXT4_IOC_SHUTDOWN` stops the file system as a power cut does:
//! data that was not flushed is lost. A reboot is a new host with another boot ID and the same
//! disk. `EDGE_CNI_CUTS` sets the number of cuts (default 50).

#![allow(unsafe_code, reason = "ioctl(2) has no safe form")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use interop_tests::netns::{self, succeed};
use interop_tests::suite::Test;
use serde_json::json;
use tempfile::TempDir;

use crate::random_calls::from_environment;
use crate::world::{Pod, World, addresses, answer, held, path, start_with};

pub(crate) const TESTS: &[Test] = &[(
    "a_power_cut_loses_no_lease_that_was_reported_and_no_address_for_ever",
    a_power_cut_loses_no_lease_that_was_reported_and_no_address_for_ever,
)];

/// A segment with five addresses for pods.
const SEGMENT: &str = "10.77.3.0/29";
const ADDRESSES: usize = 5;

/// `EXT4_IOC_SHUTDOWN` and `EXT4_GOING_FLAGS_NOLOGFLUSH` (linux/ext4.h).
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
const NO_LOG_FLUSH: u32 = 2;

/// Returns the reason why the tests cannot run on this machine. `None` if they can.
pub(crate) fn unavailable() -> Option<String> {
    if !Command::new("mkfs.ext4").arg("-V").output().is_ok_and(|output| output.status.success()) {
        return Some("`mkfs.ext4` (e2fsprogs) cannot be run".into());
    }
    netns::unavailable().or_else(|| {
        let disk = Disk::new();
        let machine = Machine::boot(&disk, "probe", World::new(&[SEGMENT]));
        machine.err().map(|why| format!("an image of ext4 cannot be mounted here: {why}"))
    })
}

/// An ext4 disk, which outlives the machine that uses it.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = File::create(folder.path().join("image")).unwrap();
        image.set_len(16 << 20).unwrap();
        succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(folder.path().join("image")));
        fs::create_dir(folder.path().join("disk")).unwrap();
        Self { folder }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("disk")
    }
}

/// A host from boot to power cut. Its disk is mounted in a separate mount namespace, so that no
/// other process keeps it mounted.
struct Machine<'a> {
    world: World,
    disk: &'a Disk,
    /// Keeps the mount namespace alive. It ends when its standard input is closed.
    holder: Child,
}

impl<'a> Machine<'a> {
    /// Boots a machine. `world` must already have all its pods, since namespaces that are created
    /// later have no name in the mount namespace.
    fn boot(disk: &'a Disk, boot_id: &str, world: World) -> Result<Self, String> {
        world.set("stateDir", json!(disk.mount_point().join("state")));
        let id = disk.folder.path().join("boot_id");
        fs::write(&id, boot_id).unwrap();
        let script =
            r#"mount -o loop "$1" "$2" && mount --bind "$3" /proc/sys/kernel/random/boot_id && echo up && exec cat"#;
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .args([disk.image(), disk.mount_point(), id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        if std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut up).is_ok() {
            return Ok(Self { world, disk, holder });
        }
        let output = holder.wait_with_output().unwrap();
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// Returns the path of a file on the disk, as the test process sees it.
    fn on_disk(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.disk.mount_point().strip_prefix("/").unwrap()).join(name)
    }

    fn start(&self, verb: &str, pod: &Pod) -> Child {
        let netns = path(pod);
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg(format!("--net=/run/netns/{}", self.world.host))
            .arg(env!("CARGO_BIN_EXE_edge-cni"))
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", &pod.id), ("CNI_NETNS", &netns), ("CNI_IFNAME", "eth0")]);
        start_with(command, self.world.config.borrow().to_string().as_bytes())
    }

    /// Stops the file system. Data that is not flushed is lost.
    fn cut(&self) {
        let root = File::open(self.on_disk("")).unwrap();
        let flags = NO_LOG_FLUSH;
        // SAFETY: the descriptor is open, and the argument points to a number that outlives the
        // call.
        let outcome = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) };
        assert_eq!(outcome, 0, "EXT4_IOC_SHUTDOWN: {}", std::io::Error::last_os_error());
    }

    /// Switches the machine off, so that another one may use the disk.
    fn off(mut self) {
        succeed(
            Command::new("nsenter")
                .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
                .arg("umount")
                .arg(self.disk.mount_point()),
        );
        drop(self.holder.stdin.take());
        assert!(self.holder.wait().unwrap().success());
    }
}

/// Returns whether a call has already ended successfully.
fn succeeded(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_some_and(|status| status.success())
}

fn a_power_cut_loses_no_lease_that_was_reported_and_no_address_for_ever() {
    let disk = Disk::new();
    let seed = from_environment("EDGE_CNI_SEED", u64::from(std::process::id()));
    println!("EDGE_CNI_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for cut in 0..from_environment("EDGE_CNI_CUTS", 50) {
        let world = World::new(&[SEGMENT]);
        let pods: Vec<Pod> = (0..ADDRESSES).map(|_| world.pod()).collect();
        let machine = Machine::boot(&disk, &format!("boot-{cut}"), world).unwrap();
        // Whatever the state of the disk after the previous cut, each address can be leased, but
        // only by one pod.
        let begun = Instant::now();
        let added: Vec<_> = pods.iter().map(|pod| answer(machine.start("ADD", pod))).collect();
        let usual = begun.elapsed() / ADDRESSES as u32;
        let given: BTreeSet<String> = added
            .iter()
            .flat_map(|added| {
                assert!(added.ok, "after cut {cut}: {}", added.json);
                addresses(&added.json)
            })
            .collect();
        assert_eq!(given.len(), ADDRESSES, "after cut {cut}: {given:?}");
        let (stay, go, come) = (&pods[..2], &pods[2..3], &pods[3..]);
        assert!(come.iter().all(|pod| answer(machine.start("DEL", pod)).ok));
        let mut adds: Vec<Child> = come.iter().map(|pod| machine.start("ADD", pod)).collect();
        let mut dels: Vec<Child> = go.iter().map(|pod| machine.start("DEL", pod)).collect();
        #[expect(clippy::disallowed_methods, reason = "it chooses the moment of the cut")]
        std::thread::sleep(usual.mul_f64(random.f64() * 4.0).min(Duration::from_secs(10)));
        // Calls that end later are not counted, since the shutdown may have undone a success that
        // they report.
        let attached: Vec<bool> = adds.iter_mut().map(succeeded).collect();
        let detached: Vec<bool> = dels.iter_mut().map(succeeded).collect();
        machine.cut();
        adds.into_iter().chain(dels).for_each(|child| drop(answer(child)));
        machine.off();
        // The disk is in the state that the next boot finds.
        let machine = Machine::boot(&disk, &format!("boot-{cut}"), World::new(&[SEGMENT])).unwrap();
        let journal = fs::read_to_string(machine.on_disk("state/leases")).unwrap();
        let leased = held(&journal);
        let reported = come.iter().zip(&attached).filter(|(_, ok)| **ok).map(|(pod, _)| pod);
        for pod in stay.iter().chain(reported) {
            assert!(leased.contains(&pod.id), "cut {cut}: the lease of {} is lost:\n{journal}", pod.id);
        }
        for pod in go.iter().zip(&detached).filter(|(_, ok)| **ok).map(|(pod, _)| pod) {
            assert!(!leased.contains(&pod.id), "cut {cut}: the lease of {} is back:\n{journal}", pod.id);
        }
        println!("cut {cut}: {attached:?} attached, {detached:?} detached");
        machine.off();
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
