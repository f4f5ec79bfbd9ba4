//! Notifications that a packet was sent or received with an SA.
//!
//! The kernel reports an SA's sequence numbers (`XFRM_MSG_NEWAE`) while a socket is a member of the
//! group `XFRMNLGRP_AEVENTS`. Our SAs set no threshold of packets (`XFRMA_REPLAY_THRESH` is 0), so
//! only the timer matters (`replay_maxage`, `net/xfrm/xfrm_replay.c`): the first packet after an
//! idle interval is reported immediately (`XFRM_TIME_DEFER`), further packets are reported at the
//! end of each interval, and an idle SA is not reported. An inbound packet counts after its ICV and
//! its sequence number were checked.
//!
//! The interval is the kernel's default for new SAs. An attribute of the SA could set another
//! interval (`XFRMA_ETIMER_THRESH`), but its unit is jiffies, and the kernel does not report the
//! length of a jiffy.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_xfrm as nl;
use netlink_sys::Socket;

use super::open_socket;
use crate::error::{Error, Result};
use crate::netlink::{self, Frame, Frames};
use crate::reqid::{FIRST_REQID, LAST_REQID};
use crate::sa::SaId;
use crate::{socket, uapi};

/// The file with the default interval, in tenths of a second.
const INTERVAL_PATH: &str = "/proc/sys/net/core/xfrm_aevent_etime";
/// Maximum acceptable interval, tenths of a second. It is the kernel's own default.
const LONGEST_INTERVAL: u32 = 10;
/// Maximum size of a notification, bytes: an SA's identifier, its replay state with the largest
/// window, and its counters.
const MAX_DATAGRAM: usize = 4 << 10;

/// The first byte of our reqids. The socket's filter accepts only notifications with such a reqid.
const REQID_PREFIX: u8 = (FIRST_REQID >> 24) as u8;
const _: () = assert!(LAST_REQID - FIRST_REQID == 0x00FF_FFFF);
/// The offset of that byte in a notification, bytes: after the netlink header, near the end of
/// `struct xfrm_aevent_id`. The kernel writes reqids in host byte order.
const REQID_PREFIX_OFFSET: u32 = 16 + 44 + if cfg!(target_endian = "little") { 3 } else { 0 };

/// A report that ESP was sent or received with this SA since its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EspEvent {
    /// Destination and SPI of the SA.
    pub id: SaId,
    /// The SA's reqid, one of ours.
    pub reqid: u32,
    /// Number of bytes that the SA had carried when the kernel made the report, without the packet
    /// that caused the report. 0 if the kernel does not say.
    pub bytes: u64,
}

/// A non-blocking socket for [`EspEvent`]s of our SAs. Register it for readability, then call
/// [`EspEventSocket::next`] until it returns `None`.
#[derive(Debug)]
pub struct EspEventSocket {
    socket: Socket,
    buffer: Vec<u8>,
}

impl EspEventSocket {
    /// Opens the socket in the thread's network namespace. Fails if the kernel cannot report ESP,
    /// or if it reports ESP less often than once a second.
    pub fn open() -> Result<Self> {
        check_interval(std::fs::read_to_string(INTERVAL_PATH))?;
        let socket = open_socket(&[nl::XFRMNLGRP_AEVENTS])?;
        // This drops the events of other programs' SAs, which have the default threshold of two
        // packets.
        socket::accept_byte(&socket, REQID_PREFIX_OFFSET, REQID_PREFIX)?;
        Ok(Self { socket, buffer: vec![0; MAX_DATAGRAM] })
    }

    /// Returns the next event, or `None` if there is none now. The loss of events because of a full
    /// buffer is not reported: while ESP packets flow, another event follows within the interval.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<EspEvent>> {
        loop {
            match self.socket.recv(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC) {
                Ok(length) => {
                    if let Some(event) = self.buffer.get(..length).and_then(parse_datagram) {
                        return Ok(Some(event));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error)
                    if error.kind() == io::ErrorKind::Interrupted || error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => {
                    return Err(netlink::Error::Io { doing: "cannot receive XFRM's events of ESP", error }.into());
                }
            }
        }
    }
}

impl AsFd for EspEventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for EspEventSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn check_interval(read: io::Result<String>) -> Result<()> {
    let failed = |reason| Err(Error::Proc { path: INTERVAL_PATH, reason });
    match read {
        Ok(text) => match text.trim().parse() {
            Ok(1..=LONGEST_INTERVAL) => Ok(()),
            Ok(0) => failed("it is 0, so the kernel does not report ESP; set it to 10".to_owned()),
            Ok(tenths) => failed(format!("it is {tenths} tenths of a second, at most {LONGEST_INTERVAL} are expected")),
            Err(error) => failed(error.to_string()),
        },
        // A network namespace in a user namespace has no such file, and uses the default.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => failed(error.to_string()),
    }
}

/// Parses the event in a datagram. The kernel puts one event into each datagram.
fn parse_datagram(bytes: &[u8]) -> Option<EspEvent> {
    let parsed = Frames::new(bytes).next()?.and_then(|frame| parse(&frame));
    parsed.unwrap_or_else(|reason| {
        tracing::debug!(reason, "an event of ESP was not understood");
        None
    })
}

/// Parses `struct xfrm_aevent_id`, which precedes the replay state.
fn parse(frame: &Frame<'_>) -> Result<Option<EspEvent>, String> {
    if frame.kind != nl::XFRM_MSG_NEWAE {
        return Ok(None);
    }
    let (fixed, attributes) = uapi::split(frame.body, nl::XFRM_ASYNC_EVENT_ID_LEN)?;
    let raw = nl::AsyncEventId::parse(fixed).map_err(|error| error.to_string())?;
    let destination = uapi::address(&raw.sa_id.daddr, raw.sa_id.family)
        .ok_or_else(|| format!("event of ESP of family {}", raw.sa_id.family))?;
    if raw.sa_id.proto != nl::IPPROTO_ESP {
        return Ok(None);
    }
    let mut bytes = 0;
    uapi::attributes(attributes, |kind, value| {
        if kind == nl::XFRMA_LTIME_VAL {
            // `struct xfrm_lifetime_cur` begins with the number of bytes.
            let first = value.first_chunk().ok_or("the counters are too short")?;
            bytes = u64::from_ne_bytes(*first);
        }
        Ok(())
    })?;
    Ok(Some(EspEvent { id: SaId { destination, spi: raw.sa_id.spi }, reqid: raw.reqid, bytes }))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use proptest::prelude::*;

    use super::*;
    use crate::Reqid;

    fn event() -> EspEvent {
        let id = SaId { destination: "2001:db8::1".parse().unwrap(), spi: 0xc001_0203 };
        EspEvent { id, reqid: Reqid::tunnel(7).unwrap().raw(), bytes: 123_456 }
    }

    /// Makes a notification with its netlink header.
    fn notification(kind: u16) -> Vec<u8> {
        let id = nl::AsyncEventId {
            sa_id: event().id.to_kernel(),
            saddr: nl::Address::from_ip(&"2001:db8::2".parse().unwrap()),
            flags: 0x40,
            reqid: event().reqid,
        };
        // `struct xfrm_lifetime_cur` has four fields of 8 bytes.
        let length: u32 = 64 + 4 + 32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.resize(64, 0);
        id.emit(&mut bytes[16..]);
        bytes.extend(36_u16.to_ne_bytes());
        bytes.extend(nl::XFRMA_LTIME_VAL.to_ne_bytes());
        bytes.extend(event().bytes.to_ne_bytes());
        bytes.extend([0; 24]);
        bytes
    }

    #[test]
    fn an_event_names_the_sa_its_bytes_and_its_reqid_where_the_filter_looks() {
        let bytes = notification(nl::XFRM_MSG_NEWAE);
        assert_eq!(parse_datagram(&bytes), Some(event()));
        assert_eq!(bytes[REQID_PREFIX_OFFSET as usize], REQID_PREFIX);
        assert_eq!(parse_datagram(&notification(nl::XFRM_MSG_NEWSA)), None);
    }

    #[test]
    fn an_interval_that_is_too_long_or_none_is_refused_and_the_default_taken() {
        for good in [Ok("10\n".to_owned()), Ok("1".to_owned()), Err(io::Error::from(io::ErrorKind::NotFound))] {
            check_interval(good).unwrap();
        }
        for (bad, said) in [("0\n", "it is 0"), ("11", "11 tenths"), ("-1", "invalid digit"), ("", "empty")] {
            let error = check_interval(Ok(bad.to_owned())).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("xfrm_aevent_etime"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0_usize..=100) {
            parse_datagram(&bytes);
            parse_datagram(&notification(nl::XFRM_MSG_NEWAE)[..length]);
        }
    }
}
