//! Serves the API on the operator's socket, to every user who may open the socket file.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use axum::Router;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::connections::{self, OpenConnections};
use crate::api::caller::CallerIdentity;

/// Opens the socket with mode 0600, in place of a socket that a killed server left behind.
pub(super) fn open(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.with_context(|| format!("cannot make {}", directory.display()))?;
    }
    if path.exists() {
        if BlockingStream::connect(path).is_ok() {
            bail!(
                "another edge-controller serves {}; stop it first, or configure another admin_socket",
                path.display()
            );
        }
        std::fs::remove_file(path).with_context(|| format!("cannot remove the old socket {}", path.display()))?;
    }
    // The socket is bound under another name and renamed after its permissions are set, so that no
    // client can connect earlier.
    let staged = path.with_extension("new");
    let _ = std::fs::remove_file(&staged);
    let open = || -> std::io::Result<UnixListener> {
        let listener = UnixListener::bind(&staged)?;
        std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&staged, path)?;
        Ok(listener)
    };
    open().with_context(|| format!("cannot open the admin socket {}", path.display()))
}

/// Accepts the operator's commands until `closing`.
pub(super) async fn serve(
    listener: UnixListener,
    path: PathBuf,
    router: Router,
    closing: CancellationToken,
    open: OpenConnections,
) {
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let caller = connections::caller(CallerIdentity::Operator, None);
                let (router, stopping) = (router.clone(), open.stopping.clone());
                let served = connections::serve(stream, caller, &connections::KNOWN, router, stopping);
                // The operator's connections never leave HTTP.
                open.tasks.spawn(async move { drop(served.await) });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    // If the socket is missing, the operator's commands report that no server runs.
    let _ = std::fs::remove_file(path);
}
