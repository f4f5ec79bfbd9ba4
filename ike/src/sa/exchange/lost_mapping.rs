//! ESP that stops although the peer answers IKE messages. The NAT in front of us may have forgotten
//! its mappings: a peer without MOBIKE then answers requests at the new port, but some go on
//! sending ESP to the old one (libreswan), until a CHILD_SA is negotiated from the new port.

use std::time::Duration;

use crate::child_sas::ChildSas;
use crate::event::ChildId;
use crate::sa::ike_sa::{IkeSa, Lifecycle};
use crate::sa::own_requests::QueuedRequest;
use crate::time::Instant;

/// Minimum age of a CHILD_SA that is rekeyed for this reason, the first time on an IKE SA. ESP also
/// stops when the peer's hosts have nothing to say, so each further time it is twice as long.
const MIN_AGE: Duration = Duration::from_secs(30);
/// How often it doubles: to 64 minutes.
const MAX_DOUBLINGS: u8 = 7;

/// Rekeys the CHILD_SAs after the peer has answered a liveness check that was due because ESP had
/// stopped. This happens once: then ESP must arrive before it counts as stopped again.
pub(super) fn replace_children(sa: &mut IkeSa, child_sas: &mut ChildSas, now: Instant) {
    let behind_nat = sa.channel.path.nat_local && sa.mobike.is_none();
    if !behind_nat || sa.lifecycle != Lifecycle::Active || mutation!("lost_mapping_ignored") {
        return;
    }
    let min_age = MIN_AGE * (1 << sa.replacements_of_stopped.min(MAX_DOUBLINGS));
    let old: Vec<ChildId> = child_sas
        .children_of(sa.spi())
        .filter(|(_, child)| child.rekey.is_some() && child.established + min_age <= now)
        .map(|(id, _)| id)
        .collect();
    if !old.is_empty() {
        sa.channel.signs.esp_stop_is_handled();
        sa.replacements_of_stopped = sa.replacements_of_stopped.saturating_add(1);
    }
    for id in old {
        if let Some(child) = child_sas.live_mut(id) {
            child.rekey = None;
        }
        sa.enqueue(QueuedRequest::RekeyChild(id));
    }
}
