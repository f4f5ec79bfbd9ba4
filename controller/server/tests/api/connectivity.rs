//! Tests the check of connectivity with the operator's command, and with clients that act as the
//! nodes' agents.

use std::process::Stdio;
use std::sync::Arc;

use edge_types::api::ViewEvent;
use edge_types::connectivity::{MeasurementReport, MeasurementRequest, PathMeasurement};
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::harness::{Cloud, Node, kind};

/// A function that returns whether the second node answers packets from the first one.
type Answers = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// Measures as an agent does, until the returned task is aborted. `addresses` are the node's own.
async fn measures(node: &Node, addresses: &[&str], answers: Answers) -> JoinHandle<()> {
    let mut stream = node.watch_with("&measures=true").await;
    stream.view().await;
    let (name, mut connection) = (node.name.clone(), node.connect().await.unwrap());
    let addresses: Vec<_> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    tokio::spawn(async move {
        loop {
            let Some(ViewEvent::Measure(request)) = stream.line().await else { continue };
            let report = json!(report(&name, &addresses, request, &answers));
            let path = format!("/v1/nodes/{name}/measurements");
            assert_eq!(connection.ask(Method::POST, &path, Some(report)).await.0, 204);
        }
    })
}

fn report(
    name: &str,
    addresses: &[std::net::IpAddr],
    request: MeasurementRequest,
    answers: &Answers,
) -> MeasurementReport {
    let MeasurementRequest { id, count, targets } = request;
    let path = |node: &edge_types::NodeName, address| PathMeasurement {
        node: node.clone(),
        tunnel: None,
        address,
        sent: address.map_or(0, |_| count),
        received: if address.is_some() && answers(name, node.as_str()) { count } else { 0 },
        round_trip: None,
        mtu: None,
        bits_per_second: None,
        error: None,
    };
    let paths = targets.iter().flat_map(|target| match target.addresses.is_empty() {
        true => vec![path(&target.node, None)],
        false => target.addresses.iter().map(|address| path(&target.node, Some(*address))).collect(),
    });
    MeasurementReport { id, addresses: addresses.to_vec(), paths: paths.collect(), refused: None }
}

fn command(cloud: &Cloud, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-controller"));
    command.arg("check-connectivity").args(args.split_whitespace()).kill_on_drop(true);
    command.env("EDGE_CONTROLLER_SOCKET", cloud.directory.path().join("admin.sock"));
    command
}

/// Runs the command. Returns its exit code, standard output and standard error.
async fn check(cloud: &Cloud, args: &str) -> (i32, String, String) {
    let output = command(cloud, args).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn results(cloud: &Cloud, args: &str) -> (i32, Value) {
    let (code, out, said) = check(cloud, &format!("{args} --json")).await;
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code}: {said}")))
}

/// Returns each result as `from to verdict address`.
fn described(document: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let result = |result: &Value| {
        let measured = &result["measured"];
        [&result["from"], &measured["node"], &result["verdict"], &measured["address"]].map(word).join(" ")
    };
    document["results"].as_array().unwrap().iter().map(result).collect()
}

/// Returns a controller with a hub and the edges a, b and c, which have IPv4 and IPv6 segments.
/// Edges a and b are in one community.
async fn cloud() -> (Cloud, [Node; 4]) {
    let cloud = Cloud::start().await;
    let hub = cloud.node("hub", "hub").await;
    let [a, b, c] = [cloud.node("edge", "a").await, cloud.node("edge", "b").await, cloud.node("edge", "c").await];
    for member in ["a", "b"] {
        cloud.label(member, Some("alpha")).await;
    }
    (cloud, [hub, a, b, c])
}

/// Returns whether views permit a path in [`cloud`].
fn permitted(from: &str, to: &str) -> bool {
    from == "hub" || to == "hub" || (from != "c" && to != "c")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_permitted_must_be_reached_and_what_is_forbidden_must_not() {
    let (cloud, nodes) = cloud().await;
    for node in &nodes {
        let own: &[&str] = if node.name == "hub" { &["10.244.0.1"] } else { &[] };
        measures(node, own, Arc::new(permitted)).await;
    }
    let (code, out, said) = check(&cloud, "").await;
    assert_eq!(code, 0, "{out}{said}");
    assert!(said.contains("checking 12 paths between 4 nodes"), "{said}");
    let row = |from: &str, to: &str| {
        let row = out.lines().find(|line| line.split_whitespace().take(2).eq([from, to]));
        row.unwrap_or_else(|| panic!("{from} {to} in {out}")).to_owned()
    };
    assert!(row("a", "b").contains("reached") && row("a", "b").contains("0%"), "{out}");
    assert!(row("a", "c").contains("separate") && row("a", "hub").contains("10.244.0.1"), "{out}");
    // Each edge has an address of each family. The hub has only the address that it reported.
    assert!(out.trim_end().ends_with("13 reached, 8 separate"), "{out}");

    let (code, all) = results(&cloud, "a b").await;
    assert_eq!((code, all["right"].as_bool()), (0, Some(true)));
    let expected = ["a b reached 10.77.0.65", "a b reached fd77::101", "b a reached 10.77.0.1", "b a reached fd77::1"];
    let addressless = |text: &String| text.split(' ').take(3).collect::<Vec<_>>().join(" ");
    assert_eq!(
        described(&all).iter().map(addressless).collect::<Vec<_>>(),
        expected.map(|text| addressless(&text.to_owned()))
    );
    assert_eq!(described(&results(&cloud, "--community alpha").await.1), described(&all));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_path_and_an_exposed_one_are_named_and_the_exit_code_is_1() {
    let (cloud, nodes) = cloud().await;
    let answers = |from: &str, to: &str| match (from, to) {
        ("a", "b") => false,
        ("c", "a") => true,
        _ => permitted(from, to),
    };
    for node in &nodes {
        measures(node, &[], Arc::new(answers)).await;
    }
    let (code, found) = results(&cloud, "a b c --problems").await;
    let named: Vec<String> =
        described(&found).iter().map(|text| text.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!((code, found["right"].as_bool()), (1, Some(false)));
    assert_eq!(named, ["a b unreached", "a b unreached", "c a exposed", "c a exposed"]);
    assert_eq!(found["verdicts"]["separate"], 6);
    let why = found["results"][0]["why"].as_str().unwrap();
    assert!(why.contains("`edge-agent diagnose b` on a"), "{why}");
    let (code, out, said) = check(&cloud, "a b c").await;
    assert_eq!(code, 1);
    assert!(said.contains("2 permitted but not reached, 2 reached although forbidden"), "{out}{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_are_too_old_or_away_are_named_and_paths_to_them_are_measured() {
    let (cloud, [hub, a, b, c]) = cloud().await;
    measures(&a, &[], Arc::new(permitted)).await;
    let report = json!({"addresses": ["192.0.2.1"], "port": 4500, "version": "0.0.9"});
    assert_eq!(b.ask(Method::PUT, "", Some(report)).await.0, 204);
    let mut old = b.watch().await;
    old.view().await;
    let (code, found) = results(&cloud, "a b c --problems").await;
    assert_eq!(code, 1);
    let why = |from: &str| {
        let all = found["results"].as_array().unwrap();
        all.iter().find(|result| result["from"] == from).unwrap()["why"].as_str().unwrap().to_owned()
    };
    assert!(why("b").contains("too old to measure (0.0.9)"), "{}", why("b"));
    assert!(why("c").contains("c is not connected to this controller"), "{}", why("c"));
    let named = described(&found);
    assert_eq!(named, ["b a unknown -", "b c unknown -", "c a unknown -", "c b unknown -"]);
    drop((hub, c));
    // The old agent received no line of an unknown type.
    cloud.label("b", None).await;
    assert!(matches!(old.news().await, ViewEvent::View { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_makes_others_send_packets_to_an_address_that_is_not_its_own() {
    let (cloud, [_, a, b, _]) = cloud().await;
    measures(&a, &[], Arc::new(permitted)).await;
    measures(&b, &["192.0.2.66", "10.77.0.1", "fd77::42"], Arc::new(permitted)).await;
    let (_, found) = results(&cloud, "a b").await;
    let to_b: Vec<String> = described(&found).into_iter().filter(|text| text.starts_with("a b")).collect();
    assert!(to_b.iter().all(|text| !text.contains("192.0.2.66") && !text.ends_with(" 10.77.0.1")), "{to_b:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_refuses_or_reports_nothing_leaves_its_paths_unknown() {
    let (cloud, [_, a, b, _]) = cloud().await;
    measures(&b, &[], Arc::new(permitted)).await;
    let mut stream = a.watch_with("&measures=true").await;
    stream.view().await;
    tokio::spawn(async move {
        loop {
            let ViewEvent::Measure(MeasurementRequest { id, targets, .. }) = stream.news().await else { continue };
            let refused = (!targets.is_empty()).then_some("busy\u{1b}[2J with something");
            let report = json!({"id": id, "refused": refused});
            assert_eq!(a.ask(Method::POST, "/measurements", Some(report)).await.0, 204);
        }
    });
    let (code, found) = results(&cloud, "a b --problems").await;
    assert_eq!((code, described(&found)), (1, vec!["a b unknown -".to_owned()]));
    assert_eq!(found["results"][0]["why"], "a: busy[2J with something");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_check_runs_at_a_time_and_ends_with_its_command() {
    let (cloud, [_, a, b, _]) = cloud().await;
    let [mut of_a, mut of_b] = [a.watch_with("&measures=true").await, b.watch_with("&measures=true").await];
    of_a.view().await;
    of_b.view().await;
    let mut first = command(&cloud, "a b").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(first.stderr.take().unwrap()).lines();
    assert!(said.next_line().await.unwrap().unwrap().contains("checking 2 paths"));
    // The nodes send no reports, so the first check is still running.
    assert!(matches!(of_a.news().await, ViewEvent::Measure(_)));
    let (code, _, refusal) = check(&cloud, "a b").await;
    assert_eq!(code, 1);
    assert!(refusal.contains("another check of connectivity runs"), "{refusal}");
    first.kill().await.unwrap();
    loop {
        // The server notices the end of the command a moment later.
        let mut next = command(&cloud, "a b").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let line = BufReader::new(next.stderr.take().unwrap()).lines().next_line().await.unwrap().unwrap();
        if line.contains("checking") {
            break;
        }
        assert!(line.contains("another check"), "{line}");
    }
}

#[tokio::test]
async fn a_report_that_nobody_waits_for_and_a_request_that_makes_no_sense_are_refused() {
    let (cloud, [_, a, ..]) = cloud().await;
    cloud.node("cloud", "cloud-2").await;
    let report = json!({"id": "00", "paths": []});
    assert_eq!(kind(&a.ask(Method::POST, "/measurements", Some(report)).await), (404, "no-such-measurement"));
    for (change, expected) in [
        (json!({"count": 0}), (422, "bad-value")),
        (json!({"count": 101}), (422, "bad-value")),
        (json!({"most_paths": 0}), (422, "bad-value")),
        (json!({"most_paths": 10_001}), (422, "bad-value")),
        (json!({"paths": 3}), (422, "bad-value")),
        (json!({"nodes": ["nobody"]}), (404, "no-such-node")),
        (json!({"nodes": ["cloud-2"]}), (422, "bad-value")),
        (json!({"communities": ["none"]}), (404, "no-such-community")),
    ] {
        let mut request = json!({"most_paths": 10, "count": 1});
        request.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let response = cloud.operator(Method::POST, "/v1/connectivity", Some(request)).await;
        assert_eq!(kind(&response), expected, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_two_nodes_there_is_nothing_to_check() {
    let cloud = Cloud::start().await;
    let (code, out, _) = check(&cloud, "").await;
    assert_eq!(code, 0);
    assert!(out.contains("there are no paths to check"), "{out}");
}
