//! Handles simultaneous rekeys of the same SA by both ends (RFC 7296 2.8.1, 2.8.2).

use crate::crypto::Nonces;

/// The peer's exchange that replaces the same SA as our exchange. The SA is a CHILD_SA or an IKE
/// SA.
#[derive(Debug)]
pub(super) struct RekeyCollision<Id> {
    /// The SA that the peer's exchange created, or the SA that has since replaced it.
    pub(super) peers_sa: Id,
    /// The lower of the two nonces of that exchange.
    lower_nonce: Vec<u8>,
}

impl<Id> RekeyCollision<Id> {
    /// Records the peer's exchange, with its nonces.
    pub(super) fn new(peers_sa: Id, nonces: Nonces<'_>) -> Self {
        Self { peers_sa, lower_nonce: lower_nonce(nonces).to_vec() }
    }

    /// Records that the peer has rekeyed the SA of its exchange before the response to ours
    /// arrived. The nonces of the colliding exchanges still decide: the peer has already compared
    /// them, and waits for us to delete our SA if it is the redundant one.
    pub(super) fn follow_rekey(&mut self, new: Id) {
        if !mutation!("rekey_of_survivor_not_followed") {
            self.peers_sa = new;
        }
    }

    /// Returns whether the SA of our exchange, which used `ours`, is the redundant one. The SA that
    /// was created with the lowest of the four nonces is redundant, and the initiator of its
    /// exchange deletes it.
    pub(super) fn makes_ours_redundant(&self, ours: Nonces<'_>) -> bool {
        //= RFC 7296 2.8.1 SHOULD 3: the lowest nonce goes
        (lower_nonce(ours) < self.lower_nonce.as_slice()) != mutation!("nonce_rule_inverted")
    }
}

/// Returns the lower nonce. Nonces are compared octet by octet. If one is a prefix of the other,
/// the prefix is the lower one.
fn lower_nonce(nonces: Nonces<'_>) -> &[u8] {
    //= RFC 7296 2.8.1 REQUIRED 4: nonces compare octet by octet
    nonces.initiator.min(nonces.responder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_the_four_nonces_decides_whichever_end_chose_it() {
        //= RFC 7296 2.8.1 SHOULD 3: the lowest nonce goes
        let [a, b, c, d] = [[1_u8; 16], [2; 16], [3; 16], [4; 16]];
        let nonces = |initiator, responder| Nonces { initiator, responder };
        let collides = |theirs, ours| RekeyCollision::new(1, theirs).makes_ours_redundant(ours);
        assert!(collides(nonces(&b, &c), nonces(&a, &d)));
        assert!(collides(nonces(&b, &c), nonces(&d, &a)));
        assert!(!collides(nonces(&a, &d), nonces(&b, &c)));
        assert!(!collides(nonces(&d, &a), nonces(&b, &c)));
    }

    #[test]
    fn a_nonce_that_is_the_beginning_of_another_is_the_lower_one() {
        //= RFC 7296 2.8.1 REQUIRED 4: nonces compare octet by octet
        let (short, long, high) = ([1_u8; 16], [1_u8; 32], [9_u8; 16]);
        assert_eq!(lower_nonce(Nonces { initiator: &long, responder: &short }), short);
        assert_eq!(lower_nonce(Nonces { initiator: &high, responder: &long }), long, "octet by octet, not as numbers");
    }
}
