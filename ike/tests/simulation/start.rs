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
