//! Tests joins with the service account of the node's pod, with tokens that the API server issues
//! and reviews.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, LazyLock, Once};
use std::time::Duration;

use edge_controller::config::Config;
use edge_controller::server::Server;
use edge_controller_domain::clock::Clock;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use interop_tests::kube::{ControlPlane, Subject, suite};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cluster::deploy;

pub(crate) const TESTS: &[suite::Test] = &[
    ("a_pods_service_account_lets_its_node_in_with_the_accounts_role", lets_in),
    ("a_service_account_token_lets_in_nobody_but_its_pods_own_node", refused),
    ("a_node_that_is_not_selected_for_a_role_does_not_get_it_by_a_pod_and_an_edge_gets_none_but_its_own", other_roles),
    ("a_machine_that_lost_its_disk_comes_back_by_the_token_of_its_pod", comes_back),
    ("without_the_right_to_review_tokens_the_refusal_names_the_manifest_that_brings_it", without_right),
];

/// The control plane of these tests.
static SHARED: LazyLock<ControlPlane> = LazyLock::new(|| ControlPlane::start("join").unwrap());

/// Starts the cluster and runs a test. The time limit only ends a test that hangs.
fn run<T>(test: impl Future<Output = T>) -> T {
    cluster();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), test).await }).expect("an end in 120 s")
}

/// Creates nodes, accounts, and a pod of each account on each node, like the DaemonSets of
/// `deploy/`.
fn cluster() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The namespace, and the accounts with exactly their permissions.
        SHARED.apply(&deploy("kubernetes/10-rbac.yaml")).unwrap();
        let mut manifests =
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: other, namespace: edge-cni}\n".to_owned();
        let edge = "node-role.kubernetes.io/edge: ''";
        let role = "node-restriction.kubernetes.io/edge-cni-role";
        for (node, labels) in [
            ("edge-1", edge.to_owned()),
            ("edge-2", edge.into()),
            ("edge-3", edge.into()),
            ("cloud-1", format!("{role}: hub")),
            ("cloud-2", format!("{role}: cloud")),
            // A label that a kubelet sets on its own Node; a new Node has none.
            ("own-word", "edge-cni.io/role: hub".into()),
            ("fresh", String::new()),
            ("both", format!("{role}: hub, {edge}")),
        ] {
            manifests += &format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {node}, labels: {{{labels}}}}}\n");
        }
        SHARED.apply_text(&manifests).unwrap();
        let pods = [
            ("edge-agent", "edge-1"),
            ("edge-agent", "edge-2"),
            ("edge-agent", "edge-3"),
            ("other", "edge-2"),
            ("hub-agent", "cloud-1"),
            ("cloud-agent", "cloud-2"),
            ("hub-agent", "edge-1"),
            ("cloud-agent", "edge-1"),
            ("hub-agent", "own-word"),
            ("cloud-agent", "fresh"),
            ("hub-agent", "both"),
            ("hub-agent", "cloud-2"),
        ];
        for (account, node) in pods {
            let pod = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {account}-{node}, namespace: edge-cni}}\nspec:\n  serviceAccountName: {account}\n  \
                 nodeName: {node}\n  automountServiceAccountToken: false\n  containers: [{{name: a, image: a}}]\n"
            );
            SHARED.apply_text(&pod).unwrap();
        }
        let controller = Subject::ServiceAccount("edge-cni", "edge-controller");
        SHARED.wait_right(controller, "create", "tokenreviews.authentication.k8s.io", true).unwrap();
    });
}

/// Returns a token as the kubelet projects it into a pod.
fn token(account: &str, more: &[&str]) -> String {
    let words = ["create", "token", account, "--namespace", "edge-cni"];
    SHARED.kubectl(&[&words, more].concat()).unwrap().trim().to_owned()
}

fn token_of_pod(account: &str, node: &str) -> String {
    let pod = format!("{account}-{node}");
    token(account, &["--audience", "edge-cni", "--bound-object-kind", "Pod", "--bound-object-name", &pod])
}

struct Cloud {
    server: Server,
    directory: tempfile::TempDir,
}

impl Cloud {
    async fn start(kubeconfig: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.toml");
        let text = format!(
            "server_names = [\"127.0.0.1\"]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = {:?}\nadmin_socket = {:?}\n\
             [segments]\ncluster_ranges = [\"10.77.0.0/16\"]\n[kubernetes]\nkubeconfig = {:?}\nstore = false\n[kubernetes.join]\n\
             edge = \"edge-cni:edge-agent\"\nhub = \"edge-cni:hub-agent\"\ncloud = \"edge-cni:cloud-agent\"\n",
            directory.path().join("state"),
            directory.path().join("admin.sock"),
            kubeconfig,
        );
        std::fs::write(&path, text).unwrap();
        let server = Server::start(Config::load(&path).unwrap(), Clock::system()).await.unwrap();
        Self { server, directory }
    }

    /// Sends one request over TLS, with the CA's certificate that agents mount.
    async fn join(&self, token: &str, node: &str, key: &KeyPair) -> (u16, Value) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(key).unwrap().pem().unwrap();
        let body = json!({"service_account_token": token, "node": node, "csr": csr}).to_string();
        let ca = CertificateDer::from_pem_file(self.directory.path().join("state/ca.crt")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.server.addresses[0]).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(Method::POST).uri("https://127.0.0.1/v1/join");
        let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(body))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }
}

async fn controller() -> Cloud {
    Cloud::start(&SHARED.kubeconfig_for_service_account("edge-cni", "edge-controller").unwrap()).await
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn lets_in() {
    run(async {
        let cloud = controller().await;
        for (account, node, role) in
            [("edge-agent", "edge-1", "edge"), ("hub-agent", "cloud-1", "hub"), ("cloud-agent", "cloud-2", "cloud")]
        {
            let (status, response) = cloud.join(&token_of_pod(account, node), node, &key()).await;
            assert_eq!((status, &response["role"], &response["node"]), (200, &json!(role), &json!(node)), "{response}");
        }
        // A join is repeated after a lost response, and returns the same certificate.
        let (token, key) = (token_of_pod("edge-agent", "edge-2"), key());
        let serial = |response: &Value| {
            let der = CertificateDer::from_pem_slice(response["certificate"].as_str().unwrap().as_bytes()).unwrap();
            x509_parser::parse_x509_certificate(&der).unwrap().1.raw_serial().to_vec()
        };
        let (first, again) = (cloud.join(&token, "edge-2", &key).await.1, cloud.join(&token, "edge-2", &key).await.1);
        assert_eq!(serial(&first), serial(&again));
        cloud.server.stop().await;
    });
}

fn refused() {
    run(async {
        let cloud = controller().await;
        let good = token_of_pod("edge-agent", "edge-1");
        let (said, signature) = good.rsplit_once('.').unwrap();
        let other = if signature.starts_with('A') { 'B' } else { 'A' };
        let forged = format!("{said}.{other}{}", &signature[1..]);
        let unbound = token("edge-agent", &["--audience", "edge-cni"]);
        let pod = ["--bound-object-kind", "Pod", "--bound-object-name", "edge-agent-edge-1"];
        let for_the_api_server = token("edge-agent", &pod);
        let cases = [
            (good.as_str(), "edge-2", "runs on node \"edge-1\""),
            (&forged, "edge-1", "audience \"edge-cni\""),
            ("not.a.token", "edge-1", "audience \"edge-cni\""),
            ("", "edge-1", "it is empty"),
            (&unbound, "edge-1", "not bound to a pod"),
            (&for_the_api_server, "edge-1", "audience \"edge-cni\""),
            (&token_of_pod("other", "edge-2"), "edge-2", "edge-cni:other"),
        ];
        for (token, node, says) in cases {
            let (status, response) = cloud.join(token, node, &key()).await;
            assert_eq!(
                (status, &response["type"]),
                (403, &json!("/problems/service-account-refused")),
                "{says}: {response}"
            );
            let detail = response["detail"].as_str().unwrap();
            assert!(detail.contains(says) && (token.is_empty() || !detail.contains(token)), "{says}: {detail}");
        }
        // The token of a deleted pod is not accepted.
        let late = token_of_pod("edge-agent", "edge-3");
        SHARED.kubectl(&["delete", "pod", "edge-agent-edge-3", "--namespace", "edge-cni", "--force"]).unwrap();
        let (status, response) = cloud.join(&late, "edge-3", &key()).await;
        assert_eq!(status, 403, "{response}");
        cloud.server.stop().await;
    });
}

fn other_roles() {
    run(async {
        let cloud = controller().await;
        for (account, node, says) in [
            ("hub-agent", "edge-1", "is an edge"),
            ("cloud-agent", "edge-1", "is an edge"),
            ("hub-agent", "both", "is an edge"),
            ("hub-agent", "own-word", "hub_selector"),
            ("hub-agent", "cloud-2", "hub_selector"),
            ("cloud-agent", "fresh", "kubectl label node fresh node-restriction.kubernetes.io/edge-cni-role=cloud"),
        ] {
            let (status, response) = cloud.join(&token_of_pod(account, node), node, &key()).await;
            assert_eq!((status, &response["type"]), (403, &json!("/problems/service-account-refused")), "{response}");
            assert!(response["detail"].as_str().unwrap().contains(says), "{account} on {node}: {response}");
        }
        // The token belongs to a deleted Node; another Node has its name and labels.
        let late = token_of_pod("hub-agent", "cloud-1");
        SHARED.kubectl(&["delete", "node", "cloud-1"]).unwrap();
        let (status, response) = cloud.join(&late, "cloud-1", &key()).await;
        assert_eq!(status, 403, "{response}");
        let label = "node-restriction.kubernetes.io/edge-cni-role: hub";
        let node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: cloud-1, labels: {{{label}}}}}\n");
        SHARED.apply_text(&node).unwrap();
        let (status, response) = cloud.join(&late, "cloud-1", &key()).await;
        assert_eq!(status, 403, "{response}");
        // The pod still exists, and the kubelet has a new token for it.
        let (status, response) = cloud.join(&token_of_pod("hub-agent", "cloud-1"), "cloud-1", &key()).await;
        assert_eq!((status, &response["role"]), (200, &json!("hub")), "{response}");
        cloud.server.stop().await;
    });
}

fn comes_back() {
    run(async {
        let cloud = controller().await;
        let token = token_of_pod("edge-agent", "edge-1");
        assert_eq!(cloud.join(&token, "edge-1", &key()).await.0, 200);
        let (status, response) = cloud.join(&token, "edge-1", &key()).await;
        assert_eq!(status, 200, "{response}");
        cloud.server.stop().await;
    });
}

fn without_right() {
    run(async {
        let cloud = Cloud::start(&SHARED.kubeconfig_for_service_account("edge-cni", "other").unwrap()).await;
        let (status, response) = cloud.join(&token_of_pod("edge-agent", "edge-1"), "edge-1", &key()).await;
        assert_eq!((status, &response["type"]), (503, &json!("/problems/token-review-failed")), "{response}");
        assert!(response["detail"].as_str().unwrap().contains("10-rbac.yaml"), "{response}");
        cloud.server.stop().await;
    });
}
