//! Tests the kernel's notifications.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use edge_xfrm::events::{EspEvent, EspEventSocket, Event, EventSocket};
use edge_xfrm::{Direction, Encap, Policy, Replay, Reqid, SaDirection, SaParams, Xfrm};
use rustix::event::{PollFd, PollFlags, poll};

use crate::Needs::{Esp, Root};
use crate::Test;
use crate::namespace::{Namespace, receive, sa};
use crate::pair::{connect, pair, reversed};
use crate::policies::selector;

pub(crate) const TESTS: &[Test] = &[
    ("what_others_do_to_policies_is_told_and_what_we_do_is_not", Root, others_changes),
    ("a_packet_without_an_sa_raises_acquire_with_the_reqid_of_its_policy", Root, acquire),
    ("a_full_buffer_is_told_as_overrun", Root, overrun),
    ("what_we_do_takes_no_room_in_the_buffer", Root, own_changes_take_no_room),
    ("esp_of_our_sas_is_reported_at_most_once_a_second_and_none_while_idle", Esp, esp),
];

/// Returns the next event. Waits if there is none yet.
pub(crate) fn next(events: &mut EventSocket) -> Event {
    loop {
        if let Some(event) = events.next().unwrap() {
            return event;
        }
        await_readable(&*events);
    }
}

fn await_readable(events: &impl AsFd) {
    let patience = rustix::time::Timespec { tv_sec: 30, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "no event within 30 s");
}

fn next_esp(events: &mut EspEventSocket) -> EspEvent {
    loop {
        if let Some(event) = events.next().unwrap() {
            return event;
        }
        await_readable(&*events);
    }
}

fn esp() {
    for (replay, encap) in [(Replay::PLAIN, None), (Replay::ESN, Some(4500))] {
        let encap = encap.map(|port| Encap::udp(port, port));
        let pair = pair();
        let [mut at_a, mut at_b] = [&pair.a, &pair.b].map(|end| end.run(|| EspEventSocket::open().unwrap()));
        let forth = SaParams { replay, encap, ..sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1) };
        connect(&pair, &forth, &reversed(&forth, 0x1001), None);
        // An SA of another program. The kernel reports every second packet of this SA to all
        // listeners.
        pair.a.ip("xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x2000 reqid 7 mode tunnel \
             aead rfc4106(gcm(aes)) 0x0102030405060708090a0b0c0d0e0f1011121314 128");
        pair.a.ip(
            "xfrm policy add dir out src 10.99.0.1/32 dst 10.99.0.2/32 tmpl src 192.0.2.1 dst 192.0.2.2 proto esp \
             reqid 7 mode tunnel",
        );
        pair.a.ip("route add 10.99.0.2/32 via 192.0.2.2");
        let server = pair.b.listen("10.77.1.1:7");
        let since = Instant::now();
        let (mut reported, mut bytes) = ([0_u64; 2], [0_u64; 2]);
        // Both ends report each packet, immediately or at the end of the interval.
        for _ in 0..3 {
            for _ in 0..20 {
                pair.a.send("10.99.0.1", "10.99.0.2:7", "of another program");
                pair.a.send("10.77.0.1", "10.77.1.1:7", "one way");
                assert_eq!(receive(&server), "one way");
            }
            for (end, events) in [&mut at_a, &mut at_b].into_iter().enumerate() {
                let event = next_esp(events);
                assert_eq!((event.id, event.reqid), (forth.id(), forth.reqid.raw()));
                assert!(event.bytes >= bytes[end], "{} bytes after {}", event.bytes, bytes[end]);
                (reported[end], bytes[end]) = (reported[end] + 1, event.bytes);
            }
        }
        // The last report came after more than 20 packets, each with headers of 28 bytes.
        assert!(bytes.iter().all(|bytes| (20 * 28..1 << 20).contains(bytes)), "{bytes:?}");
        for (events, reported) in [&mut at_a, &mut at_b].into_iter().zip(&mut reported) {
            while events.next().unwrap().is_some() {
                *reported += 1;
            }
        }
        let most = since.elapsed().as_secs() + 2;
        assert!(reported.iter().all(|reported| *reported <= most), "{reported:?} events, at most one a second: {most}");
        // Let the SA be idle for 4 s. One more notification may follow at the end of the last
        // packet's interval. After that, an idle SA causes no notification.
        let idle = Instant::now() + Duration::from_secs(4);
        let mut late = 0;
        while let Some(left) = idle.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let wait = rustix::time::Timespec::try_from(left).unwrap();
            if poll(&mut [PollFd::new(&at_b, PollFlags::IN)], Some(&wait)).unwrap() == 1 {
                late += usize::from(at_b.next().unwrap().is_some());
            }
        }
        assert!(late <= 1, "{late} events of an idle SA");
        // The first packet after the idle time is reported immediately: its response cannot have
        // arrived yet.
        pair.a.send("10.77.0.1", "10.77.1.1:7", "again");
        assert_eq!(next_esp(&mut at_a).id, forth.id());
    }
}

fn others_changes() {
    let namespace = Namespace::new();
    let mut events = namespace.run(|| EventSocket::open().unwrap());
    let block = Policy::block(Direction::In, selector("10.77.0.0/16", "0.0.0.0/0"));
    let port = namespace.run(move || {
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.install_policy(&block).unwrap();
        xfrm.port()
    });
    assert!(matches!(next(&mut events), Event::PolicyChanged(policy) if policy.matches(&block)));
    events.ignore_port(port).unwrap();

    namespace.ip("xfrm policy update src 10.77.0.0/16 dst 0.0.0.0/0 dir in action allow");
    assert!(matches!(next(&mut events), Event::PolicyChanged(policy) if policy.key() == block.key() && !policy.blocks));
    namespace.ip("xfrm policy delete src 10.77.0.0/16 dst 0.0.0.0/0 dir in");
    assert!(matches!(next(&mut events), Event::PolicyDeleted(policy) if policy.key() == block.key()));
    namespace.ip("xfrm policy add src 10.1.0.0/16 dst 0.0.0.0/0 dir in action block");
    assert!(matches!(next(&mut events), Event::PolicyChanged(_)));
    namespace.ip("xfrm policy flush");
    assert_eq!(next(&mut events), Event::PoliciesFlushed);

    // This test changes a policy through an ignored socket, then another program changes one. Only
    // the second change is reported.
    let mut quiet = namespace.run(|| Xfrm::open().unwrap());
    events.ignore_port(quiet.port()).unwrap();
    quiet.install_policy(&block).unwrap();
    quiet.reconcile_policies(&[]).unwrap();
    namespace.ip("xfrm policy add src 10.1.0.0/16 dst 0.0.0.0/0 dir in action block");
    assert!(matches!(next(&mut events), Event::PolicyChanged(policy) if !policy.is_ours()));
    assert_eq!(events.next().unwrap(), None);
}

fn acquire() {
    let namespace = Namespace::new();
    namespace.ip("link add up0 type bridge");
    namespace.ip("addr add 192.0.2.1/24 dev up0");
    namespace.ip("addr add 10.77.0.1/26 dev up0");
    namespace.ip("addr add fd77::1/64 dev up0 nodad");
    namespace.ip("link set up0 up");
    namespace.ip("route add default via 192.0.2.254");
    namespace.ip("route add fd77:1::/64 dev up0");
    let mut events = namespace.run(|| EventSocket::open().unwrap());
    let port = namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        for (n, source, destination) in [(5, "10.77.0.0/26", "10.77.1.0/26"), (6, "fd77::/64", "fd77:1::/64")] {
            let selector = selector(source, destination);
            let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
            xfrm.install_policy(&Policy::protect_out(selector, Reqid::tunnel(n).unwrap(), here, there)).unwrap();
        }
        xfrm.port()
    });
    for _ in 0..2 {
        assert!(matches!(next(&mut events), Event::PolicyChanged(_)));
    }
    events.ignore_port(port).unwrap();
    for (n, from, to) in [(5, "10.77.0.1", "10.77.1.9"), (6, "fd77::1", "fd77:1::9")] {
        let address = if to.contains(':') { format!("[{to}]:7") } else { format!("{to}:7") };
        namespace.send(from, &address, "hello");
        let Event::Acquire { reqid, selector, source, destination, .. } = next(&mut events) else { panic!() };
        assert_eq!(Reqid::ours(reqid), Reqid::tunnel(n));
        assert_eq!(selector.source().ip().to_string(), from);
        assert_eq!(selector.destination().ip().to_string(), to);
        assert_eq!((source.to_string().as_str(), destination.to_string().as_str()), ("192.0.2.1", "192.0.2.2"));
    }
    // The larval SA of the acquire does not count as one of our stray SAs.
    let sas = namespace.run(|| Xfrm::open().unwrap().sas().unwrap());
    assert!(sas.iter().all(|sa| sa.is_larval()), "{sas:?}");
    assert!(edge_xfrm::reconcile::sas(&[], &sas).is_empty());
}

fn overrun() {
    let namespace = Namespace::new();
    let mut events = namespace.run(|| EventSocket::open().unwrap());
    namespace.run(|| change_many_policies(&mut Xfrm::open().unwrap()));
    while next(&mut events) != Event::Overrun {}
    // Notifications after the overrun are reported again.
    while events.next().unwrap().is_some() {}
    namespace.ip("xfrm policy flush");
    assert_eq!(next(&mut events), Event::PoliciesFlushed);
}

fn own_changes_take_no_room() {
    let namespace = Namespace::new();
    let mut events = namespace.run(|| EventSocket::open().unwrap());
    let mut quiet = namespace.run(|| Xfrm::open().unwrap());
    events.ignore_port(quiet.port()).unwrap();
    change_many_policies(&mut quiet);
    namespace.ip("xfrm policy flush");
    assert_eq!(next(&mut events), Event::PoliciesFlushed);
    assert_eq!(events.next().unwrap(), None);
}

/// Makes more changes than an event socket's buffer can hold notifications.
fn change_many_policies(xfrm: &mut Xfrm) {
    let desired = |priority| -> Vec<Policy> {
        (0..5000)
            .map(|n| {
                let network = format!("10.{}.{}.0/24", n / 250, n % 250);
                Policy { priority, ..Policy::block(Direction::In, selector(&network, "0.0.0.0/0")) }
            })
            .collect()
    };
    for priority in 0..4 {
        xfrm.reconcile_policies(&desired(priority)).unwrap();
    }
}
