//! Judges IKE_AUTH (RFC 7296 1.2, 2.15, 2.4) and the rekey of an IKE SA (1.3.2, 2.18, 2.25.2).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::Event;

use super::child_sa::{Child, PATIENCE, uses_new_child};
use super::ike_sa::{IkeRekey, IkeSa, Init};
use super::keys::{Keys, Suite};
use super::mobike::{Mobike, judge_announcement};
use super::node::Node;
use super::octets::{Message, PROTOCOL_IKE, Spis, exchange, notify, payload};
use super::{Cause, Judged, Shared, Step, broken, childless, configuration, init, require};

/// AUTH by a pre-shared key (3.8).
const SHARED_KEY: u8 = 2;

impl Node {
    /// Judges an IKE_AUTH request that the node sends.
    pub fn request_auth(&mut self, spis: Spis, message: &Message, step: &Step<'_>) -> Judged {
        configuration::judge_order(message)?;
        judge_announcement(message)?;
        if let Some(sa) = self.sas.get(&spis) {
            childless::judge_request(sa, message)?;
        }
        let peer = message.find(payload::ID_RESPONDER);
        let open = |sa: &&IkeSa| sa.up && !sa.closed && sa.spis != spis && !ends_in(step, sa.spis);
        let known = self.sas.values().filter(open).find(|sa| sa.peer_identity.as_deref() == peer);
        //= RFC 7296 2.4 MUST NOT 1: INITIAL_CONTACT only if we are alone
        require!(
            message.notify(notify::INITIAL_CONTACT).is_none() || known.is_none() || peer.is_none(),
            "RFC 7296 2.4",
            "INITIAL_CONTACT beside the IKE SA {:x?} with the same peer",
            known.map(|sa| sa.spis)
        );
        Ok(())
    }

    /// Judges the node's response to an IKE_AUTH request.
    pub fn answer_auth(
        &mut self,
        spis: Spis,
        request: &Message,
        answer: &Message,
        step: &Step<'_>,
        shared: &mut Shared,
    ) -> Judged {
        judge_announcement(answer)?;
        let Some(sa) = self.sas.get_mut(&spis) else { return Ok(()) };
        sa.peer_identity = request.find(payload::ID_INITIATOR).map(<[u8]>::to_vec);
        sa.peer_proof = peer_proof(sa, request, payload::ID_INITIATOR, shared);
        if answer.find(payload::AUTH).is_none() {
            return Ok(());
        }
        self.give_addresses(spis, request, answer)?;
        let Some(sa) = self.sas.get_mut(&spis) else { return Ok(()) };
        //= RFC 7296 1.2 MUST 2: verify signatures and MACs
        require!(sa.peer_proof != Some(false), "RFC 7296 2.15", "AUTH of the initiator is wrong, and it is let in");
        childless::judge_response(sa, request, answer)?;
        if let Cause::Received(_, _, from) = step.cause {
            sa.mobike = Mobike::negotiated(request, answer, BTreeSet::from([from]), false);
        }
        let nonces = sa.init.as_ref().map(|init| init.nonces.clone()).unwrap_or_default();
        if answer.find(payload::SA).is_some() {
            let child = self.negotiated(spis, request, answer, (&nonces.0, &nonces.1), false, step.at, shared)?;
            self.to_be_installed.push(child.own);
            self.children.insert(child.own, child);
        }
        Ok(())
    }

    /// Judges the node's handling of the response to its IKE_AUTH request, which it has accepted.
    pub fn conclude_auth(
        &mut self,
        spis: Spis,
        request: &Message,
        sent_to: &BTreeSet<SocketAddr>,
        response: &Message,
        step: &Step<'_>,
        shared: &mut Shared,
    ) -> Judged {
        let Some(sa) = self.sas.get_mut(&spis) else { return Ok(()) };
        sa.peer_identity = response.find(payload::ID_RESPONDER).map(<[u8]>::to_vec);
        sa.peer_proof = peer_proof(sa, response, payload::ID_RESPONDER, shared);
        //= RFC 7296 2.15 REQUIRED 1: what AUTH covers
        require!(
            sa.peer_proof != Some(false) && response.find(payload::AUTH).is_some(),
            "RFC 7296 2.15",
            "AUTH of the responder is wrong, and it is taken"
        );
        sa.mobike = Mobike::negotiated(request, response, sent_to.clone(), true);
        let nonces = sa.init.as_ref().map(|init| init.nonces.clone()).unwrap_or_default();
        // A response that the node cannot use ends the IKE SA, and the node reports no CHILD_SA.
        if response.find(payload::SA).is_some() && uses_new_child(step) {
            let child = self.negotiated(spis, request, response, (&nonces.0, &nonces.1), true, step.at, shared)?;
            self.children.insert(child.own, child);
        }
        Ok(())
    }

    /// Judges the rekey of an IKE SA by either end. `collision` is the IKE SA that the peer has
    /// created in the meantime.
    #[allow(clippy::too_many_arguments)]
    pub fn ike_rekeyed(
        &mut self,
        old: Spis,
        request: &Message,
        response: &Message,
        ours: bool,
        at: Duration,
        collision: Option<Spis>,
        shared: &mut Shared,
    ) -> Judged {
        let Some(before) = self.sas.get(&old) else { return Ok(()) };
        // 2.25.2: the peer must try again later while the node creates, rekeys or deletes a
        // CHILD_SA on this IKE SA.
        let busy = before.own.as_ref().and_then(|own| own.message.as_ref()).filter(|_| !ours).is_some_and(|own| {
            (own.header.exchange == exchange::CREATE_CHILD_SA && !rekeys_ike(own))
                || !own.deleted_children().is_empty()
                || own.deletes_ike_sa()
        });
        //= RFC 7296 2.25.1 SHOULD 8: the IKE SA waits for CHILD_SAs
        require!(!busy, "RFC 7296 2.25.2", "the IKE SA is rekeyed while our request about a CHILD_SA is under way");
        let late = before.closed;
        let successor = self.successor_of(old).filter(|_| !ours);
        require!(successor.is_none(), "RFC 7296 2.8.2", "the IKE SA is rekeyed again, and {successor:x?} replaced it");
        let proposal = init::chosen(request, response)?;
        let offer = request.proposals().into_iter().find(|offer| offer.number == proposal.number);
        let spis = (offer.map_or(0, |offer| offer.spi64()), proposal.spi64());
        //= RFC 7296 1.3.2 REQUIRED 3: new SPIs in the SA payload
        require!(
            proposal.protocol == PROTOCOL_IKE && spis.0 != 0 && spis.1 != 0,
            "RFC 7296 1.3.2",
            "the SPIs of the new IKE SA are {spis:x?}"
        );
        let nonces = (request.nonce().unwrap_or_default(), response.nonce().unwrap_or_default());
        let (Some(theirs), Some(mine)) = (response.key_exchange(), request.key_exchange()) else {
            //= RFC 7296 1.3.2 MUST 1: KEi in a rekey of the IKE SA
            //= RFC 7296 2.18 MUST 1: a new key exchange
            broken!("RFC 7296 1.3.2", "an IKE SA is rekeyed without a key exchange");
        };
        let secret = shared.private_keys.secret(mine, theirs);
        let keys = match (&before.keys, secret) {
            (Some(keys), Some(secret)) => keys.rekeyed(Suite::of(&proposal), nonces, spis, &secret),
            _ => None,
        };
        let mut new = IkeSa::new(spis, ours, keys, (0, 0));
        new.fragments = before.fragments;
        new.peer_behind_nat = before.peer_behind_nat;
        new.remotes = before.remotes.clone();
        new.mobike = before.mobike.clone();
        new.peer_identity = before.peer_identity.clone();
        new.given_addresses = before.given_addresses.clone();
        new.peer_proof = before.peer_proof;
        self.use_keys_of(&new.keys)?;
        let lowest_nonce = nonces.0.min(nonces.1).to_vec();
        // 2.8.2: if two IKE SAs replace the same one, the one with the lowest of the four nonces is
        // redundant.
        let mut inherits_from = vec![old];
        if late {
            inherits_from.clear();
        } else if let Some((other, rival)) = collision.and_then(|other| Some((other, self.sas.get_mut(&other)?)))
            && !rival.closed
        {
            if rival.rekey.as_ref().is_some_and(|rival| lowest_nonce < rival.lowest_nonce) {
                new.redundant_to = Some(other);
                inherits_from.clear();
            } else {
                rival.redundant_to = Some(spis);
                inherits_from.push(other);
            }
        }
        // The node no longer waits for the response, except to delete the IKE SA that it creates.
        new.closed = late;
        new.rekey = Some(IkeRekey { old, ours, lowest_nonce, at });
        self.sas.insert(spis, new);
        let moves = |child: &&mut Child| inherits_from.contains(&child.ike) && (!child.dead || child.expired);
        for child in self.children.values_mut().filter(moves) {
            child.ike = spis;
        }
        if let Some(own) = self.sas.get_mut(&old).and_then(|sa| sa.own.as_mut()).filter(|_| !ours)
            && own.message.as_ref().is_some_and(rekeys_ike)
        {
            own.ike_collision = Some(spis);
        }
        Ok(())
    }

    /// Returns the IKE SA that has replaced this one by a rekey.
    fn successor_of(&self, old: Spis) -> Option<Spis> {
        let made = |sa: &&IkeSa| sa.rekey.as_ref().is_some_and(|rekey| rekey.old == old) && sa.redundant_to.is_none();
        self.sas.values().filter(made).find(|sa| !sa.closed && !sa.deleting).map(|sa| sa.spis)
    }

    /// Returns whether there is an IKE SA with the same peer to which this one is not related by a
    /// rekey. In that case another rule decides which of the IKE SAs ends (2.8.3).
    fn authenticated_beside(&self, spis: Spis, step: &Step<'_>) -> bool {
        let comes_up = |other: &IkeSa| {
            step.events
                .iter()
                .any(|event| matches!(event, Event::IkeUp { ike, .. } if (ike.initiator, ike.responder) == other.spis))
        };
        let Some(this) = self.sas.get(&spis) else { return false };
        let up = self.sas.values().filter(|other| other.up || comes_up(other));
        let mut others = up.filter(|other| other.peer_identity == this.peer_identity);
        others.any(|other| !other.closed && self.origin(other.spis) != self.origin(spis))
    }

    /// Returns the first IKE SA of a series of rekeys.
    pub fn origin(&self, mut of: Spis) -> Spis {
        while let Some(rekey) = self.sas.get(&of).and_then(|sa| sa.rekey.as_ref()) {
            of = rekey.old;
        }
        of
    }

    /// Judges a request from the node to rekey an IKE SA.
    pub fn request_ike_rekey(&self, spis: Spis, step: &Step<'_>) -> Judged {
        let successor = self.successor_of(spis);
        require!(successor.is_none(), "RFC 7296 2.8", "an IKE SA is rekeyed, and {successor:x?} has replaced it");
        let earliest = self.sas.get(&spis).map_or(Duration::ZERO, |sa| sa.rekey_after);
        //= RFC 7296 2.25 MUST NOT 2: no repetition at once
        require!(
            step.at >= earliest || matches!(step.cause, Cause::Owner),
            "RFC 7296 2.25",
            "an IKE SA is rekeyed again at once after TEMPORARY_FAILURE"
        );
        Ok(())
    }

    /// Judges which end deletes which IKE SA after a rekey (2.8, 2.8.2).
    pub fn judge_ike_deletion(&mut self, spis: Spis, step: &Step<'_>) -> Judged {
        let open = |other: &&IkeSa| !other.closed && !other.deleting;
        let rival =
            self.sas.values().filter(open).find(|other| other.redundant_to == Some(spis)).map(|rival| rival.spis);
        let successor = self.successor_of(spis).and_then(|successor| self.sas.get(&successor)?.rekey.clone());
        let duplicate = self.authenticated_beside(spis, step);
        let Some(sa) = self.sas.get_mut(&spis) else { return Ok(()) };
        sa.deleting = true;
        if sa.closed || duplicate || ends_in(step, spis) || matches!(step.cause, Cause::Owner) {
            return Ok(());
        }
        //= RFC 7296 2.8.2 SHOULD 1: the IKE SA of the lowest nonce goes
        require!(
            rival.is_none() || successor.is_some(),
            "RFC 7296 2.8.2",
            "an IKE SA is deleted, although {rival:x?} has the lowest nonce"
        );
        let made = if sa.redundant_to.is_some() { sa.rekey.clone() } else { successor };
        //= RFC 7296 2.25.2 SHOULD 2: the redundant one is known
        require!(
            made.is_none_or(|made| made.ours || step.at >= made.at + PATIENCE),
            "RFC 7296 2.8, 2.8.2",
            "an IKE SA is deleted, which the initiator of the rekey is to delete"
        );
        Ok(())
    }

    pub fn judge_ike_sas_at_rest(&self) -> Judged {
        let made = self.sas.values().filter(|sa| sa.rekey.is_some());
        for sa in made.filter(|sa| !sa.closed && !sa.deleting) {
            require!(
                sa.redundant_to.is_none(),
                "RFC 7296 2.8.2",
                "the IKE SA {:x?} is redundant, and nobody deleted it",
                sa.spis
            );
            let old = sa.rekey.as_ref().and_then(|rekey| self.sas.get(&rekey.old)).filter(|old| !old.closed);
            //= RFC 7296 2.8 REQUIRED 7: the old IKE SA is deleted
            require!(old.is_none_or(|_| !sa.up), "RFC 7296 2.8", "an IKE SA was rekeyed, and nobody deleted it");
        }
        Ok(())
    }

    fn use_keys_of(&mut self, keys: &Option<Keys>) -> Judged {
        for key in keys.iter().flat_map(|keys| &keys.encryption) {
            self.use_key(key)?;
        }
        Ok(())
    }
}

/// Returns whether the node reports in this step that an IKE SA is down.
fn ends_in(step: &Step<'_>, spis: Spis) -> bool {
    let ends = |event: &Event| matches!(event, Event::IkeDown { ike, .. } if (ike.initiator, ike.responder) == spis);
    step.events.iter().any(ends)
}

/// Returns whether a message rekeys an IKE SA.
pub fn rekeys_ike(message: &Message) -> bool {
    message.header.exchange == exchange::CREATE_CHILD_SA
        && message.proposals().iter().any(|offer| offer.protocol == PROTOCOL_IKE)
}

/// Returns whether the peer's AUTH was made with a known pre-shared key. Returns `None` if the peer
/// authenticates in another way.
fn peer_proof(sa: &IkeSa, message: &Message, id: u8, shared: &Shared) -> Option<bool> {
    let (keys, init) = (sa.keys.as_ref()?, sa.init.as_ref()?);
    let (auth, id) = (message.find(payload::AUTH)?, message.find(id)?);
    if auth.first() != Some(&SHARED_KEY) || shared.psks.is_empty() {
        return None;
    }
    let right = |init: &Init, psk: &Vec<u8>| {
        let (octets, nonce) = match sa.initiator {
            true => (&init.response, &init.nonces.0),
            false => (&init.request, &init.nonces.1),
        };
        auth.get(4..) == Some(&keys.psk_auth(!sa.initiator, psk, octets, nonce, id))
    };
    let mut inits = sa.other_inits.iter().chain([init]);
    Some(inits.any(|init| shared.psks.iter().any(|psk| right(init, psk))))
}
