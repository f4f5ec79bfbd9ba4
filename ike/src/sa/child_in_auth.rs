//! The CHILD_SA of IKE_AUTH as the responder (RFC 7296 1.2).

use super::channel::Channel;
use super::child::{self, ReservedSpi};
use super::failure::{self, IKE_AUTH};
use super::init_transcript::InitTranscript;
use super::profile::Profile;
use crate::event::{ChildSa, PeerError};
use crate::negotiate::{self, ChildKeyExchange, ChildOffer};
use crate::output::Context;
use crate::purpose::ChildName;
use crate::wire::{InvalidMessage, Notify, NotifyType, Payload, Payloads};

/// A CHILD_SA that we do not grant.
#[derive(Debug)]
pub(super) struct RefusedChild {
    /// The configured child that the peer asks for, if its selectors show which one.
    pub(super) child: Option<ChildName>,
    /// The reason.
    pub(super) error: PeerError,
    /// The notification for the response.
    pub(super) notify: Notify,
}

impl From<(PeerError, Notify)> for RefusedChild {
    fn from((error, notify): (PeerError, Notify)) -> Self {
        Self { child: None, error, notify }
    }
}

/// Negotiates the CHILD_SA of IKE_AUTH. Returns it with its payloads for the response.
pub(super) fn answer(
    payloads: &Payloads,
    transcript: &InitTranscript,
    channel: &Channel,
    profile: &Profile,
    cx: &mut Context<'_>,
) -> Result<(ChildSa, Vec<Payload>), RefusedChild> {
    let config = &profile.config;
    let malformed = |error: InvalidMessage| RefusedChild::from((failure::invalid(IKE_AUTH, error), error.notify()));
    let offers = payloads.proposals().map_err(malformed)?;
    let remote = payloads.selectors_initiator().map_err(malformed)?;
    let local = payloads.selectors_responder().map_err(malformed)?;
    let mode = negotiate::mode_of(payloads);
    let offer = ChildOffer { proposals: offers, local, remote, mode, ends: channel.path.ends() };
    let agreed = negotiate::agree(config.children(), offer, ChildKeyExchange::Ignored, |_| true);
    let agreed = agreed.map_err(|disagreement| {
        let (error, notify) = failure::disagreement(IKE_AUTH, &disagreement, config, &offer);
        RefusedChild { child: disagreement.child().cloned(), error, notify }
    })?;
    let purpose = config.purpose(agreed.child, &agreed.selectors);
    let inbound = ReservedSpi::new(profile, channel, cx)
        .ok_or_else(|| (failure::no_spi(IKE_AUTH), Notify::new(NotifyType::NoProposalChosen)))?;
    let keys = channel.keys().child(agreed.chosen.suite.cipher, transcript.nonces(), None);
    Ok(child::grant(agreed, purpose, keys, inbound, None, channel))
}
