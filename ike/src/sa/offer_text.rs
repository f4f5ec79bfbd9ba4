//! Texts of what a peer offers, for errors. The peer may be a stranger, and a payload can hold
//! hundreds of algorithms or selectors, so a text has a maximum length, and so has the work for it.

use std::fmt::{self, Display, Write};

/// Maximum length of the text of a list, bytes. `...` takes the place of the rest.
const MAX_TEXT: usize = 400;

/// Text that refuses what exceeds [`MAX_TEXT`].
#[derive(Default)]
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len().saturating_add(text.len()) > MAX_TEXT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Returns the items, separated by commas, in at most [`MAX_TEXT`] bytes and the dots.
pub(super) fn list<T: Display>(items: &[T]) -> String {
    let mut text = Bounded::default();
    let written = items.iter().enumerate().try_for_each(|(at, item)| {
        let separator = if at == 0 { "" } else { ", " };
        write!(text, "{separator}{item}")
    });
    let Bounded(mut text) = text;
    match written {
        Ok(()) if items.is_empty() => "nothing".to_owned(),
        Ok(()) => text,
        Err(fmt::Error) => {
            text.push_str("...");
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{MAX_PROPOSALS, MAX_SELECTORS, Proposal, Protocol, TrafficSelector, Transform, TransformType};

    #[test]
    fn an_offer_is_shown_by_the_names_of_its_algorithms_whatever_their_order() {
        let transforms = [
            (TransformType::KeyExchange, 2),
            (TransformType::Encryption, 3),
            (TransformType::Prf, 2),
            (TransformType::KeyExchange, 1023),
            (TransformType::Integrity, 2),
            (TransformType::Unknown(99), 7),
        ]
        .map(|(kind, id)| Transform::new(kind, id));
        let offer = Proposal { number: 1, protocol: Protocol::Ike, spi: vec![], transforms: transforms.into() };
        let ah =
            Proposal { protocol: Protocol::Ah, transforms: vec![Transform::sequence_numbers(false)], ..offer.clone() };
        let none = Proposal { transforms: vec![], ..offer.clone() };
        assert_eq!(
            list(&[offer, ah, none]),
            "3DES/HMAC_SHA1_96/PRF_HMAC_SHA1/MODP_1024|KE 1023/TransformType 99 7, AH: NO_ESN, no algorithm"
        );
        assert_eq!(list::<Proposal>(&[]), "nothing");
    }

    #[test]
    fn selectors_are_shown_as_networks_or_ranges_with_their_ports() {
        let selector = |start: &str, end: &str, protocol, ports: (u16, u16)| TrafficSelector {
            protocol,
            start_port: ports.0,
            end_port: ports.1,
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
        };
        let any = (0, u16::MAX);
        let all = [
            selector("10.1.0.0", "10.1.255.255", 0, any),
            selector("10.1.0.1", "10.1.0.9", 6, (443, 443)),
            selector("fd01::", "fd01::ffff:ffff:ffff:ffff", 17, (1000, 2000)),
            selector("192.0.2.1", "192.0.2.1", 50, (u16::MAX, 0)),
        ];
        assert_eq!(
            list(&all),
            "10.1.0.0/16, 10.1.0.1-10.1.0.9 protocol 6 port 443, fd01::/64 protocol 17 ports 1000-2000, \
             192.0.2.1/32 protocol 50 port OPAQUE"
        );
    }

    #[test]
    fn the_largest_offer_of_a_stranger_gives_a_short_text() {
        let transforms = vec![Transform::new(TransformType::Encryption, u16::MAX); 16];
        let offer = Proposal { number: 1, protocol: Protocol::Unknown(255), spi: vec![], transforms };
        let selector: TrafficSelector = "fd01:2345:6789:abcd::/64".parse::<ipnetwork::IpNetwork>().unwrap().into();
        for text in [list(&vec![offer; MAX_PROPOSALS]), list(&vec![selector; MAX_SELECTORS])] {
            assert!(text.len() <= MAX_TEXT + 3 && text.len() > MAX_TEXT / 2, "{}", text.len());
            assert!(text.ends_with("...") && text.is_ascii(), "{text}");
        }
    }
}
