//! Compares the oracle's key schedule with the keys that strongSwan's charon derived from the same
//! messages, so that the oracle does not share a mistake with the library.

#[path = "../../charon/captured.rs"]
mod captured;

use captured::{Captured, Exchange};

use super::clear;
use super::keys::{Keys, Suite, esp_key_len};
use super::octets::{HEADER_LEN, Header, Message, PROTOCOL_IKE, chain, payload};

/// The transform type of key exchange methods (RFC 7296 3.3.2).
const KE: u8 = 4;

/// Decrypts both messages of an exchange of the original initiator.
fn open(keys: &Keys, exchange: &Exchange) -> [Message; 2] {
    [(true, &exchange.request), (false, &exchange.response)].map(|(initiator, datagram)| {
        assert!(datagram.len() > HEADER_LEN);
        let header = Header::read(datagram).unwrap();
        let opened = keys.open(initiator, datagram).unwrap();
        Message { header, payloads: chain(opened.first, &opened.inner).unwrap() }
    })
}

fn nonces<'a>(request: &'a Message, response: &'a Message) -> (&'a [u8], &'a [u8]) {
    (request.nonce().unwrap(), response.nonce().unwrap())
}

fn expect_ike_keys(keys: &Keys, exchange: &Exchange, name: &str) {
    for (key, ours) in keys.named() {
        assert!(ours == exchange.value(key), "{key} of {name}");
    }
}

fn expect_child_keys(keys: &Keys, answer: &Message, nonces: (&[u8], &[u8]), exchange: &Exchange, name: &str) {
    let proposal = &answer.proposals()[0];
    let shared = (proposal.one(KE).0 != 0).then(|| exchange.value("shared"));
    let (initiator, responder) = keys.child(esp_key_len(proposal), shared.as_deref(), nonces);
    assert!(!initiator.is_empty() && [initiator, responder] == exchange.child_keys(), "the CHILD_SA of {name}");
}

fn compare(captured: &Captured) {
    let name = captured.name.as_str();
    let [init, auth, rekeys @ ..] = captured.exchanges.as_slice() else { panic!("{name} has too few exchanges") };
    let (request, response) = (clear(&init.request).unwrap(), clear(&init.response).unwrap());
    let first = nonces(&request, &response);
    let suite = Suite::of(&response.proposals()[0]);
    let mut keys = Keys::initial(suite, first, response.header.spis, &init.value("shared")).unwrap();
    expect_ike_keys(&keys, init, name);
    let messages = open(&keys, auth);
    expect_child_keys(&keys, &messages[1], first, auth, name);
    for (index, (id, sent, nonce)) in
        [(payload::ID_INITIATOR, init.request.as_slice(), first.1), (payload::ID_RESPONDER, &init.response, first.0)]
            .into_iter()
            .enumerate()
    {
        let id = messages[index].find(id).unwrap();
        let auth = messages[index].find(payload::AUTH).unwrap();
        let expected = keys.psk_auth(index == 0, &captured.psk, sent, nonce, id);
        // The body begins with the method and three reserved octets (RFC 7296 3.8).
        assert!(auth.get(4..) == Some(&expected[..]), "AUTH {index} of {name}");
    }
    for exchange in rekeys {
        let [request, response] = &open(&keys, exchange);
        let proposal = &response.proposals()[0];
        if proposal.protocol == PROTOCOL_IKE {
            let spis = (request.proposals()[0].spi64(), proposal.spi64());
            let secret = exchange.value("shared");
            keys = keys.rekeyed(Suite::of(proposal), nonces(request, response), spis, &secret).unwrap();
            expect_ike_keys(&keys, exchange, name);
        } else {
            expect_child_keys(&keys, response, nonces(request, response), exchange, name);
        }
    }
}

#[test]
fn the_oracle_derives_the_keys_that_charon_has_derived() {
    let all = captured::all();
    assert!(all.len() >= 18, "{} files", all.len());
    all.iter().for_each(compare);
}
