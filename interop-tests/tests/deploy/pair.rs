//! Runs a controller with the embedded store, and an agent that joins it, in a separate namespace.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use interop_tests::netns::{KilledOnDrop, UnnamedNamespace, enter};
use interop_tests::wait;

use crate::programs::{built, output};

/// Addresses at which the controller and the agent serve their metrics.
pub(crate) const CONTROLLER: &str = "127.0.0.1:9643";
pub(crate) const AGENT: &str = "127.0.0.1:9644";

/// The executables of the two programs.
pub(crate) struct Programs {
    pub(crate) controller: PathBuf,
    pub(crate) agent: PathBuf,
}

/// The two running programs. Their state is in `controller` and `agent` below one directory.
pub(crate) struct Pair {
    directory: PathBuf,
    programs: Programs,
    namespace: UnnamedNamespace,
    controller: KilledOnDrop,
    agent: KilledOnDrop,
}

impl Pair {
    /// Starts both programs. An agent without an identity joins under this name.
    pub(crate) fn start(directory: &Path, name: &str) -> Self {
        let programs = Programs { controller: built("edge-controller"), agent: built("edge-agent") };
        Self::start_programs(directory, name, programs)
    }

    /// Starts these programs as [`Self::start`] does.
    pub(crate) fn start_programs(directory: &Path, name: &str, programs: Programs) -> Self {
        let namespace = UnnamedNamespace::new();
        output(namespace.command("ip").args(["link", "set", "lo", "up"])).unwrap();
        let path = |name: &str| directory.join(name);
        write(&path("controller.toml"), &controller_file(directory));
        let controller = start(&namespace, directory, &programs.controller, "controller.toml");
        let joined = path("agent/identity.json").exists();
        if !joined {
            let token = wait::for_event("a token", || {
                output(
                    operator(&programs.controller, directory)
                        .args(["token", "create", "--role", "edge", "--ttl", "1h"]),
                )
                .map_err(anyhow::Error::msg)
            });
            write(&path("token"), &token.unwrap());
        }
        write(&path("agent.toml"), &agent_file(directory, name, !joined));
        let agent = start(&namespace, directory, &programs.agent, "agent.toml");
        Self { directory: directory.to_owned(), programs, namespace, controller, agent }
    }

    /// Waits until the agent has a view stream.
    pub(crate) fn until_connected(&self) {
        wait::for_event("the agent to be connected", || {
            let page = self.page(AGENT).unwrap_or_default();
            let log = || fs::read_to_string(self.directory.join("edge-agent.log")).unwrap_or_default();
            anyhow::ensure!(page.contains("\nedge_agent_controller_connected 1"), "{}", log());
            Ok(())
        })
        .unwrap();
    }

    /// Returns `/metrics`, as a client receives it that requests no particular format.
    pub(crate) fn page(&self, address: &'static str) -> Option<String> {
        let path = self.namespace.path();
        let thread = std::thread::spawn(move || {
            enter(Path::new(&path));
            let mut stream = TcpStream::connect(address).ok()?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
            let mut response = String::new();
            stream.read_to_string(&mut response).ok()?;
            response.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
        });
        thread.join().unwrap()
    }

    /// Returns the response to an operator's command, as JSON.
    pub(crate) fn operator(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(
            &output(operator(&self.programs.controller, &self.directory).args(arguments).arg("--json")).unwrap(),
        )
        .unwrap()
    }

    /// Stops both programs as systemd does.
    pub(crate) fn stop(mut self) {
        for program in [&mut self.agent, &mut self.controller] {
            output(Command::new("kill").arg(program.0.id().to_string())).unwrap();
            assert!(program.0.wait().unwrap().success());
        }
    }
}

/// Makes a command of the operator by this program, for the controller with its files in this
/// directory.
pub(crate) fn operator(controller: &Path, directory: &Path) -> Command {
    let mut command = Command::new(controller);
    command.env("EDGE_CONTROLLER_SOCKET", directory.join("admin.sock"));
    command
}

/// Starts a program of the pair. `nsenter` executes the program in its own process, so a signal
/// reaches the program.
fn start(namespace: &UnnamedNamespace, directory: &Path, program: &Path, config: &str) -> KilledOnDrop {
    let name = program.file_name().and_then(|name| name.to_str()).expect("a name");
    let log = fs::File::create(directory.join(format!("{name}.log"))).unwrap();
    let mut command = namespace.command(program.to_str().expect("a path in UTF-8"));
    command.args(["run", "--config"]).arg(directory.join(config));
    KilledOnDrop(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

/// Writes a file that only its owner may read.
pub(crate) fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Returns the configuration of a controller with its files in this directory.
pub(crate) fn controller_file(directory: &Path) -> String {
    format!(
        "server_names = [\"127.0.0.1\"]\nlisten = [\"127.0.0.1:8443\"]\nstate_dir = {:?}\nadmin_socket = {:?}\n\
         [observe]\nlisten = [\"{CONTROLLER}\"]\n[segments]\ncluster_ranges = [\"10.77.0.0/16\"]\n[certificates]\nnode_days = 825\n",
        directory.join("controller"),
        directory.join("admin.sock"),
    )
}

fn agent_file(directory: &Path, name: &str, joins: bool) -> String {
    let token = if joins { "token_file = \"token\"\n" } else { "" };
    format!(
        "state_dir = {:?}\nrun_dir = {:?}\nname = {name:?}\nhold_sockets = false\n[observe]\nlisten = [\"{AGENT}\"]\n\
         [controller]\nurls = [\"https://127.0.0.1:8443\"]\n{token}",
        directory.join("agent"),
        directory.join("run"),
    )
}
