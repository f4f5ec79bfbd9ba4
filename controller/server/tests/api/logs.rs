//! Tests the log of the running program.

use hyper::Method;

use crate::harness::{Node, kind};
use crate::process::{Program, text};
use crate::strangers::AttackTarget;

#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_a_node_is_logged_within_a_span_that_names_it_once() {
    let mut program = Program::new();
    program.start();
    let token = text(&program.run(&["token", "create", "--role", "edge", "--node", "edge-1"]).stdout);
    let target = AttackTarget::of(&program);
    let node = Node::join(target.address, target.ca.clone(), &token.parse().unwrap(), "edge-1").await;
    assert_eq!(kind(&node.ask(Method::GET, "/view?watch=perhaps", None).await), (422, "bad-value"));
    let mut stream = node.watch().await;
    stream.view().await;
    for command in [&["node", "label", "edge-1", "site=a"][..], &["node", "deregister", "edge-1"]] {
        let output = program.run(command);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    stream.ended().await;
    program.stop();
    let log = program.log();
    for event in ["joined", "refused:", "labelled", "deregistered ", "view stream ended"] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(event)).collect();
        let within = |line: &&str| line.contains(" request{node=edge-1}: ");
        assert!(!lines.is_empty() && lines.iter().all(within), "{event}:\n{log}");
    }
    let made = log.lines().find(|line| line.contains("join token made")).unwrap();
    assert!(made.contains(" request: "), "{made}");
}
