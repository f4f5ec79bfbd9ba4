//! Runs random histories (sequences of operations) on a controller and compares the results with a
//! simple model of the controller's guarantees. The model is the same for every store.
//!
//! Nodes join, request segments, repeat their requests and are deregistered, each according to its
//! own random numbers ("dice") and over the API. Meanwhile controllers, which are separate
//! programs, are killed at any moment and started again. A node without a response repeats its
//! request, as agents do. Throughout, and at the end:
//!
//! - No address belongs to two nodes, and no address passes to another node before its quarantine
//!   is over.
//! - A granted segment is held until its node is deregistered, and nothing else is held: a
//!   segment request that is repeated because its response was lost is carried out once.
//! - A node that repeats a segment request gets the same segments.
//! - When all nodes are deregistered, and the quarantines are over, every segment can be granted
//!   again.
//!
//! The dice come from a seed, which a failure prints and `EDGE_MODEL_SEED` sets. The timing of
//! concurrent programs does not come from the dice: a seed reproduces the requests and the kinds of
//! disturbance, not their exact moments. `EDGE_MODEL_SECONDS` makes a history longer.
//!
//! - [`dice`]: generates random numbers from a seed.
//! - [`model`]: checks the conditions that must hold.
//! - [`world`]: runs and disturbs the controllers.
//! - [`member`]: simulates a node and its actions.

mod dice;
mod member;
#[allow(clippy::module_inception, reason = "it is the model that the check is named after")]
mod model;
mod world;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;

pub(crate) use dice::Dice;
use member::Member;
pub(crate) use world::Testbed;
use world::{TimeLimit, World};

/// Maximum number of nodes at a time. They sometimes exhaust the ranges.
const NODES: u64 = 6;

/// Events that occur in every history. A history without them proves nothing.
const EVENTS: [&str; 5] = ["killed", "granted", "granted anew", "asked once more", "left"];

/// Runs one history on this testbed. It lasts for the time `normally`, unless the environment sets
/// another time, and continues until all [`EVENTS`] have occurred.
pub(crate) async fn check(testbed: &dyn Testbed, normally: Duration) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    #[expect(clippy::disallowed_methods, reason = "for a seed that differs between runs")]
    let chance = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::from(now.subsec_nanos()));
    let seed = number("EDGE_MODEL_SEED").unwrap_or_else(chance);
    let lasts = number("EDGE_MODEL_SECONDS").map_or(normally, Duration::from_secs);
    let mut world = World::start(testbed).await;
    let _told = FailureReport { seed, words: world.words() };
    let mut members: Vec<Member<'_>> =
        (0..NODES).map(|n| Member::new(&world, &format!("n{n}"), Dice::new(seed, n))).collect();
    let living = async {
        tokio::time::sleep(lasts).await;
        // A slow machine, or rare dice, may need longer.
        let limit = TimeLimit::new("every kind of event to happen");
        while let missing = world.model.missing(&EVENTS)
            && !missing.is_empty()
        {
            limit.pause(missing).await;
        }
        world.end();
    };
    let disturbing = world.disturb(Dice::new(seed, NODES));
    tokio::join!(join_all(members.iter_mut().map(Member::live)), disturbing, living);
    join_all(members.iter_mut().map(Member::settle)).await;
    world.compare().await;
    join_all(members.iter_mut().map(Member::leave)).await;
    drop(members);
    testbed.release_leftovers().await;
    world.nothing_is_held().await;
    Member::new(&world, "filler", Dice::new(seed, NODES + 1)).fill().await;
    println!("seed {seed}: {}", world.model.summary());
    world.stop().await;
}

/// A report with the data that is needed to examine a failure. The report is printed if this value
/// is dropped while the thread panics.
struct FailureReport {
    seed: u64,
    words: Box<dyn Fn() -> String>,
}

impl Drop for FailureReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("EDGE_MODEL_SEED={}\n{}", self.seed, (self.words)());
        }
    }
}
