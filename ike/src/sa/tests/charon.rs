//! Compares our keys with those that strongSwan's charon derived from the same messages.

#[path = "../../../tests/charon/captured.rs"]
mod captured;

use captured::{Captured, Exchange};

use crate::auth::{Authenticator, Presented, Proof, SignedOctets};
use crate::config::{AesKeyLength, Auth, Cipher, EspProposal, Group, IkeProposal, Integrity, Prf};
use crate::crypto::{IkeCipher, IkeKey, IkeKeys, IkeRole, IkeSuite, Nonces, Opened};
use crate::event::IkeId;
use crate::negotiate::{ChildKeyExchange, EspSuite, choose_esp, choose_ike};
use crate::wire::{Message, Payloads, Protocol};
use crate::{Identity, Secret};

const GROUPS: [Group; 7] =
    [Group::X25519, Group::P256, Group::P384, Group::P521, Group::Modp2048, Group::Modp3072, Group::Modp4096];
const PRFS: [Prf; 3] = [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512];

fn ciphers() -> Vec<Cipher> {
    let keys = [AesKeyLength::Bits128, AesKeyLength::Bits192, AesKeyLength::Bits256];
    let integrity = [Integrity::HmacSha256, Integrity::HmacSha384, Integrity::HmacSha512];
    let cbc = keys.into_iter().flat_map(|key| integrity.map(|integrity| Cipher::AesCbc(key, integrity)));
    [Cipher::Aes128Gcm16, Cipher::Aes256Gcm16, Cipher::ChaCha20Poly1305].into_iter().chain(cbc).collect()
}

/// Returns the suite that the responder has chosen for an IKE SA.
fn ike_suite(answer: &Payloads) -> IkeSuite {
    let all = IkeProposal { ciphers: ciphers(), prfs: PRFS.to_vec(), groups: GROUPS.to_vec() };
    choose_ike(answer.proposals().unwrap(), [&all], None).unwrap().suite
}

/// Returns the suite that the responder has chosen for a CHILD_SA.
fn esp_suite(answer: &Payloads, groups: &[Group]) -> EspSuite {
    let exchange = ChildKeyExchange::Configured { sent: None };
    let all = EspProposal { ciphers: ciphers(), groups: groups.to_vec(), esn: true };
    choose_esp(answer.proposals().unwrap(), &[all], exchange).unwrap().suite
}

fn nonces<'a>(request: &'a Payloads, response: &'a Payloads) -> Nonces<'a> {
    Nonces { initiator: request.nonce().unwrap(), responder: response.nonce().unwrap() }
}

/// Decrypts the request and the response of an exchange.
fn open(keys: &IkeKeys, exchange: &Exchange) -> [Payloads; 2] {
    // Each end opens what the other one has sealed.
    [(IkeRole::Responder, &exchange.request), (IkeRole::Initiator, &exchange.response)].map(|(role, datagram)| {
        match IkeCipher::new(keys.clone(), role).open(datagram).unwrap() {
            Opened::Message(payloads) => payloads,
            Opened::Fragment(fragment) => panic!("charon has sent a fragment: {fragment:?}"),
        }
    })
}

fn expect_ike_keys(keys: &IkeKeys, exchange: &Exchange, name: &str) {
    let all = [
        ("SK_d", keys.key(IkeKey::D)),
        ("SK_ai", keys.key(IkeKey::Ai)),
        ("SK_ar", keys.key(IkeKey::Ar)),
        ("SK_ei", keys.key(IkeKey::Ei)),
        ("SK_er", keys.key(IkeKey::Er)),
        ("SK_pi", keys.key(IkeKey::Pi)),
        ("SK_pr", keys.key(IkeKey::Pr)),
    ];
    for (key, ours) in all {
        assert!(ours == exchange.value(key), "{key} of {name}");
    }
}

fn expect_child_keys(keys: &IkeKeys, suite: EspSuite, nonces: Nonces<'_>, exchange: &Exchange, name: &str) {
    let shared = suite.group.map(|_| Secret::new(exchange.value("shared")));
    let ours = keys.child(suite.cipher, nonces, shared.as_ref());
    let [initiator, responder] = exchange.child_keys();
    assert!(!initiator.is_empty() && ours.from_initiator.expose() == initiator, "the initiator's direction of {name}");
    assert!(ours.from_responder.expose() == responder, "the responder's direction of {name}");
}

/// Checks the AUTH payloads of both ends.
fn expect_auth(captured: &Captured, keys: &IkeKeys, nonces: Nonces<'_>, [request, response]: &[Payloads; 2]) {
    let init = &captured.exchanges[0];
    let psk = Authenticator::new(&Auth::Psk(Secret::new(captured.psk.clone()))).unwrap();
    let (sun, moon) = (request.id_initiator().unwrap(), response.id_responder().unwrap());
    let ends = [
        (sun, request, SignedOctets::initiator(keys, &init.request, nonces.responder, sun)),
        (moon, response, SignedOctets::responder(keys, &init.response, nonces.initiator, moon)),
    ];
    for ((id, payloads, octets), name) in ends.into_iter().zip(["sun.example", "moon.example"]) {
        let authentication = payloads.authentication().unwrap();
        let presented = Presented { id, certificates: &[], authentication };
        assert_eq!(psk.verify(&Identity::Fqdn(name.into()), presented, &octets, 0), Ok(Proof::Psk), "{name}");
    }
}

/// Derives all keys of an IKE SA and its CHILD_SAs, and compares them with charon's. Returns the
/// suite.
fn compare(captured: &Captured) -> IkeSuite {
    let name = captured.name.as_str();
    let [init, auth, rekeys @ ..] = captured.exchanges.as_slice() else { panic!("{name} has too few exchanges") };
    let (request, response) = (Message::decode(&init.request).unwrap(), Message::decode(&init.response).unwrap());
    let ike = IkeId { initiator: response.header.initiator_spi, responder: response.header.responder_spi };
    let (first, suite) = (nonces(&request.payloads, &response.payloads), ike_suite(&response.payloads));
    let mut keys = IkeKeys::initial(suite, first, ike, &Secret::new(init.value("shared")));
    expect_ike_keys(&keys, init, name);
    let messages = open(&keys, auth);
    expect_auth(captured, &keys, first, &messages);
    // IKE_AUTH has no key exchange and no nonces of its own.
    expect_child_keys(&keys, esp_suite(&messages[1], &[]), first, auth, name);

    let mut rekeyed = Vec::new();
    for exchange in rekeys {
        let [request, response] = &open(&keys, exchange);
        let protocol = response.proposals().unwrap()[0].protocol;
        if protocol == Protocol::Ike {
            let spi = |payloads: &Payloads| payloads.proposals().unwrap()[0].ike_spi().unwrap();
            let ike = IkeId { initiator: spi(request), responder: spi(response) };
            let shared = Secret::new(exchange.value("shared"));
            keys = keys.rekey(ike_suite(response), nonces(request, response), ike, &shared);
            expect_ike_keys(&keys, exchange, name);
        } else {
            expect_child_keys(&keys, esp_suite(response, &GROUPS), nonces(request, response), exchange, name);
        }
        rekeyed.push(protocol);
    }
    assert_eq!(rekeyed, [Protocol::Esp, Protocol::Ike, Protocol::Esp], "{name}");
    suite
}

#[test]
fn keys_are_those_that_charon_has_derived_from_the_same_messages() {
    //= RFC 7296 2.13 REQUIRED 5: prf+
    //= RFC 7296 2.14 REQUIRED 2: SKEYSEED
    //= RFC 7296 2.14 REQUIRED 3: the order of the keys
    //= RFC 7296 2.15 REQUIRED 1: what AUTH covers
    //= RFC 7296 2.17 REQUIRED 3: KEYMAT
    //= RFC 7296 2.18 REQUIRED 5: SKEYSEED of a rekey
    let suites: Vec<IkeSuite> = captured::all().iter().map(compare).collect();
    for cipher in ciphers() {
        assert!(suites.iter().any(|suite| suite.cipher == cipher), "no file has {cipher}");
    }
    for group in GROUPS {
        assert!(suites.iter().any(|suite| suite.group == group), "no file has {group}");
    }
    for prf in PRFS {
        // With each AEAD, and with AES-CBC.
        let of_aeads = suites.iter().filter(|suite| suite.prf == prf && suite.cipher.integrity().is_none());
        let of_cbc = suites.iter().filter(|suite| suite.prf == prf && suite.cipher.integrity().is_some());
        assert_eq!((of_aeads.count(), of_cbc.count()), (3, 3), "{prf}");
    }
}
