//! Tests service account tokens from callers without a certificate. A fake API server counts the
//! requests that it receives.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::Cloud;
use crate::strangers::{AttackTarget, head_of_response, host};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Limits of concurrent reviews, in total and for one source.
const AT_ONCE: usize = 8;
const OF_ONE_SOURCE: usize = 4;

/// The fake API server.
struct ApiServer {
    /// The channel that receives a message for each review that arrives.
    came: mpsc::UnboundedReceiver<()>,
    /// Permits for responses.
    responses: Arc<Semaphore>,
    most_at_once: Arc<AtomicUsize>,
    address: std::net::SocketAddr,
}

impl ApiServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, came) = mpsc::unbounded_channel();
        let (responses, now, most_at_once) =
            (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (let_go, most) = (responses.clone(), most_at_once.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, let_go, now, most) = (asked.clone(), let_go.clone(), now.clone(), most.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (asked, let_go, now, most) = (asked.clone(), let_go.clone(), now.clone(), most.clone());
                    async move {
                        let is_review = request.uri().path().ends_with("/tokenreviews");
                        if is_review {
                            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            asked.send(()).unwrap();
                            let_go.acquire().await.unwrap().forget();
                            now.fetch_sub(1, Ordering::SeqCst);
                        }
                        let (status, body) = match is_review {
                            true => (
                                201,
                                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {"token": ""}, "status": {"authenticated": false}}),
                            ),
                            false => (
                                404,
                                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not here", "reason": "NotFound", "code": 404}),
                            ),
                        };
                        let response = Response::builder().status(status).header("content-type", "application/json");
                        Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body.to_string()))).unwrap())
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { came, responses, most_at_once, address }
    }

    /// Starts a controller that uses this API server.
    async fn cloud(&self, directory: &std::path::Path) -> Cloud {
        let path = directory.join("kubeconfig");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "x", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        });
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        let tables = format!(
            "cluster_ranges = [\"10.77.0.0/24\"]\n[kubernetes]\nkubeconfig = {path:?}\nstore = false\n[kubernetes.join]\nedge = \"edge-cni:edge-agent\"\n"
        );
        Cloud::with(&tables).await
    }
}

/// Makes an unsigned token that looks like one of an API server.
fn token(audience: &str, end: i64) -> String {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:edge-cni:edge-agent", "aud": [audience], "exp": end});
    format!("{}.{}.{}", part(json!({"alg": "RS256"})), part(claims), URL_SAFE_NO_PAD.encode([7; 256]))
}

/// Joins with this token from the nth address. Returns the head of the response.
async fn join(target: AttackTarget, nth: usize, token: String) -> String {
    let body = json!({"service_account_token": token, "node": "edge-1", "csr": ""}).to_string();
    let mut stream = target.open(host(nth), b"http/1.1").await.unwrap();
    let head = format!("POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    head_of_response(&mut stream, &head).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_is_asked_about_few_tokens_at_once_and_never_about_what_is_none() {
    let mut api = ApiServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let cloud = api.cloud(directory.path()).await;
    let (target, now) = (AttackTarget::of_cloud(&cloud), cloud.clock.now());
    for none in
        ["", "a.b.c", "e30.e30.e30", &token("https://kubernetes.default.svc", now + 60), &token("edge-cni", now - 3600)]
    {
        let response = join(target.clone(), 1, none.to_owned()).await;
        assert!(response.starts_with("HTTP/1.1 403"), "{none}: {response}");
    }
    assert!(api.came.try_recv().is_err(), "it was asked about what is none");

    // One source alone gets only a part of the reviews.
    let mut joins = JoinSet::new();
    let one = token("edge-cni", now + 3600);
    for _ in 0..3 * OF_ONE_SOURCE {
        joins.spawn(join(target.clone(), 1, one.clone()));
    }
    for _ in 0..OF_ONE_SOURCE {
        api.came.recv().await.unwrap();
    }
    // Other sources get their reviews while the first source waits, up to the total limit.
    for nth in 2..6 {
        for _ in 0..OF_ONE_SOURCE {
            joins.spawn(join(target.clone(), nth, one.clone()));
        }
    }
    for _ in OF_ONE_SOURCE..AT_ONCE {
        api.came.recv().await.unwrap();
    }
    // Other requests are answered in the meantime.
    assert!(join(target.clone(), 1, "a.b.c".into()).await.starts_with("HTTP/1.1 403"));
    assert_eq!(api.most_at_once.load(Ordering::SeqCst), AT_ONCE);
    api.responses.add_permits(1000);
    while let Some(response) = joins.join_next().await {
        let response = response.unwrap();
        assert!(response.starts_with("HTTP/1.1 403"), "{response}");
    }
    assert_eq!(api.most_at_once.load(Ordering::SeqCst), AT_ONCE);
}
