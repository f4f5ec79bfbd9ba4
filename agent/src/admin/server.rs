//! The server side, in the running agent.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use super::{AdminRequest, AdminResponse};

/// A request, and the channel for its response.
pub type AdminCall = (AdminRequest, oneshot::Sender<AdminResponse>);

/// Maximum length of a line, in bytes.
const MAX_LINE: u64 = 4096;
/// How often the socket's file is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A connection is closed after this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the socket, readable and writable by its owner only. Replaces the file of a killed agent.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Sends each request into the channel `to`. If the socket's file is gone, opens it again.
pub async fn serve(path: PathBuf, mut listener: UnixListener, to: mpsc::Sender<AdminCall>) {
    loop {
        let Ok(accepted) = tokio::time::timeout(CHECK_INTERVAL, listener.accept()).await else {
            if !path.exists() {
                match listen(&path) {
                    Ok(again) => listener = again,
                    Err(error) => tracing::error!(%error, "{} cannot be opened again", path.display()),
                }
            }
            continue;
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(CHECK_INTERVAL).await;
            continue;
        };
        let to = to.clone();
        let serve_one = async move {
            if let Ok(Err(error)) = tokio::time::timeout(TIMEOUT, respond(socket, to)).await {
                tracing::debug!(%error, "a connection on the admin socket failed");
            }
        };
        tokio::spawn(serve_one.in_current_span());
    }
}

async fn respond(mut socket: UnixStream, to: mpsc::Sender<AdminCall>) -> io::Result<()> {
    let (read, mut write) = socket.split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await?;
    let response = match serde_json::from_str(&line) {
        Ok(request) => {
            let (respond_to, response) = oneshot::channel();
            let _ = to.send((request, respond_to)).await;
            response.await.unwrap_or(AdminResponse::Failed { reason: "the agent is ending".into() })
        }
        Err(error) => AdminResponse::Failed { reason: format!("not a request that this agent knows: {error}") },
    };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    write.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_gets_its_answer_and_nonsense_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/admin.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (to, mut requests) = mpsc::channel(1);
        tokio::spawn(serve(path.clone(), listener, to));
        tokio::spawn(async move {
            while let Some((request, respond_to)) = requests.recv().await {
                assert_eq!(request, AdminRequest::Rekey { peer: "moon".into(), ike: false, child: None });
                let _ = respond_to.send(AdminResponse::Done);
            }
        });
        for (line, expected) in [
            ("{\"request\":\"rekey\",\"peer\":\"moon\"}\n", "\"done\""),
            ("{\"request\":\"dance\"}\n", "not a request"),
        ] {
            let mut socket = UnixStream::connect(&path).await.unwrap();
            socket.write_all(line.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains(expected), "{answer}");
        }
        // If the directory is wiped, the socket is created again.
        fs::remove_dir_all(directory.path().join("run")).unwrap();
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // An agent that was killed and starts again replaces the file.
        super::listen(&path).unwrap();
    }
}
