//! Keeps the tables of nftables: ours as it is wanted, the plugin's by asking the plugin. Both are looked at when something else changes them, at
//! start, and after a failure; never on a timer.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::spawn_blocking;

use super::Obstacle;
use super::firewall::{self, Firewall, TABLE};
use super::ruleset::{Changes, Ruleset};
use crate::journal::Journal;

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
}

impl Table {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, applied: None, suspect: true, retry: Retry::default(), failure: None, reduced: None }
    }

    /// Why pods are not protected, if so.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        if let Some(refusal) = self.reduced.as_ref().filter(|_| self.failure.is_none()) {
            return Some(Obstacle {
                what: format!("the kernel refuses part of the firewall ({refusal}): pods do not reach the outside"),
                command: "modprobe -a nft_masq nft_fib_inet, then restart the agent".into(),
            });
        }
        self.failure.as_ref().map(|failure| Obstacle {
            what: format!("the firewall does not stand ({failure}): hosts on this node's networks may use its tunnels, and pods do not reach the outside"),
            command: "apt-get install nftables; modprobe -a nf_tables nft_fib_inet nft_masq nft_ct".into(),
        })
    }

    /// Whether the table stands. `complete`: what is wanted is known in full. What `rules` told of other tables meanwhile is added to `found`.
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
        if self.applied.as_ref().is_some_and(|(applied, _)| *applied == wanted) {
            if !self.suspect {
                return true;
            }
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
        } else if self.failure.is_some() && !self.retry.ready() {
            return false;
        }
        match self.apply(&wanted, rules, found).await {
            Ok(shown) => {
                self.applied = Some((wanted, shown));
                self.note(Ok(()));
                true
            }
            Err(error) => {
                self.applied = None;
                self.note(Err(error));
                false
            }
        }
    }

    /// Replaces the table and returns it as the kernel shows it. What another program did to it before it was read must not be taken for what was
    /// applied: then it is replaced again.
    async fn apply(&mut self, wanted: &Firewall, rules: &mut Ruleset, found: &mut Changes) -> anyhow::Result<Value> {
        for _ in 0..ATTEMPTS {
            found.add(rules.drain());
            let (shown, reduced) = apply_what_the_kernel_takes(wanted).await?;
            self.reduced = reduced;
            let meanwhile = rules.drain();
            found.add(meanwhile);
            if meanwhile.transactions <= 1 && !meanwhile.lost {
                return Ok(shown);
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

/// The table as it is wanted; or, where the kernel refuses that, what keeps others out at least, with the reason.
async fn apply_what_the_kernel_takes(wanted: &Firewall) -> anyhow::Result<(Value, Option<String>)> {
    let (whole, plain) = (wanted.clone(), Firewall { plain: true, ..wanted.clone() });
    let outcome = spawn_blocking(move || match whole.apply() {
        Ok(shown) => Ok((shown, None)),
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
