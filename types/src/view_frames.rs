//! The frames on a connection that was upgraded from HTTP/1.1 to the protocol `edge-view`.
//!
//! A node sends `GET /v1/nodes/{node}/view?watch=true` with `Upgrade: edge-view`. After the
//! response 101 both ends send frames: one byte for the kind, four for the length of the payload
//! (big endian), and the payload. The node sends requests ([`NodeFrame`]). The controller sends the
//! view stream in parts, and answers each request, in order ([`ControllerFrame`]). Frames of an
//! unknown kind are skipped by the node, and answered with 501 by the controller.

use crate::name::NodeName;

/// The name of the protocol in the header `Upgrade`.
pub const PROTOCOL: &str = "edge-view";
/// Length of a frame's header, bytes.
pub const HEADER: usize = 5;
/// Maximum payload of a frame from a node, bytes: the maximum body of a node's request.
pub const MAX_FROM_NODE: usize = 64 * 1024;
/// Maximum payload of a frame from the controller, bytes. A TLS record holds a whole frame.
pub const MAX_FROM_CONTROLLER: usize = 16 * 1024 - HEADER;
/// Time within which the controller must receive a whole frame after the one before, seconds.
/// Otherwise it closes the connection.
pub const NODE_SILENCE_SECONDS: u64 = 30;
/// Maximum time for which a node sends no frame, seconds.
pub const NODE_PING_SECONDS: u64 = 10;

/// The kind of a frame from a node. Each frame is a request. The controller carries out one request
/// of a connection at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeFrame {
    /// Asks for an answer, and for nothing else. The payload is empty.
    Ping = 0,
    /// `PUT /v1/nodes/{node}`. The payload is the body, a [`crate::api::NodeReport`] in JSON.
    Report = 1,
    /// `POST /v1/nodes/{node}/measurements`. The payload is the body, a
    /// [`crate::connectivity::MeasurementReport`] in JSON.
    Measurement = 2,
}

impl NodeFrame {
    /// Returns the kind for this byte; `None` if it is unknown.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Ping, Self::Report, Self::Measurement].into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Returns the method and the path of the HTTP request that a frame of this kind stands for;
    /// `None` for a ping.
    pub fn route(self, node: &NodeName) -> Option<(&'static str, String)> {
        match self {
            Self::Ping => None,
            Self::Report => Some(("PUT", format!("/v1/nodes/{node}"))),
            Self::Measurement => Some(("POST", format!("/v1/nodes/{node}/measurements"))),
        }
    }
}

/// The kind of a frame from the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControllerFrame {
    /// The next bytes of the view stream, which consists of lines. A line may have any number of
    /// frames.
    Stream = 0,
    /// The answer to the oldest request that has none: an [`AnswerHead`], and the body of the
    /// response.
    Answer = 1,
}

impl ControllerFrame {
    /// Returns the kind for this byte; `None` if it is unknown.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Stream, Self::Answer].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What precedes the body of an answer, as the head of an HTTP response does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerHead {
    /// The controller's time, seconds since 1970-01-01 UTC (`Date`).
    pub unix_time: u64,
    /// The HTTP status.
    pub status: u16,
}

impl AnswerHead {
    /// Length, bytes.
    pub const LENGTH: usize = 10;

    /// Encodes the head.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let (mut bytes, time, status) = ([0; Self::LENGTH], self.unix_time.to_be_bytes(), self.status.to_be_bytes());
        for (to, from) in bytes.iter_mut().zip(time.into_iter().chain(status)) {
            *to = from;
        }
        bytes
    }

    /// Decodes the head of an answer. Returns it with the body; `None` if the payload is too short.
    pub fn split(payload: &[u8]) -> Option<(Self, &[u8])> {
        let (time, rest) = payload.split_first_chunk()?;
        let (status, body) = rest.split_first_chunk()?;
        Some((Self { unix_time: u64::from_be_bytes(*time), status: u16::from_be_bytes(*status) }, body))
    }
}

/// The header of a frame announces a longer payload than a frame may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a frame of kind {kind} with {length} bytes, more than {most}")]
pub struct FrameTooLong {
    /// The kind, as a byte.
    pub kind: u8,
    /// The length that the header announces, bytes.
    pub length: usize,
    /// The maximum length, bytes.
    pub most: usize,
}

/// Encodes the header of a frame.
pub fn header(kind: u8, length: usize) -> [u8; HEADER] {
    // A payload of 4 GiB is beyond both limits.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind, a, b, c, d]
}

/// Decodes the header of a frame whose payload may have at most `most` bytes. Returns the kind, as
/// a byte, and the length of the payload.
///
/// # Errors
/// Returns an error if the payload is longer.
pub fn parse_header(header: [u8; HEADER], most: usize) -> Result<(u8, usize), FrameTooLong> {
    let [kind, a, b, c, d] = header;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > most { Err(FrameTooLong { kind, length, most }) } else { Ok((kind, length)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_as_it_was_and_a_longer_payload_than_allowed_is_refused() {
        for length in [0, 1, MAX_FROM_NODE] {
            assert_eq!(parse_header(header(2, length), MAX_FROM_NODE), Ok((2, length)));
        }
        for length in [MAX_FROM_NODE + 1, u32::MAX as usize] {
            let refused = FrameTooLong { kind: 1, length, most: MAX_FROM_NODE };
            assert_eq!(parse_header(header(1, length), MAX_FROM_NODE), Err(refused));
        }
    }

    #[test]
    fn an_answer_has_the_time_the_status_and_the_body_and_a_short_one_is_none() {
        let head = AnswerHead { unix_time: 1_793_491_200, status: 422 };
        let payload = [&head.to_bytes()[..], b"{}"].concat();
        assert_eq!(AnswerHead::split(&payload), Some((head, &b"{}"[..])));
        assert!((0..AnswerHead::LENGTH).all(|length| AnswerHead::split(&payload[..length]).is_none()));
    }

    #[test]
    fn every_kind_is_found_by_its_byte_and_no_other_byte_is_a_kind() {
        let of_node: Vec<_> = (0..=u8::MAX).filter_map(NodeFrame::from_byte).collect();
        assert_eq!(of_node, [NodeFrame::Ping, NodeFrame::Report, NodeFrame::Measurement]);
        let of_controller: Vec<_> = (0..=u8::MAX).filter_map(ControllerFrame::from_byte).collect();
        assert_eq!(of_controller, [ControllerFrame::Stream, ControllerFrame::Answer]);
    }
}
