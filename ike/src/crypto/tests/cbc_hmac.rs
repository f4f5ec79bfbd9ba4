//! Tests AES-CBC with HMAC in the Encrypted payload.

use aes::cipher::array::Array;
use aes::cipher::{BlockModeEncrypt, KeyIvInit};
use ring::hmac;

use super::*;
use crate::wire::InvalidMessage;

#[test]
fn keys_and_messages_are_those_of_an_independent_computation() {
    //= RFC 7296 3.14 MUST 5: padding to the block size
    //= RFC 7296 3.14 SHOULD 6: the least padding
    for (cipher, prf, ai, er, pr, message, child) in [
        (
            CBC_SHA256,
            Prf::HmacSha256,
            "d7141ed77824f0c30ef209b5fc38dc63f943986d38e3561c0397930d4a33697c",
            "e5911495ceccc24cee5a4129ca3f72533e2e4d8a26256020cf07047aec029a4d",
            "b3278770e66766f316d5129f98545b2122242956473e28fd857398e1d26e9315",
            "010203040506070811121314151617182e2025080000000500000050290000348baa42c9904eea6ffc6f8c14eb99ee33\
             24b63bf5244ec4d53ca8b7e8f44e7e6e6f77df4bed8b82b0c1af142366d27ec2",
            "6bb6e02a868f596ed4b7b0addf944487a2f8e73c1e531d38a7b2ebfa3f9595fbd37f1374329999a52a16195966b7b3a5\
             12e946e9a2e1b037247051119f223ced",
        ),
        (
            CBC_SHA384,
            Prf::HmacSha384,
            "119bd9aa4ac277bd812b15a8274244bcb71f9f5c56a4592b17052a554bf112d88f4c462b21827191130c1521c032a331",
            "ae815477326acb0b55c7270f527af4ae618559f9b44cdeae",
            "76de697f2797c91c3ec38819bf892bc801e0f8e757c24f3cb84f9f27478f894a1138cb8d94076474c5934bc7757c6486",
            "010203040506070811121314151617182e20250800000005000000582900003caceb5dd59dfc92ad3dcecf9dd7ed60d2\
             f1e3e8c1bd721eefeed0796788c5fcc2d82f475b4430ef14194e9fac4339a4b8c6449850886424c1",
            "35a65e680f3366bc079c270c5b66ccf750ee55ef07a0c238ad2e0e29a27fa78ce38d983492eb2b2c6477a5dc68cd3ce6\
             0119a77bdde9f82065a1fbf3abb2e0d68b073f97ecea47ed",
        ),
        (
            CBC_SHA512,
            Prf::HmacSha512,
            "d03228be2a5b1cbebd76dadbb2487f436847d776d5607cf9c53e8721bccf1b85c33a6ca575e374b9202caef4b5d4336a\
             ccb575ab17abcc7cd121815c8d4bb54a",
            "58234be684573fd711969c7364cdf9d3",
            "452e0de14d7eba67a4ca83024b15fadadba5ea45df29e0545613898c7e6d5d97b1000ac54b7f2be464aafd3d40c1223f\
             e290ed8d865a8712db91c52e4402609d",
            "010203040506070811121314151617182e202508000000050000006029000044860b9fb9bbc0c2cc7f9c8ae8bcd08fd9\
             5e864976ace315de809b5e55195a645b27cedadf78137515081f506765d143e3b37e357302adb963e15b5f348996c906",
            "752f0da865f0bb0553b2b057b52b62676b61ab868a95c7ee0ad0a541d31047c6d75ae6e391fd244d9b33d05e7efe6f6d\
             ff8e6c19b98809a7b95d35fcac117b16601197700b98b6548cae985238e87adc",
        ),
    ] {
        let keys = keys(prf, cipher);
        assert_eq!(
            (shown(keys.key(IkeKey::Ai)), shown(keys.key(IkeKey::Er)), shown(keys.key(IkeKey::Pr))),
            (ai.into(), er.into(), pr.into())
        );
        let (ni, nr, ..) = inputs();
        let child_keys = keys.child(cipher, Nonces { initiator: &ni, responder: &nr }, None);
        assert_eq!(shown(child_keys.from_responder.expose()), child);
        let sealed =
            IkeCipher::new(keys.clone(), IkeRole::Initiator).seal(&header(), &initial_contact(), None).unwrap();
        assert_eq!(sealed, [hex(message)]);
        let opened = IkeCipher::new(keys.clone(), IkeRole::Responder).open(&sealed[0]);
        assert_eq!(opened, Ok(Opened::Message(initial_contact())));
    }
}

/// Makes a message from the initiator whose Encrypted payload decrypts to `plain`, with a correct
/// ICV. An incomplete last block is left unencrypted.
fn authentic(plain: &[u8]) -> Vec<u8> {
    let keys = keys(Prf::HmacSha256, CBC_SHA256);
    let iv = [7; 16];
    let mut octets = plain.to_vec();
    let (blocks, _) = Array::slice_as_chunks_mut(&mut octets);
    cbc::Encryptor::<aes::Aes256>::new_from_slices(keys.key(IkeKey::Ei), &iv).unwrap().encrypt_blocks(blocks);
    let mut message = [&encrypted_header(16 + octets.len() + 16)[..], &iv, &octets].concat();
    let icv = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, keys.key(IkeKey::Ai)), &message);
    message.extend_from_slice(&icv.as_ref()[..16]);
    message
}

fn open(plain: &[u8]) -> Result<Opened, OpenError> {
    let (_, responder) = pair(CBC_SHA256);
    responder.open(&authentic(plain))
}

#[test]
fn padding_of_any_length_and_contents_is_accepted() {
    //= RFC 7296 3.14 MUST 7: any padding is taken
    // RFC 7296 3.14: the recipient must accept any length that results in proper alignment.
    let notify = initial_contact().encode();
    for padding in (0..=255_usize).filter(|padding| (notify.len() + padding + 1).is_multiple_of(16)) {
        let plain = [notify.clone(), vec![0xa5; padding], vec![padding as u8]].concat();
        assert_eq!(open(&plain), Ok(Opened::Message(initial_contact())), "{padding}");
    }
}

#[test]
fn authentic_messages_with_wrong_padding_are_malformed() {
    let contents = |error| Err(OpenError::Contents(error));
    assert_eq!(open(&[16; 16]), contents(InvalidMessage::Padding(16)));
    assert_eq!(open(&[255; 240]), contents(InvalidMessage::Padding(255)));
    assert_eq!(open(&[]), contents(InvalidMessage::PartialBlock(0)));
    assert_eq!(open(&[0; 15]), contents(InvalidMessage::PartialBlock(15)));
    assert_eq!(open(&[0; 33]), contents(InvalidMessage::PartialBlock(33)));
}

#[test]
fn a_message_that_is_not_authentic_is_forged_whatever_its_padding_is() {
    //= RFC 7296 3.14 MUST 8: the checksum covers the encrypted message
    // A different error would reveal the padding to an attacker who sends forged messages.
    let (_, responder) = pair(CBC_SHA256);
    for plain in [&[0; 16][..], &[255; 16], &[0; 15], &[]] {
        let mut message = authentic(plain);
        *message.last_mut().unwrap() ^= 1;
        assert_eq!(responder.open(&message), Err(OpenError::Forged));
    }
}

#[test]
fn initialization_vectors_cannot_be_foreseen_from_the_ones_before() {
    //= RFC 7296 3.14 MUST 3: an IV that cannot be predicted
    let (mut initiator, _) = pair(CBC_SHA512);
    let mut iv = || initiator.seal(&header(), &initial_contact(), None).unwrap()[0][32..48].to_vec();
    let (first, second) = (iv(), iv());
    let same = first.iter().zip(&second).filter(|(first, second)| first == second).count();
    assert!(same < 8, "{first:x?} and {second:x?}");
}

proptest! {
    #[test]
    fn arbitrary_decrypted_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..400)) {
        match open(&octets) {
            Ok(_) => prop_assert!(octets.len().is_multiple_of(16)),
            Err(OpenError::Contents(_)) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}
