//! Reads the agent's response in an `edge-agent` command. The status document can be passed on
//! while it arrives: for ten thousand peers its size is tens of megabytes, and only [`BUFFER`]
//! bytes of it are in memory at a time.

use std::io::{self, BufRead, BufReader, Read, Write};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Size of the read buffer in bytes, enough for what the kernel buffers for a socket by default.
pub(super) const BUFFER: usize = 256 << 10;
/// The error for a response that this release does not understand.
pub(super) const OTHER_RELEASE: &str = "the agent's answer is not understood; are both of one release?";
/// Beginning of the line that an agent sends with its status. Another release may format the same
/// content differently; in that case the whole line is read first.
const BEGINNING: &[u8] = b"{\"answer\":\"status\",\"status\":";

/// A response whose status stays the text that the agent wrote. Parsing it as an
/// [`AdminResponse`](super::AdminResponse) would copy the whole document once more.
#[derive(Deserialize)]
struct RawResponse<'a> {
    answer: ResponseKind,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    batch: Option<&'a RawValue>,
    reason: Option<String>,
}

/// The tags of [`AdminResponse`](super::AdminResponse).
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ResponseKind {
    Status,
    Captured,
    Done,
    Failed,
}

/// Returns the document in a response; `None` if the request was carried out and its response has
/// no document. Fails if the request was not carried out.
pub(super) fn document(line: &str) -> anyhow::Result<Option<&RawValue>> {
    let response: RawResponse<'_> = serde_json::from_str(line).context(OTHER_RELEASE)?;
    let document = match response.answer {
        ResponseKind::Status => response.status,
        ResponseKind::Captured => response.batch,
        ResponseKind::Done => return Ok(None),
        ResponseKind::Failed => bail!(response.reason.unwrap_or_default()),
    };
    document.map(Some).context(OTHER_RELEASE)
}

/// Writes the status document of a response, and a line break. A closed pipe is not an error.
///
/// # Errors
/// If the agent refuses, or its response is cut off or not understood. Part of the document may
/// already have been written.
pub(super) fn pass_on(response: impl Read, out: &mut impl Write) -> anyhow::Result<()> {
    let mut response = BufReader::with_capacity(BUFFER, response);
    let mut beginning = Vec::with_capacity(BEGINNING.len());
    (&mut response).take(BEGINNING.len() as u64).read_to_end(&mut beginning).context("the agent did not answer")?;
    if beginning != BEGINNING {
        let mut line = String::new();
        let mut whole = beginning.chain(&mut response);
        whole.read_line(&mut line).context("the agent did not answer")?;
        let document = document(&line)?.context("the agent sent another response than the status")?;
        return written(out.write_all(document.get().as_bytes()).and_then(|()| out.write_all(b"\n")));
    }
    let mut end = ObjectEnd::default();
    loop {
        let part = response.fill_buf().context("the agent did not answer to the end")?;
        if part.is_empty() {
            bail!("the agent's answer is incomplete; the agent may be shutting down");
        }
        let found = end.find(part);
        let length = match found {
            Scan::Within => part.len(),
            Scan::EndsAt(length) => length,
            Scan::NoObject => bail!(OTHER_RELEASE),
        };
        let outcome = out.write_all(part.get(..length).unwrap_or_default());
        if outcome.is_err() || matches!(found, Scan::EndsAt(_)) {
            return written(outcome.and_then(|()| out.write_all(b"\n")));
        }
        response.consume(length);
    }
}

fn written(outcome: io::Result<()>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

/// Finds the end of a JSON object (RFC 8259) that arrives in parts.
#[derive(Debug, Default)]
struct ObjectEnd {
    /// Number of open objects and arrays.
    depth: u64,
    in_string: bool,
    /// Whether the last byte was the backslash of an escape.
    escaped: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Scan {
    /// The object continues after this part.
    Within,
    /// The object ends after this number of bytes of this part.
    EndsAt(usize),
    /// The text is not an object.
    NoObject,
}

impl ObjectEnd {
    /// Reads the next part and returns whether the object ends in it.
    fn find(&mut self, part: &[u8]) -> Scan {
        for (at, byte) in part.iter().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' if self.depth > 0 => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' if self.depth > 0 || *byte == b'{' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' if self.depth > 1 => self.depth -= 1,
                b'}' if self.depth == 1 => {
                    self.depth = 0;
                    return Scan::EndsAt(at + 1);
                }
                b' ' | b'\t' if self.depth == 0 => {}
                _ if self.depth == 0 => return Scan::NoObject,
                _ => {}
            }
        }
        Scan::Within
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
        // The response of a later release may have more keys and white space.
        let text = "{\"version\": \"9\",  \"later\": [1, {\"a\": null}]}";
        let later = format!("{{\"answer\":\"status\",\"status\":{text},\"more\":1}}\n");
        assert_eq!(document(&later).unwrap().unwrap().get(), text);
        for odd in
            ["", "\n", "{}", "{\"answer\":\"status\"}", "{\"answer\":\"dance\"}", "{\"answer\":\"status\",\"status\":{"]
        {
            assert!(format!("{:#}", document(odd).unwrap_err()).contains("one release"), "{odd}");
        }
    }

    /// Returns a few bytes per read, as a slow socket does.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(buffer.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn passed_on(line: &str, at_once: usize) -> Result<String, String> {
        let mut out = Vec::new();
        let outcome = pass_on(Drops(line.as_bytes(), at_once), &mut out);
        outcome.map(|()| String::from_utf8(out).unwrap()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_document_comes_out_as_it_went_in_however_it_is_cut() {
        for document in [
            "{}",
            r#"{"a":[1,{"b":"}"}],"c":"\"}]","d":"\\","e":{"f":[]}}"#,
            r#"{"last_error":"peer {x]: \\\"} and \u0022","z":"ö"}"#,
        ] {
            for at_once in [1, 2, 3, 7, 1000] {
                for line in [
                    format!("{{\"answer\":\"status\",\"status\":{document}}}\n"),
                    format!("{{\"answer\":\"status\",\"status\": {document},\"later\":{{}}}}\n"),
                    // The response of another release may have its keys in another order.
                    format!("{{\"later\":1,\"status\":{document},\"answer\":\"status\"}}\n"),
                ] {
                    assert_eq!(passed_on(&line, at_once).unwrap().trim_start(), format!("{document}\n"), "{line}");
                }
            }
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_or_refused_is_an_error() {
        let whole = r#"{"answer":"status","status":{"a":{"b":1}}}"#;
        for length in 0..whole.len() - 1 {
            assert!(passed_on(&whole[..length], 3).is_err(), "{length}");
        }
        let refused = passed_on("{\"answer\":\"failed\",\"reason\":\"the agent is ending\"}\n", 5);
        assert_eq!(refused.unwrap_err(), "the agent is ending");
        for odd in ["{\"answer\":\"status\",\"status\":[1]}\n", "{\"answer\":\"status\",\"status\":7}\n", "nonsense\n"]
        {
            assert!(passed_on(odd, 100).unwrap_err().contains("one release"), "{odd}");
        }
    }

    #[test]
    fn a_document_of_any_length_takes_one_buffer() {
        /// Counts the bytes that are written, and keeps the size of the largest single write.
        struct Sink(usize, usize);
        impl Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                (self.0, self.1) = (self.0 + bytes.len(), self.1.max(bytes.len()));
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let peers = vec!["{\"name\":\"edge\"}"; 1 << 18].join(",");
        let line = format!("{{\"answer\":\"status\",\"status\":{{\"peers\":[{peers}]}}}}\n");
        let mut sink = Sink(0, 0);
        pass_on(line.as_bytes(), &mut sink).unwrap();
        assert_eq!(sink.0, line.len() - BEGINNING.len() - 1);
        assert!(sink.1 <= BUFFER, "{}", sink.1);
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is() {
        struct Fails(io::ErrorKind);
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let line = b"{\"answer\":\"status\",\"status\":{}}\n";
        assert!(pass_on(&line[..], &mut Fails(io::ErrorKind::BrokenPipe)).is_ok());
        assert!(pass_on(&line[..], &mut Fails(io::ErrorKind::StorageFull)).is_err());
    }
}
