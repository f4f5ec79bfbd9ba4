//! Tests requests that are malformed, too large, or at the wrong path.

use crate::harness::{Cloud, Connection, detail, kind};
use hyper::Method;
use hyper::body::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn every_wrong_request_gets_its_own_problem() {
    let cloud = Cloud::start().await;
    let mut nobody = Connection::open(&cloud, None).await.unwrap();
    for (method, path, body, expected) in [
        (Method::GET, "/", "", (404, "no-such-path")),
        (Method::GET, "/v2/join", "", (404, "no-such-path")),
        (Method::GET, "/v1/join", "", (405, "method-not-allowed")),
        (Method::POST, "/v1/join", "", (400, "bad-json")),
        (Method::POST, "/v1/join", "{", (400, "bad-json")),
        (Method::POST, "/v1/join", "{\"token\":7}", (422, "bad-value")),
        // Without a valid token the response does not name the other errors.
        (Method::POST, "/v1/join", "{\"token\":\"a.b\",\"node\":\"Not_A_Name\",\"csr\":\"\"}", (403, "token-unknown")),
        (Method::GET, "/v1/nodes/UPPER/view", "", (401, "certificate-required")),
    ] {
        let response = nobody.ask_raw(method, path, Bytes::from(body)).await;
        assert_eq!(kind(&response), expected, "{path} {body}");
    }
    let token = cloud.token("edge", None).await;
    let body = format!("{{\"token\":\"{}\",\"node\":\"Not_A_Name\",\"csr\":\"\"}}", *token.credential());
    let refused = nobody.ask_raw(Method::POST, "/v1/join", body.into()).await;
    assert_eq!(kind(&refused), (422, "bad-value"));
    assert!(detail(&refused).contains("Not_A_Name"), "{}", detail(&refused));
    let node = cloud.node("edge", "a").await;
    assert_eq!(kind(&node.ask(Method::GET, "/view?watch=perhaps", None).await), (422, "bad-value"));
    let mut of_node = node.connect().await.unwrap();
    for path in ["/v1/nodes/UPPER/view", "/v1/nodes/%ff/view", "/v1/nodes/..%2f..%2fetc/view"] {
        let response = of_node.ask(Method::GET, path, None).await;
        assert_eq!(kind(&response), (422, "bad-value"), "{path}");
    }
}

#[tokio::test]
async fn unknown_keys_are_refused_from_the_operator_and_ignored_from_nodes_of_another_release() {
    let cloud = Cloud::start().await;
    let token = json!({"role": "edge", "ttl_seconds": 60, "uses": 1, "nodes": ["edge-1"]});
    let refused = cloud.operator(Method::POST, "/v1/tokens", Some(token)).await;
    assert_eq!(kind(&refused), (422, "bad-value"));
    assert!(detail(&refused).contains("nodes"), "{}", detail(&refused));
    let (_, tokens) = cloud.operator(Method::GET, "/v1/tokens", None).await;
    assert_eq!(tokens, json!([]));
    let node = cloud.node("edge", "edge-1").await;
    let report = json!({"addresses": ["192.0.2.1"], "port": 4500, "weather": "fine"});
    assert_eq!(node.ask(Method::PUT, "", Some(report)).await.0, 204);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_and_the_connection_lives() {
    let cloud = Cloud::start().await;
    let mut nobody = Connection::open(&cloud, None).await.unwrap();
    let huge = Bytes::from(vec![b' '; 65 * 1024]);
    assert_eq!(kind(&nobody.ask_raw(Method::POST, "/v1/join", huge).await), (413, "body-too-large"));
    assert_eq!(kind(&nobody.ask(Method::POST, "/v1/join", Some(json!({}))).await), (403, "token-unknown"));
}

/// Clients send only a part of a request. Each of them gets a response or is disconnected, and
/// delays no other client. The test takes as long as the time limits.
#[tokio::test]
async fn slow_writers_are_refused_or_cut_off() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "a").await;
    let send = async |part: &str| {
        let mut stream = node.connect_tls().await;
        stream.write_all(part.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        // A closed connection also ends the read.
        let _ = stream.read_to_end(&mut response).await;
        String::from_utf8(response).unwrap()
    };
    let (head, body) = tokio::join!(
        send("PUT /v1/nodes/a HTTP/1.1\r\nhost: x\r\nx-slow: "),
        send("PUT /v1/nodes/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 40\r\n\r\n{\"addresses\":"),
    );
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408"), "{head}");
    assert!(body.starts_with("HTTP/1.1 408") && body.contains("/problems/body-too-slow"), "{body}");
}

#[tokio::test]
async fn labels_that_cannot_be_are_refused_whole() {
    let cloud = Cloud::start().await;
    cloud.node("edge", "a").await;
    for value in ["a b", "-", "alpha_", "a/b"] {
        let patch = json!({"good": "yes", "fabedge/edge-community": value});
        let refused = cloud.operator(Method::PATCH, "/v1/nodes/a/labels", Some(patch)).await;
        assert_eq!(refused.0, 422, "{value}: {}", refused.1);
    }
    let (_, nodes) = cloud.operator(Method::GET, "/v1/nodes", None).await;
    assert_eq!(nodes[0]["labels"], json!({}));
}

#[tokio::test]
async fn garbage_and_plain_http_on_the_tls_port_disturb_nobody() {
    let cloud = Cloud::start().await;
    for garbage in [b"GET /v1/nodes HTTP/1.1\r\nhost: x\r\n\r\n".as_slice(), &[0xff; 300], b"\x16\x03\x01"] {
        let mut stream = tokio::net::TcpStream::connect(cloud.address()).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        // The server answers with an alert or nothing, and closes.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    cloud.node("edge", "a").await;
}
