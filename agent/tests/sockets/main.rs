//! Tests the agent's UDP ports: systemd opens them before any local user can, a holder keeps them
//! open, and the agent reports an error if a user has bound a port. The program runs in separate
//! namespaces, with a static peer that does not answer.
//!
//! - `pods`: the holder in another pod.

mod pods;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use interop_tests::netns::{KilledOnDrop, UnnamedNamespace, is_root_or_skips};
use interop_tests::wait;

/// The user `nobody`.
const STRANGER: libc::c_long = 65_534;
/// Timeout after which a test fails.
const HANG: Duration = Duration::from_secs(60);
/// `UDP_ENCAP` (`linux/udp.h`).
const UDP_ENCAP: libc::c_int = 100;

/// A network namespace for an agent.
struct Namespace {
    namespace: UnnamedNamespace,
    hold_sockets: bool,
    /// Whether the agent has a PID namespace of its own, as in a container.
    container: bool,
}

impl Namespace {
    fn new() -> Self {
        Self { namespace: UnnamedNamespace::new(), hold_sockets: false, container: false }
    }

    fn path(&self) -> String {
        self.namespace.path()
    }

    /// Returns whether the holder can be reached.
    fn is_held(&self) -> bool {
        let sockets = fs::read_to_string(format!("/proc/{}/net/unix", self.namespace.pid())).unwrap();
        // `__SO_ACCEPTCON` (`linux/net.h`) shows that the socket listens.
        sockets.lines().any(|line| line.ends_with("@edge-cni-sockets") && line.contains(" 00010000 "))
    }

    /// Returns the inode of the IPv4 socket that is bound to a port.
    fn inode(&self, port: u16) -> Option<String> {
        self.column(port, 9)
    }

    /// Returns a column of the IPv4 socket that is bound to a port (`udp4_seq_show`,
    /// `net/ipv4/udp.c`).
    fn column(&self, port: u16, column: usize) -> Option<String> {
        let table = fs::read_to_string(format!("/proc/{}/net/udp", self.namespace.pid())).unwrap();
        let local = format!(":{port:04X}");
        let line = table.lines().find(|line| line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&local)))?;
        line.split_whitespace().nth(column).map(str::to_owned)
    }

    /// Runs `work` in the namespace as this user.
    fn within<T: Send + 'static>(&self, user: libc::c_long, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = fs::File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            // SAFETY: the system calls change the network namespace and the user of this thread
            // only, and the thread ends immediately afterwards.
            unsafe {
                assert_eq!(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, user, user, user), 0);
            }
            work()
        })
        .join()
        .unwrap()
    }

    /// Creates the command that runs the agent and passes these sockets to it, as systemd does.
    fn agent(&self, directory: &Path, nat_port: u16, passed: &[OwnedFd]) -> Command {
        let file = directory.join("agent.toml");
        let text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\nnat_port = {nat_port}\nhold_sockets = {}\n[[peer]]\nname = \"moon\"\nremote = \"203.0.113.10\"\nlocal_id = \"a.example\"\n\
             remote_id = \"b.example\"\npsk = \"correct horse battery staple\"\nlocal_subnets = [\"10.1.0.0/24\"]\n\
             remote_subnets = [\"10.2.0.0/24\"]\n",
            directory.join("state"),
            directory.join("run"),
            self.hold_sockets,
        );
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = if self.container {
            let mut command = self.namespace.command("unshare");
            command.args(["--pid", "--fork", "--kill-child", "sh"]);
            command
        } else {
            self.namespace.command("sh")
        };
        // LISTEN_PID must be the process ID of the child. `exec` does not change it.
        let start = format!("LISTEN_PID=$$ exec {} run --config {}", env!("CARGO_BIN_EXE_edge-agent"), file.display());
        command.args(["-c", &start]).stderr(Stdio::piped());
        let fds: Vec<RawFd> = passed.iter().map(AsRawFd::as_raw_fd).collect();
        command.env("LISTEN_FDS", fds.len().to_string()).env("LISTEN_FDNAMES", vec!["ike"; fds.len()].join(":"));
        // SAFETY: dup and dup2 may be called between fork and exec. The descriptors are first
        // copied to numbers above those that are overwritten.
        unsafe {
            command.pre_exec(move || {
                let copies: Vec<RawFd> = fds.iter().map(|fd| libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 100)).collect();
                for (copy, to) in copies.iter().zip(3..) {
                    if libc::dup2(*copy, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command
    }

    fn start(&self, directory: &Path, nat_port: u16, passed: &[OwnedFd]) -> KilledOnDrop {
        let mut agent = KilledOnDrop(self.agent(directory, nat_port, passed).stderr(Stdio::inherit()).spawn().unwrap());
        wait::expect("the agent to start", HANG, || {
            assert_eq!(agent.0.try_wait().unwrap(), None, "it ends");
            (directory.join("run/admin.sock").exists() && answers(directory)).then_some(())
        });
        agent
    }

    /// Runs the agent until it ends with an error. Returns its standard error.
    fn fail(&self, directory: &Path, nat_port: u16, passed: &[OwnedFd]) -> String {
        let child = self.agent(directory, nat_port, passed).spawn().unwrap();
        let id = child.id();
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || done.send(child.wait_with_output().unwrap()));
        let output = ended.recv_timeout(HANG).unwrap_or_else(|_| {
            let _ = Command::new("kill").arg(id.to_string()).status();
            panic!("it runs");
        });
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn answers(directory: &Path) -> bool {
    let status = Command::new(env!("CARGO_BIN_EXE_edge-agent"))
        .arg("status")
        .arg("--config")
        .arg(directory.join("agent.toml"))
        .output();
    status.unwrap().status.success()
}

fn udp(addresses: &'static [&'static str]) -> impl FnOnce() -> Vec<OwnedFd> + Send + 'static {
    move || addresses.iter().map(|address| bind_only(address)).collect()
}

/// Opens a UDP socket as systemd does with `BindIPv6Only=ipv6-only`.
fn bind_only(address: &str) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let address: std::net::SocketAddr = address.parse().unwrap();
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // CLOEXEC, so that children of other tests do not inherit the socket.
    let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true).unwrap();
    }
    when_free(|| bind(&fd, &address).ok());
    fd
}

/// Binds a port that another socket had until now. This may fail for a moment, since a program that
/// another test starts has a copy of that socket between fork and exec.
fn when_free<T>(bind: impl FnMut() -> Option<T>) -> T {
    wait::expect("the port to be free", HANG, bind)
}

fn encapsulation(fd: &OwnedFd) -> libc::c_int {
    let (mut value, mut length) = (0, std::mem::size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the value outlives the call, and `length` is its size.
    let done = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_UDP, UDP_ENCAP, (&raw mut value).cast(), &raw mut length)
    };
    assert_eq!(done, 0);
    value
}

const ALL: &[&str] = &["0.0.0.0:500", "0.0.0.0:4500", "[::]:500", "[::]:4500"];

#[test]
fn sockets_that_systemd_opened_are_taken_over_and_outlive_the_agent() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (Namespace::new(), tempfile::tempdir().unwrap());
    let mut sockets = namespace.within(0, udp(ALL));
    for _ in 0..2 {
        let agent = namespace.start(directory.path(), 4500, &sockets);
        // The agent has set `UDP_ENCAP` on the shared sockets of the NAT traversal port, so that
        // the kernel decapsulates ESP there.
        assert_eq!(sockets.iter().map(encapsulation).collect::<Vec<_>>(), [0, 2, 0, 2]);
        drop(agent);
        fs::remove_dir_all(directory.path().join("run")).unwrap();
    }
    // The agent opens the sockets that are not passed, in this case the IPv6 sockets.
    sockets.truncate(2);
    drop(namespace.start(directory.path(), 4500, &sockets));
}

#[test]
fn a_socket_that_is_not_what_it_should_be_is_refused_in_words() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (Namespace::new(), tempfile::tempdir().unwrap());
    let status = namespace.namespace.command("ip").args(["link", "set", "lo", "up"]).status();
    assert!(status.unwrap().success());
    let tcp = namespace.within(0, || vec![OwnedFd::from(TcpListener::bind("0.0.0.0:4500").unwrap())]);
    assert!(namespace.fail(directory.path(), 4500, &tcp).contains("(ike): it is no UDP socket"));
    drop(tcp);
    let narrow = namespace.within(0, udp(&["127.0.0.1:4500"]));
    assert!(namespace.fail(directory.path(), 4500, &narrow).contains("it is bound to 127.0.0.1:4500"));
    drop(narrow);
    let both = namespace.within(0, || vec![OwnedFd::from(when_free(|| UdpSocket::bind("[::]:4500").ok()))]);
    assert!(namespace.fail(directory.path(), 4500, &both).contains("BindIPv6Only=ipv6-only"));
    drop(both);
    // A socket with a port that the configuration does not use is ignored.
    let other = namespace.within(0, udp(&["0.0.0.0:4500"]));
    drop(namespace.start(directory.path(), 14500, &other));
}

#[test]
fn a_local_user_who_holds_a_port_is_named() {
    if !is_root_or_skips() {
        return;
    }
    for address in ["0.0.0.0:4500", "[::]:4500"] {
        let (namespace, directory) = (Namespace::new(), tempfile::tempdir().unwrap());
        let taken = namespace.within(STRANGER, move || bind_only(address));
        let said = namespace.fail(directory.path(), 4500, &[]);
        assert!(said.contains("UDP port 4500") && said.contains("a process of user 65534 holds it"), "{said}");
        drop(taken);
    }
}

#[test]
fn state_and_sockets_are_private_without_a_controller_too_and_no_core_is_written() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (Namespace::new(), tempfile::tempdir().unwrap());
    let mode = |path: &str| fs::metadata(directory.path().join(path)).unwrap().permissions().mode() & 0o777;
    // The state directory is as an earlier release leaves it.
    fs::create_dir(directory.path().join("state")).unwrap();
    fs::write(directory.path().join("state/reqids.json"), "{}").unwrap();
    fs::set_permissions(directory.path().join("state"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(directory.path().join("state/reqids.json"), fs::Permissions::from_mode(0o644)).unwrap();
    let agent = namespace.start(directory.path(), 4500, &[]);
    assert_eq!(["state", "state/reqids.json", "run", "run/admin.sock"].map(mode), [0o700, 0o600, 0o700, 0o600]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.0.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}

#[test]
fn without_systemd_the_sockets_outlive_an_agent_that_is_killed() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (Namespace { hold_sockets: true, ..Namespace::new() }, tempfile::tempdir().unwrap());
    let killed = |nat_port, other_port| {
        let agent = namespace.start(directory.path(), nat_port, &[]);
        let inode = namespace.inode(nat_port);
        // The holder of other ports ends first.
        wait::expect("the holder", HANG, || {
            (namespace.is_held() && namespace.inode(other_port).is_none()).then_some(())
        });
        drop(agent);
        fs::remove_dir_all(directory.path().join("run")).unwrap();
        assert_eq!(namespace.inode(nat_port), inode, "the socket stays open");
        inode.unwrap()
    };
    let first = killed(4500, 14500);
    assert_eq!(killed(4500, 14500), first, "the next agent has the same socket");
    // When the configuration has other ports, a holder of these ports replaces the earlier one.
    killed(14500, 4500);
    assert_eq!(namespace.inode(4500), None);

    let mut down = namespace.namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
    let said = down.args(["down", "--config"]).arg(directory.path().join("agent.toml")).output().unwrap();
    assert_eq!(namespace.inode(14500), None, "{}", String::from_utf8_lossy(&said.stderr));
    assert!(String::from_utf8_lossy(&said.stdout).contains("held sockets: 4 removed"), "{said:?}");
}

#[test]
fn a_local_user_gets_no_held_socket() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (Namespace { hold_sockets: true, ..Namespace::new() }, tempfile::tempdir().unwrap());
    let agent = namespace.start(directory.path(), 4500, &[]);
    wait::expect("the holder", HANG, || namespace.is_held().then_some(()));
    let ask = || {
        use std::io::{Read, Write};
        use std::os::linux::net::SocketAddrExt;
        let name = std::os::unix::net::SocketAddr::from_abstract_name("edge-cni-sockets").unwrap();
        let mut stream = std::os::unix::net::UnixStream::connect_addr(&name).unwrap();
        // The holder may close the connection before the write.
        let _ = stream.write_all(b"take 1\n");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer).unwrap_or_default()
    };
    assert_eq!(namespace.within(STRANGER, ask), b"");
    drop(agent);
    assert!(namespace.inode(4500).is_some());
    // A user who has bound the name receives nothing from the next agent, and does not prevent its
    // start.
    let holder = namespace.within(0, || edge_agent::socket_holder::client::find().unwrap().unwrap());
    holder.end().unwrap();
    let posing = namespace.within(STRANGER, || {
        use std::os::linux::net::SocketAddrExt;
        let name = std::os::unix::net::SocketAddr::from_abstract_name("edge-cni-sockets").unwrap();
        std::os::unix::net::UnixListener::bind_addr(&name).unwrap()
    });
    fs::remove_dir_all(directory.path().join("run")).unwrap();
    drop(namespace.start(directory.path(), 4500, &[]));
    posing.set_nonblocking(true).unwrap();
    let (mut stream, _) = posing.accept().expect("the agent connects once");
    assert_eq!(std::io::Read::read(&mut stream, &mut [0; 64]).unwrap(), 0, "the agent sends nothing");
}

#[test]
fn a_local_user_whose_queue_is_full_delays_neither_the_start_nor_down() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (Namespace { hold_sockets: true, ..Namespace::new() }, tempfile::tempdir().unwrap());
    let _full = namespace.within(STRANGER, || {
        use std::os::linux::net::SocketAddrExt;
        let name = std::os::unix::net::SocketAddr::from_abstract_name("edge-cni-sockets").unwrap();
        let listener = std::os::unix::net::UnixListener::bind_addr(&name).unwrap();
        // SAFETY: listen(2) changes the queue of a socket that this thread owns.
        assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) }, 0);
        (std::os::unix::net::UnixStream::connect_addr(&name).unwrap(), listener)
    });
    drop(namespace.start(directory.path(), 4500, &[]));
    let mut down = namespace.namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
    let said = down.args(["down", "--config"]).arg(directory.path().join("agent.toml")).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr);
    assert!(said.contains("@edge-cni-sockets accepts no connection; `ss -xlp` shows it"), "{said}");
}
