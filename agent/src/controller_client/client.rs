//! The state of the controller client, which its tasks share. The current view is the view that the
//! agent has applied.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, MutexGuard, PoisonError};

use edge_types::api::TunnelCount;
use edge_types::shared_files::{SegmentsFile, VIEW_FILE};
use edge_types::traffic::TunnelTraffic;
use edge_types::view::SegmentPrefix;
use edge_types::{IpNetwork, NodeName, NodeView, Role, ViewChange};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Span, error, info, warn};

use super::error::ControllerError;
use super::guard_bypass::GuardBypass;
use super::http::{HttpClient, Reconnect};
use super::node_identity::{NodeIdentity, unix_seconds};
use super::unconfirmed_view::{TakenBackView, UnconfirmedView};
use super::view_consistency::ViewConsistency;
use super::view_file::ViewStep;
use super::view_validation::{Validated, ViewRefusal, validate, validate_with};
use super::{ended_certificate, node_identity, tls, view_file};
use crate::clock::CertificateClock;
use crate::config::Config;
use crate::membership::{ControllerChannels, ControllerStatus, FormerNetwork, Measurement, Membership, UplinkFacts};
use crate::state_dir::segments_file::{self, SegmentsOfView};
use crate::state_dir::{ChangeLog, StateDir, StateDirError};

/// The controller client, shared by the agent's tasks.
#[derive(Debug)]
pub struct ControllerClient {
    pub(super) config: Arc<Config>,
    pub(super) state: Arc<StateDir>,
    pub(super) clock: Arc<CertificateClock>,
    pub(super) uplink: watch::Receiver<UplinkFacts>,
    pub(super) tunnels: watch::Receiver<Option<TunnelCount>>,
    pub(super) traffic: watch::Receiver<Option<TunnelTraffic>>,
    pub(super) obstacles: watch::Receiver<Vec<String>>,
    /// This node's mapped addresses, for the report.
    pub(super) mapped: watch::Receiver<Option<Vec<SocketAddr>>>,
    /// The hubs to which this node has no tunnel, for the report.
    pub(super) unreached_hubs: watch::Receiver<Option<Vec<NodeName>>>,
    /// The channel to the part of the agent that measures paths.
    pub(super) measurements: mpsc::Sender<Measurement>,
    pub(super) membership: watch::Sender<Option<Membership>>,
    /// What requests for segments depend on.
    segment_inputs: watch::Sender<Option<SegmentInputs>>,
    pub(super) status: watch::Sender<ControllerStatus>,
    /// `None` until this node has joined.
    pub(super) member: watch::Sender<Option<Member>>,
    /// The current view. The lock is held while files that depend on it are written.
    pub(super) view: Mutex<Option<Arc<NodeView>>>,
    /// Checks that views from the stream are consistent.
    pub(super) consistency: std::sync::Mutex<ViewConsistency>,
    /// Writes the current view to disk.
    pub(super) view_file: std::sync::Mutex<ChangeLog>,
    /// What the last view wrote to `segments.json`; `None` if that is unknown.
    segments_on_disk: std::sync::Mutex<Option<SegmentsOfView>>,
    /// Set while this node may have lost the controller because of the current view.
    pub(super) unconfirmed: watch::Sender<Option<UnconfirmedView>>,
    pub(super) taken_back: std::sync::Mutex<Option<TakenBackView>>,
    /// The latest view that this host refuses. It is validated again when the host changes.
    pub(super) refused: std::sync::Mutex<Option<Arc<NodeView>>>,
    /// Notified when a view could not be stored.
    pub(super) store_failed: tokio::sync::Notify,
    /// Hub networks that the view no longer names.
    pub(super) former_networks: std::sync::Mutex<Arc<Vec<FormerNetwork>>>,
    pub(super) bypass: Arc<GuardBypass>,
    /// Held during a renewal of the certificate, so that one is made at a time.
    pub(super) renewing: Mutex<()>,
    /// Held during a segment request, so that requests are made one at a time.
    pub(super) requesting: Mutex<()>,
    /// Number of usable candidate addresses that the last report left out.
    pub(super) left_out: AtomicUsize,
    pub(super) stop: CancellationToken,
}

/// The part of the current view on which requests for segments depend. Peers are not part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInputs {
    role: Role,
    prefix: SegmentPrefix,
    segments: Vec<IpNetwork>,
    cluster_ranges: Vec<IpNetwork>,
}

impl SegmentInputs {
    fn of(view: &NodeView) -> Self {
        Self {
            role: view.role,
            prefix: view.segment_prefix,
            segments: view.segments.clone(),
            cluster_ranges: view.cluster_ranges.clone(),
        }
    }
}

/// This node after it has joined.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) identity: NodeIdentity,
    pub(super) http: Arc<HttpClient>,
}

impl ControllerClient {
    /// Reads the identity and the view of an earlier run from disk and publishes them, so that
    /// tunnels come up without the controller. Fails if the identity is damaged, or its key cannot
    /// be used.
    pub fn load(channels: ControllerChannels, state: Arc<StateDir>) -> Result<Arc<Self>, ControllerError> {
        channels.clock.load_floor(&state);
        let identity = NodeIdentity::load(&state)?;
        let bypass = Arc::new(GuardBypass::new(channels.uplink.clone()));
        let client = Self {
            view_file: std::sync::Mutex::new(view_file::log(state.path())),
            segments_on_disk: std::sync::Mutex::default(),
            config: channels.config,
            state,
            clock: channels.clock,
            uplink: channels.uplink,
            tunnels: channels.tunnels,
            traffic: channels.traffic,
            obstacles: channels.obstacles,
            mapped: channels.mapped,
            unreached_hubs: channels.unreached_hubs,
            measurements: channels.measurements,
            membership: channels.membership,
            segment_inputs: watch::Sender::default(),
            status: channels.status,
            member: watch::Sender::new(None),
            view: Mutex::new(None),
            consistency: std::sync::Mutex::default(),
            unconfirmed: watch::Sender::new(None),
            taken_back: std::sync::Mutex::default(),
            refused: std::sync::Mutex::default(),
            store_failed: tokio::sync::Notify::new(),
            former_networks: std::sync::Mutex::default(),
            bypass,
            renewing: Mutex::new(()),
            requesting: Mutex::new(()),
            left_out: AtomicUsize::new(0),
            stop: channels.stop,
        };
        if let Some(identity) = identity {
            let validity = [identity.not_before, identity.credentials.not_after].map(unix_seconds);
            client.clock.set_own_validity(validity[0], validity[1]);
            client.load_unconfirmed_view();
            client.load_former_networks();
            let view = client.view_on_disk(&identity)?.map(Arc::new);
            let tls = client.member_tls(&identity)?;
            let http = HttpClient::new(client.urls(), tls, client.clock.clone(), client.bypass.clone())?;
            client.status.send_modify(|status| {
                status.certificate_not_after = Some(identity.credentials.not_after);
                status.view_source = view.as_ref().map(|_| "disk".into());
            });
            if let Some(view) = &view {
                client.set_grace(view);
                client.bypass.set_guarded(view);
                client.report_conflicts(view);
                info!(node = %identity.node, version = view.version, peers = view.peers.len(), "the last view is in force");
                let credentials = identity.credentials.clone();
                let former_networks = client.update_former_networks(None, view)?;
                client.segment_inputs.send_replace(Some(SegmentInputs::of(view)));
                client.membership.send_replace(Some(Membership { view: view.clone(), credentials, former_networks }));
            }
            client.member.send_replace(Some(Member { identity, http: Arc::new(http) }));
            return Ok(Arc::new(Self { view: Mutex::new(view), ..client }));
        }
        Ok(Arc::new(client))
    }

    /// Returns the state directory.
    pub fn state(&self) -> &Arc<StateDir> {
        &self.state
    }

    /// Returns this node's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns a token that is cancelled when the agent ends.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Returns this node's name; `None` until it has joined.
    pub fn node(&self) -> Option<NodeName> {
        self.member.borrow().as_ref().map(|member| member.identity.node.clone())
    }

    /// Returns a receiver of the current view and credentials.
    pub fn membership(&self) -> watch::Receiver<Option<Membership>> {
        self.membership.subscribe()
    }

    /// Returns a receiver of what requests for segments depend on.
    pub fn segment_inputs(&self) -> watch::Receiver<Option<SegmentInputs>> {
        self.segment_inputs.subscribe()
    }

    /// Returns a receiver of the data about connection, certificate and view, for `edge-agent
    /// status`.
    pub fn status(&self) -> watch::Receiver<ControllerStatus> {
        self.status.subscribe()
    }

    pub(super) fn urls(&self) -> &[String] {
        self.config.controller.as_ref().map_or(&[], |controller| &controller.urls)
    }

    fn member_tls(&self, identity: &NodeIdentity) -> Result<rustls::ClientConfig, ControllerError> {
        tls::member_config(&identity.credentials, self.clock.clone()).map_err(|error| {
            ControllerError::Unacceptable(format!("this node's key and certificate cannot be used for TLS: {error}"))
        })
    }

    /// Returns the view of an earlier run, if it is readable and belongs to this node. Otherwise
    /// renames the file to `view.json.damaged`, and the agent starts without a view.
    fn view_on_disk(&self, identity: &NodeIdentity) -> Result<Option<NodeView>, StateDirError> {
        let view = match view_file::read(self.state.path()) {
            Ok(None) => return Ok(None),
            Ok(Some(view)) => view,
            Err(error @ StateDirError::Damaged { .. }) => {
                let aside = self.state.put_aside(VIEW_FILE)?;
                error!(%error, aside = %aside.display(), "starting without a view: no tunnels until the controller is reached");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match validate(&identity.node, identity.role, None, &view) {
            // This view was applied before the restart. The node keeps its tunnels even if the host
            // has moved to another network, or appears to have moved.
            Ok(_) => Ok(Some(view)),
            Err(refusal) => {
                let aside = self.state.put_aside(VIEW_FILE)?;
                error!(%refusal, aside = %aside.display(), "the view on disk is refused: no tunnels until the controller is reached");
                Ok(None)
            }
        }
    }

    /// Validates a view from the controller, writes it to disk, then publishes it. If this host
    /// refuses the view, only the part that it allows comes into force. `step` is the change from
    /// the previous view, if the controller sent a change.
    pub(super) async fn take_view(&self, view: Arc<NodeView>, step: Option<ViewStep>) -> Result<(), ViewError> {
        let mut current = self.view.lock().await;
        let Some(member) = self.member.borrow().clone() else { return Ok(()) };
        let mut same_networks = None;
        let validated = validate_with(&member.identity.node, member.identity.role, current.as_deref(), &view, || {
            same_networks = self.consistency.lock().unwrap_or_else(PoisonError::into_inner).check(&view)?;
            Ok(())
        })?;
        // Most views differ in a peer that fronts no network. Their networks need not be compared
        // with anything, since those in force are the same.
        let same_networks =
            same_networks.is_some_and(|same| current.as_ref().is_some_and(|now| Arc::ptr_eq(now, &same)));
        // If this view cannot be stored, the one before it is taken back when that was due.
        let unconfirmed = self.unconfirmed.borrow().clone();
        if validated == Validated::New
            && !same_networks
            && let Err(refusal) = self.check_against_host(current.as_deref(), &view)
        {
            let why = format!("view {} is refused: {refusal}", view.version);
            self.set_refused_view(Some(view.clone()), Some(why));
            if let Some(before) = current.clone()
                && let Some(part) = self.allowed_part(&before, &view, &refusal)
            {
                let outcome = self.put_in_force(&mut current, member, Arc::new(part), None, false).await;
                if let Err(ViewError::Store(error)) = &outcome {
                    self.unconfirmed.send_replace(unconfirmed);
                    self.keep_unstored_view(&mut current, view, error);
                    return outcome;
                }
                outcome?;
                warn!(version = view.version, %refusal, "only part of the view is in force");
            }
            return Err(refusal.into());
        }
        if validated == Validated::Unchanged {
            self.view_is_in_force(&view);
            return Ok(());
        }
        // The file on disk holds the current view, so the change must be relative to that view.
        let change = step.filter(|step| current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &step.before)));
        let change = change.map(|step| step.change);
        let outcome = self.put_in_force(&mut current, member, view.clone(), change, same_networks).await;
        match &outcome {
            Ok(()) => self.view_is_in_force(&view),
            Err(ViewError::Store(error)) => {
                self.unconfirmed.send_replace(unconfirmed);
                self.keep_unstored_view(&mut current, view, error);
            }
            Err(_) => {}
        }
        outcome
    }

    /// Shows in `status` that this view from the controller is in force, unless a later one waits.
    fn view_is_in_force(&self, view: &NodeView) {
        let kept = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if kept.is_none_or(|kept| kept.version <= view.version) {
            self.set_refused_view(None, None);
        }
        self.status.send_if_modified(|status| {
            let source = Some("controller".to_owned());
            let changed = status.view_source != source;
            status.view_source = source;
            changed
        });
    }

    /// Writes a view to disk, then publishes it. The view replaces `current`, the current view;
    /// `change` is the difference between the two, if it is known. `same_networks` says that both
    /// make the same networks unreachable outside of tunnels.
    async fn put_in_force(
        &self,
        current: &mut Option<Arc<NodeView>>,
        member: Member,
        view: Arc<NodeView>,
        change: Option<ViewChange>,
        same_networks: bool,
    ) -> Result<(), ViewError> {
        if !same_networks {
            self.mark_unconfirmed(current.as_ref(), &view)?;
        }
        // Most views differ only in peers.
        let mtu = self.uplink.borrow().pod_mtu;
        let on_disk = match &*self.segments_on_disk() {
            // The current view has the same networks, and its segments are on disk.
            Some(on_disk) if same_networks => on_disk.mtu() == mtu,
            Some(on_disk) => *on_disk == SegmentsOfView::new(&view, mtu),
            None => false,
        };
        if current.is_none() || !on_disk {
            self.write_segments(current.clone(), view.clone()).await?;
        }
        let former_networks = match self.former_networks() {
            none if same_networks && none.is_empty() => none,
            _ => self.update_former_networks(current.as_deref(), &view)?,
        };
        self.write_view(&view, change.as_ref())?;
        self.confirm_if_nothing_is_added(&view);
        self.set_grace(&view);
        if !same_networks {
            self.bypass.set_guarded(&view);
            self.report_conflicts(&view);
        }
        info!(
            version = view.version,
            peers = view.peers.len(),
            segments = view.segments.len(),
            "a new view is in force"
        );
        let anchors = node_identity::anchors(&view.trust_anchors).map_err(ViewRefusal::Invalid)?;
        let credentials = match member.identity.with_trust_anchors(anchors) {
            None => member.identity.credentials,
            Some(identity) => {
                info!("the controller's trust anchors have changed");
                identity.store(&self.state)?;
                self.become_member(identity, Reconnect::No).await?
            }
        };
        *current = Some(view.clone());
        self.publish_view(Membership { view, credentials, former_networks });
        Ok(())
    }

    /// Publishes the view that is in force, and the part on which requests for segments depend.
    pub(super) fn publish_view(&self, membership: Membership) {
        let inputs = Some(SegmentInputs::of(&membership.view));
        self.membership.send_replace(Some(membership));
        self.segment_inputs.send_if_modified(|sent| {
            let differs = *sent != inputs;
            *sent = inputs;
            differs
        });
    }

    /// Uses the grace of a view for this node's own certificate.
    fn set_grace(&self, view: &NodeView) {
        self.clock.set_grace(view.certificate_grace_seconds);
        self.status.send_if_modified(|status| {
            let before = std::mem::replace(&mut status.certificate_grace_seconds, view.certificate_grace_seconds);
            before != view.certificate_grace_seconds
        });
    }

    /// Returns the time for which this node's certificate is accepted after its end, seconds.
    pub(super) fn grace(&self) -> u64 {
        self.status.borrow().certificate_grace_seconds
    }

    /// Returns the message about the certificate if it has ended.
    pub(super) fn certificate_ended(&self) -> Option<String> {
        let not_after = self.status.borrow().certificate_not_after?;
        ended_certificate::describe(self.node().as_ref(), not_after, self.grace(), self.clock.unix_time())
    }

    /// Writes a view to disk with [`view_file::write`].
    pub(super) fn write_view(&self, view: &NodeView, change: Option<&ViewChange>) -> Result<(), StateDirError> {
        let mut file = self.view_file.lock().unwrap_or_else(PoisonError::into_inner);
        view_file::write(&mut file, self.state.path(), view, change)
    }

    /// Publishes an identity that is already on disk.
    pub(super) async fn become_member(
        &self,
        identity: NodeIdentity,
        reconnect: Reconnect,
    ) -> Result<Arc<crate::membership::NodeCredentials>, ControllerError> {
        let tls = self.member_tls(&identity)?;
        let present = self.member.borrow().as_ref().map(|member| member.http.clone());
        let http = match present {
            Some(http) => {
                http.use_tls(tls, reconnect).await;
                http
            }
            None => Arc::new(HttpClient::new(self.urls(), tls, self.clock.clone(), self.bypass.clone())?),
        };
        let credentials = identity.credentials.clone();
        self.status.send_modify(|status| status.certificate_not_after = Some(credentials.not_after));
        self.membership.send_if_modified(|membership| match membership {
            Some(membership) => {
                membership.credentials = credentials.clone();
                true
            }
            None => false,
        });
        self.member.send_replace(Some(Member { identity, http }));
        Ok(credentials)
    }

    /// Writes `segments.json` from the current view, in case the file was lost or damaged.
    pub(super) async fn restore_segments_file(&self) {
        let current = self.view.lock().await;
        if let Some(view) = current.as_ref()
            && let Err(error) = self.write_segments(Some(view.clone()), view.clone()).await
        {
            error!(%error, "cannot write the segments; pods get no new addresses");
        }
    }

    /// Writes the pods' MTU to `segments.json` when the uplink changes.
    pub(super) async fn follow_mtu(&self) {
        let mut uplink = self.uplink.clone();
        let mut written = 0;
        loop {
            let mtu = uplink.borrow_and_update().pod_mtu;
            let current = self.view.lock().await;
            if let Some(view) = current.as_ref().filter(|_| mtu != 0 && mtu != written) {
                match self.write_segments(Some(view.clone()), view.clone()).await {
                    Ok(_) => written = mtu,
                    Err(error) => error!(%error, mtu, "cannot write the pods' MTU"),
                }
            }
            drop(current);
            if uplink.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    pub(super) async fn write_segments(
        &self,
        previous: Option<Arc<NodeView>>,
        view: Arc<NodeView>,
    ) -> Result<SegmentsFile, StateDirError> {
        let mtu = self.uplink.borrow().pod_mtu;
        *self.segments_on_disk() = None;
        let written = SegmentsOfView::new(&view, mtu);
        let file =
            self.on_disk(move |state| segments_file::follow_view(state, previous.as_deref(), &view, mtu)).await?;
        *self.segments_on_disk() = Some(written);
        Ok(file)
    }

    fn segments_on_disk(&self) -> MutexGuard<'_, Option<SegmentsOfView>> {
        self.segments_on_disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on a thread that may block, because `work` waits for the lock that the plugin
    /// also takes.
    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateDir) -> Result<T, StateDirError> + Send + 'static,
    ) -> Result<T, StateDirError> {
        let state = self.state.clone();
        let span = Span::current();
        match tokio::task::spawn_blocking(move || span.in_scope(|| work(&state))).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(StateDirError::Ending),
        }
    }

    /// Removes this error from `status`, if it is the one shown.
    pub(crate) fn clear_error(&self, error: &str) {
        self.status.send_if_modified(|status| {
            let cleared = status.last_error.take_if(|last| *last == error).is_some();
            status.refused &= !cleared;
            cleared
        });
    }

    /// Shows an error in `status` and logs it, unless it is already shown.
    pub(crate) fn record_error(&self, error: &ControllerError) {
        if error.says_that_our_certificate_ended() {
            self.clock.controller_refused_as_ended();
        }
        let text = error.to_string();
        self.status.send_if_modified(|status| {
            if status.last_error.as_ref() == Some(&text) {
                return false;
            }
            if error.is_temporary() {
                warn!("{text}; tunnels stay as they are");
            } else {
                error!("{text}; tunnels stay as they are");
            }
            status.last_error = Some(text);
            status.refused = error.is_refusal_by_the_controller();
            true
        });
    }
}

/// The reason why a view from the controller was not applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum ViewError {
    #[error("a view from the controller is refused: {0}")]
    Refused(#[from] ViewRefusal),
    #[error("cannot store a view from the controller: {0}")]
    Store(#[from] StateDirError),
    #[error(transparent)]
    Controller(#[from] ControllerError),
}

impl Member {
    pub(super) fn node(&self) -> &NodeName {
        &self.identity.node
    }

    pub(super) fn role(&self) -> Role {
        self.identity.role
    }
}
