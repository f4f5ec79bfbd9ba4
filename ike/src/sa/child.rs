//! Functions that IKE_AUTH and CREATE_CHILD_SA share: reserving our SPI, and making a CHILD_SA from
//! the result of the negotiation.

use std::net::IpAddr;

use super::channel::Channel;
use super::profile::Profile;
use crate::config::{Mode, NextLayer};
use crate::crypto::ChildKeys;
use crate::event::{ChildId, ChildSa};
use crate::negotiate::{self, Agreed, EspSuite, Narrowed};
use crate::output::Context;
use crate::purpose::Purpose;
use crate::wire::Payload;

/// Maximum number of SPIs that are reserved to find one that the endpoint does not use. The kernel
/// chooses them at random, so even the second one is hardly ever needed.
const MAX_RESERVATIONS: usize = 8;

/// An inbound SPI that the kernel has reserved. It must be used in a [`ChildSa`] or released.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an SPI that is not used must be released"]
pub(crate) struct ReservedSpi {
    pub(crate) spi: u32,
    local: IpAddr,
}

impl ReservedSpi {
    /// Reserves an SPI. Returns `None` if the kernel refused. The kernel's SPIs are unique only for
    /// each of our addresses, and a [`ChildId`] is unique in the endpoint. So SPIs that the
    /// endpoint uses already are released again, at most [`MAX_RESERVATIONS`] of them.
    pub(crate) fn new(profile: &Profile, channel: &Channel, cx: &mut Context<'_>) -> Option<Self> {
        let (local, remote) = (channel.path.local.ip(), channel.path.remote.ip());
        let mut taken = Vec::new();
        let mut found = None;
        while found.is_none() && taken.len() < MAX_RESERVATIONS {
            let Some(spi) = cx.env.allocate_spi(&profile.config.name, local, remote) else { break };
            if cx.out.inbound_spis.insert(spi) {
                found = Some(Self { spi, local });
            } else {
                taken.push(spi);
            }
        }
        for spi in taken {
            cx.env.release_spi(&profile.config.name, local, spi);
        }
        found
    }

    /// Gives the SPI back to the kernel.
    pub(crate) fn release(self, profile: &Profile, cx: &mut Context<'_>) {
        cx.out.inbound_spis.remove(&self.spi);
        cx.env.release_spi(&profile.config.name, self.local, self.spi);
    }
}

/// The result of the negotiation of a CHILD_SA.
#[derive(Debug)]
pub(crate) struct NegotiatedChild {
    pub(crate) purpose: Purpose,
    pub(crate) next_layer: NextLayer,
    pub(crate) mode: Mode,
    pub(crate) outbound_spi: u32,
    pub(crate) suite: EspSuite,
    pub(crate) selectors: Narrowed,
    pub(crate) keys: ChildKeys,
}

impl NegotiatedChild {
    /// Makes the CHILD_SA. `initiator` states whether we initiated the exchange.
    pub(crate) fn into_sa(self, inbound: ReservedSpi, initiator: bool, channel: &Channel) -> ChildSa {
        let ChildKeys { from_initiator, from_responder } = self.keys;
        let (outbound_key, inbound_key) = if initiator != mutation!("child_keys_swapped") {
            (from_initiator, from_responder)
        } else {
            (from_responder, from_initiator)
        };
        ChildSa {
            id: ChildId(inbound.spi),
            ike: channel.ike,
            purpose: self.purpose,
            inbound_spi: inbound.spi,
            outbound_spi: self.outbound_spi,
            cipher: self.suite.cipher,
            inbound_key,
            outbound_key,
            esn: self.suite.esn,
            local: channel.path.local,
            remote: channel.path.remote,
            //= RFC 7296 2.23 MUST 7: a NAT means encapsulation
            encapsulated: channel.path.encapsulated(),
            local_selectors: self.selectors.local_networks(),
            remote_selectors: self.selectors.remote_networks(),
            next_layer: self.next_layer,
            mode: self.mode,
            initiator,
        }
    }
}

/// Returns, as the responder, the negotiated CHILD_SA and its payloads for the response.
/// `exchanged` are the payloads of CREATE_CHILD_SA between SA and TSi: the nonce and, with forward
/// secrecy, KE.
pub(crate) fn grant(
    agreed: Agreed<'_>,
    purpose: Purpose,
    keys: ChildKeys,
    inbound: ReservedSpi,
    exchanged: impl IntoIterator<Item = Payload>,
    channel: &Channel,
) -> (ChildSa, Vec<Payload>) {
    let Agreed { child, chosen, selectors, seen_by_peer } = agreed;
    let mode = negotiate::mode_payload(child.mode).filter(|_| !mutation!("transport_mode_granted_silently"));
    let mut answer: Vec<Payload> = mode.into_iter().collect();
    answer.push(Payload::SecurityAssociation(vec![chosen.response(inbound.spi)]));
    answer.extend(exchanged);
    let (local, remote) = (selectors.local.clone(), selectors.remote.clone());
    let (local, remote) = match seen_by_peer {
        Some(it) => (it.local(local), it.remote(remote)),
        None => (local, remote),
    };
    answer.push(Payload::TrafficSelectorsInitiator(remote));
    answer.push(Payload::TrafficSelectorsResponder(local));
    let (next_layer, mode, outbound_spi) = (child.next_layer, child.mode, chosen.child_spi());
    let negotiated = NegotiatedChild { purpose, next_layer, mode, outbound_spi, suite: chosen.suite, selectors, keys };
    (negotiated.into_sa(inbound, false, channel), answer)
}
