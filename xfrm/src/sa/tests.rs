use netlink_packet_core::{Emitable, NetlinkSerializable};

use super::*;
use crate::error::Error;
use crate::message::XfrmRequest;

/// Bytes that would be recognizable in hexadecimal, decimal and text output.
const KEY: [u8; 36] = *b"ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ";

fn params() -> SaParams {
    SaParams {
        direction: SaDirection::Out,
        source: "192.0.2.1".parse().unwrap(),
        destination: "192.0.2.2".parse().unwrap(),
        spi: 0xc000_0001,
        reqid: Reqid::tunnel(1).unwrap(),
        mode: Mode::Tunnel,
        key: EspKey::new(Algorithm::Aes256Gcm16, &KEY).unwrap(),
        encap: Some(Encap::udp(4500, 4501)),
        replay: Replay::ESN,
        selector: None,
        limits: Limits { soft_packets: Some(1 << 30), ..Limits::default() },
    }
}

fn bytes(params: &SaParams, features: Features) -> Vec<u8> {
    let message = params.to_kernel(features).unwrap();
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

#[test]
fn nothing_that_can_be_printed_shows_a_key() {
    let shown = |text: String| {
        for trace in ["ZZ", "5a5a", "5A5A", "90, 90"] {
            assert!(!text.contains(trace), "{text}");
        }
    };
    let params = params();
    shown(format!("{params:?} {:?} {params:#?}", params.key));
    let decoded = Sa::decode(&bytes(&params, Features::default())).unwrap();
    shown(format!("{decoded:?}"));
    shown(format!("{:?}", crate::events::Event::SaChanged(Box::new(decoded))));
    for error in [
        Error::SaExists { id: params.id() },
        Error::NoSuchSa { id: params.id() },
        EspKey::new(Algorithm::Aes128Gcm16, &KEY).unwrap_err().into(),
        Error::Unsupported { algorithm: params.key.algorithm().kernel_name(), reason: "no".into() },
    ] {
        shown(format!("{error:?} {error}"));
    }
}

#[test]
fn a_key_of_the_wrong_length_is_refused_by_lengths_alone() {
    let error = EspKey::new(Algorithm::Aes128Gcm16, &KEY).unwrap_err().to_string();
    assert_eq!(error, "rfc4106(gcm(aes)) takes 20 bytes of keying material, 36 were given");
}

#[test]
fn what_is_sent_is_what_was_asked_for() {
    for (features, direction) in
        [(Features::default(), None), (Features { sa_direction: true, ..Features::default() }, Some(SaDirection::Out))]
    {
        let sa = Sa::decode(&bytes(&params(), features)).unwrap();
        assert_eq!((sa.id, sa.source, sa.reqid), (params().id(), params().source, params().reqid.raw()));
        assert_eq!((sa.protocol, sa.mode, sa.encap, sa.esn), (50, 1, params().encap, true));
        assert_eq!((sa.direction, sa.selector), (direction, None));
        assert_eq!(sa.flags, nl::XFRM_STATE_AF_UNSPEC | nl::XFRM_STATE_ESN);
        // An older kernel refuses a window of 0 with ESN. A newer one refuses any other window.
        assert_eq!(sa.replay_window, u32::from(!features.sa_direction));
    }
    let inbound = SaParams { direction: SaDirection::In, replay: Replay::PLAIN, ..params() };
    let sa = Sa::decode(&bytes(&inbound, Features::default())).unwrap();
    assert_eq!((sa.replay_window, sa.esn), (1024, false));
}

fn cbc() -> SaParams {
    let algorithm = Algorithm::AesCbc(AesKeyLength::Bits192, Integrity::HmacSha384);
    SaParams { key: EspKey::new(algorithm, &[KEY, KEY].concat()).unwrap(), ..params() }
}

#[test]
fn a_request_wipes_its_keys_when_it_goes() {
    // The request owns the attribute's buffer, so the test cannot read the buffer after a drop.
    // Instead, it calls `wipe`, as `drop` does.
    for params in [params(), cbc()] {
        let mut message = nl::XfrmMessage::AddSa(params.to_kernel(Features::default()).unwrap());
        crate::message::wipe(&mut message);
        let mut sent = vec![0; NetlinkSerializable::buffer_len(&message)];
        message.serialize(&mut sent);
        assert!(!sent.windows(4).any(|window| window == &KEY[..4]));
        drop(XfrmRequest::from(message));
    }
}

#[test]
fn an_sa_without_an_aead_has_two_algorithms_and_is_named_by_its_cipher() {
    let attributes = cbc().to_kernel(Features::default()).unwrap().nlas;
    let cipher = attributes.iter().find_map(|attribute| match attribute {
        nl::XfrmAttrs::EncryptionAlg(alg) => Some((alg.alg_key_len, alg.alg_key.len())),
        _ => None,
    });
    let integrity = attributes.iter().find_map(|attribute| match attribute {
        nl::XfrmAttrs::AuthenticationAlgTrunc(alg) => Some((alg.alg_key_len, alg.alg_trunc_len, alg.alg_key.len())),
        _ => None,
    });
    assert_eq!((cipher, integrity), (Some((192, 24)), Some((384, 192, 48))));
    assert_eq!(Sa::decode(&bytes(&cbc(), Features::default())).unwrap().algorithm.as_deref(), Some("cbc(aes)"));
}

#[test]
fn transport_mode_has_the_family_of_its_addresses_and_no_other() {
    let of = |mode| params_in(mode).to_kernel(Features::default()).unwrap().user_sa_info;
    let (tunnel, transport) = (of(Mode::Tunnel), of(Mode::Transport));
    assert_eq!((tunnel.mode, transport.mode), (nl::XFRM_MODE_TUNNEL, nl::XFRM_MODE_TRANSPORT));
    let unspecified = |info: &nl::UserSaInfo| info.flags & nl::XFRM_STATE_AF_UNSPEC != 0;
    // The kernel refuses transport mode with XFRM_STATE_AF_UNSPEC.
    assert!(unspecified(&tunnel) && !unspecified(&transport));
}

fn params_in(mode: Mode) -> SaParams {
    SaParams { mode, ..params() }
}

#[test]
fn tunnel_ends_of_different_families_are_refused() {
    let mixed = SaParams { source: "2001:db8::1".parse().unwrap(), ..params() };
    assert!(matches!(mixed.to_kernel(Features::default()), Err(MixedFamilies { .. })));
}
