//! `edge-agent ping`: measures round-trip time and packet loss through a tunnel to a peer or a pod.
//!
//! - `destination`: the addresses to which requests are sent, or the reason why nothing can be
//!   sent. It does no I/O.
//! - `echo`: the ICMP echo requests and their replies.
//! - `path`: the MTU and the throughput of a path.
//! - `report`: the output, as a table or as JSON.
//! - [`measurement`]: measurements at the controller's request.

mod destination;
mod echo;
pub mod measurement;
mod path;
mod report;

use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::config::Config;
use crate::status::Status;
use crate::stdout::print;
pub use echo::PingOptions;
use report::{Path, Report};

/// Maximum number of requests to one address.
pub const MAX_COUNT: u16 = 10_000;
/// Minimum time between two requests, so that the requests do not flood the network.
pub const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Returns the path of the tunnel to a peer; `None` if it is not up.
fn path(status: &Status, peer: &str) -> Option<Path> {
    let peer = status.peers.iter().find(|report| report.name == peer && report.phase == "up")?;
    Some(peer.relayed_by.clone().map_or(Path::Direct, Path::RelayedBy))
}

/// Sends requests to a peer, or to an address behind it, and prints round-trip times and losses as
/// a table or as JSON. SIGINT ends the measurement early, with the results so far.
///
/// # Errors
/// If no request can be sent, with the reason, or if an address has answered none of the requests.
pub fn ping(config: &Config, about: &str, options: PingOptions, json: bool) -> anyhow::Result<()> {
    let status = admin::client::request_status(&config.admin_socket())?;
    let destinations = destination::find(about, &status, &config.peers).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let results = runtime.block_on(async {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stopped.cancel();
            }
        });
        join_all(destinations.iter().map(|destination| echo::ask(destination, options, &stop))).await
    });
    // The first request may have brought the tunnel up, and the path may have changed since.
    let status = admin::client::request_status(&config.admin_socket())?;
    let report = Report::new(destinations.iter().zip(&results), |peer| path(&status, peer));
    let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { report.render() };
    print(&text)?;
    match report.silent() {
        None => Ok(()),
        Some(why) => anyhow::bail!(why),
    }
}
