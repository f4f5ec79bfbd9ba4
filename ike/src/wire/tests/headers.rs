//! The IKE header.

use super::*;

#[test]
fn a_header_is_laid_out_as_rfc_7296_draws_it() {
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
    let mut octets = Message { header: header(), payloads: Payloads::new() }.encode();
    octets[17] = 0x30;
    let error = Message::decode(&octets).unwrap_err();
    assert_eq!(error, InvalidMessage::MajorVersion(3));
    assert_eq!(error.notify(), Notify::with_data(NotifyType::InvalidMajorVersion, vec![2]));
    assert_eq!(Header::peek(&octets), Some(header()));
}

#[test]
fn a_later_minor_version_and_unknown_flags_are_ignored() {
    let mut octets = Message { header: header(), payloads: Payloads::new() }.encode();
    octets[17] = 0x2f;
    octets[19] |= 0x57;
    assert_eq!(Message::decode(&octets).unwrap().header, header());
}

#[test]
fn an_initiator_spi_of_zero_is_refused() {
    let octets = Message { header: Header { initiator_spi: 0, ..header() }, payloads: Payloads::new() }.encode();
    assert_eq!(Message::decode(&octets), Err(InvalidMessage::ZeroInitiatorSpi));
}
