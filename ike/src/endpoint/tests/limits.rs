//! Tests how much state an authenticated peer can make an endpoint store.

use super::*;

#[test]
fn a_peer_that_begins_again_and_again_has_a_few_sas_at_once() {
    let mut pair = Pair::new().one_sided();
    // The peer does not send INITIAL_CONTACT.
    pair.configs[0].keep_existing = true;
    pair.start();
    for _ in 0..100 {
        pair.ends[0].endpoint = Endpoint::new(EndpointConfig::default());
        pair.configure(0);
        pair.run_for(Duration::from_millis(20));
        assert!(pair.ike_sas(1) <= 8 && pair.children(1) <= 16, "{} and {}", pair.ike_sas(1), pair.children(1));
    }
    pair.run_for(60 * SECOND);
    assert!(pair.is_connected());
}

#[test]
fn a_peer_that_rekeys_without_pause_has_a_few_inbound_sas_at_once() {
    let mut pair = Pair::new().one_sided();
    pair.start();
    let name = PeerName::new(NAMES[1]);
    for _ in 0..100 {
        pair.call(0, |endpoint, now, env| endpoint.rekey_children(&name, now, env));
        pair.run_for(Duration::from_millis(10));
        assert!(pair.children(1) <= 16, "{}", pair.children(1));
    }
    pair.run_for(60 * SECOND);
    assert!(pair.is_connected());
}
