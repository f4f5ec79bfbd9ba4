//! Tests internal addresses by the configuration payload (RFC 7296 2.19, 3.15): our endpoint as
//! client and as gateway, and a hostile client.

use std::net::IpAddr;

use edge_ike::event::PeerErrorKind;
use edge_ike::{AddressAssignment, EndpointConfig, PeerConfig, PeerName};

use crate::foreign::{Foreign, Part, everything};
use crate::network::{LinkQuality, Nat, Network};
use crate::oracle::octets::{Message, exchange, payload};
use crate::peers::{PSK, Pair, Refused, SECOND, name, peer};

const CFG_REQUEST: u8 = 1;
const CFG_SET: u8 = 3;
const INTERNAL_IP4_ADDRESS: u16 = 1;
const INTERNAL_ADDRESS_FAILURE: u16 = 36;
const FAILED_CP_REQUIRED: u16 = 37;

fn pool(networks: &[&str]) -> AddressAssignment {
    AddressAssignment::Pool(networks.iter().map(|text| text.parse().unwrap()).collect())
}

/// The configuration of a client: it may get any address, and reaches the gateway's networks.
fn client(config: &mut PeerConfig) {
    config.address_assignment = AddressAssignment::Request;
    config.child.remote = vec!["10.2.0.0/16".parse().unwrap(), "fd02::/64".parse().unwrap()];
    config.force_encapsulation = false;
}

/// The configuration of a gateway for one of its clients.
fn gateway(config: &mut PeerConfig, networks: &[&str]) {
    config.address_assignment = pool(networks);
    config.child.remote = networks.iter().map(|text| text.parse().unwrap()).collect();
    config.child.local = vec!["10.2.0.0/16".parse().unwrap(), "fd02::/64".parse().unwrap()];
    config.initiate = false;
    config.remotes.clear();
    config.force_encapsulation = false;
}

fn pair(seed: u64, quality: LinkQuality, networks: &[&str]) -> Pair {
    let mut pair = Pair::new(seed, quality);
    client(&mut pair.a_config);
    gateway(&mut pair.b_config, networks);
    pair
}

/// Returns the internal addresses of the newest IKE SA with a peer.
fn internal(network: &Network, node: usize, peer: &PeerName) -> Vec<String> {
    let snapshot = network.nodes[node].endpoint.snapshot();
    let status = snapshot.into_iter().find(|status| status.name == *peer).expect("a configured peer");
    let newest = status.ike_sas.last().map(|sa| sa.details.internal_addresses.clone());
    newest.unwrap_or_default().iter().map(ToString::to_string).collect()
}

impl Pair {
    /// Checks that both ends know these internal addresses, and that the CHILD_SA has them as the
    /// client's selectors.
    fn assert_addresses(&self, addresses: &[&str]) {
        assert_eq!(internal(&self.network, self.a, &self.b_name), addresses, "{}", self.network.history());
        assert_eq!(internal(&self.network, self.b, &self.a_name), addresses, "{}", self.network.history());
        let selectors: Vec<_> = addresses.iter().map(|text| text.parse::<IpAddr>().unwrap().into()).collect();
        let outbound = |node: usize, peer: &PeerName| {
            self.network.nodes[node].host.kernel.tunnels[peer].sole_outbound().expect("a CHILD_SA").clone()
        };
        assert_eq!(outbound(self.a, &self.b_name).local_selectors, selectors);
        assert_eq!(outbound(self.b, &self.a_name).remote_selectors, selectors);
        self.assert_connected();
    }
}

#[test]
pub fn a_client_keeps_its_address_through_all_rekeys_and_a_new_authentication() {
    //= RFC 7296 2.19 MUST 1: the client asks in IKE_AUTH
    //= RFC 7296 2.19 MUST 3: CP is in the message with SA
    //= RFC 7296 2.19 MUST 4: an address is asked for
    for seed in 0..4 {
        let mut pair = pair(seed, LinkQuality::REORDERING, &["10.9.0.0/24", "fd09::/64"]);
        pair.start();
        pair.traffic(10 * SECOND);
        pair.assert_addresses(&["10.9.0.1", "fd09::1"]);
        for (node, peer) in [(pair.a, pair.b_name.clone()), (pair.b, pair.a_name.clone())] {
            assert!(pair.network.call(node, |endpoint, now, env| endpoint.rekey_children(&peer, now, env)));
            pair.traffic(10 * SECOND);
            assert!(pair.network.call(node, |endpoint, now, env| endpoint.rekey_ike(&peer, now, env)));
            pair.traffic(10 * SECOND);
            assert!(pair.network.call(node, |endpoint, now, env| endpoint.rekey_children(&peer, now, env)));
            pair.traffic(10 * SECOND);
            pair.assert_addresses(&["10.9.0.1", "fd09::1"]);
        }
        let b_name = pair.b_name.clone();
        assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&b_name, now, env)));
        pair.traffic(20 * SECOND);
        pair.assert_addresses(&["10.9.0.1", "fd09::1"]);
    }
}

#[test]
fn a_gateway_without_a_pool_says_that_the_client_asks_for_an_address() {
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]).one_sided();
    pair.b_config.address_assignment = AddressAssignment::Off;
    pair.start();
    pair.network.run_for(20 * SECOND);
    let not_served = pair.network.nodes[pair.b].not_served();
    assert!(!not_served.is_empty() && not_served.iter().all(|not_served| not_served.internal_address));
    let sentences: Vec<_> = not_served[0].sentences().collect();
    assert!(matches!(sentences[..], [sentence] if sentence.contains("address_pool")), "{sentences:?}");

    // If there is no CHILD_SA, the missing address may be the reason.
    pair = self::pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]).one_sided();
    pair.b_config.address_assignment = AddressAssignment::Off;
    pair.b_config.child.local = vec!["10.7.0.0/16".parse().unwrap()];
    let Refused { b, .. } = pair.refused();
    b.is(PeerErrorKind::TrafficSelectors, &["do not fit", "asks for an internal address", "address_pool"]);
}

#[test]
fn a_client_gets_the_same_address_again_also_from_a_gateway_that_has_restarted() {
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]);
    let other = "somebody.example";
    // Another client was there first, so the address is not the first one of the pool.
    let mut config = peer("b.example", other, &[]);
    gateway(&mut config, &["10.9.0.0/24"]);
    let c = pair.network.add("10.0.0.3", None);
    pair.network.call(pair.b, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    let mut config = peer(other, "b.example", &["10.0.0.2"]);
    client(&mut config);
    pair.network.call(c, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    pair.network.run_for(5 * SECOND);
    pair.start();
    pair.network.run_for(5 * SECOND);
    assert_eq!(internal(&pair.network, c, &pair.b_name), ["10.9.0.1"]);
    assert_eq!(internal(&pair.network, pair.a, &pair.b_name), ["10.9.0.2"]);

    let b_name = pair.b_name.clone();
    pair.network.call(c, |endpoint, now, env| endpoint.remove_peer(&b_name, now, env));
    pair.network.restart(pair.b);
    pair.start_b();
    pair.network.run_for(60 * SECOND);
    assert_eq!(internal(&pair.network, pair.a, &pair.b_name), ["10.9.0.2"], "{}", pair.network.history());
    assert_eq!(internal(&pair.network, pair.b, &pair.a_name), ["10.9.0.2"]);
}

/// Restarts both ends of [`pair`], whose client had another address than the first one of the pool.
/// Returns the client's address, if an owner restores it at the client or at the gateway.
fn after_a_restart_of_both_ends(at_client: bool, at_gateway: bool) -> String {
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]);
    let (former, a_name, b_name) = (["10.9.0.7".parse().unwrap()], pair.a_name.clone(), pair.b_name.clone());
    if at_client {
        pair.network.call(pair.a, |endpoint, _, _| endpoint.restore_internal_addresses(&b_name, &former));
    }
    if at_gateway {
        pair.network.call(pair.b, |endpoint, _, _| endpoint.restore_internal_addresses(&a_name, &former));
    }
    pair.start();
    pair.traffic(10 * SECOND);
    // What was restored has no effect on a peer that exists.
    let other = ["10.9.0.99".parse().unwrap()];
    pair.network.call(pair.a, |endpoint, _, _| endpoint.restore_internal_addresses(&b_name, &other));
    assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&b_name, now, env)));
    pair.traffic(20 * SECOND);
    let addresses = internal(&pair.network, pair.a, &pair.b_name).join(",");
    pair.assert_addresses(&[&addresses]);
    addresses
}

#[test]
fn a_client_has_its_address_again_if_either_end_knows_it_from_before_a_restart_of_both() {
    assert_eq!(after_a_restart_of_both_ends(false, false), "10.9.0.1");
    assert_eq!(after_a_restart_of_both_ends(true, false), "10.9.0.7");
    assert_eq!(after_a_restart_of_both_ends(false, true), "10.9.0.7");
    assert_eq!(after_a_restart_of_both_ends(true, true), "10.9.0.7");
}

#[test]
fn a_gateway_that_knows_its_clients_from_before_a_restart_gives_nobody_elses_address_away() {
    let mut network = Network::new(1, LinkQuality::RELIABLE);
    let hub = network.add("10.0.0.1", None);
    let hub_name = name("hub.example");
    let clients = [("c1.example", "10.9.0.2"), ("c2.example", "10.9.0.1")];
    for (them, former) in clients {
        let mut config = peer("hub.example", them, &[]);
        gateway(&mut config, &["10.9.0.0/24"]);
        let former = [former.parse().unwrap()];
        network.call(hub, |endpoint, now, env| {
            endpoint.restore_internal_addresses(&config.name, &former);
            endpoint.set_peer(config, now, env).unwrap();
        });
    }
    for (number, (us, former)) in clients.iter().enumerate() {
        let node = network.add(&format!("10.0.0.{}", number + 2), None::<Nat>);
        let mut config = peer(us, "hub.example", &["10.0.0.1"]);
        client(&mut config);
        network.call(node, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
        network.run_for(5 * SECOND);
        assert_eq!(internal(&network, node, &hub_name), [*former]);
    }
}

#[test]
pub fn the_clients_of_one_pool_have_different_addresses_and_the_last_one_waits_for_a_free_one() {
    let mut network = Network::new(1, LinkQuality::RELIABLE);
    let hub = network.add("10.0.0.1", None);
    let clients = ["c1.example", "c2.example", "c3.example"];
    for them in clients {
        let mut config = peer("hub.example", them, &[]);
        // Two addresses besides the network's own one and broadcast.
        gateway(&mut config, &["10.9.0.0/30"]);
        network.call(hub, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    }
    let hub_name = name("hub.example");
    for (number, us) in clients.iter().enumerate() {
        let node = network.add(&format!("10.0.0.{}", number + 2), None::<Nat>);
        let mut config = peer(us, "hub.example", &["10.0.0.1"]);
        client(&mut config);
        network.call(node, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
        network.run_for(5 * SECOND);
    }
    let addresses = |network: &Network| [1, 2, 3].map(|node| internal(network, node, &hub_name).join(","));
    assert_eq!(addresses(&network), ["10.9.0.1", "10.9.0.2", ""]);
    // Both ends say why.
    let last_error = |node: usize, peer: &str| {
        let snapshot = network.nodes[node].endpoint.snapshot();
        snapshot.into_iter().find(|status| status.name == name(peer)).unwrap().last_error.expect("an error")
    };
    for (error, words) in [
        (last_error(3, "hub.example"), &["IKE_AUTH", "INTERNAL_ADDRESS_FAILURE"][..]),
        (last_error(hub, "c3.example"), &["IKE_AUTH", "address_pool", "10.9.0.0/30", "none left"]),
    ] {
        assert_eq!(error.kind, PeerErrorKind::InternalAddress, "{error}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    }
    network.call(1, |endpoint, now, env| endpoint.remove_peer(&hub_name, now, env));
    network.run_for(30 * SECOND);
    let snapshot = network.nodes[3].endpoint.snapshot();
    assert_eq!(snapshot[0].last_error, None, "{}", network.history());
    assert_eq!(internal(&network, 3, &hub_name), ["10.9.0.1"]);
}

#[test]
fn a_client_that_accepts_other_addresses_than_the_pool_has_is_told_so_at_both_ends() {
    // A gateway that keeps to the RFC narrows the client's selectors to the address, so it refuses.
    // `edge_ike::sa::internal_address` has the test of a gateway that does not.
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]);
    pair.a_config.child.local = vec!["10.77.0.0/16".parse().unwrap()];
    let refused = pair.refused();
    refused.a.is(PeerErrorKind::TrafficSelectors, &["IKE_AUTH", "10.77.0.0/16"]);
    refused.b.is(PeerErrorKind::TrafficSelectors, &["IKE_AUTH", "10.9.0.1"]);
}

#[test]
fn a_client_whose_gateway_has_no_pool_for_it_says_what_is_missing() {
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]);
    pair.b_config.address_assignment = AddressAssignment::Off;
    pair.refused().a.is(PeerErrorKind::InternalAddress, &["IKE_AUTH", "gave none", "pool"]);
}

#[test]
fn a_client_does_not_let_the_gateway_begin() {
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]);
    pair.a_config.initiate = false;
    pair.b_config.initiate = true;
    pair.b_config.address_assignment = AddressAssignment::Off;
    pair.b_config.remotes = vec!["10.0.0.1:500".parse().unwrap()];
    pair.start();
    pair.network.run_for(20 * SECOND);
    let errors = pair.network.nodes[pair.a].errors();
    assert_eq!(errors.first(), Some(&PeerErrorKind::InternalAddress), "{}", pair.network.history());
    assert!(pair.network.nodes[pair.a].host.kernel.tunnels.values().all(|tunnel| tunnel.sole_outbound().is_none()));
}

#[test]
fn a_pool_that_no_longer_has_the_clients_address_gives_it_another_one() {
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]);
    pair.start();
    pair.network.run_for(5 * SECOND);
    pair.assert_addresses(&["10.9.0.1"]);
    gateway(&mut pair.b_config, &["10.10.0.0/24"]);
    pair.start_b();
    // The client does not know of the change, so the gateway ends the IKE SA after a while.
    pair.network.run_for(3600 * SECOND);
    pair.assert_addresses(&["10.10.0.1"]);
}

#[test]
fn a_pool_that_still_has_the_clients_address_takes_nothing_from_the_client() {
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]);
    pair.start();
    pair.network.run_for(5 * SECOND);
    let ike = |pair: &Pair| pair.network.nodes[pair.b].endpoint.snapshot()[0].ike_sas.last().map(|sa| sa.ike);
    let before = ike(&pair);
    gateway(&mut pair.b_config, &["10.9.0.0/24", "10.10.0.0/24"]);
    pair.start_b();
    pair.network.run_for(3600 * SECOND);
    pair.assert_addresses(&["10.9.0.1"]);
    assert_eq!(ike(&pair), before, "{}", pair.network.history());
    assert!(pair.network.nodes[pair.b].errors().is_empty());
}

#[test]
fn a_gateway_leaves_new_authentications_to_its_client() {
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.9.0.0/24"]);
    // The gateway would be the first one to want a new authentication.
    pair.b_config.timing.authentication_lifetime = std::time::Duration::from_secs(600);
    pair.a_config.timing.authentication_lifetime = std::time::Duration::from_secs(800);
    pair.start();
    pair.network.run_for(5 * SECOND);
    let a_name = pair.a_name.clone();
    assert!(!pair.network.call(pair.b, |endpoint, now, env| endpoint.reauthenticate(&a_name, now, env)));
    for _ in 0..10 {
        pair.traffic(600 * SECOND);
        pair.assert_addresses(&["10.9.0.1"]);
    }
    for node in [pair.a, pair.b] {
        assert!(pair.network.nodes[node].errors().is_empty(), "{}", pair.network.history());
    }
}

#[test]
fn a_client_refuses_an_address_that_it_has_already() {
    let mut pair = pair(1, LinkQuality::RELIABLE, &["10.0.0.1/32"]);
    pair.start();
    pair.network.run_for(5 * SECOND);
    let errors = pair.network.nodes[pair.a].reported_errors();
    let expected = ["10.0.0.1", "this node has it already"];
    let found = errors.iter().any(|error| expected.iter().all(|word| error.to_string().contains(word)));
    assert!(found, "{errors:?}");
    assert!(pair.network.nodes[pair.a].host.kernel.tunnels.values().all(|tunnel| tunnel.sole_outbound().is_none()));
}

/// A client that the test controls, and the payloads that it adds before SA.
fn hostile(parts: &[Part]) -> (Foreign, Message) {
    let change = |config: &mut PeerConfig| gateway(config, &["10.9.0.0/24"]);
    let mut foreign = Foreign::with(1, EndpointConfig::default(), change);
    let response = foreign.authenticate_with(PSK, |payloads| {
        let sa = payloads.iter().position(|part| part.0 == payload::SA).unwrap();
        payloads.splice(sa..sa, parts.iter().cloned());
    });
    (foreign, response)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().as_slice(), &(value.len() as u16).to_be_bytes(), value].concat()
}

fn configuration(kind: u8, attributes: &[Vec<u8>]) -> Part {
    (payload::CONFIGURATION, [[kind, 0xff, 0xff, 0xff].as_slice(), &attributes.concat()].concat())
}

/// A CFG_REQUEST for any IPv4 address.
fn any_ipv4() -> Part {
    configuration(CFG_REQUEST, &[attribute(INTERNAL_IP4_ADDRESS, &[])])
}

/// The IPv4 address that a response gives.
fn given(response: &Message) -> Option<Vec<u8>> {
    let body = response.find(payload::CONFIGURATION)?;
    assert_eq!(body[..4], [2, 0, 0, 0], "CFG_REPLY");
    assert_eq!(body[4..8], [0, 1, 0, 4], "one IPv4 address, and nothing else");
    assert_eq!(body.len(), 12);
    Some(body[8..].to_vec())
}

#[test]
pub fn a_client_that_asks_for_nothing_gets_no_child_sa_and_learns_why() {
    //= RFC 7296 2.19 MUST 6: FAILED_CP_REQUIRED
    //= RFC 7296 2.19 MUST NOT 5: no CFG_REPLY without CFG_REQUEST
    let set = configuration(CFG_SET, &[attribute(INTERNAL_IP4_ADDRESS, &[10, 9, 0, 7])]);
    let nothing = configuration(CFG_REQUEST, &[attribute(3, &[])]);
    let other = configuration(77, &[attribute(INTERNAL_IP4_ADDRESS, &[])]);
    for parts in [&[][..], &[set], &[nothing], &[other], &[configuration(CFG_REQUEST, &[])]] {
        let (foreign, response) = hostile(parts);
        assert_eq!(response.error(), Some(FAILED_CP_REQUIRED), "{parts:?}");
        assert!(response.find(payload::AUTH).is_some(), "the IKE SA is up: {response:?}");
        assert_eq!((response.find(payload::SA), given(&response)), (None, None));
        let error = foreign.network.nodes[0].errors();
        assert_eq!(error, [PeerErrorKind::InternalAddress]);
    }
}

#[test]
fn whatever_else_a_client_asks_for_it_gets_one_address() {
    //= RFC 7296 1.7 MUST 1: attribute type 5 is ignored
    //= RFC 7296 3.15 MUST 2: RESERVED is ignored
    //= RFC 7296 3.15.1 MUST 2: the reserved bit is ignored
    //= RFC 7296 3.15.1 MUST 5: unknown attributes are ignored
    let wish = |address: &[u8]| attribute(INTERNAL_IP4_ADDRESS, address);
    let huge: Vec<Vec<u8>> = (0..2_000).map(|number| attribute(100 + number, &[7; 4])).collect();
    let huge = [vec![wish(&[])], huge].concat();
    let reserved = attribute(INTERNAL_IP4_ADDRESS | 0x8000, &[]);
    let twice = [wish(&[]), wish(&[10, 9, 0, 9])];
    let cases: [(Vec<Part>, [u8; 4]); 8] = [
        (vec![any_ipv4()], [10, 9, 0, 1]),
        (vec![configuration(CFG_REQUEST, &[wish(&[10, 9, 0, 77])])], [10, 9, 0, 77]),
        (vec![configuration(CFG_REQUEST, &[wish(&[10, 2, 0, 77])])], [10, 9, 0, 1]),
        (vec![configuration(CFG_REQUEST, &[wish(&[10, 9])])], [10, 9, 0, 1]),
        (vec![configuration(CFG_REQUEST, &[attribute(5, &[1; 4]), reserved, attribute(3, &[])])], [10, 9, 0, 1]),
        (vec![configuration(CFG_REQUEST, &twice)], [10, 9, 0, 1]),
        (vec![any_ipv4(), configuration(CFG_REQUEST, &[wish(&[10, 9, 0, 9])])], [10, 9, 0, 1]),
        (vec![configuration(CFG_REQUEST, &huge)], [10, 9, 0, 1]),
    ];
    for (parts, address) in cases {
        let (foreign, response) = hostile(&parts);
        assert_eq!(given(&response), Some(address.to_vec()), "{response:?}");
        let [selector] = &response.selectors(payload::TS_INITIATOR)[..] else { panic!("{response:?}") };
        assert_eq!(selector.addresses, (address.into(), address.into()));
        assert_eq!(internal(&foreign.network, 0, &foreign.config.name), [IpAddr::from(address).to_string()]);
    }
}

#[test]
fn a_family_that_the_pool_lacks_is_an_internal_address_failure() {
    let ipv6 = configuration(CFG_REQUEST, &[attribute(8, &[])]);
    let (foreign, response) = hostile(&[ipv6]);
    assert_eq!(response.error(), Some(INTERNAL_ADDRESS_FAILURE));
    let errors = foreign.network.nodes[0].reported_errors();
    assert!(errors[0].to_string().contains("IPv6 address"), "{errors:?}");
    let both = configuration(CFG_REQUEST, &[attribute(8, &[]), attribute(INTERNAL_IP4_ADDRESS, &[])]);
    let (_, response) = hostile(&[both]);
    assert_eq!(given(&response), Some(vec![10, 9, 0, 1]));
}

#[test]
fn a_mutilated_configuration_payload_is_refused() {
    for body in [&[][..], &[1, 0, 0], &[1, 0, 0, 0, 0], &[1, 0, 0, 0, 0, 1, 0], &[1, 0, 0, 0, 0, 1, 0, 4, 10, 9, 0]] {
        let (foreign, response) = hostile(&[(payload::CONFIGURATION, body.to_vec())]);
        assert_eq!(response.error(), Some(7), "INVALID_SYNTAX to {body:?}");
        assert!(foreign.network.nodes[0].endpoint.snapshot().iter().all(|peer| peer.ike_sas.is_empty()));
    }
}

#[test]
fn a_request_in_another_exchange_changes_nothing() {
    //= RFC 7296 2.20 MUST 1: no version
    let (mut foreign, response) = hostile(&[any_ipv4()]);
    assert_eq!(given(&response), Some(vec![10, 9, 0, 1]));
    foreign.child.1 = response.proposals()[0].spi32();
    let mut parts = vec![configuration(CFG_REQUEST, &[attribute(INTERNAL_IP4_ADDRESS, &[10, 9, 0, 55])])];
    parts.extend(Foreign::rekey_parts(foreign.child.0, 0xf002));
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &parts);
    let answer = answers.iter().find(|message| message.header.response()).unwrap();
    assert_eq!(answer.find(payload::CONFIGURATION), None);
    let [selector] = &answer.selectors(payload::TS_INITIATOR)[..] else { panic!("{answer:?}") };
    assert_eq!(selector.addresses.0, IpAddr::from([10, 9, 0, 1]));
    // Traffic from another address of the pool is not let in by another CHILD_SA either.
    let network = [[1, 0, 0, 0].as_slice(), &[7, 0, 0, 16, 0, 0, 255, 255], &[10, 9, 0, 2], &[10, 9, 0, 9]].concat();
    let parts = [
        Foreign::child_parts(0xf003, [3; 32])[..2].to_vec(),
        vec![(payload::TS_INITIATOR, network), everything(payload::TS_RESPONDER)],
    ]
    .concat();
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &parts);
    let answer = answers.iter().find(|message| message.header.response()).unwrap();
    assert_eq!(answer.error(), Some(38), "TS_UNACCEPTABLE: {answer:?}");
    for body in [[CFG_REQUEST, 0, 0, 0], [CFG_SET, 0, 0, 0]] {
        let answers = foreign.request(exchange::INFORMATIONAL, &[(payload::CONFIGURATION, body.to_vec())]);
        let answer = answers.iter().find(|message| message.header.response()).unwrap();
        assert_eq!(answer.payloads, []);
    }
    assert_eq!(internal(&foreign.network, 0, &foreign.config.name), ["10.9.0.1"]);
}
