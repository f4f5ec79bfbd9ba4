//! Tests the control plane that other tests use.

use std::io::BufRead as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use futures_util::StreamExt as _;
use interop_tests::kube::{ControlPlane, RELEASE, Subject, suite};
use interop_tests::wait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, ObjectMeta, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

const TESTS: &[suite::Test] = &[
    ("kubectl_and_the_api_server_say_the_pinned_release", versions),
    ("an_object_that_was_created_is_read_back", created),
    ("an_api_server_that_was_killed_comes_back_with_its_objects_at_the_same_address", killed),
    ("an_api_server_that_was_stopped_comes_back_with_its_objects", stopped),
    ("an_etcd_that_was_killed_comes_back_with_its_objects", etcd_killed),
    ("an_old_watch_and_an_old_page_are_gone_once_history_is_forgotten", forgotten),
    ("a_user_whom_nobody_knows_may_do_nothing_until_it_is_granted_and_after_it_is_revoked", rights),
    ("a_service_accounts_token_is_recognised_and_a_forged_one_is_not", tokens),
    ("two_control_planes_run_side_by_side", two),
    ("nothing_outlives_a_test_that_is_killed", outlived),
];

/// The control plane for the tests that leave it unchanged.
static SHARED: LazyLock<ControlPlane> = LazyLock::new(|| ControlPlane::start("shared").unwrap());

/// Environment variable that makes this program the test that is killed.
const VICTIM: &str = "EDGE_KUBE_VICTIM";

fn main() -> ExitCode {
    if std::env::var_os(VICTIM).is_some() {
        return victim();
    }
    suite::run(TESTS)
}

/// Runs a client of the API server with a time limit, so that a missing answer is a failure.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), test).await }).expect("an answer in 120 s")
}

async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn config_maps(kubeconfig: &Path) -> Api<ConfigMap> {
    Api::namespaced(client(kubeconfig).await, "default")
}

fn config_map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some([("key".to_owned(), "value".to_owned())].into()),
        ..ConfigMap::default()
    }
}

fn versions() {
    let said: serde_json::Value =
        serde_json::from_str(&SHARED.kubectl(&["version", "--output=json"]).unwrap()).unwrap();
    assert_eq!(said["clientVersion"]["gitVersion"], RELEASE);
    assert_eq!(said["serverVersion"]["gitVersion"], RELEASE);
}

fn created() {
    run(async {
        let maps = config_maps(SHARED.kubeconfig()).await;
        maps.create(&PostParams::default(), &config_map("created")).await.unwrap();
        let got = maps.get("created").await.unwrap();
        assert_eq!(got.data.unwrap()["key"], "value");
    });
}

fn killed() {
    SHARED.kubectl(&["create", "configmap", "killed", "--from-literal=key=value"]).unwrap();
    let url = SHARED.url();
    SHARED.kill_api_server().unwrap();
    let error = SHARED.kubectl(&["get", "configmap", "killed"]).unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    SHARED.start_api_server().unwrap();
    assert_eq!(SHARED.url(), url);
    SHARED.kubectl(&["get", "configmap", "killed"]).unwrap();
}

fn stopped() {
    SHARED.kubectl(&["create", "configmap", "stopped", "--from-literal=key=value"]).unwrap();
    SHARED.stop_api_server().unwrap();
    SHARED.start_api_server().unwrap();
    SHARED.kubectl(&["get", "configmap", "stopped"]).unwrap();
}

fn etcd_killed() {
    SHARED.kubectl(&["create", "configmap", "etcd-killed", "--from-literal=key=value"]).unwrap();
    SHARED.restart_etcd().unwrap();
    SHARED.kubectl(&["get", "configmap", "etcd-killed"]).unwrap();
    SHARED.kubectl(&["delete", "configmap", "etcd-killed"]).unwrap();
}

fn forgotten() {
    run(async {
        let maps = config_maps(SHARED.kubeconfig()).await;
        let first = maps.create(&PostParams::default(), &config_map("forgotten-1")).await.unwrap();
        let version = first.metadata.resource_version.unwrap();
        maps.create(&PostParams::default(), &config_map("forgotten-2")).await.unwrap();
        let page = maps.list(&ListParams::default().limit(1)).await.unwrap();
        let next = page.metadata.continue_.unwrap();

        // Before the history is dropped, the API server serves a watch and a page of a list at
        // earlier versions.
        let mut watch = std::pin::pin!(maps.watch(&WatchParams::default(), &version).await.unwrap());
        let event = watch.next().await.unwrap().unwrap();
        assert!(matches!(&event, WatchEvent::Added(map) if map.metadata.name.as_deref() == Some("forgotten-2")));
        maps.list(&ListParams::default().limit(1).continue_token(&next)).await.unwrap();

        maps.create(&PostParams::default(), &config_map("forgotten-3")).await.unwrap();
        SHARED.forget_history().unwrap();
        let code = match maps.watch(&WatchParams::default(), &version).await {
            Err(kube::Error::Api(status)) => status.code,
            Err(error) => panic!("{error}"),
            Ok(watch) => match std::pin::pin!(watch).next().await {
                Some(Ok(WatchEvent::Error(status))) => status.code,
                other => panic!("the watch goes on with {other:?}"),
            },
        };
        assert_eq!(code, 410);
        match maps.list(&ListParams::default().limit(1).continue_token(&next)).await {
            Err(kube::Error::Api(status)) => assert_eq!(status.code, 410),
            other => panic!("{other:?}"),
        }
    });
}

fn rights() {
    let nobody = SHARED.kubeconfig_for_user("nobody", None).unwrap();
    let may = || run(async { config_maps(&nobody).await.list(&ListParams::default()).await.map(drop) });
    let denied = |result| match result {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 403),
        other => panic!("{other:?}"),
    };
    let subject = Subject::User("nobody");
    denied(may());
    SHARED.grant("nobody-reads", subject, &["list"], &["configmaps"]).unwrap();
    may().unwrap();
    SHARED.revoke("nobody-reads").unwrap();
    SHARED.wait_right(subject, "list", "configmaps", false).unwrap();
    denied(may());
}

fn tokens() {
    SHARED.kubectl(&["create", "serviceaccount", "robot"]).unwrap();
    SHARED.kubectl(&["create", "configmap", "of-the-robot", "--from-literal=key=value"]).unwrap();
    let robot = SHARED.kubeconfig_for_service_account("default", "robot").unwrap();
    SHARED.grant("robot-reads", Subject::ServiceAccount("default", "robot"), &["get"], &["configmaps"]).unwrap();
    let token = SHARED.kubectl(&["create", "token", "robot"]).unwrap().trim().to_owned();
    run(async {
        config_maps(&robot).await.get("of-the-robot").await.unwrap();
        let reviews: Api<TokenReview> = Api::all(client(SHARED.kubeconfig()).await);
        let review = async |token: &str| {
            let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
            let review = TokenReview { spec, ..TokenReview::default() };
            reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap()
        };
        let good = review(&token).await;
        assert_eq!(good.authenticated, Some(true));
        assert_eq!(good.user.unwrap().username.unwrap(), "system:serviceaccount:default:robot");
        // The token gets another signature of the right length.
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let forged: String = signature.chars().rev().collect();
        assert_ne!(review(&format!("{signed}.{forged}")).await.authenticated, Some(true));
    });
}

fn two() {
    let other = ControlPlane::start("other").unwrap();
    assert_ne!(other.url(), SHARED.url());
    other.kubectl(&["create", "configmap", "of-the-other", "--from-literal=key=value"]).unwrap();
    let error = SHARED.kubectl(&["get", "configmap", "of-the-other"]).unwrap_err().to_string();
    assert!(error.contains("NotFound"), "{error}");
    // The administrator of one control plane has no rights in the other.
    let stranger = format!("--server={}", SHARED.url());
    assert!(other.kubectl(&["get", "namespaces", &stranger]).is_err());
    let (directory, url) = (other.kubeconfig().to_owned(), other.url());
    drop(other);
    assert_gone(&directory, &url);
}

fn outlived() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .env(VICTIM, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(victim.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (url, kubeconfig) = (lines.next().unwrap(), PathBuf::from(lines.next().unwrap()));
    let address = url.strip_prefix("https://").unwrap();
    TcpStream::connect(address).unwrap();
    assert!(kubeconfig.is_file());
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait::for_event("the end of what the killed test started", || {
        anyhow::ensure!(TcpStream::connect(address).is_err(), "the API server runs");
        anyhow::ensure!(!kubeconfig.parent().unwrap().exists(), "its directory is there");
        Ok(())
    })
    .unwrap();
}

/// Starts a control plane, prints its URL, and waits until it is killed.
fn victim() -> ExitCode {
    let plane = ControlPlane::start("victim").unwrap();
    println!("{}\n{}", plane.url(), plane.kubeconfig().display());
    std::io::stdin().lines().for_each(drop);
    ExitCode::SUCCESS
}

fn assert_gone(kubeconfig: &Path, url: &str) {
    assert!(TcpStream::connect(url.strip_prefix("https://").unwrap()).is_err(), "the API server runs");
    assert!(!kubeconfig.parent().unwrap().exists(), "its directory is there");
}
