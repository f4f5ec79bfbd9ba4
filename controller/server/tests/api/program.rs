//! Tests the program as an operator runs it: its commands, its exit codes, and its state after a
//! kill.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use hyper::Method;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::harness::{Cloud, Node};
use crate::process::{Program, exists, text};

#[test]
fn without_a_server_commands_say_so_and_end_with_3() {
    let output = Program::new().run(&["node", "list"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("no edge-controller answers on"), "{}", text(&output.stderr));
}

#[test]
fn a_bad_configuration_ends_with_3_and_names_key_and_file() {
    let program = Program::new();
    std::fs::write(program.path("c.toml"), "server_names = [\"x\"]\nsegment = 1\n").unwrap();
    let output = program.run(&["run", "--config", program.path("c.toml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert!(said.contains("c.toml") && said.contains("segment"), "{said}");
}

#[test]
fn a_token_stands_alone_on_standard_output_and_refusals_end_with_1() {
    let mut program = Program::new();
    program.start();
    let output = program.run(&["token", "create", "--role", "edge", "--node", "edge-1", "--ttl", "10m"]);
    assert!(output.status.success());
    let token: edge_types::JoinToken = text(&output.stdout).parse().unwrap();
    let listed = text(&program.run(&["token", "list"]).stdout);
    assert!(listed.contains(&token.id) && !listed.contains(&*token.secret));
    let refused = program.run(&["node", "label", "edge-1", "fabedge/edge-community=alpha"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("no node edge-1 is registered"), "{}", text(&refused.stderr));
    assert_eq!(program.run(&["token", "create"]).status.code(), Some(2));
    for former in
        [&["token", "delete", "-aB_3"][..], &["token", "delete", "--", "-aB_3"], &["token", "delete", "--json", "--x"]]
    {
        let refused = program.run(former);
        let said = text(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains("there is no token"), "{former:?}: {said}");
    }
    assert!(program.run(&["token", "delete", &token.id]).status.success());
    assert_eq!(program.json(&["token", "list"]), Value::Array(Vec::new()));
}

/// Scenario: a reader such as `head` closes its end of the pipe early.
#[test]
fn a_reader_that_goes_away_ends_no_command_with_an_error() {
    let mut program = Program::new();
    program.start();
    let config = program.path("c.toml");
    let config = config.to_str().unwrap();
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["status", "--watch"],
        &["status", "--watch", "--json"],
        &["node", "list"],
        &["segment", "list"],
        &["community", "list"],
        &["token", "list"],
        &["ca", "list"],
        &["crds"],
        &["config", "--config", config],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = program.command(args).stdout(writer).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {}", text(&output.stderr));
    }
}

/// `status --watch` of a running server, line by line.
struct Watching(Child, Receiver<String>);

impl Watching {
    fn start(program: &Program, args: &[&str]) -> Self {
        let mut child = program.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = std::sync::mpsc::channel();
        // It ends when the child is killed.
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self(child, receiver)
    }

    /// Returns the next line that is `wanted`. Lines that are not come without end.
    fn next(&self, wanted: impl Fn(&str) -> bool) -> String {
        let (mut shown, end) = (Vec::new(), Instant::now() + Duration::from_secs(30));
        loop {
            match self.1.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if wanted(&line) => return line,
                Ok(line) => shown.push(line),
                Err(error) => panic!("{error} after {shown:#?}"),
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_overview_shows_a_node_that_joins_and_a_server_that_comes_back() {
    let mut program = Program::new();
    program.start();
    let (table, json) = (
        Watching::start(&program, &["status", "--watch"]),
        Watching::start(&program, &["status", "--watch", "--json"]),
    );
    let count = |line: &str| serde_json::from_str::<Value>(line).unwrap()["nodes"].as_array().unwrap().len();
    let heading = |line: &str| line.starts_with("edge-controller ");
    assert!(table.next(heading).ends_with(": 0 nodes, 0 of them connected"));
    assert_eq!(count(&json.next(|_| true)), 0);
    let token = text(&program.run(&["token", "create", "--role", "edge"]).stdout).parse().unwrap();
    let ca = CertificateDer::from_pem_file(program.path("state/ca.crt")).unwrap();
    let node = Node::join(program.addresses[0], ca, &token, "edge-1").await;
    json.next(|line| count(line) == 1);
    table.next(|line| line.ends_with(": 1 nodes, 0 of them connected"));
    assert!(table.next(|line| line.contains("edge-1")).contains("never"));
    let mut stream = node.watch().await;
    stream.view().await;
    table.next(|line| line.ends_with(": 1 nodes, 1 of them connected"));
    program.kill();
    program.start();
    table.next(|line| line.ends_with(": 1 nodes, 0 of them connected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_shows_what_is_well_and_what_is_not_and_filters_choose_nodes() {
    let cloud = Cloud::with(
        "cluster_ranges = [\"10.77.0.0/24\", \"fd77::/118\"]\nmin_per_node = 1\nreserved = [\"10.77.0.128/25\"]",
    )
    .await;
    let (edge, hub) = (cloud.node("edge", "edge-1").await, cloud.node("hub", "cloud-1").await);
    cloud.node("edge", "edge-2").await;
    cloud.label("edge-1", Some("alpha")).await;
    let report = |tunnels: Value, obstacles: Value| json!({"addresses": ["192.0.2.1"], "port": 4500, "tunnels": tunnels, "version": "7.8.9", "obstacles": obstacles});
    let obstacle = "chain FORWARD of ufw drops packets";
    let mut well = report(json!({"up": 1, "wanted": 1}), json!([]));
    let traffic =
        json!({"received": 3_400_000_000_u64, "sent": 999, "received_per_second": 1_250_000, "sent_per_second": 0});
    well["traffic"] = traffic.clone();
    assert_eq!(hub.ask(Method::PUT, "", Some(well)).await.0, 204);
    let obstructed = report(json!({"up": 1, "wanted": 2, "down": ["edge-2"]}), json!([obstacle]));
    assert_eq!(edge.ask(Method::PUT, "", Some(obstructed)).await.0, 204);
    let (mut of_edge, mut of_hub) = (edge.watch().await, hub.watch().await);
    of_edge.view().await;
    of_hub.view().await;
    let socket = cloud.directory.path().join("admin.sock");
    let run = |args: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-controller"));
        let output = command.args(args.split_whitespace()).env("EDGE_CONTROLLER_SOCKET", &socket).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, shown, _) = run("status");
    assert_eq!(code, 0);
    let line = |name: &str| {
        shown.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{shown}"))
    };
    for (name, words) in [
        ("edge-1 ", &["edge", "now", "1 of 2", "7.8.9", "alpha", "10.77.0.0/26", "left"][..]),
        ("edge-2 ", &["never", "10.77.0.64/26"]),
        ("cloud-1 ", &["hub", "now", "1 of 1", "in 1.2 MB/s, 3.4 GB"]),
        ("out", &["0 B/s, 999 B"]),
        // Two of four segments are reserved, and the other two are held.
        ("10.77.0.0/24", &["100%", "████████████████████", "2 held", "0 free of 4 (/26)"]),
        ("fd77::/118", &["50%", "██████████░░░░░░░░░░", "2 held", "2 free of 4 (/120)"]),
        ("alpha", &["1 of 1", "edge-1"]),
    ] {
        assert!(words.iter().all(|word| line(name).contains(word)), "{name} {words:?}:\n{shown}");
    }
    for problem in [
        "edge-1: 1 of 2 tunnels are down, to edge-2",
        &format!("edge-1: {obstacle}"),
        "edge-2: it has never connected",
        "no segment is left in 10.77.0.0/24",
    ] {
        assert!(shown.contains(problem), "{problem}:\n{shown}");
    }
    let (_, of_hub_alone, _) = run("status --json cloud-1");
    assert_eq!(serde_json::from_str::<Value>(&of_hub_alone).unwrap()["nodes"][0]["traffic"], traffic);
    let names = |args: &str| {
        let (code, shown, said) = run(&format!("status --json {args}"));
        assert_eq!(code, 0, "{said}");
        let status: Value = serde_json::from_str(&shown).unwrap();
        let names = status["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    for (filters, expected) in [
        ("--role edge", "edge-1 edge-2"),
        ("--role hub", "cloud-1"),
        ("--community alpha", "edge-1"),
        ("--problems", "edge-1 edge-2"),
        ("--problems --community alpha", "edge-1"),
        ("cloud-1 edge-2", "cloud-1 edge-2"),
        ("cloud-1 --problems", ""),
    ] {
        assert_eq!(names(filters), expected, "{filters}");
    }
    let (code, shown, _) = run("status cloud-1");
    assert!(code == 0 && shown.contains("no problems") && !shown.contains("10.77.0.0/24"), "{shown}");
    let (code, _, said) = run("status nobody");
    assert!(code == 1 && said.contains("no node nobody is registered"), "{said}");
    // The values from before the disconnection stay, with the time.
    drop(of_edge);
    let away = async {
        loop {
            let (_, status) = cloud.operator(Method::GET, "/v1/status", None).await;
            let node = status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == "edge-1").unwrap();
            if node["connected"] == false {
                return node.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let node = tokio::time::timeout(Duration::from_secs(60), away).await.expect("the stream ends");
    assert!(node["last_seen"].as_i64().unwrap() > 0 && node["version"] == "7.8.9", "{node}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_commands_show_nodes_with_labels_their_segments_and_communities() {
    let cloud = Cloud::start().await;
    cloud.node("edge", "edge-1").await;
    cloud.node("hub", "cloud-1").await;
    let run = |args: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-controller"));
        command.args(args.split(' ')).env("EDGE_CONTROLLER_SOCKET", cloud.directory.path().join("admin.sock"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let labelled = run("node label edge-1 fabedge/edge-community=alpha");
    assert!(labelled.contains("fabedge/edge-community=alpha"), "{labelled}");
    for (args, expected) in [
        ("node list", ["edge-1", "alpha", "10.77.0.0/26"]),
        ("node list", ["cloud-1", "hub", "fd77::/120"]),
        ("node show edge-1", ["fabedge/edge-community=alpha", "labels", "fd77::/120"]),
        ("segment list", ["10.77.0.0/26", "edge-1", "held"]),
        ("community list", ["COMMUNITY", "alpha", "edge-1"]),
    ] {
        let shown = run(args);
        assert!(expected.iter().all(|word| shown.contains(word)), "{args}:\n{shown}");
        let json: Value = serde_json::from_str(&run(&format!("{args} --json"))).unwrap();
        assert!(json.to_string().contains(expected[1]), "{args} --json: {json}");
    }
    run("node label edge-1 fabedge/edge-community-");
    assert_eq!(run("community list --json").trim(), "[]");
    // A community without a registered member, and one with some.
    run("community set beta later");
    run("community set gamma edge-1 later sooner");
    let rows: Vec<Vec<String>> =
        run("community list").lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    assert_eq!(
        rows,
        [
            &["COMMUNITY", "TUNNELS", "MEMBERS", "NOT", "REGISTERED"][..],
            &["beta", "auto", "-", "later"],
            &["gamma", "auto", "edge-1", "later"],
            &["sooner"]
        ]
    );
    // What is not named stays as it is.
    run("community set gamma --tunnels on-demand");
    run("community set gamma edge-1 later sooner");
    run("community set beta later --tunnels eager");
    run("community set beta --tunnels auto");
    let json: Value = serde_json::from_str(&run("community list --json")).unwrap();
    assert_eq!(
        json[0],
        json!({"name": "beta", "members": [], "not_registered": ["later"], "listed": ["later"], "tunnels": "auto"})
    );
    assert_eq!(json[1]["tunnels"], "on-demand");
    let overview = run("status");
    for words in [["beta", "0 of 1", "auto", "later"], ["gamma", "0 of 3", "on-demand", "later sooner"]] {
        let row = |line: &str| line.trim_start().starts_with(words[0]) && words.iter().all(|word| line.contains(word));
        assert!(overview.lines().any(row), "{words:?}:\n{overview}");
    }
    run("community delete beta");
    run("community delete gamma");
    assert_eq!(run("community list --json").trim(), "[]");
    let released = run("node deregister edge-1");
    assert!(released.contains("certificate is refused") && released.contains("quarantined until"), "{released}");
}

#[test]
fn a_closed_standard_output_is_no_failure_of_a_command_unless_a_token_is_lost() {
    let mut program = Program::new();
    program.start();
    // As after `| head`: the output has no reader.
    let unread = |args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        program.command(args).stdout(writer).output().unwrap()
    };
    let config = format!("config --config {}", program.path("c.toml").display());
    let config_json = format!("{config} --json");
    let commands = ["node list", "node list --json", "ca list", "token list", "crds", "reload", &config, &config_json];
    for args in commands {
        let output = unread(&args.split(' ').collect::<Vec<_>>());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{args}");
    }
    for args in ["token create --role edge", "token create --role edge --json"] {
        let output = unread(&args.split(' ').collect::<Vec<_>>());
        let said = text(&output.stderr);
        let tokens = program.json(&["token", "list"]);
        let id = tokens[0]["id"].as_str().unwrap();
        assert!(!output.status.success() && said.contains(&format!("token delete {id}")), "{said}");
        assert!(program.run(&["token", "delete", id]).status.success());
    }
    // A full disk is an error.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = program.command(&["node", "list"]).stdout(full).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(3) && said.contains("cannot write to standard output"), "{said}");
}

#[test]
fn after_a_kill_everything_that_was_answered_is_there() {
    let mut program = Program::new();
    program.start();
    let ids: Vec<Value> = (0..5).map(|_| program.json(&["token", "create", "--role", "edge"])["id"].clone()).collect();
    program.kill();
    assert!(exists(&program.path("run/admin.sock")), "a killed server leaves its socket");
    program.start();
    let listed = program.json(&["token", "list"]);
    let listed: Vec<&Value> = listed.as_array().unwrap().iter().map(|row| &row["id"]).collect();
    assert!(ids.iter().all(|id| listed.contains(&id)));
}

#[test]
fn a_store_that_was_cut_or_damaged_is_named_and_not_begun_anew_and_serves_again_when_it_is_restored() {
    let mut program = Program::new();
    program.start();
    let id = program.json(&["token", "create", "--role", "edge"])["id"].clone();
    program.kill();
    let path = program.path("state/controller.redb");
    let whole = std::fs::read(&path).unwrap();
    let last = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let cut = [0, 1, 64, 500, 4096, whole.len() / 2, last].map(|length| whole[..length].to_vec());
    let zeroed = |from: usize, to: usize| {
        let mut damaged = whole.clone();
        damaged[from..to].fill(0);
        damaged
    };
    for content in cut.into_iter().chain([zeroed(0, 64), zeroed(0, whole.len()), vec![0x5a; whole.len()]]) {
        std::fs::write(&path, &content).unwrap();
        let said = program.does_not_start();
        assert!(said.contains(path.to_str().unwrap()), "{} bytes: {said}", content.len());
        assert!(said.contains("restore a backup") && !said.contains("panicked"), "{said}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), content.len() as u64, "{said}");
    }
    std::fs::write(&path, &whole).unwrap();
    program.start();
    assert_eq!(program.json(&["token", "list"])[0]["id"], id);
}

#[test]
fn without_the_store_that_belongs_to_its_authority_it_does_not_begin_anew() {
    let mut program = Program::new();
    program.start();
    let id = program.json(&["token", "create", "--role", "edge"])["id"].clone();
    program.kill();
    let (path, aside) = (program.path("state/controller.redb"), program.path("aside.redb"));
    std::fs::rename(&path, &aside).unwrap();
    let said = program.does_not_start();
    assert!(said.contains(path.to_str().unwrap()) && said.contains("restore a backup"), "{said}");
    assert!(!exists(&path), "nothing is made in its place");
    std::fs::rename(&aside, &path).unwrap();
    program.start();
    assert_eq!(program.json(&["token", "list"])[0]["id"], id);
}

#[test]
fn a_second_server_on_the_same_state_is_refused() {
    let mut program = Program::new();
    program.start();
    let output = program.run(&["run", "--config", program.path("c.toml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("another edge-controller"), "{}", text(&output.stderr));
    assert!(program.run(&["node", "list"]).status.success(), "the first serves on");
}
