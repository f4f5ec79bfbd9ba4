//! Carries copies of IKE messages from the driver to the connection of `edge-agent capture`. If one
//! end is dropped, the other end is notified immediately.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use edge_ike::capture::{Captured, CapturedMessage};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Maximum number of octets of messages that wait for the command. Messages beyond that are dropped
/// and counted.
const MAX_WAITING: usize = 4 << 20;
/// Number of octets in a batch after which no further message is added.
const BATCH: usize = 128 << 10;

/// A batch of captured messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedBatch {
    /// The messages, oldest first.
    pub messages: Vec<CapturedIke>,
    /// Number of messages that were dropped since the last batch, because the reader was too slow.
    pub dropped: u64,
}

/// A decrypted IKE message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedIke {
    /// The time at which the agent handled the message, in microseconds since 1970-01-01 UTC by the
    /// system clock.
    pub at: u64,
    /// Whether the agent sent the message.
    pub outgoing: bool,
    /// The agent's address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The message without the non-ESP marker; base64 in the serialised form.
    #[serde(with = "base64_text")]
    pub message: Vec<u8>,
}

/// The driver's end of a capture. The capture ends if this value is dropped.
#[derive(Debug)]
pub(crate) struct RunningCapture {
    /// The channel to the reader. It holds at most [`MAX_WAITING`] octets, since each message has a
    /// permit from `room` for its octets.
    to: mpsc::UnboundedSender<(CapturedIke, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    dropped: Arc<AtomicU64>,
    _end: DropGuard,
}

/// The reader's end of a capture. The capture ends if this value is dropped.
#[derive(Debug)]
pub struct CaptureReader {
    messages: mpsc::UnboundedReceiver<(CapturedIke, OwnedSemaphorePermit)>,
    dropped: Arc<AtomicU64>,
    end: CancellationToken,
}

/// Creates both ends of a capture.
pub(crate) fn open() -> (RunningCapture, CaptureReader) {
    let (to, messages) = mpsc::unbounded_channel();
    let (dropped, end) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let reader = CaptureReader { messages, dropped: dropped.clone(), end: end.clone() };
    let room = Arc::new(Semaphore::new(MAX_WAITING));
    (RunningCapture { to, room, dropped, _end: end.drop_guard() }, reader)
}

impl RunningCapture {
    /// Returns whether the reader's end has been dropped.
    pub(super) fn has_no_reader(&self) -> bool {
        self.to.is_closed()
    }

    /// Queues messages for the reader. `at` is in microseconds since 1970-01-01 UTC.
    pub(super) fn extend(&self, captured: Captured, at: u64) {
        self.dropped.fetch_add(captured.dropped, Ordering::Relaxed);
        captured.messages.into_iter().for_each(|message| self.keep(message, at));
    }

    fn keep(&self, captured: CapturedMessage, at: u64) {
        let CapturedMessage { outgoing, local, remote, message } = captured;
        let octets = u32::try_from(message.len()).unwrap_or(u32::MAX);
        match self.room.clone().try_acquire_many_owned(octets) {
            // If the reader's end has been dropped, the message is dropped as well.
            Ok(room) => drop(self.to.send((CapturedIke { at, outgoing, local, remote, message }, room))),
            Err(_) => drop(self.dropped.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// Completes when the reader's end of the running capture has been dropped. Never completes if no
/// capture runs.
pub(crate) async fn reader_gone(capture: Option<&RunningCapture>) {
    match capture {
        Some(capture) => capture.to.closed().await,
        None => std::future::pending().await,
    }
}

impl CaptureReader {
    /// Returns the next messages, as soon as there are any; `None` if the capture has ended.
    pub async fn next(&mut self) -> Option<CapturedBatch> {
        let (first, _) = self.messages.recv().await?;
        let mut octets = first.message.len();
        let mut messages = vec![first];
        while octets < BATCH {
            let Ok((message, _)) = self.messages.try_recv() else { break };
            octets += message.message.len();
            messages.push(message);
        }
        Some(CapturedBatch { messages, dropped: self.dropped.swap(0, Ordering::Relaxed) })
    }

    /// Returns a token that is cancelled when the agent stops copying. Messages that were copied
    /// before that may still be in the queue.
    pub fn end(&self) -> CancellationToken {
        self.end.clone()
    }
}

mod base64_text {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(octets: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(octets))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(octets: usize) -> CapturedMessage {
        let address = "192.0.2.1:500".parse().unwrap();
        CapturedMessage { outgoing: true, local: address, remote: address, message: vec![1; octets] }
    }

    #[tokio::test]
    async fn what_a_slow_reader_does_not_take_is_dropped_and_counted_and_the_rest_comes_in_order() {
        let (running, mut reader) = open();
        let (size, fit) = (4096, MAX_WAITING as u64 / 4096);
        for at in 0..fit + 3 {
            running.keep(message(size), at);
        }
        let (mut taken, mut dropped) = (Vec::new(), 0);
        while (taken.len() as u64) < fit {
            let batch = reader.next().await.unwrap();
            let octets: usize = batch.messages.iter().map(|message| message.message.len()).sum();
            assert!(octets < BATCH + size, "{octets}");
            dropped += batch.dropped;
            taken.extend(batch.messages.iter().map(|message| message.at));
        }
        assert_eq!((taken, dropped), ((0..fit).collect(), 3));
        running.extend(Captured { messages: vec![message(size)], dropped: 2 }, 9);
        let batch = reader.next().await.unwrap();
        assert_eq!((batch.messages.len(), batch.dropped), (1, 2), "there is room again");
    }

    #[tokio::test]
    async fn each_end_learns_that_the_other_one_is_gone() {
        let (running, reader) = open();
        assert!(!running.has_no_reader());
        drop(reader);
        reader_gone(Some(&running)).await;
        assert!(running.has_no_reader());
        running.keep(message(9), 0);
        assert_eq!(running.room.available_permits(), MAX_WAITING, "nothing is kept for nobody");

        let (running, mut reader) = open();
        running.keep(message(9), 7);
        drop(running);
        reader.end().cancelled().await;
        assert_eq!(reader.next().await.map(|batch| batch.messages[0].at), Some(7), "what waits still comes");
        assert_eq!(reader.next().await, None);
    }

    #[tokio::test]
    async fn a_batch_is_the_same_after_its_way_over_the_socket() {
        let (running, mut reader) = open();
        running.keep(message(300), 7);
        let batch = reader.next().await.unwrap();
        let line = serde_json::to_string(&batch).unwrap();
        assert_eq!(serde_json::from_str::<CapturedBatch>(&line).unwrap(), batch);
    }
}
