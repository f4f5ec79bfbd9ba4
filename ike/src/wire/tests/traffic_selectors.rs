//! Tests traffic selectors.

use super::*;

#[test]
fn selectors_are_laid_out_as_rfc_7296_draws_them() {
    //= RFC 7296 3.13 MUST 1: RESERVED is zero
    //= RFC 7296 3.13.1 MUST 1: all ports begin at 0
    //= RFC 7296 3.13.1 MUST 2: all ports end at 65535
    let selectors = vec![range("10.0.0.0", "10.0.0.255"), TrafficSelector::from("::/0".parse::<IpNetwork>().unwrap())];
    let payloads = Payloads::from(vec![Payload::TrafficSelectorsInitiator(selectors.clone())]);
    let octets = payloads.encode();
    assert_eq!(octets[..24], [0, 0, 0, 64, 2, 0, 0, 0, 7, 0, 0, 16, 0, 0, 255, 255, 10, 0, 0, 0, 10, 0, 0, 255]);
    assert_eq!(octets[24..32], [8, 0, 0, 40, 0, 0, 255, 255]);
    assert_eq!(Payloads::decode(payloads.first_kind(), &octets).unwrap().selectors_initiator().unwrap(), selectors);
}

#[test]
fn malformed_selectors_are_named_and_unknown_types_left_out() {
    //= RFC 7296 2.9 REQUIRED 5: unknown types of selectors
    let v4 = [7, 0, 0, 16, 0, 0, 255, 255, 10, 0, 0, 0, 10, 0, 0, 255];
    let payload =
        |count: u8, selectors: &[&[u8]]| read_one(44, &[&[count, 0, 0, 0], selectors.concat().as_slice()].concat());
    assert!(payload(1, &[&v4]).is_ok());
    assert_eq!(payload(0, &[&v4]), Err(InvalidMessage::SelectorCount { stated: 0, actual: 1 }));
    assert_eq!(payload(2, &[&v4]), Err(InvalidMessage::SelectorCount { stated: 2, actual: 1 }));
    let label = [10, 0, 0, 5, 1];
    assert_eq!(payload(2, &[&label, &v4]), payload(1, &[&v4]));
    let reversed = [7, 0, 0, 16, 0, 0, 255, 255, 10, 0, 0, 9, 10, 0, 0, 8];
    assert_eq!(payload(1, &[&reversed]), Err(InvalidMessage::SelectorRange));
    let ports = [7, 6, 0, 16, 0, 9, 0, 8, 10, 0, 0, 0, 10, 0, 0, 255];
    assert_eq!(payload(1, &[&ports]), Err(InvalidMessage::SelectorRange));
    let opaque = [7, 6, 0, 16, 255, 255, 0, 0, 10, 0, 0, 0, 10, 0, 0, 255];
    assert!(payload(1, &[&opaque]).is_ok());
    let short = [7, 0, 0, 8, 0, 0, 255, 255];
    assert_eq!(payload(1, &[&short]), Err(InvalidMessage::SelectorLength { kind: 7, length: 8 }));
}

#[test]
fn what_two_selectors_share_is_their_intersection() {
    //= RFC 7296 3.13.1 MUST 3: ANY
    //= RFC 7296 3.13.1 MUST 4: OPAQUE
    let wide = TrafficSelector::from("10.0.0.0/8".parse::<IpNetwork>().unwrap());
    let narrow = TrafficSelector::from("10.1.0.0/16".parse::<IpNetwork>().unwrap());
    assert_eq!(wide.intersection(&narrow), Some(narrow));
    assert!(wide.contains(&narrow) && !narrow.contains(&wide));
    assert_eq!(
        range("10.0.0.0", "10.0.0.9").intersection(&range("10.0.0.5", "10.0.0.20")),
        Some(range("10.0.0.5", "10.0.0.9"))
    );
    assert_eq!(narrow.intersection(&TrafficSelector::from("::/0".parse::<IpNetwork>().unwrap())), None);
    let tcp = TrafficSelector { protocol: 6, start_port: 80, end_port: 90, ..wide };
    let udp = TrafficSelector { protocol: 17, ..wide };
    assert_eq!(tcp.intersection(&udp), None);
    assert_eq!(wide.intersection(&tcp), Some(tcp));
    let overlapping = TrafficSelector { start_port: 85, end_port: 100, ..tcp };
    assert_eq!(tcp.intersection(&overlapping).map(|both| (both.start_port, both.end_port)), Some((85, 90)));
    let opaque = TrafficSelector { start_port: 65535, end_port: 0, ..tcp };
    assert_eq!(tcp.intersection(&opaque), None);
    assert_eq!(opaque.intersection(&opaque), Some(opaque));
    assert_eq!(wide.intersection(&opaque), Some(opaque));
}

#[test]
fn a_range_is_the_fewest_networks_that_cover_it() {
    assert_eq!(networks(&range("10.0.0.0", "10.0.0.255")), ["10.0.0.0/24"]);
    assert_eq!(networks(&range("10.0.0.1", "10.0.0.6")), ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]);
    assert_eq!(networks(&range("0.0.0.0", "255.255.255.255")), ["0.0.0.0/0"]);
    assert_eq!(networks(&range("255.255.255.255", "255.255.255.255")), ["255.255.255.255/32"]);
    assert_eq!(networks(&range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")), ["::/0"]);
    assert_eq!(networks(&range("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")).len(), 128);
    assert_eq!(networks(&range("2001:db8::", "2001:db8::ffff")), ["2001:db8::/112"]);
}
