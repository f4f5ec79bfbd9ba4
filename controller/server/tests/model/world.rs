//! The controllers, and what happens to them.

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
use crate::harness::{Answer, try_operator};
use crate::process::Program;

/// Segments of each family that there are.
pub(super) const CAPACITY: usize = 32;
/// Whatever is to come has come by then, or never does.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where controllers keep what they know, and what else is there.
pub(crate) trait Ground: Sync {
    /// How many controllers run at once.
    fn replicas(&self) -> usize;

    /// Further tables of their configuration.
    fn tables(&self) -> String;

    /// Of the authority that signs. `state`: the state directory of a controller.
    fn ca<'a>(&'a self, state: &'a Path) -> LocalBoxFuture<'a, CertificateDer<'static>>;

    /// Something happens to what the controllers stand on, if that is possible.
    fn shake<'a>(&'a self, dice: &'a mut Dice) -> LocalBoxFuture<'a, bool>;

    /// Gives a node an object by whose deletion it is deregistered, if there are such.
    fn bind<'a>(&'a self, node: &'a str) -> LocalBoxFuture<'a, bool>;

    /// Returns when the controllers know of that object.
    fn bound<'a>(&'a self, node: &'a str) -> LocalBoxFuture<'a, ()>;

    /// Deletes that object; returns when the node is deregistered.
    fn unbind<'a>(&'a self, node: &'a str) -> LocalBoxFuture<'a, ()>;

    /// What a node was given since a moment by joining, where controllers are no witnesses: one may
    /// know of a node already, and not yet of the release of what another node of its name held.
    fn given<'a>(&'a self, node: &'a str, since: i64) -> LocalBoxFuture<'a, Option<BTreeSet<IpNetwork>>>;

    /// Releases what is left over where a controller did not live to complete what it had begun.
    /// Where nothing ever is, nothing is to do.
    fn tidy(&self) -> LocalBoxFuture<'_, ()>;
}

/// All there is.
pub(super) struct World<'a> {
    pub(super) ground: &'a dyn Ground,
    pub(super) model: Model,
    pub(super) ca: CertificateDer<'static>,
    replicas: Vec<Replica>,
    /// Requests that were sent.
    sent: AtomicUsize,
    over: AtomicBool,
}

/// One controller, whether it runs or not.
pub(super) struct Replica {
    program: Arc<Mutex<Program>>,
    socket: PathBuf,
    address: Mutex<SocketAddr>,
}

/// What is done to one controller.
enum Fate {
    Killed,
    /// And once more so long after it was started.
    KilledTwice(Duration),
    Stopped,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks again until it has taken too long.
pub(super) struct Patience {
    what: String,
    since: Instant,
}

impl Patience {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), since: Instant::now() }
    }

    /// Waits before the next time.
    pub(super) async fn again(&self, last: impl std::fmt::Debug) {
        assert!(self.since.elapsed() < PATIENCE, "waited {PATIENCE:?} for {}; the last answer: {last:?}", self.what);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Replica {
    fn new(ground: &dyn Ground) -> Self {
        let program = Program::with(&format!(
            "cluster_ranges = [\"10.77.0.0/23\", \"fd77::/119\"]\nv4_prefix = 28\nv6_prefix = 124\nmax_per_node = 1000\n\
             quarantine_seconds = {QUARANTINE}\n{}",
            ground.tables()
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

    /// Starts it. What it stands on may be away just now, unless it stands on nothing else.
    async fn start(&self, alone: bool) {
        let patience = Patience::new("a controller to start");
        while let Err(said) = self.with_program(Program::serves).await {
            assert!(!alone, "a controller does not start: {said}");
            patience.again(said).await;
        }
        *lock(&self.address) = lock(&self.program).addresses[0];
    }
}

impl<'a> World<'a> {
    pub(super) async fn start(ground: &'a dyn Ground) -> Self {
        let replicas: Vec<Replica> = (0..ground.replicas()).map(|_| Replica::new(ground)).collect();
        join_all(replicas.iter().map(|replica| replica.start(true))).await;
        let state = lock(&replicas[0].program).path("state");
        let ca = ground.ca(&state).await;
        let (model, sent, over) = (Model::default(), AtomicUsize::new(0), AtomicBool::new(false));
        Self { ground, model, ca, replicas, sent, over }
    }

    /// One of several may not know yet what another one knows.
    pub(super) fn lags(&self) -> bool {
        self.replicas.len() > 1
    }

    pub(super) fn any(&self, dice: &mut Dice) -> &Replica {
        &self.replicas[dice.below(self.replicas.len())]
    }

    /// A request is about to be sent.
    pub(super) fn sends(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The last words of each controller.
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

    /// Asks as the operator does.
    pub(super) async fn operator(
        &self,
        replica: &Replica,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> std::io::Result<Answer> {
        self.sends();
        try_operator(&replica.socket, method, path, body).await
    }

    /// Disturbs until it is over; all controllers run then.
    pub(super) async fn disturb(&self, mut dice: Dice) {
        while !self.is_over() {
            // In the middle of what is going on, and not where nothing is.
            let next = self.sent.load(Ordering::Relaxed) + 1 + dice.below(40);
            while self.sent.load(Ordering::Relaxed) < next && !self.is_over() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(dice.below(4000) as u64)).await;
            if dice.percent(12) && self.ground.shake(&mut dice).await {
                self.model.count("shaken");
                continue;
            }
            let replica = self.any(&mut dice);
            let fate = match dice.below(10) {
                0 => Fate::Stopped,
                1 => Fate::KilledTwice(Duration::from_millis(dice.below(300) as u64)),
                _ => Fate::Killed,
            };
            self.model.count(if matches!(fate, Fate::Stopped) { "stopped" } else { "killed" });
            replica.with_program(move |program| fate.befall(program)).await;
            if self.lags() {
                // Those that are left go on by themselves for a while.
                tokio::time::sleep(Duration::from_millis(dice.below(500) as u64)).await;
            }
            replica.start(!self.lags()).await;
        }
    }

    /// Segments that a controller says are held.
    async fn held_at(&self, replica: &Replica) -> BTreeMap<IpNetwork, String> {
        let (status, rows) = self.operator(replica, Method::GET, "/v1/segments", None).await.unwrap();
        assert_eq!(status, 200, "{rows}");
        let held = rows.as_array().unwrap().iter().filter(|row| row["state"] == "held");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        held.map(|row| (text(&row["segment"]).parse().unwrap(), text(&row["node"]))).collect()
    }

    /// What every controller holds for held is what the nodes were told, and at most what is left
    /// over besides.
    pub(super) async fn compare(&self) {
        let model = self.model.held();
        for replica in &self.replicas {
            let patience = Patience::new("what was told to be what is held");
            loop {
                let held = self.held_at(replica).await;
                let missing: Vec<_> = model.iter().filter(|(network, node)| held.get(network) != Some(node)).collect();
                if missing.is_empty() {
                    assert!(self.lags() || held == model, "held by nobody who knows: {held:?}, told: {model:?}");
                    break;
                }
                assert!(self.lags(), "lost: {missing:?}, held: {held:?}");
                patience.again(missing).await;
            }
        }
    }

    pub(super) async fn nothing_is_held(&self) {
        for replica in &self.replicas {
            let patience = Patience::new("everything to be released");
            loop {
                let held = self.held_at(replica).await;
                if held.is_empty() {
                    break;
                }
                assert!(self.lags(), "all nodes have left, and yet: {held:?}");
                patience.again(held).await;
            }
        }
    }

    pub(super) async fn stop(&mut self) {
        for replica in &self.replicas {
            assert_eq!(replica.with_program(Program::stop).await, Some(0));
        }
    }
}

impl Fate {
    fn befall(self, program: &mut Program) {
        match self {
            Fate::Killed => program.kill(),
            Fate::KilledTwice(after) => {
                program.kill();
                program.start_and_kill(after);
            }
            Fate::Stopped => assert_eq!(program.stop(), Some(0)),
        }
    }
}
