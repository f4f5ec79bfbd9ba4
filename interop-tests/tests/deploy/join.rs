//! Tests `edge-agent join` against a real controller, on a machine whose systemd is played by a
//! script: it records how `systemctl` is called, and starts the agent. `two_machines` joins with a
//! real systemd.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use edge_types::JoinToken;
use interop_tests::netns::KilledOnDrop;
use interop_tests::suite::Test;
use interop_tests::wait;

use crate::pair::{controller_file, operator, write};
use crate::programs::{built, output};

pub(crate) const TESTS: &[Test] = &[("join_starts_the_unit_waits_and_shows_the_status_or_says_what_is_wrong", join)];

/// Makes the machine: `$1` is the directory of the test, with the programs in `bin`.
const MACHINE: &str = r#"
set -eu
mount -t proc proc /proc
for directory in /etc /var/lib /run; do mount -t tmpfs node "$directory"; done
mkdir -p /run/systemd/system
ip link set lo up
echo up
exec cat
"#;

/// Plays systemd. The agent ends with the machine.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >>DIRECTORY/systemctl.log
if [ "$1" = enable ] && [ ! -e /run/started ]; then
    : >/run/started
    edge-agent run --config /etc/edge-cni/agent.toml </dev/null >DIRECTORY/agent.log 2>&1 &
fi
"#;

const URL: &str = "https://127.0.0.1:8443";

struct Machine<'a> {
    directory: &'a Path,
    pid: String,
    _process: KilledOnDrop,
}

impl<'a> Machine<'a> {
    fn start(directory: &'a Path) -> Self {
        let bin = directory.join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(built("edge-agent"), bin.join("edge-agent")).unwrap();
        let systemctl = bin.join("systemctl");
        fs::write(&systemctl, SYSTEMCTL.replace("DIRECTORY", directory.to_str().expect("a path in UTF-8"))).unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c"]);
        let child = command.arg(MACHINE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut process = KilledOnDrop(child);
        let mut said = [0; 3];
        std::io::Read::read_exact(process.0.stdout.as_mut().expect("a pipe"), &mut said).unwrap();
        let unshare = process.0.id();
        let pid = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap().trim().to_owned();
        Self { directory, pid, _process: process }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--mount", "--net", "--pid"]).arg(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.directory.join("bin").display())).stdin(Stdio::null());
        command
    }

    fn controller(&self) -> KilledOnDrop {
        let log = fs::File::create(self.directory.join("controller.log")).unwrap();
        // Without the namespace of process IDs `nsenter` becomes the program, which a signal
        // reaches.
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid, "--net"])
            .arg(built("edge-controller"))
            .args(["run", "--config"])
            .arg(self.directory.join("controller.toml"));
        let child: Child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let controller = KilledOnDrop(child);
        wait::for_event("the controller", || {
            output(operator(&built("edge-controller"), self.directory).args(["node", "list"]))
                .map_err(anyhow::Error::msg)
        })
        .unwrap();
        controller
    }

    /// Joins. Returns whether that succeeded, and all that was printed.
    fn join(&self, token: &str, timeout: u32) -> (bool, String) {
        let mut command = self.command(&built("edge-agent"));
        command.args(["join", "--name", "edge-1", "--timeout", &timeout.to_string(), "--", URL, token]);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn reads(&self, path: &str) -> String {
        output(self.command(Path::new("cat")).arg(path)).unwrap_or_default()
    }

    fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.join("systemctl.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn agent_log(&self) -> String {
        fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default()
    }
}

fn join() {
    assert!(rustix::process::geteuid().is_root(), "run it as root: it needs namespaces and mounts");
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("controller.toml"), &controller_file(directory.path()));
    let machine = Machine::start(directory.path());
    let controller = machine.controller();
    let create = ["token", "create", "--role", "edge", "--ttl", "1h"];
    let token = output(operator(&built("edge-controller"), directory.path()).args(create)).unwrap().trim().to_owned();
    let mut forged: JoinToken = token.parse().unwrap();
    forged.secret = "wrong-and-secret".to_owned().into();
    let forged = forged.encode().to_string();
    drop(controller);

    // What is no token reaches neither the disk nor systemd.
    let (joined, said) = machine.join("ecni1.no-token", 60);
    assert!(!joined && said.contains("join token") && !said.contains("no-token"), "{said}");
    assert_eq!((machine.reads("/etc/edge-cni/agent.toml"), machine.calls()), (String::new(), vec![]));

    // The controller is away.
    let (joined, said) = machine.join(&forged, 5);
    assert!(!joined && said.contains("has not joined within 5 s"), "{said}");
    assert!(said.contains("127.0.0.1:8443"), "{said}; {}", machine.agent_log());
    let file = machine.reads("/etc/edge-cni/agent.toml");
    assert!(file.contains("name = \"edge-1\"") && file.contains(URL), "{file}");
    assert_eq!(machine.reads("/etc/edge-cni/token").trim(), forged);
    let once = ["cat edge-agent.service", "enable --now edge-agent.socket edge-agent-ipv6.socket edge-agent.service"];
    assert_eq!(machine.calls(), once);

    // The controller does not know the token's secret. The command waits longer than the agent
    // between two attempts.
    let controller = machine.controller();
    let refused = wait::for_event("the refusal", || {
        let (joined, said) = machine.join(&forged, 1);
        assert!(!joined && !said.contains("wrong-and-secret"), "{said}");
        anyhow::ensure!(said.contains("The join token is not known"), "{said}; {}", machine.agent_log());
        Ok(said)
    });
    refused.unwrap();
    assert!(!machine.agent_log().contains("wrong-and-secret"));

    // The right token, at the same agent, which need not be started again.
    let (joined, said) = machine.join(&token, 60);
    assert!(joined, "{said}; {}", machine.agent_log());
    assert!(said.contains("/etc/edge-cni/token written") && said.contains("connected"), "{said}");
    assert_eq!(machine.reads("/etc/edge-cni/agent.toml"), file);
    let listed = output(operator(&built("edge-controller"), directory.path()).args(["node", "list"])).unwrap();
    assert!(listed.contains("edge-1"), "{listed}");

    // It may be run again, and changes nothing then.
    let (joined, said) = machine.join(&token, 60);
    assert!(joined && said.contains("connected") && !said.contains("written"), "{said}");
    let calls = machine.calls();
    assert!(calls.len() >= 8 && calls.chunks(2).all(|pair| pair == once), "{calls:?}");
    drop(controller);
}
