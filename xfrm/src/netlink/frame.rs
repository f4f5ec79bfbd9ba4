//! Netlink framing: messages of a datagram, acknowledgements, and what the kernel says when it refuses.

use std::fmt;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, Parseable,
};

use crate::wire;

/// Length of a netlink header, bytes.
const HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG`, `NLMSGERR_ATTR_OFFS` (`linux/netlink.h`).
const ATTRIBUTE_TEXT: u16 = 1;
const ATTRIBUTE_OFFSET: u16 = 2;

/// The kernel's refusal: its error number and, where it says one, its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Error number, positive.
    pub errno: i32,
    /// The kernel's own words (`NLMSGERR_ATTR_MSG`).
    pub text: Option<String>,
    /// Where in the request it stumbled, bytes from the header.
    pub offset: Option<u32>,
}

impl fmt::Display for Rejection {
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
    pub(crate) port: u32,
    pub(crate) body: &'a [u8],
    whole: &'a [u8],
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
        let header = match rest.first_chunk::<HEADER>() {
            Some([l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3]) => (
                u32::from_ne_bytes([*l0, *l1, *l2, *l3]) as usize,
                u16::from_ne_bytes([*k0, *k1]),
                u16::from_ne_bytes([*f0, *f1]),
                u32::from_ne_bytes([*s0, *s1, *s2, *s3]),
                u32::from_ne_bytes([*p0, *p1, *p2, *p3]),
            ),
            None => return Some(Err(format!("{} bytes where a message of at least {HEADER} begins", rest.len()))),
        };
        let (length, kind, flags, sequence, port) = header;
        let (Some(whole), Some(body)) = (rest.get(..length), rest.get(HEADER..length)) else {
            return Some(Err(format!("a message of type {kind} says {length} bytes, {} are there", rest.len())));
        };
        self.0 = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Frame { kind, flags, sequence, port, body, whole }))
    }
}

impl Frame<'_> {
    /// Whether it ends its request: acknowledged, refused, or a dump's end. `None` for a message with content.
    pub(crate) fn outcome(&self) -> Result<Option<Result<(), Rejection>>, String> {
        match self.kind {
            NLMSG_ERROR => {
                let (code, rest) = self.body.split_first_chunk::<4>().ok_or("an acknowledgement without a code")?;
                // What follows the code: the request's header, its body unless capped, then the attributes.
                let header = rest.first_chunk::<4>().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
                let skip = if self.flags & NLM_F_CAPPED != 0 { HEADER } else { header.next_multiple_of(4) };
                Ok(Some(verdict(*code, self.flags, rest.get(skip..).unwrap_or_default())))
            }
            NLMSG_DONE => {
                let (code, rest) = self.body.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
                Ok(Some(verdict(*code, self.flags, rest)))
            }
            NLMSG_OVERRUN => Err("NLMSG_OVERRUN: data was lost".into()),
            _ => Ok(None),
        }
    }

    /// Whether it says nothing.
    pub(crate) fn is_noop(&self) -> bool {
        self.kind == NLMSG_NOOP
    }

    pub(crate) fn decode<R: NetlinkDeserializable>(&self) -> Result<R, String> {
        let buffer = NetlinkBuffer::new_checked(self.whole).map_err(|error| error.to_string())?;
        let header = NetlinkHeader::parse(&buffer).map_err(|error| error.to_string())?;
        R::deserialize(&header, self.body).map_err(|error| {
            let error: Box<dyn std::error::Error + Send + Sync> = error.into();
            format!("message of type {}: {error}", self.kind)
        })
    }
}

fn verdict(code: [u8; 4], flags: u16, attributes: &[u8]) -> Result<(), Rejection> {
    let errno = i32::from_ne_bytes(code).saturating_neg();
    if errno <= 0 {
        return Ok(());
    }
    let mut rejection = Rejection { errno, text: None, offset: None };
    if flags & NLM_F_ACK_TLVS != 0 {
        // A reason that cannot be read is no reason to lose the error itself.
        let _ = wire::attributes(attributes, |kind, value| {
            match kind {
                ATTRIBUTE_TEXT => {
                    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    rejection.text = Some(String::from_utf8_lossy(text).into_owned());
                }
                ATTRIBUTE_OFFSET => rejection.offset = wire::u32_of(value),
                _ => {}
            }
            Ok(())
        });
    }
    Err(rejection)
}
