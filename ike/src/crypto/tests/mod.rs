//! Tests of the cryptography. Known answers come from the RFCs or were computed with Python's
//! `hmac`, `hashlib` and `cryptography`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::{AesKeyLength, Cipher, Group, Integrity, Prf};
use crate::event::IkeId;
use crate::wire::{
    Certificate, CertificateEncoding, ExchangeType, Header, KeyExchange, Notify, NotifyType, Payload, Payloads,
    Reassembly,
};
use crate::{Environment, Instant, PeerName, Secret};

mod aead;
mod cbc_hmac;
mod key_exchange;

/// An environment whose random octets are the same in every run.
struct Env(u8);

impl Environment for Env {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(5).wrapping_add(17);
            *byte = self.0;
        }
    }
    fn unix_time(&self) -> u64 {
        0
    }
    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        None
    }
    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn shown(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

// ---- keys

const IKE: IkeId = IkeId { initiator: 0x0102_0304_0506_0708, responder: 0x1112_1314_1516_1718 };

fn suite(prf: Prf, cipher: Cipher) -> IkeSuite {
    IkeSuite { cipher, prf, group: Group::X25519 }
}

fn inputs() -> (Vec<u8>, Vec<u8>, Secret, Secret) {
    let shared = |factor: u8, offset: u8| {
        Secret::new((0..32_u8).map(|at| at.wrapping_mul(factor).wrapping_add(offset)).collect())
    };
    ((0x10..0x30).collect(), (0x80..0x98).collect(), shared(7, 3), shared(11, 5))
}

fn keys(prf: Prf, cipher: Cipher) -> IkeKeys {
    let (ni, nr, shared, _) = inputs();
    IkeKeys::initial(suite(prf, cipher), Nonces { initiator: &ni, responder: &nr }, IKE, &shared)
}

#[test]
fn keys_of_an_ike_sa_are_those_of_an_independent_computation() {
    //= RFC 7296 2.13 MUST 3: SK_d, SK_pi and SK_pr
    //= RFC 7296 2.13 REQUIRED 5: prf+
    //= RFC 7296 2.14 MUST 1: lengths of SK_d, SK_pi and SK_pr
    //= RFC 7296 2.14 REQUIRED 2: SKEYSEED
    //= RFC 7296 2.14 REQUIRED 3: the order of the keys
    let sha256 = keys(Prf::HmacSha256, Cipher::Aes256Gcm16);
    assert_eq!(shown(sha256.key(IkeKey::D)), "8e6aad0f429087d742a90090e102bc19965447c2892ff1a8062f9df5df8b02da");
    assert_eq!(
        shown(sha256.key(IkeKey::Ei)),
        "d7141ed77824f0c30ef209b5fc38dc63f943986d38e3561c0397930d4a33697c847ccee8"
    );
    assert_eq!(
        shown(sha256.key(IkeKey::Er)),
        "59d25fd375b3e44ec07a6721688efcf7de0cabc9c2f5f5dcf350637450549bf3c288f028"
    );
    assert_eq!(shown(sha256.key(IkeKey::Pi)), "0c63f13f9c78de147f6b12baa0b79bf36bd3bb254e68def5e5911495ceccc24c");
    assert_eq!(shown(sha256.key(IkeKey::Pr)), "ee5a4129ca3f72533e2e4d8a26256020cf07047aec029a4d975271adcedafc3a");
    let sha384 = keys(Prf::HmacSha384, Cipher::Aes128Gcm16);
    assert_eq!(
        shown(sha384.key(IkeKey::D)),
        "ad78733f7e01d0fd94278bc70d88227eb6dd7f524fcab0e0533e0452df7e90d5dd84adb15db88c84019a0c9b2740b8f7"
    );
    assert_eq!(shown(sha384.key(IkeKey::Ei)), "119bd9aa4ac277bd812b15a8274244bcb71f9f5c");
    assert_eq!(shown(sha384.key(IkeKey::Er)), "56a4592b17052a554bf112d88f4c462b21827191");
    let sha512 = keys(Prf::HmacSha512, Cipher::ChaCha20Poly1305);
    assert_eq!(
        shown(sha512.key(IkeKey::Ei)),
        "d03228be2a5b1cbebd76dadbb2487f436847d776d5607cf9c53e8721bccf1b85c33a6ca5"
    );
    assert_eq!(
        shown(sha512.key(IkeKey::Pr)),
        "9be0a6649f8b93ec58234be684573fd711969c7364cdf9d3df2d80ccae547c6c\
         856fdb37f46c31d146bee1f8674c97a113033b4a0ae80e4307f2711bf62218c6"
    );
}

#[test]
fn keys_of_child_sas_are_those_of_an_independent_computation() {
    //= RFC 7296 2.17 MUST 1: keys of the initiator's direction first
    //= RFC 7296 2.17 MUST 2: the encryption key first
    //= RFC 7296 2.17 REQUIRED 3: KEYMAT
    let (ni, nr, _, fresh) = inputs();
    let nonces = Nonces { initiator: &ni, responder: &nr };
    let ike = keys(Prf::HmacSha256, Cipher::Aes256Gcm16);
    let first = ike.child(Cipher::Aes256Gcm16, nonces, None);
    assert_eq!(
        shown(first.from_initiator.expose()),
        "5d7635d6e3c81ef2c0699431e2cdf22d602e4876056187635616f7df417a173be9480b3c"
    );
    assert_eq!(
        shown(first.from_responder.expose()),
        "8f3ef255b55080cd6114b572738fb14d7cb069d449b72fcb432738186bb6e02a868f596e"
    );
    let with_secrecy = ike.child(Cipher::ChaCha20Poly1305, nonces, Some(&fresh));
    assert_eq!(
        shown(with_secrecy.from_initiator.expose()),
        "38881a60872fff9d249388d8e811d2350a86ea6be5cb0ad2b10c9f5c16206aa918061649"
    );
    assert_eq!(
        shown(with_secrecy.from_responder.expose()),
        "66c06e47ed7d2116a4acec18fac47c9e960a29ee9108e37e6ec2b57461cc9e7e0946603b"
    );
}

#[test]
fn a_rekeyed_ike_sa_derives_its_seed_by_the_old_prf_and_its_keys_by_the_new_one() {
    //= RFC 7296 2.18 REQUIRED 5: SKEYSEED of a rekey
    let (ni, nr, _, fresh) = inputs();
    let spis = IkeId { initiator: IKE.responder, responder: IKE.initiator };
    let new = suite(Prf::HmacSha256, Cipher::Aes256Gcm16);
    for (old, expected) in [
        (Prf::HmacSha256, "a8ca546974b1376da4bda69a7961182de1b152395dfce48afe7b4c624649e919"),
        (Prf::HmacSha384, "e738a3fe38cdd0594093517a768e6938ec1416190a87dd5b1769ebe2ca1af69d"),
        (Prf::HmacSha512, "4caf47b07193738b11240ee409dd171c16d3de703295e13329ac84a3fff1d289"),
    ] {
        let cipher = if old == Prf::HmacSha384 { Cipher::Aes128Gcm16 } else { Cipher::Aes256Gcm16 };
        let nonces = Nonces { initiator: &ni, responder: &nr };
        assert_eq!(shown(keys(old, cipher).rekey(new, nonces, spis, &fresh).key(IkeKey::D)), expected);
    }
}

#[test]
fn after_ike_auth_its_keys_are_gone_and_the_others_stay() {
    for cipher in [Cipher::Aes256Gcm16, CBC_SHA384] {
        let all = keys(Prf::HmacSha384, cipher);
        let kept = all.without_auth_keys();
        for key in [IkeKey::D, IkeKey::Ai, IkeKey::Ar, IkeKey::Ei, IkeKey::Er] {
            assert_eq!(shown(kept.key(key)), shown(all.key(key)), "{key:?}");
        }
        for key in [IkeKey::Pi, IkeKey::Pr] {
            assert_eq!((all.key(key).len(), kept.key(key).len()), (48, 0), "{key:?}");
        }
        // The exchange that replaces the IKE SA, and further CHILD_SAs, need SK_d alone.
        let (ni, nr, _, fresh) = inputs();
        let nonces = Nonces { initiator: &ni, responder: &nr };
        let child = |keys: &IkeKeys| shown(keys.child(cipher, nonces, None).from_initiator.expose());
        assert_eq!(child(&kept), child(&all));
        let next = |keys: &IkeKeys| shown(keys.rekey(all.suite, nonces, IKE, &fresh).key(IkeKey::Pr));
        assert_eq!(next(&kept), next(&all));
    }
}

#[test]
fn debug_shows_no_key() {
    let keys = keys(Prf::HmacSha256, Cipher::Aes256Gcm16);
    let cipher = IkeCipher::new(keys.clone(), IkeRole::Initiator);
    let pair = InitiatorKeyExchange::start(Group::X25519, &mut Env(1)).unwrap();
    let jar = Cookies::new(&mut Env(1), Instant::default());
    let shown_by_debug = format!("{keys:?} {cipher:?} {pair:?} {jar:?}");
    assert!(!shown_by_debug.contains("142, 106"), "the first octets of SK_d in decimal");
    assert!(!shown_by_debug.contains("8e6a"));
    assert_eq!(shown_by_debug.matches("<secret>").count(), 1);
}

// ---- cipher

const CBC_SHA256: Cipher = Cipher::AesCbc(AesKeyLength::Bits256, Integrity::HmacSha256);
const CBC_SHA384: Cipher = Cipher::AesCbc(AesKeyLength::Bits192, Integrity::HmacSha384);
const CBC_SHA512: Cipher = Cipher::AesCbc(AesKeyLength::Bits128, Integrity::HmacSha512);

fn header() -> Header {
    Header {
        initiator_spi: IKE.initiator,
        responder_spi: IKE.responder,
        exchange: ExchangeType::Informational,
        from_initiator: true,
        response: false,
        message_id: 5,
    }
}

fn pair(cipher: Cipher) -> (IkeCipher, IkeCipher) {
    let keys = keys(Prf::HmacSha256, cipher);
    (IkeCipher::new(keys.clone(), IkeRole::Initiator), IkeCipher::new(keys.clone(), IkeRole::Responder))
}

fn initial_contact() -> Payloads {
    Payloads::from(vec![Payload::Notify(Notify::new(NotifyType::InitialContact))])
}

fn chain(octets: usize) -> Payloads {
    let data = (0..octets).map(|at| at as u8).collect();
    let certificate = Certificate { encoding: CertificateEncoding::X509Signature, data };
    [Payload::Certificate(certificate), Payload::Notify(Notify::new(NotifyType::InitialContact))].into_iter().collect()
}

#[test]
fn sealed_messages_are_those_of_an_independent_computation() {
    //= RFC 7296 3.14 SHOULD 6: the least padding
    for (cipher, expected) in [
        (
            Cipher::Aes256Gcm16,
            "010203040506070811121314151617182e20250800000005000000412900002500000000000000006346c58eba4f2fd5\
             1e99f80d8f679e5b586ce62feed84ac18d",
        ),
        (
            Cipher::ChaCha20Poly1305,
            "010203040506070811121314151617182e2025080000000500000041290000250000000000000000b3440caf2b734f92\
             2739481665f78737bae3548482585eb79a",
        ),
    ] {
        let (mut initiator, responder) = pair(cipher);
        let sealed = initiator.seal(&header(), &initial_contact(), None).unwrap();
        assert_eq!(sealed, [hex(expected)]);
        assert_eq!(responder.open(&sealed[0]).unwrap(), Opened::Message(initial_contact()));
    }
}

#[test]
fn no_initialization_vector_comes_twice() {
    let (mut initiator, _) = pair(Cipher::Aes128Gcm16);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        for datagram in initiator.seal(&header(), &chain(1000), Some(400)).unwrap() {
            assert!(seen.insert(datagram[36..44].to_vec()));
        }
        assert!(seen.insert(initiator.seal(&header(), &initial_contact(), None).unwrap()[0][32..40].to_vec()));
    }
    assert!(seen.len() > 60);
}

#[test]
fn a_message_with_any_bit_changed_is_not_believed() {
    //= RFC 7296 3.14 MUST 8: the checksum covers the encrypted message
    for cipher in [Cipher::Aes256Gcm16, CBC_SHA256, CBC_SHA512] {
        let (mut initiator, responder) = pair(cipher);
        let sealed = initiator.seal(&header(), &initial_contact(), None).unwrap().remove(0);
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let error = responder.open(&forged).unwrap_err();
            assert!(matches!(error, OpenError::Forged | OpenError::Malformed(_)), "bit {bit}: {error}");
        }
    }
}

#[test]
fn a_message_reflected_to_its_sender_is_not_believed() {
    //= RFC 7296 2.14 REQUIRED 4: a key for each direction
    for cipher in [Cipher::Aes256Gcm16, CBC_SHA256] {
        let (mut initiator, _) = pair(cipher);
        let sealed = initiator.seal(&header(), &initial_contact(), None).unwrap();
        assert_eq!(initiator.open(&sealed[0]), Err(OpenError::Forged));
    }
}

#[test]
fn an_authentic_message_with_malformed_contents_is_told_apart_from_a_forged_one() {
    let (mut initiator, responder) = pair(Cipher::Aes256Gcm16);
    let unknown = Payload::Unknown { kind: 200.into(), data: vec![1, 2, 3] };
    let sealed = initiator.seal(&header(), &Payloads::from(vec![unknown.clone()]), None).unwrap();
    // The payload is not critical, so it is kept.
    assert_eq!(responder.open(&sealed[0]), Ok(Opened::Message(Payloads::from(vec![unknown]))));
    // A nonce of 3 octets is too short to be accepted.
    let short = Payloads::from(vec![Payload::Nonce(vec![1, 2, 3])]);
    let sealed = initiator.seal(&header(), &short, None).unwrap();
    let error = responder.open(&sealed[0]).unwrap_err();
    assert_eq!(error, OpenError::Contents(crate::wire::InvalidMessage::NonceLength(3)));
}

#[test]
fn an_empty_message_is_a_message() {
    let (mut initiator, responder) = pair(Cipher::ChaCha20Poly1305);
    let sealed = initiator.seal(&header(), &Payloads::new(), Some(1232)).unwrap();
    assert_eq!(responder.open(&sealed[0]), Ok(Opened::Message(Payloads::new())));
}

#[test]
fn a_large_message_travels_in_fragments_that_each_fit_the_limit() {
    let (mut initiator, responder) = pair(Cipher::Aes256Gcm16);
    let sealed = initiator.seal(&header(), &chain(3000), Some(1232)).unwrap();
    assert_eq!(sealed.len(), 3);
    let mut reassembly = Reassembly::new();
    let mut whole = None;
    for datagram in sealed.iter().rev() {
        assert!(datagram.len() <= 1232);
        assert!(whole.is_none());
        let Opened::Fragment(fragment) = responder.open(datagram).unwrap() else { panic!("expected a fragment") };
        whole = reassembly.add(fragment).unwrap();
    }
    assert_eq!(whole, Some(chain(3000)));
}

#[test]
fn a_message_that_just_fits_is_not_fragmented() {
    for cipher in [Cipher::Aes256Gcm16, CBC_SHA256] {
        let (mut initiator, _) = pair(cipher);
        let whole = initiator.seal(&header(), &chain(500), None).unwrap();
        let len = whole[0].len();
        assert_eq!(initiator.seal(&header(), &chain(500), Some(len)).unwrap().len(), 1);
        let fragments = initiator.seal(&header(), &chain(500), Some(len - 1)).unwrap();
        assert_eq!(fragments.len(), 2);
        assert!(fragments[0].len() > len - 17 && fragments[0].len() < len, "no octet more than needed is left out");
    }
}

#[test]
fn a_message_beyond_all_limits_is_refused_before_it_is_sent() {
    let (mut initiator, _) = pair(Cipher::Aes256Gcm16);
    let huge: Payloads = (0..3).flat_map(|_| chain(30_000).iter().cloned().collect::<Vec<_>>()).collect();
    assert!(matches!(initiator.seal(&header(), &huge, None), Err(SealError::TooLarge(_))));
    assert!(matches!(initiator.seal(&header(), &huge, Some(576)), Err(SealError::TooLarge(_))));
    assert!(
        initiator.seal(&header(), &chain(30_000), Some(0)).is_err(),
        "a limit below the overhead makes small parts, but not without end"
    );
}

proptest! {
    #[test]
    fn arbitrary_octets_are_never_opened_and_never_panic(
        cipher in any_cipher(),
        octets in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let (_, responder) = pair(cipher);
        prop_assert!(responder.open(&octets).is_err());
        prop_assert!(responder.open(&[&encrypted_header(octets.len())[..], &octets].concat()).is_err());
    }

    #[test]
    fn whatever_is_sealed_is_opened(
        cipher in any_cipher(),
        octets in 0_usize..5000,
        limit in proptest::option::of(100_usize..2000),
    ) {
        let (mut initiator, responder) = pair(cipher);
        let mut reassembly = Reassembly::new();
        let mut got = None;
        for datagram in initiator.seal(&header(), &chain(octets), limit).unwrap() {
            prop_assert!(limit.is_none_or(|limit| datagram.len() <= limit.max(200)));
            got = match responder.open(&datagram).unwrap() {
                Opened::Message(payloads) => Some(payloads),
                Opened::Fragment(fragment) => reassembly.add(fragment).unwrap(),
            };
        }
        prop_assert_eq!(got, Some(chain(octets)));
    }
}

fn any_cipher() -> impl Strategy<Value = Cipher> {
    proptest::sample::select(vec![Cipher::Aes256Gcm16, Cipher::ChaCha20Poly1305, CBC_SHA256, CBC_SHA384, CBC_SHA512])
}

/// Returns the octets before the body of an encrypted message whose body has this size.
fn encrypted_header(body: usize) -> Vec<u8> {
    let mut out = [IKE.initiator.to_be_bytes(), IKE.responder.to_be_bytes()].concat();
    out.extend_from_slice(&[46, 0x20, 37, 8, 0, 0, 0, 5]);
    out.extend_from_slice(&(32 + body as u32).to_be_bytes());
    out.extend_from_slice(&[41, 0]);
    out.extend_from_slice(&(4 + body as u16).to_be_bytes());
    out
}

// ---- hashes of addresses

#[test]
fn the_nat_detection_hash_is_that_of_an_independent_computation() {
    //= RFC 7296 2.23 REQUIRED 9: what is hashed
    let ike = IkeId { initiator: IKE.initiator, responder: 0 };
    let expected = hex("644b4575455bd6fcc1efe2be8162a9218e448e5f");
    for address in ["192.0.2.1:500", "[::ffff:192.0.2.1]:500"] {
        assert_eq!(nat_detection_hash(ike, address.parse::<SocketAddr>().unwrap()).as_slice(), expected);
    }
    assert_ne!(nat_detection_hash(ike, "192.0.2.1:4500".parse().unwrap()).as_slice(), expected);
}

#[test]
fn a_cookie_is_good_for_its_initiator_only_and_not_for_ever() {
    let env = &mut Env(1);
    let at = |seconds| Instant::new(Duration::from_secs(seconds));
    let (nonce, from): (&[u8], IpAddr) = (&[7; 32], "192.0.2.1".parse().unwrap());
    let mut jar = Cookies::new(env, at(0));
    let cookie = jar.cookie(env, at(30), nonce, from, 1);
    assert!((1..=64).contains(&cookie.len()), "RFC 7296 2.6");
    assert!(jar.accepts(env, at(31), &cookie, nonce, from, 1));
    assert!(!jar.accepts(env, at(31), &cookie, &[8; 32], from, 1));
    assert!(!jar.accepts(env, at(31), &cookie, nonce, "192.0.2.2".parse().unwrap(), 1));
    assert!(!jar.accepts(env, at(31), &cookie, nonce, from, 2));
    assert!(!jar.accepts(env, at(31), &cookie[..32], nonce, from, 1));
    assert!(!jar.accepts(env, at(31), &[], nonce, from, 1));
    assert!(jar.accepts(env, at(89), &cookie, nonce, from, 1), "the secret before the current one still counts");
    assert!(!jar.accepts(env, at(200), &cookie, nonce, from, 1));
}

#[test]
fn cookies_of_before_a_long_silence_are_void() {
    let env = &mut Env(1);
    let mut jar = Cookies::new(env, Instant::default());
    let (nonce, from): (&[u8], IpAddr) = (&[7; 32], "2001:db8::1".parse().unwrap());
    let cookie = jar.cookie(env, Instant::default(), nonce, from, 1);
    let later = Instant::default() + COOKIE_LIFETIME * 2;
    assert!(!jar.accepts(env, later, &cookie, nonce, from, 1));
}
