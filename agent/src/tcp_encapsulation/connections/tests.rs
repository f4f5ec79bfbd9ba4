use tokio::net::TcpListener;

use super::*;
use crate::tcp_encapsulation::{Action, Fallback};

fn at(seconds: u64) -> Instant {
    Instant::new(Duration::from_secs(seconds))
}

fn from(remote: &str, port: u16) -> Ends {
    Ends { local: "192.0.2.1:4500".parse().unwrap(), remote: SocketAddr::new(remote.parse().unwrap(), port) }
}

fn accept(connections: &Connections, remote: &str, port: u16) -> TcpConnectionId {
    connections.add(from(remote, port), ConnectionKind::Accepted, at(0)).unwrap()
}

fn is_open(connections: &Connections, id: TcpConnectionId) -> bool {
    connections.table().open.contains_key(&id)
}

#[test]
fn strangers_of_one_source_make_room_for_each_other_and_for_no_member() {
    let connections = Connections::new(4500);
    let member = accept(&connections, "2001:db8::1", 1);
    connections.authenticated(member, &member_of(member));
    let neighbour = accept(&connections, "2001:db8:0:1::1", 1);
    let first = accept(&connections, "2001:db8::2", 1);
    for port in 0..40_000 {
        accept(&connections, &format!("2001:db8::{:x}", port % 7 + 3), port);
    }
    assert!(is_open(&connections, member) && is_open(&connections, neighbour) && !is_open(&connections, first));
    assert_eq!(connections.table().open.len(), 2 + MAX_WITHOUT_PREFIX_OF_SOURCE);
    assert_eq!(connections.ends(member), Some(from("2001:db8::1", 1)));
}

#[test]
fn strangers_of_many_sources_never_have_more_than_their_share_and_close_no_member() {
    let connections = Connections::new(4500);
    let members: Vec<_> = (0..100).map(|port| accept_member(&connections, port)).collect();
    for number in 0..2_000_u32 {
        accept(&connections, &format!("203.{}.{}.1", number >> 8, number & 255), 7);
    }
    assert_eq!(connections.table().open.len(), members.len() + MAX_UNAUTHENTICATED);
    assert!(members.iter().all(|member| is_open(&connections, *member)));
    // The addresses of few closed connections are remembered.
    assert_eq!(connections.table().closed.len(), MAX_CLOSED);
}

#[test]
fn the_sources_of_one_network_together_use_up_only_its_part_of_the_accept_rate() {
    let connections = Connections::new(4500);
    let accepted = |remotes: &mut dyn Iterator<Item = String>| {
        let remotes = remotes.map(|remote| SocketAddr::new(remote.parse().unwrap(), 7));
        remotes.filter(|remote| connections.admit(*remote, at(0)) == Admission::Accept).count()
    };
    // One connection from each of 1,000 IPv6 networks of 64 bits that belong to one of 48 bits, and
    // from each address of an IPv4 network.
    assert_eq!(accepted(&mut (0..1_000).map(|number| format!("2001:db8:0:{number:x}::1"))), 128);
    assert_eq!(accepted(&mut (0..256).map(|number| format!("198.51.100.{number}"))), 128);
    assert_eq!(accepted(&mut (0..64).map(|_| "203.0.113.1".to_owned())), 64);
    assert_eq!(accepted(&mut (0..64).map(|_| "2001:db8:1::1".to_owned())), 64);
}

fn accept_member(connections: &Connections, port: u16) -> TcpConnectionId {
    let id = accept(connections, "198.51.100.1", port);
    connections.authenticated(id, &member_of(id));
    id
}

#[test]
fn with_all_places_taken_by_members_a_new_connection_is_refused() {
    let connections = Connections::new(4500);
    for port in 0..4096 {
        accept_member(&connections, port);
    }
    assert_eq!(connections.add(from("192.0.2.9", 1), ConnectionKind::Accepted, at(0)), None);
    let one = *connections.table().open.keys().next().unwrap();
    connections.close(one);
    assert!(connections.add(from("192.0.2.9", 1), ConnectionKind::Accepted, at(0)).is_some());
}

#[test]
fn numbers_that_begin_again_are_those_of_no_other_connection_and_the_oldest_stays_the_oldest() {
    let connections = Connections::new(4500);
    let [member, closed] = [accept_member(&connections, 1), accept(&connections, "192.0.2.8", 1)];
    connections.close(closed);
    connections.table().next = u32::MAX;
    let strangers: Vec<_> = (1..=17).map(|port| accept(&connections, "192.0.2.9", port)).collect();
    assert_eq!(strangers[0], TcpConnectionId::new(u32::MAX));
    assert!(!strangers.contains(&member) && !strangers.contains(&closed), "{strangers:?}");
    assert_eq!(connections.ends(member), Some(from("198.51.100.1", 1)));
    // The oldest has the largest number.
    let open: Vec<_> = strangers.iter().map(|id| is_open(&connections, *id)).collect();
    assert_eq!(open.iter().position(|open| !open), Some(0));
    assert_eq!(open.iter().filter(|open| **open).count(), MAX_WITHOUT_PREFIX_OF_SOURCE);
}

#[test]
fn a_connection_without_an_ike_sa_is_closed_after_a_while_and_after_many_messages() {
    let connections = Connections::new(4500);
    let (member, stranger) = (accept_member(&connections, 1), accept(&connections, "192.0.2.9", 1));
    let own = connections.add(from("192.0.2.10", 4500), ConnectionKind::ToHub, at(0)).unwrap();
    let used = BTreeSet::from([member]);
    connections.close_unused(&used, at(19));
    assert!(is_open(&connections, stranger));
    connections.close_unused(&used, at(20));
    assert!(!is_open(&connections, stranger) && is_open(&connections, member));
    // Another IKE SA has replaced the one on the member's connection.
    connections.close_unused(&BTreeSet::new(), at(30));
    connections.close_unused(&BTreeSet::new(), at(49));
    assert!(is_open(&connections, member));
    connections.close_unused(&BTreeSet::new(), at(50));
    assert!(!is_open(&connections, member));
    assert!(is_open(&connections, own), "the edge itself decides about its connections");

    let chatty = accept(&connections, "192.0.2.9", 2);
    assert!((0..MAX_UNAUTHENTICATED_MESSAGES).all(|_| connections.count_message(chatty)));
    assert!(!connections.count_message(chatty));
    connections.authenticated(chatty, &member_of(chatty));
    assert!(connections.count_message(chatty));
    assert!((0..1000).all(|_| connections.count_message(own)));
    assert!(!connections.count_message(stranger), "it is closed");
}

#[test]
fn an_address_that_stands_for_a_connection_is_shown_as_the_real_one() {
    let connections = Connections::new(4500);
    let id = accept(&connections, "192.0.2.9", 61_000);
    let shown = |ip: IpAddr| connections.real(SocketAddr::new(ip, 4500)).to_string();
    assert_eq!((shown(id.local()), shown(id.remote())), ("192.0.2.1:4500".into(), "192.0.2.9:61000".into()));
    connections.close(id);
    assert_eq!(shown(id.remote()), "192.0.2.9:61000");
    assert_eq!(shown("192.0.2.7".parse().unwrap()), "192.0.2.7:4500");
    let error = connections.send(id, &[0; 4]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
}

/// Returns a stream for connections whose stream prefix has arrived.
async fn stream() -> Arc<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Arc::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap())
}

#[tokio::test]
async fn a_connection_in_its_handshake_makes_no_room_for_later_ones_of_its_source() {
    let (connections, stream) = (Connections::new(4500), stream().await);
    let first: Vec<_> = (0..64).map(|port| accept(&connections, "192.0.2.9", port)).collect();
    // Sixteen may be without a stream prefix.
    assert_eq!(first.iter().filter(|id| is_open(&connections, **id)).count(), 16);
    let of_source: Vec<_> = (0..64).map(|port| accept_with_prefix(&connections, &stream, "192.0.2.9", port)).collect();
    assert!(of_source.iter().all(|id| is_open(&connections, *id)));
    assert!(!first.iter().any(|id| is_open(&connections, *id)), "those without a stream prefix have made room");
    assert_eq!(connections.add(from("192.0.2.9", 100), ConnectionKind::Accepted, at(4)), None);
    assert!(connections.add(from("192.0.2.10", 100), ConnectionKind::Accepted, at(4)).is_some(), "another source");
    // After the time for a handshake the oldest makes room.
    assert!(connections.add(from("192.0.2.9", 100), ConnectionKind::Accepted, at(5)).is_some());
    assert!(!is_open(&connections, of_source[0]) && is_open(&connections, of_source[1]));
}

fn accept_with_prefix(connections: &Connections, stream: &Arc<TcpStream>, remote: &str, port: u16) -> TcpConnectionId {
    let id = accept(connections, remote, port);
    connections.set_stream(id, stream.clone());
    id
}

#[tokio::test]
async fn a_stranger_with_many_ipv6_networks_or_addresses_takes_the_places_of_its_own_only() {
    for stranger in [|n: u32| format!("2001:db8:9:{:x}::1", n % 1000), |n: u32| format!("203.0.113.{}", n % 16)] {
        let (connections, stream) = (Connections::new(4500), stream().await);
        for number in 0..300 {
            if let Some(id) = connections.add(from(&stranger(number), 1), ConnectionKind::Accepted, at(0)) {
                connections.set_stream(id, stream.clone());
            }
        }
        let honest: Vec<_> =
            (1..=4).map(|n| accept_with_prefix(&connections, &stream, &format!("2001:db8:{n}::1"), 1)).collect();
        for number in 0..5_000 {
            if let Some(id) =
                connections.add(from(&stranger(number), 2), ConnectionKind::Accepted, at(u64::from(number) / 500))
            {
                connections.set_stream(id, stream.clone());
            }
        }
        assert!(honest.iter().all(|id| is_open(&connections, *id)), "{}", stranger(0));
        assert!(connections.table().open.len() <= MAX_UNAUTHENTICATED);
    }
}

#[tokio::test]
async fn six_hundred_edges_behind_one_address_come_back_within_a_minute_of_the_hubs_restart() {
    const ROUND_TRIPS: Duration = Duration::from_millis(400);
    let (connections, stream, hub) = (Connections::new(4500), stream().await, PeerName::new("hub"));
    let earlier = TcpConnectionId::new(u32::MAX);
    let mut edges: Vec<(Fallback, Option<(TcpConnectionId, Instant)>)> = Vec::new();
    for _ in 0..600 {
        let mut edge = Fallback::default();
        edge.unreached(&hub, at(0));
        edge.take_due(at(5));
        assert!(edge.opened(&hub, earlier, None, at(5)));
        edge.up_by_tcp(&hub, earlier, at(5));
        edge.ended(earlier, at(30));
        edges.push((edge, None));
    }
    let mut now = at(30);
    let mut up = 0;
    while up < edges.len() {
        now = now + Duration::from_millis(20);
        assert!(now < at(90), "{up} edges are up");
        for (edge, handshake) in &mut edges {
            if let Some((id, begun)) = *handshake {
                if !is_open(&connections, id) {
                    edge.ended(id, now);
                    *handshake = None;
                } else if now >= begun + ROUND_TRIPS {
                    connections.authenticated(id, &member_of(id));
                    up += 1;
                    edge.forget(&hub);
                    *handshake = None;
                }
                continue;
            }
            if edge.take_due(now) != [Action::Dial(hub.clone())] {
                continue;
            }
            match connections.add(from("192.0.2.9", 7), ConnectionKind::Accepted, now) {
                Some(id) => {
                    connections.set_stream(id, stream.clone());
                    assert!(edge.opened(&hub, id, None, now));
                    *handshake = Some((id, now));
                }
                // The edge sees a connection that ends at once.
                None => {
                    assert!(edge.opened(&hub, earlier, None, now));
                    edge.ended(earlier, now);
                }
            }
        }
    }
}

/// Returns the name of the only peer on a connection.
fn member_of(id: TcpConnectionId) -> PeerName {
    PeerName::new(&format!("{id:?}"))
}

#[test]
fn of_one_members_connections_the_last_two_stay_and_those_of_others_are_untouched() {
    let connections = Connections::new(4500);
    let (thief, other) = (PeerName::new("thief"), accept_member(&connections, 1));
    let own = connections.add(from("192.0.2.10", 4500), ConnectionKind::ToHub, at(0)).unwrap();
    connections.authenticated(own, &thief);
    let of_thief: Vec<_> = (0..5_000)
        .map(|port| {
            let id = accept(&connections, "192.0.2.9", port);
            connections.authenticated(id, &thief);
            id
        })
        .collect();
    let open: Vec<_> = of_thief.iter().copied().filter(|id| is_open(&connections, *id)).collect();
    assert_eq!(open, of_thief[4_998..]);
    assert!(is_open(&connections, other));
    assert!(is_open(&connections, own), "this node has begun it");
    // A new IKE SA on the earlier connection leaves both.
    connections.authenticated(open[0], &thief);
    assert!(open.iter().all(|id| is_open(&connections, *id)));
}

#[test]
fn with_all_places_taken_a_members_connection_without_an_ike_sa_makes_room() {
    let connections = Connections::new(4500);
    let members: Vec<_> = (0..4096).map(|port| accept_member(&connections, port)).collect();
    let used = |but: &[usize]| {
        let used = members.iter().enumerate().filter(|(number, _)| !but.contains(number));
        used.map(|(_, id)| *id).collect::<BTreeSet<_>>()
    };
    connections.close_unused(&used(&[7]), at(10));
    connections.close_unused(&used(&[5, 7]), at(20));
    for gone in [7, 5] {
        let id = connections.add(from("192.0.2.9", 1), ConnectionKind::Accepted, at(21)).unwrap();
        assert!(!is_open(&connections, members[gone]));
        connections.authenticated(id, &member_of(id));
    }
    assert_eq!(connections.add(from("192.0.2.9", 1), ConnectionKind::Accepted, at(21)), None);
    assert_eq!(connections.table().open.len(), MAX_CONNECTIONS);
}

#[test]
fn a_connection_to_a_relay_is_closed_when_it_carries_no_ike_sa_and_one_that_is_released_stays() {
    let connections = Connections::new(4500);
    let relay = connections.add(from("192.0.2.10", 4500), ConnectionKind::ToRelay, at(0)).unwrap();
    let hub = connections.add(from("192.0.2.10", 4501), ConnectionKind::ToHub, at(0)).unwrap();
    connections.close_unused(&BTreeSet::from([relay]), at(0));
    connections.close_unused(&BTreeSet::from([relay]), at(100));
    connections.close_unused(&BTreeSet::new(), at(110));
    connections.close_unused(&BTreeSet::new(), at(129));
    assert!(connections.is_open(relay));
    connections.close_unused(&BTreeSet::new(), at(130));
    assert!(!connections.is_open(relay) && connections.is_open(hub));

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let reader = runtime.spawn(async { 7 });
    let accepted = connections.add(from("192.0.2.11", 1), ConnectionKind::Accepted, at(0)).unwrap();
    connections.set_reader(accepted, reader.abort_handle());
    connections.release(accepted);
    assert!(!connections.is_open(accepted) && connections.ends(accepted).is_none());
    assert_eq!(runtime.block_on(reader).unwrap(), 7, "its task is not aborted");
}
