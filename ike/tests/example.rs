//! Tests that the example works as documented.

#[allow(dead_code)]
#[path = "../examples/loopback.rs"]
mod loopback;

#[test]
fn the_loopback_example_brings_up_a_tunnel_with_the_same_keys_at_both_ends() {
    let [left, right] = loopback::run().expect("the tunnel comes up");
    let (left, right) = (left.child, right.child);
    assert_eq!((left.outbound_spi, left.inbound_spi), (right.inbound_spi, right.outbound_spi));
    assert!(left.outbound_key == right.inbound_key && left.inbound_key == right.outbound_key);
    assert_eq!((left.local, left.remote), (right.remote, right.local));
}
