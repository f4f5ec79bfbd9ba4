//! Coming up: one end begins, or both at once.

use crate::peers::{Pair, SECOND};
use crate::world::Weather;

#[test]
fn a_tunnel_comes_up_with_a_pre_shared_key() {
    let mut pair = Pair::new(1, Weather::FAIR).one_sided();
    pair.start();
    pair.world.run_for(SECOND);
    pair.assert_connected();
    assert!(pair.world.nodes[pair.a].errors().is_empty());
    assert!(pair.world.nodes[pair.b].errors().is_empty());
}

#[test]
fn a_tunnel_comes_up_through_loss_and_reordering() {
    for seed in 0..100 {
        let mut pair = Pair::new(seed, Weather::STORM).one_sided();
        pair.start();
        pair.world.run_for(30 * SECOND);
        pair.world.weather = Weather::FAIR;
        pair.world.run_for(30 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn both_ends_starting_at_once_end_with_one_ike_sa_and_no_gap() {
    for seed in 0..300 {
        let mut pair = Pair::new(seed, Weather::WINDY);
        pair.start_b();
        let head_start = std::time::Duration::from_millis(pair.world.random.below(400));
        pair.traffic(head_start);
        pair.start_a();
        pair.traffic(25 * SECOND);
        pair.assert_connected();
    }
}
