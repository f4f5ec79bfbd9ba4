//! Tests the lock that allows only one agent in each network namespace. The program runs in
//! separate namespaces, with a static peer that does not answer.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use interop_tests::netns::{KilledOnDrop, UnnamedNamespace, is_root_or_skips};
use interop_tests::wait;

/// The user `nobody`.
const STRANGER: libc::c_long = 65_534;
/// Timeout after which a test fails.
const HANG: Duration = Duration::from_secs(60);

fn agent(before: &[&str], directory: &Path, ports: [u16; 2]) -> Command {
    fs::create_dir_all(directory).unwrap();
    let file = directory.join("agent.toml");
    let text = format!(
        "state_dir = \"state\"\nrun_dir = {:?}\nport = {}\nnat_port = {}\nhold_sockets = false\n[[peer]]\nname = \"moon\"\nremote = \"203.0.113.10\"\nlocal_id = \"a.example\"\n\
         remote_id = \"b.example\"\npsk = \"correct horse battery staple\"\nlocal_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.2.0.0/24\"]\n",
        directory.join("run"),
        ports[0],
        ports[1]
    )
    .replace("\"state\"", &format!("{:?}", directory.join("state")));
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut command = Command::new(before[0]);
    command.args(&before[1..]).args([env!("CARGO_BIN_EXE_edge-agent"), "run", "--config"]).arg(file);
    command
}

/// Starts an agent in a separate namespace and waits for its admin socket.
fn start(directory: &Path) -> KilledOnDrop {
    let mut child = agent(&["unshare", "--net"], directory, [500, 4500]).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let running = KilledOnDrop(child);
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(said.send(line))));
    let socket = directory.join("run/admin.sock");
    let started = wait::until("the agent to start", HANG, || match socket.exists() {
        true => Ok(()),
        false => anyhow::bail!("it says {:?}", heard.try_iter().collect::<Vec<_>>()),
    });
    started.unwrap();
    running
}

/// Runs a second agent in the same namespace, with its own directories and ports, until it ends.
fn second(first: &KilledOnDrop, directory: &Path) -> Output {
    let namespace = format!("--net=/proc/{}/ns/net", first.0.id());
    let child = agent(&["nsenter", &namespace], directory, [1500, 14500]).stderr(Stdio::piped()).spawn().unwrap();
    let id = child.id();
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output().unwrap()));
    ended.recv_timeout(HANG).unwrap_or_else(|_| {
        let _ = Command::new("kill").arg(id.to_string()).status();
        panic!("a second agent runs beside the first");
    })
}

fn assert_refused(output: &Output, first: &KilledOnDrop, directory: &Path) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let state = directory.join("state");
    for words in
        ["already runs in this network namespace", &format!("process {}", first.0.id()), &state.display().to_string()]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_second_agent_in_one_network_namespace_is_refused_with_the_first_ones_process_and_folder() {
    if !is_root_or_skips() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    let mut first = start(&one);
    assert_refused(&second(&first, &two), &first, &one);
    assert!(!two.join("state").exists() && !two.join("run").exists(), "nothing was touched");
    assert!(first.0.try_wait().unwrap().is_none(), "the first goes on");
    // The second agent runs in a separate namespace, and also in the namespace of the first agent
    // after that agent was killed.
    drop(start(&two));
    drop(first);
    drop(start(&one));
}

/// Another user's socket with one of the lock's names, and the connection that fills its queue.
type ForeignListener = (UnixListener, Option<UnixStream>);

/// Listens on names as another user, in the namespace of a process. With `full`, the queue accepts
/// no further connections.
fn squat(names: Vec<String>, process: u32, full: bool) -> Vec<ForeignListener> {
    let path = format!("/proc/{process}/ns/net");
    std::thread::spawn(move || {
        let namespace = fs::File::open(path).unwrap();
        // SAFETY: the system calls change the network namespace and the user of this thread only,
        // and the thread ends immediately afterwards.
        unsafe {
            assert_eq!(libc::setns(std::os::fd::AsRawFd::as_raw_fd(&namespace), libc::CLONE_NEWNET), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, STRANGER, STRANGER, STRANGER), 0);
        }
        let bind = |name: &String| {
            let name = SocketAddr::from_abstract_name(name).unwrap();
            let listener = UnixListener::bind_addr(&name).unwrap();
            let filling = full.then(|| {
                // SAFETY: listen(2) changes the queue of a socket that this thread owns.
                assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) }, 0);
                UnixStream::connect_addr(&name).unwrap()
            });
            (listener, filling)
        };
        names.iter().map(bind).collect()
    })
    .join()
    .unwrap()
}

fn starts_beside_a_squatter(full: bool) {
    if !is_root_or_skips() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    // Another user has bound the names before an agent starts.
    let holder = UnnamedNamespace::new();
    let squatters = squat(vec!["edge-cni-agent".into(), "edge-cni-agent-1".into()], holder.pid(), full);
    let namespace = format!("--net={}", holder.path());
    let first = KilledOnDrop(agent(&["nsenter", &namespace], &one, [500, 4500]).stderr(Stdio::null()).spawn().unwrap());
    let socket = one.join("run/admin.sock");
    wait::expect("the agent to start beside a squatter", HANG, || socket.exists().then_some(()));
    // A second agent is still refused, even after the other user's process has ended.
    assert_refused(&second(&first, &two), &first, &one);
    drop(squatters);
    assert_refused(&second(&first, &two), &first, &one);
}

#[test]
fn a_local_user_who_takes_the_names_keeps_no_agent_from_starting() {
    starts_beside_a_squatter(false);
}

#[test]
fn a_process_of_another_container_that_takes_the_names_keeps_no_agent_from_starting() {
    if !is_root_or_skips() {
        return;
    }
    let (directory, holder) = (tempfile::tempdir().unwrap(), UnnamedNamespace::new());
    // The kernel gives the process ID 0 for a process that has none in the agent's PID namespace.
    let _squatters = squat(vec!["edge-cni-agent".into()], holder.pid(), false);
    let namespace = format!("--net={}", holder.path());
    let before = ["nsenter", &namespace, "unshare", "--pid", "--fork", "--kill-child"];
    let _agent = KilledOnDrop(agent(&before, directory.path(), [500, 4500]).spawn().unwrap());
    let socket = directory.path().join("run/admin.sock");
    wait::expect("the agent to start beside a squatter", HANG, || socket.exists().then_some(()));
}

#[test]
fn a_local_user_whose_queue_is_full_keeps_no_agent_from_starting() {
    starts_beside_a_squatter(true);
}
