//! A synchronous netlink request socket. This crate uses it for XFRM, other crates for links,
//! routes and nftables.
//!
//! It never joins multicast groups: notifications of our own changes carry the sequence number of
//! the request and would be mistaken for its response. No code here prints a message, and the
//! socket option `NETLINK_CAP_ACK` keeps the kernel from echoing requests, since messages may hold
//! keys.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;
use zeroize::{Zeroize, Zeroizing};

mod error;
mod frame;
mod message;
mod rtnetlink;

use error::{ANSWER_TIMEOUT, DUMP_ATTEMPTS};
pub use error::{Error, Result};
use frame::HEADER_LEN;
pub use frame::KernelRefusal;
pub(crate) use frame::{Frame, Frames};
pub use message::{Attributes, RawMessage};
pub use rtnetlink::{
    AddressMessage, AddressRequest, BridgePort, BridgePortState, LinkMessage, LinkRequest, NextHop, RouteMessage,
    RouteRequest, attribute,
};

/// Receive buffer of the socket, bytes. It must hold the responses of a whole batch.
const SOCKET_BUFFER: usize = 4 << 20;
/// Maximum size of a datagram, bytes. Datagrams of a dump have at most 32 KiB, and single responses
/// are far smaller.
const MAX_DATAGRAM: usize = 64 << 10;
/// Increase of the delay before each further attempt, starting with the third attempt.
const DUMP_WAIT: Duration = Duration::from_millis(2);
/// Maximum delay before another attempt.
const LONGEST_DUMP_WAIT: Duration = Duration::from_millis(50);
/// Maximum number of requests in one datagram of a batch. If all are refused, the refusals fit into
/// the smallest receive buffer.
const MAX_BATCH: usize = 128;
/// Maximum number of requests in one datagram if each is answered by a message.
const MAX_QUERIES: usize = 32;

/// A request socket of one netlink protocol. It handles one request at a time, so threads cannot
/// share it.
pub struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: ReceiveBuffer,
}

/// Holds a whole response, which may be an SA with its keys, from its arrival until it is read. It
/// is wiped then, or when dropped. Memory that no response has reached is never touched, because
/// its pages would cost a small request more than the kernel's own work.
struct ReceiveBuffer(Vec<u8>);

impl ReceiveBuffer {
    fn wipe(&mut self) {
        self.0.as_mut_slice().zeroize();
        self.0.clear();
    }
}

impl Drop for ReceiveBuffer {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").field("port", &self.port).field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens a socket for a protocol (`netlink_sys::protocols`) in the thread's network namespace.
    pub fn open(protocol: isize) -> Result<Self> {
        let mut socket = Socket::new(protocol).map_err(Error::io("cannot open a netlink socket"))?;
        let option = Error::io;
        socket.set_ext_ack(true).map_err(option("cannot set NETLINK_EXT_ACK"))?;
        socket.set_cap_ack(true).map_err(option("cannot set NETLINK_CAP_ACK"))?;
        socket.set_netlink_get_strict_chk(true).map_err(option("cannot set NETLINK_GET_STRICT_CHK"))?;
        widen_buffer(&socket)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|error| Error::io("cannot set SO_RCVTIMEO")(error.into()))?;
        let port = socket.bind_auto().map_err(option("cannot bind a netlink socket"))?.port_number();
        socket.connect(&SocketAddr::new(0, 0)).map_err(option("cannot connect a netlink socket"))?;
        Ok(Self { socket, port, sequence: 0, buffer: ReceiveBuffer(Vec::with_capacity(MAX_DATAGRAM)) })
    }

    /// Returns the socket's port. The kernel puts it into notifications of changes that were made
    /// through this socket.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Returns the number of requests that were sent. Each request of a batch counts.
    pub fn requests_sent(&self) -> u32 {
        self.sequence
    }

    /// Sends a request and waits for its acknowledgement. `flags` are added to `NLM_F_REQUEST` and
    /// `NLM_F_ACK`, for example `NLM_F_CREATE`.
    pub fn execute<Q: NetlinkSerializable>(&mut self, request: &'static str, message: Q, flags: u16) -> Result<()> {
        let mut results = self.batch(request, vec![(message, flags)])?;
        match results.pop() {
            Some(Err(refusal)) => Err(Error::Rejected { request, refusal }),
            _ => Ok(()),
        }
    }

    /// Sends several requests in one datagram, and returns the outcome of each, in the same order.
    /// The kernel carries the requests out one after another within the system call. A refusal does
    /// not stop the following requests. More than 128 requests are sent in several datagrams.
    ///
    /// Only the last request of a datagram is acknowledged. Refusals arrive in any case, and before
    /// that acknowledgement.
    pub fn batch<Q: NetlinkSerializable>(
        &mut self,
        request: &'static str,
        messages: Vec<(Q, u16)>,
    ) -> Result<Vec<Result<(), KernelRefusal>>> {
        let mut results = Vec::with_capacity(messages.len());
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Zeroizing::new(Vec::new());
            let mut outcomes = Vec::new();
            while let Some((message, flags)) = messages.next_if(|_| outcomes.len() < MAX_BATCH) {
                let last = outcomes.len() + 1 == MAX_BATCH || messages.peek().is_none();
                let acknowledge = if last { NLM_F_ACK } else { 0 };
                self.append(&mut bytes, message, NLM_F_REQUEST | acknowledge | flags);
                outcomes.push(Ok(()));
            }
            self.send(&bytes)?;
            let mut answered = false;
            while !answered {
                self.receive(request, |frame| {
                    let number = frame.sequence.wrapping_sub(first) as usize;
                    let is_last = number + 1 == outcomes.len();
                    if let (Some(slot), Some(outcome)) = (outcomes.get_mut(number), frame.outcome()?) {
                        *slot = outcome;
                        answered |= is_last;
                    }
                    Ok(())
                })?;
            }
            results.extend(outcomes);
        }
        Ok(results)
    }

    /// Sends requests as one nfnetlink transaction (`linux/netfilter/nfnetlink.h`): the kernel
    /// carries out all of them or none. `begin` (`NFNL_MSG_BATCH_BEGIN`) and `end`
    /// (`NFNL_MSG_BATCH_END`) are the messages before and after the requests. Without `end` the
    /// kernel tries all requests and reverts them, as for `nft --check`. Returns the first refusal.
    pub fn transaction<Q: NetlinkSerializable>(
        &mut self,
        request: &'static str,
        begin: Q,
        messages: Vec<(Q, u16)>,
        end: Option<Q>,
    ) -> Result<()> {
        let Some(last) = messages.len().checked_sub(1) else { return Ok(()) };
        let mut bytes = Zeroizing::new(Vec::new());
        self.append(&mut bytes, begin, NLM_F_REQUEST);
        let first = self.sequence;
        for (number, (message, flags)) in messages.into_iter().enumerate() {
            // The response to the last request comes after all refusals. (Kernels before 6.10
            // acknowledge neither `begin` nor `end`.)
            let acknowledge = if number == last { NLM_F_ACK } else { 0 };
            self.append(&mut bytes, message, NLM_F_REQUEST | acknowledge | flags);
        }
        let final_sequence = self.sequence;
        if let Some(end) = end {
            self.append(&mut bytes, end, NLM_F_REQUEST);
        }
        let count = self.sequence.wrapping_sub(first);
        self.send(&bytes)?;
        let (mut answered, mut refusal) = (false, None);
        while !answered {
            self.receive(request, |frame| {
                if frame.sequence.wrapping_sub(first) > count {
                    return Ok(());
                }
                if let Some(outcome) = frame.outcome()? {
                    // If the whole transaction is refused, the refusal carries the sequence number
                    // of `begin`.
                    answered |= frame.sequence == final_sequence || (frame.sequence == first && outcome.is_err());
                    if let Err(other) = outcome {
                        refusal.get_or_insert(other);
                    }
                }
                Ok(())
            })?;
        }
        refusal.map_or(Ok(()), |refusal| Err(Error::Rejected { request, refusal }))
    }

    /// Sends a request that is answered by one message. `NLM_F_ACK` is not set: the response is the
    /// acknowledgement.
    pub fn get<Q, R>(&mut self, request: &'static str, message: Q) -> Result<R>
    where
        Q: NetlinkSerializable,
        R: NetlinkDeserializable,
    {
        let mut answers = self.get_all(request, vec![message])?;
        match answers.pop() {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(refusal)) => Err(Error::Rejected { request, refusal }),
            None => Err(Error::Timeout { request }),
        }
    }

    /// Sends several requests in one datagram, each answered by one message. Responses come in
    /// order. More than 32 requests are sent in several datagrams.
    pub fn get_all<Q, R>(&mut self, request: &'static str, messages: Vec<Q>) -> Result<Vec<Result<R, KernelRefusal>>>
    where
        Q: NetlinkSerializable,
        R: NetlinkDeserializable,
    {
        let mut results = Vec::with_capacity(messages.len());
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Zeroizing::new(Vec::new());
            let mut answers: Vec<Option<Result<R, KernelRefusal>>> = Vec::new();
            for message in messages.by_ref().take(MAX_QUERIES) {
                self.append(&mut bytes, message, NLM_F_REQUEST);
                answers.push(None);
            }
            self.send(&bytes)?;
            while answers.iter().any(Option::is_none) {
                self.receive(request, |frame| {
                    let number = frame.sequence.wrapping_sub(first) as usize;
                    let Some(slot @ None) = answers.get_mut(number) else { return Ok(()) };
                    match frame.outcome()? {
                        Some(Err(refusal)) => *slot = Some(Err(refusal)),
                        Some(Ok(())) => return Err("an acknowledgement without an answer".into()),
                        None => *slot = Some(Ok(frame.decode()?)),
                    }
                    Ok(())
                })?;
            }
            results.extend(answers.into_iter().flatten());
        }
        Ok(results)
    }

    /// Reads a whole table. Starts again if the table changed while it was read
    /// (`NLM_F_DUMP_INTR`).
    pub fn dump<Q, R>(&mut self, request: &'static str, message: Q) -> Result<Vec<R>>
    where
        Q: NetlinkSerializable + Clone,
        R: NetlinkDeserializable,
    {
        self.dump_with(request, message, Some)
    }

    /// Does what [`Self::dump`] does, but keeps only what `keep` makes of each entry when it
    /// arrives. So a large table is in memory once.
    pub(crate) fn dump_with<Q, R, T>(
        &mut self,
        request: &'static str,
        message: Q,
        keep: impl Fn(R) -> Option<T>,
    ) -> Result<Vec<T>>
    where
        Q: NetlinkSerializable + Clone,
        R: NetlinkDeserializable,
    {
        for attempt in 0..DUMP_ATTEMPTS {
            #[expect(clippy::disallowed_methods, reason = "nothing tells when others have ended their changes")]
            std::thread::sleep((DUMP_WAIT * attempt.saturating_sub(1)).min(LONGEST_DUMP_WAIT));
            let mut bytes = Zeroizing::new(Vec::new());
            self.append(&mut bytes, message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            let sequence = self.sequence;
            self.send(&bytes)?;
            let (mut found, mut end) = (Vec::new(), None);
            let (mut interrupted, mut misread) = (false, None);
            // The dump is read to its end in any case: while a part of it is unread, the kernel
            // refuses the next dump (EBUSY).
            while end.is_none() {
                let received = self.receive(request, |frame| {
                    if frame.sequence != sequence {
                        return Ok(());
                    }
                    interrupted |= frame.flags & NLM_F_DUMP_INTR != 0;
                    match frame.outcome()? {
                        Some(outcome) => end = Some(outcome),
                        None => match frame.decode() {
                            Ok(entry) => found.extend(keep(entry)),
                            Err(reason) => misread = Some(reason),
                        },
                    }
                    Ok(())
                });
                match received {
                    Err(Error::Overrun) => interrupted = true,
                    received => received?,
                }
            }
            if let Some(Err(refusal)) = end {
                return Err(Error::Rejected { request, refusal });
            }
            if let Some(reason) = misread {
                return Err(Error::Malformed { request, reason });
            }
            if !interrupted {
                return Ok(found);
            }
        }
        Err(Error::Interrupted { request })
    }

    fn append<Q: NetlinkSerializable>(&mut self, bytes: &mut Zeroizing<Vec<u8>>, message: Q, flags: u16) {
        message.serialize(self.append_header(bytes, message.message_type(), message.buffer_len(), flags));
    }

    /// Appends the header of a message (`struct nlmsghdr`) and room for its body. Returns the room.
    fn append_header<'a>(
        &mut self,
        bytes: &'a mut Zeroizing<Vec<u8>>,
        kind: u16,
        length: usize,
        flags: u16,
    ) -> &'a mut [u8] {
        self.sequence = self.sequence.wrapping_add(1);
        let start = bytes.len() + HEADER_LEN;
        let end = (start + length).next_multiple_of(4);
        if bytes.capacity() < end {
            // If the vector grew in place, it could move and leave a copy of a key in freed memory.
            let mut larger = Zeroizing::new(Vec::with_capacity(end.max(bytes.capacity() * 2)));
            larger.extend_from_slice(bytes);
            *bytes = larger;
        }
        bytes.extend(((HEADER_LEN + length) as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(self.port.to_ne_bytes());
        bytes.resize(end, 0);
        bytes.get_mut(start..start + length).unwrap_or_default()
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("cannot send to the kernel")(error)),
            }
        }
    }

    /// Receives one datagram and passes its messages to `take`.
    fn receive(&mut self, request: &'static str, mut take: impl FnMut(Frame<'_>) -> Result<(), String>) -> Result<()> {
        let length = loop {
            match self.socket.recv(&mut self.buffer.0, libc::MSG_TRUNC) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Error::Timeout { request }),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Err(Error::Overrun),
                Err(error) => return Err(Error::io("cannot receive from the kernel")(error)),
            }
        };
        // A datagram that is longer than the buffer was cut off at the buffer's end (MSG_TRUNC).
        let outcome = match self.buffer.0.get(..length) {
            None => Err(format!("a datagram of {length} bytes")),
            Some(bytes) => Frames::new(bytes).try_for_each(|frame| match frame? {
                frame if frame.is_noop() => Ok(()),
                frame => take(frame),
            }),
        };
        self.buffer.wipe();
        outcome.map_err(|reason| Error::Malformed { request, reason })
    }
}

/// Requests a large receive buffer, beyond the system's limit if the process may exceed it.
pub(crate) fn widen_buffer(socket: &Socket) -> Result<()> {
    sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER))
        .map_err(|error| Error::io("cannot set SO_RCVBUF")(error.into()))
}
