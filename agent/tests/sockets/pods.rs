//! Tests agents in containers, with a holder of their sockets in another pod.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use interop_tests::netns::{KilledOnDrop, is_root_or_skips};
use interop_tests::wait;
use serde_json::Value;

use crate::{HANG, Namespace, STRANGER, answers, bind_only};

/// A namespace in which agents run in containers, and the directory of their files.
struct Node {
    namespace: Namespace,
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let namespace = Namespace { hold_sockets: true, container: true, ..Namespace::new() };
        let up = namespace.namespace.command("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        Self { namespace, directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The file on which the holder listens.
    fn listener(&self) -> PathBuf {
        self.path().join("run/socket-holder/holder.sock")
    }

    /// Starts a holder as in a pod: with no capability, as the chart gives it.
    fn start_holder(&self) -> KilledOnDrop {
        let mut command = self.namespace.namespace.command("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]);
        command.arg(env!("CARGO_BIN_EXE_edge-agent")).args(["hold-sockets", "--listen"]).arg(self.listener());
        let holder = KilledOnDrop(command.stdin(Stdio::null()).spawn().unwrap());
        wait::expect("the holder", HANG, || UnixStream::connect(self.listener()).ok());
        holder
    }

    /// Starts a holder with a port, of a version that this program does not know. It ends with the
    /// test's process.
    fn start_holder_of_another_version(&self) {
        let listener = self.listen();
        let mut held = Some(self.namespace.within(0, || bind_only("0.0.0.0:4500")));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, mut message) = (stream.unwrap(), [0; 64]);
                let length = stream.read(&mut message).unwrap_or(0);
                match &message[..length] {
                    b"end 1\n" => drop(held.take()),
                    _ => drop(stream.write_all(b"version 2\n")),
                }
            }
        });
    }

    /// Listens in place of a holder.
    fn listen(&self) -> UnixListener {
        fs::create_dir_all(self.listener().parent().unwrap()).unwrap();
        UnixListener::bind(self.listener()).unwrap()
    }

    /// Starts an agent in a container.
    fn start_agent(&self, nat_port: u16) -> Container {
        let socket = self.path().join("run/admin.sock");
        let _ = fs::remove_file(socket);
        Container(self.namespace.start(self.path(), nat_port, &[]))
    }

    fn status(&self, json: bool) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-agent"));
        command.args(["status", "--config"]).arg(self.path().join("agent.toml"));
        command.args(json.then_some("--json"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// Waits until the status says what holds the sockets, or why nothing does.
    fn wait_for(&self, key: &str, text: &str) {
        wait::expect(&format!("sockets.{key} to be {text}"), HANG, || {
            let status: Value = serde_json::from_str(&self.status(true)).ok()?;
            status["sockets"][key].as_str()?.contains(text).then_some(())
        });
    }
}

/// An agent in a PID namespace of its own.
struct Container(KilledOnDrop);

impl Container {
    /// Kills the first process of the container, and waits until the kernel has killed all others.
    fn kill(mut self) {
        let id = self.0.0.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let status = Command::new("kill").arg("-9").args(children.split_whitespace()).status();
        assert!(status.unwrap().success(), "{children:?}");
        self.0.0.wait().unwrap();
    }
}

#[test]
fn in_a_container_the_sockets_outlive_an_agent_that_is_killed_with_all_its_processes() {
    if !is_root_or_skips() {
        return;
    }
    let node = Node::new();
    let _holder = node.start_holder();
    let agent = node.start_agent(4500);
    node.wait_for("held_by", "pod");
    assert!(node.status(false).contains("UDP sockets stay open while the agent restarts: edge-agent hold-sockets"));
    let inode = node.namespace.inode(4500).unwrap();
    agent.kill();
    assert_eq!(node.namespace.inode(4500).as_ref(), Some(&inode), "the socket stays open");
    // What arrives meanwhile waits for the next agent.
    node.namespace.within(0, || {
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[0; 40], "127.0.0.1:4500").unwrap();
    });
    let queued = || node.namespace.column(4500, 4).unwrap();
    assert!(!queued().ends_with(":00000000"), "{}", queued());

    let agent = node.start_agent(4500);
    assert_eq!(node.namespace.inode(4500), Some(inode), "the next agent has the same socket");
    wait::expect("the next agent to read what waits", HANG, || queued().ends_with(":00000000").then_some(()));
    node.wait_for("held_by", "pod");
    // An agent with other ports has the holder close those of before.
    agent.kill();
    let agent = node.start_agent(14500);
    node.wait_for("held_by", "pod");
    assert_eq!(node.namespace.inode(4500), None);
    let inode = node.namespace.inode(14500);
    agent.kill();
    assert!(inode.is_some() && node.namespace.inode(14500) == inode);
}

#[test]
fn a_holder_that_is_replaced_while_the_agent_runs_gets_the_sockets_again() {
    if !is_root_or_skips() {
        return;
    }
    let node = Node::new();
    // The agent does not wait for a holder, and finds one that comes later.
    let agent = node.start_agent(4500);
    node.wait_for("problem", "no `edge-agent hold-sockets` listens on");
    assert!(node.status(false).contains("UDP sockets end with the agent"));
    let inode = node.namespace.inode(4500).unwrap();
    for _ in 0..2 {
        let holder = node.start_holder();
        node.wait_for("held_by", "pod");
        drop(holder);
        node.wait_for("problem", "");
        assert_eq!(node.namespace.inode(4500).as_ref(), Some(&inode));
    }
    let _holder = node.start_holder();
    node.wait_for("held_by", "pod");
    agent.kill();
    assert_eq!(node.namespace.inode(4500), Some(inode));
    // `down` has the holder close the sockets, and `uninstall` does not run beside a holder.
    let run = |command: &str| {
        let mut edge_agent = node.namespace.namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
        edge_agent.args([command, "--config"]).arg(node.path().join("agent.toml")).output().unwrap()
    };
    let said = run("down");
    assert!(String::from_utf8_lossy(&said.stdout).contains("held sockets: 4 removed"), "{said:?}");
    assert_eq!(node.namespace.inode(4500), None);
    let said = String::from_utf8(run("uninstall").stderr).unwrap();
    assert!(said.contains("`edge-agent hold-sockets` is running"), "{said}");
}

#[test]
fn on_a_host_a_holder_that_is_started_later_gets_the_sockets_of_the_one_that_the_agent_started() {
    if !is_root_or_skips() {
        return;
    }
    let mut node = Node::new();
    node.namespace.container = false;
    let agent = node.start_agent(4500);
    node.wait_for("held_by", "process");
    let inode = node.namespace.inode(4500).unwrap();
    drop(agent);
    let _holder = node.start_holder();
    let agent = node.start_agent(4500);
    node.wait_for("held_by", "pod");
    assert!(!node.namespace.is_held(), "the other one has ended");
    drop(agent);
    assert_eq!(node.namespace.inode(4500), Some(inode));
}

#[test]
fn without_hold_sockets_the_holder_closes_what_it_has() {
    if !is_root_or_skips() {
        return;
    }
    let mut node = Node::new();
    let _holder = node.start_holder();
    let agent = node.start_agent(4500);
    node.wait_for("held_by", "pod");
    agent.kill();
    node.namespace.hold_sockets = false;
    let agent = node.start_agent(4500);
    node.wait_for("problem", "hold_sockets is false");
    agent.kill();
    assert_eq!(node.namespace.inode(4500), None);
}

#[test]
fn a_holder_of_another_version_gives_the_ports_back_and_the_status_says_what_to_do() {
    if !is_root_or_skips() {
        return;
    }
    let node = Node::new();
    node.start_holder_of_another_version();
    let agent = node.start_agent(4500);
    node.wait_for("problem", "answers \"version 2\": it is of another release; replace it");
    agent.kill();
}

#[test]
fn a_holder_that_says_nothing_does_not_keep_the_agent_from_starting() {
    if !is_root_or_skips() {
        return;
    }
    let node = Node::new();
    let _silent = node.listen();
    let agent = node.start_agent(4500);
    node.wait_for("problem", "does not answer");
    agent.kill();
    // If it also has a port, the error names it.
    let _port = node.namespace.within(0, || bind_only("0.0.0.0:4500"));
    let said = node.namespace.fail(node.path(), 4500, &[]);
    assert!(said.contains("perhaps `edge-agent hold-sockets` has it and does not answer"), "{said}");
}

#[test]
fn sockets_of_a_holder_that_answers_late_are_taken_when_it_does() {
    if !is_root_or_skips() {
        return;
    }
    let node = Node::new();
    let holder = node.start_holder();
    let agent = node.start_agent(4500);
    node.wait_for("held_by", "pod");
    let inode = node.namespace.inode(4500).unwrap();
    agent.kill();
    let signal = |name: &str| {
        let status = Command::new("kill").args([name, &holder.0.id().to_string()]).status();
        assert!(status.unwrap().success());
    };
    signal("-STOP");
    fs::remove_file(node.path().join("run/admin.sock")).unwrap();
    let mut agent = KilledOnDrop(node.namespace.agent(node.path(), 4500, &[]).spawn().unwrap());
    let mut log = BufReader::new(agent.0.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("its sockets are not taken")), "the agent ends");
    signal("-CONT");
    let log = std::thread::spawn(move || log.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    wait::expect("the agent to start", HANG, || {
        assert!(agent.0.try_wait().unwrap().is_none(), "it ends");
        answers(node.path()).then_some(())
    });
    node.wait_for("held_by", "pod");
    Container(agent).kill();
    assert_eq!(node.namespace.inode(4500), Some(inode), "{}", log.join().unwrap());
}

#[test]
fn on_a_host_a_holder_that_cannot_be_used_does_not_keep_the_agent_from_its_own() {
    if !is_root_or_skips() {
        return;
    }
    for silent in [true, false] {
        let mut node = Node::new();
        node.namespace.container = false;
        let _listener = if silent { Some(node.listen()) } else { None };
        if !silent {
            node.start_holder_of_another_version();
        }
        let agent = node.start_agent(4500);
        node.wait_for("held_by", "process");
        let inode = node.namespace.inode(4500).unwrap();
        drop(agent);
        let agent = node.start_agent(4500);
        assert_eq!(node.namespace.inode(4500).as_ref(), Some(&inode), "the next agent has the same socket");
        node.wait_for("held_by", "process");
        drop(agent);
        assert_eq!(node.namespace.inode(4500), Some(inode));
    }
}

#[test]
fn down_has_a_holder_of_another_version_close_its_sockets_also_if_the_name_is_taken() {
    if !is_root_or_skips() {
        return;
    }
    let node = Node::new();
    // This writes the configuration.
    let _ = node.namespace.agent(node.path(), 4500, &[]);
    node.start_holder_of_another_version();
    let _posing = node.namespace.within(STRANGER, || {
        use std::os::linux::net::SocketAddrExt;
        let name = std::os::unix::net::SocketAddr::from_abstract_name("edge-cni-sockets").unwrap();
        UnixListener::bind_addr(&name).unwrap()
    });
    let mut down = node.namespace.namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
    let said = down.args(["down", "--config"]).arg(node.path().join("agent.toml")).output().unwrap();
    assert_eq!(node.namespace.inode(4500), None, "{said:?}");
    let said = [said.stdout, said.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(said[0].contains("held sockets: those of a holder of another release are closed"), "{said:?}");
    assert!(said[1].contains("@edge-cni-sockets belongs to another user"), "{said:?}");
}

#[test]
fn a_local_user_reaches_no_holder_in_a_pod_and_cannot_pose_as_one() {
    if !is_root_or_skips() {
        return;
    }
    let node = Node::new();
    let holder = node.start_holder();
    // The directories above are open to all, which those of a node are not.
    fs::set_permissions(node.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(node.path().join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = node.listener();
    let refused = node.namespace.within(STRANGER, move || UnixStream::connect(path).unwrap_err().kind());
    assert_eq!(refused, std::io::ErrorKind::PermissionDenied);
    drop(holder);
    let open = tempfile::tempdir().unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = open.path().join("posing");
    let posing = node.namespace.within(STRANGER, {
        let path = path.clone();
        move || UnixListener::bind(path).unwrap()
    });
    fs::rename(path, node.listener()).unwrap();
    let agent = node.start_agent(4500);
    node.wait_for("problem", "belongs to another user");
    posing.set_nonblocking(true).unwrap();
    let (mut stream, _) = posing.accept().expect("the agent connects");
    assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0, "the agent sends nothing");
    agent.kill();
}

#[test]
fn an_agent_in_a_container_takes_nothing_from_a_process_with_the_hosts_network() {
    if !is_root_or_skips() {
        return;
    }
    let node = Node::new();
    let listener = node.namespace.within(0, || {
        use std::os::linux::net::SocketAddrExt;
        let name = std::os::unix::net::SocketAddr::from_abstract_name("edge-cni-sockets").unwrap();
        UnixListener::bind_addr(&name).unwrap()
    });
    let posing = std::thread::spawn(move || {
        let (mut stream, mut message) = (listener.accept().unwrap().0, [0; 64]);
        let length = stream.read(&mut message).unwrap();
        (message[..length].to_vec(), listener)
    });
    let agent = node.start_agent(4500);
    node.wait_for("problem", "no `edge-agent hold-sockets` listens on");
    // It is asked to close its sockets, as one that an agent on the host left, and nothing else.
    let (message, listener) = posing.join().unwrap();
    assert_eq!(message, b"end 1\n");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
    agent.kill();
}

#[test]
fn sockets_of_another_network_namespace_are_not_taken() {
    if !is_root_or_skips() {
        return;
    }
    let mut node = Node::new();
    let _holder = node.start_holder();
    let agent = node.start_agent(4500);
    node.wait_for("held_by", "pod");
    agent.kill();
    let other = Node::new();
    let first = std::mem::replace(&mut node.namespace, other.namespace);
    let agent = node.start_agent(4500);
    node.wait_for("held_by", "pod");
    assert!(node.namespace.inode(4500).is_some());
    assert_eq!(first.inode(4500), None);
    agent.kill();
    assert!(node.namespace.inode(4500).is_some());
}
