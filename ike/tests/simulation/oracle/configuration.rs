//! Judges the configuration payload (RFC 7296 2.19, 3.15).

use super::ike_sa::IkeSa;
use super::node::Node;
use super::octets::{Message, Spis, payload};
use super::{Judged, require};

/// CFG types (3.15).
const CFG_REQUEST: u8 = 1;
const CFG_REPLY: u8 = 2;
/// INTERNAL_IP4_ADDRESS and INTERNAL_IP6_ADDRESS (3.15.1).
const ADDRESSES: [u16; 2] = [1, 8];

/// Judges where the Configuration payload of a message stands.
pub fn judge_order(message: &Message) -> Judged {
    let at = |kind: u8| message.payloads.iter().position(|payload| payload.kind == kind);
    if let (Some(configuration), Some(sa)) = (at(payload::CONFIGURATION), at(payload::SA)) {
        //= RFC 7296 2.19 MUST 2: CP before SA
        require!(configuration < sa, "RFC 7296 2.19", "the SA payload comes before the Configuration payload");
    }
    Ok(())
}

impl Node {
    /// Judges the addresses that a node gives its peer in the response to IKE_AUTH.
    pub fn give_addresses(&mut self, spis: Spis, request: &Message, answer: &Message) -> Judged {
        let Some(given) = answer.find(payload::CONFIGURATION) else { return Ok(()) };
        judge_order(answer)?;
        let asked = request.find(payload::CONFIGURATION).filter(|body| body.first() == Some(&CFG_REQUEST));
        //= RFC 7296 2.19 MUST NOT 5: no CFG_REPLY without CFG_REQUEST
        require!(asked.is_some(), "RFC 7296 2.19", "the node sends CFG_REPLY, and the peer sent no CFG_REQUEST");
        require!(given.first() == Some(&CFG_REPLY), "RFC 7296 3.15", "the CFG type of a response is not CFG_REPLY");
        //= RFC 7296 3.15 MUST 1: RESERVED is zero
        require!(given.get(1..4) == Some(&[0; 3]), "RFC 7296 3.15", "RESERVED of a Configuration payload is not zero");
        //= RFC 7296 3.15.1 MUST 1: the reserved bit is zero
        require!(given.get(4).is_none_or(|kind| kind & 0x80 == 0), "RFC 7296 3.15.1", "the reserved bit is not zero");
        let asked = attributes(asked.unwrap_or_default());
        let given = attributes(given);
        for (kind, value) in given.iter().filter(|(kind, _)| ADDRESSES.contains(kind)) {
            require!(
                asked.iter().any(|(asked, _)| asked == kind) && given.iter().filter(|one| one.0 == *kind).count() == 1,
                "RFC 7296 3.15.1",
                "the node gives the address {value:x?} of type {kind}, and was asked for {asked:x?}"
            );
            let peer = self.sas.get(&spis).and_then(|sa| sa.peer_identity.clone());
            let open = |sa: &&IkeSa| sa.up && !sa.closed && !sa.deleting && sa.peer_identity != peer;
            let other = self.sas.values().filter(open).find(|sa| sa.given_addresses.contains(&(*kind, value.clone())));
            require!(
                other.is_none(),
                "RFC 7296 2.19",
                "the node gives {value:x?}, which the peer of {:x?} has",
                other.map(|sa| sa.spis)
            );
        }
        if let Some(sa) = self.sas.get_mut(&spis) {
            sa.given_addresses = given;
        }
        Ok(())
    }
}

/// Reads the attributes of a Configuration payload: type and value.
fn attributes(body: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut rest = body.get(4..).unwrap_or_default();
    let mut read = Vec::new();
    while let [kind_high, kind_low, length_high, length_low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*length_high, *length_low]));
        let Some((value, next)) = after.split_at_checked(length) else { break };
        read.push((u16::from_be_bytes([*kind_high, *kind_low]) & 0x7fff, value.to_vec()));
        rest = next;
    }
    read
}
