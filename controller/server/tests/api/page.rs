//! Tests the page's routes: which are public, which need a session, and how sessions end.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::harness::{Cloud, Connection, detail, kind};
use crate::process::{Program, text};

pub(crate) const SERVED: &str = "cluster_ranges = [\"10.77.0.0/24\"]\n[page]\nlisten = [\"127.0.0.1:0\"]";

struct Response {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Response {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn ask(at: SocketAddr, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let stream = TcpStream::connect(at).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", at.to_string());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Response { status, headers, body: response.into_body().collect().await.unwrap().to_bytes() }
}

async fn read(at: SocketAddr, credential: &str) -> Response {
    ask(at, Method::GET, "/ui/data", &[("authorization", &format!("Bearer {credential}"))]).await
}

pub(crate) async fn session(cloud: &Cloud) -> String {
    let (status, body) = cloud.operator(Method::POST, "/v1/page-sessions", None).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(body["urls"], json!([format!("http://{}/ui/", cloud.server.page[0])]));
    body["credential"].as_str().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_for_anyone_names_nothing_from_elsewhere_and_comes_with_strict_headers() {
    let cloud = Cloud::with(SERVED).await;
    cloud.node("edge", "edge-1").await;
    let at = cloud.server.page[0];
    for (path, media) in [
        ("/ui/", "text/html; charset=utf-8"),
        ("/ui/page.css", "text/css; charset=utf-8"),
        ("/ui/page.js", "text/javascript; charset=utf-8"),
        ("/ui/icon.svg", "image/svg+xml"),
    ] {
        let response = ask(at, Method::GET, path, &[]).await;
        assert_eq!((response.status, response.header("content-type")), (200, media), "{path}");
        let body = text(&response.body);
        assert!(!body.contains("edge-1"), "{path}");
        // Names of XML are not addresses that a browser requests.
        let elsewhere = body.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("http:") && !elsewhere.contains("https:"), "{path}");
        for inline in ["<style", " style=", "onclick=", "innerHTML", "eval("] {
            assert!(!body.contains(inline), "{path}: {inline}");
        }
        assert_eq!(ask(at, Method::HEAD, path, &[]).await.status, 200, "{path}");
    }
    for (method, path, status) in [
        (Method::GET, "/ui/page.html", 404),
        (Method::GET, "/ui/../state/ca.json", 404),
        (Method::GET, "/v1/status", 404),
        (Method::GET, "/", 303),
        (Method::POST, "/ui/", 405),
        (Method::DELETE, "/ui/data", 405),
        (Method::GET, "/ui/data", 401),
    ] {
        let response = ask(at, method.clone(), path, &[]).await;
        assert_eq!(response.status, status, "{method} {path}");
        let policy = response.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{method} {path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("cross-origin-resource-policy", "same-origin"),
            ("access-control-allow-origin", ""),
            ("set-cookie", ""),
        ] {
            assert_eq!(response.header(name), value, "{method} {path}: {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_needs_the_credential_of_a_session_and_changes_nothing() {
    let cloud = Cloud::with(SERVED).await;
    cloud.node("edge", "edge-1").await;
    let (at, credential) = (cloud.server.page[0], session(&cloud).await);
    let joined = cloud.token("hub", Some("hub-1")).await;
    let with_null = format!("Bearer {credential}x");
    for headers in [
        vec![],
        vec![("authorization", "Bearer")],
        vec![("authorization", "Bearer ")],
        vec![("authorization", &credential as &str)],
        vec![("authorization", &with_null)],
        vec![("authorization", "Basic dXNlcjp4")],
        vec![("cookie", &credential)],
    ] {
        let response = ask(at, Method::GET, "/ui/data", &headers).await;
        assert_eq!((response.status, response.header("www-authenticate")), (401, "Bearer"), "{headers:?}");
        let problem = response.json();
        assert_eq!(problem["type"], "/problems/page-session-required");
        assert!(problem["detail"].as_str().unwrap().contains("edge-controller page"), "{problem}");
    }
    let response = read(at, &credential).await;
    assert_eq!((response.status, response.header("content-type")), (200, "application/json"));
    let time: i64 = response.header("edge-controller-time").parse().unwrap();
    assert!((time - cloud.clock.now()).abs() < 60);
    let data = response.json();
    let node = &data["nodes"][0];
    assert_eq!((&node["name"], &node["connected"]), (&json!("edge-1"), &json!(false)));
    assert_eq!(node["segments"], json!(["10.77.0.0/26"]));
    assert!(node["joined_at"].as_i64().unwrap() > time - 600);
    assert!(node["problems"][0].as_str().unwrap().contains("never connected"), "{node}");
    let tokens = data["tokens"].as_array().unwrap();
    assert_eq!((tokens.len(), &tokens[0]["id"]), (1, &json!(joined.id)), "the one of edge-1 is used up");
    let (_, status) = cloud.operator(Method::GET, "/v1/status", None).await;
    assert_eq!(data["ranges"], status["ranges"]);
    // The page contains no secret: neither the token's secret nor the secret's hash.
    let all = text(&response.body);
    assert!(!all.contains(&*joined.secret) && !all.contains("hash"), "{all}");
    // The credential gives no other access.
    let mut nobody = Connection::open(&cloud, None).await.unwrap();
    let refused = nobody.ask(Method::GET, "/v1/status", None).await;
    assert_eq!(kind(&refused), (401, "certificate-required"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_has_the_data_already_gets_it_again_only_when_something_has_changed() {
    let cloud = Cloud::with(SERVED).await;
    let node = cloud.node("edge", "edge-1").await;
    let stream = node.watch().await;
    let (at, credential) = (cloud.server.page[0], session(&cloud).await);
    let bearer = format!("Bearer {credential}");
    let tag = read(at, &credential).await.header("etag").to_owned();
    let mut again = ask(at, Method::GET, "/ui/data", &[("authorization", &bearer), ("if-none-match", &tag)]).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert!(!again.header("edge-controller-time").is_empty());
    // Data that was read is served for a second.
    cloud.label("edge-1", Some("alpha")).await;
    while again.status == 304 {
        again = ask(at, Method::GET, "/ui/data", &[("authorization", &bearer), ("if-none-match", &tag)]).await;
    }
    assert_eq!((again.status, &again.json()["nodes"][0]["communities"]), (200, &json!(["alpha"])));
    assert_ne!(again.header("etag"), tag);
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_the_operators_alone_and_end_when_he_says_so_or_the_controller_stops() {
    let cloud = Cloud::with(SERVED).await;
    let node = cloud.node("edge", "edge-1").await;
    for caller in [None, Some(&node)] {
        let mut connection = Connection::open(&cloud, caller).await.unwrap();
        for method in [Method::POST, Method::DELETE] {
            let refused = connection.ask(method, "/v1/page-sessions", None).await;
            assert!(matches!(kind(&refused), (401, "certificate-required") | (403, "operator-only")), "{refused:?}");
        }
    }
    let (first, second) = (session(&cloud).await, session(&cloud).await);
    assert_ne!(first, second);
    let at = cloud.server.page[0];
    assert_eq!((read(at, &first).await.status, read(at, &second).await.status), (200, 200));
    assert_eq!(cloud.operator(Method::DELETE, "/v1/page-sessions", None).await.0, 204);
    assert_eq!((read(at, &first).await.status, read(at, &second).await.status), (401, 401));
    let third = session(&cloud).await;
    let cloud = cloud.restart().await;
    assert_eq!(read(cloud.server.page[0], &third).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_without_the_page_says_how_to_turn_it_on() {
    let cloud = Cloud::start().await;
    assert!(cloud.server.page.is_empty());
    let refused = cloud.operator(Method::POST, "/v1/page-sessions", None).await;
    assert_eq!(kind(&refused), (409, "page-not-served"));
    assert!(detail(&refused).contains("[page]"), "{refused:?}");
}

#[test]
fn the_command_prints_the_link_alone_on_standard_output() {
    let mut program =
        Program::with("cluster_ranges = [\"10.77.0.0/16\"]\n[page]\nlisten = [\"127.0.0.1:0\", \"[::1]:0\"]");
    program.start();
    let output = program.run(&["page"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let links = text(&output.stdout);
    let links: Vec<&str> = links.lines().collect();
    assert_eq!(links.len(), 2, "{links:?}");
    assert!(links[0].starts_with("http://127.0.0.1:") && links[1].starts_with("http://[::1]:"), "{links:?}");
    let (_, credential) = links[0].split_once("/ui/#").unwrap();
    assert_eq!(credential.len(), 43);
    let said = text(&output.stderr);
    assert!(said.contains("ssh -L") && !said.contains(credential), "{said}");
    assert!(program.run(&["page", "--end"]).status.success());
    assert_eq!(program.json(&["page"])["urls"].as_array().unwrap().len(), 2);
    program.stop();
    assert!(!program.log().contains(credential), "the log has no credential");
}
