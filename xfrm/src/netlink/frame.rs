//! Netlink framing: the messages of a datagram, acknowledgements, and the kernel's reasons for a
//! refusal.

use std::fmt;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, Parseable,
};

use crate::uapi;

/// Length of a netlink header, bytes.
pub(super) const HEADER_LEN: usize = 16;
/// `NLMSGERR_ATTR_MSG`, `NLMSGERR_ATTR_OFFS` (`linux/netlink.h`).
const ATTRIBUTE_TEXT: u16 = 1;
const ATTRIBUTE_OFFSET: u16 = 2;

/// The kernel's refusal: its error number and, if it states one, its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRefusal {
    /// Error number, positive.
    pub errno: i32,
    /// The kernel's reason (`NLMSGERR_ATTR_MSG`).
    pub text: Option<String>,
    /// Offset of the refused part in the request, bytes from the header.
    pub offset: Option<u32>,
}

impl fmt::Display for KernelRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if let Some(text) = &self.text {
            write!(f, ": {text}")?;
        }
        Ok(())
    }
}

/// One message of a datagram.
pub(crate) struct Frame<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
    message: &'a [u8],
}

/// The messages of a datagram.
pub(crate) struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0;
        if rest.is_empty() {
            return None;
        }
        self.0 = &[];
        let header = match rest.first_chunk::<HEADER_LEN>() {
            Some([l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..]) => (
                u32::from_ne_bytes([*l0, *l1, *l2, *l3]) as usize,
                u16::from_ne_bytes([*k0, *k1]),
                u16::from_ne_bytes([*f0, *f1]),
                u32::from_ne_bytes([*s0, *s1, *s2, *s3]),
            ),
            None => return Some(Err(format!("{} bytes where a message of at least {HEADER_LEN} begins", rest.len()))),
        };
        let (length, kind, flags, sequence) = header;
        let (Some(message), Some(body)) = (rest.get(..length), rest.get(HEADER_LEN..length)) else {
            return Some(Err(format!("a message of type {kind} says {length} bytes, {} are there", rest.len())));
        };
        self.0 = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Frame { kind, flags, sequence, body, message }))
    }
}

impl Frame<'_> {
    /// Returns the outcome of a request if this message ends it: an acknowledgement, a refusal, or
    /// the end of a dump. Returns `None` for a message with content.
    pub(crate) fn outcome(&self) -> Result<Option<Result<(), KernelRefusal>>, String> {
        match self.kind {
            NLMSG_ERROR => {
                let (code, rest) = self.body.split_first_chunk::<4>().ok_or("an acknowledgement without a code")?;
                // The code is followed by the request's header, its body unless the message is
                // capped, and the attributes.
                let header = rest.first_chunk::<4>().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
                let skip = if self.flags & NLM_F_CAPPED != 0 { HEADER_LEN } else { header.next_multiple_of(4) };
                Ok(Some(acknowledgement(*code, self.flags, rest.get(skip..).unwrap_or_default())))
            }
            NLMSG_DONE => {
                let (code, rest) = self.body.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
                Ok(Some(acknowledgement(*code, self.flags, rest)))
            }
            NLMSG_OVERRUN => Err("NLMSG_OVERRUN: data was lost".into()),
            _ => Ok(None),
        }
    }

    /// Returns whether the message is `NLMSG_NOOP`.
    pub(crate) fn is_noop(&self) -> bool {
        self.kind == NLMSG_NOOP
    }

    pub(crate) fn decode<R: NetlinkDeserializable>(&self) -> Result<R, String> {
        let buffer = NetlinkBuffer::new_checked(self.message).map_err(|error| error.to_string())?;
        let header = NetlinkHeader::parse(&buffer).map_err(|error| error.to_string())?;
        R::deserialize(&header, self.body).map_err(|error| {
            let error: Box<dyn std::error::Error + Send + Sync> = error.into();
            format!("message of type {}: {error}", self.kind)
        })
    }
}

fn acknowledgement(code: [u8; 4], flags: u16, attributes: &[u8]) -> Result<(), KernelRefusal> {
    let errno = i32::from_ne_bytes(code).saturating_neg();
    if errno <= 0 {
        return Ok(());
    }
    let mut refusal = KernelRefusal { errno, text: None, offset: None };
    if flags & NLM_F_ACK_TLVS != 0 {
        // If the reason cannot be parsed, the refusal is still reported without it.
        let _ = uapi::attributes(attributes, |kind, value| {
            match kind {
                ATTRIBUTE_TEXT => {
                    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    refusal.text = Some(String::from_utf8_lossy(text).into_owned());
                }
                ATTRIBUTE_OFFSET => refusal.offset = uapi::u32_of(value),
                _ => {}
            }
            Ok(())
        });
    }
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_LEN + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(9u32.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn text_attribute(text: &str) -> Vec<u8> {
        let mut bytes = (4 + text.len() as u16 + 1).to_ne_bytes().to_vec();
        bytes.extend(ATTRIBUTE_TEXT.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
        bytes
    }

    fn outcome(bytes: &[u8]) -> Option<Result<(), KernelRefusal>> {
        Frames::new(bytes).next().unwrap().unwrap().outcome().unwrap()
    }

    #[test]
    fn a_refusal_is_read_with_the_kernels_words_capped_or_not() {
        let request = message(0x10, 0, b"the request itself, with a key..");
        for (flags, echoed) in
            [(NLM_F_ACK_TLVS, request.as_slice()), (NLM_F_ACK_TLVS | NLM_F_CAPPED, &request[..HEADER_LEN])]
        {
            let mut body = (-22i32).to_ne_bytes().to_vec();
            body.extend(echoed);
            body.extend(text_attribute("Unsupported mode"));
            let refused = outcome(&message(NLMSG_ERROR, flags, &body)).unwrap().unwrap_err();
            assert_eq!((refused.errno, refused.text.as_deref()), (22, Some("Unsupported mode")));
            let text = refused.to_string();
            assert!(text.contains("Invalid argument") && text.ends_with(": Unsupported mode"), "{text}");
        }
    }

    #[test]
    fn an_acknowledgement_and_the_end_of_a_dump_end_their_request() {
        assert_eq!(outcome(&message(NLMSG_ERROR, 0, &[0; 20])), Some(Ok(())));
        assert_eq!(outcome(&message(NLMSG_DONE, 0, &[])), Some(Ok(())));
        assert_eq!(outcome(&message(NLMSG_DONE, 0, &[0; 4])), Some(Ok(())));
        let refused = outcome(&message(NLMSG_DONE, 0, &(-4i32).to_ne_bytes())).unwrap().unwrap_err();
        assert_eq!(refused.errno, 4);
        assert_eq!(outcome(&message(0x13, 0, &[])), None);
    }

    #[test]
    fn a_datagram_holds_several_messages_padded_to_four_bytes() {
        let mut bytes = message(0x10, 0, b"abc");
        bytes.push(0);
        bytes.extend(message(0x11, 0, b""));
        let kinds: Vec<_> = Frames::new(&bytes).map(|frame| frame.unwrap().kind).collect();
        assert_eq!(kinds, [0x10, 0x11]);
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_datagram() {
        for length in [0u32, 15, 1000] {
            let mut bytes = message(0x10, 0, b"");
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let frames: Vec<_> = Frames::new(&bytes).collect();
            assert_eq!(frames.len(), 1);
            assert!(frames[0].is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for frame in Frames::new(&bytes).flatten() {
                let _ = frame.outcome();
            }
        }
    }
}
