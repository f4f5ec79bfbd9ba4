//! Tests the move from FabEdge with the real program: what `import-fabedge` prints is put into the
//! configuration, `--apply` lists the communities, and the nodes join one after the other.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use edge_types::IpNetwork;
use edge_types::network::contains;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::harness::Node;
use crate::process::{Program, text};

/// Networks that FabEdge's nodes use until they are migrated. With them, one of the four segments
/// of the range is left.
const OF_FABEDGE: [&str; 2] = ["10.233.103.192/26", "10.233.103.0/25"];

fn resources() -> Value {
    let fabedge = "fabedge.io/v1alpha1";
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": fabedge, "kind": "Community", "metadata": {"name": "alpha"},
         "spec": {"members": ["beijing.edge1", "beijing.edge2", "beijing.connector", "shanghai.edge9"]}},
        {"apiVersion": fabedge, "kind": "Cluster", "metadata": {"name": "beijing"}, "spec": {"token": "secret-of-fabedge", "endPoints": [
            {"name": "beijing.connector", "type": "Connector", "publicAddresses": ["203.0.113.1"],
             "subnets": ["10.233.0.0/18"], "nodeSubnets": ["10.20.8.1"]},
            {"name": "beijing.edge1", "type": "EdgeNode", "publicAddresses": ["192.0.2.7"], "subnets": [OF_FABEDGE[0]]}]}},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge2", "annotations": {"fabedge.io/subnets": OF_FABEDGE[1]}}}
    ]})
}

/// Writes the configuration, with these lines before the first table and at the end of
/// `[segments]`.
fn configure(program: &Program, networks: &str, reserved: &str) {
    let config = format!(
        "server_names = [\"cloud.test\"]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = {:?}\nadmin_socket = {:?}\n{networks}\n\
         [observe]\nlisten = [\"127.0.0.1:0\"]\n[segments]\ncluster_ranges = [\"10.233.103.0/24\"]\n{reserved}\n",
        program.path("state"),
        program.path("run/admin.sock"),
    );
    std::fs::write(program.path("c.toml"), config).unwrap();
}

fn succeeds(program: &Program, args: &[&str]) -> (String, String) {
    let output = program.run(args);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    (text(&output.stdout), said)
}

async fn join(program: &Program, at: SocketAddr, name: &str) -> Node {
    let token = succeeds(program, &["token", "create", "--role", "edge"]).0.parse().unwrap();
    let ca = CertificateDer::from_pem_file(program.path("state/ca.crt")).unwrap();
    Node::join(at, ca, &token, name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_fabedge_are_migrated_one_by_one_while_the_others_keep_their_networks() {
    let mut program = Program::new();
    configure(&program, "", "");
    program.start();
    let at = program.addresses[0];
    let file = program.path("fabedge.json");
    std::fs::write(&file, resources().to_string()).unwrap();
    let import = ["import-fabedge", file.to_str().unwrap(), "--cluster", "beijing"];

    // Without `--apply` it only prints.
    let (printed, said) = succeeds(&program, &import);
    assert_eq!(program.json(&["community", "list"]), json!([]));
    for left in ["beijing.connector: every edge", "shanghai.edge9: it is of the cluster shanghai", "203.0.113.1"] {
        assert!(said.contains(left), "{left}: {said}");
    }
    assert!(!printed.contains("secret-of-fabedge") && !said.contains("secret-of-fabedge"));
    let line = |key: &str| printed.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{printed}"));
    // The controller accepts the printed lines as they are.
    configure(&program, line("networks = "), line("reserved = "));
    assert_eq!(succeeds(&program, &["reload"]).0, "in force, and changed: networks\nsegments.reserved\n");

    let (_, said) = succeeds(&program, &[&import[..], &["--apply"]].concat());
    assert!(said.contains("community alpha is listed"), "{said}");
    let listed = program.json(&["community", "list"]);
    let both = ["edge1", "edge2"];
    assert_eq!(
        listed,
        json!([{"name": "alpha", "members": [], "not_registered": both, "listed": both, "tunnels": "auto"}])
    );

    // The first node joins, and the other one still runs FabEdge.
    let first = join(&program, at, "edge1").await;
    let mut stream = first.watch().await;
    let view = stream.view().await;
    assert_eq!(view.communities.iter().map(ToString::to_string).collect::<Vec<_>>(), ["alpha"]);
    assert!(view.peers.is_empty(), "{view:?}");
    assert_eq!(view.segments.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.233.103.128/26"]);
    for of_fabedge in OF_FABEDGE.map(|network| network.parse::<IpNetwork>().unwrap()) {
        assert!(view.segments.iter().all(|segment| !contains(&of_fabedge, segment)), "{view:?}");
    }
    // There is no other segment as long as FabEdge's nodes use the rest.
    assert_eq!(first.request_segments("r-1", &["ipv4"]).await.0, 409);

    // The second node is migrated, and its network with it.
    let reserved = format!("reserved = [\"{}\"]", OF_FABEDGE[0]);
    configure(&program, line("networks = "), &reserved);
    succeeds(&program, &["reload"]);
    let second = join(&program, at, "edge2").await;
    let view = second.watch().await.view().await;
    let peers: BTreeSet<String> = view.peers.iter().map(|peer| peer.name.to_string()).collect();
    assert_eq!(peers, BTreeSet::from(["edge1".to_owned()]));
    assert!(view.segments.iter().all(|segment| !contains(&OF_FABEDGE[0].parse().unwrap(), segment)), "{view:?}");
    let view = stream.view().await;
    assert_eq!(view.peers.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["edge2"]);

    // Importing again changes nothing, neither does the removal of `reserved` take a segment.
    let segments = program.json(&["segment", "list"]);
    succeeds(&program, &[&import[..], &["--apply"]].concat());
    configure(&program, line("networks = "), "");
    succeeds(&program, &["reload"]);
    assert_eq!(program.json(&["segment", "list"]), segments);
    let listed = program.json(&["community", "list"]);
    assert_eq!(listed, json!([{"name": "alpha", "members": both, "listed": both, "tunnels": "auto"}]));
}

#[test]
fn an_import_keeps_the_members_that_the_operator_has_listed_meanwhile_unless_it_is_to_replace_them() {
    let mut program = Program::new();
    program.start();
    let file = program.path("fabedge.json");
    std::fs::write(&file, resources().to_string()).unwrap();
    let import = |more: &[&str]| {
        let import = ["import-fabedge", file.to_str().unwrap(), "--cluster", "beijing"];
        succeeds(&program, &[&import[..], more].concat()).1
    };
    let listed = || program.json(&["community", "list"])[0]["listed"].clone();
    succeeds(&program, &["community", "set", "alpha", "edge1", "edge7"]);
    succeeds(&program, &["community", "set", "beta", "edge7"]);

    let said = import(&["--apply"]);
    assert!(
        said.contains("community alpha: edge7 kept, which FabEdge does not have; --replace removes them"),
        "{said}"
    );
    assert_eq!(listed(), json!(["edge1", "edge2", "edge7"]));
    let said = import(&["--apply", "--replace"]);
    assert!(said.contains("community alpha: edge7 removed"), "{said}");
    assert_eq!(listed(), json!(["edge1", "edge2"]));
    assert!(!import(&["--apply"]).contains("which FabEdge does not have"));
    assert_eq!(program.json(&["community", "list"])[1]["listed"], json!(["edge7"]), "another community");
    assert_eq!(program.run(&["import-fabedge", file.to_str().unwrap(), "--replace"]).status.code(), Some(2));
}

#[test]
fn what_cannot_be_imported_changes_nothing_and_is_named() {
    let mut program = Program::new();
    let file = program.path("fabedge.json");
    std::fs::write(&file, resources().to_string()).unwrap();
    let import = |more: &[&str]| {
        let output = program.run(&[&["import-fabedge", file.to_str().unwrap()], more].concat());
        (output.status.code(), text(&output.stderr))
    };
    // Only `--apply` needs a server.
    assert_eq!(import(&["--cluster", "beijing"]).0, Some(0));
    let (code, said) = import(&["--cluster", "beijing", "--apply"]);
    assert!(code == Some(3) && said.contains("no edge-controller answers on"), "{said}");
    program.start();
    for (content, more, expected) in [
        (resources().to_string(), &[][..], "beijing, shanghai"),
        (resources().to_string(), &["--cluster", "paris"], "no node of the cluster paris"),
        ("{\"kind\": \"List\"".to_owned(), &[], "is not what kubectl get"),
        (json!({"kind": "List", "items": [{"kind": "Node", "apiVersion": "v1"}]}).to_string(), &[], "no Community"),
        ("[".repeat(100_000), &[], "is not what kubectl get"),
    ] {
        std::fs::write(program.path("fabedge.json"), content).unwrap();
        let output = program.run(&[&["import-fabedge", file.to_str().unwrap(), "--apply"], more].concat());
        let said = text(&output.stderr);
        assert!(!output.status.success() && output.status.code().is_some(), "{said}");
        assert!(said.contains(expected) && said.contains("fabedge.json"), "{expected}: {said}");
    }
    assert_eq!(program.json(&["community", "list"]), json!([]));
}
