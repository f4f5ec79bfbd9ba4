//! The server of the admin socket, in the running agent.

use std::fs::{self, Permissions};
use std::io::{self, BufWriter, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::{AdminRequest, AdminResponse};
use crate::status::Status;
use crate::tunnels::{CaptureReader, CapturedBatch, PeerReports, PolicyList, StateList};

/// A request and the channel for its reply.
pub type AdminCall = (AdminRequest, oneshot::Sender<Reply>);

/// The status whose long lists are made while they are written.
pub type StatusInParts = Status<PeerReports, StateList, PolicyList>;

/// The form of [`AdminResponse::Status`] for a status that is written part by part.
#[derive(Serialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
enum ResponseInParts {
    Status { status: Box<StatusInParts> },
}

/// The reply to a request.
#[derive(Debug)]
pub enum Reply {
    /// One response.
    Response(AdminResponse),
    /// The response to [`AdminRequest::StatusInParts`].
    StatusInParts(Box<StatusInParts>),
    /// A response for each batch of captured messages, until the capture or the connection ends.
    Capture(CaptureReader),
}

/// Maximum length of a request line, in bytes.
const MAX_LINE: u64 = 4096;
/// Interval at which the existence of the socket file is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Size of the buffer for a response in bytes, enough for what the kernel buffers for a socket by
/// default.
const BUFFER: usize = 256 << 10;
/// Maximum time for which a connection stays open. It does not apply to a running capture.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the socket, readable and writable by its owner only. Replaces the socket file that a
/// killed agent left behind.
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

/// Sends each request to the channel `to`. Opens the socket again if the socket file has been
/// removed.
pub async fn serve(path: PathBuf, mut listener: UnixListener, to: mpsc::Sender<AdminCall>) {
    loop {
        let Ok(accepted) = tokio::time::timeout(CHECK_INTERVAL, listener.accept()).await else {
            if !path.exists() {
                match listen(&path) {
                    Ok(again) => listener = again,
                    Err(error) => tracing::error!(%error, "cannot reopen {}", path.display()),
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
            if let Err(error) = serve_one(socket, to).await {
                tracing::debug!(%error, "a connection on the admin socket failed");
            }
        };
        tokio::spawn(serve_one.in_current_span());
    }
}

async fn serve_one(mut socket: UnixStream, to: mpsc::Sender<AdminCall>) -> io::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let reply = timeout_at(deadline, reply_to(&mut socket, to)).await??;
    match reply {
        Reply::Response(response) => timeout_at(deadline, send(socket, response)).await?,
        Reply::StatusInParts(status) => timeout_at(deadline, send(socket, ResponseInParts::Status { status })).await?,
        Reply::Capture(reader) => send_captured(&mut socket, reader).await,
    }
}

/// Reads a request, passes it to the channel `to` and returns the reply.
async fn reply_to(socket: &mut UnixStream, to: mpsc::Sender<AdminCall>) -> io::Result<Reply> {
    let mut line = String::new();
    BufReader::new(socket.take(MAX_LINE)).read_line(&mut line).await?;
    Ok(match serde_json::from_str(&line) {
        Ok(request) => {
            let request = if request == AdminRequest::Status { AdminRequest::StatusInParts } else { request };
            let (respond_to, reply) = oneshot::channel();
            let _ = to.send((request, respond_to)).await;
            let ending = AdminResponse::Failed { reason: "the agent is ending".into() };
            reply.await.unwrap_or(Reply::Response(ending))
        }
        Err(error) => {
            let reason = format!("not a request that this agent knows: {error}");
            Reply::Response(AdminResponse::Failed { reason })
        }
    })
}

/// Sends the captured messages. Returns when the connection is closed. After the capture has ended,
/// waits at most [`TIMEOUT`] for a command that does not read.
async fn send_captured(socket: &mut UnixStream, mut reader: CaptureReader) -> io::Result<()> {
    let end = reader.end();
    let (mut read, mut write) = socket.split();
    let send = async {
        // This empty batch tells the command that the capture has begun.
        write_line(&mut write, &AdminResponse::Captured { batch: CapturedBatch::default() }).await?;
        while let Some(batch) = reader.next().await {
            write_line(&mut write, &AdminResponse::Captured { batch }).await?;
        }
        let reason = "the capture has ended: another one has begun, or the agent is ending".into();
        write_line(&mut write, &AdminResponse::Failed { reason }).await
    };
    let too_late = async {
        end.cancelled().await;
        tokio::time::sleep(TIMEOUT).await;
    };
    tokio::select! {
        outcome = send => outcome,
        // The command sends nothing after its request, so a completed read means that it closed the
        // connection.
        _ = read.read_u8() => Ok(()),
        () = too_late => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn write_line(write: &mut (impl AsyncWrite + Unpin), response: &AdminResponse) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    write.write_all(&line).await
}

/// Sends a response. It is serialised while it is written, so that a long response is never in
/// memory as a whole. Dropping the future closes the socket, which ends the writing thread.
async fn send(socket: UnixStream, response: impl Serialize + Send + 'static) -> io::Result<()> {
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

/// Shuts the connection down in both directions when it is dropped, for all holders of the socket.
struct CloseOnDrop(std::os::unix::net::UnixStream);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        // The connection may be closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnels::{open_capture, reader_gone};

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
                let _ = respond_to.send(Reply::Response(AdminResponse::Done));
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
        // The directory is removed: the server creates the socket again.
        fs::remove_dir_all(directory.path().join("run")).unwrap();
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // An agent that starts again after being killed replaces the file.
        super::listen(&path).unwrap();
    }

    #[tokio::test]
    async fn a_capture_ends_with_its_connection_and_a_connection_with_its_capture() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let (to, mut requests) = mpsc::channel(1);
        tokio::spawn(serve(path.clone(), listen(&path).unwrap(), to));
        let mut begin = async || {
            let mut socket = BufReader::new(UnixStream::connect(&path).await.unwrap());
            socket.write_all(b"{\"request\":\"capture\",\"addresses\":[\"192.0.2.1\"]}\n").await.unwrap();
            let (request, respond_to) = requests.recv().await.unwrap();
            assert_eq!(request, AdminRequest::Capture { addresses: ["192.0.2.1".parse().unwrap()].into() });
            let (running, reader) = open_capture();
            respond_to.send(Reply::Capture(reader)).unwrap();
            let mut line = String::new();
            socket.read_line(&mut line).await.unwrap();
            assert_eq!(line, "{\"answer\":\"captured\",\"batch\":{\"messages\":[],\"dropped\":0}}\n");
            (socket, running)
        };
        let (socket, running) = begin().await;
        drop(socket);
        reader_gone(Some(&running)).await;

        let (mut socket, running) = begin().await;
        drop(running);
        let mut rest = String::new();
        socket.read_to_string(&mut rest).await.unwrap();
        assert!(rest.contains("\"failed\"") && rest.contains("another one has begun"), "{rest}");
    }

    #[tokio::test]
    async fn a_reader_that_stops_reading_holds_no_thread_once_its_time_is_over() {
        let (reader, writer) = UnixStream::pair().unwrap();
        // The response is larger than the buffer of the socket.
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
        // The runtime waits for its threads when it shuts down, so the test finishes only if the
        // writing thread has ended.
    }
}
