//! Reads the lines of the view stream.

use std::io;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::Uri;
use hyper::body::{Bytes, Incoming};
use tokio::sync::mpsc;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::{Decoder, FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

use super::error::ControllerError;
use super::http_error::hyper_error;

/// Maximum length of a line of the stream, in bytes.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// The lines of the view stream (NDJSON).
pub(super) struct NdjsonLines(FramedRead<StreamReader<Chunks, Bytes>, CompleteLines>);

/// Lines that end with a newline. Text after the last newline of a stream is an incomplete line and
/// is dropped.
struct CompleteLines(LinesCodec);

impl Decoder for CompleteLines {
    type Item = String;
    type Error = LinesCodecError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<String>, LinesCodecError> {
        self.0.decode(buffer)
    }

    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<String>, LinesCodecError> {
        self.0.decode(buffer)
    }
}

/// The parts of the stream, as they arrive. [`StreamReader`] requires `std::io` errors;
/// [`NdjsonLines`] unpacks them.
type Chunks = BoxStream<'static, io::Result<Bytes>>;

impl NdjsonLines {
    /// Reads lines from a response body.
    pub(super) fn of_body(body: Incoming) -> Self {
        Self::new(body.into_data_stream().map_err(io::Error::other).boxed())
    }

    /// Reads lines from the frames of a connection that has left HTTP.
    pub(super) fn of_frames(parts: mpsc::Receiver<Result<Bytes, ControllerError>>) -> Self {
        let parts = futures_util::stream::unfold(parts, async |mut parts| {
            parts.recv().await.map(|part: Result<Bytes, _>| (part.map_err(io::Error::other), parts))
        });
        Self::new(parts.boxed())
    }

    fn new(chunks: Chunks) -> Self {
        Self(FramedRead::new(StreamReader::new(chunks), CompleteLines(LinesCodec::new_with_max_length(MAX_LINE))))
    }

    /// Returns the next line that is not blank; `None` at the end of the stream. This method is
    /// cancel safe.
    pub(super) async fn next(&mut self, url: &Uri) -> Result<Option<String>, ControllerError> {
        loop {
            let unexpected = |received| {
                let url = url.to_string();
                Err(ControllerError::UnexpectedResponse { url, received, expected: "a view" })
            };
            return match self.0.next().await {
                Some(Ok(line)) if line.trim_ascii().is_empty() => continue,
                Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                    unexpected(format!("a line of more than {MAX_LINE} bytes"))
                }
                Some(Err(LinesCodecError::Io(error))) => match error.downcast::<ControllerError>() {
                    Ok(error) => Err(error),
                    Err(error) => match error.downcast() {
                        Ok(error) => Err(hyper_error(url, &error)),
                        Err(error) => unexpected(format!("a line that cannot be read ({error})")),
                    },
                },
                Some(Ok(line)) => Ok(Some(line)),
                None => Ok(None),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_without_its_end_is_no_line() {
        let lines = |text: &'static str| {
            let codec = CompleteLines(LinesCodec::new_with_max_length(MAX_LINE));
            FramedRead::new(text.as_bytes(), codec).try_collect::<Vec<_>>()
        };
        assert_eq!(lines("{\"a\":1}\n\n{\"b\":2}\n").await.unwrap(), ["{\"a\":1}", "", "{\"b\":2}"]);
        assert_eq!(lines("{\"a\":1}\n{\"b\":2}").await.unwrap(), ["{\"a\":1}"]);
        assert!(lines("{\"b\":2}").await.unwrap().is_empty());
    }
}
