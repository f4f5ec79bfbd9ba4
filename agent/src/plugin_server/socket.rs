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
    inode: u64,
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
            let inode = fs::metadata(&temporary)?.ino();
            fs::rename(&temporary, path)?;
            Ok(Self { listener, path: path.to_owned(), inode })
        })();
        made.with_context(|| format!("making the plugin's socket {}", path.display()))
    }

    /// Returns when the socket file has been removed or replaced, so that no client can connect any
    /// more. Other programs may wipe directories below /run at any time.
    async fn file_gone(&self) {
        while fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
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
