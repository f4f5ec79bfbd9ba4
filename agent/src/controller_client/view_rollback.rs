//! A view that takes more networks into tunnels than the one before is on trial until the
//! controller has been heard under it. If it is not heard for `take_back`, the view before is put
//! back. Losing the controller changes nothing otherwise: a view that adds no network, or under
//! which the controller was once heard, stays for ever.
//!
//! Whether the view was to blame shows afterwards: if the controller is reached soon after the view
//! was taken back, it was, and what it added is refused from then on, but for one more try after an
//! hour. If not, the controller was away, and the view is taken again when it is back.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use edge_types::store::VIEW_FILE;
use edge_types::{IpNetwork, NodeView};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::client::ControllerClient;
use super::error::ControllerError;
use super::partial_view::partial_view;
use super::view_validation::Refusal;
use crate::membership::Membership;
use crate::state_dir::StateDirError;
use crate::underlay::{added, guarded};

/// The view before one on trial. Its presence at start says that the view on disk is on trial.
const BEFORE_FILE: &str = "view-before.json";
/// What was taken back, a [`TakenBack`].
const TAKEN_BACK_FILE: &str = "taken-back.json";
/// The controller counts as heard under a view from so long after it came: what was on its way
/// then, or came before policies and routes were changed, proves nothing.
const INSTALLED: Duration = Duration::from_secs(15);
/// [`crate::config::ControllerSection::take_back`], unless set.
const TAKE_BACK: Duration = Duration::from_secs(180);
/// Reached within so long after a view was taken back, the controller was cut off by that view.
const SOON: Duration = Duration::from_secs(120);
/// After so long, what was taken back once is tried again, once.
const SECOND_TRY_SECONDS: u64 = 3600;
/// The disk is full, for example.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Refused views are looked at again this often, besides when the uplink changes.
const LOOK: Duration = Duration::from_secs(60);
/// So many conflicts of the view in force are named.
const MOST_NAMED: usize = 8;

/// The view in force is on trial.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    /// What is put back.
    before: Arc<NodeView>,
    began: Instant,
}

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TakenBack {
    /// Version of the view.
    version: u64,
    /// Networks that it added.
    added: Vec<IpNetwork>,
    /// When, seconds since 1970-01-01 UTC.
    at: u64,
    /// It was to blame; not known before the controller is reached again.
    blamed: bool,
    /// How often in a row.
    times: u32,
}

impl TakenBack {
    /// Whether a view may be tried in spite of this. While the controller is away it is not known
    /// whether the view was to blame, and to try it again would show nothing: that waits for
    /// [`ControllerClient::reached`].
    fn allows(&self, view: &NodeView, now: u64) -> bool {
        let guarded = guarded(view);
        let the_same = self.added.iter().all(|network| guarded.contains(network));
        !the_same || (self.blamed && self.times < 2 && now >= self.at.saturating_add(SECOND_TRY_SECONDS))
    }
}

impl ControllerClient {
    /// Reads what an earlier run left.
    pub(super) fn load_trial(&self) {
        let taken_back = self.state.read_json::<TakenBack>(TAKEN_BACK_FILE, "it is ignored").unwrap_or_else(|error| {
            warn!("{error}");
            None
        });
        *self.taken_back.lock().unwrap_or_else(PoisonError::into_inner) = taken_back;
        match self.state.read_json::<NodeView>(BEFORE_FILE, "it is ignored") {
            Ok(Some(before)) => self.set_trial(Some(Trial { before: Arc::new(before), began: Instant::now() })),
            Ok(None) => {}
            Err(error) => warn!("{error}"),
        }
    }

    /// What earlier views of this node did says nothing of those of another identity.
    pub(super) fn forget_trial(&self) {
        self.set_trial(None);
        self.refuse(None, None);
        *self.taken_back.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.remove_notes();
    }

    /// Whether this host allows the view instead of the one in force.
    pub(super) fn allow(&self, current: Option<&NodeView>, view: &NodeView) -> Result<(), Refusal> {
        let controllers = self.bypass.controller_addresses(self.urls());
        if let Some(conflict) = self.uplink.borrow().underlay.conflict(current, view, &controllers) {
            return Err(Refusal::Underlay(conflict));
        }
        let taken_back = self.taken_back.lock().unwrap_or_else(PoisonError::into_inner);
        match taken_back.as_ref().filter(|taken_back| !taken_back.allows(view, self.clock.unix_time())) {
            Some(TakenBack { version, added, blamed: false, .. }) => {
                Err(Refusal::Undecided { version: *version, added: added.clone() })
            }
            Some(TakenBack { version, added, .. }) => Err(Refusal::TakenBack {
                version: *version,
                added: added.clone(),
                file: self.state.path().join(TAKEN_BACK_FILE),
            }),
            None => Ok(()),
        }
    }

    /// Names what the view in force takes away from this node, for `status` and the log. Nothing
    /// else changes by it.
    pub(super) fn name_conflicts(&self, view: &NodeView) {
        let controllers = self.bypass.controller_addresses(self.urls());
        let conflicts = self.uplink.borrow().underlay.conflicts(view, &controllers);
        let conflicts: Vec<String> = conflicts.iter().take(MOST_NAMED).map(ToString::to_string).collect();
        self.status.send_if_modified(|status| {
            let differs = status.conflicts != conflicts;
            for conflict in conflicts.iter().filter(|conflict| !status.conflicts.contains(*conflict)) {
                warn!(version = view.version, "in force, but {conflict}");
            }
            status.conflicts = conflicts;
            differs
        });
    }

    /// A view is about to come into force over another. What is put back if need be stands on disk
    /// before it does.
    pub(super) fn begin_trial(&self, current: Option<&Arc<NodeView>>, new: &NodeView) -> Result<(), StateDirError> {
        let Some(current) = current.filter(|current| !added(current, new).is_empty()) else { return Ok(()) };
        // One that comes while another is on trial has not proven that one.
        let before = self.trial().map_or_else(|| current.clone(), |trial| trial.before);
        self.state.write_json(BEFORE_FILE, &*before)?;
        self.set_trial(Some(Trial { before, began: Instant::now() }));
        Ok(())
    }

    /// The controller was heard.
    pub(super) fn heard(&self) {
        let installed = INSTALLED.min(self.take_back_after() / 2);
        if self.trial().is_none_or(|trial| trial.began.elapsed() < installed) {
            return;
        }
        self.set_trial(None);
        *self.taken_back.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.remove_notes();
    }

    fn remove_notes(&self) {
        for file in [BEFORE_FILE, TAKEN_BACK_FILE] {
            if let Err(error) = self.state.remove(file) {
                warn!("{error}");
            }
        }
    }

    /// The controller is reached again: what was taken back was to blame, or was not.
    pub(super) async fn reached(&self) {
        if self.acquit_or_blame() {
            self.judge_again().await;
        }
    }

    /// Whether the view that was taken back may come again.
    fn acquit_or_blame(&self) -> bool {
        let mut taken_back = self.taken_back.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(undecided) = taken_back.as_mut().filter(|taken_back| !taken_back.blamed) else { return false };
        let since = self.clock.unix_time().saturating_sub(undecided.at);
        let outcome = if since <= SOON.as_secs() {
            undecided.blamed = true;
            self.state.write_json(TAKEN_BACK_FILE, &*undecided)
        } else {
            info!(version = undecided.version, "the controller was away; the view that was taken back may come again");
            *taken_back = None;
            self.state.remove(TAKEN_BACK_FILE)
        };
        if let Err(error) = outcome {
            warn!("{error}");
        }
        taken_back.is_none()
    }

    /// Takes views back, and looks again at those that were refused: what stood in their way may be
    /// gone.
    pub(super) async fn watch_views(&self) {
        let (mut uplink, mut trial) = (self.uplink.clone(), self.trial.subscribe());
        let mut status = self.status.subscribe();
        loop {
            let end = trial.borrow_and_update().as_ref().map(|trial| trial.began + self.take_back_after());
            // While the stream is open the controller is not lost: a dead one is noticed much
            // sooner than a view is taken back.
            let lost = async {
                tokio::time::sleep_until(end.unwrap_or_else(Instant::now)).await;
                let _ = status.wait_for(|status| !status.connected).await;
            };
            tokio::select! {
                () = lost, if end.is_some() => {
                    if let Err(error) = self.take_back().await {
                        error!("the view before cannot be put back: {error}; trying again");
                        tokio::time::sleep(TRY_AGAIN).await;
                    }
                }
                Ok(()) = trial.changed() => {}
                Ok(()) = uplink.changed() => self.judge_again().await,
                () = tokio::time::sleep(LOOK) => self.judge_again().await,
            }
        }
    }

    async fn judge_again(&self) {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(view) = refused {
            let version = view.version;
            match self.take_view(view).await {
                Ok(()) => info!(version, "a view that was refused is taken"),
                Err(error) => tracing::debug!(version, %error, "a view is still refused"),
            }
        }
        if let Some(view) = self.view.lock().await.as_ref() {
            self.name_conflicts(view);
            self.release_former_networks(view);
        }
    }

    async fn take_back(&self) -> Result<(), ControllerError> {
        let mut current = self.view.lock().await;
        // Between the end of the wait and the lock the controller may have been heard.
        let (Some(trial), Some(view)) = (self.trial(), current.clone()) else { return Ok(()) };
        if trial.began.elapsed() < self.take_back_after() || self.status.borrow().connected {
            return Ok(());
        }
        let Some(member) = self.member.borrow().clone() else { return Ok(()) };
        let before = match partial_view(&view, &trial.before, &added(&trial.before, &view)) {
            Ok(before) => Arc::new(before),
            Err(refusal) => {
                warn!(%refusal, "the view before cannot be put back");
                self.set_trial(None);
                self.state.remove(BEFORE_FILE)?;
                return Ok(());
            }
        };
        let times = {
            let mut taken_back = self.taken_back.lock().unwrap_or_else(PoisonError::into_inner);
            let added = added(&trial.before, &view);
            let former = taken_back.as_ref().filter(|former| former.added == added);
            let times = former.map_or(0, |former| former.times) + 1;
            let entry = TakenBack { version: view.version, added, at: self.clock.unix_time(), blamed: false, times };
            self.state.write_json(TAKEN_BACK_FILE, &entry)?;
            *taken_back = Some(entry);
            times
        };
        self.write_segments(Some(view.clone()), before.clone()).await?;
        // Networks that only the view that is taken back named are not held.
        let former_networks = self.hold_former_networks(None, &before)?;
        self.state.write_json(VIEW_FILE, &*before)?;
        self.state.remove(BEFORE_FILE)?;
        self.set_trial(None);
        self.refuse(
            Some(view.clone()),
            Some(format!(
                "view {} was taken back: the controller was not heard for {:?} under it; view {} is in force again",
                view.version,
                self.take_back_after(),
                before.version
            )),
        );
        error!(
            version = view.version,
            restored = before.version,
            added = ?added(&trial.before, &view),
            times,
            "the controller was not heard under this view: the one before is put back"
        );
        self.bypass.set_guarded(&before);
        self.name_conflicts(&before);
        *current = Some(before.clone());
        let credentials = member.identity.credentials.clone();
        self.membership.send_replace(Some(Membership { view: before, credentials, former_networks }));
        member.http.disconnect().await;
        Ok(())
    }

    /// Notes which view is not in force, and why, for `status`, for the controller, and to look at
    /// it again.
    pub(super) fn refuse(&self, view: Option<Arc<NodeView>>, why: Option<String>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = view;
        self.status.send_if_modified(|status| {
            let differs = status.refused_view != why;
            status.refused_view = why;
            differs
        });
    }

    fn trial(&self) -> Option<Trial> {
        self.trial.borrow().clone()
    }

    fn set_trial(&self, trial: Option<Trial>) {
        self.trial.send_replace(trial);
    }

    fn take_back_after(&self) -> Duration {
        self.config.controller.as_ref().and_then(|controller| controller.take_back).unwrap_or(TAKE_BACK)
    }
}

#[cfg(test)]
mod tests {
    use edge_types::Role;

    use super::*;

    fn view(version: u64, ranges: &[&str]) -> NodeView {
        NodeView {
            version,
            node: "edge-1".parse().unwrap(),
            role: Role::Edge,
            communities: Default::default(),
            cluster_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
            segments: vec![],
            networks: vec![],
            peers: vec![],
            trust_anchors: vec![],
            segment_prefix: Default::default(),
        }
    }

    #[test]
    fn what_was_taken_back_is_not_tried_while_the_controller_is_away_and_once_more_when_it_was_to_blame() {
        let (same, other) = (view(9, &["10.77.0.0/16", "10.99.0.0/16"]), view(9, &["10.77.0.0/16", "10.98.0.0/16"]));
        let added = vec!["10.99.0.0/16".parse().unwrap()];
        let undecided = TakenBack { version: 8, added, at: 1000, blamed: false, times: 1 };
        let later = 1000 + SECOND_TRY_SECONDS;
        for now in [1000, 1060, later, later * 100] {
            assert!(!undecided.allows(&same, now), "{now}");
            assert!(undecided.allows(&other, now), "{now}");
        }
        let blamed = TakenBack { blamed: true, ..undecided };
        assert!(!blamed.allows(&same, later - 1));
        assert!(blamed.allows(&same, later) && blamed.allows(&other, 1000));
        assert!(!TakenBack { times: 2, ..blamed }.allows(&same, later * 100));
    }
}
