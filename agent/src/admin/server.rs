//! The agent's end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Request};

/// A request with the way back.
pub type Asked = (Request, oneshot::Sender<Answer>);

/// Longest line that is read, bytes.
const MAX_LINE: u64 = 4096;
/// Between two looks whether the socket is still there.
const LOOK: Duration = Duration::from_secs(1);
/// Longest silence of a client.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the socket, readable and writable by root only. What a killed agent left is replaced.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Hands requests on. A socket that somebody wiped with its folder is made anew.
pub async fn serve(path: PathBuf, mut listener: UnixListener, to: mpsc::Sender<Asked>) {
    loop {
        let Ok(accepted) = tokio::time::timeout(LOOK, listener.accept()).await else {
            if !path.exists() {
                match listen(&path) {
                    Ok(again) => listener = again,
                    Err(error) => tracing::error!(%error, "{} cannot be made anew", path.display()),
                }
            }
            continue;
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let to = to.clone();
        tokio::spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(TIMEOUT, answer(socket, to)).await {
                tracing::debug!(%error, "admin client");
            }
        });
    }
}

async fn answer(mut socket: UnixStream, to: mpsc::Sender<Asked>) -> io::Result<()> {
    let (read, mut write) = socket.split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let (back, answer) = oneshot::channel();
            let _ = to.send((request, back)).await;
            answer.await.unwrap_or(Answer::Failed { reason: "the agent is ending".into() })
        }
        Err(error) => Answer::Failed { reason: format!("not a request that this agent knows: {error}") },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    write.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_gets_its_answer_and_nonsense_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/admin.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (to, mut requests) = mpsc::channel(1);
        tokio::spawn(serve(path.clone(), listener, to));
        tokio::spawn(async move {
            while let Some((request, back)) = requests.recv().await {
                assert_eq!(request, Request::Rekey { peer: "moon".into() });
                let _ = back.send(Answer::Done);
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
        // Whoever wipes the folder does no lasting harm.
        fs::remove_dir_all(folder.path().join("run")).unwrap();
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A second agent, or the same after a kill, takes the path over.
        super::listen(&path).unwrap();
    }
}
