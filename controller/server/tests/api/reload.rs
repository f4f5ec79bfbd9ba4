//! Tests the configuration: its sources, and changes while the program runs.

use std::process::Output;

use crate::harness::Node;
use crate::process::{Program, text};
use rustix::process::{Pid, Signal, kill_process};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// A program that serves one node, and its configuration file.
struct Site {
    program: Program,
    node: Node,
}

impl Site {
    async fn start() -> Self {
        let mut program = Program::new();
        configure(&program, "", "\"10.77.0.0/26\"");
        program.start();
        let token = text(&program.run(&["token", "create", "--role", "edge"]).stdout).parse().unwrap();
        let ca = CertificateDer::from_pem_file(program.path("state/ca.crt")).unwrap();
        let node = Node::join(program.addresses[0], ca, &token, "edge-1").await;
        Self { program, node }
    }

    fn reload(&self, more: &str, ranges: &str) -> Output {
        configure(&self.program, more, ranges);
        self.program.run(&["reload"])
    }
}

fn configure(program: &Program, more: &str, ranges: &str) {
    let text = format!(
        "server_names = [\"cloud.test\"]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = {:?}\nadmin_socket = {:?}\n{more}\n\
         [observe]\nlisten = [\"127.0.0.1:0\"]\n[segments]\ncluster_ranges = [{ranges}]\n",
        program.path("state"),
        program.path("run/admin.sock"),
    );
    std::fs::write(program.path("c.toml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_added_is_granted_from_and_told_to_nodes_at_once() {
    let site = Site::start().await;
    let mut stream = site.node.watch().await;
    assert_eq!(stream.view().await.cluster_ranges.len(), 1);
    assert_eq!(site.node.request_segments("r-1", &["ipv4"]).await.0, 409, "the range is full");
    let output = site.reload("", "\"10.77.0.0/26\", \"10.78.0.0/24\"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "in force, and changed: segments.cluster_ranges\n");
    assert_eq!(stream.view().await.cluster_ranges.len(), 2);
    let (status, body) = site.node.request_segments("r-2", &["ipv4"]).await;
    assert_eq!((status, body["segments"][0].as_str()), (200, Some("10.78.0.0/26")));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_does_the_same_as_the_command() {
    let site = Site::start().await;
    let mut stream = site.node.watch().await;
    stream.view().await;
    configure(&site.program, "", "\"10.77.0.0/26\", \"fd77::/64\"");
    kill_process(Pid::from_child(site.program.server.as_ref().unwrap()), Signal::HUP).unwrap();
    assert_eq!(stream.view().await.cluster_ranges.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_change_and_what_is_held_or_wrong_is_refused_by_name_and_nothing_changes() {
    let site = Site::start().await;
    for (more, ranges, says) in [
        ("heartbeat_seconds = 3", "\"10.77.0.0/26\", \"10.78.0.0/24\"", "heartbeat_seconds cannot change"),
        ("", "\"10.78.0.0/24\"", "10.77.0.0/26 by edge-1"),
        ("nonsense = 1", "\"10.77.0.0/26\"", "nonsense"),
        ("", "\"10.77.0.0/26\", \"10.77.0.0/24\"", "overlap"),
    ] {
        let output = site.reload(more, ranges);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains(says) && said.contains("nothing was changed"), "{said}");
        assert_eq!(site.node.watch().await.view().await.cluster_ranges, ["10.77.0.0/26".parse().unwrap()]);
    }
    let output = site.reload("", "\"10.77.0.0/26\"");
    assert_eq!(text(&output.stdout), "in force, and changed: -\n", "the same again changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_networks_that_would_cut_nodes_off_are_refused_at_reload_and_at_start() {
    let mut site = Site::start().await;
    assert_eq!(site.node.report(&["192.168.1.10", "2001:db8:5::10"], 4500).await.0, 204);
    let mut stream = site.node.watch().await;
    let before = stream.view().await;
    let range = "\"10.77.0.0/26\"";
    let careless = [
        ("", format!("{range}, \"192.168.0.0/16\""), "192.168.1.10, an address of node edge-1"),
        ("", format!("{range}, \"2001:db8::/32\""), "2001:db8:5::10, an address of node edge-1"),
        ("networks = [\"192.168.0.0/16\"]", range.to_owned(), "192.168.1.10, an address of edge edge-1"),
    ];
    for (more, ranges, says) in &careless {
        let output = site.reload(more, ranges);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains(says) && said.contains("nothing was changed"), "{said}");
    }
    // No view changed: the next line belongs to the next configuration.
    assert!(site.reload("", &format!("{range}, \"10.78.0.0/24\"")).status.success());
    let after = stream.view().await;
    assert_eq!((after.cluster_ranges.len(), after.networks), (2, before.networks));
    site.program.kill();
    for (more, ranges, says) in &careless {
        configure(&site.program, more, &format!("{ranges}, \"10.78.0.0/24\""));
        let output = site.program.run(&["run", "--config", site.program.path("c.toml").to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(3));
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
    }
    // The range contains the controller's own address.
    let range = format!("{range}, \"10.78.0.0/24\"");
    for (ranges, name) in [("\"10.79.0.0/16\"", "10.79.0.1"), ("\"fd79::/64\"", "fd79::1")] {
        configure(&site.program, "", &format!("{range}, {ranges}"));
        let file = site.program.path("c.toml");
        let names = std::fs::read_to_string(&file).unwrap().replace("cloud.test", name);
        std::fs::write(&file, names).unwrap();
        let output = site.program.run(&["run", "--config", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(3));
        let said = text(&output.stderr);
        assert!(said.contains(&format!("{name}, where nodes reach this controller")), "{said}");
    }
    // The networks contain one address, and the other names do not resolve here: their addresses
    // for nodes are unknown.
    configure(&site.program, "networks = [\"10.96.0.0/12\", \"fd96::/64\"]", &range);
    let file = site.program.path("c.toml");
    let names = std::fs::read_to_string(&file).unwrap();
    let names = names.replace("\"cloud.test\"", "\"10.96.0.10\", \"fd96::10\", \"nowhere.invalid\"");
    std::fs::write(&file, names).unwrap();
    site.program.start();
    assert!(site.program.run(&["reload"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_start_on_ranges_that_lack_what_is_held() {
    let mut site = Site::start().await;
    site.program.kill();
    configure(&site.program, "", "\"10.78.0.0/24\"");
    let output = site.program.run(&["run", "--config", site.program.path("c.toml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("10.77.0.0/26 by edge-1"), "{}", text(&output.stderr));
}

#[test]
fn the_configuration_is_shown_with_its_sources_and_runs_without_a_file() {
    let program = Program::new();
    let mut command = program.command(&["config", "--json", "--heartbeat-seconds", "2"]);
    command.env("EDGE_CONTROLLER_SERVER_NAMES", "a.example,b.example");
    command.env("EDGE_CONTROLLER_SEGMENTS_CLUSTER_RANGES", "10.77.0.0/16");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let all: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let find = |key: &str| all.iter().find(|row| row["key"] == key).unwrap();
    assert_eq!(find("server_names")["value"], serde_json::json!(["a.example", "b.example"]));
    assert_eq!(find("server_names")["from"], "EDGE_CONTROLLER_SERVER_NAMES");
    assert_eq!(
        (&find("heartbeat_seconds")["value"], &find("heartbeat_seconds")["from"]),
        (&2.into(), &"--heartbeat-seconds".into())
    );
    assert_eq!(find("segments.v4_prefix")["from"], "default");
    assert_eq!(text(&output.stderr), "");
    let output = command.args(["--segments-quarantine-seconds", "0"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success() && said.starts_with("warning: segments.quarantine_seconds: with 0"), "{said}");
    let output = program.command(&["config"]).env("EDGE_CONTROLLER_SERVERNAMES", "x").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("EDGE_CONTROLLER_SERVERNAMES"), "{}", text(&output.stderr));
}
