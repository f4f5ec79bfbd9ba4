//! Follows `README.md` as it is written: its files go where it says, and its commands run unchanged
//! on two machines with systemd, and those about Kubernetes against a real API server. Only TOKEN
//! stands for the token that was printed before.

use std::process::Command;

use interop_tests::kube;
use interop_tests::suite::Test;

use crate::cluster_pages::{Shell, write_values};
use crate::machine::{self, Machine};
use crate::page::Page;
use crate::programs::{built, output};
use crate::two_machines::{has_esp, packages};

pub(crate) const TESTS: &[Test] = &[
    ("readme_is_followed_as_written_on_two_machines_and_in_a_cluster", followed),
    ("every_command_that_readme_mentions_exists", mentioned),
];

/// The commands that do not run in this test, since they build all programs or run all tests.
/// `make test` runs the scenarios of `make demo` and of `make tour` (`demo/all`, `demo/tour`), and
/// `make reproducible` runs `make release` twice. This test is a part of `make test`.
const NOT_RUN: [&str; 4] = ["make demo", "make tour", "make release", "make test"];

/// The directory in which the commands run. It has the plugin where `make release` puts it.
const DIRECTORY: &str = "/root/site";

fn followed() {
    if let Some(why) = machine::unavailable().or_else(kube::unavailable) {
        panic!("{why}");
    }
    let page = Page::read("README.md");
    let directory = tempfile::tempdir().unwrap();
    let packages = packages(directory.path());
    let boot = |name| Machine::boot(name, &packages, directory.path());
    let (first, second) = (boot("edge-1"), boot("edge-2"));
    first.connect(&second, ["192.0.2.1/24", "192.0.2.9/24"]);
    for machine in [&first, &second] {
        machine.run("apt-get install --yes ./edge-agent_*.deb ./edge-controller_*.deb");
        machine.run(&format!("mkdir -p {DIRECTORY}/target/release"));
        machine
            .run(&format!("cp \"$(dpkg -L edge-agent | grep '/edge-cni$' | head -n 1)\" {DIRECTORY}/target/release"));
    }
    static_tunnel(&page, [&first, &second]);
    nodes(&page, [&first, &second]);
    drop((first, second));
    cluster(&page);
    page.all_have_run_except(&NOT_RUN);
}

/// Returns a line of shell that runs this one in [`DIRECTORY`].
fn there(line: &str) -> String {
    format!("cd {DIRECTORY}\n{line}")
}

/// Starts a command that runs until it is stopped, as in another terminal.
fn start(machine: &Machine, line: &str) {
    let log = format!("{}.log", line.split(' ').next().expect("a program"));
    machine.run(&there(&format!("({line}) >>{log} 2>&1 </dev/null & echo $! >pid")));
}

/// Stops the last command that was started.
fn stop(machine: &Machine) {
    machine.run(&there("kill $(cat pid) $(cat /proc/$(cat pid)/task/*/children)"));
}

fn static_tunnel(page: &Page, machines: [&Machine; 2]) {
    let heading = "A tunnel to any IKEv2 peer";
    let file = page.blocks(heading, "toml")[0];
    // The peer's file is the same from the other end.
    let swapped = [("192.0.2.9", "192.0.2.1"), ("10.1.", "10.X."), ("10.2.", "10.1."), ("10.X.", "10.2.")];
    let names = [("sun.example", "X.example"), ("moon.example", "sun.example"), ("X.example", "moon.example")];
    let other = swapped.iter().chain(&names).fold(file.to_owned(), |text, (from, to)| text.replace(from, to));
    for (machine, file) in machines.into_iter().zip([file, &other]) {
        machine.write(&format!("{DIRECTORY}/agent.toml"), file, "644");
        machine.write(&format!("{DIRECTORY}/moon.psk"), "w7nKmZ8Vv2Qy0uJtXbE4hR6sPa1cFdGi", "600");
    }
    let commands = page.commands(heading, 0);
    let [run, status] = &commands[..] else { panic!("{commands:?}") };
    assert!(run.starts_with("edge-agent run "));
    for machine in machines {
        start(machine, run);
    }
    for machine in machines {
        assert!(machine.run_when_ready(&there(status)).contains("moon"));
        // Without ESP the handshake succeeds, and the kernel refuses the keys.
        let expected = if has_esp() { "Nothing is wrong" } else { "the kernel refused an SA" };
        let diagnose = "edge-agent diagnose --config agent.toml | tail -n 1";
        machine.run_when_ready(&there(&format!("{diagnose} | grep '{expected}'")));
    }
    for machine in machines {
        stop(machine);
        machine
            .run_when_ready(&there("edge-agent down --config agent.toml && edge-agent uninstall --config agent.toml"));
    }
}

fn nodes(page: &Page, machines: [&Machine; 2]) {
    let heading = "Nodes and a controller";
    let [first, _] = machines;
    first.write(&format!("{DIRECTORY}/controller.toml"), page.blocks(heading, "toml")[0], "644");
    let commands = page.commands(heading, 0);
    let [run, create] = &commands[..] else { panic!("{commands:?}") };
    start(first, run);
    let on_node = page.commands(heading, 1);
    for (machine, name) in machines.into_iter().zip(["edge-1", "edge-2"]) {
        // "Do the same for the second node, edge-2."
        let printed = first.run_when_ready(&there(&create.replace("edge-1", name)));
        let token = printed.split_whitespace().find(|word| word.starts_with("ecni1.")).expect("a token").to_owned();
        for line in &on_node {
            machine.run(&there(&line.replace("TOKEN", &token)));
        }
        machine.run("test -s /etc/cni/net.d/10-edge-cni.conflist");
    }
    let mut listed = String::new();
    for line in page.commands(heading, 2) {
        listed = first.run(&there(&line));
    }
    assert!(listed.matches("alpha").count() >= 2, "{listed}");
    first.run_when_ready("edge-agent status | grep -F edge-2");
    // Commands within the text.
    let up = "edge-cni up /etc/cni/net.d/10-edge-cni.conflist";
    let (deregister, uninstall) = ("edge-controller node deregister NAME", "edge-agent uninstall");
    for line in [up, deregister, uninstall] {
        assert!(page.text.contains(&format!("`{line}`")), "{line}");
    }
    for machine in machines {
        let printed = machine.run(&format!("PATH=/opt/cni/bin:$PATH\n{up}"));
        assert!(printed.contains("10.77."), "{printed}");
        machine.run("systemctl stop edge-agent edge-agent.socket edge-agent-ipv6.socket");
        machine.run(uninstall);
    }
    assert!(first.run(&deregister.replace("NAME", "edge-2")).contains("10.77."), "the node's segments are released");
    stop(first);
}

fn cluster(page: &Page) {
    let shell = Shell::new("readme");
    // "docs/install/kubernetes.md has a complete example."
    write_values("kubernetes.md", shell.directory.path());
    for line in page.commands("Kubernetes", 0) {
        shell.run(&line);
    }
    let made = shell.run("kubectl --namespace edge-cni get daemonset,deployment --output=name");
    for name in ["edge-agent", "hub-agent", "cloud-agent", "edge-controller"] {
        assert!(made.contains(&format!("/{name}\n")), "{name}: {made}");
    }
}

/// Calls each command in the text with `--help`, which a program accepts only after the words of a
/// command that it has.
fn mentioned() {
    let text = Page::read("README.md").text;
    let mut seen = 0;
    for code in text.replace("```", "\n").split('`').skip(1).step_by(2) {
        let words: Vec<&str> = code.split_whitespace().collect();
        let Some((program @ (&"edge-agent" | &"edge-controller"), words)) = words.split_first() else { continue };
        let is_word = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let words: Vec<&&str> = words.iter().take_while(is_word).collect();
        seen += usize::from(!words.is_empty());
        output(Command::new(built(program)).args(words).arg("--help")).unwrap_or_else(|why| panic!("{code}: {why}"));
    }
    assert!(seen > 10, "only {seen} commands were found");
}
