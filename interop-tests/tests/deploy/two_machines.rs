//! Follows the page about two plain machines (`docs/install/two-machines.md`) as it is written, on
//! two machines with systemd: each file goes where the page says, and each command runs unchanged.
//! Only TOKEN stands for the token that was printed before.

use std::path::{Path, PathBuf};
use std::process::Command;

use interop_tests::suite::Test;

use crate::machine::{self, Machine};
use crate::page::Page;
use crate::programs::{built, output, workspace};

pub(crate) const TESTS: &[Test] = &[("the_page_about_two_machines_is_followed_as_written", followed)];

/// The only command that does not run: it builds the programs with all optimisations. The test
/// packs the programs that are built already, with the same script.
const NOT_RUN: &str = "make packages";

/// Returns whether this machine's kernel has ESP. Without it no tunnel comes up.
pub(crate) fn has_esp() -> bool {
    let add = "ip xfrm state add src 192.0.2.1 dst 192.0.2.9 proto esp spi 1 reqid 1 mode tunnel \
               aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128";
    output(Command::new("unshare").args(["--net", "sh", "-c", add])).is_ok()
}

fn followed() {
    if let Some(why) = machine::unavailable() {
        panic!("{why}");
    }
    let page = Page::read("docs/install/two-machines.md");
    let directory = tempfile::tempdir().unwrap();
    let packages = packages(directory.path());
    let boot = |name| Machine::boot(name, &packages, directory.path());
    let (first, second) = (boot("edge-1"), boot("edge-2"));
    first.connect(&second, ["192.0.2.1/24", "192.0.2.9/24"]);
    let both = [&first, &second];

    both.iter().for_each(|machine| install(&page, machine));
    without_controller(&page, both);
    remove(&page, &first);
    remove(&page, &second);

    both.iter().for_each(|machine| install(&page, machine));
    with_controller(&page, both);
    upgrade(&second);
    upgrade_controller(&first);
    for line in page.commands("Back up", 0) {
        first.run(&line);
    }
    assert_eq!(first.run("stat --format %a /var/backups/edge-controller.jsonl").trim(), "600");
    remove(&page, &first);
    for line in page.commands("Remove", 1) {
        assert!(first.run(&line).contains("10.77."), "the node's segments are released");
    }
    assert!(!first.run("edge-controller node list").contains("edge-1"));

    page.all_have_run_except(&[NOT_RUN]);
}

/// Builds the Debian packages of the programs that are built already, in a directory below this
/// one. Its directory `next` has a later version of the same programs.
pub(crate) fn packages(directory: &Path) -> PathBuf {
    let packages = directory.join("packages");
    let [programs, _, _] = ["edge-agent", "edge-controller", "edge-cni"].map(built);
    for (to, version) in [(packages.clone(), None), (packages.join("next"), Some("9"))] {
        let mut build = Command::new(workspace("deploy/debian/build"));
        build.arg(programs.parent().expect("a directory")).arg(to).args(version).env("COMPRESSION", "none");
        output(&mut build).unwrap();
    }
    packages
}

fn install(page: &Page, machine: &Machine) {
    for line in page.commands("The programs", 0).iter().filter(|line| !line.starts_with(NOT_RUN)) {
        machine.run(line);
    }
    assert_eq!(machine.output("systemctl is-enabled edge-agent edge-controller", "").stdout, b"disabled\ndisabled\n");
}

fn without_controller(page: &Page, machines: [&Machine; 2]) {
    let heading = "Without a controller";
    let make_secret = "openssl rand -base64 32";
    assert!(page.text.contains(make_secret));
    let secret = machines[0].run(make_secret);
    let files = page.blocks(heading, "toml");
    for ((machine, file), secret_file) in machines.iter().zip(files).zip(["moon.psk", "sun.psk"]) {
        assert!(file.contains(secret_file) && page.text.contains(&format!("`/etc/edge-cni/{secret_file}`")));
        machine.write("/etc/edge-cni/agent.toml", file, "644");
        machine.write(&format!("/etc/edge-cni/{secret_file}"), &secret, "600");
    }
    let commands = page.commands(heading, 0);
    let (diagnose, others) = commands.split_last().expect("commands");
    assert_eq!(diagnose, "edge-agent diagnose");
    for machine in machines {
        others.iter().for_each(|line| drop(machine.run_when_ready(line)));
    }
    let esp = has_esp();
    for machine in machines {
        if esp {
            machine.run_when_ready(diagnose);
        } else {
            // Without ESP the handshake succeeds, and the kernel refuses the keys.
            machine.run_when_ready(&format!("{diagnose} | tail -n 1 | grep 'the kernel refused an SA'"));
        }
    }
}

fn with_controller(page: &Page, [first, second]: [&Machine; 2]) {
    let heading = "With a controller";
    let files = page.blocks(heading, "toml");
    first.write("/etc/edge-controller/controller.toml", files[0], "644");
    let mut tokens = Vec::new();
    for line in page.commands(heading, 0) {
        let printed = first.run_when_ready(&line);
        tokens.extend(printed.split_whitespace().find(|word| word.starts_with("ecni1.")).map(str::to_owned));
    }
    assert_eq!(tokens.len(), 2, "one for each node");
    for (machine, token) in [first, second].into_iter().zip(&tokens) {
        for line in page.commands(heading, 1) {
            let shown = machine.run(&line.replace("TOKEN", token));
            assert!(shown.contains("controller https://192.0.2.1:8443/: connected"), "{shown}");
        }
        let written = machine.run("grep -v '^#' /etc/edge-cni/agent.toml");
        assert_eq!(written.trim(), files[1].trim(), "the file contains only this");
    }
    let mut listed = String::new();
    for line in page.commands(heading, 2) {
        listed = first.run(&line);
    }
    assert!(listed.matches("alpha").count() >= 2, "{listed}");
    for machine in [first, second] {
        for line in page.commands(heading, 3) {
            machine.run(&line);
        }
        machine.run("test -s /etc/cni/net.d/10-edge-cni.conflist");
    }
    first.run_when_ready("edge-agent status | grep -F edge-2");
}

/// Installs the next version of the package on a node with a container runtime: the plugin is
/// replaced, and each unit that was enabled is enabled in the way of the new version.
fn upgrade(machine: &Machine) {
    let plugin = "/opt/cni/bin/edge-cni";
    let wanted = "/etc/systemd/system/edge-agent.service.wants/edge-agent-install-cni.service";
    // The last version had another plugin, and its unit was not wanted by the agent's. The agent
    // may run the plugin at this moment, so the file is replaced, not written.
    let old_plugin = format!("echo old >{plugin}.old; chmod 755 {plugin}.old; mv {plugin}.old {plugin}");
    machine.run(&format!("{old_plugin}; rm {wanted}; systemctl daemon-reload"));
    machine.run("systemctl disable edge-agent-ipv6.socket");
    machine.run("dpkg --install next/edge-agent_*.deb");
    machine.run_when_ready(&format!("cmp /usr/bin/edge-cni {plugin}"));
    machine.run(&format!("test -L {wanted}"));
    let enabled = "systemctl is-enabled edge-agent edge-agent-install-cni edge-agent-ipv6.socket || true";
    assert_eq!(machine.run(enabled), "enabled\nenabled\ndisabled\n");
    machine.run_when_ready("edge-agent status | grep -F ': connected'");
    machine.run_when_ready("systemctl is-active edge-agent-install-cni");
    changed_configuration(machine);
    // A node whose agent is stopped stays so.
    // A packet of a peer would start it by its sockets.
    machine.run("systemctl stop edge-agent edge-agent.socket edge-agent-ipv6.socket");
    machine.run(&format!("{old_plugin}; dpkg --install next/edge-agent_*.deb"));
    assert_eq!(machine.run("systemctl is-active edge-agent || true"), "inactive\n");
    machine.run("systemctl start edge-agent");
    machine.run_when_ready(&format!("cmp /usr/bin/edge-cni {plugin}"));
}

/// Installs the next version of the controller over a configuration that it refuses, and over one
/// that it takes with a key from the environment.
fn upgrade_controller(machine: &Machine) {
    let (file, process) =
        ("/etc/edge-controller/controller.toml", "systemctl show --property MainPID --value edge-controller");
    let install = "dpkg --install next/edge-controller_*.deb 2>&1";
    machine.run(&format!("cp {file} /root/controller.toml"));
    let before = machine.run(process);
    machine.run(&format!("echo '[nonsense]' >>{file}"));
    let said = machine.run(install);
    for words in ["not restarted", "nonsense", "correct the file, then: systemctl restart edge-controller"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(machine.run(process), before);
    machine.run("edge-controller node list");
    // The file alone is not enough, the unit's environment has the rest.
    let names = machine.run("grep ^server_names /root/controller.toml");
    let names = names.trim().trim_start_matches("server_names = ").trim_matches(['[', ']']).replace(['"', ' '], "");
    machine.run(&format!("sed '/^server_names/d' /root/controller.toml >{file}"));
    machine.run("mkdir -p /etc/systemd/system/edge-controller.service.d");
    machine.run(&format!(
        "printf '[Service]\\nEnvironment=EDGE_CONTROLLER_SERVER_NAMES={names}\\n' >/etc/systemd/system/edge-controller.service.d/names.conf"
    ));
    machine.run("systemctl daemon-reload; systemctl restart edge-controller");
    machine.run_when_ready("edge-controller node list");
    let before = machine.run(process);
    let said = machine.run(install);
    assert!(!said.contains("not restarted"), "{said}");
    assert_ne!(machine.run(process), before);
    machine.run(&format!("cp /root/controller.toml {file}; rm -r /etc/systemd/system/edge-controller.service.d"));
    machine.run("systemctl daemon-reload; systemctl restart edge-controller");
    machine.run_when_ready("edge-controller node list");
}

/// Installs the next version over configurations that it refuses, and of which it warns.
fn changed_configuration(machine: &Machine) {
    let (file, process) = ("/etc/edge-cni/agent.toml", "systemctl show --property MainPID --value edge-agent");
    let install = "dpkg --install next/edge-agent_*.deb 2>&1";
    machine.run(&format!("cp {file} /root/agent.toml"));
    let before = machine.run(process);
    // The running agent would not start again. It goes on, and the words say what to do.
    machine.run(&format!("echo '[nonsense]' >>{file}"));
    let said = machine.run(install);
    for words in ["not restarted", "unknown field `nonsense`", "correct the file, then: systemctl restart edge-agent"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(machine.run(process), before);
    machine.run("edge-agent status --config /root/agent.toml | grep -F ': connected'");
    // An earlier release accepted this value: the agent runs with it, and only the check fails.
    machine.run(&format!("cp /root/agent.toml {file}; printf '[timing]\\nretry_max = \"100ms\"\\n' >>{file}"));
    let said = machine.run(install);
    assert!(said.contains("ERROR    [timing]: retry is 500ms and retry_max 100ms"), "{said}");
    assert_ne!(machine.run(process), before);
    machine.run_when_ready("edge-agent status | grep -F ': connected'");
    machine.run("journalctl --unit edge-agent | grep -F 'a later release does not start with this'");
    assert_eq!(machine.output("edge-agent check", "").status.code(), Some(1));
    machine.run(&format!("cp /root/agent.toml {file}; systemctl restart edge-agent"));
    machine.run_when_ready("edge-agent status | grep -F ': connected'");
}

fn remove(page: &Page, machine: &Machine) {
    for line in page.commands("Remove", 0) {
        // A person confirms what apt-get asks.
        let output = machine.output(&line, "y\n");
        assert!(output.status.success(), "{}: {line}: {output:?}", machine.name);
    }
    let left = "ls -d /etc/edge-cni /var/lib/edge-cni /run/edge-cni /etc/cni/net.d/10-edge-cni.conflist /opt/cni/bin/edge-cni 2>/dev/null || true";
    assert_eq!(machine.run(left), "");
    assert_eq!(machine.run("nft list tables"), "");
    assert_eq!(machine.run("ip xfrm policy; ip xfrm state"), "");
    assert_eq!(machine.run("ip -o link | grep -c ecni || true").trim(), "0");
}
