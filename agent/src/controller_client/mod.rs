//! The controller's side of the agent: joins, keeps the certificate, follows the view, applies for
//! segments. It publishes what it learns through the seam in [`crate::membership`], from disk at
//! once and from the controller as it changes. Losing the controller changes nothing of it.
//!
//! - `session`: one connection's life: join if needed, report, follow the stream of views; and
//!   again after it broke.
//! - `stream_state`: the view that a stream has sent so far, and how its changes apply.
//! - `view_validation`: whether a view may replace the one in force.
//! - `view_rollback`: whether this host allows a view, and what is done where the controller is not
//!   heard under it.
//! - `guard_bypass`: the way to the controller, past the guard.
//! - `identity`, `join_credential`, `join`, `renewal`: key and certificate, what lets a node in, how
//!   they come and how they are renewed.
//! - `segment_request`: a request for a segment, whose id outlives a crash.
//! - `http`, `tls`, `error`: HTTP/2 over mutually authenticated TLS 1.3.

mod backoff;
mod error;
mod guard_bypass;
mod http;
mod identity;
mod join;
mod join_credential;
mod renewal;
mod segment_request;
mod session;
mod stream_state;
mod tls;
mod view_rollback;
mod view_validation;

pub use error::CloudError;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use edge_types::api::TunnelCount;
use edge_types::store::{SegmentsFile, VIEW_FILE};
use edge_types::{NodeName, NodeView, Role};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::clock::WorldClock;
use crate::config::Config;
use crate::membership::{CloudSide, CloudStatus, Membership, Uplink};
use crate::state_dir::{StateDir, StoreError, segments_file};
use guard_bypass::Path;
use http::Client;
use identity::Identity;
use view_rollback::{TakenBack, Trial};
use view_validation::{Refusal, Verdict, judge};

/// The controller's side of the agent.
#[derive(Debug)]
pub struct Cloud {
    config: Arc<Config>,
    state: Arc<StateDir>,
    clock: Arc<WorldClock>,
    uplink: watch::Receiver<Uplink>,
    tunnels: watch::Receiver<Option<TunnelCount>>,
    membership: watch::Sender<Option<Membership>>,
    status: watch::Sender<CloudStatus>,
    /// `None` until this node has joined.
    member: watch::Sender<Option<Member>>,
    /// The view in force. Held while files that follow from it are written.
    view: Mutex<Option<Arc<NodeView>>>,
    /// The view in force may have cut this node off from the controller.
    trial: watch::Sender<Option<Trial>>,
    taken_back: std::sync::Mutex<Option<TakenBack>>,
    /// The latest view that is not in force for what stands in its way on this host.
    refused: std::sync::Mutex<Option<Arc<NodeView>>>,
    path: Arc<Path>,
    /// One application at a time.
    applying: Mutex<()>,
    /// So many addresses of this node were left out of the last report.
    left_out: AtomicUsize,
    stop: CancellationToken,
}

/// What becomes of the connection to the controller when this node's identity changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    /// It goes on: it is authenticated by what is still the same. Should a thousand nodes hear of a
    /// new authority, they do not connect anew at once.
    Kept,
    /// Another one is made, which shows the new certificate.
    Anew,
}

/// This node as the controller knows it.
#[derive(Debug, Clone)]
struct Member {
    identity: Identity,
    client: Arc<Client>,
}

impl Cloud {
    /// Reads what an earlier run left on disk, and publishes it: tunnels come up without the
    /// controller.
    pub fn load(side: CloudSide, state: Arc<StateDir>) -> Result<Arc<Self>, CloudError> {
        side.clock.raise_to_kept(&state);
        let identity = Identity::load(&state)?;
        let path = Arc::new(Path::new(side.uplink.clone()));
        let cloud = Self {
            config: side.config,
            state,
            clock: side.clock,
            uplink: side.uplink,
            tunnels: side.tunnels,
            membership: side.membership,
            status: side.status,
            member: watch::Sender::new(None),
            view: Mutex::new(None),
            trial: watch::Sender::new(None),
            taken_back: std::sync::Mutex::default(),
            refused: std::sync::Mutex::default(),
            path,
            applying: Mutex::new(()),
            left_out: AtomicUsize::new(0),
            stop: side.stop,
        };
        if let Some(identity) = identity {
            cloud.clock.raise(u64::try_from(identity.not_before).unwrap_or(0));
            cloud.load_trial();
            let view = cloud.view_on_disk(&identity)?.map(Arc::new);
            let tls = cloud.member_tls(&identity)?;
            let client = Client::new(cloud.urls(), tls, cloud.clock.clone(), cloud.path.clone())?;
            cloud.status.send_modify(|status| {
                status.certificate_not_after = Some(identity.credentials.not_after);
                status.view_source = view.as_ref().map(|_| "disk".into());
            });
            if let Some(view) = &view {
                cloud.path.follow(view);
                cloud.name_conflicts(view);
                info!(node = %identity.node, version = view.version, peers = view.peers.len(), "the last view is in force");
                let credentials = identity.credentials.clone();
                cloud.membership.send_replace(Some(Membership { view: view.clone(), credentials }));
            }
            cloud.member.send_replace(Some(Member { identity, client: Arc::new(client) }));
            return Ok(Arc::new(Self { view: Mutex::new(view), ..cloud }));
        }
        Ok(Arc::new(cloud))
    }

    /// Follows the controller until told to stop.
    pub async fn run(self: Arc<Self>) {
        self.repair_segments().await;
        let work = async {
            tokio::join!(session::run(&self), renewal::run(&self), self.follow_mtu(), self.watch_views());
        };
        tokio::select! {
            () = work => {}
            () = self.stop.cancelled() => {}
        }
        if let Err(error) = self.clock.keep(&self.state) {
            warn!(%error, "the time is not kept");
        }
    }

    /// The state directory.
    pub fn state(&self) -> &Arc<StateDir> {
        &self.state
    }

    /// This node's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Cancelled when the agent is to end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// View and credentials in force.
    pub fn membership(&self) -> watch::Receiver<Option<Membership>> {
        self.membership.subscribe()
    }

    /// How it stands with the controller.
    pub fn status(&self) -> watch::Receiver<CloudStatus> {
        self.status.subscribe()
    }

    fn urls(&self) -> &[String] {
        self.config.controller.as_ref().map_or(&[], |controller| &controller.urls)
    }

    fn member_tls(&self, identity: &Identity) -> Result<rustls::ClientConfig, CloudError> {
        tls::member(&identity.credentials, self.clock.clone()).map_err(|error| {
            CloudError::Unacceptable(format!("this node's key and certificate cannot be used for TLS: {error}"))
        })
    }

    /// The view of an earlier run, if it is readable and this node's. One that is not is put aside:
    /// better none than a wrong one.
    fn view_on_disk(&self, identity: &Identity) -> Result<Option<NodeView>, StoreError> {
        let view = match self.state.read_json::<NodeView>(VIEW_FILE, "the next view from the controller replaces it") {
            Ok(None) => return Ok(None),
            Ok(Some(view)) => view,
            Err(error @ StoreError::Damaged { .. }) => {
                let aside = self.state.put_aside(VIEW_FILE)?;
                error!(%error, aside = %aside.display(), "starting without a view: no tunnels until the controller is reached");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match judge(&identity.node, identity.role, None, &view) {
            // It was in force. That this host stands elsewhere now, or that somebody on its network
            // says so, is no reason to be without tunnels.
            Ok(_) => Ok(Some(view)),
            Err(refusal) => {
                let aside = self.state.put_aside(VIEW_FILE)?;
                error!(%refusal, aside = %aside.display(), "the view on disk is refused: no tunnels until the controller is reached");
                Ok(None)
            }
        }
    }

    /// Takes a view from the controller, if it may replace the one in force: first on disk, then
    /// everywhere else.
    async fn take_view(&self, view: Arc<NodeView>) -> Result<(), ViewError> {
        let mut current = self.view.lock().await;
        let Some(member) = self.member.borrow().clone() else { return Ok(()) };
        let verdict = judge(&member.identity.node, member.identity.role, current.as_deref(), &view)?;
        if verdict == Verdict::Take
            && let Err(refusal) = self.allow(current.as_deref(), &view)
        {
            let why = format!("view {} is refused: {refusal}", view.version);
            self.refuse(Some(view), Some(why));
            return Err(refusal.into());
        }
        self.refuse(None, None);
        self.status.send_if_modified(|status| {
            let source = Some("controller".to_owned());
            let changed = status.view_source != source;
            status.view_source = source;
            changed
        });
        if verdict == Verdict::Same {
            return Ok(());
        }
        self.begin_trial(current.as_ref(), &view)?;
        self.write_segments(current.clone(), view.clone()).await?;
        self.state.write_json(VIEW_FILE, &*view)?;
        self.path.follow(&view);
        self.name_conflicts(&view);
        info!(
            version = view.version,
            peers = view.peers.len(),
            segments = view.segments.len(),
            "a new view is in force"
        );
        let anchors = identity::anchors(&view.trust_anchors).map_err(Refusal::Nonsense)?;
        let credentials = match member.identity.trusting(anchors) {
            None => member.identity.credentials,
            Some(identity) => {
                info!("the controller's trust anchors have changed");
                identity.store(&self.state)?;
                self.become_member(identity, Connection::Kept).await?
            }
        };
        *current = Some(view.clone());
        self.membership.send_replace(Some(Membership { view, credentials }));
        Ok(())
    }

    /// Puts an identity, which is on disk already, in force.
    async fn become_member(
        &self,
        identity: Identity,
        connection: Connection,
    ) -> Result<Arc<crate::membership::Credentials>, CloudError> {
        let tls = self.member_tls(&identity)?;
        let present = self.member.borrow().as_ref().map(|member| member.client.clone());
        let client = match present {
            Some(client) => {
                client.use_tls(tls, connection).await;
                client
            }
            None => Arc::new(Client::new(self.urls(), tls, self.clock.clone(), self.path.clone())?),
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
        self.member.send_replace(Some(Member { identity, client }));
        Ok(credentials)
    }

    /// Writes `segments.json` from the last view, should it have been lost or damaged meanwhile.
    async fn repair_segments(&self) {
        let current = self.view.lock().await;
        if let Some(view) = current.as_ref()
            && let Err(error) = self.write_segments(Some(view.clone()), view.clone()).await
        {
            error!(%error, "segments are not written; pods get no new addresses");
        }
    }

    /// Keeps the pods' MTU in `segments.json` as the uplink changes.
    async fn follow_mtu(&self) {
        let mut uplink = self.uplink.clone();
        let mut written = 0;
        loop {
            let mtu = uplink.borrow_and_update().pod_mtu;
            let current = self.view.lock().await;
            if let Some(view) = current.as_ref().filter(|_| mtu != 0 && mtu != written) {
                match self.write_segments(Some(view.clone()), view.clone()).await {
                    Ok(_) => written = mtu,
                    Err(error) => error!(%error, mtu, "the pods' MTU is not written"),
                }
            }
            drop(current);
            if uplink.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn write_segments(
        &self,
        previous: Option<Arc<NodeView>>,
        view: Arc<NodeView>,
    ) -> Result<SegmentsFile, StoreError> {
        let mtu = self.uplink.borrow().pod_mtu;
        self.on_disk(move |state| segments_file::follow_view(state, previous.as_deref(), &view, mtu)).await
    }

    /// Works on shared files where waiting for their lock blocks nobody else.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateDir) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let state = self.state.clone();
        match tokio::task::spawn_blocking(move || work(&state)).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(StoreError::Ending),
        }
    }

    /// What failed works again: `status` no longer shows it.
    pub(crate) fn forget_error(&self, error: &CloudError) {
        let text = error.to_string();
        self.status.send_if_modified(|status| status.last_error.take_if(|last| *last == text).is_some());
    }

    /// Notes an error for `status`, and logs it if it is a new one.
    pub(crate) fn note_error(&self, error: &CloudError) {
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
            true
        });
    }
}

/// Why a view from the controller did not come into force.
#[derive(Debug, thiserror::Error)]
enum ViewError {
    #[error("a view from the controller is refused: {0}")]
    Refused(#[from] Refusal),
    #[error("a view from the controller cannot be kept: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cloud(#[from] CloudError),
}

/// Node and role of a member, for those who ask on its behalf.
impl Member {
    fn node(&self) -> &NodeName {
        &self.identity.node
    }

    fn role(&self) -> Role {
        self.identity.role
    }
}
