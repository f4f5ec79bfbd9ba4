//! Runs a program until it is stopped, but never longer than this process.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender, SyncSender};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// Time limit for a program to start or to end, on a loaded machine.
pub(super) const TIMEOUT: Duration = Duration::from_secs(240);

/// A running program. It is killed when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    name: &'static str,
    log: PathBuf,
    begins: u64,
    child: Child,
}

impl Daemon {
    /// Starts the program. Its output is appended to `log`, so that the log of a restarted program
    /// has all its runs.
    pub(super) fn start(name: &'static str, log: &Path, words: &[impl AsRef<OsStr>], directory: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let begins = file.metadata()?.len();
        // setpriv ends the program with this process, however this process ends. The program gets
        // its own process group, so that Ctrl-C at the test does not reach it.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(words)
            .current_dir(directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = spawn(command).with_context(|| format!("starting {name}"))?;
        Ok(Self { name, log: log.to_owned(), begins, child })
    }

    /// Returns the output of this run of the program so far.
    pub(super) fn output(&self) -> String {
        let mut output = Vec::new();
        let read = File::open(&self.log).and_then(|mut log| {
            log.seek(SeekFrom::Start(self.begins))?;
            log.read_to_end(&mut output)
        });
        read.ok();
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Calls `probe` until it succeeds. Fails at once if the program ends.
    pub(super) fn until<T>(&mut self, what: &str, mut probe: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        let log = self.log.clone();
        let waited = wait::until(what, TIMEOUT, || {
            // The state is read before the probe, so that the probe also sees the program's last
            // actions.
            let ended = self.child.try_wait()?;
            match (probe(self), ended) {
                (Ok(value), _) => Ok(Ok(value)),
                (Err(_), Some(status)) => Ok(Err(self.ended_early(status))),
                (Err(error), None) => Err(error),
            }
        });
        waited.with_context(|| format!("the output of {} is in {}", self.name, log.display()))?
    }

    /// Waits until the program's output contains `text`.
    pub(super) fn until_output(&mut self, text: &str) -> Result<()> {
        let what = format!("{text:?} from {}", self.name);
        self.until(&what, |daemon| {
            daemon.output().contains(text).then_some(()).ok_or_else(|| anyhow!("it is not there yet"))
        })
    }

    /// Sends SIGTERM to the program and waits until it ends.
    pub(super) fn stop(mut self) -> Result<()> {
        // The process has not been waited for, so no other process has the same id.
        if self.child.try_wait()?.is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, Signal::TERM).with_context(|| format!("ending {}", self.name))?;
        }
        let (name, log) = (self.name, self.log.clone());
        wait::until(&format!("the end of {name}"), TIMEOUT, || self.child.try_wait()?.context("still running"))
            .with_context(|| format!("its log is {}", log.display()))?;
        Ok(())
    }

    /// Stops the program's process, or lets it continue.
    pub(super) fn hang(&mut self, hang: bool) -> Result<()> {
        // The process has not been waited for, so no other process has the same id.
        anyhow::ensure!(self.child.try_wait()?.is_none(), "{} has ended", self.name);
        let signal = if hang { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal).with_context(|| format!("a signal to {}", self.name))
    }

    fn ended_early(&self, status: ExitStatus) -> anyhow::Error {
        let output = self.output();
        let lines: Vec<_> = output.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        anyhow!("{} ended ({status}); its log is {}, which ends:\n{tail}", self.name, self.log.display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

type Order = (Command, SyncSender<std::io::Result<Child>>);

/// Starts a program from a thread that lives as long as this process. The kernel sends the death
/// signal when the starting thread ends, and a test's thread ends with the test.
fn spawn(command: Command) -> Result<Child> {
    static KEEPER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                answer.send(command.spawn()).ok();
            }
        });
        Mutex::new(orders)
    });
    let (answer, answered) = mpsc::sync_channel(1);
    let sent = KEEPER.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
    if sent.is_err() {
        bail!("the thread that starts programs is gone");
    }
    Ok(answered.recv()??)
}

/// A directory that is removed when this value is dropped or when this process ends for any reason.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    janitor: Child,
}

impl Directory {
    pub(super) fn new_in(parent: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("edge-kube-").tempdir_in(parent)?;
        // The script reads the end of its input when the pipe is dropped or this process dies. The
        // programs may still make files while they end.
        let script = "trap '' INT TERM HUP; cat >/dev/null; until rm -rf -- \"$1\"; do sleep 0.1; done 2>/dev/null";
        let janitor = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(directory.path())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting sh")?;
        Ok(Self { path: directory.keep(), janitor })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        self.janitor.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_early_is_reported_with_its_last_output() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut daemon =
            Daemon::start("speaker", &log, &["sh", "-c", "echo no room; exit 3"], directory.path()).unwrap();
        let error = format!("{:#}", daemon.until_output("ready").unwrap_err());
        assert!(error.contains("exit status: 3") && error.contains("no room"), "{error}");
    }

    #[test]
    fn a_program_outlives_the_thread_that_started_it_and_not_its_handle() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let path = directory.path().to_owned();
        let daemon = std::thread::spawn(move || Daemon::start("sleeper", &log, &["sleep", "1000"], &path).unwrap());
        let mut daemon = daemon.join().unwrap();
        let pid = daemon.child.id();
        assert!(daemon.child.try_wait().unwrap().is_none());
        drop(daemon);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn the_directory_goes_with_its_handle() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::new_in(parent.path()).unwrap();
        std::fs::write(directory.path().join("file"), "x").unwrap();
        let path = directory.path().to_owned();
        drop(directory);
        assert!(!path.exists());
    }
}
