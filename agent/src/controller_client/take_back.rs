//! Takes back a view that cuts the node off from the controller. A view that adds networks to the
//! tunnels is unconfirmed until a message from the controller arrives under it. If none arrives
//! within `take_back`, the view is taken back: the previous view is applied again. A view that adds
//! no network, or under which a message from the controller has arrived, is never taken back. A
//! view that replaces an unconfirmed view is not taken back either, if it adds no network to the
//! view before the unconfirmed one.
//!
//! If the controller is reached soon after a view was taken back, that view counts as the cause of
//! the lost connection. The networks that it added are then refused, except for a second attempt
//! after an hour. Otherwise the controller was unreachable for another reason, and the view is
//! applied again when the controller is back.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use edge_types::NodeView;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::client::ControllerClient;
use super::error::ControllerError;
use super::partial_view::partial_view;
use super::unconfirmed_view::{TAKEN_BACK_FILE, TakenBackView, UnconfirmedView};
use crate::membership::Membership;
use crate::state_dir::StateDirError;
use crate::underlay::added;

/// File with the view that the unconfirmed view replaced. If the file exists at start, the view on
/// disk is unconfirmed.
const BEFORE_FILE: &str = "view-before.json";
/// Minimum time between applying a view and a message that confirms it. Earlier messages may have
/// been sent before policies and routes changed.
const CONFIRM_AFTER: Duration = Duration::from_secs(15);
/// Default of [`crate::config::ControllerSection::take_back`].
const DEFAULT_TAKE_BACK: Duration = Duration::from_secs(180);
/// If the controller is reached within this time after a view was taken back, that view counts as
/// the cause of the lost connection.
const BLAME_WITHIN: Duration = Duration::from_secs(120);
/// Delay before the next attempt to take a view back, for example if the disk is full.
const TAKE_BACK_RETRY: Duration = Duration::from_secs(5);
/// Interval at which a refused view is validated again, in addition to the validation after changes
/// of the uplink.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Delay before a view that could not be stored is tried again.
const STORE_RETRY: Duration = Duration::from_secs(10);
/// Maximum number of conflicts of the current view that are reported.
const MAX_REPORTED_CONFLICTS: usize = 8;

impl ControllerClient {
    /// Reads the files of an earlier run: an unconfirmed view, and the last view that was taken
    /// back.
    pub(super) fn load_unconfirmed_view(&self) {
        let taken_back =
            self.state.read_json::<TakenBackView>(TAKEN_BACK_FILE, "it is ignored").unwrap_or_else(|error| {
                warn!("{error}");
                None
            });
        *self.taken_back.lock().unwrap_or_else(PoisonError::into_inner) = taken_back;
        match self.state.read_json::<NodeView>(BEFORE_FILE, "it is ignored") {
            Ok(Some(before)) => {
                self.set_unconfirmed(Some(UnconfirmedView { before: Arc::new(before), began: Instant::now() }))
            }
            Ok(None) => {}
            Err(error) => warn!("{error}"),
        }
    }

    /// Drops unconfirmed, refused and taken back views, because they belong to a former identity.
    pub(super) fn clear_unconfirmed_view(&self) {
        self.set_unconfirmed(None);
        self.set_refused_view(None, None);
        *self.taken_back.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.remove_take_back_files();
    }

    /// Reports in `status` and in the log which addresses that this node needs lie within networks
    /// of the current view.
    pub(super) fn report_conflicts(&self, view: &NodeView) {
        let controllers = self.bypass.controller_addresses(self.urls());
        let conflicts = self.uplink.borrow().underlay.conflicts(view, &controllers);
        let conflicts: Vec<String> = conflicts.iter().take(MAX_REPORTED_CONFLICTS).map(ToString::to_string).collect();
        self.status.send_if_modified(|status| {
            let differs = status.conflicts != conflicts;
            for conflict in conflicts.iter().filter(|conflict| !status.conflicts.contains(*conflict)) {
                warn!(version = view.version, "the view is in force although {conflict}");
            }
            status.conflicts = conflicts;
            differs
        });
    }

    /// Marks `new` as unconfirmed if it adds networks. Writes the previous view to disk first.
    pub(super) fn mark_unconfirmed(
        &self,
        current: Option<&Arc<NodeView>>,
        new: &NodeView,
    ) -> Result<(), StateDirError> {
        let Some(current) = current.filter(|current| !added(current, new).is_empty()) else { return Ok(()) };
        // If the current view is also unconfirmed, the view before it stays the one to restore.
        let before = self.unconfirmed().map_or_else(|| current.clone(), |unconfirmed| unconfirmed.before);
        self.state.write_json(BEFORE_FILE, &*before)?;
        self.set_unconfirmed(Some(UnconfirmedView { before, began: Instant::now() }));
        Ok(())
    }

    /// Ends the unconfirmed state if `view`, which is applied and on disk, adds no network to the
    /// view from before the unconfirmed one. No view needs to be taken back any more in that case.
    pub(super) fn confirm_if_nothing_is_added(&self, view: &NodeView) {
        if self.unconfirmed().is_some_and(|unconfirmed| added(&unconfirmed.before, view).is_empty()) {
            self.forget_unconfirmed();
        }
    }

    fn forget_unconfirmed(&self) {
        self.set_unconfirmed(None);
        if let Err(error) = self.state.remove(BEFORE_FILE) {
            warn!("{error}");
        }
    }

    /// Confirms the current view, because a message from the controller arrived.
    pub(super) fn confirm_view(&self) {
        let installed = CONFIRM_AFTER.min(self.take_back_timeout() / 2);
        if self.unconfirmed().is_none_or(|unconfirmed| unconfirmed.began.elapsed() < installed) {
            return;
        }
        self.set_unconfirmed(None);
        *self.taken_back.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.remove_take_back_files();
    }

    fn remove_take_back_files(&self) {
        for file in [BEFORE_FILE, TAKEN_BACK_FILE] {
            if let Err(error) = self.state.remove(file) {
                warn!("{error}");
            }
        }
    }

    /// Decides whether the view that was taken back counts as the cause of the lost connection.
    /// Must be called when the controller is reached again.
    pub(super) async fn controller_reached(&self) {
        if self.settle_taken_back_view() {
            self.retry_refused_view().await;
        }
    }

    /// Decides whether the view that was taken back counts as the cause of the lost connection.
    /// Returns whether it may be applied again.
    fn settle_taken_back_view(&self) -> bool {
        let mut taken_back = self.taken_back.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(undecided) = taken_back.as_mut().filter(|taken_back| !taken_back.blamed) else { return false };
        let since = self.clock.unix_time().saturating_sub(undecided.at);
        let outcome = if since <= BLAME_WITHIN.as_secs() {
            undecided.blamed = true;
            self.state.write_json(TAKEN_BACK_FILE, &*undecided)
        } else {
            info!(
                version = undecided.version,
                "the controller was unreachable; the view that was taken back will be accepted again"
            );
            *taken_back = None;
            self.state.remove(TAKEN_BACK_FILE)
        };
        if let Err(error) = outcome {
            warn!("{error}");
        }
        taken_back.is_none()
    }

    /// Takes unconfirmed views back. Also tries refused views again, and those that could not be
    /// stored, since the reason may no longer exist.
    pub(super) async fn watch_views(&self) {
        let (mut uplink, mut unconfirmed) = (self.uplink.clone(), self.unconfirmed.subscribe());
        let mut status = self.status.subscribe();
        let mut store_again = None;
        loop {
            let end = unconfirmed
                .borrow_and_update()
                .as_ref()
                .map(|unconfirmed| unconfirmed.began + self.take_back_timeout());
            // While the stream is open, the controller is reachable. A dead connection is detected
            // long before the timeout.
            let lost = async {
                tokio::time::sleep_until(end.unwrap_or_else(Instant::now)).await;
                let _ = status.wait_for(|status| !status.connected).await;
            };
            tokio::select! {
                () = lost, if end.is_some() => {
                    if let Err(error) = self.take_back().await {
                        error!("cannot restore the previous view: {error}; trying again");
                        tokio::time::sleep(TAKE_BACK_RETRY).await;
                    }
                }
                Ok(()) = unconfirmed.changed() => {}
                Ok(()) = uplink.changed() => self.retry_refused_view().await,
                () = self.store_failed.notified() => store_again = Some(Instant::now() + STORE_RETRY),
                () = tokio::time::sleep_until(store_again.unwrap_or_else(Instant::now)), if store_again.is_some() => {
                    store_again = None;
                    self.retry_refused_view().await;
                }
                () = tokio::time::sleep(RECHECK_INTERVAL) => self.retry_refused_view().await,
            }
        }
    }

    async fn retry_refused_view(&self) {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(view) = refused {
            let version = view.version;
            match self.take_view(view, None).await {
                Ok(()) => info!(version, "accepted a view that had been refused"),
                Err(error) => tracing::debug!(version, %error, "a view is still refused"),
            }
        }
        if let Some(view) = self.view.lock().await.as_ref() {
            self.report_conflicts(view);
            self.expire_former_networks(view);
        }
    }

    async fn take_back(&self) -> Result<(), ControllerError> {
        let mut current = self.view.lock().await;
        // A message from the controller may have arrived before the lock was taken.
        let (Some(unconfirmed), Some(view)) = (self.unconfirmed(), current.clone()) else { return Ok(()) };
        if unconfirmed.began.elapsed() < self.take_back_timeout() || self.status.borrow().connected {
            return Ok(());
        }
        let Some(member) = self.member.borrow().clone() else { return Ok(()) };
        let added = added(&unconfirmed.before, &view);
        if added.is_empty() {
            self.forget_unconfirmed();
            return Ok(());
        }
        let before = match partial_view(&view, &unconfirmed.before, &added) {
            Ok(before) => Arc::new(before),
            Err(refusal) => {
                warn!(%refusal, "the previous view cannot be restored");
                self.set_unconfirmed(None);
                self.state.remove(BEFORE_FILE)?;
                return Ok(());
            }
        };
        let times = {
            let mut taken_back = self.taken_back.lock().unwrap_or_else(PoisonError::into_inner);
            let former = taken_back.as_ref().filter(|former| former.added == added);
            // If the code below fails, for example because the disk is full, the view is taken back
            // again. The repetition is not counted as another take-back.
            let again = former.is_some_and(|former| former.version == view.version && !former.blamed);
            let times = former.map_or(0, |former| former.times) + u32::from(!again);
            let (version, added, at) = (view.version, added.clone(), self.clock.unix_time());
            let entry = TakenBackView { version, added, at, blamed: false, times };
            self.state.write_json(TAKEN_BACK_FILE, &entry)?;
            *taken_back = Some(entry);
            times
        };
        self.write_segments(Some(view.clone()), before.clone()).await?;
        // Networks that only the view that was taken back named are no longer guarded.
        let former_networks = self.update_former_networks(None, &before)?;
        self.write_view(&before, None)?;
        self.state.remove(BEFORE_FILE)?;
        self.set_unconfirmed(None);
        self.set_refused_view(
            Some(view.clone()),
            Some(format!(
                "view {} was taken back: the controller was not heard for {:?} under it; view {} is in force again",
                view.version,
                self.take_back_timeout(),
                before.version
            )),
        );
        error!(
            version = view.version,
            restored = before.version,
            ?added,
            times,
            "the controller was not heard under this view: the one before is put back"
        );
        self.bypass.set_guarded(&before);
        self.report_conflicts(&before);
        *current = Some(before.clone());
        let credentials = member.identity.credentials.clone();
        self.publish_view(Membership { view: before, credentials, former_networks });
        member.http.disconnect().await;
        Ok(())
    }

    /// Sets the refused view and the reason, which `status`, the report to the controller and the
    /// next validation use.
    pub(super) fn set_refused_view(&self, view: Option<Arc<NodeView>>, why: Option<String>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = view;
        self.status.send_if_modified(|status| {
            let differs = status.refused_view != why;
            status.refused_view = why;
            differs
        });
    }

    fn unconfirmed(&self) -> Option<UnconfirmedView> {
        self.unconfirmed.borrow().clone()
    }

    fn set_unconfirmed(&self, unconfirmed: Option<UnconfirmedView>) {
        self.unconfirmed.send_replace(unconfirmed);
    }

    fn take_back_timeout(&self) -> Duration {
        self.config.controller.as_ref().and_then(|controller| controller.take_back).unwrap_or(DEFAULT_TAKE_BACK)
    }
}
