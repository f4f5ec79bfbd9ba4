//! Tests of encoding and decoding: encoded messages decode to the same, malformed messages give the
//! right error, and no input panics.

mod arbitrary;
mod headers;
mod identification;
mod notify_and_delete;
mod payload_chain;
mod reassembly;
mod security_association;
mod traffic_selectors;

use ipnetwork::IpNetwork;

use super::*;
use crate::config::{AesKeyLength, Cipher, Group, Identity, Integrity, Prf};

fn header() -> Header {
    Header {
        initiator_spi: 0x0102_0304_0506_0708,
        responder_spi: 0,
        exchange: ExchangeType::IkeSaInit,
        from_initiator: true,
        response: false,
        message_id: 0,
    }
}

/// Makes a message with one payload of type `kind` and these contents, from octets.
fn raw(kind: u8, critical: bool, contents: &[u8]) -> Vec<u8> {
    let mut out = Message { header: header(), payloads: Payloads::new() }.encode();
    out[16] = kind;
    out.extend_from_slice(&[0, if critical { 0x80 } else { 0 }]);
    out.extend_from_slice(&(contents.len() as u16 + 4).to_be_bytes());
    out.extend_from_slice(contents);
    let len = out.len() as u32;
    out[24..28].copy_from_slice(&len.to_be_bytes());
    out
}

fn read_one(kind: u8, contents: &[u8]) -> Result<Payload, InvalidMessage> {
    Message::decode(&raw(kind, false, contents)).map(|message| message.payloads.as_slice()[0].clone())
}

fn networks(selector: &TrafficSelector) -> Vec<String> {
    selector.networks().map(|network| network.to_string()).collect()
}

fn range(start: &str, end: &str) -> TrafficSelector {
    TrafficSelector::addresses(start.parse().unwrap(), end.parse().unwrap()).unwrap()
}
