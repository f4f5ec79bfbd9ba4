//! Implements `gather`, which writes information for finding faults into one file, without any
//! secret.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::http::{Method, Request, header};
use edge_controller_domain::clock::{Clock, rfc3339};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

use super::archive::StagedFile;
use super::client::Client;
use super::config;
use crate::config::{Config, ConfigSources};

/// Paths of the API from which data is gathered. No response contains a secret: tokens appear as
/// ids and authorities as certificates.
const REQUESTS: [(&str, &str); 5] = [
    ("status", "/v1/status"),
    ("segments", "/v1/segments"),
    ("communities", "/v1/communities"),
    ("tokens", "/v1/tokens"),
    ("authorities", "/v1/ca"),
];
/// Pages on the listener for health and metrics.
const PAGES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];
/// Time limit for a page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a page, in bytes.
const LARGEST_PAGE: usize = 8 << 20;

/// Writes the file, or to standard output if `file` is `-`. Data that cannot be read appears in it
/// as an error, so that the file is also useful if the server does not run.
pub(super) async fn gather(client: &Client, file: &Path, sources: &ConfigSources) -> anyhow::Result<()> {
    let mut document = Map::new();
    document.insert("format".into(), "edge-controller-gather".into());
    document.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    document.insert("written_at".into(), rfc3339(Clock::system().now()).into());
    for (name, path) in REQUESTS {
        let response = client.ask::<Value>(Method::GET, path, None::<&()>).await;
        document.insert(name.into(), or_error(response));
    }
    let loaded = sources.load();
    let pages = match &loaded {
        Ok(loaded) => pages(&loaded.config).await,
        Err(_) => Map::new(),
    };
    document.insert("configuration".into(), or_error(loaded.map(|loaded| config::values(&loaded)).map_err(Into::into)));
    document.insert("pages".into(), pages.into());
    let failed = document.values().filter(|value| value.get("error").is_some()).count();
    let name = if file == Path::new("-") {
        print(&document).context("cannot write to standard output")?;
        "the document".to_owned()
    } else {
        let staged = StagedFile::create(file)?;
        serde_json::to_writer_pretty(&staged.open, &document)
            .with_context(|| format!("cannot write {}", file.display()))?;
        staged.publish(file)?;
        file.display().to_string()
    };
    eprintln!("wrote {name}: it holds names, addresses and labels of nodes, and no secret");
    if failed > 0 {
        eprintln!("{failed} parts of it could not be had; it says why");
    }
    Ok(())
}

/// Writes the document to standard output.
fn print(document: &Map<String, Value>) -> anyhow::Result<()> {
    let mut to = io::stdout().lock();
    serde_json::to_writer_pretty(&mut to, document)?;
    writeln!(to)?;
    Ok(to.flush()?)
}

fn or_error(found: anyhow::Result<Value>) -> Value {
    found.unwrap_or_else(|error| json!({"error": edge_types::error::with_causes(error.as_ref())}))
}

/// Reads the pages from the first listener for health and metrics.
async fn pages(config: &Config) -> Map<String, Value> {
    let Some(listen) = config.observe.listen.first() else { return Map::new() };
    let mut pages = Map::new();
    for path in PAGES {
        let page = match tokio::time::timeout(PAGE_TIMEOUT, page(reachable(*listen), path)).await {
            Ok(page) => page.with_context(|| format!("{listen}{path}")),
            Err(_) => Err(anyhow::anyhow!("{listen}{path}: no response within {} s", PAGE_TIMEOUT.as_secs())),
        };
        pages.insert(path.into(), or_error(page.map(Value::from)));
    }
    pages
}

/// Returns the address at which a listener is reached. A listener on all addresses is reached on
/// the loopback interface.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn page(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address).await.context("cannot connect")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let body = Limited::new(sender.send_request(request).await?.into_body(), LARGEST_PAGE).collect().await;
    match body {
        Ok(body) => Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned()),
        Err(error) => bail!("{error}"),
    }
}
