//! Serves a node's connection that has left HTTP: sends the view stream, and answers the node's
//! requests, in frames ([`edge_types::view_frames`]). A request runs through the same router as one
//! by HTTP, so the same checks, limits and metrics apply to it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use edge_types::NodeName;
use edge_types::view_frames::{
    AnswerHead, ControllerFrame, HEADER, MAX_FROM_CONTROLLER, MAX_FROM_NODE, NODE_SILENCE_SECONDS, NodeFrame, header,
    parse_header,
};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Buf, Bytes};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use super::connections::UpgradedConnection;
use crate::api::caller::Caller;
use crate::api::line_slot::{LineReceiver, LineSender, line_slot};
use crate::api::view_upgrade::UpgradedView;
use crate::logs;

/// Time within which a whole frame must arrive after the one before.
const SILENCE: Duration = Duration::from_secs(NODE_SILENCE_SECONDS);
/// Time limit after the last line of the stream, for the node to take what it was sent, and for the
/// answer to its last request.
const CLOSING: Duration = Duration::from_secs(5);
/// Time limit for the node to close the connection after that. If it still sends while this end is
/// closed, it may lose the last line.
const LINGER: Duration = Duration::from_secs(1);

/// What the two directions of a connection know of each other.
#[derive(Default)]
struct Progress {
    /// A request has arrived, and its answer is not with the writer yet.
    answering: AtomicBool,
    /// Nothing more is sent, so requests are no longer carried out.
    closing: AtomicBool,
}

/// Serves the connection until the stream ends, the node is gone, or the connection is closed.
pub(super) fn serve<S>(
    connection: UpgradedConnection<S>,
    caller: Caller,
    router: Router,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve_within(SILENCE, connection, caller, router)
}

/// Does the same as [`serve`] with this time limit for a frame.
async fn serve_within<S>(silence: Duration, connection: UpgradedConnection<S>, caller: Caller, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let UpgradedConnection { stream, received, view: UpgradedView { node, lines, work } } = connection;
    let (reader, writer) = tokio::io::split(stream);
    let (answers, answered) = line_slot();
    let (progress, cut) = (Progress::default(), caller.connection.clone());
    let requests = Requests { router, caller, node, silence };
    // `read_exact` never reads beyond the end of a frame, so no buffer is needed in between.
    let reading = read_requests(AsyncReadExt::chain(io::Cursor::new(received), reader), &requests, answers, &progress);
    let mut reading = std::pin::pin!(reading);
    let mut writing = std::pin::pin!(write_frames(writer, lines, answered, &progress));
    let mut ended = std::pin::pin!(async {
        work.await;
        sleep(CLOSING).await;
    });
    let sent = tokio::select! {
        // In this order, a line is sent at once when it is made.
        biased;
        () = cut.cancelled() => return,
        () = &mut ended => return,
        sent = &mut writing => {
            if sent.is_ok() {
                let _ = timeout(LINGER, &mut reading).await;
            }
            sent
        }
        read = &mut reading => read,
    };
    if let Err(error) = sent {
        tracing::debug!(node = %requests.node, "connection ended: {error}");
    }
}

/// Who sends requests on a connection, and what carries them out.
struct Requests {
    router: Router,
    caller: Caller,
    node: NodeName,
    /// Time limit for a frame.
    silence: Duration,
}

/// Carries out the node's requests, one after the other, until the node closes the connection.
async fn read_requests(
    mut reader: impl AsyncRead + Unpin,
    requests: &Requests,
    answers: LineSender,
    progress: &Progress,
) -> io::Result<()> {
    loop {
        let frame = timeout(requests.silence, read_frame(&mut reader)).await.map_err(|_| {
            let why = format!("the node sent no whole frame for {:?}", requests.silence);
            io::Error::new(io::ErrorKind::TimedOut, why)
        })?;
        let Some((kind, payload)) = frame? else { return Ok(()) };
        if progress.closing.load(Ordering::Relaxed) {
            continue;
        }
        progress.answering.store(true, Ordering::Relaxed);
        // The future is boxed, because the connection waits nearly always, and not for this.
        let answer = Box::pin(requests.answer(kind, payload)).await;
        if answers.put(answer).await.is_err() {
            return Ok(());
        }
        progress.answering.store(false, Ordering::Relaxed);
    }
}

/// Reads a frame; `None` if the connection ends before one. The buffer grows with what arrives, not
/// by the length that the header announces.
async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; HEADER];
    let [first, rest @ ..] = &mut head;
    if reader.read(std::slice::from_mut(first)).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(rest).await?;
    let (kind, length) =
        parse_header(head, MAX_FROM_NODE).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let (mut payload, mut body) = (Vec::new(), reader.take(length as u64));
    while payload.len() < length {
        if body.read_buf(&mut payload).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some((kind, payload)))
}

impl Requests {
    /// Carries out a request. Returns the payload of the answer.
    async fn answer(&self, kind: u8, payload: Vec<u8>) -> Bytes {
        let (status, body) = match NodeFrame::from_byte(kind) {
            Some(NodeFrame::Ping) => (StatusCode::NO_CONTENT, Bytes::new()),
            known => match known.and_then(|known| known.route(&self.node)) {
                Some((method, path)) => self.request(method, path, payload).await,
                // Not 404, which would say that the node is no member.
                None => (StatusCode::NOT_IMPLEMENTED, Bytes::new()),
            },
        };
        // This is the machine's clock, as in the header Date of an HTTP response.
        let unix_time = u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0);
        [&AnswerHead { unix_time, status: status.as_u16() }.to_bytes()[..], &body].concat().into()
    }

    async fn request(&self, method: &str, path: String, payload: Vec<u8>) -> (StatusCode, Bytes) {
        let failed = (StatusCode::INTERNAL_SERVER_ERROR, Bytes::new());
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap_or_default())
            .uri(path)
            // As on HTTP/2, a refused request leaves nothing of its body on the connection.
            .version(Version::HTTP_2)
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(payload));
        let Ok(mut request) = request else { return failed };
        request.extensions_mut().insert(self.caller.clone());
        let Ok(response) = self.router.clone().oneshot(request).await;
        let status = response.status();
        match Limited::new(response.into_body(), MAX_FROM_CONTROLLER - AnswerHead::LENGTH).collect().await {
            Ok(body) => (status, body.to_bytes()),
            // The longest part is what the node has sent itself.
            Err(error) => {
                if logs::may_log_node() {
                    tracing::info!(node = %self.node, %status, "the response does not fit in a frame: {error}");
                }
                (status, Bytes::new())
            }
        }
    }
}

/// Sends the stream and the answers until the stream ends, then closes this direction of the
/// connection. Answers go between the frames of a long line.
async fn write_frames(
    mut writer: impl AsyncWrite + Unpin,
    mut lines: LineReceiver,
    mut answered: LineReceiver,
    progress: &Progress,
) -> io::Result<()> {
    loop {
        let next = tokio::select! {
            biased;
            Some(answer) = answered.take() => Next::Answer(answer),
            line = lines.take() => line.map_or(Next::End, Next::Line),
        };
        match next {
            Next::Answer(answer) => write_frame(&mut writer, ControllerFrame::Answer, answer).await?,
            Next::Line(mut line) => {
                while !line.is_empty() {
                    if let Some(answer) = answered.try_take() {
                        write_frame(&mut writer, ControllerFrame::Answer, answer).await?;
                    }
                    let part = line.split_to(line.len().min(MAX_FROM_CONTROLLER));
                    write_frame(&mut writer, ControllerFrame::Stream, part).await?;
                }
            }
            Next::End => break,
        }
        writer.flush().await?;
    }
    while progress.answering.load(Ordering::Relaxed) {
        let Some(answer) = answered.take().await else { break };
        write_frame(&mut writer, ControllerFrame::Answer, answer).await?;
    }
    progress.closing.store(true, Ordering::Relaxed);
    writer.shutdown().await
}

/// What is sent next.
enum Next {
    Answer(Bytes),
    Line(Bytes),
    End,
}

async fn write_frame(writer: &mut (impl AsyncWrite + Unpin), kind: ControllerFrame, payload: Bytes) -> io::Result<()> {
    let head = header(kind as u8, payload.len());
    // Both parts are written at once, so they share a TLS record.
    writer.write_all_buf(&mut Buf::chain(&head[..], payload)).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::put;
    use edge_types::Role;
    use tokio::io::DuplexStream;
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::api::caller::{CallerIdentity, NodeCertificate};
    use crate::server::connections;

    /// Serves a connection whose buffers hold this many bytes. The stream is what the sender puts.
    fn start(silence: Duration, buffer: usize, router: Router) -> (DuplexStream, LineSender, JoinHandle<()>) {
        let (ours, stream) = tokio::io::duplex(buffer);
        let (sender, lines) = line_slot();
        let name: NodeName = "edge-1".parse().unwrap();
        let certificate = NodeCertificate { name: name.clone(), role: Role::Edge, serial: "01".into(), not_after: 0 };
        let caller = connections::caller(CallerIdentity::Node(certificate), None);
        let view = UpgradedView { node: name, lines, work: Box::pin(std::future::pending()) };
        let connection = UpgradedConnection { stream, received: Bytes::new(), view };
        (ours, sender, tokio::spawn(serve_within(silence, connection, caller, router)))
    }

    /// Reads a frame; `None` at the end of the connection.
    async fn frame(stream: &mut DuplexStream) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; HEADER];
        stream.read_exact(&mut head).await.ok()?;
        let (kind, length) = parse_header(head, MAX_FROM_CONTROLLER).unwrap();
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        Some((kind, payload))
    }

    #[tokio::test]
    async fn half_a_frame_ends_the_connection_however_slowly_the_rest_comes() {
        let (mut stream, _lines, serving) = start(Duration::from_millis(500), 4096, Router::new());
        stream.write_all(&header(NodeFrame::Report as u8, MAX_FROM_NODE)).await.unwrap();
        while stream.write_all(b" ").await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_node_that_sends_nothing_is_cut_off() {
        let (mut stream, _lines, serving) = start(Duration::from_millis(100), 4096, Router::new());
        assert_eq!(frame(&mut stream).await, None);
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_goes_between_the_parts_of_a_long_line() {
        let (mut stream, lines, _serving) = start(SILENCE, 4096, Router::new());
        let line = vec![b'x'; 10 * MAX_FROM_CONTROLLER + 1];
        lines.put(line.clone().into()).await.unwrap();
        // The line is on its way, and waits until it is read.
        let mut received = frame(&mut stream).await.unwrap().1;
        stream.write_all(&header(NodeFrame::Ping as u8, 0)).await.unwrap();
        let mut before_the_answer = None;
        while received.len() < line.len() {
            match frame(&mut stream).await.unwrap() {
                (kind, payload) if kind == ControllerFrame::Stream as u8 => received.extend(payload),
                (_, payload) => {
                    assert_eq!(AnswerHead::split(&payload).unwrap().0.status, 204);
                    before_the_answer = Some(received.len());
                }
            }
        }
        assert_eq!(received, line);
        assert!(before_the_answer.is_some_and(|length| length < line.len()), "{before_the_answer:?}");
    }

    #[tokio::test]
    async fn the_answer_to_an_open_request_comes_also_after_the_last_line() {
        let (begun, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (begins, ends) = (begun.clone(), done.clone());
        let handler = async move || {
            begins.notify_one();
            ends.notified().await;
            StatusCode::NO_CONTENT
        };
        let router = Router::new().route("/v1/nodes/edge-1", put(handler));
        let (mut stream, lines, serving) = start(SILENCE, 4096, router);
        stream.write_all(&header(NodeFrame::Report as u8, 0)).await.unwrap();
        begun.notified().await;
        lines.put(Bytes::from_static(b"last\n")).await.unwrap();
        drop(lines);
        assert_eq!(frame(&mut stream).await, Some((ControllerFrame::Stream as u8, b"last\n".to_vec())));
        done.notify_one();
        let (kind, payload) = frame(&mut stream).await.unwrap();
        assert_eq!((kind, AnswerHead::split(&payload).unwrap().0.status), (ControllerFrame::Answer as u8, 204));
        assert_eq!(frame(&mut stream).await, None);
        // Requests after the end are not carried out.
        stream.write_all(&header(NodeFrame::Report as u8, 0)).await.unwrap();
        drop(stream);
        serving.await.unwrap();
    }
}
