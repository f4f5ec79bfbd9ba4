//! The server in the running agent.

use std::fs::{self, Permissions};
use std::io::{self, BufWriter, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use super::{AdminRequest, AdminResponse};

/// A request, and where its response goes.
pub type AdminCall = (AdminRequest, oneshot::Sender<AdminResponse>);

/// Longest line that is read, bytes.
const MAX_LINE: u64 = 4096;
/// How often the socket's file is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Size of the buffer for a response, bytes: as much as the socket holds.
const BUFFER: usize = 256 << 10;
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
    let mut line = String::new();
    BufReader::new((&mut socket).take(MAX_LINE)).read_line(&mut line).await?;
    let response = match serde_json::from_str(&line) {
        Ok(request) => {
            let (respond_to, response) = oneshot::channel();
            let _ = to.send((request, respond_to)).await;
            response.await.unwrap_or(AdminResponse::Failed { reason: "the agent is ending".into() })
        }
        Err(error) => AdminResponse::Failed { reason: format!("not a request that this agent knows: {error}") },
    };
    send(socket, response).await
}

/// Sends a response. It is written as it is made, so that a long one is never in memory as a whole.
/// Dropping the future closes the socket, which ends the thread that writes.
async fn send(socket: UnixStream, response: AdminResponse) -> io::Result<()> {
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    let close = CloseOnDrop(socket.try_clone()?);
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(BUFFER, socket);
        serde_json::to_writer(&mut out, &response)?;
        out.write_all(b"\n")?;
        out.flush()
    });
    let outcome = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    drop(close);
    outcome
}

/// Closes a connection in both directions, for all that hold it.
struct CloseOnDrop(std::os::unix::net::UnixStream);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        // It may be closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

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
        // If the directory is wiped, the socket comes back.
        fs::remove_dir_all(directory.path().join("run")).unwrap();
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // An agent that was killed and starts again replaces the file.
        super::listen(&path).unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_stops_reading_holds_no_thread_once_its_time_is_over() {
        let (reader, writer) = UnixStream::pair().unwrap();
        // More than the socket holds.
        let response = AdminResponse::Failed { reason: "x".repeat(16 << 20) };
        let mut sending = Box::pin(send(writer, response));
        let mut first = [0];
        let read = async {
            reader.readable().await.unwrap();
            reader.try_read(&mut first).unwrap()
        };
        tokio::select! {
            outcome = &mut sending => panic!("all was sent: {outcome:?}"),
            length = read => assert_eq!(length, 1),
        }
        drop(sending);
        let mut rest = Vec::new();
        let mut reader = reader;
        reader.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() < 16 << 20, "it is closed before its end");
        // The runtime waits for its threads when it ends, so this test ends only if the thread did.
    }
}
