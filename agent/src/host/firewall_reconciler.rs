//! Restores the nftables tables: writes `inet edge-cni` itself, and runs the plugin to restore
//! `bridge edge-cni`. Both tables are compared with the desired state at start, after another
//! program has changed them, and after a failure, but not periodically.

use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use super::Obstacle;
use super::firewall::{self, Firewall, KernelTable, PODS_TABLE, SetElements, SetUpdate, TABLE};
use super::nft_monitor::{NftMonitor, RulesetChanges};
use crate::incidents::Incidents;

/// Delay before the next attempt after a failure; doubled each time.
const MIN_RETRY: Duration = Duration::from_secs(1);
/// Maximum delay between attempts.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Maximum number of times that the table is replaced in succession, if another program keeps
/// changing it.
const ATTEMPTS: usize = 3;

/// Decides when a failed operation is tried again.
#[derive(Debug, Default)]
pub(super) struct Retry {
    due: Option<Instant>,
    wait: Duration,
}

impl Retry {
    /// Returns whether the delay after the last failure has passed.
    pub(super) fn ready(&self) -> bool {
        self.due.is_none_or(|due| Instant::now() >= due)
    }

    pub(super) fn failed(&mut self) {
        self.wait = (self.wait * 2).clamp(MIN_RETRY, MAX_RETRY);
        self.due = Some(Instant::now() + self.wait);
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }
}

/// The table `inet edge-cni`.
#[derive(Debug)]
pub(super) struct InetTable {
    incidents: Incidents,
    /// The table that was applied last, and its form in the kernel after that.
    applied: Option<(Firewall, KernelTable)>,
    elements: SetElements,
    /// Whether another program may have changed the table.
    pub(super) suspect: bool,
    retry: Retry,
    failure: Option<String>,
    /// The reason why the kernel accepted only the minimal table.
    reduced: Option<String>,
    /// When to try the full table again, if the kernel accepted only the minimal table. The cause
    /// may be temporary, for example a shortage of memory.
    full: Retry,
}

/// The action that puts the desired table in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TableAction {
    /// Do nothing, because the table is in place.
    None,
    /// Read the table and compare it, since another program may have changed it.
    Verify,
    /// Try the full table, because only the minimal table is in place.
    RetryFull,
    /// Change the elements of the sets, because a table with the same rules is in place.
    Update,
    /// Replace the table, because another table is in place, or none.
    Replace,
    /// Wait, because the last attempt failed.
    Wait,
}

impl InetTable {
    pub(super) fn new(incidents: Incidents) -> Self {
        Self {
            incidents,
            applied: None,
            elements: SetElements::default(),
            suspect: true,
            retry: Retry::default(),
            failure: None,
            reduced: None,
            full: Retry::default(),
        }
    }

    /// Returns an obstacle if no table or only the minimal table is in place. `not_forwarding` says
    /// whether the node does not forward until the table is in place.
    pub(super) fn obstacle(&self, not_forwarding: bool) -> Option<Obstacle> {
        if let Some(refusal) = self.reduced.as_ref().filter(|_| self.failure.is_none()) {
            return Some(Obstacle {
                what: format!("the kernel refuses part of the firewall ({refusal}): pods do not reach the outside"),
                command: "modprobe -a nft_masq nft_fib_inet nft_limit".into(),
            });
        }
        let effect = if not_forwarding {
            "forwarding stays off, since without the firewall this node would route between its own networks; pods reach nothing outside of this node"
        } else {
            "hosts on this node's networks may use its tunnels, and pods do not reach the outside"
        };
        self.failure.as_ref().map(|failure| Obstacle {
            what: format!("the firewall is not in place ({failure}): {effect}"),
            command: "apt-get install nftables; modprobe -a nf_tables nft_fib_inet nft_masq nft_ct nft_limit".into(),
        })
    }

    /// Puts the desired table in place and returns whether it is in place. If the desired table is
    /// empty, an existing table is removed, but only if the desired state is `complete`.
    /// Notifications about other tables that arrive in the meantime are added to `found`.
    pub(super) async fn reconcile(
        &mut self,
        desired: Firewall,
        complete: bool,
        rules: &mut NftMonitor,
        found: &mut RulesetChanges,
    ) -> bool {
        if desired.is_empty() {
            if complete && (self.applied.take().is_some() || self.suspect) {
                let outcome = spawn_blocking(|| match firewall::read()? {
                    Some(_) => firewall::remove(),
                    None => Ok(()),
                });
                self.record(outcome.await.map_err(Into::into).flatten());
            }
            return false;
        }
        match self.next_action(&desired) {
            TableAction::None => return true,
            TableAction::Wait => return false,
            TableAction::RetryFull => {
                let outcome = self.apply(&desired, true, rules, found).await;
                self.retried_full(desired, outcome.map(|(shown, _)| shown));
                return true;
            }
            TableAction::Verify => {
                let read = spawn_blocking(|| anyhow::Ok((firewall::read()?, firewall::pods_table_exists()?)));
                match (read.await.map_err(Into::into).flatten(), &self.applied) {
                    (Ok((Some(found), false)), Some((_, applied))) if found == *applied => {
                        self.record(Ok(()));
                        return true;
                    }
                    (Ok((Some(found), true)), Some((_, applied))) if found == *applied => {
                        // The plugin's table is deleted in the transaction that replaces the
                        // agent's table.
                        tracing::info!("the plugin has made its nftables table inet {PODS_TABLE} beside ours");
                    }
                    (Ok((found, _)), _) => {
                        let how = if found.is_some() { "was changed" } else { "was deleted" };
                        self.incidents.repaired(format!("nftables table inet {TABLE} {how} by another program"));
                    }
                    (Err(error), _) => self.record(Err(error)),
                }
            }
            TableAction::Update => match self.update(&desired, rules, found).await {
                Ok(true) => return true,
                Ok(false) => {
                    self.incidents.repaired(format!("nftables table inet {TABLE} was changed by another program"));
                }
                Err(error) => {
                    tracing::debug!("table inet {TABLE} is replaced, since its sets refuse changes: {error:#}")
                }
            },
            TableAction::Replace => {}
        }
        match self.apply(&desired, false, rules, found).await {
            Ok((shown, reduced)) => {
                self.record_applied(desired, shown, reduced);
                true
            }
            Err(error) => {
                self.applied = None;
                self.record(Err(error));
                false
            }
        }
    }

    fn next_action(&self, desired: &Firewall) -> TableAction {
        if self.applied.as_ref().is_some_and(|(applied, _)| applied == desired) {
            return match &self.reduced {
                _ if self.suspect => TableAction::Verify,
                Some(_) if self.full.ready() => TableAction::RetryFull,
                _ => TableAction::None,
            };
        }
        if self.failure.is_some() && !self.retry.ready() {
            return TableAction::Wait;
        }
        match &self.applied {
            Some((applied, _)) if !self.suspect && applied.has_rules_of(desired) => TableAction::Update,
            _ => TableAction::Replace,
        }
    }

    /// Records that a table is in place: the full table, or the minimal table with the reason.
    fn record_applied(&mut self, desired: Firewall, shown: KernelTable, reduced: Option<String>) {
        if reduced.is_some() {
            self.full.failed();
        } else {
            self.full.succeeded();
        }
        self.reduced = reduced;
        self.applied = Some((desired, shown));
        self.record(Ok(()));
    }

    /// Records the outcome of trying the full table. After a failure, the minimal table should
    /// still be in place, which the next action verifies.
    fn retried_full(&mut self, desired: Firewall, outcome: anyhow::Result<KernelTable>) {
        match outcome {
            Ok(shown) => {
                tracing::info!("the nftables table inet {TABLE} is complete again");
                self.record_applied(desired, shown, None);
            }
            Err(error) => {
                self.reduced = Some(format!("{error:#}"));
                self.full.failed();
                self.suspect = true;
            }
        }
    }

    /// Replaces the table and returns its form in the kernel, and the reason if it is the minimal
    /// table. If another program changed the table before it was read back, the table is replaced
    /// again.
    async fn apply(
        &self,
        desired: &Firewall,
        only_full: bool,
        rules: &mut NftMonitor,
        found: &mut RulesetChanges,
    ) -> anyhow::Result<(KernelTable, Option<String>)> {
        for _ in 0..ATTEMPTS {
            found.add(rules.drain());
            let (shown, reduced, own) = apply_full_or_minimal(desired, only_full).await?;
            let meanwhile = rules.drain();
            found.add(meanwhile);
            if meanwhile.transactions <= own && !meanwhile.lost {
                return Ok((shown, reduced));
            }
            self.incidents
                .repaired(format!("nftables table inet {TABLE} was changed by another program while it was replaced"));
        }
        anyhow::bail!(
            "the table inet {TABLE} is changed by another program whenever it is replaced; find it with `nft monitor`"
        )
    }

    /// Changes the elements of the table's sets. Returns `false` if another program has changed the
    /// table.
    async fn update(
        &mut self,
        desired: &Firewall,
        rules: &mut NftMonitor,
        found: &mut RulesetChanges,
    ) -> anyhow::Result<bool> {
        let Some((applied, mut table)) = self.applied.take() else { return Ok(false) };
        let own = match desired.update(&applied, &mut table) {
            SetUpdate::Few(few) if few.is_empty() => 0,
            // The kernel makes one transaction at a time, so one of another program, such as that
            // of kube-proxy with thousands of Services, may hold this one up for seconds.
            update => {
                let mut elements = std::mem::take(&mut self.elements);
                let (elements, outcome) = spawn_blocking(move || {
                    let outcome = update.apply(&mut elements);
                    (elements, outcome)
                })
                .await?;
                self.elements = elements;
                outcome?
            }
        };
        // A change by another program is noticed whether it came before or after this one.
        let meanwhile = rules.drain();
        found.add(meanwhile);
        self.applied = Some((desired.clone(), table));
        Ok(meanwhile.transactions <= own && !meanwhile.lost)
    }

    fn record(&mut self, outcome: anyhow::Result<()>) {
        match outcome {
            Ok(()) => {
                self.suspect = false;
                self.failure = None;
                self.retry.succeeded();
            }
            Err(error) => {
                self.suspect = true;
                self.retry.failed();
                self.incidents.error(format!("{error:#}"));
                self.failure = Some(format!("{error:#}"));
            }
        }
    }
}

/// Applies the full table. If the kernel refuses it, applies the minimal table, which at least
/// blocks other hosts. Returns the number of transactions, and the reason if the minimal table was
/// applied.
async fn apply_full_or_minimal(
    desired: &Firewall,
    only_full: bool,
) -> anyhow::Result<(KernelTable, Option<String>, u32)> {
    let (full, minimal) = (desired.clone(), Firewall { minimal: true, ..desired.clone() });
    let outcome = spawn_blocking(move || {
        let mut own = 0;
        match full.replace(&mut own) {
            Ok(shown) => Ok((shown, None, own)),
            Err(refusal) if only_full => Err(refusal),
            Err(refusal) => match minimal.replace(&mut own) {
                Ok(shown) => Ok((shown, Some(format!("{refusal:#}")), own)),
                Err(_) => Err(refusal),
            },
        }
    });
    outcome.await.map_err(Into::into).flatten()
}

/// The table `bridge edge-cni`, which the plugin creates.
#[derive(Debug)]
pub(super) struct BridgeTable {
    /// Whether another program may have changed the table.
    pub(super) suspect: bool,
    /// Whether `suspect` is set only because notifications from the kernel were lost.
    pub(super) guess: bool,
    /// Whether the table has ever existed. If not, the plugin may have omitted it on purpose.
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
    /// Returns whether the plugin must restore the table. Runs `nft` at most once after each change
    /// by another program.
    pub(super) async fn needs_restore(&mut self, incidents: &Incidents) -> bool {
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
                incidents.error(format!("table bridge {TABLE}: {error:#}"));
                self.retry.failed();
                return false;
            }
        };
        if self.seen && !(stands && self.guess) {
            let how = if stands { "was changed" } else { "was deleted" };
            incidents.repaired(format!("nftables table bridge {TABLE} {how} by another program"));
        }
        // When the agent starts, an existing table is assumed to be unchanged since the plugin
        // created it.
        let desired = self.seen || !stands;
        self.seen |= stands;
        if !desired {
            self.suspect = false;
        }
        desired
    }

    /// Records whether the plugin restored the table.
    pub(super) fn restored(&mut self, succeeded: bool) {
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

    /// Returns an obstacle if the plugin cannot restore the table.
    pub(super) fn obstacle(&self, conflist: &std::path::Path) -> Option<Obstacle> {
        self.failed.then(|| Obstacle {
            what: format!("the table bridge {TABLE} cannot be restored: a pod may pose as another one on this node"),
            command: format!("edge-cni up {}", conflist.display()),
        })
    }
}

#[cfg(test)]
mod tests {
    use ipnetwork::IpNetwork;

    use super::*;

    #[test]
    fn the_full_table_is_tried_again_while_the_minimal_one_is_in_place() {
        let desired = Firewall { mtu: 1418, ..Firewall::default() };
        let shown = |text: &str| KernelTable { objects: text.into(), ..KernelTable::default() };
        let mut table = InetTable::new(Incidents::default());
        assert_eq!(table.next_action(&desired), TableAction::Replace);
        table.record_applied(desired.clone(), shown("plain"), Some("No buffer space available".into()));
        assert_eq!(
            (table.next_action(&desired), table.obstacle(false).is_some()),
            (TableAction::None, true),
            "not at once"
        );
        let time_passes = |table: &mut InetTable| table.full.due = Some(Instant::now());
        for attempt in 1..4 {
            time_passes(&mut table);
            assert_eq!(table.next_action(&desired), TableAction::RetryFull, "attempt {attempt}");
            table.retried_full(desired.clone(), Err(anyhow::anyhow!("deleted by another program")));
            // After a failed attempt the table must be verified, since the attempt may have removed
            // the minimal table.
            assert_eq!(table.next_action(&desired), TableAction::Verify);
            table.record(Ok(()));
            assert_eq!(table.next_action(&desired), TableAction::None);
            assert_eq!(table.applied, Some((desired.clone(), shown("plain"))));
            assert!(table.obstacle(false).is_some_and(|obstacle| obstacle.what.contains("deleted by another program")));
        }
        assert_eq!(table.full.wait.as_secs(), 8);
        time_passes(&mut table);
        table.retried_full(desired.clone(), Ok(shown("whole")));
        assert_eq!((table.next_action(&desired), table.obstacle(false)), (TableAction::None, None));
        assert_eq!(table.applied, Some((desired, shown("whole"))));
    }

    #[test]
    fn a_table_with_the_same_rules_gets_other_elements_unless_another_program_may_have_changed_it() {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        let desired = Firewall { remote: networks(&["10.77.2.0/26"]).into(), mtu: 1418, ..Firewall::default() };
        let mut table = InetTable::new(Incidents::default());
        table.record_applied(desired.clone(), KernelTable::default(), None);
        let further = Firewall { remote: networks(&["10.77.2.0/26", "10.77.3.0/26"]).into(), ..desired.clone() };
        assert_eq!(table.next_action(&further), TableAction::Update);
        assert_eq!(table.next_action(&Firewall { mtu: 1280, ..further.clone() }), TableAction::Replace);
        table.suspect = true;
        assert_eq!(table.next_action(&further), TableAction::Replace);
    }

    #[test]
    fn failures_are_retried_ever_more_seldom_without_end() {
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
