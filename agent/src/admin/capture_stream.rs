//! The connection from `edge-agent capture` to the running agent. The agent copies IKE messages to
//! the command while the connection is open.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::AdminRequest;
use super::client::{TIMEOUT, connect};
use super::response::{OTHER_RELEASE, document};
use crate::tunnels::CapturedBatch;

/// Maximum number of octets that one read from the socket returns.
const CHUNK: usize = 64 << 10;
/// Maximum length of a line from the agent, in octets. A batch of messages is shorter.
const MAX_LINE: usize = 4 << 20;

/// A running capture. The capture ends if this value is dropped or the process exits.
#[derive(Debug)]
pub struct CaptureStream {
    socket: UnixStream,
    received: Vec<u8>,
}

/// The next event of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Messages that the agent has copied since the last batch.
    Batch(CapturedBatch),
    /// The program that reads the output has closed it.
    ReaderGone,
    /// The deadline passed to [`CaptureStream::next`] has passed.
    TimeOver,
}

impl CaptureStream {
    /// Asks the running agent to copy the messages to and from these addresses.
    ///
    /// # Errors
    /// If no agent answers, or the agent refuses to copy the messages.
    pub fn begin(socket: &Path, addresses: BTreeSet<IpAddr>) -> anyhow::Result<Self> {
        let socket = connect(socket, &AdminRequest::Capture { addresses })?;
        let mut stream = Self { socket, received: Vec::new() };
        match stream.wait(None, Instant::now() + TIMEOUT)? {
            Next::Batch(_) => Ok(stream),
            Next::ReaderGone | Next::TimeOver => bail!("the agent did not answer"),
        }
    }

    /// Waits for messages until the deadline, or until the program that reads `output` closes it.
    ///
    /// # Errors
    /// If the capture has ended.
    pub fn next(&mut self, output: &impl AsFd, until: Instant) -> anyhow::Result<Next> {
        self.wait(Some(output.as_fd()), until)
    }

    fn wait(&mut self, output: Option<BorrowedFd<'_>>, until: Instant) -> anyhow::Result<Next> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Next::TimeOver);
            }
            if let Some(end) = self.received.iter().position(|octet| *octet == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let line = std::str::from_utf8(&line).context(OTHER_RELEASE)?;
                let batch = document(line)?.context("the agent sent another response than captured messages")?;
                return Ok(Next::Batch(serde_json::from_str(batch.get()).context(OTHER_RELEASE)?));
            }
            if self.received.len() > MAX_LINE {
                bail!(OTHER_RELEASE);
            }
            if self.is_reader_gone(output, left)? {
                return Ok(Next::ReaderGone);
            }
        }
    }

    /// Waits for octets from the agent and reads them. Returns whether the program that reads
    /// `output` has closed it.
    fn is_reader_gone(&mut self, output: Option<BorrowedFd<'_>>, longest: Duration) -> anyhow::Result<bool> {
        let mut agent = [PollFd::new(&self.socket, PollFlags::IN)].to_vec();
        // poll(2) reports a closed pipe as an error on the descriptor even if no event is
        // requested.
        agent.extend(output.map(|output| PollFd::from_borrowed_fd(output, PollFlags::empty())));
        match poll(&mut agent, Some(&Timespec::try_from(longest)?)) {
            Err(Errno::INTR) => return Ok(false),
            outcome => outcome?,
        };
        let mut ready = agent.iter().map(|polled| !polled.revents().is_empty());
        let (from_agent, gone) = (ready.next() == Some(true), ready.next() == Some(true));
        if from_agent && !gone {
            let mut chunk = vec![0; CHUNK];
            let length = self.socket.read(&mut chunk).context("the agent's messages")?;
            if length == 0 {
                bail!("the agent has stopped, so the capture has ended");
            }
            self.received.extend(chunk.iter().take(length));
        }
        Ok(gone)
    }
}
