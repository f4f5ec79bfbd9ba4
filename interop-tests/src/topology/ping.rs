//! Runs a ping in the background.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::process::Signal;

use super::namespaces::Namespaces;
use super::process::Process;
use crate::wait;

/// A running ping.
pub struct Ping {
    process: Process,
    /// Position in the log at which the output of this run begins. The log may contain an earlier
    /// run to the same address.
    begin: usize,
    pace: Duration,
}

/// The result of a ping.
#[derive(Debug, Clone, PartialEq)]
pub struct PingReport {
    /// Number of echo requests sent.
    pub sent: u64,
    /// Number of requests that were answered.
    pub received: u64,
    /// The gaps: runs of requests without an answer.
    pub gaps: Vec<Gap>,
    /// Longest time between two consecutive answers, by the clock. Zero if there are fewer than two
    /// answers.
    pub longest_silence: Duration,
}

/// Consecutive requests that were not answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Gap {
    /// Sequence number of the first unanswered request, from 1.
    pub first: u64,
    /// Number of requests in the gap.
    pub count: u64,
    /// Seconds from the start of the ping to the first unanswered request, computed from the
    /// interval.
    pub at: f64,
}

impl PingReport {
    /// Returns the number of requests without an answer.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.count).sum()
    }

    /// Fails if a request was lost, or if fewer than five were sent, which would prove nothing.
    ///
    /// # Errors
    /// Returns an error if a request was lost or fewer than five were sent. The message contains
    /// the gaps.
    pub fn expect_none_lost(&self) -> Result<()> {
        anyhow::ensure!(self.sent >= 5, "only {} pings were sent, which proves nothing", self.sent);
        anyhow::ensure!(
            self.lost() == 0,
            "no ping should be lost, but {} of {} were: {:?}",
            self.lost(),
            self.sent,
            self.gaps
        );
        Ok(())
    }
}

impl Namespaces {
    /// Starts a ping in the background, ten times a second. [`Ping::start`] takes another interval.
    ///
    /// # Errors
    /// Returns an error if ping cannot be run.
    pub fn ping(&self, to: &str) -> Result<Ping> {
        Ping::start(self, to, Duration::from_millis(100))
    }
}

impl Ping {
    /// Starts a ping from `namespaces` with an interval of `pace`.
    ///
    /// # Errors
    /// Returns an error if ping cannot be run.
    pub fn start(namespaces: &Namespaces, to: &str, pace: Duration) -> Result<Self> {
        let name = format!("ping-{}", to.replace([':', '/'], "_"));
        let interval = format!("{:.3}", pace.as_secs_f64());
        let log = namespaces.out().join(format!("{}.{name}.log", namespaces.name()));
        let begin = std::fs::metadata(log).map_or(0, |meta| usize::try_from(meta.len()).unwrap_or(0));
        let process = namespaces
            .start(&name, namespaces.command("stdbuf").args(["-oL", "ping", "-n", "-D", "-i", &interval, to]))?;
        Ok(Self { process, begin, pace })
    }

    /// Returns the number of requests that were answered so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        u64::try_from(self.replies().len()).unwrap_or(u64::MAX)
    }

    /// Waits until `count` more requests were answered.
    ///
    /// # Errors
    /// Returns an error if the requests were not answered in time.
    pub fn wait_more(&mut self, count: u64) -> Result<()> {
        let goal = self.received() + count;
        wait::for_event(&format!("{count} more answers to a ping"), || {
            let have = self.received();
            anyhow::ensure!(have >= goal, "{} are missing", goal - have);
            Ok(())
        })
    }

    /// Ends the ping. Waits for requests on their way, so that they do not count as lost.
    ///
    /// # Errors
    /// Returns an error if ping ended by itself, or its summary is missing.
    pub fn stop(mut self) -> Result<PingReport> {
        // Once a later request is answered, all requests before it are answered or lost.
        let last = self.last_reply();
        let flows = wait::until("one more answer", Duration::from_secs(3), || {
            let now = self.last_reply();
            anyhow::ensure!(now > last.saturating_add(1), "none came");
            Ok(now)
        });
        self.process.signal(Signal::INT)?;
        self.process.wait_end(Duration::from_secs(10))?;
        let text = self.text();
        let sent = summary(&text).with_context(|| format!("no summary from ping:\n{text}"))?;
        // While answers arrive, the requests after the last answered one are on their way.
        // Otherwise they are lost.
        let sent = match flows {
            Ok(_) => self.last_reply().max(1),
            Err(_) => sent,
        };
        Ok(PingReport { longest_silence: longest_silence(&text), ..report(sent, &self.replies(), self.pace) })
    }

    /// Ends a ping that must not be answered, without waiting for answers that are on their way.
    /// Returns how many requests were answered.
    ///
    /// # Errors
    /// Returns an error if ping does not end.
    pub fn end(mut self) -> Result<u64> {
        self.process.signal(Signal::INT)?;
        self.process.wait_end(Duration::from_secs(60))?;
        anyhow::ensure!(summary(&self.text()).is_ok_and(|sent| sent > 0), "ping sent nothing:\n{}", self.text());
        Ok(self.received())
    }

    fn text(&self) -> String {
        self.process.log().split_off(self.begin)
    }

    fn replies(&self) -> BTreeSet<u64> {
        parse_replies(&self.text())
    }

    fn last_reply(&self) -> u64 {
        self.replies().last().copied().unwrap_or(0)
    }
}

/// Returns the sequence numbers of answered requests. Sequence numbers have 16 bits on the wire, so
/// a much smaller number after a larger one has wrapped around.
fn parse_replies(text: &str) -> BTreeSet<u64> {
    let mut replies = BTreeSet::new();
    let mut last = 0;
    for line in text.lines() {
        if !line.contains("bytes from") {
            continue;
        }
        let Some(seq) = line.split_once("icmp_seq=").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok())
        else {
            continue;
        };
        let turn = last & !0xffff;
        let seq = [Some(turn + seq), Some(turn + 0x1_0000 + seq), (turn + seq).checked_sub(0x1_0000)]
            .into_iter()
            .flatten()
            .min_by_key(|full| full.abs_diff(last))
            .unwrap_or(seq);
        last = last.max(seq);
        replies.insert(seq);
    }
    replies
}

fn summary(text: &str) -> Result<u64> {
    text.lines()
        .find_map(|line| line.split_once(" packets transmitted")?.0.trim().parse().ok())
        .ok_or_else(|| anyhow!("no line with packets transmitted"))
}

fn report(sent: u64, replies: &BTreeSet<u64>, pace: Duration) -> PingReport {
    let mut gaps: Vec<Gap> = Vec::new();
    for seq in (1..=sent).filter(|seq| !replies.contains(seq)) {
        match gaps.last_mut() {
            Some(gap) if gap.first + gap.count == seq => gap.count += 1,
            _ => gaps.push(Gap { first: seq, count: 1, at: pace.as_secs_f64() * (seq - 1) as f64 }),
        }
    }
    let lost: u64 = gaps.iter().map(|gap| gap.count).sum();
    PingReport { sent, received: sent - lost, gaps, longest_silence: Duration::ZERO }
}

/// Computes the time from the timestamps that `ping -D` writes before each answer.
fn longest_silence(text: &str) -> Duration {
    let time = |line: &str| line.strip_prefix('[')?.split_once(']')?.0.parse::<f64>().ok();
    let times: Vec<f64> = text.lines().filter(|line| line.contains("bytes from")).filter_map(time).collect();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    Duration::from_secs_f64(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_without_an_answer_are_gaps_with_their_time() {
        let text = "PING 10.0.0.1\n\
            [1.0] 64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.1 ms\n\
            [1.3] 64 bytes from 10.0.0.1: icmp_seq=4 ttl=64 time=0.1 ms\n\
            [1.4] From 10.0.0.2 icmp_seq=5 Destination Host Unreachable\n\
            \n5 packets transmitted, 2 received, 60% packet loss\n";
        let report = report(summary(text).unwrap(), &parse_replies(text), Duration::from_millis(100));
        assert_eq!((report.sent, report.received, report.lost()), (5, 2, 3));
        assert_eq!(report.gaps[0], Gap { first: 2, count: 2, at: 0.1 });
        assert_eq!(report.gaps[1].first, 5);
        assert_eq!(longest_silence(text).as_millis(), 300);
        assert_eq!(parse_replies(text).into_iter().collect::<Vec<_>>(), [1, 4]);
        assert!(report.expect_none_lost().is_err());
    }

    #[test]
    fn sequence_numbers_go_on_after_the_sixteenth_bit() {
        let text: String = (65534..65540u64)
            .map(|seq| format!("64 bytes from 10.0.0.1: icmp_seq={} ttl=64\n", seq & 0xffff))
            .collect();
        let mut primed = String::from("64 bytes from 10.0.0.1: icmp_seq=40000 ttl=64\n");
        primed.push_str(&text);
        assert_eq!(parse_replies(&primed).last(), Some(&65539));
    }
}
