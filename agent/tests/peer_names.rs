//! Tests `remote = "NAME"`: the agent starts without an address for the name, and queries the
//! system's resolver again. The program runs in separate namespaces, with its own hosts file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use interop_tests::netns::{KilledOnDrop, UnnamedNamespace, is_root_or_skips};
use interop_tests::wait;
use serde_json::Value;

/// Timeout after which a test fails. After a failed lookup, a name is looked up again within a
/// minute.
const HANG: Duration = Duration::from_secs(180);

/// Returns the addresses at which the running agent tries its peer.
fn endpoints(directory: &Path) -> Option<Vec<String>> {
    let mut status = Command::new(env!("CARGO_BIN_EXE_edge-agent"));
    let output = status.args(["status", "--json", "--config"]).arg(directory.join("agent.toml")).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).ok()?;
    let endpoints = status["peers"][0]["endpoints"].as_array()?;
    Some(endpoints.iter().map(|endpoint| endpoint.as_str().unwrap().to_owned()).collect())
}

#[test]
fn a_peer_with_a_name_that_is_resolved_later_is_looked_for_at_its_addresses() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (UnnamedNamespace::new(), tempfile::tempdir().unwrap());
    let directory = directory.path();
    let (hosts, config) = (directory.join("hosts"), directory.join("agent.toml"));
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let text = format!(
        "state_dir = {:?}\nrun_dir = {:?}\nhold_sockets = false\n[[peer]]\nname = \"moon\"\nremote = \"moon.example:4500\"\nlocal_id = \"a.example\"\n\
         remote_id = \"b.example\"\npsk = \"correct horse battery staple\"\nlocal_subnets = [\"10.1.0.0/24\"]\n\
         remote_subnets = [\"10.2.0.0/24\"]\n",
        directory.join("state"),
        directory.join("run"),
    );
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    // The program runs in a separate mount namespace with this hosts file.
    let start = format!(
        "mount --bind {} /etc/hosts && exec {} run --config {}",
        hosts.display(),
        env!("CARGO_BIN_EXE_edge-agent"),
        config.display()
    );
    let agent = namespace.command("unshare").args(["--mount", "sh", "-c", &start]).spawn().unwrap();
    let _agent = KilledOnDrop(agent);
    wait::expect("the agent to run although nothing resolves its peer", HANG, || {
        endpoints(directory).filter(|endpoints| endpoints.is_empty())
    });
    // The file is written in place, because the mount refers to the file itself instead of its
    // name.
    fs::write(&hosts, "192.0.2.7 moon.example\n2001:db8::7 moon.example\n").unwrap();
    wait::expect("the agent to find the peer's addresses", HANG, || {
        endpoints(directory).filter(|endpoints| endpoints == &["[2001:db8::7]:4500", "192.0.2.7:4500"])
    });
}
