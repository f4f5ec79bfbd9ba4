//! Tests Notify and Delete payloads.

use super::*;

#[test]
fn a_notification_about_a_child_names_its_spi() {
    //= RFC 7296 1.3.3 REQUIRED 2: REKEY_SA names our inbound SPI
    //= RFC 7296 3.10 MUST 1: the protocol of a CHILD_SA
    let notify = Notify::about_child(NotifyType::RekeySa, 0x0102_0304);
    let payloads = Payloads::from(vec![Payload::Notify(notify.clone())]);
    assert_eq!(payloads.encode(), [0, 0, 0, 12, 3, 4, 0x40, 0x09, 1, 2, 3, 4]);
    assert_eq!(notify.child_spi(), Some(0x0102_0304));
    assert_eq!(Notify::new(NotifyType::RekeySa).child_spi(), None);
}

#[test]
fn a_protocol_without_an_spi_does_not_matter() {
    //= RFC 7296 3.10 MUST 2: no protocol without SPI
    //= RFC 7296 3.10 MUST 3: the protocol is ignored without SPI
    //= RFC 7296 3.10 MUST 4: no SPI of the IKE SA
    let Ok(Payload::Notify(notify)) = read_one(41, &[3, 0, 0x40, 0]) else { panic!("a notification") };
    assert_eq!((notify.kind, notify.child_spi()), (NotifyType::InitialContact, None));
    let payloads = Payloads::from(vec![Payload::Notify(notify)]);
    assert!(payloads.notify(NotifyType::InitialContact).is_some());
    let ours = Payloads::from(vec![Payload::Notify(Notify::new(NotifyType::InitialContact))]);
    assert_eq!(ours.encode(), [0, 0, 0, 8, 0, 0, 0x40, 0]);
}

#[test]
fn unknown_notifications_are_kept_and_sorted_into_errors_and_status() {
    //= RFC 7296 3.10.1 MUST 1: an unknown error is an error
    let Ok(Payload::Notify(error)) = read_one(41, &[0, 0, 0x1f, 0xff, 1]) else { panic!("a notification") };
    assert_eq!((error.kind, error.data.as_slice()), (NotifyType::Unknown(8191), [1].as_slice()));
    assert!(error.kind.is_error());
    assert!(!NotifyType::from(16384).is_error() && !NotifyType::Unknown(40_000).is_error());
}

#[test]
fn an_spi_longer_than_its_notification_is_refused() {
    assert!(matches!(read_one(41, &[3, 4, 0x40, 9, 1, 2, 3]), Err(InvalidMessage::Truncated { .. })));
}

#[test]
fn signature_hash_algorithms_are_a_list_of_numbers() {
    let notify = Notify::signature_hashes(&[HashAlgorithm::Sha2_256, HashAlgorithm::Identity]);
    assert_eq!(notify.data, [0, 2, 0, 5]);
    assert_eq!(notify.hashes(), [HashAlgorithm::Sha2_256, HashAlgorithm::Identity]);
}

#[test]
fn deletes_state_their_spis_truthfully() {
    //= RFC 7296 3.11 MUST 1: SPIs of one protocol
    //= RFC 7296 3.11 MUST NOT 2: protocols are not mixed
    //= RFC 7296 3.11 MUST 3: SPIs of no or four octets
    assert_eq!(read_one(42, &[1, 0, 0, 0]), Ok(Payload::Delete(Delete::Ike)));
    assert_eq!(read_one(42, &[3, 4, 0, 1, 1, 2, 3, 4]), Ok(Payload::Delete(Delete::child(0x0102_0304))));
    for wrong in [[1, 8, 0, 1].as_slice(), &[1, 0, 0, 1], &[3, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], &[3, 0, 0, 0]] {
        assert!(matches!(read_one(42, wrong), Err(InvalidMessage::DeleteSpis { .. })), "{wrong:?}");
    }
    assert!(matches!(read_one(42, &[3, 4, 0xff, 0xff, 1, 2, 3, 4]), Err(InvalidMessage::Truncated { .. })));
    assert!(matches!(read_one(42, &[3, 4, 0, 0, 1]), Err(InvalidMessage::TrailingBytes { .. })));
}
