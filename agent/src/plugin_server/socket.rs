//! The unix socket for the plugin. A connection carries one request and one response, each in one
//! frame. Only root and the agent's own user receive a response.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edge_types::agent_protocol::{AgentRequest, AgentResponse, Stock};
use edge_types::frame::{self, FrameError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{Instrument, debug, error, warn};

/// Maximum number of connections that are served at the same time; further connections wait.
pub(super) const MAX_CONNECTIONS: usize = 128;

/// Timeout for the request of a client.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Interval at which the existence of the socket file is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// A request from the plugin to the segment provisioner.
#[derive(Debug)]
pub(super) enum PluginRequest {
    /// A pod waits for an address.
    Segment {
        /// Free and leased addresses that the plugin counted.
        stock: Vec<Stock>,
        /// The channel for the response to the plugin.
        response: oneshot::Sender<AgentResponse>,
    },
    /// The plugin has leased addresses.
    AddressesTaken(Vec<Stock>),
}

/// The listening socket and its file.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file; `None` if it was gone at once.
    file: Option<(u64, u64)>,
    /// The process that listens: this one, except in a test.
    process: u32,
}

impl Socket {
    /// Creates the socket. Its mode is 0600 from the moment it has its final name. An older socket
    /// is replaced, since the lock of the state directory ensures that no other agent uses it.
    pub(super) fn bind(path: &Path) -> anyhow::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let temporary = path.with_extension("sock.new");
        let made = (|| {
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&temporary)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
            fs::rename(&temporary, path)?;
            // Read under the name under which it is looked for later.
            let file = file_at(path);
            Ok(Self { listener, path: path.to_owned(), file, process: std::process::id() })
        })();
        made.with_context(|| format!("making the plugin's socket {}", path.display()))
    }

    /// Returns when the socket file has been removed, or replaced by one on which nobody listens,
    /// so that no client can connect any more. Other programs may wipe directories below /run at
    /// any time. If another agent has the same `run_dir`, its socket stays: two agents that replace
    /// each other's socket would answer by turns.
    async fn file_gone(&self) {
        let mut replaced = false;
        loop {
            let there = file_at(&self.path);
            if there.is_none() {
                return;
            }
            if there != self.file {
                match listening_process(&self.path).await {
                    None => return,
                    // Not every file system keeps the numbers of files.
                    Some(process) if process == self.process => {}
                    Some(process) => {
                        if !std::mem::replace(&mut replaced, true) {
                            error!(
                                socket = %self.path.display(),
                                process,
                                "another process has replaced the plugin's socket and listens there: give each agent a run_dir of its own"
                            );
                        }
                    }
                }
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }
}

/// Returns device and inode of a file; `None` if there is none.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Returns the process that listens on a socket, 0 if it is in another PID namespace; `None` if
/// nobody listens.
async fn listening_process(path: &Path) -> Option<u32> {
    match timeout(READ_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => {
            let process = stream.peer_cred().ok()?.pid();
            Some(process.and_then(|process| u32::try_from(process).ok()).unwrap_or(0))
        }
        // Its queue is full.
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
        Ok(Err(_)) => None,
        Err(_) => Some(0),
    }
}

/// Serves the plugin until the future is dropped.
pub(super) async fn serve(mut socket: Socket, requests: mpsc::Sender<PluginRequest>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        tokio::select! {
            () = accept(&socket.listener, &slots, &requests) => {}
            () = socket.file_gone() => {
                warn!(socket = %socket.path.display(), "the plugin's socket was removed; it is made again");
                match Socket::bind(&socket.path) {
                    Ok(new) => socket = new,
                    Err(error) => {
                        error!("{error:#}");
                        tokio::time::sleep(CHECK_INTERVAL).await;
                    }
                }
            }
        }
    }
}

async fn accept(listener: &UnixListener, slots: &Arc<Semaphore>, requests: &mpsc::Sender<PluginRequest>) {
    loop {
        // The error cannot occur, because the semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let requests = requests.clone();
                let serve_one = async move {
                    if let Err(error) = respond(stream, &requests).await {
                        debug!(%error, "a request on the plugin's socket failed");
                    }
                    drop(slot);
                };
                tokio::spawn(serve_one.in_current_span());
            }
            Err(error) => {
                warn!(%error, "accepting a connection on the plugin's socket failed");
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        }
    }
}

async fn respond(mut stream: UnixStream, requests: &mpsc::Sender<PluginRequest>) -> Result<(), FrameError> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied).into());
    }
    let request = timeout(READ_TIMEOUT, read(&mut stream))
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
    let response = match request {
        Ok(AgentRequest::Ping) => AgentResponse::Done,
        Ok(AgentRequest::AddressesTaken { stock }) => {
            // If the queue is full, the report is dropped, since the next ADD sends a new report.
            let _ = requests.try_send(PluginRequest::AddressesTaken(stock));
            AgentResponse::Done
        }
        Ok(AgentRequest::RequestSegment { stock }) => {
            let (sender, receiver) = oneshot::channel();
            let ended =
                || AgentResponse::Failed { reason: "the agent is ending; it will be back".into(), temporary: true };
            match requests.send(PluginRequest::Segment { stock, response: sender }).await {
                Ok(()) => receiver.await.unwrap_or_else(|_| ended()),
                Err(_) => ended(),
            }
        }
        Err(error @ (FrameError::Version { .. } | FrameError::Malformed(_) | FrameError::TooLarge(_))) => {
            AgentResponse::Failed {
                reason: format!("the agent does not understand the request: {error}"),
                temporary: false,
            }
        }
        Err(error) => return Err(error),
    };
    stream.write_all(&frame::encode(&response)?).await?;
    Ok(stream.shutdown().await?)
}

async fn read(stream: &mut UnixStream) -> Result<AgentRequest, FrameError> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; frame::body_length(header)?];
    stream.read_exact(&mut body).await?;
    frame::decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_types::api::Family;
    use std::io::Write;

    /// Sends a request on a separate thread, like the plugin does.
    fn ask(path: &Path, request: AgentRequest) -> tokio::task::JoinHandle<AgentResponse> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            frame::write(&mut stream, &request).unwrap();
            frame::read(&mut stream).unwrap()
        })
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_alone_and_replaces_what_a_killed_agent_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/agent.sock");
        let first = Socket::bind(&path).unwrap();
        let socket = Socket::bind(&path).unwrap();
        drop(first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (requests, mut queue) = mpsc::channel(1);
        tokio::spawn(serve(socket, requests));
        assert_eq!(ask(&path, AgentRequest::Ping).await.unwrap(), AgentResponse::Done);
        let stock = vec![Stock { family: Family::V4, free: 1, leased: 60 }];
        let pending = ask(&path, AgentRequest::RequestSegment { stock: stock.clone() });
        let Some(PluginRequest::Segment { stock: seen, response }) = queue.recv().await else { panic!("no request") };
        assert_eq!(seen, stock);
        let full = AgentResponse::Failed { reason: "the range is full".into(), temporary: false };
        response.send(full.clone()).unwrap();
        assert_eq!(pending.await.unwrap(), full);
    }

    #[tokio::test]
    async fn a_socket_whose_folder_was_wiped_is_back_without_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/agent.sock");
        let (requests, _queue) = mpsc::channel(1);
        tokio::spawn(serve(Socket::bind(&path).unwrap(), requests));
        assert_eq!(ask(&path, AgentRequest::Ping).await.unwrap(), AgentResponse::Done);
        fs::remove_dir_all(directory.path().join("run")).unwrap();
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(ask(&path, AgentRequest::Ping).await.unwrap(), AgentResponse::Done);
    }

    #[tokio::test]
    async fn of_two_agents_with_one_run_dir_the_later_one_has_the_socket_until_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let (requests, mut queue) = mpsc::channel(1);
        // To this socket, the process of this test is another one.
        let first = Socket { process: 1, ..Socket::bind(&path).unwrap() };
        tokio::spawn(serve(first, requests));
        let (others_requests, mut others_queue) = mpsc::channel(1);
        let other = Socket::bind(&path).unwrap();
        let file = other.file;
        let other = tokio::spawn(serve(other, others_requests));
        let taken = || ask(&path, AgentRequest::AddressesTaken { stock: vec![] });
        // That nothing happens shows only after some checks.
        tokio::time::sleep(CHECK_INTERVAL * 3).await;
        assert_eq!(file_at(&path), file, "the first agent does not take the socket back");
        assert_eq!(taken().await.unwrap(), AgentResponse::Done);
        assert!(others_queue.try_recv().is_ok() && queue.try_recv().is_err());
        other.abort();
        let _ = other.await;
        while file_at(&path) == file {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(taken().await.unwrap(), AgentResponse::Done);
        assert!(queue.try_recv().is_ok());
    }

    #[tokio::test]
    async fn a_file_that_got_another_number_is_not_made_again_while_this_agent_listens_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let socket = Socket { file: Some((0, 0)), ..Socket::bind(&path).unwrap() };
        let file = file_at(&path);
        let (requests, _queue) = mpsc::channel(1);
        tokio::spawn(serve(socket, requests));
        // That nothing happens shows only after some checks.
        tokio::time::sleep(CHECK_INTERVAL * 3).await;
        assert_eq!(file_at(&path), file);
        assert_eq!(ask(&path, AgentRequest::Ping).await.unwrap(), AgentResponse::Done);
    }

    #[tokio::test]
    async fn invalid_frames_and_those_of_another_release_get_an_error_and_disturb_no_other_client() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let (requests, mut queue) = mpsc::channel(1);
        tokio::spawn(serve(Socket::bind(&path).unwrap(), requests));
        let huge = [&[frame::VERSION][..], &u32::MAX.to_be_bytes()].concat();
        for (octets, words) in [
            (vec![9, 0, 0, 0, 0], "version 9"),
            (huge, "larger than the limit"),
            (vec![frame::VERSION, 0, 0, 0, 2, 0xff, 0xff], "does not hold the expected message"),
        ] {
            let path = path.clone();
            let response = tokio::task::spawn_blocking(move || {
                let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
                stream.write_all(&octets).unwrap();
                frame::read::<AgentResponse>(&mut stream).unwrap()
            });
            let AgentResponse::Failed { reason, temporary: false } = response.await.unwrap() else { panic!("{words}") };
            assert!(reason.contains(words), "{reason}");
        }
        // One client disconnects in the middle of its request. Another one stalls in the middle of
        // its request.
        drop(std::os::unix::net::UnixStream::connect(&path).unwrap().write_all(&[frame::VERSION, 0]));
        let mut slow = std::os::unix::net::UnixStream::connect(&path).unwrap();
        slow.write_all(&[frame::VERSION]).unwrap();
        assert_eq!(ask(&path, AgentRequest::Ping).await.unwrap(), AgentResponse::Done);
        assert!(queue.try_recv().is_err(), "no request reached the provisioner");
    }
}
