//! Tests random simultaneous calls by many processes, some of which are killed, against a model.
//!
//! Each container has its own worker, which stores the container's interfaces and addresses. The
//! correct answer to each call follows from this data, independent of other workers. All workers
//! share the table of addresses, since no address may have two owners at any time.
//!
//! The test ends after `EDGE_CNI_CALLS` calls (2000), or after `EDGE_CNI_SECONDS` (120).
//! `EDGE_CNI_SEED` repeats the choice of calls, though not their order in time.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::process::Child;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::filter_table::table;
use crate::world::{PluginOutput, Pod, World, addresses, answer, path, start_in};

pub(crate) const TESTS: &[Test] = &[(
    "random_calls_of_fifty_processes_answer_as_the_model_says",
    random_calls_of_fifty_processes_answer_as_the_model_says,
)];

const WORKERS: usize = 50;

/// The interfaces of a container.
const INTERFACES: [&str; 2] = ["eth0", "net1"];

/// Maximum time after which a call is killed, in milliseconds. On an idle machine, most calls take
/// less time.
const LATEST_KILL: u64 = 40;

/// Container and interface.
type Attachment = (String, String);

/// The state that all workers share.
struct Shared {
    host: String,
    config: Value,
    calls: AtomicUsize,
    limit: usize,
    end: Instant,
    /// The owners of addresses. An owner is entered after its ADD, and removed before its DEL.
    owners: Mutex<BTreeMap<String, Attachment>>,
}

fn random_calls_of_fifty_processes_answer_as_the_model_says() {
    let world = World::new(&["10.77.3.0/24", "fd77:0:0:3::/120"]);
    let pods: Vec<Pod> = (0..WORKERS).map(|_| world.pod()).collect();
    let seed = from_environment("EDGE_CNI_SEED", u64::from(std::process::id()));
    let shared = Shared {
        host: world.host.clone(),
        config: world.config.borrow().clone(),
        calls: AtomicUsize::new(0),
        limit: from_environment("EDGE_CNI_CALLS", 2000),
        end: Instant::now() + Duration::from_secs(from_environment("EDGE_CNI_SECONDS", 120)),
        owners: Mutex::default(),
    };
    std::thread::scope(|scope| {
        let shared = &shared;
        let start = |(pod, seed)| scope.spawn(move || Worker::new(shared, pod, seed).run());
        let workers: Vec<_> = pods.iter().zip(seed..).map(start).collect();
        let failed = workers.into_iter().filter_map(|worker| worker.join().err()).count();
        assert_eq!(failed, 0, "workers failed with EDGE_CNI_SEED={seed}");
    });
    println!("{} calls, EDGE_CNI_SEED={seed}", shared.calls.load(Ordering::Relaxed));
    let owners = shared.owners.into_inner().unwrap();
    assert_eq!(leases(&world), owners);
    let mut attached: Vec<&Attachment> = owners.values().collect();
    attached.sort();
    attached.dedup();
    assert_eq!(world.ports().len(), attached.len());
    for (id, ifname) in attached {
        let pod = pods.iter().find(|pod| pod.id == *id).unwrap();
        let deleted = answer(start(&world.host, "DEL", pod, ifname, &world.config.borrow()));
        assert!(deleted.ok, "{}: {}", pod.id, deleted.json);
    }
    assert!(world.ports().is_empty() && leases(&world).is_empty());
    assert!(!table(&world).contains("elements"), "{}", table(&world));
}

/// Returns the leases by address, as `edge-cni leases` shows them.
fn leases(world: &World) -> BTreeMap<String, Attachment> {
    let file = world.folder.path().join("plugin.conf");
    std::fs::write(&file, world.config.borrow().to_string()).unwrap();
    let arguments = ["leases", "--json", file.to_str().unwrap()];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_edge-cni")).args(arguments).output().unwrap();
    let leases: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let by_address = leases.iter().flat_map(|lease| {
        let attachment = (text(&lease["container"]), text(&lease["interface"]));
        lease["addresses"].as_array().unwrap().iter().map(move |address| (text(address), attachment.clone()))
    });
    by_address.collect()
}

/// Reads the number in an environment variable.
pub(crate) fn from_environment<T: FromStr>(name: &str, default: T) -> T
where
    T::Err: Debug,
{
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|error| panic!("{name}: {error:?}")))
}

fn start(host: &str, verb: &str, pod: &Pod, ifname: &str, config: &Value) -> Child {
    let netns = path(pod);
    let variables =
        [("CNI_COMMAND", verb), ("CNI_CONTAINERID", &pod.id), ("CNI_NETNS", &netns), ("CNI_IFNAME", ifname)];
    start_in(host, Path::new(env!("CARGO_BIN_EXE_edge-cni")), &variables, config.to_string().as_bytes())
}

/// Returns whether a call failed because it did not get the lock in time on a busy machine.
fn is_busy(answer: &PluginOutput) -> bool {
    answer.json["msg"].as_str().is_some_and(|message| message.contains("another process has held"))
}

/// The calls for one container.
struct Worker<'a> {
    shared: &'a Shared,
    pod: &'a Pod,
    random: fastrand::Rng,
    /// Whether each interface is attached.
    attached: [bool; INTERFACES.len()],
    /// The result of the last ADD of each interface.
    results: [Option<Value>; INTERFACES.len()],
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, pod: &'a Pod, seed: u64) -> Self {
        Self {
            shared,
            pod,
            random: fastrand::Rng::with_seed(seed),
            attached: Default::default(),
            results: Default::default(),
        }
    }

    fn run(&mut self) {
        while self.shared.calls.fetch_add(1, Ordering::Relaxed) < self.shared.limit && Instant::now() < self.shared.end
        {
            let interface = self.random.usize(..INTERFACES.len());
            match self.random.u8(..20) {
                0 => self.status(interface),
                1..5 => self.check(interface),
                5 => self.del(interface),
                6 => self.add(interface),
                7..9 => self.kill(interface),
                _ if self.attached[interface] => self.del(interface),
                _ => self.add(interface),
            }
        }
    }

    fn status(&self, interface: usize) {
        let status = self.call("STATUS", interface, Value::Null);
        assert!(status.ok || is_busy(&status), "STATUS: {}", status.json);
    }

    fn add(&mut self, interface: usize) {
        let added = self.call("ADD", interface, Value::Null);
        if is_busy(&added) {
            // A DEL follows, as with a runtime.
            return self.del(interface);
        }
        if self.attached[interface] {
            assert_eq!(added.json["code"], 101, "{}: ADD of an attached interface: {}", self.pod.id, added.json);
            return;
        }
        assert!(added.ok, "{}: ADD: {}", self.pod.id, added.json);
        let mut owners = self.shared.owners.lock().unwrap();
        for address in addresses(&added.json) {
            let taken = owners.insert(address.clone(), self.attachment(interface));
            assert_eq!(taken, None, "{} got {address}, which has an owner", self.pod.id);
        }
        drop(owners);
        self.attached[interface] = true;
        self.results[interface] = Some(added.json);
    }

    fn del(&mut self, interface: usize) {
        self.forget(interface);
        let mut deleted = self.call("DEL", interface, Value::Null);
        while is_busy(&deleted) {
            deleted = self.call("DEL", interface, Value::Null);
        }
        assert!(deleted.ok && deleted.json == Value::Null, "{}: DEL: {}", self.pod.id, deleted.json);
    }

    fn check(&mut self, interface: usize) {
        let Some(result) = self.results[interface].clone() else { return };
        let checked = self.call("CHECK", interface, result);
        if is_busy(&checked) {
            return;
        }
        let code = if self.attached[interface] { Value::Null } else { json!(106) };
        assert_eq!(checked.json["code"], code, "{}: CHECK: {}", self.pod.id, checked.json);
    }

    /// Kills an ADD or a DEL. The effect of the killed call is unknown, so a DEL follows, as with a
    /// runtime.
    fn kill(&mut self, interface: usize) {
        let verb = if self.attached[interface] { "DEL" } else { "ADD" };
        self.forget(interface);
        let mut child = self.start(verb, interface, Value::Null);
        #[expect(clippy::disallowed_methods, reason = "it chooses the moment of a kill")]
        std::thread::sleep(Duration::from_millis(self.random.u64(..LATEST_KILL)));
        let _ = child.kill();
        child.wait().unwrap();
        self.del(interface);
    }

    fn forget(&mut self, interface: usize) {
        self.attached[interface] = false;
        let attachment = self.attachment(interface);
        self.shared.owners.lock().unwrap().retain(|_, owner| *owner != attachment);
    }

    fn attachment(&self, interface: usize) -> Attachment {
        (self.pod.id.clone(), INTERFACES[interface].to_owned())
    }

    fn call(&self, verb: &str, interface: usize, previous: Value) -> PluginOutput {
        answer(self.start(verb, interface, previous))
    }

    fn start(&self, verb: &str, interface: usize, previous: Value) -> Child {
        let mut config = self.shared.config.clone();
        config["cniVersion"] = json!("1.1.0");
        config["prevResult"] = previous;
        start(&self.shared.host, verb, self.pod, INTERFACES[interface], &config)
    }
}
