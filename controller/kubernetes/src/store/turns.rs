//! One answer for all who ask at the same time, that is not older than any of their questions.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Questions, and the last answer.
pub(super) struct Turns<T> {
    asked: AtomicU64,
    /// For how many questions the answer came late enough.
    answer: Mutex<Option<(u64, T)>>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { asked: AtomicU64::new(0), answer: Mutex::default() }
    }
}

impl<T: Clone> Turns<T> {
    /// An answer to a question that was asked after this was called: another's, or one's own.
    pub(super) async fn ask(&self, question: impl AsyncFnOnce() -> T) -> T {
        let turn = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answer = self.answer.lock().await;
        if let Some((upto, known)) = &*answer
            && *upto >= turn
        {
            return known.clone();
        }
        let upto = self.asked.load(Ordering::SeqCst);
        let new = question().await;
        *answer = Some((upto, new.clone()));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;

    #[tokio::test]
    async fn those_who_ask_together_share_an_answer_that_is_newer_than_their_questions() {
        let (turns, count) = (Turns::default(), AtomicU64::new(0));
        let ask = || {
            turns.ask(async || {
                tokio::task::yield_now().await;
                count.fetch_add(1, Ordering::SeqCst) + 1
            })
        };
        let mut answers = join_all((0..10).map(|_| ask())).await;
        answers.sort_unstable();
        // The first asks for itself; the others asked before the second question, which is for all
        // of them.
        assert!(answers.iter().all(|answer| *answer <= 2), "{answers:?}");
        assert_eq!(ask().await, answers[9] + 1, "who asks later is not told what was so before");
    }
}
