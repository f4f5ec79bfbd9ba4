use netlink_packet_core::Emitable;
use proptest::prelude::*;

use super::*;
use crate::policy::{Direction, Policy};
use crate::sa::{Algorithm, EspKey, Features, Limits, Replay, SaDirection, SaParams};
use crate::{Mode, Reqid, Selector};

fn selector() -> Selector {
    Selector::new("10.77.0.0/26".parse().unwrap(), "10.77.1.0/26".parse().unwrap()).unwrap()
}

fn params() -> SaParams {
    SaParams {
        direction: SaDirection::In,
        source: "2001:db8::2".parse().unwrap(),
        destination: "2001:db8::1".parse().unwrap(),
        spi: 0xc001_0203,
        reqid: Reqid::tunnel(7).unwrap(),
        mode: Mode::Tunnel,
        key: EspKey::new(Algorithm::ChaCha20Poly1305, &[0x5a; 36]).unwrap(),
        encap: None,
        replay: Replay::ESN,
        selector: None,
        limits: Limits::default(),
    }
}

/// Makes a message with its netlink header.
fn message(kind: u16, port: u32, body: &[u8]) -> Vec<u8> {
    let length = (16 + body.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend([0; 4]);
    bytes.extend(port.to_ne_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn emitted(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn parsed(kind: u16, body: &[u8]) -> Result<Option<Event>, String> {
    let bytes = message(kind, 0, body);
    let frame = Frames::new(&bytes).next().unwrap()?;
    parse(&frame)
}

#[test]
fn expire_names_the_sa_its_reqid_and_whether_it_is_gone() {
    let state = params().to_kernel(Features::default()).unwrap().user_sa_info;
    for hard in [0, 1] {
        let body = emitted(&nl::UserExpire { state, hard });
        let expected = Event::Expire { id: params().id(), reqid: params().reqid.raw(), hard: hard == 1 };
        assert_eq!(parsed(nl::XFRM_MSG_EXPIRE, &body), Ok(Some(expected)));
    }
}

#[test]
fn the_end_of_an_sa_of_another_protocol_with_the_same_destination_and_spi_is_not_reported() {
    const AH: u8 = 51;
    let mut state = params().to_kernel(Features::default()).unwrap().user_sa_info;
    let mut id = params().id().to_kernel();
    let deleted = Event::SaDeleted { id: params().id(), reqid: None };
    assert_eq!(parsed(nl::XFRM_MSG_DELSA, &emitted(&id)), Ok(Some(deleted)));
    (state.id.proto, id.proto) = (AH, AH);
    assert_eq!(parsed(nl::XFRM_MSG_EXPIRE, &emitted(&nl::UserExpire { state, hard: 1 })), Ok(None));
    assert_eq!(parsed(nl::XFRM_MSG_DELSA, &emitted(&id)), Ok(None));
}

#[test]
fn a_mapping_names_both_addresses_with_their_ports() {
    let map = nl::UserMapping {
        id: params().id().to_kernel(),
        reqid: params().reqid.raw(),
        old_saddr: nl::Address::from_ip(&"2001:db8::2".parse().unwrap()),
        new_saddr: nl::Address::from_ip(&"2001:db8::3".parse().unwrap()),
        old_sport: 4500,
        new_sport: 61000,
    };
    let expected = Event::Mapping {
        id: params().id(),
        reqid: params().reqid.raw(),
        old: "[2001:db8::2]:4500".parse().unwrap(),
        new: "[2001:db8::3]:61000".parse().unwrap(),
    };
    assert_eq!(parsed(nl::XFRM_MSG_MAPPING, &emitted(&map)), Ok(Some(expected)));
}

#[test]
fn an_acquire_takes_reqid_and_outer_family_from_its_template() {
    let here = "2001:db8::1".parse().unwrap();
    let there = "2001:db8::2".parse().unwrap();
    let policy = Policy::protect_out(selector(), params().reqid, here, there).to_kernel(0);
    let acquire = nl::UserAcquire {
        id: nl::Id { daddr: nl::Address::from_ip(&there), ..nl::Id::default() },
        saddr: nl::Address::from_ip(&here),
        selector: selector().to_kernel(),
        policy: nl::UserPolicyInfo { index: 77, ..policy.user_policy_info },
        ..nl::UserAcquire::default()
    };
    let body = emitted(&nl::AcquireMessage { acquire, nlas: policy.nlas });
    let expected = Event::Acquire {
        reqid: params().reqid.raw(),
        selector: selector(),
        source: here,
        destination: there,
        policy_index: 77,
    };
    assert_eq!(parsed(nl::XFRM_MSG_ACQUIRE, &body), Ok(Some(expected)));
}

#[test]
fn a_deleted_policy_is_told_with_its_templates() {
    let policy = Policy::block(Direction::Fwd, selector());
    let raw = policy.to_kernel(9);
    let mut nlas = vec![nl::XfrmAttrs::PolicyInfo(raw.user_policy_info)];
    nlas.extend(raw.nlas);
    let body = emitted(&nl::policy::DelGetMessage { user_policy_id: nl::UserPolicyId::default(), nlas });
    let Ok(Some(Event::PolicyDeleted(deleted))) = parsed(nl::XFRM_MSG_DELPOLICY, &body) else { panic!() };
    assert!(deleted.matches(&policy), "{deleted}");
}

#[test]
fn short_bodies_are_errors_and_unknown_types_are_passed_over() {
    for kind in nl::XFRM_MSG_BASE..0x30 {
        for length in [0, 1, 8, 15, 23, 55, 63, 167, 223, 231, 279] {
            // Most bodies are too short. None may cause a panic.
            let _ = parsed(kind, &vec![0; length]);
        }
    }
    assert!(parsed(nl::XFRM_MSG_EXPIRE, &[0; 100]).is_err());
    assert_eq!(parsed(0x99, &[]), Ok(None));
}

proptest! {
    #[test]
    fn arbitrary_datagrams_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        for frame in Frames::new(&bytes) {
            let _ = frame.and_then(|frame| parse(&frame));
        }
    }

    #[test]
    fn arbitrary_bodies_and_attributes_never_panic(
        kind in nl::XFRM_MSG_BASE..0x30u16,
        body in proptest::collection::vec(any::<u8>(), 0..400),
        attribute in 0..45u16,
        value in proptest::collection::vec(any::<u8>(), 0..90),
        fixed in proptest::sample::select(vec![0usize, 24, 56, 64, 168, 224, 232, 280]),
        family in proptest::sample::select(vec![0u8, 2, 10]),
    ) {
        let _ = parsed(kind, &body);
        // A body of the right length, followed by one attribute.
        let mut whole = vec![family; fixed];
        whole.extend((4 + value.len() as u16).to_ne_bytes());
        whole.extend(attribute.to_ne_bytes());
        whole.extend(&value);
        let _ = parsed(kind, &whole);
    }

    #[test]
    fn a_truncated_message_never_panics(cut in 0usize..700) {
        let mut sa = message(nl::XFRM_MSG_NEWSA, 0, &emitted(&params().to_kernel(Features::default()).unwrap()));
        sa.truncate(cut);
        for frame in Frames::new(&sa) {
            let _ = frame.and_then(|frame| parse(&frame));
        }
    }
}
