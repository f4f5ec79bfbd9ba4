//! Judges the deletion of CHILD_SAs at one end (RFC 7296 1.4.1, 2.8, 2.8.1).

use std::collections::BTreeSet;
use std::time::Duration;

use super::child_sa::{Child, PATIENCE};
use super::node::Node;
use super::octets::{Message, Spis};
use super::{Judged, broken, require};

impl Node {
    /// Judges which end deletes which CHILD_SA (1.4.1, 2.8, 2.8.1).
    pub(super) fn judge_deletion(&self, spis: Spis, own: u32, at: Duration) -> Judged {
        if self.children.get(&own).is_some_and(|child| child.expired && child.ike == spis) {
            return Ok(());
        }
        if self.unusable.contains(&own) {
            return Ok(());
        }
        let Some(child) = self.alive(own).filter(|child| child.ike == spis) else {
            //= RFC 7296 1.4 MUST 3: about a CHILD_SA on its IKE SA
            //= RFC 7296 1.4.1 MUST 2: each end closes what it receives with
            broken!("RFC 7296 1.4.1", "DELETE names {own:x}, which is no inbound SPI of a CHILD_SA of ours there");
        };
        let beside = |other: &&Child| other.ike == spis && !other.dead && other.own != own && other.is_like(child);
        let living = || self.children.values().filter(beside);
        let successors = || living().filter(|other| other.replaces == Some(own));
        let rival = living().find(|other| self.survivor(other).is_some_and(|survivor| survivor.own == own));
        //= RFC 7296 2.8.1 SHOULD 3: the lowest nonce goes
        require!(
            rival.is_none() || successors().next().is_some(),
            "RFC 7296 2.8.1",
            "{own:x} is deleted, although {:x} has the lowest nonce",
            rival.map_or(0, |rival| rival.own)
        );
        if self.survivor(child).is_some() {
            //= RFC 7296 2.8.1 SHOULD 3: the lowest nonce goes
            require!(
                child.ours || at >= child.at + PATIENCE,
                "RFC 7296 2.8.1",
                "{own:x} is redundant, but its initiator is to delete it"
            );
            return Ok(());
        }
        // The CHILD_SA that replaced it may have been rekeyed while the DELETE waited for the
        // window.
        let by_us = living().any(|other| self.line(other).any(|other| other.ours && other.replaces == Some(own)))
            || !child.was_installed;
        let crossed = living().any(|other| self.came_late(other, child.at));
        let patient = living().any(|other| at >= other.at + PATIENCE) && at >= child.at + PATIENCE;
        require!(
            by_us || crossed || patient,
            "RFC 7296 2.8",
            "{own:x} is deleted, which {} replaced",
            if successors().next().is_some() { "the peer" } else { "nobody" }
        );
        Ok(())
    }

    pub(super) fn answer_deletion(&mut self, spis: Spis, request: &Message, answer: &Message) -> Judged {
        if request.deletes_ike_sa() {
            //= RFC 7296 1.4.1 REQUIRED 9: an empty response to the IKE SA's DELETE
            require!(
                answer.payloads.is_empty(),
                "RFC 7296 1.4.1",
                "the response to the deletion of an IKE SA is not empty"
            );
            self.close(spis);
            return Ok(());
        }
        let own_request = self.sas.get(&spis).and_then(|sa| sa.own.as_ref()?.message.clone());
        let crossing = own_request.map(|own| own.deleted_children()).unwrap_or_default();
        let named: Vec<u32> =
            request.deleted_children().into_iter().filter_map(|peer| self.named(spis, peer)).collect();
        // The response that creates one of these CHILD_SAs may still be in transit.
        let unknown: Vec<u32> =
            request.deleted_children().into_iter().filter(|peer| self.named(spis, *peer).is_none()).collect();
        if let Some(own) = self.sas.get_mut(&spis).and_then(|sa| sa.own.as_mut()) {
            own.deleted.extend(unknown);
        }
        let deleted: BTreeSet<u32> = answer.deleted_children().into_iter().collect();
        for own in &named {
            let Some(child) = self.children.get_mut(own) else { continue };
            child.dead = true;
            //= RFC 7296 2.25.1 SHOULD 5: closed while we close it
            require!(
                deleted.contains(own) != crossing.contains(own) || !child.was_installed || child.expired,
                "RFC 7296 1.4.1",
                "the response {} {own:x}, our own DELETE of which is {}",
                if deleted.contains(own) { "deletes" } else { "does not delete" },
                if crossing.contains(own) { "under way" } else { "not under way" }
            );
        }
        let other = deleted.iter().find(|own| !named.contains(own) && !self.unusable.contains(own));
        //= RFC 7296 1.4.1 REQUIRED 7: the response names the other direction
        require!(other.is_none(), "RFC 7296 1.4.1", "the response deletes {other:x?}, which was not asked for");
        Ok(())
    }

    /// Returns whether an exchange of the node created this CHILD_SA, or one that it has replaced,
    /// at `after` or later, when the CHILD_SA to be replaced was already gone.
    fn came_late(&self, child: &Child, after: Duration) -> bool {
        self.line(child).any(|child| child.ours && child.late && child.at >= after)
    }

    /// Returns this CHILD_SA, the one that it replaces, the one before that, and so on.
    fn line<'a>(&'a self, child: &'a Child) -> impl Iterator<Item = &'a Child> {
        std::iter::successors(Some(child), |child| self.children.get(&child.replaces?))
    }

    /// Records that an IKE SA has ended, together with its CHILD_SAs.
    pub fn close(&mut self, spis: Spis) {
        if let Some(sa) = self.sas.get_mut(&spis) {
            sa.closed = true;
        }
        // 2.8.2: the peer deletes the IKE SA of its rekey, because ours survives. Until ours
        // exists, the CHILD_SAs belong to the old IKE SA again.
        let mut rekeying = self.sas.values_mut().filter(|sa| !sa.closed);
        let heir = rekeying.find_map(|sa| {
            let own = sa.own.as_mut()?;
            own.ike_collision.take_if(|other| *other == spis)?;
            Some(sa.spis)
        });
        // They bring the addresses along.
        let addresses = self.sas.get(&spis).map(|sa| sa.remotes.clone()).unwrap_or_default();
        if let Some(heir) = heir.and_then(|heir| self.sas.get_mut(&heir)) {
            heir.remotes.extend(addresses);
        }
        // A DELETE may still be due for a CHILD_SA that has expired.
        let of = |child: &&mut Child| child.ike == spis && (!child.dead || child.expired);
        for child in self.children.values_mut().filter(of) {
            match heir {
                Some(heir) => child.ike = heir,
                None => child.dead = true,
            }
        }
    }
}
