//! Tests the AEADs of Encrypted payloads with the vectors of RFCs.

use super::*;
use crate::crypto::direction_key::DirectionKey;

#[test]
fn chacha20_poly1305_gives_the_ciphertext_of_rfc_8439() {
    // RFC 8439 2.8.2. Its nonce is the salt of RFC 7634 2, which follows the key, and the explicit
    // IV, which precedes the ciphertext.
    let key = hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f07000000");
    let (iv, associated) = (0x4041_4243_4445_4647_u64, hex("50515253c0c1c2c3c4c5c6c7"));
    let text = "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen \
                would be it.";
    let ciphertext = hex("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6\
                          3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36\
                          92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc\
                          3ff4def08e4b7a9de576d26586cec64b6116");
    let tag = hex("1ae10b594f09e26a7e902ecbd0600691");
    let key = DirectionKey::new(Cipher::ChaCha20Poly1305, &key, &[]);
    let body = [&iv.to_be_bytes()[..], &ciphertext, &tag].concat();
    assert_eq!(key.open(&associated, &body).unwrap().as_slice(), text.as_bytes());
    for at in 0..body.len() {
        let mut changed = body.clone();
        changed[at] ^= 1;
        assert!(key.open(&associated, &changed).is_err(), "octet {at}");
    }
    assert!(key.open(&associated[1..], &body).is_err());
    // Our own payloads also have a pad length, so their tag is another one.
    let sealed = key.seal(associated.clone(), iv, text.as_bytes()).unwrap();
    let contents = associated.len() + 8;
    assert_eq!(sealed[contents..contents + text.len()], ciphertext);
    assert_eq!(key.open(&associated, &sealed[associated.len()..]).unwrap()[..text.len()], *text.as_bytes());
}
