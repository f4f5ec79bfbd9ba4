//! Keeps the tables of nftables: ours as it is wanted, the plugin's by asking the plugin. Both are
//! looked at when something else changes them, at start, and after a failure; never on a timer
//! besides.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::spawn_blocking;

use super::Obstacle;
use super::firewall::{self, Firewall, TABLE};
use super::nft_monitor::{Changes, Ruleset};
use crate::incidents::Journal;

/// After a failure the next attempt waits so long, doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// At most so long.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Replacements of the table in a row, while another program changes it all the time.
const ATTEMPTS: usize = 3;

/// When something that failed is tried again.
#[derive(Debug, Default)]
pub(super) struct Retry {
    due: Option<Instant>,
    wait: Duration,
}

impl Retry {
    /// Whether enough time has passed since the latest failure.
    pub(super) fn ready(&self) -> bool {
        self.due.is_none_or(|due| Instant::now() >= due)
    }

    pub(super) fn failed(&mut self) {
        self.wait = (self.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        self.due = Some(Instant::now() + self.wait);
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }
}

/// The table `inet edge-cni`.
#[derive(Debug)]
pub(super) struct Table {
    journal: Journal,
    /// As it was applied: what was wanted, and how the kernel then showed it.
    applied: Option<(Firewall, Value)>,
    /// Something changed it, or may have.
    pub(super) suspect: bool,
    retry: Retry,
    failure: Option<String>,
    /// Why the kernel took the plain one alone.
    reduced: Option<String>,
    /// When the whole one is tried again in that case: what was in its way may pass, memory that
    /// ran short for example.
    whole: Retry,
}

/// What a wanted table needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// It stands.
    Nothing,
    /// To be read, since it may have been changed.
    Look,
    /// The plain one stands; the whole one is to be tried.
    Whole,
    /// Another one stands, or none.
    Replacement,
    /// It failed a moment ago.
    Patience,
}

impl Table {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            applied: None,
            suspect: true,
            retry: Retry::default(),
            failure: None,
            reduced: None,
            whole: Retry::default(),
        }
    }

    /// Why pods are not protected, if so.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        if let Some(refusal) = self.reduced.as_ref().filter(|_| self.failure.is_none()) {
            return Some(Obstacle {
                what: format!("the kernel refuses part of the firewall ({refusal}): pods do not reach the outside"),
                command: "modprobe -a nft_masq nft_fib_inet".into(),
            });
        }
        self.failure.as_ref().map(|failure| Obstacle {
            what: format!("the firewall does not stand ({failure}): hosts on this node's networks may use its tunnels, and pods do not reach the outside"),
            command: "apt-get install nftables; modprobe -a nf_tables nft_fib_inet nft_masq nft_ct".into(),
        })
    }

    /// Whether the table stands. `complete`: what is wanted is known in full. What `rules` told of
    /// other tables meanwhile is added to `found`.
    pub(super) async fn keep(
        &mut self,
        wanted: Firewall,
        complete: bool,
        rules: &mut Ruleset,
        found: &mut Changes,
    ) -> bool {
        if wanted.is_empty() {
            if complete && (self.applied.take().is_some() || self.suspect) {
                let outcome = spawn_blocking(|| match firewall::read()? {
                    Some(_) => firewall::remove(),
                    None => Ok(()),
                });
                self.note(outcome.await.map_err(Into::into).flatten());
            }
            return false;
        }
        match self.due(&wanted) {
            Due::Nothing => return true,
            Due::Patience => return false,
            Due::Whole => {
                let outcome = self.apply(&wanted, true, rules, found).await;
                self.tried_whole(wanted, outcome.map(|(shown, _)| shown));
                return true;
            }
            Due::Look => {
                let found = spawn_blocking(firewall::read).await.map_err(Into::into).flatten();
                match (found, &self.applied) {
                    (Ok(Some(found)), Some((_, applied))) if found == *applied => {
                        self.note(Ok(()));
                        return true;
                    }
                    (Ok(found), _) => {
                        let how = if found.is_some() { "was changed" } else { "was deleted" };
                        self.journal.repaired(format!("nftables table inet {TABLE} {how} by another program"));
                    }
                    (Err(error), _) => self.note(Err(error)),
                }
            }
            Due::Replacement => {}
        }
        match self.apply(&wanted, false, rules, found).await {
            Ok((shown, reduced)) => {
                self.placed(wanted, shown, reduced);
                true
            }
            Err(error) => {
                self.applied = None;
                self.note(Err(error));
                false
            }
        }
    }

    fn due(&self, wanted: &Firewall) -> Due {
        if self.applied.as_ref().is_some_and(|(applied, _)| applied == wanted) {
            return match &self.reduced {
                _ if self.suspect => Due::Look,
                Some(_) if self.whole.ready() => Due::Whole,
                _ => Due::Nothing,
            };
        }
        if self.failure.is_some() && !self.retry.ready() { Due::Patience } else { Due::Replacement }
    }

    /// A table stands now: the whole one, or with a reason the plain one.
    fn placed(&mut self, wanted: Firewall, shown: Value, reduced: Option<String>) {
        if reduced.is_some() {
            self.whole.failed();
        } else {
            self.whole.succeeded();
        }
        self.reduced = reduced;
        self.applied = Some((wanted, shown));
        self.note(Ok(()));
    }

    /// Where the plain one stood. It stands still, unless the attempt got further than it says: so
    /// it is looked at.
    fn tried_whole(&mut self, wanted: Firewall, outcome: anyhow::Result<Value>) {
        match outcome {
            Ok(shown) => {
                tracing::info!("the nftables table inet {TABLE} is whole again");
                self.placed(wanted, shown, None);
            }
            Err(error) => {
                self.reduced = Some(format!("{error:#}"));
                self.whole.failed();
                self.suspect = true;
            }
        }
    }

    /// Replaces the table and returns it as the kernel shows it. What another program did to it
    /// before it was read must not be taken for what was applied: then it is replaced again.
    async fn apply(
        &self,
        wanted: &Firewall,
        only_whole: bool,
        rules: &mut Ruleset,
        found: &mut Changes,
    ) -> anyhow::Result<(Value, Option<String>)> {
        for _ in 0..ATTEMPTS {
            found.add(rules.drain());
            let placed = apply_what_the_kernel_takes(wanted, only_whole).await?;
            let meanwhile = rules.drain();
            found.add(meanwhile);
            if meanwhile.transactions <= 1 && !meanwhile.lost {
                return Ok(placed);
            }
            self.journal
                .repaired(format!("nftables table inet {TABLE} was changed by another program while it was replaced"));
        }
        anyhow::bail!(
            "the table inet {TABLE} is changed by another program whenever it is replaced; find it with `nft monitor`"
        )
    }

    fn note(&mut self, outcome: anyhow::Result<()>) {
        match outcome {
            Ok(()) => {
                self.suspect = false;
                self.failure = None;
                self.retry.succeeded();
            }
            Err(error) => {
                self.suspect = true;
                self.retry.failed();
                self.journal.error(format!("{error:#}"));
                self.failure = Some(format!("{error:#}"));
            }
        }
    }
}

/// The table as it is wanted; or, where the kernel refuses that, what keeps others out at least,
/// with the reason.
async fn apply_what_the_kernel_takes(wanted: &Firewall, only_whole: bool) -> anyhow::Result<(Value, Option<String>)> {
    let (whole, plain) = (wanted.clone(), Firewall { plain: true, ..wanted.clone() });
    let outcome = spawn_blocking(move || match whole.apply() {
        Ok(shown) => Ok((shown, None)),
        Err(refusal) if only_whole => Err(refusal),
        Err(refusal) => match plain.apply() {
            Ok(shown) => Ok((shown, Some(format!("{refusal:#}")))),
            Err(_) => Err(refusal),
        },
    });
    outcome.await.map_err(Into::into).flatten()
}

/// The table `bridge edge-cni`, which the plugin makes.
#[derive(Debug)]
pub(super) struct BridgeTable {
    /// Somebody else changed it, or may have.
    pub(super) suspect: bool,
    /// Only because notifications were lost.
    pub(super) guess: bool,
    /// It has been there: its absence is no choice of the plugin's.
    seen: bool,
    retry: Retry,
    failed: bool,
}

impl Default for BridgeTable {
    fn default() -> Self {
        Self { suspect: true, guess: false, seen: false, retry: Retry::default(), failed: false }
    }
}

impl BridgeTable {
    /// Whether the plugin is to make it again. Costs one `nft` after each change by somebody else.
    pub(super) async fn is_wanted(&mut self, journal: &Journal) -> bool {
        if !self.suspect || !self.retry.ready() {
            return false;
        }
        let listed =
            spawn_blocking(|| firewall::list(&["list", "chains", "bridge"])).await.map_err(Into::into).flatten();
        let stands = match listed {
            Ok(listed) => {
                let objects = listed.unwrap_or_default()["nftables"].take();
                let objects = objects.as_array().map(Vec::as_slice).unwrap_or_default();
                objects.iter().any(|object| object["chain"]["table"] == TABLE)
            }
            Err(error) => {
                journal.error(format!("table bridge {TABLE}: {error:#}"));
                self.retry.failed();
                return false;
            }
        };
        if self.seen && !(stands && self.guess) {
            let how = if stands { "was changed" } else { "was deleted" };
            journal.repaired(format!("nftables table bridge {TABLE} {how} by another program"));
        }
        // At the agent's own start a table that stands is as good as the plugin left it.
        let wanted = self.seen || !stands;
        self.seen |= stands;
        if !wanted {
            self.suspect = false;
        }
        wanted
    }

    /// What came of asking the plugin.
    pub(super) fn asked(&mut self, succeeded: bool) {
        self.failed = !succeeded;
        if succeeded {
            self.suspect = false;
            self.guess = false;
            self.seen = true;
            self.retry.succeeded();
        } else {
            self.retry.failed();
        }
    }

    /// Why pods may pose as others, if so.
    pub(super) fn obstacle(&self, conflist: &std::path::Path) -> Option<Obstacle> {
        self.failed.then(|| Obstacle {
            what: format!("the table bridge {TABLE} cannot be restored: a pod may pose as another one on this node"),
            command: format!("edge-cni up {}", conflist.display()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_is_tried_again_where_the_plain_one_stands() {
        let (wanted, shown) = (Firewall { mtu: 1418, ..Firewall::default() }, |text: &str| Value::from(text));
        let mut table = Table::new(Journal::default());
        assert_eq!(table.due(&wanted), Due::Replacement);
        table.placed(wanted.clone(), shown("plain"), Some("No buffer space available".into()));
        assert_eq!((table.due(&wanted), table.obstacle().is_some()), (Due::Nothing, true), "not at once");
        let time_passes = |table: &mut Table| table.whole.due = Some(Instant::now());
        for attempt in 1..4 {
            time_passes(&mut table);
            assert_eq!(table.due(&wanted), Due::Whole, "attempt {attempt}");
            table.tried_whole(wanted.clone(), Err(anyhow::anyhow!("deleted by another program")));
            // Perhaps it stood for a moment.
            assert_eq!(table.due(&wanted), Due::Look);
            table.note(Ok(()));
            assert_eq!(table.due(&wanted), Due::Nothing);
            assert_eq!(table.applied, Some((wanted.clone(), shown("plain"))));
            assert!(table.obstacle().is_some_and(|obstacle| obstacle.what.contains("deleted by another program")));
        }
        assert_eq!(table.whole.wait.as_secs(), 8);
        time_passes(&mut table);
        table.tried_whole(wanted.clone(), Ok(shown("whole")));
        assert_eq!((table.due(&wanted), table.obstacle()), (Due::Nothing, None));
        assert_eq!(table.applied, Some((wanted, shown("whole"))));
    }

    #[test]
    fn failures_are_repeated_ever_more_seldom_and_for_ever() {
        let mut retry = Retry::default();
        assert!(retry.ready());
        let mut waits = Vec::new();
        for _ in 0..8 {
            retry.failed();
            waits.push(retry.wait.as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(!retry.ready());
        retry.succeeded();
        assert!(retry.ready());
    }
}
