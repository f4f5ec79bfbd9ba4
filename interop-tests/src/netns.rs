//! Provides network namespaces, and runs programs in them, for tests in a single crate, without the
//! lab. Like test assertions, these functions panic if something fails.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Returns the reason why this machine cannot run tests in network namespaces; `None` if it can.
/// The check makes a namespace.
#[must_use]
pub fn unavailable() -> Option<String> {
    probe(|_| None)
}

/// Checks as [`unavailable`] does, for tests that also need `nft`.
#[must_use]
pub fn unavailable_with_nft() -> Option<String> {
    probe(|name| {
        let listed = Command::new("ip").args(["netns", "exec", name, "nft", "list", "ruleset"]).output();
        let works = listed.is_ok_and(|output| output.status.success());
        (!works).then(|| "`nft` (nftables) cannot be run".into())
    })
}

fn probe(inside: impl FnOnce(&str) -> Option<String>) -> Option<String> {
    // Several tests of one program may probe at the same time.
    static PROBES: AtomicU32 = AtomicU32::new(0);
    let name = format!("probe-{}-{}", std::process::id(), PROBES.fetch_add(1, Ordering::Relaxed));
    match Command::new("ip").args(["netns", "add", &name]).output() {
        Err(error) => Some(format!("`ip` (iproute2) cannot be run: {error}")),
        Ok(output) if !output.status.success() => {
            let why = String::from_utf8_lossy(&output.stderr);
            Some(format!("network namespaces cannot be made; it needs root: {}", why.trim()))
        }
        Ok(_) => {
            let found = inside(&name);
            delete(&name);
            found
        }
    }
}

/// Returns whether this process is root. If it is not, prints on standard error that a test is
/// skipped.
#[must_use]
pub fn is_root_or_skips() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: network namespaces need root");
    }
    root
}

/// Makes a named network namespace (`ip netns add`).
///
/// # Panics
/// Panics if the namespace cannot be made.
pub fn add(name: &str) {
    succeed(Command::new("ip").args(["netns", "add", name]));
}

/// Deletes a named network namespace, if it exists.
pub fn delete(name: &str) {
    // A namespace that is already gone needs no deletion, and after a failed test a further error
    // does not help.
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Runs `work` on a separate thread in a named network namespace.
///
/// # Panics
/// Panics if the namespace cannot be entered, or `work` panics.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(&Path::new("/run/netns").join(name));
            work()
        });
        inside.join().expect("the work in the namespace panicked")
    })
}

/// Moves this thread into the network namespace that a path names.
///
/// # Panics
/// Panics if the namespace cannot be entered.
pub fn enter(path: &Path) {
    let moved = File::open(path)
        .and_then(|file| Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?));
    moved.unwrap_or_else(|error| panic!("the network namespace {} cannot be entered: {error}", path.display()));
}

/// Runs a program to its end, which must be a success. Returns its standard output.
///
/// # Panics
/// Panics if the program cannot be run or fails; the message contains its standard error.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap_or_else(|error| panic!("{command:?} wrote no UTF-8: {error}"))
}

/// Runs a program and its arguments, separated by blanks, as [`succeed`] does.
///
/// # Panics
/// Panics if the program cannot be run or fails.
pub fn run(line: &str) {
    let mut words = line.split_whitespace();
    succeed(Command::new(words.next().unwrap_or_else(|| panic!("a command line without a program"))).args(words));
}

/// Environment variable that is set for the ignored tests that run in separate namespaces.
const IN_NAMESPACES: &str = "EDGE_TEST_IN_NAMESPACES";

/// Makes a command that runs one ignored test of this program in namespaces. `prefix` enters or
/// makes them, as `unshare --net` does. The test must return at once unless [`is_in_namespaces`]
/// returns true.
///
/// # Panics
/// Panics if `prefix` is empty or this program has no path.
#[must_use]
pub fn ignored_test(prefix: &[&str], name: &str) -> Command {
    let (program, arguments) = prefix.split_first().unwrap_or_else(|| panic!("{name} has no prefix"));
    let this = std::env::current_exe().unwrap_or_else(|error| panic!("this program has no path: {error}"));
    let mut command = Command::new(program);
    command.args(arguments).arg(this).args(["--exact", name, "--ignored", "--nocapture"]).env(IN_NAMESPACES, "1");
    command
}

/// Runs one ignored test of this program in its own network and mount namespaces.
///
/// # Panics
/// Panics if the test does not pass.
pub fn passes_in_namespaces(name: &str) {
    let output = succeed(&mut ignored_test(&["unshare", "--net", "--mount"], name));
    assert!(output.contains("1 passed"), "{output}");
}

/// Returns whether [`ignored_test`] has started this test. If it has not, a person runs all ignored
/// tests.
#[must_use]
pub fn is_in_namespaces() -> bool {
    std::env::var_os(IN_NAMESPACES).is_some()
}

/// For tests in [`passes_in_namespaces`]: makes a second host, the network namespace `far`, on a
/// wire. The wire's ends are `uplink` in this namespace and `far` in the other one. Both are up and
/// without addresses.
///
/// # Panics
/// Panics if the host cannot be made.
pub fn add_far_host() {
    for line in [
        "mount --make-rprivate /",
        "mount -t tmpfs none /run",
        "mkdir /run/netns",
        "ip netns add far",
        "ip link set lo up",
        "ip link add uplink type veth peer name far netns far",
        "ip link set uplink up",
        "ip -n far link set lo up",
        "ip -n far link set far up",
    ] {
        run(line);
    }
}

/// A program that is killed when the test ends, whether it passes or fails.
#[derive(Debug)]
pub struct KilledOnDrop(pub Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // The program may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network namespace without a name, kept alive by a process that sleeps in it.
#[derive(Debug)]
pub struct UnnamedNamespace(KilledOnDrop);

impl UnnamedNamespace {
    /// Makes the namespace.
    ///
    /// # Panics
    /// Panics if the namespace cannot be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it starts a process")]
    pub fn new() -> Self {
        // `unshare` becomes `cat`, which ends when its standard input is closed, at the latest when
        // this process ends. `cat` answers once it is in the namespace.
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
        let mut echo = [0];
        let answered = child.stdin.as_mut().zip(child.stdout.as_mut()).map(|(stdin, stdout)| {
            std::io::Write::write_all(stdin, b".").and_then(|()| std::io::Read::read_exact(stdout, &mut echo))
        });
        let holder = KilledOnDrop(child);
        assert!(matches!(answered, Some(Ok(()))), "{command:?} makes no network namespace: {answered:?}");
        Self(holder)
    }

    /// Returns the id of the process that keeps the namespace alive.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.0.id()
    }

    /// Returns the path by which other processes enter the namespace.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// Makes a command that runs `program` in the namespace.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }
}
