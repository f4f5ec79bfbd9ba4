//! Tests the switch of outbound SAs while packets use them.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use edge_xfrm::{Encap, Error, SaDirection, SaId, SaParams, Xfrm};

use crate::Needs::Esp;
use crate::Test;
use crate::namespace::{Namespace, sa};
use crate::pair::{connect, pair, policies, read, reversed, talk};

pub(crate) const TESTS: &[Test] = &[
    ("switching_outbound_under_load_loses_nothing", Esp, switching),
    ("once_a_switch_begins_packets_take_the_new_sa", Esp, new_sa_is_taken),
    ("a_switch_that_cannot_succeed_leaves_the_old_sa", Esp, refused_switch),
];

/// Several sockets request echoes without pause while the outbound SA is switched 200 times. A
/// packet is lost only if the process lost the CPU for longer than IN_FLIGHT between the packet's
/// lookup and its output, which happens occasionally in a loaded lab. Deleting the old SA in the
/// batch that adds the new one lost one packet in ten.
fn switching() {
    const SWITCHES: u32 = 200;
    const BEARABLE: u64 = 8;
    const TALKERS: u16 = 4;
    let pair = pair();
    let mut forth =
        SaParams { encap: Some(Encap::udp(4500, 4500)), ..sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1) };
    connect(&pair, &forth, &reversed(&forth, 0x0f00), None);

    let (done, echoes, lost) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let servers: Vec<UdpSocket> = (0..TALKERS).map(|n| pair.b.listen(&format!("10.77.1.1:{}", 7000 + n))).collect();
    let clients: Vec<UdpSocket> = (0..TALKERS).map(|n| pair.a.listen(&format!("10.77.0.1:{}", 7000 + n))).collect();
    std::thread::scope(|scope| {
        for server in &servers {
            scope.spawn(|| {
                let mut buffer = [0; 8];
                while let Ok((length, from)) = server.recv_from(&mut buffer) {
                    server.send_to(&buffer[..length], from).unwrap();
                    if buffer == [u8::MAX; 8] {
                        return;
                    }
                }
                panic!("the server heard nothing for ten seconds");
            });
        }
        for (n, client) in clients.iter().enumerate() {
            let (done, echoes, lost) = (&done, &echoes, &lost);
            scope.spawn(move || {
                client.connect(("10.77.1.1", 7000 + n as u16)).unwrap();
                client.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
                let mut buffer = [0; 8];
                for number in 0u64.. {
                    let number = if done.load(Ordering::Relaxed) { u64::MAX } else { number };
                    loop {
                        // If the process lost the CPU for longer than IN_FLIGHT between a packet's
                        // lookup and its output, sending fails.
                        while let Err(error) = client.send(&number.to_ne_bytes()) {
                            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
                        }
                        // An echo may be late and arrive after the request was repeated.
                        let mut answer = client.recv(&mut buffer);
                        while answer.is_ok() && u64::from_ne_bytes(buffer) != number {
                            answer = client.recv(&mut buffer);
                        }
                        if answer.is_ok() {
                            break;
                        }
                        let sum = lost.fetch_add(1, Ordering::Relaxed) + 1;
                        assert!(sum <= BEARABLE, "{sum} echoes were lost");
                    }
                    echoes.fetch_add(1, Ordering::Relaxed);
                    if number == u64::MAX {
                        return;
                    }
                }
            });
        }
        let (mut here, mut there) = (pair.a.run(|| Xfrm::open().unwrap()), pair.b.run(|| Xfrm::open().unwrap()));
        for _ in 0..SWITCHES {
            let before = echoes.load(Ordering::Relaxed);
            let old = forth.id();
            forth.spi += 1;
            there.install_inbound(&SaParams { direction: SaDirection::In, ..forth.clone() }).unwrap();
            assert!(here.switch_outbound(&forth, old).unwrap());
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while echoes.load(Ordering::Relaxed) == before && std::time::Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
        let outbound: Vec<_> =
            here.sas().unwrap().into_iter().filter(|sa| sa.id.destination == forth.destination).collect();
        assert_eq!(outbound.len(), 1);
        assert_eq!(outbound[0].id, forth.id());
        assert_eq!(there.sas().unwrap().len() as u32, SWITCHES + 2);
    });
}

fn new_sa_is_taken() {
    let pair = pair();
    let mut forth = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1);
    connect(&pair, &forth, &reversed(&forth, 0x0f00), None);
    for known in [false, true, false, true, true] {
        // This makes policies and sockets cache the old SA.
        talk(&pair);
        let (old, before) = (forth.id(), read(&pair.a, forth.id()).counters.packets);
        forth.spi += 1;
        let (new, inbound) = (forth.clone(), SaParams { direction: SaDirection::In, ..forth.clone() });
        pair.b.run(move || Xfrm::open().unwrap().install_inbound(&inbound).unwrap());
        pair.a.run(move || {
            let mut xfrm = Xfrm::open().unwrap();
            let switched = if known {
                let ends = (new.source.to_string(), new.destination.to_string());
                let policies = policies(0, 1, new.reqid.tunnel_number().unwrap(), (&ends.0, &ends.1));
                xfrm.begin_switch_under(&new, old, &policies)
            } else {
                xfrm.begin_switch(&new, old)
            };
            assert!(switched.unwrap());
        });
        talk(&pair);
        assert_eq!(read(&pair.a, old).counters.packets, before);
        assert_eq!(read(&pair.a, forth.id()).counters.packets, 2);
        pair.a.run(move || Xfrm::open().unwrap().delete_sa(old).unwrap());
    }
}

fn refused_switch() {
    let namespace = Namespace::new();
    namespace.ip("xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x9999 reqid 1 mode tunnel \
         aead rfc4106(gcm(aes)) 0x0102030405060708090a0b0c0d0e0f1011121314 128");
    namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let old = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1);
        xfrm.add_sa(&old).unwrap();
        // The peer chose an SPI that is in use.
        for spi in [0x1000, 0x9999] {
            let error = xfrm.switch_outbound(&SaParams { spi, ..old.clone() }, old.id()).unwrap_err();
            assert!(matches!(error, Error::SaExists { .. }), "{error}");
        }
        let foreign = SaId { spi: 0x9999, ..old.id() };
        let error = xfrm.switch_outbound(&SaParams { spi: 0x1001, ..old.clone() }, foreign).unwrap_err();
        assert!(matches!(error, Error::SaOfOther { reqid: 1, .. }), "{error}");
        assert_eq!(xfrm.sas().unwrap().len(), 2);
        // The new SA is installed even if there is no old one.
        xfrm.delete_sa(old.id()).unwrap();
        assert!(!xfrm.switch_outbound(&SaParams { spi: 0x1001, ..old.clone() }, old.id()).unwrap());
        assert_eq!(xfrm.sas().unwrap().len(), 2);
    });
}
