//! Tests the metrics and probes for an operator's monitoring.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::harness::{Cloud, kind, request_of};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rcgen::KeyPair;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

impl Cloud {
    /// Returns the status, content type and text of a monitoring page.
    async fn page(&self, path: &str) -> (u16, String, String) {
        self.page_for(path, "*/*").await
    }

    /// Requests a page with this accepted media type.
    async fn page_for(&self, path: &str, accept: &str) -> (u16, String, String) {
        let stream = tokio::net::TcpStream::connect(self.server.observe[0]).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request =
            Request::get(path).header("host", "x").header("accept", accept).body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let media = response.headers()["content-type"].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, media, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn scrape(&self) -> Scrape {
        let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        let (status, media, text) = self.page_for("/metrics", open_metrics).await;
        assert_eq!((status, media.as_str()), (200, open_metrics));
        Scrape::parse(&text)
    }
}

type Labels = BTreeMap<String, String>;

/// Parsed OpenMetrics text; every line must be understood.
struct Scrape {
    samples: BTreeMap<(String, Labels), f64>,
}

impl Scrape {
    fn parse(text: &str) -> Self {
        let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
        let mut units: BTreeMap<String, String> = BTreeMap::new();
        let mut samples = BTreeMap::new();
        let mut ended = false;
        for line in text.lines() {
            assert!(!ended, "after the end: {line}");
            if let Some(rest) = line.strip_prefix("# ") {
                if rest == "EOF" {
                    ended = true;
                    continue;
                }
                let mut words = rest.splitn(3, ' ');
                let (what, name, text) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                assert!(is_name(name), "{line}");
                match what {
                    "HELP" => {
                        assert!(text.ends_with('.') && text.len() > 10, "{line}");
                        assert!(families.insert(name.into(), (text.into(), String::new())).is_none(), "twice: {line}");
                    }
                    "TYPE" => families.get_mut(name).unwrap_or_else(|| panic!("no HELP before {line}")).1 = text.into(),
                    "UNIT" => drop(units.insert(name.into(), text.into())),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}').unwrap())),
                None => (series, Labels::new()),
            };
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            let family = ["", "_total", "_bucket", "_count", "_sum", "_info"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix).map(|family| (family, *suffix)))
                .find(|(family, _)| families.contains_key(*family))
                .unwrap_or_else(|| panic!("no HELP and TYPE for {line}"));
            let expected = match families[family.0].1.as_str() {
                "counter" => family.1 == "_total",
                "gauge" => family.1.is_empty(),
                "histogram" => ["_bucket", "_count", "_sum"].contains(&family.1),
                "info" => family.1 == "_info",
                other => panic!("type {other} of {line}"),
            };
            assert!(expected, "{line} is a {}", families[family.0].1);
            assert!(samples.insert((name.to_owned(), labels), value).is_none(), "twice: {line}");
        }
        assert!(ended, "cut short");
        for (name, unit) in units {
            assert!(name.ends_with(&format!("_{unit}")), "{name} in {unit}");
        }
        Self { samples }
    }

    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }
}

fn is_name(name: &str) -> bool {
    (name.starts_with("edge_controller_") || name.starts_with("process_"))
        && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

fn parse_labels(text: &str) -> Labels {
    let labels = text.split(',').map(|label| {
        let (key, value) = label.split_once('=').unwrap_or_else(|| panic!("{text}"));
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or_else(|| panic!("{text}"));
        (key.to_owned(), value.to_owned())
    });
    labels.collect()
}

#[tokio::test]
async fn metrics_count_what_happened_and_every_line_of_them_is_understood() {
    let cloud =
        Cloud::with("cluster_ranges = [\"10.77.0.0/24\", \"fd77::/118\"]\nreserved = [\"10.77.0.64/26\"]").await;
    let (hub, edge) = (cloud.node("hub", "cloud-1").await, cloud.node("edge", "edge-1").await);
    cloud.node("edge", "edge-2").await;
    cloud.deregister("edge-2").await;
    let mut stream = edge.watch().await;
    stream.view().await;
    let report = json!({"addresses": [], "port": 4500, "tunnels": {"up": 1, "wanted": 3}, "obstacles": ["ufw drops"]});
    assert_eq!(edge.ask(Method::PUT, "", Some(report.clone())).await.0, 204);
    // The node is not connected to this replica, so another replica may count it.
    assert_eq!(hub.ask(Method::PUT, "", Some(report)).await.0, 204);
    let csr = json!({"csr": request_of(&KeyPair::generate().unwrap())});
    assert_eq!(hub.ask(Method::POST, "/certificate", Some(csr)).await.0, 200);
    let token = cloud.token("edge", None).await;
    assert_eq!(kind(&cloud.join(&token, "edge-3", "no request").await), (422, "bad-certificate-request"));

    let scrape = cloud.scrape().await;
    for (name, labels, value) in [
        ("edge_controller_nodes", &[("role", "edge")][..], 1.0),
        ("edge_controller_nodes", &[("role", "hub")], 1.0),
        ("edge_controller_nodes", &[("role", "cloud")], 0.0),
        ("edge_controller_nodes_connected", &[("role", "edge")], 1.0),
        ("edge_controller_nodes_connected", &[("role", "hub")], 0.0),
        ("edge_controller_view_streams", &[], 1.0),
        ("edge_controller_segments", &[("family", "ipv4"), ("state", "held")], 1.0),
        ("edge_controller_segments", &[("family", "ipv4"), ("state", "quarantined")], 1.0),
        ("edge_controller_segments", &[("family", "ipv6"), ("state", "free")], 0.0),
        // There are four segments of each family: one is reserved in IPv4, and two are held or in
        // quarantine in both.
        ("edge_controller_segments_free", &[("family", "ipv4")], 1.0),
        ("edge_controller_segments_free", &[("family", "ipv6")], 2.0),
        ("edge_controller_node_certificates_total", &[("action", "issued")], 3.0),
        ("edge_controller_node_certificates_total", &[("action", "renewed")], 1.0),
        ("edge_controller_node_certificates_total", &[("action", "refused")], 1.0),
        ("edge_controller_join_refusals_total", &[("kind", "bad-certificate-request")], 1.0),
        ("edge_controller_requests_total", &[("route", "/v1/join"), ("method", "POST"), ("status", "200")], 3.0),
        ("edge_controller_requests_total", &[("route", "/v1/join"), ("method", "POST"), ("status", "422")], 1.0),
        ("edge_controller_request_duration_seconds_count", &[("route", "/v1/join"), ("method", "POST")], 4.0),
        ("edge_controller_view_lines_sent_total", &[("type", "view")], 1.0),
        ("edge_controller_tunnels", &[("state", "up")], 1.0),
        ("edge_controller_tunnels", &[("state", "wanted")], 3.0),
        ("edge_controller_nodes_obstructed", &[], 1.0),
        ("edge_controller_leader", &[], 0.0),
        ("edge_controller_api_server_failures", &[("severity", "serving")], 0.0),
        ("edge_controller_api_server_failures", &[("severity", "minor")], 0.0),
    ] {
        assert_eq!(scrape.get(name, labels), Some(value), "{name} {labels:?}");
    }
    assert!(scrape.get("edge_controller_store_commits_total", &[("result", "done")]).unwrap() >= 8.0);
    assert_eq!(scrape.get("edge_controller_store_commits_total", &[("result", "failed")]), Some(0.0));
    assert_eq!(scrape.get("edge_controller_store_conflicts_total", &[]), Some(0.0));
    let now = cloud.clock.now() as f64;
    let end = |of| scrape.get("edge_controller_certificate_end_timestamp_seconds", &[("of", of)]).unwrap();
    assert!(end("authority") > end("server") && end("server") > now + 29.0 * 86_400.0);
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_cpu_seconds_total"] {
        assert!(scrape.get(name, &[]).unwrap() > 0.0, "{name}");
    }
    let started = scrape.get("process_start_time_seconds", &[]).unwrap();
    assert!(started > 1_700_000_000.0 && started <= now + 1.0, "{started}");
}

#[tokio::test]
async fn the_first_refusal_of_each_usual_kind_is_an_increase() {
    let cloud = Cloud::start().await;
    let kinds = |scrape: &Scrape| -> BTreeMap<String, f64> {
        let refusals = scrape.samples.iter().filter(|((name, _), _)| name == "edge_controller_join_refusals_total");
        refusals.map(|((_, labels), count)| (labels["kind"].clone(), *count)).collect()
    };
    let before = kinds(&cloud.scrape().await);
    assert!(before.values().all(|count| *count == 0.0), "{before:?}");
    cloud.node("edge", "edge-1").await;
    let csr = request_of(&KeyPair::generate().unwrap());
    let (used, expired, deleted) =
        (cloud.token("edge", None).await, cloud.token("edge", None).await, cloud.token("edge", None).await);
    let (of_another, hub) = (cloud.token("edge", Some("edge-9")).await, cloud.token("hub", Some("edge-1")).await);
    assert_eq!(cloud.join(&used, "edge-2", &csr).await.0, 200);
    cloud.operator(Method::DELETE, &format!("/v1/tokens/{}", deleted.id), None).await;
    let mut refused = Vec::new();
    for (token, name, csr) in [
        (&expired, "edge-3", "no request"),
        (&expired, "edge-1", csr.as_str()),
        (&hub, "edge-1", &csr),
        (&of_another, "edge-3", &csr),
        (&deleted, "edge-3", &csr),
        (&used, "edge-3", &csr),
    ] {
        refused.push(cloud.join(token, name, csr).await);
    }
    cloud.clock.advance(3601);
    refused.push(cloud.join(&expired, "edge-3", &csr).await);
    let refused: BTreeMap<String, f64> = refused.iter().map(|response| (kind(response).1.to_owned(), 1.0)).collect();
    assert_eq!(refused.len(), 7, "{refused:?}");
    // No series is new: this one needs an API server to be refused.
    let mut expected = refused;
    expected.insert("service-account-refused".into(), 0.0);
    assert_eq!(kinds(&cloud.scrape().await), expected);
    assert!(before.keys().eq(expected.keys()), "{before:?}");
}

#[tokio::test]
async fn neither_names_nor_what_a_stranger_makes_up_become_labels() {
    let cloud = Cloud::start().await;
    cloud.node("edge", "edge-1").await;
    for (method, path) in [("GET", "/secret-path"), ("BREW", "/v1/nodes"), ("GET", "/v1/nodes/edge-1/view")] {
        cloud.operator(Method::from_bytes(method.as_bytes()).unwrap(), path, None).await;
    }
    let scrape = cloud.scrape().await;
    let values: BTreeSet<&String> = scrape.samples.keys().flat_map(|(_, labels)| labels.values()).collect();
    for foreign in ["edge-1", "secret", "BREW"] {
        assert!(!values.iter().any(|value| value.contains(foreign)), "{foreign} in {values:?}");
    }
    let labels = [("route", "/v1/nodes"), ("method", "other"), ("status", "405")];
    assert_eq!(scrape.get("edge_controller_requests_total", &labels), Some(1.0));
    let labels = [("route", "none"), ("method", "GET"), ("status", "404")];
    assert_eq!(scrape.get("edge_controller_requests_total", &labels), Some(1.0));
}

#[tokio::test]
async fn a_server_that_can_serve_is_alive_and_ready_and_shows_each_check() {
    let cloud = Cloud::start().await;
    for (path, checks) in [
        ("/healthz", &["registry", "node-listener", "admin-listener", "server-certificate-renewal"][..]),
        ("/readyz", &["store", "admin-socket", "authority", "server-certificate", "node-listener", "not-stopping"]),
    ] {
        let (status, _, text) = cloud.page(path).await;
        assert_eq!(status, 200, "{text}");
        assert!(text.ends_with("\nok\n"), "{text}");
        for check in checks {
            assert!(text.contains(&format!("[+]{check} ok\n")), "{check}: {text}");
        }
    }
    assert_eq!(cloud.page("/v1/nodes").await.0, 404, "nothing of the API is here");
}

#[tokio::test]
async fn what_is_missing_for_readiness_is_named_and_does_not_end_the_process() {
    let cloud = Cloud::start().await;
    std::fs::remove_file(cloud.directory.path().join("admin.sock")).unwrap();
    cloud.clock.advance(31 * 24 * 3600);
    let (status, _, text) = cloud.page("/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("[-]admin-socket failed: ") && text.contains("admin.sock"), "{text}");
    assert!(text.contains("[-]server-certificate failed: its certificate ended at 20"), "{text}");
    assert!(text.contains("[+]store ok\n") && text.ends_with("not ok\n"), "{text}");
    assert_eq!(cloud.page("/healthz").await.0, 200);
}

/// Kubeconfig of an API server that refuses every connection.
const UNREACHABLE: &str = "apiVersion: v1
kind: Config
current-context: x
contexts: [{name: x, context: {cluster: x, user: x}}]
clusters: [{name: x, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: x, user: {}}]
";

#[tokio::test]
async fn a_replica_that_never_reached_the_api_server_is_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, UNREACHABLE).unwrap();
    let ranges = "cluster_ranges = [\"10.77.0.0/24\"]";
    let cloud = Cloud::with(&format!("{ranges}\n[kubernetes]\nstore = false\nkubeconfig = {kubeconfig:?}")).await;
    // It is not ready before the first attempt, nor after it.
    let attempt = async {
        loop {
            let (status, _, text) = cloud.page("/readyz").await;
            let why = text.lines().find(|line| line.starts_with("[-]kubernetes failed: ")).unwrap_or_default();
            assert!(status == 503 && why.contains("nodes: not read yet"), "{text}");
            if why.contains("a request to the API server about") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), attempt).await.expect("the first attempt fails");
    assert_eq!(cloud.page("/healthz").await.0, 200);
}

/// A monitoring connection that stays open between requests.
struct KeptConnection(hyper::client::conn::http1::SendRequest<Empty<Bytes>>);

impl KeptConnection {
    async fn open(cloud: &Cloud) -> Self {
        let stream = tokio::net::TcpStream::connect(cloud.server.observe[0]).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Returns whether the request was answered; otherwise the connection was closed.
    async fn ask(&mut self) -> bool {
        let request = Request::get("/healthz").header("host", "x").body(Empty::<Bytes>::new()).unwrap();
        match (self.0.ready().await, self.0.send_request(request).await) {
            (Ok(()), Ok(response)) => response.into_body().collect().await.is_ok(),
            _ => false,
        }
    }
}

#[tokio::test]
async fn the_oldest_connection_makes_room_however_busy_it_is() {
    let cloud = Cloud::start().await;
    let mut all = Vec::new();
    // The number is the limit plus one.
    for _ in 0..65 {
        let mut kept = KeptConnection::open(&cloud).await;
        assert!(kept.ask().await, "whoever comes is let in");
        all.push(kept);
    }
    // The connection may have answered once more while it was being closed, long before its
    // lifetime ends.
    assert!(!(all[0].ask().await && all[0].ask().await), "the oldest one stays");
    for (nth, kept) in all.iter_mut().enumerate().skip(1) {
        assert!(kept.ask().await, "only the oldest one is cut off, and not number {nth}");
    }
}

#[tokio::test]
async fn silent_connections_keep_no_probe_out_and_are_cut_off_themselves() {
    let cloud = Cloud::start().await;
    let mut silent = Vec::new();
    // Opens three times the maximum number of connections from the probe's own address.
    for nth in 0..192 {
        let mut stream = tokio::net::TcpStream::connect(cloud.server.observe[0]).await.unwrap();
        if nth % 2 == 1 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.unwrap();
        }
        silent.push(stream);
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(cloud.page(path).await.0, 200, "{path}");
    }
    // The first connections were closed for newer ones, and the last ones take too long.
    for nth in [0, 1, 190, 191] {
        let _ = silent[nth].read_to_end(&mut Vec::new()).await;
    }
}

#[tokio::test]
async fn neither_endless_headers_nor_a_protocol_of_its_own_disturb_the_next_probe() {
    let cloud = Cloud::start().await;
    for bad in [b"GET /healthz HTTP/1.1\r\n".as_slice(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0x16, 3, 1, 2, 0, 1]] {
        let mut stream = tokio::net::TcpStream::connect(cloud.server.observe[0]).await.unwrap();
        stream.write_all(bad).await.unwrap();
        // Writes until the server closes the connection.
        while stream.write_all(b"x-header: 0123456789abcdef\r\n").await.is_ok() {}
        assert_eq!(cloud.page("/healthz").await.0, 200);
    }
}
