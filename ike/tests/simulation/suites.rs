//! Tests each algorithm from its first use to rekeys of both kinds of SAs. The oracle independently
//! derives all keys and decrypts all messages.

use edge_ike::config::{AesKeyLength, Cipher, EspProposal, Group, IkeProposal, Integrity, Prf};

use crate::network::LinkQuality;
use crate::peers::{Pair, SECOND};

const fn cbc(length: AesKeyLength, integrity: Integrity) -> Cipher {
    Cipher::AesCbc(length, integrity)
}

/// Algorithms of the IKE SA and of the CHILD_SA.
struct Suite {
    ike: (Cipher, Prf, Group),
    esp: (Cipher, bool),
}

/// Combinations in which every algorithm occurs at least once.
const SUITES: &[Suite] = &[
    Suite { ike: (Cipher::Aes128Gcm16, Prf::HmacSha512, Group::X25519), esp: (Cipher::ChaCha20Poly1305, true) },
    Suite { ike: (Cipher::ChaCha20Poly1305, Prf::HmacSha384, Group::X25519), esp: (Cipher::Aes128Gcm16, false) },
    Suite {
        ike: (cbc(AesKeyLength::Bits256, Integrity::HmacSha256), Prf::HmacSha256, Group::X25519),
        esp: (cbc(AesKeyLength::Bits256, Integrity::HmacSha256), false),
    },
    Suite {
        ike: (cbc(AesKeyLength::Bits128, Integrity::HmacSha384), Prf::HmacSha384, Group::X25519),
        esp: (cbc(AesKeyLength::Bits192, Integrity::HmacSha384), true),
    },
    Suite {
        ike: (cbc(AesKeyLength::Bits192, Integrity::HmacSha512), Prf::HmacSha512, Group::X25519),
        esp: (cbc(AesKeyLength::Bits128, Integrity::HmacSha512), true),
    },
    Suite {
        ike: (cbc(AesKeyLength::Bits256, Integrity::HmacSha256), Prf::HmacSha256, Group::Modp2048),
        esp: (cbc(AesKeyLength::Bits256, Integrity::HmacSha256), false),
    },
    Suite { ike: (Cipher::Aes256Gcm16, Prf::HmacSha384, Group::Modp3072), esp: (Cipher::Aes256Gcm16, false) },
    Suite { ike: (Cipher::Aes256Gcm16, Prf::HmacSha512, Group::Modp4096), esp: (Cipher::Aes256Gcm16, false) },
    Suite { ike: (Cipher::Aes256Gcm16, Prf::HmacSha512, Group::P521), esp: (Cipher::Aes256Gcm16, false) },
];

/// Groups whose private keys the oracle cannot know, since `ring` generates them.
const BLIND: [Group; 2] = [Group::P256, Group::P384];

impl Suite {
    fn pair(&self, seed: u64, quality: LinkQuality) -> Pair {
        let ((cipher, prf, group), (esp, esn)) = (self.ike, self.esp);
        Pair::new(seed, quality).one_sided().both(|config| {
            config.ike_proposals = vec![IkeProposal { ciphers: vec![cipher], prfs: vec![prf], groups: vec![group] }];
            config.child.proposals = vec![EspProposal { ciphers: vec![esp], groups: vec![group], esn }];
        })
    }

    /// Runs establishment and rekeys by both ends, with traffic.
    fn run(&self, seed: u64) -> Pair {
        let mut pair = self.pair(seed, LinkQuality::REORDERING);
        pair.start();
        pair.traffic(3 * SECOND);
        let (a, b) = (pair.a_name.clone(), pair.b_name.clone());
        pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_children(&b, now, env));
        pair.traffic(3 * SECOND);
        pair.network.call(pair.b, |endpoint, now, env| endpoint.rekey_ike(&a, now, env));
        pair.traffic(3 * SECOND);
        pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_children(&b, now, env));
        pair.traffic(20 * SECOND);
        pair.assert_connected();
        let ((cipher, prf, group), (esp, esn)) = (self.ike, self.esp);
        let status = pair.network.nodes[pair.b].endpoint.snapshot();
        assert_eq!(status[0].ike_sas[0].details.proposal.to_string(), format!("{cipher}/{prf}/{group}"));
        assert_eq!((status[0].children[0].sa.cipher, status[0].children[0].sa.esn), (esp, esn));
        pair
    }
}

#[test]
fn a_group_that_the_oracle_cannot_follow_brings_a_tunnel_too() {
    for group in BLIND {
        let suite = Suite { ike: (Cipher::Aes256Gcm16, Prf::HmacSha256, group), esp: (Cipher::Aes256Gcm16, false) };
        let mut pair = suite.pair(1, LinkQuality::REORDERING);
        pair.start();
        pair.traffic(3 * SECOND);
        pair.assert_connected();
    }
}

#[test]
pub fn every_algorithm_carries_an_ike_sa_and_a_child_sa_through_their_rekeys() {
    for (seed, suite) in (0..).zip(SUITES) {
        let pair = suite.run(seed);
        assert!(!pair.network.oracle.is_blind(), "{}/{}/{}", suite.ike.0, suite.ike.1, suite.ike.2);
    }
}

#[test]
fn large_messages_travel_in_fragments_of_aes_cbc_that_each_fit_the_limit() {
    // The oracle judges the size of each datagram.
    for suite in &SUITES[2..5] {
        let mut pair = suite.pair(7, LinkQuality::LOSSY).both(|config| {
            let many = (0..120_u8).map(|n| format!("10.77.{n}.0/24").parse().unwrap());
            (config.child.local, config.child.remote) = (many.clone().collect(), many.collect());
            config.timing.transmissions = 10;
        });
        pair.start();
        pair.network.run_for(60 * SECOND);
        pair.network.quality = LinkQuality::RELIABLE;
        pair.network.run_for(60 * SECOND);
        assert_eq!(pair.network.nodes[pair.b].endpoint.snapshot()[0].children.len(), 1);
        let fragments = pair.network.wire.iter().filter(|(.., octets)| octets.get(20) == Some(&53)).count();
        assert!(fragments > 2, "{fragments} fragments");
    }
}
