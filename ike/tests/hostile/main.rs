//! Tests a hostile peer that knows the secret, and an attacker that does not. Whatever they send,
//! the endpoint must not panic, its events must not contradict each other, its state must not grow
//! without limit, and no state may be left at the end of the test.

mod eavesdropper;
mod error_reports;
mod kernel;
mod peer;

use std::time::Duration;

use edge_ike::Identity;
use edge_ike::wire::{
    Attribute, Certificate, CertificateEncoding, CertificateRequest, Delete, ExchangeType, Id, KeyExchange, Notify,
    NotifyType, Payload, Payloads, Proposal, Protocol, TrafficSelector, Transform, TransformType,
};
use peer::{Hostile, World};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// One step of a hostile peer that knows the secret.
#[derive(Debug, Clone)]
enum Step {
    /// An authentic request of any exchange, with any payloads.
    Request(u8, Vec<Part>),
    /// An authentic response, even if we sent no request.
    Answer(u8, u32, Vec<Part>),
    /// A request in fragments.
    Fragments(Vec<Part>),
    /// Several authentic requests at once, in any order, in fragments if the number is odd.
    Several(Vec<(u8, Vec<Part>)>, Vec<Index>, u8),
    /// The peer's last datagrams are sent again, with one octet changed.
    Mutilated(Index, u8),
    /// The peer's last datagrams are sent again.
    Again,
    /// A period of time, milliseconds.
    Wait(u64),
    /// A command from our owner.
    Owner(u8),
    /// We rekey the CHILD_SA, and the peer responds. Before its response it may send a request.
    Crossing(Option<Vec<Part>>, Vec<Part>),
    /// The peer initiates again, with or without INITIAL_CONTACT.
    Begin(bool),
}

/// One payload. It may contain SPIs of existing SAs.
#[derive(Debug, Clone)]
enum Part {
    Plain(Payload),
    /// REKEY_SA for an inbound SPI of the peer, or for another SPI.
    Rekey(u8),
    /// DELETE for such SPIs as in `Rekey`.
    Delete(Vec<u8>),
    /// A valid ESP proposal with one of the peer's SPIs.
    Esp(bool),
    /// A valid IKE proposal with one of the peer's SPIs.
    Ike(u64),
    /// A valid public key.
    Key,
    /// A nonce whose octets are all the same, so that it is lower or higher than ours.
    Nonce(u8),
    /// Selectors for all traffic.
    Everything,
    /// The peer's true identity.
    Identity,
    /// An error notification.
    Refusal(NotifyType),
}

fn plain() -> impl Strategy<Value = Payload> {
    let octets = |most: usize| vec(any::<u8>(), 0..most);
    let transform =
        (0..14_u8, any::<u16>(), proptest::option::of(any::<u16>())).prop_map(|(kind, id, bits)| Transform {
            kind: TransformType::from(kind),
            id,
            attributes: bits.map(Attribute::KeyLength).into_iter().collect(),
        });
    let proposal =
        (any::<u8>(), 0..5_u8, octets(9), vec(transform, 0..6)).prop_map(|(number, protocol, spi, transforms)| {
            Proposal { number, protocol: protocol.into(), spi, transforms }
        });
    let selector = any::<(u8, u32, u32)>().prop_map(|(protocol, a, b)| TrafficSelector {
        protocol: if protocol < 128 { 0 } else { protocol },
        start_port: 0,
        end_port: u16::MAX,
        start: std::net::Ipv4Addr::from(a.min(b)).into(),
        end: std::net::Ipv4Addr::from(a.max(b)).into(),
    });
    let known = prop::sample::select(vec![
        NotifyType::InitialContact,
        NotifyType::RekeySa,
        NotifyType::Cookie,
        NotifyType::SetWindowSize,
        NotifyType::UseTransportMode,
        NotifyType::MobikeSupported,
    ]);
    prop_oneof![
        vec(proposal, 0..4).prop_map(Payload::SecurityAssociation),
        (prop_oneof![Just(31), Just(19), any::<u16>()], octets(70))
            .prop_map(|(group, data)| Payload::KeyExchange(KeyExchange { group, data })),
        vec(any::<u8>(), 16..40).prop_map(Payload::Nonce),
        (prop_oneof![known, any::<u16>().prop_map(NotifyType::from)], 0..5_u8, octets(9), octets(9)).prop_map(
            |(kind, protocol, spi, data)| Payload::Notify(Notify { kind, protocol: protocol.into(), spi, data })
        ),
        Just(Payload::Delete(Delete::Ike)),
        (2..4_u8, vec(any::<u32>(), 0..5))
            .prop_map(|(protocol, spis)| Payload::Delete(Delete::Children { protocol: protocol.into(), spis })),
        vec(selector.clone(), 0..4).prop_map(Payload::TrafficSelectorsInitiator),
        vec(selector, 0..4).prop_map(Payload::TrafficSelectorsResponder),
        (47..=255_u8, octets(20))
            .prop_filter("what is encrypted has no place inside", |(kind, _)| *kind != 53)
            .prop_map(|(kind, data)| Payload::Unknown { kind: kind.into(), data }),
        octets(40).prop_map(|data| {
            Payload::Certificate(Certificate { encoding: CertificateEncoding::X509Signature, data })
        }),
        octets(40).prop_map(|authorities| {
            Payload::CertificateRequest(CertificateRequest {
                encoding: CertificateEncoding::X509Signature,
                authorities,
            })
        }),
        octets(20).prop_map(|name| Payload::IdInitiator(Id::from(&Identity::KeyId(name)))),
    ]
}

fn refusal() -> impl Strategy<Value = Part> {
    let errors = vec![
        NotifyType::TemporaryFailure,
        NotifyType::ChildSaNotFound,
        NotifyType::NoAdditionalSas,
        NotifyType::InvalidKePayload,
        NotifyType::NoProposalChosen,
        NotifyType::TsUnacceptable,
        NotifyType::InvalidSyntax,
        NotifyType::AuthenticationFailed,
    ];
    prop::sample::select(errors).prop_map(Part::Refusal)
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        2 => plain().prop_map(Part::Plain),
        2 => any::<u8>().prop_map(Part::Rekey),
        2 => vec(any::<u8>(), 1..4).prop_map(Part::Delete),
        2 => any::<bool>().prop_map(Part::Esp),
        1 => any::<u64>().prop_map(Part::Ike),
        2 => Just(Part::Key),
        2 => any::<u8>().prop_map(Part::Nonce),
        2 => Just(Part::Everything),
        1 => Just(Part::Identity),
        2 => refusal(),
    ]
}

/// Generates the parts of well-formed requests, so that steps pass the first checks.
fn parts() -> impl Strategy<Value = Vec<Part>> {
    let rekey_child = (any::<u8>(), any::<u8>(), any::<bool>()).prop_map(|(old, nonce, key)| {
        let key = key.then_some(Part::Key);
        [Part::Rekey(old % 4), Part::Esp(true), Part::Nonce(nonce), Part::Everything].into_iter().chain(key).collect()
    });
    let rekey_ike = any::<(u64, u8)>().prop_map(|(spi, nonce)| vec![Part::Ike(spi), Part::Nonce(nonce), Part::Key]);
    let create = any::<u8>().prop_map(|nonce| vec![Part::Esp(true), Part::Nonce(nonce), Part::Key, Part::Everything]);
    prop_oneof![
        4 => vec(part(), 0..6),
        4 => rekey_child,
        2 => rekey_ike,
        1 => create,
        2 => any::<u8>().prop_map(|old| vec![Part::Delete(vec![old % 4])]),
        1 => Just(Vec::new()),
    ]
}

/// Generates possible responses to our CREATE_CHILD_SA request.
fn child_answer() -> impl Strategy<Value = Vec<Part>> {
    let agreed = any::<u8>().prop_map(|nonce| vec![Part::Esp(true), Part::Nonce(nonce), Part::Key, Part::Everything]);
    prop_oneof![3 => agreed, 2 => refusal().prop_map(|refusal| vec![refusal]), 1 => parts()]
}

fn step() -> impl Strategy<Value = Step> {
    let exchange = prop_oneof![3 => Just(36_u8), 3 => Just(37), 1 => Just(35), 1 => Just(34), 1 => any::<u8>()];
    prop_oneof![
        6 => (exchange.clone(), parts()).prop_map(|(exchange, parts)| Step::Request(exchange, parts)),
        6 => (exchange.clone(), 0..3_u32, parts()).prop_map(|(exchange, back, parts)| Step::Answer(exchange, back, parts)),
        1 => parts().prop_map(Step::Fragments),
        2 => (vec((exchange, parts()), 1..7), vec(any::<Index>(), 1..20), any::<u8>())
            .prop_map(|(requests, order, odd)| Step::Several(requests, order, odd)),
        1 => any::<(Index, u8)>().prop_map(|(at, value)| Step::Mutilated(at, value)),
        1 => Just(Step::Again),
        2 => (0..20_000_u64).prop_map(Step::Wait),
        3 => any::<u8>().prop_map(Step::Owner),
        6 => (proptest::option::of(parts()), child_answer()).prop_map(|(own, answer)| Step::Crossing(own, answer)),
        1 => any::<bool>().prop_map(Step::Begin),
    ]
}

fn payloads(parts: &[Part], hostile: &Hostile, world: &World) -> Payloads {
    let mut payloads = Payloads::new();
    for part in parts {
        match part {
            Part::Plain(payload) => payloads.push(payload.clone()),
            Part::Rekey(which) => {
                payloads.push_notify(Notify::about_child(NotifyType::RekeySa, world.outbound_spi(*which)))
            }
            Part::Delete(which) => payloads.push(Payload::Delete(Delete::Children {
                protocol: Protocol::Esp,
                spis: which.iter().map(|which| world.outbound_spi(*which)).collect(),
            })),
            Part::Esp(group) => {
                payloads.push(Payload::SecurityAssociation(vec![peer::esp(hostile.fresh_spi(), *group)]))
            }
            Part::Ike(spi) => payloads.push(Payload::SecurityAssociation(vec![peer::ike(*spi)])),
            Part::Key => payloads.push(Payload::KeyExchange(hostile.key())),
            Part::Nonce(octet) => payloads.push(Payload::Nonce(vec![*octet; 32])),
            Part::Everything => {
                payloads.push(Payload::TrafficSelectorsInitiator(peer::everything()));
                payloads.push(Payload::TrafficSelectorsResponder(peer::everything()));
            }
            Part::Refusal(kind) => payloads.push_notify(Notify::new(*kind)),
            Part::Identity => payloads.push(Payload::IdInitiator(peer::hostile_id())),
        }
    }
    payloads
}

fn take(step: &Step, hostile: &mut Hostile, world: &mut World) {
    match step {
        Step::Request(exchange, parts) => {
            let payloads = payloads(parts, hostile, world);
            hostile.request(ExchangeType::from(*exchange), &payloads, None, world);
        }
        Step::Fragments(parts) => {
            let mut payloads = payloads(parts, hostile, world);
            payloads.push(Payload::VendorId(vec![7; 900]));
            hostile.request(ExchangeType::Informational, &payloads, Some(300), world);
        }
        Step::Several(requests, order, odd) => {
            let limit = (odd % 2 == 1).then_some(300);
            let requests: Vec<_> = requests
                .iter()
                .map(|(exchange, parts)| (ExchangeType::from(*exchange), payloads(parts, hostile, world)))
                .collect();
            hostile.several(&requests, order, limit, world);
        }
        Step::Answer(exchange, back, parts) => {
            let payloads = payloads(parts, hostile, world);
            hostile.answer(ExchangeType::from(*exchange), *back, &payloads, world);
        }
        Step::Mutilated(at, value) => hostile.again(world, |datagram| {
            let at = at.index(datagram.len());
            datagram[at] = *value;
        }),
        Step::Again => hostile.again(world, |_| {}),
        Step::Wait(milliseconds) => world.wait(Duration::from_millis(*milliseconds)),
        Step::Owner(what) => world.owner(*what),
        Step::Crossing(own, answer) => {
            world.owner(0);
            if let Some(own) = own {
                let own = payloads(own, hostile, world);
                hostile.request(ExchangeType::CreateChildSa, &own, None, world);
            }
            let answer = payloads(answer, hostile, world);
            hostile.answer(ExchangeType::CreateChildSa, 0, &answer, world);
        }
        Step::Begin(initial_contact) => {
            if let Some(new) = Hostile::establish(world, *initial_contact) {
                *hostile = new;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_peer_that_knows_the_secret_can_neither_break_nor_fill_us(seed in 1..u64::MAX, steps in vec(step(), 1..40)) {
        let mut world = World::new(seed);
        let mut hostile = Hostile::establish(&mut world, false).expect("an honest beginning succeeds");
        for step in &steps {
            take(step, &mut hostile, &mut world);
            prop_assert!(world.kernel.inbound.len() <= 64, "SAs do not pile up: {}", world.kernel.inbound.len());
            prop_assert!(world.kernel.reserved.len() <= 16, "nor do reserved SPIs: {:?}", world.kernel.reserved);
        }
        world.remove_all();
        prop_assert!(world.kernel.is_empty(), "{:?}", world.kernel);
    }

    #[test]
    fn a_peer_that_answers_what_it_likes_can_neither_break_nor_fill_us(
        seed in 1..u64::MAX,
        answers in vec((0..3_u8, parts(), proptest::option::of(any::<(Index, u8)>())), 1..30),
    ) {
        let mut world = World::new(seed);
        world.begin();
        for (shape, parts, change) in &answers {
            peer::answer_anything(&mut world, *shape, |hostile, world| payloads(parts, hostile, world), change.as_ref());
            world.wait(Duration::from_millis(400));
        }
        world.remove_all();
        prop_assert!(world.kernel.is_empty(), "{:?}", world.kernel);
    }

    #[test]
    fn a_stranger_leaves_nothing_behind(
        seed in 1..u64::MAX,
        datagrams in vec((any::<[u8; 16]>(), 30..60_u8, any::<[u8; 4]>(), vec(plain(), 0..6), any::<Index>(), any::<u8>()), 1..30),
    ) {
        let mut world = World::new(seed);
        for (spis, exchange, rest, payloads, at, value) in &datagrams {
            let mut datagram = peer::in_clear(*spis, *exchange, *rest, payloads.iter().cloned().collect());
            world.deliver(&datagram);
            let at = at.index(datagram.len());
            datagram[at] = *value;
            world.deliver(&datagram);
        }
        prop_assert!(world.kernel.is_empty());
        world.wait(Duration::from_secs(60));
        world.remove_all();
        prop_assert!(world.kernel.is_empty());
    }
}

#[test]
fn a_thousand_beginnings_of_a_stranger_are_forgotten_after_a_minute() {
    let mut world = World::new(7);
    for number in 1..1000_u64 {
        world.deliver(&Hostile::first_request(number));
    }
    // All in one moment: one source gets 256 answers without an IKE SA a second.
    assert_eq!(world.cookies, 256, "from some number on cookies are asked for");
    world.wait(Duration::from_secs(60));
    world.remove_all();
    assert!(world.endpoint.poll_timeout().is_none(), "nothing is waited for");
}
