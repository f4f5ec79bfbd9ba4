//! The client of the admin socket: sends the requests of `edge-agent` commands to the running
//! agent. `socket` is the path of the socket, which the agent has opened.

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use edge_types::error::with_causes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::AdminRequest;
use super::response::{BUFFER, OTHER_RELEASE, document, pass_on};
use crate::status::{self, Status};
use crate::stdout::print;

/// Timeout for the response.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two status requests of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Prints the agent's status as a table or as JSON, indented on a terminal, otherwise on one line.
/// `peers` are patterns for peer names. If there are any, prints only the data of matching peers.
/// Fails if no agent answers, or no peer matches.
pub fn status(socket: &Path, peers: &[String], json: bool) -> anyhow::Result<()> {
    if json && peers.is_empty() && !io::stdout().is_terminal() {
        let response = connect(socket, &AdminRequest::Status)?;
        return pass_on(response, &mut io::stdout().lock());
    }
    let status = status_of(socket, peers)?;
    let text = if json { serde_json::to_string_pretty(&status)? + "\n" } else { render(&status, peers) };
    print(&text).map(drop)
}

/// Prints the agent's status repeatedly, until the reader closes the output. On a terminal each
/// status replaces the one before. With `json` each status is one line. If the agent does not
/// answer, the command waits until it does.
pub fn watch_status(socket: &Path, peers: &[String], json: bool) -> anyhow::Result<()> {
    let out = io::stdout();
    // Moves the cursor home and clears the screen below it (ECMA-48 CUP, ED).
    let clear = if out.is_terminal() && !json { "\x1b[H\x1b[2J" } else { "" };
    let interval = Timespec::try_from(WATCH_INTERVAL)?;
    loop {
        let text = match status_of(socket, peers) {
            Ok(status) if json => serde_json::to_string(&status)? + "\n",
            Ok(status) => render(&status, peers),
            Err(error) => {
                eprintln!("edge-agent: {}", with_causes(error.as_ref()));
                String::new()
            }
        };
        // poll(2) reports a closed pipe as an error on the descriptor even if no event is
        // requested.
        let mut polled = [PollFd::new(&out, PollFlags::empty())];
        if !print(&format!("{clear}{text}"))? || poll(&mut polled, Some(&interval))? > 0 {
            return Ok(());
        }
    }
}

fn render(status: &Status, peers: &[String]) -> String {
    if peers.is_empty() { status::render(status) } else { status::render_peers(status) }
}

fn status_of(socket: &Path, peers: &[String]) -> anyhow::Result<Status> {
    let mut status = request_status(socket)?;
    if !peers.is_empty() {
        status::only_peers(&mut status, peers).map_err(anyhow::Error::msg)?;
    }
    Ok(*status)
}

/// Requests the status from the running agent. Fails if no agent answers.
pub fn request_status(socket: &Path) -> anyhow::Result<Box<Status>> {
    let line = send(socket, &AdminRequest::Status)?;
    let document = document(&line)?.context("the agent sent another response than the status")?;
    serde_json::from_str(document.get()).context(OTHER_RELEASE)
}

/// Makes the agent rekey all CHILD_SAs with `peer`, only those of its `child`, or the IKE SA. Fails
/// if there is no such peer, child or SA.
pub fn rekey(socket: &Path, peer: &str, child: Option<String>, ike: bool) -> anyhow::Result<()> {
    document(&send(socket, &AdminRequest::Rekey { peer: peer.into(), ike, child })?).map(drop)
}

/// Sends a request and returns the response line.
fn send(socket: &Path, request: &AdminRequest) -> anyhow::Result<String> {
    let mut line = String::new();
    let response = connect(socket, request)?;
    BufReader::with_capacity(BUFFER, response).read_line(&mut line).context("the agent did not answer")?;
    Ok(line)
}

/// Sends a request and returns the stream on which the response arrives.
pub(super) fn connect(socket: &Path, request: &AdminRequest) -> anyhow::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!("{}: no agent answers here; is `edge-agent run` running with this configuration?", socket.display())
    })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    Ok(stream)
}
