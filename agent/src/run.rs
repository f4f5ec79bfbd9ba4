//! `edge-agent run`: starts the cloud's side on a small thread pool and the node's side on a thread of its own, and ends both.

use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::clock::WorldClock;
use crate::cloud::Cloud;
use crate::config::Config;
use crate::store::StateDir;
use crate::{local, membership};

/// Runs until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    start_log();
    let config = Arc::new(config);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = CancellationToken::new();
    let state = Arc::new(StateDir::open(&config.state_dir)?);
    let (cloud, node) = membership::seam(config.clone(), Arc::new(WorldClock::default()), stop.clone());
    if config.controller.is_some() {
        let cloud = Cloud::load(cloud, state)?;
        runtime.spawn(cloud.clone().run());
        let stop = stop.clone();
        runtime.spawn(async move {
            if let Err(error) = local::run(cloud).await {
                tracing::error!("{error:#}");
                stop.cancel();
            }
        });
    }
    let _ = node;
    runtime.block_on(ended(stop.clone()))?;
    stop.cancel();
    bail!("tunnels are not carried out yet")
}

/// Waits for SIGTERM, SIGINT, or a part of the agent that cannot go on.
async fn ended(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// Log to standard error; `EDGE_AGENT_LOG` sets the level, e.g. `debug` or `edge_ike=trace`.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    // netlink-proto traces whole messages, keys included: it never gets to speak, whatever is asked for.
    let filter = EnvFilter::try_from_env("EDGE_AGENT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = ["netlink_proto=off", "netlink_packet_xfrm=off"]
        .iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, EnvFilter::add_directive);
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
