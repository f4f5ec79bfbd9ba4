//! Tests the IKE header.

use super::*;

#[test]
fn a_header_is_laid_out_as_rfc_7296_draws_it() {
    //= RFC 7296 3.1 MUST 5: major version 2
    //= RFC 7296 3.1 MUST 8: minor version 0
    //= RFC 7296 3.1 MUST 12: requests have no Response flag
    //= RFC 7296 3.1 MUST 13: responses have the Response flag
    //= RFC 7296 3.1 MUST 17: the Initiator flag of the initiator
    let message = Message { header: Header { message_id: 7, response: true, ..header() }, payloads: Payloads::new() };
    let expected = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 34, 0x28, 0, 0, 0, 7, 0, 0, 0, 28];
    assert_eq!(message.encode(), expected);
    assert_eq!(Message::decode(&expected), Ok(message));
}

#[test]
fn a_length_that_is_not_the_datagrams_is_refused() {
    let mut octets = Message { header: header(), payloads: Payloads::new() }.encode();
    octets.push(0);
    assert_eq!(Message::decode(&octets), Err(InvalidMessage::LengthMismatch { stated: 28, actual: 29 }));
}

#[test]
fn a_later_major_version_is_named_and_the_header_can_still_be_answered() {
    //= RFC 7296 2.5 MUST 2: later major versions are dropped
    let mut octets = Message { header: header(), payloads: Payloads::new() }.encode();
    octets[17] = 0x30;
    let error = Message::decode(&octets).unwrap_err();
    assert_eq!(error, InvalidMessage::MajorVersion(3));
    assert_eq!(error.notify(), Notify::with_data(NotifyType::InvalidMajorVersion, vec![2]));
    assert_eq!(Header::peek(&octets), Some(header()));
}

#[test]
fn a_later_minor_version_and_unknown_flags_are_ignored() {
    //= RFC 7296 2.5 MUST 1: minor versions are ignored
    //= RFC 7296 3.1 MUST 9: the peer's minor version is ignored
    //= RFC 7296 3.1 MUST 11: unknown flags are ignored
    //= RFC 7296 3.1 MUST 16: the Version flag is ignored
    let mut octets = Message { header: header(), payloads: Payloads::new() }.encode();
    octets[17] = 0x2f;
    octets[19] |= 0x57;
    assert_eq!(Message::decode(&octets).unwrap().header, header());
}

#[test]
fn an_initiator_spi_of_zero_is_refused() {
    //= RFC 7296 3.1 MUST NOT 3: the initiator's SPI is not zero
    let octets = Message { header: Header { initiator_spi: 0, ..header() }, payloads: Payloads::new() }.encode();
    assert_eq!(Message::decode(&octets), Err(InvalidMessage::ZeroInitiatorSpi));
}
