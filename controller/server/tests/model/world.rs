//! Runs and disturbs the controllers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edge_types::IpNetwork;
use futures_util::future::{LocalBoxFuture, join_all};
use hyper::Method;
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use super::dice::Dice;
use super::model::{Model, QUARANTINE};
use crate::harness::{HttpResponse, try_operator};
use crate::process::Program;

/// Number of segments in each family.
pub(super) const CAPACITY: usize = 32;
/// Time limit for each wait.
const TIME_LIMIT: Duration = Duration::from_secs(90);

/// The place where controllers store their rows, with the other objects there.
pub(crate) trait Testbed: Sync {
    /// Returns the number of controllers that run at the same time.
    fn replicas(&self) -> usize;

    /// Returns further tables of their configuration.
    fn config_tables(&self) -> String;

    /// Returns the certificate of the signing authority. `state`: the state directory of a
    /// controller.
    fn ca_certificate<'a>(&'a self, state: &'a Path) -> LocalBoxFuture<'a, CertificateDer<'static>>;

    /// Disturbs the services that the controllers depend on, if possible. Returns whether it did.
    fn disturb<'a>(&'a self, dice: &'a mut Dice) -> LocalBoxFuture<'a, bool>;

    /// Creates the Kubernetes Node object of a node and returns true, if the testbed has such
    /// objects. The deletion of that object deregisters the node.
    fn create_node_object<'a>(&'a self, node: &'a str) -> LocalBoxFuture<'a, bool>;

    /// Returns when the controllers have recorded that object.
    fn node_object_is_known<'a>(&'a self, node: &'a str) -> LocalBoxFuture<'a, ()>;

    /// Deletes that object and returns when the node is deregistered.
    fn delete_node_object<'a>(&'a self, node: &'a str) -> LocalBoxFuture<'a, ()>;

    /// Returns the segments that a node got by joining since `since`, in seconds since 1970-01-01
    /// UTC. `None` if each controller can list them. A controller cannot if its state may contain a
    /// node but not yet the release of the segments of an earlier node with this name.
    fn granted_on_join<'a>(&'a self, node: &'a str, since: i64) -> LocalBoxFuture<'a, Option<BTreeSet<IpNetwork>>>;

    /// Releases the segments that an interrupted controller may have left.
    fn release_leftovers(&self) -> LocalBoxFuture<'_, ()>;
}

/// The whole system under test.
pub(super) struct World<'a> {
    pub(super) testbed: &'a dyn Testbed,
    pub(super) model: Model,
    pub(super) ca: CertificateDer<'static>,
    replicas: Vec<Replica>,
    /// Number of requests that were sent.
    sent: AtomicUsize,
    over: AtomicBool,
}

/// One controller, running or not.
pub(super) struct Replica {
    program: Arc<Mutex<Program>>,
    socket: PathBuf,
    address: Mutex<SocketAddr>,
}

/// A disturbance of one controller.
enum Interruption {
    Killed,
    /// Killed, and killed again this time after its restart.
    KilledTwice(Duration),
    Stopped,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A time limit for retries.
pub(super) struct TimeLimit {
    what: String,
    since: Instant,
}

impl TimeLimit {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), since: Instant::now() }
    }

    /// Waits before the next attempt.
    pub(super) async fn pause(&self, last: impl std::fmt::Debug) {
        assert!(
            self.since.elapsed() < TIME_LIMIT,
            "waited {TIME_LIMIT:?} for {}; the last response: {last:?}",
            self.what
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Replica {
    fn new(testbed: &dyn Testbed) -> Self {
        let program = Program::with(&format!(
            "cluster_ranges = [\"10.77.0.0/23\", \"fd77::/119\"]\nv4_prefix = 28\nv6_prefix = 124\nmax_per_node = 1000\n\
             quarantine_seconds = {QUARANTINE}\n{}",
            testbed.config_tables()
        ));
        let (socket, address) = (program.path("run/admin.sock"), Mutex::new(program.addresses[0]));
        Self { program: Arc::new(Mutex::new(program)), socket, address }
    }

    pub(super) fn address(&self) -> SocketAddr {
        *lock(&self.address)
    }

    async fn with_program<T: Send + 'static>(&self, work: impl FnOnce(&mut Program) -> T + Send + 'static) -> T {
        let program = self.program.clone();
        tokio::task::spawn_blocking(move || work(&mut lock(&program))).await.unwrap()
    }

    /// Starts the controller. The services that it depends on may be unavailable at the moment,
    /// unless it is alone.
    async fn start(&self, alone: bool) {
        let limit = TimeLimit::new("a controller to start");
        while let Err(said) = self.with_program(Program::serves).await {
            assert!(!alone, "a controller does not start: {said}");
            limit.pause(said).await;
        }
        *lock(&self.address) = lock(&self.program).addresses[0];
    }
}

impl<'a> World<'a> {
    pub(super) async fn start(testbed: &'a dyn Testbed) -> Self {
        let replicas: Vec<Replica> = (0..testbed.replicas()).map(|_| Replica::new(testbed)).collect();
        join_all(replicas.iter().map(|replica| replica.start(true))).await;
        let state = lock(&replicas[0].program).path("state");
        let ca = testbed.ca_certificate(&state).await;
        let (model, sent, over) = (Model::default(), AtomicUsize::new(0), AtomicBool::new(false));
        Self { testbed, model, ca, replicas, sent, over }
    }

    /// Returns whether the state of one controller may be older than that of another.
    pub(super) fn lags(&self) -> bool {
        self.replicas.len() > 1
    }

    pub(super) fn any(&self, dice: &mut Dice) -> &Replica {
        &self.replicas[dice.below(self.replicas.len())]
    }

    /// Counts a request that is about to be sent.
    pub(super) fn sends(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Returns the last log lines of each controller.
    pub(super) fn words(&self) -> Box<dyn Fn() -> String> {
        let programs: Vec<_> = self.replicas.iter().map(|replica| replica.program.clone()).collect();
        Box::new(move || {
            let words = programs.iter().map(|program| match program.try_lock() {
                Ok(program) => program.last_words(60),
                Err(_) => "(it is being started or ended)".into(),
            });
            words.collect::<Vec<_>>().join("\n--\n")
        })
    }

    /// Sends a request as the operator.
    pub(super) async fn operator(
        &self,
        replica: &Replica,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> std::io::Result<HttpResponse> {
        self.sends();
        try_operator(&replica.socket, method, path, body).await
    }

    /// Disturbs until the history ends; afterwards all controllers run.
    pub(super) async fn disturb(&self, mut dice: Dice) {
        while !self.is_over() {
            // Disturbs while requests are in progress, and not when nothing happens.
            let next = self.sent.load(Ordering::Relaxed) + 1 + dice.below(40);
            while self.sent.load(Ordering::Relaxed) < next && !self.is_over() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(dice.below(4000) as u64)).await;
            if dice.percent(12) && self.testbed.disturb(&mut dice).await {
                self.model.count("disturbed");
                continue;
            }
            let replica = self.any(&mut dice);
            let interruption = match dice.below(10) {
                0 => Interruption::Stopped,
                1 => Interruption::KilledTwice(Duration::from_millis(dice.below(300) as u64)),
                _ => Interruption::Killed,
            };
            self.model.count(if matches!(interruption, Interruption::Stopped) { "stopped" } else { "killed" });
            replica.with_program(move |program| interruption.carry_out(program)).await;
            if self.lags() {
                // The remaining controllers run without it for a while.
                tokio::time::sleep(Duration::from_millis(dice.below(500) as u64)).await;
            }
            replica.start(!self.lags()).await;
        }
    }

    /// Returns the held segments according to a controller.
    async fn held_at(&self, replica: &Replica) -> BTreeMap<IpNetwork, String> {
        let (status, rows) = self.operator(replica, Method::GET, "/v1/segments", None).await.unwrap();
        assert_eq!(status, 200, "{rows}");
        let held = rows.as_array().unwrap().iter().filter(|row| row["state"] == "held");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        held.map(|row| (text(&row["segment"]).parse().unwrap(), text(&row["node"]))).collect()
    }

    /// Asserts that each controller's held segments are those that the nodes were granted, apart
    /// from segments that interrupted actions have left.
    pub(super) async fn compare(&self) {
        let model = self.model.held();
        for replica in &self.replicas {
            let limit = TimeLimit::new("what was told to be what is held");
            loop {
                let held = self.held_at(replica).await;
                let missing: Vec<_> = model.iter().filter(|(network, node)| held.get(network) != Some(node)).collect();
                if missing.is_empty() {
                    assert!(self.lags() || held == model, "held by nobody who knows: {held:?}, told: {model:?}");
                    break;
                }
                assert!(self.lags(), "lost: {missing:?}, held: {held:?}");
                limit.pause(missing).await;
            }
        }
    }

    pub(super) async fn nothing_is_held(&self) {
        for replica in &self.replicas {
            let limit = TimeLimit::new("everything to be released");
            loop {
                let held = self.held_at(replica).await;
                if held.is_empty() {
                    break;
                }
                assert!(self.lags(), "all nodes have left, and yet: {held:?}");
                limit.pause(held).await;
            }
        }
    }

    pub(super) async fn stop(&mut self) {
        for replica in &self.replicas {
            assert_eq!(replica.with_program(Program::stop).await, Some(0));
        }
    }
}

impl Interruption {
    fn carry_out(self, program: &mut Program) {
        match self {
            Interruption::Killed => program.kill(),
            Interruption::KilledTwice(after) => {
                program.kill();
                program.start_and_kill(after);
            }
            Interruption::Stopped => assert_eq!(program.stop(), Some(0)),
        }
    }
}
