//! Tests that all TCP connections of one host share the limits on unauthenticated initiators.

use super::strangers::{Init, Initiator, Victim, expensive, source, victim_with_modp};
use super::*;
use crate::wire::{Message, NotifyType};

impl Victim {
    /// A new connection of this host, as the address that stands for its other end.
    fn connection_of(&mut self, host: &str) -> SocketAddr {
        let connection = TcpConnectionId::new(self.host.tcp.len().try_into().unwrap());
        self.host.tcp.insert(connection, host.parse().unwrap());
        SocketAddr::new(connection.remote(), 4500)
    }
}

fn is_cookie(answer: &[u8]) -> bool {
    Message::decode(answer).unwrap().payloads.notify(NotifyType::Cookie).is_some()
}

#[test]
fn one_host_with_many_connections_does_not_take_all_places() {
    let hosts: [&dyn Fn(u16) -> String; 3] =
        [&|_| "198.51.100.1".into(), &|_| "::ffff:198.51.100.1".into(), &|host| format!("2001:db8:0:1::{host:x}")];
    for host in hosts {
        let mut victim = Victim::new();
        for number in 1..=5000 {
            let from = victim.connection_of(&host(number));
            victim.take_init(&Init::new(number.into()), from);
        }
        assert!(victim.half_open() < 128, "{}", victim.half_open());
        // Others are served: another host's connection, datagrams, and a connection whose host is
        // not known any more.
        let forgotten = SocketAddr::new(TcpConnectionId::new(u32::MAX).remote(), 4500);
        for from in
            [victim.connection_of("198.51.100.2"), victim.connection_of("2001:db8:0:2::1"), source(1), forgotten]
        {
            assert!(Initiator::begin(&mut victim, 7, from).unwrap().authenticate(&mut victim, 100).is_some(), "{from}");
        }
    }
}

#[test]
fn connections_of_unknown_hosts_count_as_one_host() {
    let mut victim = Victim::new();
    for number in 1..=5000 {
        victim.take_init(&Init::new(number.into()), SocketAddr::new(TcpConnectionId::new(number).remote(), 4500));
    }
    assert!(victim.half_open() < 128, "{}", victim.half_open());
}

#[test]
fn many_hosts_with_many_connections_keep_neither_a_stranger_nor_a_configured_address_out() {
    let mut victim = Victim::new();
    for number in 0..100_u16 {
        for connection in 0..64 {
            let from = victim.connection_of(&format!("2001:db8:1:{number:x}::1"));
            victim.take_init(&Init::new(u64::from(number) * 100 + connection + 1), from);
        }
    }
    assert_eq!(victim.half_open(), EndpointConfig::default().half_open_limit);
    for host in ["198.51.100.2", "192.0.2.1"] {
        let from = victim.connection_of(host);
        let mut initiator = Initiator::begin(&mut victim, 7, from).expect("it is answered");
        for number in 0..2000_u64 {
            let many = victim.connection_of(&format!("2001:db8:2:{number:x}::1"));
            victim.take_init(&Init::new(100_000 + number), many);
        }
        assert!(initiator.authenticate(&mut victim, 100).is_some(), "{host}");
    }
}

#[test]
fn answers_to_all_connections_of_a_host_have_one_limit() {
    let mut victim = Victim::with(EndpointConfig { cookie_threshold: 0, ..EndpointConfig::default() });
    let request = Init::new(1).encode(None);
    let answers = (0..1000).filter(|_| {
        let from = victim.connection_of("198.51.100.1");
        victim.take(&request, from).is_some()
    });
    assert_eq!(answers.count(), 256);
    let from = victim.connection_of("198.51.100.2");
    assert!(victim.take(&request, from).is_some(), "another host");
}

#[test]
fn refused_ike_auths_in_all_connections_of_a_host_have_one_limit() {
    let mut victim = Victim::new();
    let initiators: Vec<_> = (1..=60)
        .map(|spi| {
            let from = victim.connection_of("198.51.100.1");
            Initiator::begin(&mut victim, spi, from).unwrap()
        })
        .collect();
    let answered = initiators.into_iter().filter_map(|mut initiator| initiator.authenticate(&mut victim, 100));
    let answered = answered.count();
    assert!((8..=32).contains(&answered), "{answered} were looked at");
    let from = victim.connection_of("198.51.100.1");
    assert!(is_cookie(&victim.take(&Init::new(100).encode(None), from).unwrap()), "the next one needs a cookie");
    let other = victim.connection_of("198.51.100.2");
    assert!(Initiator::begin(&mut victim, 101, other).unwrap().authenticate(&mut victim, 100).is_some());
}

#[test]
fn expensive_key_exchanges_in_all_connections_of_a_host_have_one_limit() {
    let mut victim = victim_with_modp();
    let served = (1..=100).filter(|spi| {
        let from = victim.connection_of("198.51.100.1");
        victim.take_init(&expensive(*spi), from).is_some()
    });
    let served = served.count();
    assert!((8..=17).contains(&served), "{served} for one host");
    let other = victim.connection_of("198.51.100.2");
    assert!(victim.take_init(&expensive(200), other).is_some(), "another host");
}

#[test]
fn fragments_in_all_connections_of_a_host_are_given_up_before_those_of_others() {
    let mut victim = Victim::new();
    let honest = victim.connection_of("198.51.100.2");
    let mut honest = Initiator::begin(&mut victim, 10_000, honest).unwrap();
    let fragments = honest.fragments(3000);
    let (last, first) = fragments.split_last().unwrap();
    first.iter().for_each(|fragment| assert_eq!(victim.take(fragment, honest.from), None));
    // Each connection has fewer fragments than the honest initiator. Together they have too many.
    for spi in 1..=1800 {
        let from = victim.connection_of("198.51.100.1");
        if let Some(mut initiator) = Initiator::begin(&mut victim, spi, from) {
            initiator.begin_to_authenticate(&mut victim, 1500);
        }
    }
    assert!(victim.take(last, honest.from).is_some(), "an answer, although it is a refusal");
}

#[test]
fn forged_datagrams_use_up_nothing_of_a_hosts_connections() {
    let mut victim = Victim::with(EndpointConfig { cookie_threshold: 0, ..EndpointConfig::default() });
    let request = Init::new(1).encode(None);
    let forged: SocketAddr = "198.51.100.1:500".parse().unwrap();
    assert_eq!((0..1000).filter(|_| victim.take(&request, forged).is_some()).count(), 256);
    let from = victim.connection_of("198.51.100.1");
    assert!(Initiator::begin(&mut victim, 7, from).unwrap().authenticate(&mut victim, 100).is_some());
}
