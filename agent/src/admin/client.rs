//! The client side: `edge-agent status` and `edge-agent rekey`.

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::AdminRequest;
use crate::config::Config;
use crate::status::{self, Status};
use crate::stdout::print;

/// Time limit for the response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Size of the buffer for the response, in bytes: as much as the socket holds.
const READ_BUFFER: usize = 256 << 10;
const OTHER_RELEASE: &str = "the agent's answer is not understood; are both of one release?";
/// Time between two updates of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Prints the agent's status, as a table or as JSON: indented on a terminal, otherwise as one line.
/// `peers` are patterns: if there are any, only the data of matching peers is printed. Fails if no
/// agent answers, or no peer matches.
pub fn status(config: &Config, peers: &[String], json: bool) -> anyhow::Result<()> {
    if json && peers.is_empty() && !io::stdout().is_terminal() {
        // A program reads the output. With ten thousand peers it has tens of megabytes, which are
        // passed on unchanged.
        let mut document = request_document(config)?;
        document.push('\n');
        return print(&document).map(drop);
    }
    let status = status_of(config, peers)?;
    let text = if json { serde_json::to_string_pretty(&status)? + "\n" } else { render(&status, peers) };
    print(&text).map(drop)
}

/// Prints the agent's status repeatedly, until the reader closes the output. On a terminal each
/// status replaces the last one. With `json` each is a line. If the agent does not answer, the
/// command waits for it.
pub fn watch_status(config: &Config, peers: &[String], json: bool) -> anyhow::Result<()> {
    let out = io::stdout();
    // Moves the cursor home and clears the screen below it (ECMA-48 CUP, ED).
    let clear = if out.is_terminal() && !json { "\x1b[H\x1b[2J" } else { "" };
    let interval = Timespec::try_from(WATCH_INTERVAL)?;
    loop {
        let text = match status_of(config, peers) {
            Ok(status) if json => serde_json::to_string(&status)? + "\n",
            Ok(status) => render(&status, peers),
            Err(error) => {
                eprintln!("edge-agent: {error:#}");
                String::new()
            }
        };
        // A closed reader shows as an error of the descriptor, without any requested event.
        let mut polled = [PollFd::new(&out, PollFlags::empty())];
        if !print(&format!("{clear}{text}"))? || poll(&mut polled, Some(&interval))? > 0 {
            return Ok(());
        }
    }
}

fn render(status: &Status, peers: &[String]) -> String {
    if peers.is_empty() { status::render(status) } else { status::render_peers(status) }
}

fn status_of(config: &Config, peers: &[String]) -> anyhow::Result<Status> {
    let mut status = request_status(config)?;
    if !peers.is_empty() {
        status::only_peers(&mut status, peers).map_err(anyhow::Error::msg)?;
    }
    Ok(*status)
}

/// Requests the status of the running agent. Fails if no agent answers.
pub fn request_status(config: &Config) -> anyhow::Result<Box<Status>> {
    serde_json::from_str(&request_document(config)?).context(OTHER_RELEASE)
}

/// Requests the status as [`request_status`], but returns the JSON document itself.
fn request_document(config: &Config) -> anyhow::Result<String> {
    let line = send(config, &AdminRequest::Status)?;
    let document = document(&line)?.context("the agent sent another response than the status")?;
    Ok(document.get().to_owned())
}

/// Makes the agent rekey the CHILD_SAs with `peer`, those of its `child` alone, or the IKE SA.
/// Fails if there is no such peer, child or SA.
pub fn rekey(config: &Config, peer: &str, child: Option<String>, ike: bool) -> anyhow::Result<()> {
    document(&send(config, &AdminRequest::Rekey { peer: peer.into(), ike, child })?).map(drop)
}

/// Sends a request, and returns the line of the response.
fn send(config: &Config, request: &AdminRequest) -> anyhow::Result<String> {
    let path = config.admin_socket();
    let mut socket = UnixStream::connect(&path).with_context(|| {
        format!("{}: no agent answers here; is `edge-agent run` running with this configuration?", path.display())
    })?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    socket.write_all(line.as_bytes())?;
    let mut line = String::new();
    BufReader::with_capacity(READ_BUFFER, socket).read_line(&mut line).context("the agent did not answer")?;
    Ok(line)
}

/// A response with the status as the agent wrote it. Parsing the status as
/// [`AdminResponse`](super::AdminResponse) would copy the whole document again.
#[derive(Deserialize)]
struct RawResponse<'a> {
    answer: Answer,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    reason: Option<String>,
}

/// The tags of [`AdminResponse`](super::AdminResponse).
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Status,
    Done,
    Failed,
}

/// Returns the document in a response; `None` if the response has none because the request was
/// carried out. Fails if the request failed.
fn document(line: &str) -> anyhow::Result<Option<&RawValue>> {
    let response: RawResponse<'_> = serde_json::from_str(line).context(OTHER_RELEASE)?;
    match (response.answer, response.status) {
        (Answer::Status, Some(document)) => Ok(Some(document)),
        (Answer::Done, _) => Ok(None),
        (Answer::Failed, _) => bail!(response.reason.unwrap_or_default()),
        (Answer::Status, None) => bail!(OTHER_RELEASE),
    }
}

#[cfg(test)]
mod tests {
    use super::super::AdminResponse;
    use super::*;

    #[test]
    fn each_response_of_the_agent_is_read_and_the_status_stays_as_it_is() {
        let line = |response: &AdminResponse| serde_json::to_string(response).unwrap() + "\n";
        assert!(document(&line(&AdminResponse::Done)).unwrap().is_none());
        let reason = "there is no peer \"moon\"".to_owned();
        let refused = document(&line(&AdminResponse::Failed { reason: reason.clone() })).unwrap_err();
        assert_eq!(refused.to_string(), reason);
        // A later release may add keys, and white space.
        let text = "{\"version\": \"9\",  \"later\": [1, {\"a\": null}]}";
        let later = format!("{{\"answer\":\"status\",\"status\":{text},\"more\":1}}\n");
        assert_eq!(document(&later).unwrap().unwrap().get(), text);
        for odd in
            ["", "\n", "{}", "{\"answer\":\"status\"}", "{\"answer\":\"dance\"}", "{\"answer\":\"status\",\"status\":{"]
        {
            assert!(format!("{:#}", document(odd).unwrap_err()).contains("one release"), "{odd}");
        }
    }
}
