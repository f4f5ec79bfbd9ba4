//! Tests the key exchange methods.

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};

use super::*;

/// An environment that returns these octets as random octets.
struct Fixed(Vec<u8>);

impl Environment for Fixed {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0);
    }
    fn unix_time(&self) -> u64 {
        0
    }
    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        None
    }
    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}

/// An environment with the operating system's random octets, as in a program.
struct System;

impl Environment for System {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        SystemRandom::new().fill(bytes).unwrap();
    }
    fn random_is_from_system(&self) -> bool {
        true
    }
    fn unix_time(&self) -> u64 {
        0
    }
    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        None
    }
    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}

/// X25519 has an implementation for the operating system's random octets, which is used on
/// processors with ADX, and one for others.
fn both_x25519(test: impl Fn(&mut dyn Environment)) {
    test(&mut System);
    test(&mut Env(1));
}

fn sha256(octets: &[u8]) -> String {
    digest::digest(&digest::SHA256, octets).as_ref().iter().map(|octet| format!("{octet:02x}")).collect()
}

#[test]
fn modp_groups_give_the_shares_and_secrets_of_an_independent_computation() {
    //= RFC 7296 2.14 REQUIRED 5: a secret as long as the prime
    //= RFC 7296 3.4 MUST 1: a share as long as the prime
    // Computed with Python's integers and the primes of RFC 3526. The test contains only hashes of
    // the expected values, since the values are long.
    for (group, len, ours, theirs, secret) in [
        (
            Group::Modp2048,
            32,
            "4220615b1e3b1615d3b56c2866a225817943b9368815df4d7b4ccc5a9816a934",
            "15406289434c7912e065821956f503791accf2a7edac9f1fdb6f81dba865bf00",
            "ee1de379b1c5d60b4d4db1386503bcce89f675b40b7c490fd3ba1b50b6e55501",
        ),
        (
            Group::Modp3072,
            36,
            "601326ff27a6ce361f124a1c7d4a7b8a5e8c3f26638ed67df7571c11dbec783d",
            "07d7ef8ac1b84ab25ce517ba62797afcd7aab2e7672a47f714416dfe86ed9df5",
            "f6c2d14c6489ae96f4df83c3020902abd67d2ee56d975aba6e064d81c55ade60",
        ),
        (
            Group::Modp4096,
            40,
            "133f629375736238513b284583400ab0cf4cf1a07e005df5e3a33005e5dabb27",
            "b65be42b8e36136fb110ae07b617f040245d45bf7c8c602f5733b63c39bab0ec",
            "f383a332d92e7d5649d37090dd440894d838405495c2751bfa9399a4d0a4ef80",
        ),
    ] {
        let private = |factor: usize, offset: usize| Fixed((0..len).map(|n| (n * factor + offset) as u8).collect());
        let initiator = InitiatorKeyExchange::start(group, &mut private(29, 7)).unwrap();
        let responder = ResponderKeyExchange::respond(group, &initiator.payload(), &mut private(31, 5)).unwrap();
        assert_eq!(
            (sha256(&initiator.payload().data), sha256(&responder.payload().data)),
            (ours.into(), theirs.into())
        );
        let agreed = initiator.finish(&responder.payload()).unwrap();
        assert_eq!((sha256(agreed.expose()), agreed), (secret.into(), responder.secret().unwrap()));
    }
}

#[test]
fn a_modp_share_must_be_between_one_and_p_minus_one() {
    for group in [Group::Modp2048, Group::Modp3072, Group::Modp4096] {
        let pair = || InitiatorKeyExchange::start(group, &mut Env(1)).unwrap();
        let len = pair().payload().data.len();
        let finish = |data: Vec<u8>| pair().finish(&KeyExchange { group: group.number(), data });
        // The primes begin and end with 64 one bits.
        let number = |last: u8| [vec![0; len - 1], vec![last]].concat();
        for data in [number(0), number(1), vec![255; len]] {
            assert_eq!(finish(data).unwrap_err(), KeyExchangeError::OutOfRange);
        }
        let good = finish(number(2)).unwrap();
        assert_eq!(good.expose().len(), len, "RFC 7296 2.14: leading zeros count");
        assert_eq!(finish(vec![2; len - 1]).unwrap_err(), KeyExchangeError::Length { expected: len, found: len - 1 });
    }
    // The first value is p - 1 of the 2048-bit group, the second p - 2.
    let p_minus = |difference: u8| {
        let mut prime = hex(PRIME_2048);
        *prime.last_mut().unwrap() -= difference;
        let pair = InitiatorKeyExchange::start(Group::Modp2048, &mut Env(1)).unwrap();
        pair.finish(&KeyExchange { group: 14, data: prime })
    };
    assert_eq!([0, 1].map(|difference| p_minus(difference).unwrap_err()), [KeyExchangeError::OutOfRange; 2]);
    assert!(p_minus(2).is_ok());
}

/// The prime of RFC 3526 3.
const PRIME_2048: &str = "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
     EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
     EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
     83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
     E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
     15728E5A8AACAA68FFFFFFFFFFFFFFFF";

#[test]
fn ecp_groups_agree_and_refuse_what_is_no_point() {
    for (group, len) in [(Group::P256, 64), (Group::P384, 96), (Group::P521, 132)] {
        let initiator = InitiatorKeyExchange::start(group, &mut Env(1)).unwrap();
        assert_eq!(initiator.payload().data.len(), len);
        let responder = ResponderKeyExchange::respond(group, &initiator.payload(), &mut Env(3)).unwrap();
        let (mut off, answer) = (responder.payload(), responder.payload());
        let secret = initiator.finish(&answer).unwrap();
        assert_eq!((secret.expose().len(), &secret), (len / 2, &responder.secret().unwrap()));
        off.data[len - 1] ^= 1;
        let finish = |share: &KeyExchange| InitiatorKeyExchange::start(group, &mut Env(1)).unwrap().finish(share);
        assert_eq!(finish(&off).unwrap_err(), KeyExchangeError::InvalidPoint);
        off.data.push(0);
        assert_eq!(finish(&off).unwrap_err(), KeyExchangeError::Length { expected: len, found: len + 1 });
    }
}

/// The vectors of RFC 5903 8.1 and 8.2: i, r, gix | giy, grx | gry, girx. Our key pairs on these
/// curves draw their private keys in `ring`, so another implementation takes the RFC's: it gives
/// the RFC's values, and the same secret as ours with the RFC's key.
macro_rules! check_rfc_5903 {
    ($curve:ident, $group:expr, $i:expr, $r:expr, $gi:expr, $gr:expr, $secret:expr) => {{
        use $curve::elliptic_curve::sec1::ToSec1Point;
        let key = |text: &str| $curve::SecretKey::from_slice(&hex(text)).unwrap();
        let point = |share: &[u8]| $curve::PublicKey::from_sec1_bytes(&[&[4], share].concat()).unwrap();
        let share = |private: &$curve::SecretKey| private.public_key().to_sec1_bytes()[1..].to_vec();
        let agree = |private: &$curve::SecretKey, share: &[u8]| {
            let shared = point(share).to_projective() * *private.to_nonzero_scalar();
            shared.to_affine().to_sec1_point(false).x().unwrap().to_vec()
        };
        let (i, r) = (key($i), key($r));
        assert_eq!((share(&i), share(&r)), (hex($gi), hex($gr)));
        assert_eq!((agree(&i, &hex($gr)), agree(&r, &hex($gi))), (hex($secret), hex($secret)));
        for (private, public) in [(&i, $gi), (&r, $gr)] {
            let theirs = KeyExchange { group: $group.number(), data: hex(public) };
            let ours = InitiatorKeyExchange::start($group, &mut Env(1)).unwrap();
            let expected = agree(private, &ours.payload().data);
            assert_eq!(ours.finish(&theirs).unwrap().expose(), expected);
            let ours = ResponderKeyExchange::respond($group, &theirs, &mut Env(1)).unwrap();
            let expected = agree(private, &ours.payload().data);
            assert_eq!(ours.secret().unwrap().expose(), expected);
        }
    }};
}

#[test]
fn p256_and_p384_agree_with_the_keys_of_rfc_5903() {
    check_rfc_5903!(
        p256,
        Group::P256,
        "c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433",
        "c6ef9c5d78ae012a011164acb397ce2088685d8f06bf9be0b283ab46476bee53",
        "dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c3772581180\
         5271a0461cdb8252d61f1c456fa3e59ab1f45b33accf5f58389e0577b8990bb3",
        "d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf63\
         56fbf3ca366cc23e8157854c13c58d6aac23f046ada30f8353e74f33039872ab",
        "d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de"
    );
    check_rfc_5903!(
        p384,
        Group::P384,
        "099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655e35b538041e649ee3faef896783ab194",
        "41cb0779b4bdb85d47846725fbec3c9430fab46cc8dc5060855cc9bda0aa2942e0308312916b8ed2960e4bd55a7448fc",
        "667842d7d180ac2cde6f74f37551f55755c7645c20ef73e31634fe72b4c55ee6de3ac808acb4bdb4c88732aee95f41aa\
         9482ed1fc0eeb9cafc4984625ccfc23f65032149e0e144ada024181535a0f38eeb9fcff3c2c947dae69b4c634573a81c",
        "e558dbef53eecde3d3fccfc1aea08a89a987475d12fd950d83cfa41732bc509d0d1ac43a0336def96fda41d0774a3571\
         dcfbec7aacf3196472169e838430367f66eebe3c6e70c416dd5f0c68759dd1fff83fa40142209dff5eaad96db9e6386c",
        "11187331c279962d93d604243fd592cb9d0a926f422e47187521287e7156c5c4d603135569b9e9d09cf5d4a270f59746"
    );
}

#[test]
fn p521_gives_the_secret_of_rfc_5903() {
    // RFC 5903 8.3.
    let (i, r) = (
        "0037ade9319a89f4dabdb3ef411aaccca5123c61acab57b5393dce47608172a095aa85a30fe1c2952c6771d937ba9777\
         f5957b2639bab072462f68c27a57382d4a52",
        "0145ba99a847af43793fdd0e872e7cdfa16be30fdc780f97bccc3f078380201e9c677d600b343757a3bdbf2a3163e4c2\
         f869cca7458aa4a4effc311f5cb151685eb9",
    );
    let initiator = InitiatorKeyExchange::start(Group::P521, &mut Fixed(hex(i))).unwrap();
    let responder = ResponderKeyExchange::respond(Group::P521, &initiator.payload(), &mut Fixed(hex(r))).unwrap();
    assert_eq!(
        initiator.payload().data[..66],
        hex("0015417e84dbf28c0ad3c278713349dc7df153c897a1891bd98bab4357c9ecbee1e3bf42e00b8e380aeae57c2d107564\
         941885942af5a7f4601723c4195d176ced3e")
    );
    let secret = initiator.finish(&responder.payload()).unwrap();
    assert_eq!(
        secret.expose(),
        hex("01144c7d79ae6956bc8edb8e7c787c4521cb086fa64407f97894e5e6b2d79b04d1427e73ca4baa240a34786859810c06\
         b3c715a3a8cc3151f2bee417996d19f3ddea")
    );
}

#[test]
fn x25519_gives_the_secrets_of_rfc_7748() {
    // RFC 7748 5.2, with the scalar as the private key.
    for (scalar, point, expected) in [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ] {
        let pair = InitiatorKeyExchange::start(Group::X25519, &mut Fixed(hex(scalar))).unwrap();
        let shared = pair.finish(&KeyExchange { group: 31, data: hex(point) }).unwrap();
        assert_eq!(shown(shared.expose()), expected);
    }
}

#[test]
fn both_ends_agree_on_the_same_secret_in_every_group() {
    for (group, public_len) in [(Group::X25519, 32), (Group::P256, 64)] {
        let ours = InitiatorKeyExchange::start(group, &mut Env(1)).unwrap();
        let our_key = ours.payload();
        let theirs = ResponderKeyExchange::respond(group, &our_key, &mut Env(2)).unwrap();
        let their_key = theirs.payload();
        for key in [&our_key, &their_key] {
            assert_eq!((key.group, key.data.len()), (group.number(), public_len));
        }
        let (a, b) = (ours.finish(&their_key).unwrap(), theirs.secret().unwrap());
        assert_eq!(a, b);
        assert_eq!(a.expose().len(), 32);
    }
}

#[test]
fn an_x25519_key_of_small_order_is_refused() {
    // RFC 7748 6.1, RFC 8031 5: these points give zero with any private key.
    for point in [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        let point = KeyExchange { group: 31, data: hex(point) };
        both_x25519(|env| {
            let ours = InitiatorKeyExchange::start(Group::X25519, env).unwrap();
            assert_eq!(ours.finish(&point).unwrap_err(), KeyExchangeError::SmallOrder);
            let ours = ResponderKeyExchange::respond(Group::X25519, &point, env).unwrap();
            assert_eq!(ours.secret().unwrap_err(), KeyExchangeError::SmallOrder);
        });
    }
}

#[test]
fn both_implementations_of_x25519_agree() {
    for round in 0..200 {
        for [ours, theirs] in [[true, true], [true, false], [false, true]] {
            let env = |system: bool, seed: u8| -> Box<dyn Environment> {
                if system { Box::new(System) } else { Box::new(Env(seed)) }
            };
            let ours = InitiatorKeyExchange::start(Group::X25519, &mut *env(ours, round)).unwrap();
            let theirs =
                ResponderKeyExchange::respond(Group::X25519, &ours.payload(), &mut *env(theirs, round)).unwrap();
            let their_share = theirs.payload();
            assert_eq!(ours.finish(&their_share).unwrap(), theirs.secret().unwrap());
        }
    }
}

/// RFC 7748 4.1, 5, 6.1: a share is the product of the private key and the point 9. The most
/// significant bit does not count, nor does it matter whether p was added to the coordinate.
#[test]
fn the_secret_with_the_base_point_is_the_own_share_however_the_point_is_written() {
    let ours = "09".to_owned() + &"00".repeat(31);
    let with_prime = "f6".to_owned() + &"ff".repeat(30) + "7f";
    let with_bit = "09".to_owned() + &"00".repeat(30) + "80";
    let with_both = "f6".to_owned() + &"ff".repeat(31);
    for point in [ours, with_prime, with_bit, with_both] {
        let point = KeyExchange { group: 31, data: hex(&point) };
        both_x25519(|env| {
            let ours = InitiatorKeyExchange::start(Group::X25519, env).unwrap();
            let share = ours.payload().data;
            assert_eq!(ours.finish(&point).unwrap().expose(), share);
        });
    }
}

#[test]
fn each_key_pair_of_the_system_is_new_and_no_key_is_shown() {
    let pair = || InitiatorKeyExchange::start(Group::X25519, &mut System).unwrap();
    let (first, second) = (pair(), pair());
    assert_ne!(first.payload().data, second.payload().data);
    assert_eq!(format!("{first:?}"), "InitiatorKeyExchange { group: X25519, .. }");
}

#[test]
fn a_p256_key_must_be_a_point_of_the_curve_without_format_octet() {
    // RFC 5903 8.1: grx | gry is accepted, and the same value with one bit changed is not.
    let point = "D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63\
                 56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB";
    let agree = |data: Vec<u8>| {
        InitiatorKeyExchange::start(Group::P256, &mut Env(1)).unwrap().finish(&KeyExchange { group: 19, data })
    };
    assert!(agree(hex(point)).is_ok());
    let mut off = hex(point);
    off[63] ^= 1;
    assert_eq!(agree(off).unwrap_err(), KeyExchangeError::InvalidPoint);
    assert_eq!(agree(vec![0; 64]).unwrap_err(), KeyExchangeError::InvalidPoint);
    let with_format = [vec![4], hex(point)].concat();
    assert_eq!(agree(with_format).unwrap_err(), KeyExchangeError::Length { expected: 64, found: 65 });
}

#[test]
fn a_key_of_another_group_or_length_is_refused() {
    both_x25519(|env| {
        let mut pair = || InitiatorKeyExchange::start(Group::X25519, env).unwrap();
        let other_group = KeyExchange { group: 19, data: vec![9; 32] };
        assert_eq!(pair().finish(&other_group).unwrap_err(), KeyExchangeError::Group { expected: 31, found: 19 });
        for found in [0, 31, 33] {
            let short = KeyExchange { group: 31, data: vec![9; found] };
            assert_eq!(pair().finish(&short).unwrap_err(), KeyExchangeError::Length { expected: 32, found });
        }
    });
}
