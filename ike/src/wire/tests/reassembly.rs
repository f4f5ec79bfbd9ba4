//! Tests fragments and their reassembly.

use super::*;

fn fragment(number: u16, total: u16, data: &[u8]) -> Fragment {
    let first = if number == 1 { PayloadType::VendorId } else { PayloadType::None };
    Fragment { number, total, first, data: data.to_vec() }
}

#[test]
fn fragments_make_their_message_in_any_order_and_duplicates_change_nothing() {
    let message = Payloads::from(vec![Payload::VendorId((0..100).collect())]);
    let octets = message.encode();
    let parts: Vec<_> = octets.chunks(40).collect();
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(fragment(3, 3, parts[2])), Ok(None));
    assert_eq!(reassembly.add(fragment(3, 3, &[0xff; 40])), Ok(None));
    assert_eq!(reassembly.add(fragment(1, 3, parts[0])), Ok(None));
    assert_eq!(reassembly.add(fragment(2, 3, parts[1])), Ok(Some(message)));
    assert_eq!(reassembly.add(fragment(2, 3, parts[1])), Ok(None), "it is empty again");
}

#[test]
fn a_finer_split_replaces_a_coarser_one_and_not_the_other_way_round() {
    let message = Payloads::from(vec![Payload::VendorId((0..100).collect())]);
    let octets = message.encode();
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(fragment(1, 2, &octets[..60])), Ok(None));
    assert_eq!(reassembly.add(fragment(1, 3, &octets[..40])), Ok(None));
    assert_eq!(reassembly.add(fragment(2, 2, &octets[60..])), Ok(None), "an old one");
    assert_eq!(reassembly.add(fragment(2, 3, &octets[40..80])), Ok(None));
    assert_eq!(reassembly.add(fragment(3, 3, &octets[80..])), Ok(Some(message)));
}

#[test]
fn impossible_fragment_numbers_and_endless_messages_are_refused() {
    let mut reassembly = Reassembly::new();
    for (number, total) in [(0, 1), (2, 1), (1, 0), (0, 0)] {
        assert_eq!(reassembly.add(fragment(number, total, &[])), Err(InvalidMessage::FragmentNumber { number, total }));
    }
    assert!(matches!(reassembly.add(fragment(1, MAX_FRAGMENTS + 1, &[])), Err(InvalidMessage::TooMany { .. })));
    assert_eq!(reassembly.add(fragment(1, 3, &[0; 20_000])), Ok(None));
    assert!(matches!(reassembly.add(fragment(2, 3, &[0; 20_000])), Err(InvalidMessage::TooMany { .. })));
}
