//! A connection to the controller that has left HTTP ([`edge_types::view_frames`]): one task reads
//! the view stream and the answers, and sends this node's requests, one at a time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use edge_types::api::Problem;
use edge_types::view_frames::{
    AnswerHead, ControllerFrame, HEADER, MAX_FROM_CONTROLLER, MAX_FROM_NODE, NODE_PING_SECONDS, NodeFrame, header,
    parse_header,
};
use futures_util::StreamExt;
use hyper::body::Bytes;
use hyper::{StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::bytes::BytesMut;
use tokio_util::codec::{Decoder, FramedRead};
use tracing::{Instrument, debug};

use super::error::ControllerError;
use super::http::REQUEST_TIMEOUT;
use super::http_connection::PING_INTERVAL;
use super::http_error::io_error;
use crate::clock::CertificateClock;

/// Maximum number of parts of the stream that wait until they are read: 4 MiB. The answer to a
/// request may come after them.
const PARTS: usize = 256;
/// Maximum number of requests that wait until they are sent. A node reports, and it measures for
/// one check at a time.
const REQUESTS: usize = 4;
/// Maximum time without a request.
const SEND_INTERVAL: Duration = Duration::from_secs(NODE_PING_SECONDS);

/// A request that waits until it is sent.
#[derive(Debug)]
pub(super) struct FrameRequest {
    kind: NodeFrame,
    body: Vec<u8>,
    answer: oneshot::Sender<Result<(), ControllerError>>,
}

/// The parts of the view stream, or the reason why the connection broke.
type Parts = mpsc::Receiver<Result<Bytes, ControllerError>>;

/// Starts the task of a connection. The connection is closed when the results are dropped, after
/// the answer to a request that was sent.
pub(super) fn start<S>(url: Uri, stream: S, clock: Arc<CertificateClock>) -> (mpsc::Sender<FrameRequest>, Parts)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (requests, mut waiting) = mpsc::channel(REQUESTS);
    let (parts, stream_parts) = mpsc::channel(PARTS);
    let (reader, writer) = tokio::io::split(TokioIo::new(stream));
    let work = async move {
        let frames = FramedRead::new(reader, Frames);
        let mut connection = FrameConnection { frames, writer, parts, clock, pending: None, url };
        if let Err(error) = connection.run(&mut waiting).await {
            debug!(%error, "connection to the controller ended");
            // The reason is with the reader of the stream before a request fails.
            let _ = connection.parts.send(Err(error)).await;
        }
        drop(waiting);
        drop(connection);
    };
    tokio::spawn(work.in_current_span());
    (requests, stream_parts)
}

/// Sends a request, and waits for the answer.
pub(super) async fn request(
    requests: &mpsc::Sender<FrameRequest>,
    url: &Uri,
    kind: NodeFrame,
    body: &impl Serialize,
) -> Result<(), ControllerError> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    if body.len() > MAX_FROM_NODE {
        let length = body.len();
        return Err(ControllerError::Unacceptable(format!(
            "a request of {length} bytes, more than the {MAX_FROM_NODE} that the controller takes"
        )));
    }
    let ended = || ControllerError::Unreachable { url: url.to_string(), why: "the connection ended".into() };
    let (answer, answered) = oneshot::channel();
    requests.send(FrameRequest { kind, body, answer }).await.map_err(|_| ended())?;
    answered.await.unwrap_or_else(|_| Err(ended()))
}

/// The state of a connection's task.
struct FrameConnection<R, W> {
    url: Uri,
    frames: FramedRead<R, Frames>,
    writer: W,
    parts: mpsc::Sender<Result<Bytes, ControllerError>>,
    clock: Arc<CertificateClock>,
    /// The request that was sent and has no answer.
    pending: Option<Pending>,
}

/// A request that has no answer.
struct Pending {
    sent: Instant,
    /// `None` for a ping.
    answer: Option<oneshot::Sender<Result<(), ControllerError>>>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> FrameConnection<R, W> {
    /// Runs until the controller ends the stream, or nothing uses the connection any more.
    async fn run(&mut self, requests: &mut mpsc::Receiver<FrameRequest>) -> Result<(), ControllerError> {
        let (mut received, mut sent) = (Instant::now(), Instant::now());
        loop {
            let deadline = match &self.pending {
                Some(Pending { sent, answer: Some(_) }) => *sent + REQUEST_TIMEOUT,
                Some(Pending { sent, answer: None }) => received.max(*sent) + PING_INTERVAL,
                None => (received + PING_INTERVAL).min(sent + SEND_INTERVAL),
            };
            tokio::select! {
                // After a pause of this process, what has arrived counts before the deadline.
                biased;
                frame = self.frames.next() => match frame {
                    Some(Ok(frame)) => {
                        received = Instant::now();
                        if !self.receive(frame).await? {
                            return Ok(());
                        }
                    }
                    Some(Err(error)) => return Err(io_error(&self.url, &error)),
                    None => return Ok(()),
                },
                request = requests.recv(), if self.pending.is_none() => match request {
                    Some(FrameRequest { kind, body, answer }) => {
                        sent = Instant::now();
                        self.pending = Some(Pending { sent, answer: Some(answer) });
                        self.send(kind, &body).await?;
                    }
                    None => return Ok(()),
                },
                () = sleep_until(deadline) => match &self.pending {
                    None => {
                        sent = Instant::now();
                        self.pending = Some(Pending { sent, answer: None });
                        self.send(NodeFrame::Ping, &[]).await?;
                    }
                    Some(pending) => {
                        let what = if pending.answer.is_some() { "a request" } else { "a ping" };
                        return Err(self.broken(format!("no answer to {what} within {:?}", pending.sent.elapsed())));
                    }
                },
            }
        }
    }

    async fn send(&mut self, kind: NodeFrame, body: &[u8]) -> Result<(), ControllerError> {
        let frame = [&header(kind as u8, body.len())[..], body].concat();
        let write = async {
            self.writer.write_all(&frame).await?;
            self.writer.flush().await
        };
        let written = timeout(REQUEST_TIMEOUT, write).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        written.map_err(|error| io_error(&self.url, &error))
    }

    /// Handles a frame. Returns `false` if nobody reads the stream any more.
    async fn receive(&mut self, (kind, payload): (u8, Bytes)) -> Result<bool, ControllerError> {
        match ControllerFrame::from_byte(kind) {
            Some(ControllerFrame::Stream) => return Ok(self.parts.send(Ok(payload)).await.is_ok()),
            Some(ControllerFrame::Answer) => {
                let pending = self.pending.take();
                let (Some(pending), Some((head, body))) = (pending, AnswerHead::split(&payload)) else {
                    return Err(ControllerError::UnexpectedResponse {
                        url: self.url.to_string(),
                        received: format!("an answer of {} bytes", payload.len()),
                        expected: "an answer to a request",
                    });
                };
                self.clock.controller_said(head.unix_time);
                if let Some(answer) = pending.answer {
                    // Nobody may wait for the answer any more.
                    let _ = answer.send(self.outcome(head.status, body));
                }
            }
            None => debug!(kind, bytes = payload.len(), "a frame from the controller is unknown and skipped"),
        }
        Ok(true)
    }

    fn outcome(&self, status: u16, body: &[u8]) -> Result<(), ControllerError> {
        if StatusCode::from_u16(status).is_ok_and(|status| status.is_success()) {
            return Ok(());
        }
        Err(match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => ControllerError::Problem(problem),
            Err(_) => ControllerError::UnexpectedResponse {
                url: self.url.to_string(),
                received: format!("{status} to a request"),
                expected: "a problem document",
            },
        })
    }

    fn broken(&self, why: String) -> ControllerError {
        ControllerError::Unreachable { url: self.url.to_string(), why }
    }
}

/// Decodes the frames from the controller.
struct Frames;

impl Decoder for Frames {
    type Item = (u8, Bytes);
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        let Some(head) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let parsed = parse_header(*head, MAX_FROM_CONTROLLER);
        let (kind, length) = parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if buffer.len() < HEADER + length {
            buffer.reserve(HEADER + length - buffer.len());
            return Ok(None);
        }
        let mut frame = buffer.split_to(HEADER + length).freeze();
        Ok(Some((kind, frame.split_off(HEADER))))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream};

    use super::*;

    /// Starts the task of a connection. Returns the controller's end of it too.
    fn connect() -> (DuplexStream, mpsc::Sender<FrameRequest>, Parts) {
        let (theirs, ours) = tokio::io::duplex(MAX_FROM_NODE);
        let url = Uri::from_static("https://controller:8443/");
        let (requests, parts) = start(url, TokioIo::new(ours), Arc::new(CertificateClock::default()));
        (theirs, requests, parts)
    }

    async fn send(controller: &mut DuplexStream, kind: u8, payload: &[u8]) {
        let frame = [&header(kind, payload.len())[..], payload].concat();
        controller.write_all(&frame).await.unwrap();
    }

    /// Reads a request. Returns its kind.
    async fn receive(controller: &mut DuplexStream) -> NodeFrame {
        let mut head = [0; HEADER];
        controller.read_exact(&mut head).await.unwrap();
        let (kind, length) = parse_header(head, MAX_FROM_NODE).unwrap();
        controller.read_exact(&mut vec![0; length]).await.unwrap();
        NodeFrame::from_byte(kind).unwrap()
    }

    fn report(requests: &mpsc::Sender<FrameRequest>) -> tokio::task::JoinHandle<Result<(), ControllerError>> {
        let requests = requests.clone();
        let url = Uri::from_static("https://controller:8443/");
        tokio::spawn(async move { request(&requests, &url, NodeFrame::Report, &"a report").await })
    }

    fn answer(status: u16, body: &str) -> Vec<u8> {
        [&AnswerHead { unix_time: 1_793_491_200, status }.to_bytes()[..], body.as_bytes()].concat()
    }

    #[tokio::test]
    async fn the_stream_the_answers_and_unknown_frames_may_come_in_any_order() {
        let (mut controller, requests, mut parts) = connect();
        let reported = report(&requests);
        assert_eq!(receive(&mut controller).await, NodeFrame::Report);
        send(&mut controller, ControllerFrame::Stream as u8, b"one").await;
        send(&mut controller, 99, b"of a later release").await;
        send(&mut controller, ControllerFrame::Answer as u8, &answer(204, "")).await;
        send(&mut controller, ControllerFrame::Stream as u8, b"two").await;
        reported.await.unwrap().unwrap();
        for part in ["one", "two"] {
            assert_eq!(parts.recv().await.unwrap().unwrap(), part);
        }
        let refused = report(&requests);
        assert_eq!(receive(&mut controller).await, NodeFrame::Report);
        let problem = r#"{"type":"/problems/x","title":"t","status":403,"detail":"d"}"#;
        send(&mut controller, ControllerFrame::Answer as u8, &answer(403, problem)).await;
        let error = refused.await.unwrap().unwrap_err();
        assert!(matches!(&error, ControllerError::Problem(problem) if problem.status == 403), "{error}");
        drop(controller);
        assert!(parts.recv().await.is_none(), "the stream ends");
        assert!(report(&requests).await.unwrap().is_err() && requests.is_closed());
    }

    #[tokio::test]
    async fn frames_that_no_controller_sends_end_the_connection_with_the_reason() {
        for (frame, why) in [
            (header(0, MAX_FROM_CONTROLLER + 1).to_vec(), "a frame of kind 0"),
            ([&header(1, 10)[..], &answer(204, "")].concat(), "an answer of 10 bytes"),
            ([&header(1, 2)[..], b"{}"].concat(), "an answer of 2 bytes"),
        ] {
            let (mut controller, requests, mut parts) = connect();
            controller.write_all(&frame).await.unwrap();
            let error = parts.recv().await.unwrap().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(parts.recv().await.is_none() && report(&requests).await.unwrap().is_err());
        }
    }

    #[tokio::test]
    async fn a_controller_that_says_nothing_is_asked_and_then_given_up() {
        let (mut controller, _requests, mut parts) = connect();
        let begun = Instant::now();
        assert_eq!(receive(&mut controller).await, NodeFrame::Ping);
        let error = parts.recv().await.unwrap().unwrap_err().to_string();
        assert!(error.contains("no answer to a ping"), "{error}");
        assert!(begun.elapsed() >= 2 * PING_INTERVAL, "it had its time");
    }
}
