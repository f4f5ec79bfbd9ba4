//! Tests `edge-agent install-cni` as an init container and as a container next to the agent. The
//! program uses temporary directories.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use edge_agent::state_dir::{StateDir, segments_file};

/// A process that is killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn agent(directory: &Path, arguments: &[&str]) -> Command {
    let file = directory.join("agent.toml");
    let text = "state_dir = \"state\"\nrun_dir = \"run\"\n[cni]\nconf_dir = \"net.d\"\nbin_dir = \"bin\"\n[controller]\nurls = [\"https://c\"]\n";
    fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-agent"));
    // Relative directories count from the directory of the file, wherever the command runs.
    command.current_dir("/").arg("install-cni").arg("--config").arg(file).args(arguments);
    command
}

fn wait_for(what: &str, mut event: impl FnMut() -> bool) {
    interop_tests::wait::expect(what, Duration::from_secs(60), || event().then_some(()));
}

#[test]
fn the_plugin_alone_is_installed_before_there_is_a_segment() {
    let directory = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_edge-agent");
    let done = agent(directory.path(), &["--plugin", program, "--plugin-only"]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(fs::read(directory.path().join("bin/edge-cni")).unwrap(), fs::read(program).unwrap());
    assert!(!directory.path().join("net.d").exists());
    let refused = agent(directory.path(), &["--plugin-only"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "there is no plugin to install");
}

#[test]
fn a_reader_that_goes_away_ends_no_command_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agent.toml");
    let swanctl = directory.path().join("swanctl.conf");
    let connection = "connections { a { remote_addrs = 192.0.2.1\n local { auth = psk\n id = a }\n remote { auth = psk\n id = b }\n \
                      children { c { local_ts = 10.1.0.0/24\n remote_ts = 10.2.0.0/24\n } } } }\n\
                      secrets { ike-1 { id = b\n secret = \"0123456789abcdef0123456789abcdef\" } }\n";
    fs::write(&swanctl, connection).unwrap();
    let program = env!("CARGO_BIN_EXE_edge-agent");
    let config = file.to_str().unwrap();
    let run = |arguments: &[&str], out: std::process::Stdio| {
        drop(agent(directory.path(), &[]));
        Command::new(program).current_dir("/").args(arguments).stdout(out).output().unwrap()
    };
    for arguments in [
        &["install-cni", "--config", config, "--plugin", program, "--plugin-only"][..],
        &["import", swanctl.to_str().unwrap()],
        &["check", "--config", config],
        &["check", "--config", config, "--json"],
        &["diagnose", "--config", config],
    ] {
        let read = run(arguments, std::process::Stdio::piped());
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let unread = run(arguments, writer.into());
        assert!(!read.stdout.is_empty(), "{arguments:?} prints nothing");
        let said = String::from_utf8_lossy(&unread.stderr);
        assert!(!said.contains("ipe"), "{arguments:?}: {said}");
        assert_eq!(unread.status, read.status, "{arguments:?}: {said}");
    }
}

#[test]
fn the_conflist_is_kept_it_comes_after_the_first_segment_and_again_when_it_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_edge-agent");
    let mut kept = Running(agent(directory.path(), &["--plugin", program, "--keep"]).spawn().unwrap());
    let conflist = directory.path().join("net.d/10-edge-cni.conflist");
    wait_for("the plugin", || directory.path().join("bin/edge-cni").exists());
    assert!(!conflist.exists() && kept.0.try_wait().unwrap().is_none());
    let state = StateDir::open(&directory.path().join("state")).unwrap();
    segments_file::add_granted(&state, &["10.77.0.0/26".parse().unwrap()]).unwrap();
    wait_for("the conflist", || conflist.exists());
    let written = fs::read(&conflist).unwrap();
    fs::remove_file(&conflist).unwrap();
    wait_for("the conflist again", || conflist.exists());
    assert_eq!(fs::read(&conflist).unwrap(), written);
    assert!(kept.0.try_wait().unwrap().is_none());
    let pid = rustix::process::Pid::from_child(&kept.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(kept.0.wait().unwrap().code(), Some(0), "it handles the signal");
}

/// Runs `uninstall --purge` three times in namespaces where nothing else is: with a configuration
/// and state, without both, and without a configuration but with a conflist.
const PURGED: &str = r#"
set -u
for directory in /etc /var/lib /run /opt; do mount -t tmpfs empty "$directory"; done
mkdir -p /etc/edge-cni /var/lib/edge-cni /etc/cni/net.d
printf '[controller]\nurls = ["https://c"]\n' >/etc/edge-cni/agent.toml
echo '{}' >/var/lib/edge-cni/identity.json
run() { "$1" uninstall --purge 2>&1; echo "ends with $?"; }
run "$1"
run "$1"
echo '{}' >/etc/cni/net.d/10-edge-cni.conflist
run "$1"
test -e /etc/cni/net.d/10-edge-cni.conflist
"#;

#[test]
fn a_second_uninstall_with_purge_finds_nothing_and_one_without_its_configuration_removes_nothing() {
    if !interop_tests::netns::is_root_or_skips() {
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--propagation", "private", "sh", "-c", PURGED, "sh"]);
    let done = command.arg(env!("CARGO_BIN_EXE_edge-agent")).output().unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{said}");
    let runs: Vec<&str> = said.split_inclusive("ends with ").collect();
    let codes: Vec<&str> = runs.iter().skip(1).filter_map(|run| run.lines().next()).collect();
    assert_eq!(codes, ["0", "0", "2"], "{said}");
    assert!(said.contains("nothing of edge-cni was on this host (/etc/edge-cni/agent.toml is missing"), "{said}");
    assert!(said.contains("there is still: /etc/cni/net.d/10-edge-cni.conflist"), "{said}");
}
