//! Tests backups and moves from one store to another with the real program.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use crate::harness::{Node, detail, kind, monitoring_page};
use crate::process::{Program, exists, text};
use edge_types::JoinToken;
use hyper::Method;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

/// A program that serves one node and has join tokens.
struct Site {
    program: Program,
    node: Node,
    unused: JoinToken,
}

impl Site {
    async fn start() -> Self {
        let mut program = Program::new();
        program.start();
        let token =
            |program: &Program| text(&program.run(&["token", "create", "--role", "edge"]).stdout).parse().unwrap();
        let node = Node::join(program.addresses[0], ca(&program), &token(&program), "edge-1").await;
        assert!(program.run(&["node", "label", "edge-1", "fabedge/edge-community=alpha"]).status.success());
        let unused = token(&program);
        Self { program, node, unused }
    }
}

fn ca(program: &Program) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(program.path("state/ca.crt")).unwrap()
}

fn done(program: &Program, args: &[&str]) -> String {
    let output = program.run(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stderr)
}

/// Runs a command that must be refused, and returns its error text.
fn refused(program: &Program, args: &[&str]) -> String {
    let output = program.run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stderr));
    text(&output.stderr)
}

/// Returns the lines of an archive, without the lines that contain its time.
fn rows(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines()
        .filter(|line| !line.starts_with("{\"header\"") && !line.starts_with("{\"end\""))
        .map(Into::into)
        .collect()
}

/// Sends a report as an agent does before it follows its view. Returns the HTTP status.
async fn reports(node: &Node, segments: &[String]) -> u16 {
    let report = json!({"addresses": ["192.0.2.1"], "port": 4500, "segments": segments});
    node.ask(Method::PUT, "", Some(report)).await.0
}

/// Returns the segments of a node's view.
async fn held(node: &Node) -> Vec<String> {
    node.watch().await.view().await.segments.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_is_the_same_controller_to_its_nodes() {
    let mut site = Site::start().await;
    let before = site.node.watch().await.view().await;
    let file = site.program.path("backup");
    let message = done(&site.program, &["backup", file.to_str().unwrap()]);
    assert!(
        message.contains("1 nodes, 1 segments (1 held), 2 tokens") && message.contains("private keys"),
        "{message}"
    );
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let content = std::fs::read_to_string(&file).unwrap();
    assert!(!content.contains(&*site.unused.secret), "tokens are in it as hashes");

    let mut other = Program::new();
    let config = other.path("c.toml");
    let restore = ["restore", file.to_str().unwrap(), "--config", config.to_str().unwrap()];
    done(&other, &restore);
    other.start();
    site.node.move_to_address(other.addresses[0]);
    let mut after = site.node.watch().await.view().await;
    assert!(after.version > before.version, "nodes take it for newer");
    after.version = before.version;
    assert_eq!(after, before);
    assert_eq!(reports(&site.node, &[]).await, 204);
    Node::join(other.addresses[0], ca(&other), &site.unused, "edge-2").await;
    assert_eq!(other.json(&["segment", "list"]).as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_a_node_uses_is_granted_to_no_other_after_an_old_backup_was_restored() {
    let mut site = Site::start().await;
    let file = site.program.path("backup");
    done(&site.program, &["backup", file.to_str().unwrap()]);
    let (_, later) = site.node.request_segments("after the backup", &["ipv4"]).await;
    let later = later["segments"][0].as_str().unwrap().to_owned();
    let held = site.node.watch().await.view().await.segments;
    assert_eq!(held.len(), 2);

    let mut other = Program::new();
    let config = other.path("c.toml");
    done(&other, &["restore", file.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    other.start();
    site.node.move_to_address(other.addresses[0]);
    // The node acts like an agent: it reports first and then follows its view.
    let report = |segments: &[String]| json!({"addresses": ["192.0.2.1"], "port": 4500, "segments": segments});
    let uses: Vec<String> = held.iter().map(ToString::to_string).collect();
    assert_eq!(site.node.ask(hyper::Method::PUT, "", Some(report(&uses))).await.0, 204);
    assert_eq!(
        site.node.watch().await.view().await.segments.len(),
        2,
        "it keeps the one that the backup does not know"
    );
    let second = Node::join(other.addresses[0], ca(&other), &site.unused, "edge-2").await;
    let granted = second.watch().await.view().await.segments;
    assert!(granted.iter().all(|segment| !held.contains(segment)), "{granted:?} of {held:?}");

    // A node that uses another node's segment does not get that segment, and the operator sees the
    // node.
    let claims = [granted[0].to_string(), later.clone(), "10.99.0.0/28".to_owned()];
    assert_eq!(second.ask(hyper::Method::PUT, "", Some(report(&claims))).await.0, 204);
    assert_eq!(second.watch().await.view().await.segments, granted);
    let nodes = other.json(&["node", "list"]);
    let conflicts = |n: usize| nodes[n]["conflicts"].as_array().unwrap().clone();
    assert!(conflicts(0).is_empty(), "{nodes}");
    let message: Vec<String> = conflicts(1).iter().map(|conflict| conflict.as_str().unwrap().to_owned()).collect();
    assert!(message.len() == 2 && message[0].contains(&later) && message[0].contains("node edge-1's"), "{message:?}");
    let shown = text(&other.run(&["node", "list"]).stdout);
    assert!(shown.contains("edge-2: it uses") && shown.contains("10.99.0.0/28"), "{shown}");
    // After a correct report no conflict is shown any more.
    assert_eq!(second.ask(hyper::Method::PUT, "", Some(report(&claims[..1]))).await.0, 204);
    assert_eq!(other.json(&["node", "list"])[1]["conflicts"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_old_backup_nothing_is_granted_before_every_edge_has_reported_what_it_uses() {
    let mut site = Site::start().await;
    let token = |program: &Program| text(&program.run(&["token", "create", "--role", "edge"]).stdout).parse().unwrap();
    let (address, authority) = (site.program.addresses[0], ca(&site.program));
    Node::join(address, authority, &token(&site.program), "edge-gone").await;
    let file = site.program.path("backup");
    done(&site.program, &["backup", file.to_str().unwrap()]);
    site.node.request_segments("after the backup", &["ipv4"]).await;
    let uses = held(&site.node).await;
    assert_eq!(uses.len(), 2);

    let mut other = Program::new();
    let config = other.path("c.toml");
    done(&other, &["restore", file.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    other.start();
    // A new node takes the next segment, which edge-1 uses.
    let mut second = Node::join(other.addresses[0], ca(&other), &site.unused, "edge-2").await;
    assert!(held(&second).await.is_empty());
    let refused = second.request_segments("r", &["ipv4"]).await;
    assert_eq!(kind(&refused), (503, "segments-withheld"));
    // A node does not get the names of the other edges; only the operator does.
    let counts = |refused| detail(refused).contains("3 of the registered edges");
    assert!(counts(&refused) && !detail(&refused).contains("edge-gone"), "{}", detail(&refused));
    let ready = monitoring_page(other.addresses[1], "/readyz").await.1;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("[!]restore: no segment is granted"), "{ready}");
    assert!(ready.contains("edge-1, edge-2, edge-gone"), "{ready}");
    // A node that cannot read its disk reports, but without its segments.
    let unknown = json!({"addresses": ["192.0.2.1"], "port": 4500});
    assert_eq!(second.ask(Method::PUT, "", Some(unknown)).await.0, 204);
    let refused = second.request_segments("r", &["ipv4"]).await;
    assert!(counts(&refused), "{}", detail(&refused));
    assert_eq!(reports(&second, &[]).await, 204);
    // After a restart the controller still has the record of the restore and of the nodes that have
    // reported.
    other.kill();
    other.start();
    second.move_to_address(other.addresses[0]);
    let refused = second.request_segments("r", &["ipv4"]).await;
    assert!(detail(&refused).contains("2 of the registered edges have not reported yet"), "{refused:?}");

    site.node.move_to_address(other.addresses[0]);
    assert_eq!(reports(&site.node, &uses).await, 204);
    assert_eq!(held(&site.node).await, uses);
    let refused = second.request_segments("r", &["ipv4"]).await;
    assert!(detail(&refused).contains("1 of the registered edges"), "{refused:?}");
    let ready = monitoring_page(other.addresses[1], "/readyz").await.1;
    assert!(ready.contains("edge-gone") && !ready.contains("edge-1"), "{ready}");
    done(&other, &["node", "deregister", "edge-gone"]);
    let (status, granted) = second.request_segments("r", &["ipv4"]).await;
    assert_eq!(status, 200, "{granted}");
    assert!(!uses.contains(&granted["segments"][0].as_str().unwrap().to_owned()), "{granted} of {uses:?}");
    assert!(!monitoring_page(other.addresses[1], "/readyz").await.1.contains("restore: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_restore_a_node_claims_no_segment_that_it_was_never_granted() {
    let site = Site::start().await;
    let uses = held(&site.node).await;
    let claims = [uses[0].clone(), "10.77.9.0/26".to_owned()];
    assert_eq!(reports(&site.node, &claims).await, 204);
    assert_eq!(held(&site.node).await, uses);
    let message = site.program.json(&["node", "list"])[0]["conflicts"].to_string();
    assert!(message.contains("10.77.9.0/26") && message.contains("not known to be granted to it"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_brought_back_by_copying_counts_as_restored_once_the_operator_says_so() {
    let mut site = Site::start().await;
    let (store, copy) = (site.program.path("state/controller.redb"), site.program.path("copy"));
    site.program.stop();
    std::fs::copy(&store, &copy).unwrap();
    site.program.start();
    site.node.move_to_address(site.program.addresses[0]);
    site.node.request_segments("after the copy", &["ipv4"]).await;
    let uses = held(&site.node).await;
    let config = site.program.path("c.toml").to_str().unwrap().to_owned();
    let restored = ["restored", "--config", config.as_str()];
    assert!(refused(&site.program, &restored).contains("stop the server first"));
    site.program.stop();
    std::fs::copy(&copy, &store).unwrap();
    site.program.start();
    site.node.move_to_address(site.program.addresses[0]);
    assert_eq!(reports(&site.node, &uses).await, 204);
    assert_eq!(held(&site.node).await, uses[..1]);
    let message = site.program.json(&["node", "list"])[0]["conflicts"].to_string();
    assert!(message.contains(&uses[1]) && message.contains("edge-controller restored"), "{message}");

    site.program.stop();
    done(&site.program, &restored);
    site.program.start();
    site.node.move_to_address(site.program.addresses[0]);
    assert_eq!(reports(&site.node, &uses).await, 204);
    assert_eq!(held(&site.node).await, uses);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_taken_while_nodes_change_is_of_one_moment() {
    let site = Site::start().await;
    let program = &site.program;
    let create = || {
        program
            .command(&["token", "create", "--role", "edge"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let makers: Vec<_> = std::iter::repeat_with(create).take(20).collect();
    for round in 0..5 {
        let file = program.path(&format!("backup-{round}"));
        // The backup is read and checked before it gets its name.
        done(program, &["backup", file.to_str().unwrap()]);
    }
    makers.into_iter().for_each(|mut maker| assert!(maker.wait().unwrap().success()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_restored_over_a_running_server_or_over_what_is_there_unless_told() {
    let mut site = Site::start().await;
    let (file, config) = (site.program.path("backup"), site.program.path("c.toml"));
    done(&site.program, &["backup", file.to_str().unwrap()]);
    let restore = ["restore", file.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let replace = [&restore[..], &["--replace"]].concat();
    let said = refused(&site.program, &replace);
    assert!(said.contains("stop it first"), "{said}");
    site.program.kill();
    let said = refused(&site.program, &restore);
    assert!(said.contains("is not empty") && said.contains("controller.redb"), "{said}");
    let another = site.program.path("state/passwd");
    std::fs::write(&another, "another's").unwrap();
    let said = done(&site.program, &replace);
    assert!(exists(&another), "what is not the controller's stays");
    let (_, former) = said.split_once("the former content is in ").unwrap();
    let former = Path::new(former.split_once(';').unwrap().0).to_owned();
    assert!(exists(&former.join("controller.redb")) && exists(&former.join("ca.json")), "{said}");
    site.program.start();
    assert_eq!(site.program.json(&["node", "list"])[0]["name"], "edge-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_restored_into_a_directory_that_others_share() {
    let site = Site::start().await;
    let file = site.program.path("backup");
    done(&site.program, &["backup", file.to_str().unwrap()]);
    let other = Program::new();
    let (directory, another) = (other.path("state"), other.path("state/passwd"));
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(&another, "another's").unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    let restore = ["restore", file.to_str().unwrap(), "--replace", "--config"];
    let said = refused(&other, &[&restore[..], &[other.path("c.toml").to_str().unwrap()]].concat());
    assert!(said.contains("state_dir") && said.contains("name a directory of its own"), "{said}");
    assert!(exists(&another) && std::fs::read_dir(&directory).unwrap().count() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_restored_where_the_store_is_not_in_the_state_directory() {
    let site = Site::start().await;
    let file = site.program.path("backup");
    done(&site.program, &["backup", file.to_str().unwrap()]);
    let restore = |other: &Program| {
        let config = other.path("c.toml");
        ["restore", file.to_str().unwrap(), "--replace", "--config", config.to_str().unwrap()].map(str::to_owned)
    };
    let segments = "cluster_ranges = [\"10.77.0.0/16\"]\n[kubernetes]\n";
    let other = Program::with(segments);
    let said = refused(&other, &restore(&other).each_ref().map(String::as_str));
    assert!(said.contains("at the Kubernetes API server") && said.contains("edge-controller import"), "{said}");
    assert!(!exists(&other.path("state")));
    let other = Program::with(&format!("{segments}store = false\n"));
    done(&other, &restore(&other).each_ref().map(String::as_str));
    assert!(exists(&other.path("state/controller.redb")));
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_in_a_directory_are_named_after_the_time_and_only_the_latest_are_kept() {
    let mut site = Site::start().await;
    let program = &site.program;
    let directory = program.path("backups");
    std::fs::create_dir(&directory).unwrap();
    let older = ["edge-controller-20250101T000000Z.archive", "edge-controller-20250102T000000Z.archive"];
    let foreign = ["edge-controller-notes.archive", "edge-controller-20240101T000000Z.archive.gpg", "other"];
    for name in older.iter().chain(&foreign) {
        std::fs::write(directory.join(name), "x").unwrap();
    }
    let names = || {
        let mut names: Vec<String> =
            std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !foreign.contains(&name.as_str()));
        names.sort();
        names
    };
    done(program, &["backup", directory.to_str().unwrap()]);
    let kept = names();
    assert_eq!((kept.len(), &kept[..2]), (3, &older.map(String::from)[..]), "without --keep nothing is removed");
    assert!(!rows(&directory.join(&kept[2])).is_empty());
    site.program.kill();
    let program = &site.program;
    let config = program.path("c.toml");
    let args = ["export", directory.to_str().unwrap(), "--keep", "2", "--config", config.to_str().unwrap()];
    done(program, &args);
    let now = names();
    // Both archives may have been made in the same second.
    assert!(now.len() == 2 && !now.contains(&older[0].to_owned()) && now[1] >= kept[2], "{now:?}");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2 + foreign.len());
    let file = program.path("file");
    let said =
        refused(program, &["export", file.to_str().unwrap(), "--keep", "2", "--config", config.to_str().unwrap()]);
    assert!(said.contains("is for a directory") && !exists(&file), "{said}");
}

/// Scenario: earlier releases wrote the rows of a node that had just been deregistered, or was just
/// joining.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_a_segment_of_no_node_is_restored_and_the_segment_is_in_quarantine() {
    let site = Site::start().await;
    let file = site.program.path("backup");
    done(&site.program, &["backup", file.to_str().unwrap()]);
    let whole = std::fs::read_to_string(&file).unwrap();
    let rest: Vec<&str> =
        whole.lines().filter(|line| !line.starts_with("{\"node\"") && !line.starts_with("{\"end\"")).collect();
    let mut orphaned = rest.join("\n") + "\n";
    let digest = ring::digest::digest(&ring::digest::SHA256, orphaned.as_bytes());
    let sha256 = edge_controller_domain::ca::hex(digest.as_ref());
    orphaned += &format!("{{\"end\":{{\"lines\":{},\"sha256\":\"{sha256}\"}}}}\n", rest.len());
    std::fs::write(&file, orphaned).unwrap();
    let mut other = Program::new();
    let config = other.path("c.toml");
    let said = done(&other, &["restore", file.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    assert!(said.contains("1 of nodes that are not registered"), "{said}");
    other.start();
    let segments = other.json(&["segment", "list"]);
    assert_eq!((&segments[0]["node"], &segments[0]["state"]), (&"edge-1".into(), &"quarantined".into()), "{segments}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_cut_altered_or_newer_change_nothing() {
    let site = Site::start().await;
    let file = site.program.path("backup");
    done(&site.program, &["backup", file.to_str().unwrap()]);
    let whole = std::fs::read_to_string(&file).unwrap();
    let other = Program::new();
    let (bad, config) = (other.path("bad"), other.path("c.toml"));
    for (content, says) in [
        (whole[..whole.len() / 2].to_owned(), "cut short"),
        (whole[..whole.rfind("{\"end\"").unwrap()].to_owned(), "cut short"),
        (whole.replacen("edge-1", "edge-2", 1), "damaged"),
        (whole.replacen("\"version\":1", "\"version\":2", 1), "newer release"),
        ("PK\u{3}\u{4}".to_owned(), "not an archive"),
    ] {
        std::fs::write(&bad, content).unwrap();
        for verb in ["restore", "import"] {
            let said = refused(&other, &[verb, bad.to_str().unwrap(), "--config", config.to_str().unwrap()]);
            assert!(said.contains(says) && said.contains("nothing was changed"), "{verb}: {said}");
            assert!(!exists(&other.path("state")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_exported_is_imported_whole_again_and_again_and_only_into_an_empty_store() {
    let mut site = Site::start().await;
    let path = |name: &str| site.program.path(name).to_str().unwrap().to_owned();
    let (backup, export, config) = (path("backup"), path("export"), path("c.toml"));
    done(&site.program, &["backup", &backup]);
    let output = site.program.run(&["export", &export, "--config", &config]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("another edge-controller") && said.contains("backup"), "{said}");
    site.program.kill();
    done(&site.program, &["export", &export, "--config", &config]);
    assert_eq!(rows(Path::new(&export)), rows(Path::new(&backup)));

    let mut other = Program::new();
    let into = other.path("c.toml").to_str().unwrap().to_owned();
    let message = done(&other, &["import", &export, "--config", &into]);
    assert!(message.contains("4 rows were not there yet"), "{message}");
    let message = done(&other, &["import", &export, "--config", &into]);
    assert!(message.contains("0 rows were not there yet"), "{message}");
    let again = other.path("again");
    done(&other, &["export", again.to_str().unwrap(), "--config", &into]);
    assert_eq!(rows(&again), rows(Path::new(&export)));

    other.start();
    other.run(&["token", "create", "--role", "hub"]);
    other.kill();
    let said = refused(&other, &["import", &export, "--config", &into]);
    assert!(said.contains("the store is not empty: it holds token"), "{said}");
    let mut third = Program::new();
    third.start();
    third.kill();
    let said = refused(&third, &["import", &export, "--config", third.path("c.toml").to_str().unwrap()]);
    assert!(said.contains("another certificate authority"), "{said}");
}

/// Makes an archive with many rows, for work that takes a while.
fn large(site: &Site) -> String {
    let whole = std::fs::read_to_string(site.program.path("backup")).unwrap();
    let mut lines: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.pop();
    let node = lines.iter().find(|line| line.get("node").is_some()).unwrap().clone();
    for index in 0..200 {
        let mut node = node.clone();
        node["node"]["name"] = json!(format!("node-{index}"));
        lines.push(node);
    }
    let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let hash = edge_controller_domain::ca::hex(hash.as_ref());
    text.push_str(&format!("{}\n", json!({"end": {"lines": lines.len(), "sha256": hash}})));
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_or_restore_that_is_killed_anywhere_leaves_nothing_half_and_goes_on_when_repeated() {
    let site = Site::start().await;
    done(&site.program, &["backup", site.program.path("backup").to_str().unwrap()]);
    let file = site.program.path("large");
    std::fs::write(&file, large(&site)).unwrap();
    let file = file.to_str().unwrap();
    for (verb, round) in ["import", "restore"].into_iter().flat_map(|verb| (0..4).map(move |round| (verb, round))) {
        let mut other = Program::new();
        let config = other.path("c.toml").to_str().unwrap().to_owned();
        let mut child = other.command(&[verb, file, "--config", &config]).spawn().unwrap();
        #[expect(clippy::disallowed_methods, reason = "it chooses the moment of a kill")]
        std::thread::sleep(std::time::Duration::from_millis(20 * round));
        // The process may have ended already.
        let _ = child.kill();
        child.wait().unwrap();
        let started = other.command(&["export", "-", "--config", &config]).output().unwrap();
        if started.status.success() {
            let held = text(&started.stdout).lines().filter(|line| line.starts_with("{\"node\"")).count();
            assert!(held == 0 || held == 201, "{verb}: {held} nodes after {round}");
        }
        let replace: &[&str] = if verb == "restore" { &["--replace"] } else { &[] };
        done(&other, &[&[verb, file, "--config", &config], replace].concat());
        other.start();
        assert_eq!(other.json(&["node", "list"]).as_array().unwrap().len(), 201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_interrupted_restore_no_server_starts_on_what_is_left() {
    let program = Program::new();
    std::fs::create_dir_all(program.path("state/restoring")).unwrap();
    let output = program.run(&["run", "--config", program.path("c.toml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert!(said.contains("a restore was interrupted") && said.contains("--replace"), "{said}");
    assert!(!exists(&program.path("state/ca.json")), "nothing new was begun");
}
