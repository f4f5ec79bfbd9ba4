//! Tests SAs: packets through them, limits, changed addresses, and ownership.

use edge_xfrm::events::{Event, EventSocket};
use edge_xfrm::reconcile::{self, ExpectedSa};
use edge_xfrm::sa::Features;
use edge_xfrm::{
    AesKeyLength, Algorithm, Direction, Encap, Error, EspKey, Integrity, Limits, Policy, Replay, Reqid, SaDirection,
    SaParams, SpiRange, Xfrm,
};

use crate::Needs::{Esp, Root};
use crate::Test;
use crate::events::next;
use crate::namespace::{KEY, Namespace, receive, sa};
use crate::pair::{connect, esp_socket, pair, read, reversed, talk};
use crate::policies::selector;

pub(crate) const TESTS: &[Test] = &[
    ("a_refused_sa_is_reported_without_its_key", Root, refused_without_key),
    ("a_reserved_spi_becomes_an_sa", Esp, reservation),
    ("a_tunnel_is_installed_at_once_and_each_refusal_is_told", Esp, tunnel_at_once),
    ("packets_of_both_families_pass_with_every_cipher_and_encapsulation", Esp, every_kind),
    ("a_kernel_is_asked_which_ciphers_it_has_and_keeps_nothing", Esp, supported),
    ("an_older_kernels_way_to_install_sas_works", Esp, older_kernel),
    ("an_sa_of_another_is_left_alone", Esp, others_sa),
    ("limits_of_packets_tell_when_to_rekey_and_end_the_sa", Esp, limits),
    ("a_peer_behind_a_changed_nat_is_told_and_followed", Esp, mapping),
    ("an_sa_deleted_by_another_is_told_and_found_missing", Esp, deleted_by_another),
    ("only_what_policies_grant_to_a_tunnel_comes_out_of_it", Esp, granted_by_policies),
    ("packets_under_a_wrong_key_are_counted", Esp, wrong_key),
    ("an_sa_with_a_selector_carries_nothing_else", Esp, with_selector),
];

fn reservation() {
    Namespace::new().run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let mut params = sa(SaDirection::In, "192.0.2.2", "192.0.2.1", 0, 3);
        let range = SpiRange { min: 0x1000, max: 0x1fff };
        let (source, destination, reqid) = (params.source, params.destination, params.reqid);
        params.spi = xfrm.allocate_spi(source, destination, reqid, range).unwrap();
        assert!((range.min..=range.max).contains(&params.spi));
        let another = xfrm.allocate_spi(source, destination, reqid, range).unwrap();
        assert_ne!(another, params.spi);
        assert!(xfrm.sas().unwrap().iter().all(|sa| sa.is_larval() && sa.is_ours()));

        xfrm.install_inbound(&params).unwrap();
        let installed = xfrm.sa(params.id()).unwrap().unwrap();
        assert_eq!(installed.algorithm.as_deref(), Some("rfc4106(gcm(aes))"));
        assert_eq!((installed.reqid, installed.replay_window, installed.esn), (reqid.raw(), 1024, false));
        assert_eq!(installed.direction, xfrm.features().sa_direction.then_some(SaDirection::In));
        assert_eq!(installed.selector, None);
        assert!(matches!(xfrm.add_sa(&params), Err(Error::SaExists { .. })));

        xfrm.delete_sa(params.id()).unwrap();
        assert!(matches!(xfrm.delete_sa(params.id()), Err(Error::NoSuchSa { .. })));
        assert!(matches!(xfrm.update_sa(&params), Err(Error::NoSuchSa { .. })));
        // The reservation has expired before the peer's response arrives.
        xfrm.install_inbound(&params).unwrap();
        assert!(!xfrm.sa(params.id()).unwrap().unwrap().is_larval());
        assert!(xfrm.allocate_spi(source, destination, reqid, SpiRange { min: 9, max: 3 }).is_err());
    });
}

fn tunnel_at_once() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let mut inbound = sa(SaDirection::In, "192.0.2.2", "192.0.2.1", 0, 3);
        let outbound = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x2000, 3);
        let reserve = |xfrm: &mut Xfrm, sa: &SaParams| {
            xfrm.allocate_spi(sa.source, sa.destination, sa.reqid, SpiRange { min: 0x1000, max: 0x1fff }).unwrap()
        };
        let policies: Vec<Policy> = [Direction::Out, Direction::In, Direction::Fwd]
            .map(|direction| Policy::block(direction, selector("10.77.1.0/26", "10.77.2.0/26")))
            .to_vec();
        let plan = reconcile::policies(&policies, &[]);
        inbound.spi = reserve(&mut xfrm, &inbound);
        let before = xfrm.requests_sent();
        let outcome = xfrm.install_tunnel(&inbound, &outbound, &plan, false).unwrap();
        outcome.inbound.unwrap();
        outcome.outbound.unwrap();
        assert!(outcome.policies.is_empty(), "{:?}", outcome.policies);
        assert_eq!(xfrm.requests_sent() - before, 5, "the reservation is known, and no request is repeated");
        assert!(xfrm.sas().unwrap().iter().all(|sa| !sa.is_larval() && sa.is_ours()));
        assert_eq!(xfrm.policies().unwrap().len(), 3);

        // The outbound SPI is taken: the inbound SA is installed nevertheless, and the policies,
        // which are there already, are no failure.
        inbound.spi = reserve(&mut xfrm, &inbound);
        let outcome = xfrm.install_tunnel(&inbound, &outbound, &plan, false).unwrap();
        outcome.inbound.unwrap();
        assert!(matches!(outcome.outbound, Err(Error::SaExists { id }) if id == outbound.id()));
        assert!(outcome.policies.is_empty(), "{:?}", outcome.policies);

        // A reservation that has expired is no reason to fail.
        inbound.spi = reserve(&mut xfrm, &inbound);
        xfrm.delete_sa(inbound.id()).unwrap();
        xfrm.delete_sa(outbound.id()).unwrap();
        let outcome = xfrm.install_tunnel(&inbound, &outbound, &Default::default(), true).unwrap();
        outcome.inbound.unwrap();
        outcome.outbound.unwrap();
        assert!(!xfrm.sa(inbound.id()).unwrap().unwrap().is_larval());
    });
    // Another program has the SPI and a selector: both stay, and the rest is done.
    namespace.ip("xfrm state add src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x3000 reqid 1 mode tunnel \
         aead rfc4106(gcm(aes)) 0x0102030405060708090a0b0c0d0e0f1011121314 128");
    namespace.ip("xfrm policy add dir out src 10.77.8.0/26 dst 10.77.9.0/26 action block");
    namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let inbound = sa(SaDirection::In, "192.0.2.2", "192.0.2.1", 0x3000, 3);
        let outbound = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x3001, 3);
        let wanted = [("10.77.8.0/26", "10.77.9.0/26"), ("10.77.8.0/26", "10.77.10.0/26")]
            .map(|(from, to)| Policy::block(Direction::Out, selector(from, to)));
        let outcome = xfrm.install_tunnel(&inbound, &outbound, &reconcile::policies(&wanted, &[]), false).unwrap();
        assert!(matches!(outcome.inbound, Err(Error::SaOfOther { reqid: 1, .. })));
        outcome.outbound.unwrap();
        assert!(
            matches!(&outcome.policies[..], [Error::OccupiedByOther { wanted: first, .. }] if **first == wanted[0])
        );
        assert!(xfrm.policy(&wanted[1]).unwrap().is_some_and(|holder| holder.matches(&wanted[1])));
    });
}

fn every_kind() {
    let pair = pair();
    let mut spi = 0x1000;
    for algorithm in [
        Algorithm::Aes128Gcm16,
        Algorithm::Aes256Gcm16,
        Algorithm::ChaCha20Poly1305,
        Algorithm::AesCbc(AesKeyLength::Bits128, Integrity::HmacSha256),
        Algorithm::AesCbc(AesKeyLength::Bits192, Integrity::HmacSha384),
        Algorithm::AesCbc(AesKeyLength::Bits256, Integrity::HmacSha512),
    ] {
        for (source, destination) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            for encap in [None, Some(Encap::udp(4500, 4500))] {
                for replay in [Replay::PLAIN, Replay::ESN] {
                    spi += 2;
                    let key = EspKey::new(algorithm, &KEY.repeat(5)[..algorithm.key_length()]).unwrap();
                    let plain = sa(SaDirection::Out, source, destination, spi, 1);
                    let forth = SaParams { key, encap, replay, ..plain };
                    let back = reversed(&forth, spi + 1);
                    connect(&pair, &forth, &back, None);
                    talk(&pair);
                    for (namespace, id) in
                        [(&pair.a, forth.id()), (&pair.b, forth.id()), (&pair.a, back.id()), (&pair.b, back.id())]
                    {
                        let seen = read(namespace, id);
                        assert_eq!(seen.counters.packets, 2, "{seen:?}");
                        assert_eq!(seen.counters.sent_sequence.max(seen.counters.received_sequence), 2, "{seen:?}");
                        assert_eq!((seen.esn, seen.encap.is_some()), (replay.esn, encap.is_some()));
                        namespace.run(move || Xfrm::open().unwrap().delete_sa(id).unwrap());
                    }
                }
            }
        }
    }
}

fn supported() {
    Namespace::new().run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        for algorithm in [
            Algorithm::Aes256Gcm16,
            Algorithm::ChaCha20Poly1305,
            Algorithm::AesCbc(AesKeyLength::Bits256, Integrity::HmacSha384),
        ] {
            let key = EspKey::new(algorithm, &KEY.repeat(5)[..algorithm.key_length()]).unwrap();
            for _ in 0..2 {
                assert!(xfrm.supports(&key).unwrap(), "{algorithm:?}");
            }
        }
        assert_eq!(xfrm.sas().unwrap(), []);
    });
}

fn older_kernel() {
    let pair = pair();
    let plain = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1);
    let forth = SaParams { replay: Replay::ESN, ..plain };
    connect(&pair, &forth, &reversed(&forth, 0x1001), Some(Features::default()));
    talk(&pair);
    assert_eq!(read(&pair.a, forth.id()).direction, None);
}

fn others_sa() {
    let namespace = Namespace::new();
    namespace.ip("xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 reqid 1 mode tunnel \
         aead rfc4106(gcm(aes)) 0x0102030405060708090a0b0c0d0e0f1011121314 128");
    let before = namespace.ip("xfrm state");
    namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let params = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1);
        assert!(matches!(xfrm.add_sa(&params), Err(Error::SaExists { .. })));
        assert!(matches!(xfrm.update_sa(&params), Err(Error::SaOfOther { reqid: 1, .. })));
        assert!(matches!(xfrm.install_inbound(&params), Err(Error::SaOfOther { reqid: 1, .. })));
        assert!(matches!(xfrm.delete_sa(params.id()), Err(Error::SaOfOther { reqid: 1, .. })));
        assert!(reconcile::sas(&[], &xfrm.sas().unwrap()).is_empty());
    });
    assert_eq!(namespace.ip("xfrm state"), before);
}

fn limits() {
    let pair = pair();
    let limits = Limits { soft_packets: Some(2), hard_packets: Some(4), ..Limits::default() };
    let forth = SaParams { limits, ..sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1) };
    let back = SaParams { limits: Limits::default(), ..reversed(&forth, 0x1001) };
    connect(&pair, &forth, &back, None);
    let mut events = pair.a.run(|| EventSocket::open().unwrap());
    for _ in 0..6 {
        pair.a.send("10.77.0.1", "10.77.1.1:7", "count");
    }
    let mut expired = Vec::new();
    while expired.len() < 2 {
        if let Event::Expire { id, reqid, hard } = next(&mut events) {
            assert_eq!((id, reqid), (forth.id(), forth.reqid.raw()));
            expired.push(hard);
        }
    }
    assert_eq!(expired, [false, true]);
    let id = forth.id();
    pair.a.run(move || assert_eq!(Xfrm::open().unwrap().sa(id).unwrap(), None));
}

fn mapping() {
    let pair = pair();
    let encap = Some(Encap::udp(4500, 4500));
    let forth = SaParams { encap, ..sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1) };
    let back = reversed(&forth, 0x1001);
    connect(&pair, &forth, &back, None);
    talk(&pair);
    let mut events = pair.b.run(|| EventSocket::open().unwrap());

    // A now sends from another port, as if a NAT had changed its mapping.
    let _socket = esp_socket(&pair.a, "0.0.0.0:4999");
    let moved = Some(Encap::udp(4999, 4500));
    let update =
        |namespace: &Namespace, sa: SaParams| namespace.run(move || Xfrm::open().unwrap().update_sa(&sa).unwrap());
    let sequence = read(&pair.a, forth.id()).counters.sent_sequence;
    update(&pair.a, SaParams { encap: moved, ..forth.clone() });
    assert_eq!(
        read(&pair.a, forth.id()).counters.sent_sequence,
        sequence,
        "a changed port must not begin sequence numbers anew"
    );
    let server = pair.b.listen("10.77.1.1:7");
    pair.a.send("10.77.0.1", "10.77.1.1:7", "moved");
    assert_eq!(receive(&server), "moved");
    let Event::Mapping { id, reqid, old, new } = next(&mut events) else { panic!("not a mapping") };
    assert_eq!((id, reqid), (forth.id(), forth.reqid.raw()));
    assert_eq!((old.to_string().as_str(), new.to_string().as_str()), ("192.0.2.1:4500", "192.0.2.1:4999"));

    // B updates the SAs of both directions, and A updates its inbound SA.
    let inbound = SaParams { direction: SaDirection::In, encap: moved, ..forth.clone() };
    update(&pair.b, inbound);
    let followed = reversed(&SaParams { encap: moved, ..forth.clone() }, back.spi);
    update(&pair.b, SaParams { direction: SaDirection::Out, ..followed.clone() });
    update(&pair.a, SaParams { direction: SaDirection::In, ..followed.clone() });
    assert_eq!(read(&pair.b, back.id()).encap, followed.encap);
    drop(server);
    talk(&pair);
}

fn deleted_by_another() {
    let namespace = Namespace::new();
    let mut events = namespace.run(|| EventSocket::open().unwrap());
    let params = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1);
    let other = SaParams { spi: 0x1001, ..params.clone() };
    let (one, two) = (params.clone(), other.clone());
    namespace.run(move || {
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.add_sa(&one).unwrap();
        xfrm.add_sa(&two).unwrap();
    });
    for id in [params.id(), other.id()] {
        assert!(matches!(next(&mut events), Event::SaChanged(sa) if sa.id == id));
    }
    namespace.ip("xfrm state delete src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000");
    assert_eq!(next(&mut events), Event::SaDeleted { id: params.id(), reqid: Some(params.reqid.raw()) });
    let expected = ExpectedSa { id: params.id(), reqid: params.reqid.raw(), encap: None };
    let plan = namespace.run(move || reconcile::sas(&[expected], &Xfrm::open().unwrap().sas().unwrap()));
    assert_eq!(plan.missing, [expected]);
    assert_eq!(plan.stray.iter().map(|sa| sa.id).collect::<Vec<_>>(), [other.id()]);
    namespace.ip("xfrm state flush");
    assert_eq!(next(&mut events), Event::SasFlushed);
}

fn granted_by_policies() {
    let pair = pair();
    let forth = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1);
    connect(&pair, &forth, &reversed(&forth, 0x1001), None);
    // Node `a` installs a policy for another network, as a hostile member would.
    pair.a.ip("addr add 10.77.5.1/32 dev lo");
    let reqid = forth.reqid;
    pair.a.run(move || {
        let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let policy = Policy::protect_out(selector("10.77.5.0/24", "10.77.1.0/24"), reqid, here, there);
        Xfrm::open().unwrap().install_policy(&policy).unwrap();
    });
    pair.a.send("10.77.5.1", "10.77.1.1:7", "forged");
    pair.b.await_counter("XfrmInNoPols", 1);

    let grant = |n: u32| {
        let policy =
            Policy::protect_in(Direction::In, selector("10.77.5.0/24", "10.77.1.0/24"), Reqid::tunnel(n).unwrap());
        pair.b.run(move || Xfrm::open().unwrap().install_policy(&policy).unwrap());
    };
    grant(2);
    pair.a.send("10.77.5.1", "10.77.1.1:7", "forged");
    pair.b.await_counter("XfrmInTmplMismatch", 1);

    let server = pair.b.listen("10.77.1.1:7");
    grant(1);
    pair.a.send("10.77.5.1", "10.77.1.1:7", "granted");
    assert_eq!(receive(&server), "granted");
}

fn wrong_key() {
    let pair = pair();
    let forth = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1);
    let back = reversed(&forth, 0x1001);
    connect(&pair, &forth, &back, None);
    let key = EspKey::new(Algorithm::Aes128Gcm16, &[7; 20]).unwrap();
    let (id, other) = (forth.id(), SaParams { key, direction: SaDirection::Out, ..forth.clone() });
    pair.a.run(move || {
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.delete_sa(id).unwrap();
        xfrm.add_sa(&other).unwrap();
    });
    pair.a.send("10.77.0.1", "10.77.1.1:7", "garbled");
    pair.b.await_counter("XfrmInStateProtoError", 1);
    assert_eq!(read(&pair.b, forth.id()).counters.integrity_failures, 1);
}

fn with_selector() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let selector = selector("10.1.0.0/16", "10.2.0.0/16");
        let plain = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1);
        let params = SaParams { selector: Some(selector), ..plain };
        xfrm.add_sa(&params).unwrap();
        let seen = xfrm.sa(params.id()).unwrap().unwrap();
        assert_eq!(seen.selector, Some(selector));
        // XFRM_STATE_AF_UNSPEC
        assert_eq!(seen.flags & 32, 0);
        let any = SaParams { selector: None, spi: 0x1001, ..params };
        xfrm.add_sa(&any).unwrap();
        assert_eq!(xfrm.sa(any.id()).unwrap().unwrap().flags & 32, 32);
    });
}

/// Checks that the error of a refused SA contains no key. The kernel refuses the SA because it has
/// no ESP or, if it has ESP, because the SA exists already.
fn refused_without_key() {
    Namespace::new().run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let params = sa(SaDirection::In, "192.0.2.2", "192.0.2.1", 0x1000, 1);
        let error = xfrm.add_sa(&params).and_then(|()| xfrm.add_sa(&params)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. } | Error::SaExists { .. }), "{error}");
        let said = format!("{error} {error:?} {xfrm:?} {params:?}");
        let numbers = |separator: &str, hex: bool| {
            KEY[..4]
                .iter()
                .map(|b| if hex { format!("{b:02x}") } else { b.to_string() })
                .collect::<Vec<_>>()
                .join(separator)
        };
        for trace in ["sixteen bytes".to_owned(), numbers(", ", false), numbers("", true), numbers(" ", true)] {
            assert!(!said.contains(&trace), "{said}");
        }
    });
}
