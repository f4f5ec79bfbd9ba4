//! Supersedes an IKE SA by another one, and deletes it when it is not needed any more.

use crate::child_sas::{ChildSas, Spi};
use crate::event::IkeId;
use crate::output::Context;
use crate::sa::ike_sa::{IkeSa, Lifecycle};
use crate::sa::own_requests::QueuedRequest;

/// The IKE SA that supersedes another one and stays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Survivor {
    pub(crate) ike: IkeId,
    /// Our SPI of it.
    pub(crate) spi: Spi,
    /// Whether the end that deletes the superseded IKE SA is this one.
    pub(crate) ours: bool,
}

impl IkeSa {
    /// Returns this IKE SA as one that supersedes another one by a new authentication.
    pub(crate) fn as_survivor(&self) -> Survivor {
        Survivor { ike: self.ike(), spi: self.spi(), ours: self.initiation().by_us() }
    }

    /// Supersedes this IKE SA by another one for which the peer authenticated again. The peer may
    /// have restarted and lost this IKE SA, so a liveness check follows soon.
    pub(crate) fn supersede_by_new_authentication(
        &mut self,
        by: Survivor,
        child_sas: &mut ChildSas,
        cx: &mut Context<'_>,
    ) {
        self.channel.signs.superseded(cx.now);
        self.supersede(by, child_sas, cx);
        self.set_timers(cx.now);
    }

    /// Supersedes this IKE SA by another one. If we initiated the other IKE SA, we delete this one
    /// as soon as the other one has all CHILD_SAs. Otherwise, the peer should delete this IKE SA.
    /// If it does not, we delete it after a while.
    pub(super) fn supersede(&mut self, by: Survivor, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        self.lifecycle = Lifecycle::Superseded(by.ike);
        self.delete_when_served = by.ours;
        if !self.delete_if_served(&[by.spi], child_sas, cx) {
            self.schedule_cleanup(cx.now);
        }
    }

    /// Deletes this IKE SA if [`Self::supersede`] was waiting for the CHILD_SAs of the other IKE SA
    /// and all of them exist now. `active` are the IKE SAs in use. The CHILD_SAs of other IKE SAs
    /// do not count, since these go too. Returns whether it deletes this IKE SA.
    pub(crate) fn delete_if_served(&mut self, active: &[Spi], child_sas: &mut ChildSas, cx: &mut Context<'_>) -> bool {
        let purposes = child_sas.purposes_of(self.spi());
        let served = purposes.into_iter().all(|purpose| {
            active.iter().any(|spi| child_sas.serves(*spi, purpose)) || !self.profile.config.may_have(purpose)
        });
        let delete =
            (served || mutation!("replaced_before_children_are_made")) && std::mem::take(&mut self.delete_when_served);
        if delete {
            self.delete(child_sas, cx);
        }
        delete
    }

    /// Deletes what the peer should have deleted: this IKE SA if another one has replaced it, or
    /// the old CHILD_SAs of rekeys.
    pub(super) fn clean_up(&mut self, child_sas: &mut ChildSas) {
        let me = self.spi();
        if self.lifecycle != Lifecycle::Active {
            self.enqueue(QueuedRequest::DeleteIke);
            return;
        }
        for purpose in child_sas.purposes_of(me) {
            let best = child_sas
                .children_of(me)
                .filter(|(_, child)| child.sa.purpose == *purpose)
                .max_by_key(|(_, child)| (!child.redundant, child.established))
                .map(|(id, _)| id);
            //= RFC 7296 2.8 SHOULD NOT 9: one CHILD_SA is left
            for id in child_sas.ids_for(me, purpose).into_iter().filter(|id| Some(*id) != best) {
                self.enqueue(QueuedRequest::DeleteChild(id));
            }
        }
    }
}
