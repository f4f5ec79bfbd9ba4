//! Runs as process 1 of the guest: mounts file systems, runs the worker and powers the guest off.

use std::ffi::CStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{WaitOptions, pivot_root, wait};
use rustix::system::RebootCommand;

use super::spec::Spec;

/// Runs as `init` of the guest. `dir` is the boot's directory, which holds the [`Spec`].
///
/// Powers the guest off in any case. Errors are written to the console, which the host reads.
pub fn main(dir: &Path) -> std::process::ExitCode {
    if let Err(error) = run(dir) {
        eprintln!("lab guest: {error:#}");
    }
    rustix::fs::sync();
    match rustix::system::reboot(RebootCommand::PowerOff) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab guest: cannot power off: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(dir: &Path) -> Result<()> {
    // The spec is read before the mounts, since they may hide the directory.
    let spec: Spec = serde_json::from_slice(&fs::read(dir.join("spec.json"))?)?;
    mounts().context("mounting the guest's file systems")?;
    for directory in &spec.writable {
        host_directory(directory).with_context(|| format!("mounting {}", directory.display()))?;
    }
    rustix::system::sethostname(b"lab")?;
    fs::write("/proc/sys/kernel/printk", "1")?;

    let worker =
        Command::new(dir.join("init")).args(["guest", "worker"]).arg(dir).spawn().context("starting the worker")?;
    let worker = rustix::process::Pid::from_child(&worker);
    // Process 1 inherits orphaned processes and must reap them.
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid == worker => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the worker"),
        }
    }
}

/// Makes the root file system, an overlay in memory over the host's files.
fn mounts() -> Result<()> {
    const ROOT: &str = "/tmp/root";
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // Hides the host's /tmp until the new root is mounted.
    fresh("tmpfs", "/tmp", c"mode=0755,size=75%")?;
    for dir in ["upper", "work", "root"] {
        fs::create_dir(Path::new("/tmp").join(dir))?;
    }
    fresh("overlay", ROOT, c"lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work")?;
    let at = |dir: &str| format!("{ROOT}{dir}");
    for dir in ["/proc", "/sys", "/dev", "/run"] {
        fs::create_dir_all(at(dir))?;
    }
    fresh("proc", &at("/proc"), c"")?;
    fresh("sysfs", &at("/sys"), c"")?;
    fresh("devtmpfs", &at("/dev"), c"")?;
    for dir in ["/dev/pts", "/dev/shm"] {
        fs::create_dir_all(at(dir))?;
    }
    fresh("devpts", &at("/dev/pts"), c"ptmxmode=0666")?;
    fresh("tmpfs", &at("/dev/shm"), c"mode=1777")?;
    // udev usually makes these links. Some programs open their standard input by such a name.
    for (name, to) in [("fd", "self/fd"), ("stdin", "self/fd/0"), ("stdout", "self/fd/1"), ("stderr", "self/fd/2")] {
        std::os::unix::fs::symlink(format!("/proc/{to}"), at(&format!("/dev/{name}")))?;
    }
    // Sockets and pid files of the host's programs have no meaning in the guest.
    fresh("tmpfs", &at("/run"), c"mode=0755")?;
    fs::create_dir("/tmp/root/run/lock")?;

    std::env::set_current_dir(ROOT)?;
    pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Mounts a directory of the host, writable, at its own path.
fn host_directory(directory: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    fs::create_dir_all(directory)?;
    rustix::mount::mount("none", directory, "hostfs", MountFlags::empty(), path.as_c_str())?;
    Ok(())
}

fn fresh(kind: &str, at: &str, options: &CStr) -> Result<()> {
    rustix::mount::mount(kind, at, kind, MountFlags::empty(), options)
        .with_context(|| format!("mounting {kind} on {at}"))
}
