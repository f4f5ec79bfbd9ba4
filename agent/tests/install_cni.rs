//! `edge-agent install-cni` as init container and as a companion of the agent. Tests the program on
//! temporary directories.

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
    // Relative directories of `[cni]` are relative to the working directory.
    command.current_dir(directory).arg("install-cni").arg("--config").arg(file).args(arguments);
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
}
