//! The plugin's requests to the agent, through its unix socket.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use edge_types::agent_protocol::{AgentRequest, AgentResponse, SEGMENT_REQUEST_TIMEOUT_SECONDS, Stock};
use edge_types::frame::{self, FrameError};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Maximum time that a finished ADD spends on reporting its stock of addresses. A report may be
/// lost.
const NOTICE_TIMEOUT: Duration = Duration::from_millis(100);

/// Timeout for the agent's answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The result of a segment request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SegmentRequestOutcome {
    /// The agent has written all segments that it has received to the segments file.
    Granted,
    /// No segment was granted. `temporary` states whether a later attempt may succeed.
    Failed { reason: String, temporary: bool },
}

/// Requests another segment for the families in `stock`.
pub(crate) fn request_segment(socket: &Path, stock: Vec<Stock>) -> SegmentRequestOutcome {
    let limit = Duration::from_secs(SEGMENT_REQUEST_TIMEOUT_SECONDS);
    match request(socket, &AgentRequest::RequestSegment { stock }, limit) {
        Ok(AgentResponse::Done) => SegmentRequestOutcome::Granted,
        Ok(AgentResponse::Failed { reason, temporary }) => SegmentRequestOutcome::Failed { reason, temporary },
        Err(FrameError::Io(error)) => {
            SegmentRequestOutcome::Failed { reason: explain_io_error(socket, &error), temporary: true }
        }
        Err(error) => {
            let reason = format!(
                "the agent on {} sent a response that this edge-cni does not understand: {error}",
                socket.display()
            );
            SegmentRequestOutcome::Failed { reason, temporary: true }
        }
    }
}

/// Reports the stock of addresses to the agent, if the agent runs. Does not wait for an answer.
pub(crate) fn report_stock(socket: &Path, stock: Vec<Stock>) {
    let deadline = Instant::now() + NOTICE_TIMEOUT;
    // The agent needs the report to keep a spare segment, but the pod is attached even if the
    // report fails.
    let _ = connect_within(socket, deadline).and_then(|mut stream| {
        frame::write(&mut stream, &AgentRequest::AddressesTaken { stock }).map_err(io::Error::other)
    });
}

/// Returns whether the agent answers.
pub(crate) fn answers(socket: &Path) -> bool {
    matches!(request(socket, &AgentRequest::Ping, PING_TIMEOUT), Ok(AgentResponse::Done))
}

fn request(socket: &Path, request: &AgentRequest, limit: Duration) -> Result<AgentResponse, FrameError> {
    let deadline = Instant::now() + limit;
    let mut stream = connect_within(socket, deadline)?;
    frame::write(&mut stream, request)?;
    frame::read(&mut DeadlineReader { stream, deadline })
}

/// Connects to the agent. The timeout is set first, since connecting also waits if the listener's
/// queue is full.
fn connect_within(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(time_left(deadline)?))?;
    connect(&fd, &address)?;
    Ok(fd.into())
}

/// A reader that fails after a deadline, even if the bytes arrive one at a time.
struct DeadlineReader {
    stream: UnixStream,
    deadline: Instant,
}

impl Read for DeadlineReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(time_left(self.deadline)?))?;
        self.stream.read(buffer)
    }
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

fn explain_io_error(socket: &Path, error: &io::Error) -> String {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!(
                "edge-agent is not running (no process listens on {socket}); start it, or add a segment to the configuration"
            )
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
            "edge-agent has not brought another segment within {SEGMENT_REQUEST_TIMEOUT_SECONDS} s; see `edge-agent status`"
        ),
        io::ErrorKind::UnexpectedEof => format!("edge-agent closed {socket} without a response; see its log"),
        _ => format!("cannot reach edge-agent through {socket}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use edge_types::api::Family;

    use super::*;

    fn stock() -> Vec<Stock> {
        vec![Stock { family: Family::V4, free: 0, leased: 61 }]
    }

    /// Starts a fake agent that reads one request and answers with these bytes.
    fn answering(answer: Vec<u8>) -> (tempfile::TempDir, std::thread::JoinHandle<AgentRequest>) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = frame::read(&mut stream).unwrap();
            // The plugin may have closed the connection.
            let _ = io::Write::write_all(&mut stream, &answer);
            request
        });
        (directory, agent)
    }

    #[test]
    fn a_segment_request_carries_the_stock_and_brings_the_answer_back() {
        let failed = AgentResponse::Failed { reason: "the range is full".into(), temporary: false };
        for (answer, expected) in [
            (AgentResponse::Done, SegmentRequestOutcome::Granted),
            (failed, SegmentRequestOutcome::Failed { reason: "the range is full".into(), temporary: false }),
        ] {
            let (directory, agent) = answering(frame::encode(&answer).unwrap());
            assert_eq!(request_segment(&directory.path().join("agent.sock"), stock()), expected);
            assert_eq!(agent.join().unwrap(), AgentRequest::RequestSegment { stock: stock() });
        }
    }

    #[test]
    fn an_agent_that_is_absent_or_odd_is_a_reason_to_try_later() {
        let absent = request_segment(Path::new("/no/such/agent.sock"), stock());
        let SegmentRequestOutcome::Failed { reason, temporary: true } = absent else { panic!("{absent:?}") };
        assert!(reason.contains("not running") && reason.contains("/no/such/agent.sock"), "{reason}");
        for answer in [vec![], vec![9, 0, 0, 0, 1, 0], vec![1, 0, 0, 0, 1, 77]] {
            let (directory, _agent) = answering(answer);
            let outcome = request_segment(&directory.path().join("agent.sock"), stock());
            assert!(matches!(outcome, SegmentRequestOutcome::Failed { temporary: true, .. }), "{outcome:?}");
        }
    }

    #[test]
    fn the_stock_is_reported_without_waiting_for_an_answer() {
        let (directory, agent) = answering(Vec::new());
        report_stock(&directory.path().join("agent.sock"), stock());
        assert_eq!(agent.join().unwrap(), AgentRequest::AddressesTaken { stock: stock() });
        report_stock(Path::new("/no/such/agent.sock"), stock());
    }
}
