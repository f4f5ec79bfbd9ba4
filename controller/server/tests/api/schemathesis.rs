//! Checks the OpenAPI document against the running server with schemathesis, using valid and
//! invalid requests, as the operator and as a node.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::harness::{Cloud, request_of};
use rcgen::KeyPair;
use tokio::net::{TcpListener, UnixStream};

/// Returns the path to which `.ci/install test` installs schemathesis.
fn program() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/schemathesis/bin/schemathesis");
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing: run .ci/install test", path.display());
    eprintln!("skipped: {} is missing; .ci/install test installs it", path.display());
    None
}

/// Relays a port to the admin socket, because schemathesis needs TCP.
async fn relay(socket: PathBuf) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = listener.accept().await {
            let mut inside = UnixStream::connect(&socket).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut outside, &mut inside).await });
        }
    });
    address
}

/// Runs schemathesis until it has tried every operation, for at most half a minute.
async fn run(cloud: &Cloud, url: &str, args: &[&str]) {
    let Some(program) = program() else { return };
    let directory = cloud.directory.path();
    let path = directory.join("schemathesis.toml");
    // A watch never ends. The server refuses with 422 what a schema cannot express: the content of
    // a certificate request, the form of an address, and that 592.0 is not an integer. A node that
    // requests certificates too often gets 429.
    let config = "[parameters]\n\"query.watch\" = \"false\"\n\"path.node\" = \"edge-1\"\n[checks.positive_data_acceptance]\n\
                  expected-statuses = [\"2xx\", 401, 403, 404, 409, 422, 429]\n";
    std::fs::write(&path, config).unwrap();
    let output = tokio::process::Command::new(program)
        .args(["--config-file", path.to_str().unwrap(), "--no-color", "run"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json"))
        .args(["--url", url, "--max-examples", "20", "--max-time", "30", "--seed", "1", "--request-timeout", "20"])
        // A reused connection may be closed at the same moment, because it had no request for five
        // seconds.
        .args(["--request-retries", "3"])
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_gets_what_the_document_says() {
    let cloud = Cloud::start().await;
    cloud.node("edge", "edge-1").await;
    let url = format!("http://{}", relay(cloud.directory.path().join("admin.sock")).await);
    // Without the node, most requests would only get 404.
    run(&cloud, &url, &["--exclude-operation-id", "deregister"]).await;
    // The requests had no other effect.
    assert_eq!(cloud.operator(hyper::Method::GET, "/v1/segments", None).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_what_the_document_says() {
    let cloud = Cloud::start().await;
    let key = KeyPair::generate().unwrap();
    let (_, body) = cloud.join(&cloud.token("edge", None).await, "edge-1", &request_of(&key)).await;
    let identity = cloud.directory.path().join("node.pem");
    std::fs::write(&identity, format!("{}{}", body["certificate"].as_str().unwrap(), key.serialize_pem())).unwrap();
    let ca = cloud.directory.path().join("state/ca.crt");
    let url = format!("https://{}", cloud.address());
    let args = ["--request-cert", identity.to_str().unwrap(), "--tls-verify", ca.to_str().unwrap()];
    run(&cloud, &url, &args).await;
}
