//! Making proposals and choosing among them (RFC 7296 2.7, 3.3).

use crate::config::{Cipher, EspProposal, Group, IkeProposal, Integrity, Prf};
use crate::crypto::IkeSuite;
use crate::wire::{Proposal, Protocol, Transform, TransformType};

/// The algorithms chosen for a CHILD_SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EspSuite {
    /// Protects the packets in both directions.
    pub(crate) cipher: Cipher,
    /// Key exchange method, if the exchange has one.
    pub(crate) group: Option<Group>,
    /// Whether sequence numbers have 64 bits (RFC 4303 2.2.1).
    pub(crate) esn: bool,
}

/// The result of matching the peer's proposals with ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen<S> {
    /// One algorithm for each transform type.
    pub(crate) suite: S,
    /// The peer's SPI. Empty in IKE_SA_INIT.
    pub(crate) spi: Vec<u8>,
    //= RFC 7296 3.3.1 MUST 5: the answer has the number
    number: u8,
}

impl Chosen<IkeSuite> {
    /// Returns the peer's SPI of the new IKE SA of a rekey, or `None` if the proposal has none.
    pub(crate) fn ike_spi(&self) -> Option<u64> {
        self.spi.as_slice().try_into().ok().map(u64::from_be_bytes).filter(|spi| *spi != 0)
    }

    /// Returns the chosen proposal for our response, with our SPI (empty in IKE_SA_INIT).
    //= RFC 7296 3.3.6 MUST 2: one proposal
    pub(crate) fn response(&self, spi: Vec<u8>) -> Proposal {
        let IkeSuite { cipher, prf, group } = self.suite;
        let mut transforms = vec![Transform::encryption(cipher), Transform::prf(prf)];
        transforms.extend(cipher.integrity().map(Transform::integrity));
        transforms.push(Transform::group(group));
        //= RFC 7296 2.7 MUST 2: the same protocol
        Proposal { number: self.number, protocol: Protocol::Ike, spi, transforms }
    }
}

impl Chosen<EspSuite> {
    /// Returns the peer's inbound SPI.
    pub(crate) fn child_spi(&self) -> u32 {
        // choose_esp accepts no offer without an SPI.
        self.spi.as_slice().try_into().map_or(0, u32::from_be_bytes)
    }

    /// Returns the chosen proposal for our response, with our SPI.
    pub(crate) fn response(&self, spi: u32) -> Proposal {
        let mut transforms = vec![Transform::encryption(self.suite.cipher)];
        transforms.extend(self.suite.cipher.integrity().map(Transform::integrity));
        transforms.extend(self.suite.group.map(Transform::group));
        transforms.push(Transform::sequence_numbers(self.suite.esn));
        //= RFC 7296 2.7 MUST 2: the same protocol
        Proposal { number: self.number, protocol: Protocol::Esp, spi: spi.to_be_bytes().to_vec(), transforms }
    }
}

/// Makes our IKE SA proposals with our SPI (empty in IKE_SA_INIT).
pub(crate) fn offer_ike(ours: &[IkeProposal], spi: &[u8]) -> Vec<Proposal> {
    //= RFC 7296 3.3 MUST 1: the best proposal is first
    let transforms = ours.iter().flat_map(|proposal| {
        protections(&proposal.ciphers).map(|mut transforms| {
            transforms.extend(proposal.prfs.iter().map(|&prf| Transform::prf(prf)));
            //= RFC 7296 2.18 MUST NOT 2: NONE is not proposed
            transforms.extend(proposal.groups.iter().map(|&group| Transform::group(group)));
            transforms
        })
    });
    numbered(Protocol::Ike, spi, transforms)
}

/// Makes our ESP proposals with our SPI. `groups` states whether to offer key exchange methods.
pub(crate) fn offer_esp(ours: &[EspProposal], spi: u32, groups: bool) -> Vec<Proposal> {
    let transforms = ours.iter().flat_map(|proposal| {
        protections(&proposal.ciphers).map(move |mut transforms| {
            //= RFC 7296 1.2 SHOULD 6: no KE transform in IKE_AUTH
            transforms.extend(proposal.groups.iter().filter(|_| groups).map(|&group| Transform::group(group)));
            let esn = if proposal.esn { [true, false].as_slice() } else { &[false] };
            transforms.extend(esn.iter().map(|&extended| Transform::sequence_numbers(extended)));
            transforms
        })
    });
    numbered(Protocol::Esp, &spi.to_be_bytes(), transforms)
}

/// Returns the transforms of these ciphers, one list for each proposal. A proposal offers every
/// combination of its transforms, so AEADs and AES-CBC need separate proposals (RFC 7296 3.3). Each
/// integrity algorithm also needs a separate proposal.
//= RFC 7296 3.3 MUST 5: no integrity beside an AEAD
fn protections(ciphers: &[Cipher]) -> impl Iterator<Item = Vec<Transform>> + use<> {
    let mut groups: Vec<(Option<Integrity>, Vec<Transform>)> = Vec::new();
    for &cipher in ciphers {
        let (integrity, encryption) = (cipher.integrity(), Transform::encryption(cipher));
        match groups.iter_mut().find(|(known, _)| *known == integrity) {
            Some((_, transforms)) => transforms.push(encryption),
            None => groups.push((integrity, vec![encryption])),
        }
    }
    groups.into_iter().map(|(integrity, mut transforms)| {
        transforms.extend(integrity.map(Transform::integrity));
        transforms
    })
}

fn numbered(protocol: Protocol, spi: &[u8], transforms: impl Iterator<Item = Vec<Transform>>) -> Vec<Proposal> {
    //= RFC 7296 3.3 MUST 3: numbers grow by one
    //= RFC 7296 3.3 MUST 4: the first number is one
    //= RFC 7296 3.3.1 MUST 3: the first number is one
    //= RFC 7296 3.3.1 MUST 4: numbers grow by one
    (1..=u8::MAX)
        .zip(transforms)
        .map(|(number, transforms)| Proposal { number, protocol, spi: spi.to_vec(), transforms })
        .collect()
}

/// Chooses our most preferred proposal that the peer also offers. `sent` is the key exchange method
/// of the peer's KE payload. It is preferred, since any other method costs another round trip.
//= RFC 7296 2.7 MUST 1: one suite
//= RFC 7296 3.3.6 MUST 1: one set of parameters
pub(crate) fn choose_ike<'a>(
    offers: &[Proposal],
    ours: impl IntoIterator<Item = &'a IkeProposal>,
    sent: Option<u16>,
) -> Option<Chosen<IkeSuite>> {
    //= RFC 7296 3.3.3 MUST 1: all types are understood
    let known = [TransformType::Encryption, TransformType::Integrity, TransformType::Prf, TransformType::KeyExchange];
    let offers = || usable(offers, Protocol::Ike, &known);
    ours.into_iter().find_map(|ours| {
        offers().find_map(|offer| {
            let cipher = choose_cipher(&ours.ciphers, offer)?;
            let prf = choose_prf(&ours.prfs, offer)?;
            //= RFC 7296 2.18 MUST NOT 3: NONE is not accepted
            let group = choose_group(&ours.groups, offer, sent)?;
            Some(Chosen { suite: IkeSuite { cipher, prf, group }, spi: offer.spi.clone(), number: offer.number })
        })
    })
}

impl IkeProposal {
    /// Returns whether this proposal allows the suite.
    pub(crate) fn allows(&self, suite: IkeSuite) -> bool {
        self.ciphers.contains(&suite.cipher) && self.prfs.contains(&suite.prf) && self.groups.contains(&suite.group)
    }
}

/// Returns whether a response contains a single proposal with at most one transform of each type
/// (RFC 7296 2.7).
//= RFC 7296 2.7 MUST 4: one transform of each type
pub(crate) fn is_one_choice(answer: &[Proposal]) -> bool {
    let [chosen] = answer else {
        return false;
    };
    let alone = |transform: &Transform| chosen.transforms_of(transform.kind).count() == 1;
    chosen.transforms.iter().all(alone)
}

/// How to choose the key exchange of a CHILD_SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildKeyExchange {
    /// In IKE_AUTH the CHILD_SA has no key exchange, even if one is offered (RFC 7296 1.2).
    Ignored,
    /// In CREATE_CHILD_SA the configuration decides. If it requires forward secrecy, a peer that
    /// does not offer forward secrecy is refused.
    Configured {
        /// The method of the share that the peer sent.
        sent: Option<u16>,
    },
}

/// Chooses the best of our proposals among the peer's offers.
//= RFC 7296 2.7 MUST 1: one suite
pub(crate) fn choose_esp(
    offers: &[Proposal],
    ours: &[EspProposal],
    exchange: ChildKeyExchange,
) -> Option<Chosen<EspSuite>> {
    //= RFC 7296 3.3.3 MUST 1: all types are understood
    let known = [
        TransformType::Encryption,
        TransformType::Integrity,
        TransformType::KeyExchange,
        TransformType::SequenceNumbers,
    ];
    let offers = || usable(offers, Protocol::Esp, &known).filter(|offer| offer.child_spi().is_some_and(|spi| spi != 0));
    ours.iter().find_map(|ours| {
        offers().find_map(|offer| {
            let cipher = choose_cipher(&ours.ciphers, offer)?;
            //= RFC 7296 3.3.6 MUST 8: mandatory transform types
            // An offer without ESN transforms means short sequence numbers.
            let offered_esn = |extended| {
                offer.transforms_of(TransformType::SequenceNumbers).any(|t| t.as_sequence_numbers() == Some(extended))
                    || (!extended && offer.transforms_of(TransformType::SequenceNumbers).next().is_none())
            };
            let esn = ours.esn && offered_esn(true);
            (esn || offered_esn(false)).then_some(())?;
            let group = match exchange {
                ChildKeyExchange::Ignored => None,
                ChildKeyExchange::Configured { .. } if ours.groups.is_empty() => {
                    let none = offer.transforms_of(TransformType::KeyExchange).all(Transform::is_none)
                        || offer.transforms_of(TransformType::KeyExchange).any(Transform::is_none);
                    none.then_some(())?;
                    None
                }
                ChildKeyExchange::Configured { sent } => Some(choose_group(&ours.groups, offer, sent)?),
            };
            Some(Chosen { suite: EspSuite { cipher, group, esn }, spi: offer.spi.clone(), number: offer.number })
        })
    })
}

/// Returns the offers for a protocol that have only transform types that we support. Another type
/// is accepted only if "none" is offered for it (for additional key exchanges, RFC 9370).
fn usable<'a>(
    offers: &'a [Proposal],
    protocol: Protocol,
    known: &'a [TransformType],
) -> impl Iterator<Item = &'a Proposal> {
    offers.iter().filter(move |offer| {
        //= RFC 7296 3.3.6 MUST 7: unknown transform types
        let optional = |transform: &Transform| {
            offer.transforms_of(transform.kind).any(Transform::is_none) || known.contains(&transform.kind)
        };
        offer.protocol == protocol && offer.transforms.iter().all(optional)
    })
}

/// Returns the first of our ciphers that is offered. An AEAD is chosen only if the offer does not
/// require an integrity algorithm (RFC 5282 8).
//= RFC 7296 3.3.4 MUST 4: offers are compared with the configuration
fn choose_cipher(ours: &[Cipher], offer: &Proposal) -> Option<Cipher> {
    //= RFC 7296 3.3 MUST 5: no integrity beside an AEAD
    let no_integrity = || {
        let mut offered = offer.transforms_of(TransformType::Integrity).peekable();
        offered.peek().is_none() || offered.any(Transform::is_none)
    };
    let offered = |cipher: &Cipher| {
        //= RFC 7296 3.3.5 MUST 6: AES without length is refused
        //= RFC 7296 3.3.6 MUST 9: unknown transforms and attributes
        offer.transforms.iter().any(|transform| transform.is_encryption(*cipher))
            && match cipher.integrity() {
                Some(integrity) => offer.transforms.contains(&Transform::integrity(integrity)),
                None => no_integrity(),
            }
    };
    //= RFC 7296 3.3.6 MUST 3: one transform of a type
    ours.iter().copied().find(offered)
}

fn choose_prf(ours: &[Prf], offer: &Proposal) -> Option<Prf> {
    let offered = |prf: &Prf| offer.transforms_of(TransformType::Prf).any(|transform| transform.as_prf() == Some(*prf));
    ours.iter().copied().find(offered)
}

fn choose_group(ours: &[Group], offer: &Proposal, sent: Option<u16>) -> Option<Group> {
    let offered = |group: Group| {
        offer.transforms_of(TransformType::KeyExchange).any(|transform| transform.as_group() == Some(group))
    };
    let sent = sent.and_then(Group::from_number).filter(|group| ours.contains(group) && offered(*group));
    sent.or_else(|| ours.iter().copied().find(|group| offered(*group)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AesKeyLength;

    fn ike(ciphers: &[Cipher], groups: &[Group]) -> IkeProposal {
        IkeProposal { ciphers: ciphers.to_vec(), prfs: vec![Prf::HmacSha256], groups: groups.to_vec() }
    }

    fn esp(ciphers: &[Cipher], groups: &[Group], esn: bool) -> EspProposal {
        EspProposal { ciphers: ciphers.to_vec(), groups: groups.to_vec(), esn }
    }

    const BOTH: [Group; 2] = [Group::X25519, Group::P256];

    #[test]
    fn our_order_decides_among_what_is_offered() {
        //= RFC 7296 2.7 MUST 1: one suite
        //= RFC 7296 3.3 MUST 7: a transform for each key length
        //= RFC 7296 3.3.4 MUST 4: offers are compared with the configuration
        //= RFC 7296 3.3.6 MUST 1: one set of parameters
        //= RFC 7296 3.3.6 MUST 3: one transform of a type
        let offers = offer_ike(&[ike(&[Cipher::Aes128Gcm16, Cipher::Aes256Gcm16], &BOTH)], &[]);
        let ours = [ike(&[Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm16, Cipher::Aes128Gcm16], &BOTH)];
        let chosen = choose_ike(&offers, &ours, None).unwrap();
        assert_eq!(chosen.suite, IkeSuite { cipher: Cipher::Aes256Gcm16, prf: Prf::HmacSha256, group: Group::X25519 });
        assert_eq!(chosen.response(Vec::new()).transforms.len(), 3);
    }

    #[test]
    fn a_public_key_that_came_already_saves_a_round_trip() {
        let offers = offer_ike(&[ike(&[Cipher::Aes256Gcm16], &BOTH)], &[]);
        let chosen = choose_ike(&offers, &[ike(&[Cipher::Aes256Gcm16], &BOTH)], Some(19)).unwrap();
        assert_eq!(chosen.suite.group, Group::P256);
    }

    #[test]
    fn nothing_in_common_is_nothing_chosen() {
        //= RFC 7296 3.3.4 MUST 3: suites are configured
        //= RFC 7296 3.3.4 MUST 5: nothing else is accepted
        let offers = offer_ike(&[ike(&[Cipher::Aes128Gcm16], &BOTH)], &[]);
        assert!(choose_ike(&offers, &[ike(&[Cipher::Aes256Gcm16], &BOTH)], None).is_none());
    }

    #[test]
    fn integrity_beside_an_aead_and_unknown_types_are_not_chosen_unless_none() {
        //= RFC 7296 3.3 MUST 5: no integrity beside an AEAD
        //= RFC 7296 3.3.3 MUST 1: all types are understood
        //= RFC 7296 3.3.6 MUST 7: unknown transform types
        let mut offers = offer_ike(&[ike(&[Cipher::Aes256Gcm16], &BOTH)], &[]);
        offers[0].transforms.push(Transform::new(TransformType::Integrity, 12));
        let ours = [ike(&[Cipher::Aes256Gcm16], &BOTH)];
        assert!(choose_ike(&offers, &ours, None).is_none());
        offers[0].transforms.push(Transform::new(TransformType::Integrity, 0));
        assert!(choose_ike(&offers, &ours, None).is_some());
        offers[0].transforms.push(Transform::new(TransformType::AdditionalKeyExchange1, 36));
        assert!(choose_ike(&offers, &ours, None).is_none());
    }

    const CBC_128: Cipher = Cipher::AesCbc(AesKeyLength::Bits128, Integrity::HmacSha256);
    const CBC_256: Cipher = Cipher::AesCbc(AesKeyLength::Bits256, Integrity::HmacSha256);
    const CBC_256_SHA512: Cipher = Cipher::AesCbc(AesKeyLength::Bits256, Integrity::HmacSha512);

    #[test]
    fn aes_cbc_is_offered_in_proposals_of_its_own() {
        //= RFC 7296 3.3 MUST 5: no integrity beside an AEAD
        let ours = [ike(&[Cipher::Aes256Gcm16, CBC_256, CBC_256_SHA512, CBC_128], &BOTH)];
        let offers = offer_ike(&ours, &[]);
        assert_eq!(offers.iter().map(|offer| offer.number).collect::<Vec<_>>(), [1, 2, 3]);
        let count = |number: usize, kind| offers[number].transforms_of(kind).count();
        assert_eq!([0, 1, 2].map(|number| count(number, TransformType::Integrity)), [0, 1, 1]);
        assert_eq!([0, 1, 2].map(|number| count(number, TransformType::Encryption)), [1, 2, 1]);
        assert_eq!(offer_esp(&[esp(&[CBC_256], &[], false)], 7, false)[0].transforms.len(), 3);
    }

    #[test]
    fn aes_cbc_is_chosen_with_its_integrity_algorithm_only() {
        let offers = offer_ike(&[ike(&[CBC_256, CBC_128], &BOTH)], &[]);
        let choose = |offers: &[Proposal], ours| choose_ike(offers, &[ike(ours, &BOTH)], None);
        assert!(choose(&offers, &[CBC_256_SHA512]).is_none());
        let chosen = choose(&offers, &[Cipher::Aes256Gcm16, CBC_256_SHA512, CBC_128]).unwrap();
        assert_eq!(chosen.suite.cipher, CBC_128);
        let answer = chosen.response(Vec::new());
        assert_eq!((answer.transforms.len(), is_one_choice(std::slice::from_ref(&answer))), (4, true));
        assert_eq!(choose(&[answer], &[CBC_128]).unwrap().suite, chosen.suite);
        // RFC 7296 3.3.3: a cipher that is not an AEAD needs an integrity algorithm.
        let mut without = offers;
        without[0].transforms.retain(|transform| transform.kind != TransformType::Integrity);
        assert!(choose(&without, &[CBC_256, CBC_128]).is_none());
        without[0].transforms.push(Transform::new(TransformType::Integrity, 0));
        assert!(choose(&without, &[CBC_256, CBC_128]).is_none());
    }

    #[test]
    fn a_transform_with_another_key_length_or_attribute_is_not_chosen() {
        //= RFC 7296 3.3.5 MUST 6: AES without length is refused
        //= RFC 7296 3.3.6 MUST 9: unknown transforms and attributes
        use crate::wire::Attribute;
        // RFC 7296 3.3.5: AES needs a key length. 3.3.6: the last test case has an unknown
        // attribute.
        let strange = Attribute::OtherShort { kind: 77, value: 1 };
        for attributes in [vec![], vec![Attribute::KeyLength(192)], vec![Attribute::KeyLength(256), strange]] {
            for cipher in [Cipher::Aes256Gcm16, CBC_256] {
                let mut offers = offer_ike(&[ike(&[cipher], &BOTH)], &[]);
                assert!(choose_ike(&offers, &[ike(&[cipher], &BOTH)], None).is_some());
                offers[0].transforms[0].attributes = attributes.clone();
                assert!(choose_ike(&offers, &[ike(&[cipher], &BOTH)], None).is_none(), "{attributes:?}");
            }
        }
    }

    #[test]
    fn extended_sequence_numbers_are_taken_where_both_want_them() {
        //= RFC 7296 3.3.3 MUST 1: all types are understood
        let offers = |esn| offer_esp(&[esp(&[Cipher::Aes256Gcm16], &[], esn)], 7, false);
        let choose = |theirs, ours| {
            choose_esp(&offers(theirs), &[esp(&[Cipher::Aes256Gcm16], &[], ours)], ChildKeyExchange::Ignored)
                .unwrap()
                .suite
                .esn
        };
        assert_eq!((choose(true, true), choose(true, false), choose(false, true)), (true, false, false));
        let mut only = offers(true);
        only[0].transforms.retain(|t| t.as_sequence_numbers() != Some(false));
        let ours = [esp(&[Cipher::Aes256Gcm16], &[], false)];
        assert!(choose_esp(&only, &ours, ChildKeyExchange::Ignored).is_none());
    }

    #[test]
    fn forward_secrecy_is_not_given_up_silently() {
        let without = offer_esp(&[esp(&[Cipher::Aes256Gcm16], &BOTH, false)], 7, false);
        let with = offer_esp(&[esp(&[Cipher::Aes256Gcm16], &BOTH, false)], 7, true);
        let pfs = [esp(&[Cipher::Aes256Gcm16], &[Group::P256], false)];
        let plain = [esp(&[Cipher::Aes256Gcm16], &[], false)];
        let configured = ChildKeyExchange::Configured { sent: Some(31) };
        assert!(choose_esp(&without, &pfs, configured).is_none());
        assert!(choose_esp(&with, &plain, configured).is_none());
        assert_eq!(choose_esp(&with, &pfs, configured).unwrap().suite.group, Some(Group::P256));
        assert_eq!(choose_esp(&with, &pfs, ChildKeyExchange::Ignored).unwrap().suite.group, None);
    }

    #[test]
    fn an_esp_offer_without_an_spi_is_not_chosen() {
        let mut offers = offer_esp(&[esp(&[Cipher::Aes256Gcm16], &[], false)], 7, false);
        offers[0].spi.clear();
        assert!(choose_esp(&offers, &[esp(&[Cipher::Aes256Gcm16], &[], false)], ChildKeyExchange::Ignored).is_none());
    }

    #[test]
    fn an_offer_without_key_exchange_leaves_the_transform_out() {
        //= RFC 7296 1.2 SHOULD 6: no KE transform in IKE_AUTH
        let ours = [esp(&[Cipher::Aes256Gcm16], &BOTH, false)];
        let groups = |offered| offer_esp(&ours, 7, offered)[0].transforms_of(TransformType::KeyExchange).count();
        assert_eq!((groups(false), groups(true)), (0, 2));
    }

    #[test]
    fn an_ike_sa_without_a_key_exchange_is_neither_offered_nor_chosen() {
        //= RFC 7296 2.18 MUST NOT 2: NONE is not proposed
        //= RFC 7296 2.18 MUST NOT 3: NONE is not accepted
        //= RFC 7296 3.3.6 MUST 8: mandatory transform types
        let ours = [ike(&[Cipher::Aes256Gcm16], &BOTH)];
        let mut offers = offer_ike(&ours, &[]);
        assert!(offers[0].transforms_of(TransformType::KeyExchange).all(|transform| transform.as_group().is_some()));
        assert!(choose_ike(&offers, &ours, None).is_some());
        offers[0].transforms.retain(|transform| transform.kind != TransformType::KeyExchange);
        assert!(choose_ike(&offers, &ours, None).is_none(), "left out");
        offers[0].transforms.push(Transform::new(TransformType::KeyExchange, 0));
        assert!(choose_ike(&offers, &ours, None).is_none(), "NONE");
        for kind in [TransformType::Encryption, TransformType::Prf] {
            let mut offers = offer_ike(&ours, &[]);
            offers[0].transforms.retain(|transform| transform.kind != kind);
            assert!(choose_ike(&offers, &ours, None).is_none(), "{kind:?} is mandatory");
        }
    }
}
