//! Drives a headless Chromium by the WebDriver protocol (W3C).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Flags for Chromium, which must neither send requests beyond this machine nor need a display.
/// Root needs --no-sandbox.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1400",
];
/// Time limit for the expected state of a page, in milliseconds. The limit is this long because the
/// machine may be busy.
const PATIENCE: u64 = 240_000;

/// The keys of WebDriver (section 17.4.2).
pub(crate) const TAB: char = '\u{e004}';
pub(crate) const ENTER: char = '\u{e007}';

pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

fn is_there(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|path| path.join(program).is_file())
}

/// Runs a test in a new browser, and ends the browser in any case. Counts the test as skipped if
/// there is no Chromium.
pub(crate) async fn with_browser<T>(test: impl FnOnce(Arc<Browser>) -> T)
where
    T: Future<Output = ()> + Send + 'static,
{
    if !(is_there("chromium") && is_there("chromedriver")) {
        assert!(std::env::var_os("CI").is_none(), "chromium or chromedriver is missing: run .ci/install test");
        return eprintln!("skipped: chromium or chromedriver is missing; .ci/install test installs them");
    }
    let browser = Arc::new(Browser::start().await);
    let outcome = tokio::spawn(test(browser.clone())).await;
    // Killing the driver leaves Chromium running, so the driver must end the session first.
    let (address, session) = (browser.address, format!("/session/{}", browser.session));
    let _ = tokio::spawn(async move { command(address, Method::DELETE, &session, json!({})).await }).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic.into_panic());
    }
}

async fn command(at: SocketAddr, method: Method, path: &str, body: Value) -> Value {
    let stream = TcpStream::connect(at).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(&method).uri(path).header("host", at.to_string());
    let body = if method == Method::GET { String::new() } else { body.to_string() };
    let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(body))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut value: Value = serde_json::from_slice(&body).unwrap();
    assert!(status.is_success(), "{method} {path}: {value}");
    value["value"].take()
}

impl Browser {
    async fn start() -> Self {
        let mut driver =
            Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("started successfully on port ")?.1.trim_end_matches('.').parse().ok())
            .expect("chromedriver names its port");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        // The lines are read, so that the driver does not block when the pipe is full.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().unwrap();
        let mut flags: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
        flags.push(format!("--user-data-dir={}", profile.path().display()));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": PATIENCE, "pageLoad": PATIENCE},
        }}});
        let made = command(address, Method::POST, "/session", wanted).await;
        let session = made["sessionId"].as_str().unwrap().into();
        Self { driver, address, session, _profile: profile }
    }

    async fn ask(&self, path: &str, body: Value) -> Value {
        command(self.address, Method::POST, &format!("/session/{}/{path}", self.session), body).await
    }

    pub(crate) async fn open(&self, url: &str) {
        self.ask("url", json!({"url": url})).await;
    }

    /// Evaluates a JavaScript expression.
    pub(crate) async fn value(&self, expression: &str) -> Value {
        self.ask("execute/sync", json!({"script": format!("return ({expression});"), "args": []})).await
    }

    /// Returns when an expression becomes true.
    pub(crate) async fn wait(&self, expression: &str) {
        let script = format!(
            "return new Promise((done, failed) => {{ const begun = Date.now(); const look = () => {{ \
             if ({expression}) done(); else if (Date.now() - begun > {PATIENCE} - 5000) failed(document.body.innerText); \
             else setTimeout(look, 50); }}; look(); }});"
        );
        let waited = tokio::spawn({
            let (address, path) = (self.address, format!("/session/{}/execute/sync", self.session));
            async move { command(address, Method::POST, &path, json!({"script": script, "args": []})).await }
        });
        assert!(waited.await.is_ok(), "it does not become true: {expression}");
    }

    /// Presses keys, one after another.
    pub(crate) async fn press(&self, keys: impl IntoIterator<Item = char>) {
        let one = |key: char| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let actions: Vec<Value> = keys.into_iter().flat_map(one).collect();
        self.ask("actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})).await;
    }

    /// Returns what the browser tells a screen reader: role and name of each element, in order.
    pub(crate) async fn accessibility(&self) -> Vec<(String, String)> {
        let tree = self.ask("goog/cdp/execute", json!({"cmd": "Accessibility.getFullAXTree", "params": {}})).await;
        let text = |node: &Value, key: &str| node[key]["value"].as_str().unwrap_or_default().trim().to_owned();
        let told = tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] != true);
        told.map(|node| (text(node, "role"), text(node, "name"))).collect()
    }

    /// Sets media features, such as `prefers-color-scheme`.
    pub(crate) async fn prefer(&self, feature: &str, value: &str) {
        let features = json!({"features": [{"name": feature, "value": value}]});
        self.ask("goog/cdp/execute", json!({"cmd": "Emulation.setEmulatedMedia", "params": features})).await;
    }

    /// Sets the size of the window, in pixels.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        self.ask("window/rect", json!({"width": width, "height": height})).await;
    }

    /// Returns a picture of the window's content, as PNG.
    pub(crate) async fn picture(&self) -> Vec<u8> {
        let path = format!("/session/{}/screenshot", self.session);
        let picture = command(self.address, Method::GET, &path, json!({})).await;
        STANDARD.decode(picture.as_str().unwrap()).unwrap()
    }

    /// Returns the browser's complaints since the last call: errors of scripts, and requests that
    /// the Content-Security-Policy refused.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let entries = self.ask("se/log", json!({"type": "browser"})).await;
        let of = |entry: &Value| format!("{} {}", entry["level"].as_str().unwrap_or(""), entry["message"]);
        entries.as_array().unwrap().iter().map(of).filter(|entry| !entry.starts_with("INFO")).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
