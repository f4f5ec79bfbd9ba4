//! Compares the messages, octet for octet, with those that nft(8) 1.0.6 sends for the same table on
//! a little-endian machine (`strace -e sendmsg -xx nft -f`). The plugin's lookups contain the set's
//! name, so they have no set ID.

use netlink_packet_core::NetlinkSerializable;

use super::*;
use crate::nftables::BaseChain;
use crate::nftables::expression::{Base, Comparison, Expression, Rule, Verdict};

/// Parses hexadecimal digits, which are the attributes that nft(8) sent.
fn sent(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let octets = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap());
    octets.collect()
}

const NAMED: &str = "0d000100 656467652d636e6900 000000";

fn port() -> PodPort {
    PodPort {
        name: "ecni0123456789a".into(),
        mac: [2, 0, 0, 0, 0, 1],
        addresses: vec!["10.77.3.2".parse().unwrap(), "fd77::2".parse().unwrap()],
        unfiltered: false,
    }
}

#[test]
#[cfg(target_endian = "little")]
fn a_chain_at_a_hook_is_asked_for_as_nft_does() {
    let base = BaseChain { hook: 0, priority: -200 };
    let (message, _) = TABLE.new_chain("prerouting", Some(&base));
    let expected = "07000000".to_owned()
        + NAMED
        + "0f000300 707265726f7574696e6700 00"
        + "0b000700 66696c74657200 00"
        + "08000500 00000001"
        + "14000480 0800010000000000 08000200ffffff38";
    assert_eq!(message.body, sent(&expected));
    assert_eq!(message.message_type(), 0x0a03);
}

#[test]
#[cfg(target_endian = "little")]
fn a_set_is_asked_for_as_nft_does() {
    let (message, _) = TABLE.new_set(&FilterSet::Targets.definition());
    let expected = "07000000".to_owned()
        + NAMED
        + "0f000200 6e642d7461726765747300 00"
        + "08000300 00000000 08000400 00029104 08000500 00000020 08000a00 00000005"
        + "74000d00 000400000000 0368 00040d000000 0160 000e 000409000000 0106 000406000000"
        + "0126 000407000000 011e 000400000000 010400000000 020403000000 030440000000 040440000000"
        + "0226 000407000000 011e 000400000000 010400000000 020403000000 030480000000 040440000000";
    assert_eq!(message.body, sent(&expected));
    assert_eq!(FilterSet::Unfiltered.user_data(), sent("000401000000"));
    for (set, kind, length) in [
        (FilterSet::Ports, 0xa69, 32),
        (FilterSet::Macs, 0xa49, 24),
        (FilterSet::Ipv4, 0x29247, 28),
        (FilterSet::Ipv6, 0x29248, 40),
        (FilterSet::Targets, 0x29104, 32),
        (FilterSet::ErrorTargets, 0xa44, 20),
    ] {
        assert_eq!((set.key_type(), set.key_length()), (kind, length), "{set:?}");
    }
}

#[test]
#[cfg(target_endian = "little")]
fn a_rule_is_asked_for_as_nft_does() {
    let rule = Rule {
        chain: "pod",
        expressions: vec![
            Expression::Payload { base: Base::Link, offset: 12, length: 2, register: 1 },
            Expression::Compare { operation: Comparison::Equal, value: vec![8, 6] },
            Expression::Verdict(Verdict::Goto("pod-arp")),
        ],
        comment: None,
    };
    let (message, _) = TABLE.new_rule(&rule);
    let expected = "07000000".to_owned()
        + NAMED
        + "08000200 706f6400 a0000480"
        + "34000180 0c000100 7061796c6f616400 24000280 0800010000000001 0800020000000000 080003000000000c 0800040000000002"
        + "2c000180 08000100 636d7000 20000280 0800010000000001 0800020000000000 0c000380 06000100 0806 0000"
        + "3c000180 0e000100 696d6d65646961746500 0000 28000280 0800010000000000 1c000280 18000280 08000100fffffffc"
        + "0c000200 706f642d61727000";
    assert_eq!(message.body, sent(&expected));
    let comment = Rule { comment: Some("source MAC address"), ..rule };
    let (message, _) = TABLE.new_rule(&comment);
    let ending = sent("19000700 0013 736f75726365204d4143206164647265737300 000000");
    assert!(message.body.ends_with(&ending));
}

#[test]
fn the_elements_of_a_port_are_keys_of_whole_words() {
    let elements = elements_of(&[port()]);
    let name = "65636e6930313233343536373839610 0".replace(' ', "");
    let key =
        |set, rest: &str| assert!(elements[&set].contains(&sent(&(name.clone() + rest))), "{set:?} {elements:02x?}");
    key(FilterSet::Ports, &name);
    key(FilterSet::Macs, "020000000001 0000");
    key(FilterSet::Ipv4, "020000000001 0000 0a4d0302");
    key(FilterSet::Ipv6, "020000000001 0000 fd770000000000000000000000000002");
    key(FilterSet::Ipv6, "020000000001 0000 fe80000000000000000000fffe000001");
    key(FilterSet::Targets, "fd770000000000000000000000000002");
    key(FilterSet::Targets, "fe80000000000000000000fffe000001");
    assert!(!elements.contains_key(&FilterSet::Unfiltered));
    assert!(elements.iter().all(|(set, keys)| keys.iter().all(|key| key.len() as u32 == set.key_length())));
    let excepted = elements_of(&[PodPort { unfiltered: true, ..port() }]);
    assert_eq!(excepted.keys().copied().collect::<Vec<_>>(), [FilterSet::Ports, FilterSet::Unfiltered]);
}

#[test]
fn what_is_asked_for_is_read_back_and_nonsense_is_nothing() {
    let keys = elements_of(&[port()]).remove(&FilterSet::Ipv6).unwrap();
    let (message, _) = TABLE.add_elements("ipv6", &keys);
    assert_eq!(wire::keys_of(&message), keys);
    assert_eq!(interface_of(&keys[0]), "ecni0123456789a");
    for cut in 0..message.body.len() {
        let cut = RawMessage { body: message.body[..cut].to_vec(), ..message.clone() };
        assert!(wire::keys_of(&cut).len() <= keys.len());
    }
    let full: Vec<_> = (0..wire::ELEMENTS).map(|_| keys[0].clone()).collect();
    assert_eq!(wire::keys_of(&TABLE.add_elements("ipv6", &full).0).len(), wire::ELEMENTS);
}

#[test]
fn every_chain_that_a_rule_leads_to_is_made() {
    let chains: Vec<&str> = table::CHAINS.iter().map(|(name, _)| *name).collect();
    for rule in table::rules() {
        assert!(chains.contains(&rule.chain), "{rule:?}");
        for expression in &rule.expressions {
            if let Expression::Verdict(Verdict::Goto(chain)) = expression {
                assert!(chains.contains(chain), "{rule:?}");
            }
        }
    }
}
