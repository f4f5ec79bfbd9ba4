//! A place for one line between the task that makes a stream's lines and the response or the
//! connection that sends them. Ten thousand streams are open at once, and a channel of tokio takes
//! 1.5 KiB for each.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::body::Bytes;
use tokio::sync::Notify;

/// Makes an empty slot. At most one line waits in it.
pub(crate) fn line_slot() -> (LineSender, LineReceiver) {
    let slot = Arc::new(Slot::default());
    (LineSender(slot.clone()), LineReceiver(slot))
}

/// Puts lines into the slot. For one task at a time.
pub(crate) struct LineSender(Arc<Slot>);

/// Takes lines out of the slot.
pub(crate) struct LineReceiver(Arc<Slot>);

/// The receiver is gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReaderGone;

#[derive(Default)]
struct Slot {
    content: Mutex<Content>,
    /// Notified when the line was taken, and when the receiver is dropped.
    taken: Notify,
    /// Notified when a line was put, and when the sender is dropped.
    put: Notify,
}

#[derive(Default)]
struct Content {
    line: Option<Bytes>,
    sender_gone: bool,
    receiver_gone: bool,
}

impl Slot {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LineSender {
    /// Puts a line into the slot if it is empty. Otherwise returns the line.
    pub(crate) fn try_put(&self, line: Bytes) -> Result<Option<Bytes>, ReaderGone> {
        let mut content = self.0.content();
        if content.receiver_gone {
            return Err(ReaderGone);
        }
        if content.line.is_some() {
            return Ok(Some(line));
        }
        content.line = Some(line);
        drop(content);
        self.0.put.notify_one();
        Ok(None)
    }

    /// Waits until the slot is empty, and puts a line into it.
    pub(crate) async fn put(&self, mut line: Bytes) -> Result<(), ReaderGone> {
        while let Some(again) = self.try_put(line)? {
            line = again;
            self.0.taken.notified().await;
        }
        Ok(())
    }

    /// Returns when the receiver is gone.
    pub(crate) async fn closed(&self) {
        while !self.0.content().receiver_gone {
            self.0.taken.notified().await;
        }
    }
}

impl LineReceiver {
    /// Takes the line that is in the slot, if there is one.
    pub(crate) fn try_take(&mut self) -> Option<Bytes> {
        let line = self.0.content().line.take()?;
        self.0.taken.notify_one();
        Some(line)
    }

    /// Waits for the next line. `None` if the sender is gone and the slot is empty.
    pub(crate) async fn take(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.try_take() {
                return Some(line);
            }
            {
                // A last line may have come since.
                let content = self.0.content();
                if content.sender_gone && content.line.is_none() {
                    return None;
                }
            }
            self.0.put.notified().await;
        }
    }
}

impl Drop for LineSender {
    fn drop(&mut self) {
        self.0.content().sender_gone = true;
        self.0.put.notify_one();
    }
}

impl Drop for LineReceiver {
    fn drop(&mut self) {
        {
            let mut content = self.0.content();
            content.receiver_gone = true;
            content.line = None;
        }
        self.0.taken.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn line(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[tokio::test]
    async fn lines_come_in_order_and_the_last_one_also_when_the_sender_is_gone() {
        let (sender, mut receiver) = line_slot();
        let sending = tokio::spawn(async move {
            for text in ["a", "b", "c"] {
                sender.put(line(text)).await.unwrap();
            }
        });
        for text in ["a", "b", "c"] {
            assert_eq!(receiver.take().await, Some(line(text)));
        }
        assert_eq!(receiver.take().await, None);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn each_end_that_waits_wakes_when_the_other_one_is_dropped() {
        let (sender, mut receiver) = line_slot();
        let waiting = tokio::spawn(async move { receiver.take().await });
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(waiting.await.unwrap(), None);
        let (sender, receiver) = line_slot();
        let waiting = tokio::spawn(async move { sender.closed().await });
        tokio::task::yield_now().await;
        drop(receiver);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_second_line_waits_until_the_first_one_is_taken() {
        let (sender, mut receiver) = line_slot();
        assert_eq!(sender.try_put(line("a")), Ok(None));
        assert_eq!(sender.try_put(line("b")), Ok(Some(line("b"))));
        let mut second = std::pin::pin!(sender.put(line("b")));
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!(receiver.take().await, Some(line("a")));
        second.await.unwrap();
        assert_eq!(receiver.take().await, Some(line("b")));
    }

    #[tokio::test]
    async fn a_sender_learns_that_the_receiver_is_gone_whatever_it_waits_for() {
        let (sender, receiver) = line_slot();
        assert_eq!(sender.try_put(line("a")), Ok(None));
        {
            let mut closed = std::pin::pin!(sender.closed());
            assert!(closed.as_mut().now_or_never().is_none());
            let mut put = std::pin::pin!(sender.put(line("b")));
            assert!(put.as_mut().now_or_never().is_none());
        }
        drop(receiver);
        sender.closed().await;
        assert_eq!(sender.put(line("b")).await, Err(ReaderGone));
    }
}
