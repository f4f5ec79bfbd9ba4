//! Random histories of a controller, held against a plain model of what it promises. The same on
//! every store.
//!
//! Nodes join, apply, repeat applications and leave, each by dice of its own and over the API;
//! meanwhile controllers, which are programs of their own, are killed wherever they are and started
//! again. A node that is not answered asks again, as agents do. Throughout, and at the end:
//!
//! - No address has two owners, and none gets another owner before its quarantine is over.
//! - What was granted is held until its node is deregistered, and nothing else is: an application
//!   that was repeated because its answer got lost was carried out once.
//! - Whoever repeats an application gets the same segments.
//! - When all have left, and the quarantines are over, every segment can be granted again.
//!
//! The dice are of a seed, which a failure tells and `EDGE_MODEL_SEED` sets. What programs do at
//! the same time is not of the dice: a seed brings back the questions and the kind of disturbance,
//! not each moment. `EDGE_MODEL_SECONDS` makes it last longer.
//!
//! - [`dice`]: chance, from a seed.
//! - [`model`]: what must hold.
//! - [`world`]: the controllers, and what happens to them.
//! - [`member`]: a node, and what it does.

mod dice;
mod member;
#[allow(clippy::module_inception, reason = "it is the model that the check is named after")]
mod model;
mod world;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;

pub(crate) use dice::Dice;
use member::Member;
pub(crate) use world::Ground;
use world::World;

/// Nodes at most at a time. The ranges are small enough to be exhausted by them now and then.
const NODES: u64 = 6;

/// Runs one history on a ground, for `normally` unless the environment says how long.
pub(crate) async fn check(ground: &dyn Ground, normally: Duration) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    #[expect(clippy::disallowed_methods, reason = "for a seed that differs between runs")]
    let chance = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::from(now.subsec_nanos()));
    let seed = number("EDGE_MODEL_SEED").unwrap_or_else(chance);
    let lasts = number("EDGE_MODEL_SECONDS").map_or(normally, Duration::from_secs);
    let mut world = World::start(ground).await;
    let _told = Told { seed, words: world.words() };
    let mut members: Vec<Member<'_>> =
        (0..NODES).map(|n| Member::new(&world, &format!("n{n}"), Dice::new(seed, n))).collect();
    let living = async {
        tokio::time::sleep(lasts).await;
        world.end();
    };
    let disturbing = world.disturb(Dice::new(seed, NODES));
    tokio::join!(join_all(members.iter_mut().map(Member::live)), disturbing, living);
    join_all(members.iter_mut().map(Member::settle)).await;
    world.compare().await;
    join_all(members.iter_mut().map(Member::leave)).await;
    drop(members);
    ground.tidy().await;
    world.nothing_is_held().await;
    Member::new(&world, "filler", Dice::new(seed, NODES + 1)).fill().await;
    world.model.assert_happened(&["killed", "granted", "granted anew", "asked once more", "left"]);
    println!("seed {seed}: {}", world.model.summary());
    world.stop().await;
}

/// Tells what is needed to look at a failure.
struct Told {
    seed: u64,
    words: Box<dyn Fn() -> String>,
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("EDGE_MODEL_SEED={}\n{}", self.seed, (self.words)());
        }
    }
}
