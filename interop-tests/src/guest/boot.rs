//! Runs the host's side of a guest: starts the kernel, copies its serial lines, and stops it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::backend::Backend;
use super::spec::{Event, Spec};

/// Memory of the guest, in MiB. The memory is a sparse file on the host, so only used memory takes
/// space.
const MEMORY_MIB: u64 = 2560;

/// Number of console lines that an error shows. The registers of a panic are at the level "debug",
/// so the kernel writes everything.
const CONSOLE_LINES: usize = 80;

/// Destination of the job's standard output and error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// This process's own output and error.
    Inherit,
    /// The job uses this process's terminal.
    Terminal,
}

/// A running guest. Dropping it kills it.
pub struct Guest {
    process: Child,
    dir: tempfile::TempDir,
    events: Receiver<Event>,
    carriers: Vec<JoinHandle<()>>,
}

impl Guest {
    /// Starts a guest for one [`Spec`].
    ///
    /// The guest ends with the calling thread at the latest, even if the thread is killed.
    ///
    /// # Errors
    /// Returns an error if the guest cannot be started.
    pub fn start(backend: &Backend, spec: &Spec, output: Output) -> Result<Self> {
        // The paths of this directory and of the program in it are on the kernel's command line, so
        // these paths must not contain blanks.
        let dir = tempfile::Builder::new().prefix("edge-lab-").tempdir_in("/tmp")?;
        fs::write(dir.path().join("spec.json"), serde_json::to_vec(spec)?)?;
        std::os::unix::fs::symlink(std::env::current_exe()?, dir.path().join("init"))?;
        let (events_in, events_out) = line()?;
        let (process, mut carriers) = match backend {
            Backend::Uml(kernel) => uml(kernel, dir.path(), spec.disk.as_deref(), events_out, output)?,
            Backend::Host => (host(dir.path(), events_out)?, Vec::new()),
        };
        let (tell, events) = channel();
        carriers.push(std::thread::spawn(move || {
            for line in BufReader::new(File::from(events_in)).lines() {
                let Ok(line) = line else { break };
                match serde_json::from_str(&line) {
                    Ok(event) => {
                        if tell.send(event).is_err() {
                            break;
                        }
                    }
                    Err(error) => eprintln!("lab: not an event ({error}): {line}"),
                }
            }
        }));
        Ok(Self { process, dir, events, carriers })
    }

    /// Waits for the next event; `None` if none came in time.
    ///
    /// # Errors
    /// Returns an error if the guest ended without an event. The message contains its console.
    pub fn event(&mut self, timeout: Option<Duration>) -> Result<Option<Event>> {
        use std::sync::mpsc::RecvTimeoutError;
        let got = match timeout {
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(timeout) => self.events.recv_timeout(timeout),
        };
        match got {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the lab guest ended before its job did; its console:\n{}", self.console())
            }
        }
    }

    /// Returns the last [`CONSOLE_LINES`] that the guest's kernel and init wrote, without the
    /// messages about consoles that are not open.
    #[must_use]
    pub fn console(&self) -> String {
        let written = fs::read_to_string(self.dir.path().join("console.log")).unwrap_or_default();
        let lines: Vec<_> = written.lines().filter(|line| !is_noise(line)).collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }

    /// Waits until the guest is off and all its output has been copied.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be waited for.
    pub fn finish(mut self) -> Result<()> {
        self.process.wait()?;
        for carrier in self.carriers.drain(..) {
            carrier.join().ok();
        }
        Ok(())
    }

    /// Ends the guest at once.
    pub fn kill(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            self.kill();
        }
    }
}

/// Boots `kernel`, with its serial lines on pipes or on the terminal.
fn uml(
    kernel: &Path,
    dir: &Path,
    disk: Option<&Path>,
    events: OwnedFd,
    output: Output,
) -> Result<(Child, Vec<JoinHandle<()>>)> {
    let mut lines = vec![format!("ssl0=null,fd:{}", events.as_raw_fd())];
    // File descriptors that the kernel inherits. This process's copies are closed once the kernel
    // has them.
    let mut ends = vec![events];
    let mut carriers = Vec::new();
    match output {
        Output::Inherit => {
            let (out_in, out) = line()?;
            let (err_in, err) = line()?;
            lines.push(format!("ssl1=null,fd:{}", out.as_raw_fd()));
            lines.push(format!("ssl2=null,fd:{}", err.as_raw_fd()));
            ends.extend([out, err]);
            carriers.push(carry(out_in, std::io::stdout()));
            carriers.push(carry(err_in, std::io::stderr()));
        }
        Output::Terminal => {
            let terminal = OwnedFd::from(File::options().read(true).write(true).open("/dev/tty")?);
            rustix::io::fcntl_setfd(&terminal, FdFlags::empty())?;
            lines.push(format!("ssl1=fd:{0},fd:{0}", terminal.as_raw_fd()));
            ends.push(terminal);
        }
    }
    let console = File::create(dir.join("console.log"))?;
    // setpriv kills the guest when this process ends for any reason.
    let process = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(kernel)
        .arg(format!("mem={MEMORY_MIB}M"))
        .args(["seccomp=on", "ncpus=2"])
        .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"])
        .arg(format!("init={}/init", dir.display()))
        .args(["con=null", "con0=null,fd:1", "ssl=null", "ignore_loglevel"])
        .args(disk.map(|disk| format!("ubd0={}", disk.display())))
        .args(&lines)
        .arg(format!("uml_dir={}", dir.display()))
        .args(["--", "guest", "init"])
        .arg(dir)
        .env("TMPDIR", memory_directory())
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .spawn()
        .context("starting the lab kernel through setpriv")?;
    Ok((process, carriers))
}

/// Starts the worker in private namespaces of the host. It inherits this process's input and
/// output.
fn host(dir: &Path, events: OwnedFd) -> Result<Child> {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .args(["unshare", "--net", "--mount", "--uts", "--ipc"])
        .args(["--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--"])
        .arg(dir.join("init"))
        .args(["guest", "worker"])
        .arg(dir)
        .arg("--events")
        .arg(format!("/proc/self/fd/{}", events.as_raw_fd()))
        .spawn()
        .context("starting the lab through setpriv and unshare")
}

/// Makes a pipe whose write end the kernel inherits.
fn line() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&write, FdFlags::empty())?;
    Ok((read, write))
}

fn carry(from: OwnedFd, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = File::from(from);
        let mut buffer = vec![0; 65536];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..n]).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
    })
}

/// Returns the directory for the guest's memory file: in shared memory if there is enough
/// (containers often get 64 MiB), otherwise on the disk.
fn memory_directory() -> PathBuf {
    let shm = Path::new("/dev/shm");
    let enough = rustix::fs::statvfs(shm).is_ok_and(|fs| fs.f_frsize.saturating_mul(fs.f_bavail) >= MEMORY_MIB << 20);
    let writable = rustix::fs::access(shm, rustix::fs::Access::WRITE_OK).is_ok();
    if enough && writable { shm.to_owned() } else { "/tmp".into() }
}

fn is_noise(line: &str) -> bool {
    line.trim().is_empty()
        || line.contains("Failed to initialize ubd device")
        || line.contains("not configured on the command line")
        || line.starts_with("Checking ")
        || line.contains("Couldn't determine size of device's file")
}
