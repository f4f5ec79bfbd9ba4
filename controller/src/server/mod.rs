//! The running server: opens what it needs in order, serves nodes and the operator, stops in order.
//!
//! - [`tls`]: who may speak to whom, and the controller's own certificate.
//! - [`connections`]: serving HTTP on one connection, within bounds.
//! - [`admin`]: the operator's socket.

mod admin;
mod connections;
mod listen;
mod tls;

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Context};
use crate::ca::Ca;
use crate::clock::Clock;
use crate::config::Config;
use crate::registry::Registry;
use crate::store::embedded::Embedded;
use crate::views::Common;

/// Time that open requests have to end when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// A server that runs.
pub struct Server {
    /// Addresses on which nodes are served.
    pub addresses: Vec<SocketAddr>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Opens store, authority and sockets, and begins to serve.
    pub async fn start(config: Config, clock: Clock) -> anyhow::Result<Self> {
        make_folder(&config.state_dir)?;
        let store = Embedded::open(&config.state_dir)?;
        let registry = Registry::start(Arc::new(store), clock.clone(), true).await?;
        let ca = Ca::open(&config.state_dir, clock.now()).context("certificate authority")?;
        let listeners = listen::open(&config.listen)?;
        let addresses = listeners.iter().map(|l| l.local_addr()).collect::<Result<Vec<_>, _>>()?;
        let admin = admin::open(&config.admin_socket)?;
        let stopping = CancellationToken::new();
        let app = Arc::new(Context {
            registry,
            policy: config.segment_policy(),
            common: Common::new(config.clone(), vec![ca.pem().to_owned()]),
            ca,
            config,
            stopping: stopping.clone(),
        });
        let tasks = TaskTracker::new();
        let router = api::router(app.clone());
        let server = tls::Tls::new(&app)?;
        tasks.spawn(tls::renew(server.clone(), app.clone()));
        for listener in listeners {
            tasks.spawn(connections::serve_nodes(
                listener,
                server.clone(),
                router.clone(),
                stopping.clone(),
                tasks.clone(),
            ));
        }
        tasks.spawn(admin::serve(admin, app.config.admin_socket.clone(), router, stopping.clone(), tasks.clone()));
        Ok(Self { addresses, stopping, tasks })
    }

    /// Stops: no new connections, streams end, open requests are finished.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests were still open after {} s", GRACE.as_secs());
        }
    }
}

/// Makes the state directory, for its owner alone.
fn make_folder(path: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the state directory {}", path.display()))
}
