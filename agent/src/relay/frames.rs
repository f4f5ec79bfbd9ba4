//! The frames of a TCP connection (RFC 9329 3): two octets of length, which count themselves, then
//! what a datagram on UDP port 4500 contains (RFC 3948 2). The hub reads the frames itself, and
//! does not look into them. A node's kernel writes and reads them (`net/xfrm/espintcp.c`).

use std::io;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Size of the length field, in octets.
const LENGTH: usize = 2;
/// Size of the send buffer, and of the receive buffer, that the kernel is asked for, in octets. It
/// gives up to twice as much, within the limits of its sysctls. What is queued there arrives late,
/// so they are kept small; frames for which there is no room are dropped, or wait at their sender.
const BUFFER: usize = 256 * 1024;

/// What has arrived in a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A frame.
    Frame,
    /// The beginning of a frame that is too large. It has this number of octets, which are skipped.
    TooLarge(usize),
}

/// A connection of a relayed node.
#[derive(Debug)]
pub(super) struct FrameStream {
    stream: TcpStream,
    /// What was read and not yet returned, about a frame of `max` octets and its length at most.
    read: Vec<u8>,
    /// Size of the largest frame that is returned, in octets, without its length. Larger ones are
    /// skipped, as datagrams of this size are.
    max: usize,
    /// Number of octets of a skipped frame that must still be read.
    skip: usize,
    /// The rest of a frame of which the kernel took only a part, from `sent` on.
    unsent: Vec<u8>,
    sent: usize,
}

impl FrameStream {
    /// Reads frames of up to `max` octets. Must be called within the runtime that reads them, so
    /// that no other one wakes for them.
    ///
    /// # Errors
    /// Returns an error if the connection cannot be registered with the runtime.
    pub(super) fn new(stream: std::net::TcpStream, max: usize) -> io::Result<Self> {
        let stream = TcpStream::from_std(stream)?;
        // Without the options the kernel's own limits hold.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, BUFFER);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&stream, BUFFER);
        Ok(Self { stream, read: Vec::new(), max, skip: 0, unsent: Vec::new(), sent: 0 })
    }

    /// Waits for a frame, and writes its content to `frame`. Meanwhile, the rest of a frame is sent
    /// if there is one. This method is cancel safe.
    ///
    /// # Errors
    /// Returns an error if the connection has ended, or if a length is too small to be one.
    pub(super) async fn next(&mut self, frame: &mut Vec<u8>) -> io::Result<Incoming> {
        loop {
            if let Some(incoming) = self.take_frame(frame)? {
                return Ok(incoming);
            }
            let write =
                if self.unsent.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let ready = self.stream.ready(write).await?;
            if ready.is_writable() {
                self.flush()?;
            }
            if ready.is_readable() || ready.is_read_closed() {
                self.fill()?;
            }
        }
    }

    /// Reads what there is, up to one frame of the maximum size.
    fn fill(&mut self) -> io::Result<()> {
        // An idle connection has no buffer.
        self.read.reserve_exact((LENGTH + self.max).saturating_sub(self.read.len()));
        match self.stream.try_read_buf(&mut self.read) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes a whole frame, or the beginning of one that is too large, out of what was read.
    fn take_frame(&mut self, frame: &mut Vec<u8>) -> io::Result<Option<Incoming>> {
        let skipped = self.skip.min(self.read.len());
        self.read.drain(..skipped);
        self.skip -= skipped;
        let Some((length, rest)) = self.read.split_first_chunk::<LENGTH>() else {
            if self.read.is_empty() {
                self.read = Vec::new();
            }
            return Ok(None);
        };
        let Some(content) = usize::from(u16::from_be_bytes(*length)).checked_sub(LENGTH) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is shorter than its length field"));
        };
        if content > self.max {
            self.skip = LENGTH + content;
            return Ok(Some(Incoming::TooLarge(content)));
        }
        let Some(whole) = rest.get(..content) else { return Ok(None) };
        frame.clear();
        frame.extend_from_slice(whole);
        self.read.drain(..LENGTH + content);
        Ok(Some(Incoming::Frame))
    }

    /// Sends a frame. Returns `false` if it is dropped, because an earlier one is not yet sent, or
    /// because there is no room in the send buffer.
    pub(super) fn send(&mut self, content: &[u8]) -> bool {
        let Some(length) = u16::try_from(content.len() + LENGTH).ok().filter(|_| self.unsent.is_empty()) else {
            return false;
        };
        let length = length.to_be_bytes();
        let parts = [io::IoSlice::new(&length), io::IoSlice::new(content)];
        // An error shows when the connection is read.
        let Ok(sent) = self.stream.try_write_vectored(&parts) else { return false };
        if sent < LENGTH + content.len() {
            self.unsent.extend(length.iter().chain(content).skip(sent));
        }
        true
    }

    fn flush(&mut self) -> io::Result<()> {
        let rest = self.unsent.get(self.sent..).unwrap_or_default();
        if !rest.is_empty() {
            match self.stream.try_write(rest) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.sent >= self.unsent.len() {
            (self.unsent, self.sent) = (Vec::new(), 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const MAX: usize = 100;

    /// Returns a connection of a node, and its other end at the hub.
    async fn connected() -> (TcpStream, FrameStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (hub, _) = listener.accept().await.unwrap();
        (node, FrameStream::new(hub.into_std().unwrap(), MAX).unwrap())
    }

    fn frame(content: &[u8]) -> Vec<u8> {
        [&u16::try_from(content.len() + LENGTH).unwrap().to_be_bytes(), content].concat()
    }

    async fn next(hub: &mut FrameStream) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            match hub.next(&mut content).await? {
                Incoming::Frame => return Ok(content),
                // The caller counts it.
                Incoming::TooLarge(octets) => assert!(octets > MAX),
            }
        }
    }

    #[tokio::test]
    async fn frames_are_found_however_they_are_cut_and_too_large_ones_are_skipped() {
        let frames = [&b"one"[..], &[0; MAX], b"", &[7; MAX + 1], &[8; 60_000], b"last"];
        let all: Vec<u8> = frames.iter().flat_map(|content| frame(content)).collect();
        for cut in [1, 3, 50, 1000, all.len()] {
            let (mut node, mut hub) = connected().await;
            let all = all.clone();
            let writing = tokio::spawn(async move {
                // Enough pieces for every cut of the small frames.
                for piece in all.get(..200).unwrap().chunks(cut).chain(all.get(200..).unwrap().chunks(1000)) {
                    node.write_all(piece).await.unwrap();
                    node.flush().await.unwrap();
                    tokio::task::yield_now().await;
                }
                node
            });
            for expected in [&b"one"[..], &[0; MAX], b"", b"last"] {
                assert_eq!(next(&mut hub).await.unwrap(), expected, "cut in pieces of {cut}");
            }
            assert_eq!(hub.take_frame(&mut Vec::new()).unwrap(), None);
            assert_eq!(hub.read.capacity(), 0, "an idle connection has no buffer");
            drop(writing.await.unwrap());
            assert_eq!(next(&mut hub).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[tokio::test]
    async fn a_length_that_cannot_be_one_ends_the_connection() {
        for length in [[0, 0], [0, 1]] {
            let (mut node, mut hub) = connected().await;
            node.write_all(&[&frame(b"one")[..], &length].concat()).await.unwrap();
            assert_eq!(next(&mut hub).await.unwrap(), b"one");
            assert_eq!(next(&mut hub).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[tokio::test]
    async fn a_frame_that_the_kernel_takes_in_part_arrives_whole_and_those_without_room_are_dropped() {
        let (mut node, mut hub) = connected().await;
        let content = |number: u32| [&number.to_be_bytes()[..], &[9; 9000]].concat();
        // The node reads nothing until the buffers are full.
        let mut queued = 0;
        while hub.unsent.is_empty() {
            hub.stream.writable().await.unwrap();
            queued += u32::from(hub.send(&content(queued)));
        }
        assert!(!hub.send(&content(u32::MAX)));
        let reading = tokio::spawn(async move {
            let mut numbers = Vec::new();
            let mut octets = Vec::new();
            node.read_to_end(&mut octets).await.unwrap();
            let mut rest = octets.as_slice();
            while let Some((length, after)) = rest.split_first_chunk::<LENGTH>() {
                let (content, after) = after.split_at(usize::from(u16::from_be_bytes(*length)) - LENGTH);
                assert_eq!(content.len(), 9004);
                numbers.push(u32::from_be_bytes(*content.first_chunk().unwrap()));
                rest = after;
            }
            numbers
        });
        while !hub.unsent.is_empty() {
            let mut nothing = Vec::new();
            tokio::select! {
                received = hub.next(&mut nothing) => panic!("the node sends nothing: {received:?}"),
                () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {}
            }
        }
        drop(hub);
        let numbers = reading.await.unwrap();
        assert_eq!(numbers, (0..queued).collect::<Vec<_>>());
    }
}
