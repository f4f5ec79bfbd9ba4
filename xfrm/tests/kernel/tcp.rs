//! Tests IKE messages and ESP in TCP (RFC 9329).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use edge_xfrm::socket::encapsulate_in_tcp;
use edge_xfrm::{Encap, SaDirection, SaParams};
use rustix::net::SendFlags;

use crate::Needs::Esp;
use crate::Test;
use crate::namespace::sa;
use crate::pair::{Pair, connect, pair, read, reversed, talk};

pub(crate) const TESTS: &[Test] = &[
    ("packets_and_ike_messages_share_a_tcp_connection", Esp, shared),
    ("a_stream_with_an_impossible_length_ends", Esp, impossible_length),
];

/// Limit for a message that must arrive. It is also the limit for the rest of a message.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connects both hosts, and returns both ends after the stream prefix. The kernel carries ESP in
/// the second one; in the first one only if `both`.
fn connected(pair: &Pair, to: &str, both: bool) -> (TcpStream, TcpStream) {
    let to: SocketAddr = to.parse().unwrap();
    let listener = pair.b.run(move || TcpListener::bind(to).unwrap());
    let mut first = pair.a.run(move || TcpStream::connect(to).unwrap());
    let (mut second, _) = listener.accept().unwrap();
    first.write_all(b"IKETCP").unwrap();
    let mut prefix = [0; 6];
    second.read_exact(&mut prefix).unwrap();
    for stream in [&first, &second] {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    }
    if both {
        encapsulate_in_tcp(&first).unwrap();
    }
    encapsulate_in_tcp(&second).unwrap();
    (first, second)
}

/// Sends a message. The standard library's `write` sets a flag that the kernel refuses here.
fn send(stream: &TcpStream, message: &[u8]) -> usize {
    rustix::net::send(stream, message, SendFlags::empty()).unwrap()
}

fn message(stream: &mut TcpStream) -> Vec<u8> {
    let mut buffer = [0; 65_535];
    let length = stream.read(&mut buffer).unwrap();
    buffer[..length].to_vec()
}

fn shared() {
    let pair = pair();
    for (number, source, destination, to) in
        [(1, "192.0.2.1", "192.0.2.2", "192.0.2.2:4500"), (2, "2001:db8::1", "2001:db8::2", "[2001:db8::2]:4500")]
    {
        let (mut first, mut second) = connected(&pair, to, true);
        let port = first.local_addr().unwrap().port();
        let plain = sa(SaDirection::Out, source, destination, 0x1000 + number, 1);
        let forth = SaParams { encap: Some(Encap::tcp(port, 4500)), ..plain };
        let back = reversed(&forth, 0x2000 + number);
        connect(&pair, &forth, &back, None);
        for round in 0..3_u8 {
            talk(&pair);
            // A NAT keepalive is dropped.
            assert_eq!(send(&first, &[0xff]), 1);
            for forth in [true, false] {
                let (from, at) = if forth { (&first, &mut second) } else { (&second, &mut first) };
                let large = [&[0; 4][..], &[round; 40_000]].concat();
                assert_eq!(send(from, &large), large.len());
                assert_eq!(send(from, &[0, 0, 0, 0, round]), 5);
                assert_eq!(message(at), large);
                assert_eq!(message(at), [0, 0, 0, 0, round]);
            }
        }
        for (namespace, sa) in [(&pair.a, &forth), (&pair.b, &back)] {
            let seen = read(namespace, sa.id());
            assert_eq!((seen.encap, seen.counters.packets), (sa.encap, 6), "{seen:?}");
            let (ours, theirs) = (forth.id(), back.id());
            namespace.run(move || {
                let mut xfrm = edge_xfrm::Xfrm::open().unwrap();
                xfrm.delete_sa(ours).unwrap();
                xfrm.delete_sa(theirs).unwrap();
            });
        }
    }
}

fn impossible_length() {
    let pair = pair();
    for length in [0_u16, 1] {
        let (mut first, mut second) = connected(&pair, "192.0.2.2:4500", false);
        first.write_all(&length.to_be_bytes()).unwrap();
        let error = second.read(&mut [0; 100]).expect_err("the kernel ends the stream");
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the timeout");
    }
    // The smallest possible message is empty, and is dropped.
    let (mut first, mut second) = connected(&pair, "192.0.2.2:4500", false);
    first.write_all(&[0, 2, 0, 7, 0, 0, 0, 0, 9]).unwrap();
    assert_eq!(message(&mut second), [0, 0, 0, 0, 9]);
}
