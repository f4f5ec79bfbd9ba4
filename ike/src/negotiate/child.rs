//! Chooses, as the responder, the configured child that matches the peer's request.

use super::mode::{Ends, ModeObstacle, check_request};
use super::proposal::{ChildKeyExchange, Chosen, EspSuite, choose_esp};
use super::selectors::{Narrowed, Traffic, narrow};
use super::transport_nat::{SeenByPeer, substitute};
use crate::config::{ChildConfig, Mode, PeerConfig};
use crate::event::ChildSa;
use crate::purpose::{ChildName, Purpose};
use crate::wire::{Proposal, TrafficSelector};

/// The peer's request for a CHILD_SA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChildOffer<'a> {
    /// The peer's proposals.
    pub(crate) proposals: &'a [Proposal],
    /// The selectors of our side.
    pub(crate) local: &'a [TrafficSelector],
    /// The selectors of the peer's side.
    pub(crate) remote: &'a [TrafficSelector],
    /// The mode.
    pub(crate) mode: Mode,
    /// The ends of the IKE SA.
    pub(crate) ends: Ends,
}

/// The parameters on which both ends agree for a CHILD_SA.
#[derive(Debug)]
pub(crate) struct Agreed<'a> {
    /// The configured child.
    pub(crate) child: &'a ChildConfig,
    /// The algorithms.
    pub(crate) chosen: Chosen<EspSuite>,
    /// The traffic selectors.
    pub(crate) selectors: Narrowed,
    /// The addresses for the selectors of the response, if they differ.
    pub(crate) seen_by_peer: Option<SeenByPeer>,
}

/// The reason why no configured child is acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disagreement {
    /// NO_PROPOSAL_CHOSEN. Everything else is acceptable for the child, if there is one.
    Proposals(Option<ChildName>),
    /// TS_UNACCEPTABLE.
    Selectors,
    /// NO_PROPOSAL_CHOSEN: everything is acceptable except the mode of this child.
    Mode(ChildName, ModeObstacle),
}

impl Disagreement {
    /// Returns the child for which everything else is acceptable.
    pub(crate) fn child(&self) -> Option<&ChildName> {
        match self {
            Self::Proposals(child) => child.as_ref(),
            Self::Selectors => None,
            Self::Mode(child, _) => Some(child),
        }
    }
}

/// Chooses the child that fits the peer's offer best. The criteria, most important first: the child
/// is in the requested mode; the peer accepts the whole child; the child covers everything that the
/// peer requests; the child is `missing`; the child is configured first.
pub(crate) fn agree<'a>(
    children: impl Iterator<Item = &'a ChildConfig>,
    offer: ChildOffer<'_>,
    exchange: ChildKeyExchange,
    missing: impl Fn(&ChildConfig) -> bool,
) -> Result<Agreed<'a>, Disagreement> {
    let ChildOffer { local, remote, .. } = offer;
    let (mut best, mut proposals_agree, mut selectors_agree, mut obstacle) = (None, false, None, None);
    for child in children {
        let chosen = choose_esp(offer.proposals, &child.proposals, exchange);
        proposals_agree |= chosen.is_some();
        //= RFC 7296 2.23.1 REQUIRED 5: the addresses are substituted first
        let substituted = substitute(child.mode, offer.ends, local, remote);
        let (local, remote) =
            substituted.as_ref().map_or((local, remote), |it| (it.local.as_slice(), it.remote.as_slice()));
        let Some(selectors) = narrow(child.into(), local, remote) else {
            continue;
        };
        let Some(chosen) = chosen else {
            selectors_agree.get_or_insert(&child.name);
            continue;
        };
        if let Err(found) = check_request(child, offer.mode, offer.ends) {
            obstacle.get_or_insert((child.name.clone(), found));
            continue;
        }
        let holds = |offered: &[TrafficSelector], narrowed: &[TrafficSelector]| {
            offered.iter().all(|offered| narrowed.iter().any(|narrowed| narrowed.contains(offered)))
        };
        let holds = holds(local, &selectors.local) && holds(remote, &selectors.remote);
        let fit = (child.mode == offer.mode, holds && selectors.is_whole(child.into()), holds, missing(child));
        if best.as_ref().is_none_or(|(known, _)| fit > *known) {
            let seen_by_peer = substituted.as_ref().map(|it| it.seen_by_peer);
            best = Some((fit, Agreed { child, chosen, selectors, seen_by_peer }));
        }
    }
    match best {
        Some((_, agreed)) => Ok(agreed),
        None => Err(match (obstacle, selectors_agree) {
            (Some((child, obstacle)), _) => Disagreement::Mode(child, obstacle),
            (None, None) if proposals_agree => Disagreement::Selectors,
            (None, child) => Disagreement::Proposals(child.cloned()),
        }),
    }
}

impl PeerConfig {
    /// Returns the purpose of a CHILD_SA of this child with these selectors. If the peer may have
    /// only one CHILD_SA, its purpose is all traffic of the child.
    pub(crate) fn purpose(&self, child: &ChildConfig, selectors: &Narrowed) -> Purpose {
        if self.max_children <= 1 || selectors.is_whole(child.into()) {
            return Purpose::whole(&child.name);
        }
        Purpose::part(&child.name, selectors.local_networks(), selectors.remote_networks())
    }
}

impl PeerConfig {
    /// Returns whether the configuration still allows this purpose of a CHILD_SA.
    pub fn may_have(&self, purpose: &Purpose) -> bool {
        let may_have = self.child_named(&purpose.child).and_then(|child| {
            let asked = self.traffic(purpose)?;
            let narrowed = narrow(child.into(), &asked.local_selectors(), &asked.remote_selectors())?;
            Some(purpose.part.is_none() || narrowed.covers(asked))
        });
        may_have.unwrap_or(false)
    }

    /// Returns whether all traffic of a CHILD_SA is still configured.
    pub(crate) fn allows(&self, sa: &ChildSa) -> bool {
        let traffic = Traffic::from(sa);
        let narrowed =
            |child: &ChildConfig| narrow(child.into(), &traffic.local_selectors(), &traffic.remote_selectors());
        self.child_named(&sa.purpose.child).is_some_and(|child| {
            child.mode == sa.mode && narrowed(child).is_some_and(|narrowed| narrowed.covers(traffic))
        })
    }

    /// Returns the traffic to request for a CHILD_SA of this purpose. Returns `None` if the child
    /// is no longer configured.
    pub(crate) fn traffic<'a>(&'a self, purpose: &'a Purpose) -> Option<Traffic<'a>> {
        let child = self.child_named(&purpose.child)?;
        Some(match &purpose.part {
            None => child.into(),
            Some(part) => Traffic { local: &part.local, remote: &part.remote, next_layer: child.next_layer },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cipher, EspProposal, NextLayer};
    use crate::negotiate::offer_esp;
    use crate::purpose::ChildName;

    fn child(name: &str, local: &str, cipher: Cipher) -> ChildConfig {
        ChildConfig {
            name: ChildName::new(name),
            proposals: vec![EspProposal { ciphers: vec![cipher], groups: Vec::new(), esn: false }],
            local: vec![local.parse().unwrap()],
            remote: vec!["10.9.0.0/16".parse().unwrap()],
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        }
    }

    fn selectors(network: &str) -> [TrafficSelector; 1] {
        [network.parse::<ipnetwork::IpNetwork>().unwrap().into()]
    }

    fn offer_of<'a>(
        proposals: &'a [Proposal],
        local: &'a [TrafficSelector],
        remote: &'a [TrafficSelector],
    ) -> ChildOffer<'a> {
        let ends = Ends { local: "192.0.2.1".parse().unwrap(), remote: "192.0.2.2".parse().unwrap(), nat: false };
        ChildOffer { proposals, local, remote, mode: Mode::Tunnel, ends }
    }

    #[test]
    fn a_request_for_transport_mode_gets_the_child_in_that_mode_and_the_reason_if_there_is_none() {
        let between = |name: &str, mode| ChildConfig {
            mode,
            remote: vec!["192.0.2.2".parse().unwrap()],
            ..child(name, "192.0.2.1", Cipher::Aes256Gcm16)
        };
        let (tunnel, transport) = (between("tunnel", Mode::Tunnel), between("transport", Mode::Transport));
        let proposals = offer_esp(&tunnel.proposals, 7, false);
        let (local, remote) = (selectors("192.0.2.1"), selectors("192.0.2.2"));
        let choose = |children: &[&ChildConfig], mode, nat| {
            let offer = offer_of(&proposals, &local, &remote);
            let offer = ChildOffer { mode, ends: Ends { nat, ..offer.ends }, ..offer };
            agree(children.iter().copied(), offer, ChildKeyExchange::Ignored, |_| false)
                .map(|agreed| agreed.child.name.to_string())
        };
        let refused = |obstacle| Err(Disagreement::Mode(transport.name.clone(), obstacle));
        let both = [&tunnel, &transport];
        assert_eq!(choose(&both, Mode::Transport, false).unwrap(), "transport");
        assert_eq!(choose(&both, Mode::Transport, true).unwrap(), "transport");
        assert_eq!(choose(&both, Mode::Tunnel, false).unwrap(), "tunnel");
        assert_eq!(choose(&both[1..], Mode::Tunnel, false), refused(ModeObstacle::TunnelAsked));
    }

    #[test]
    fn the_child_that_fits_best_is_the_one_that_the_peer_asks_for() {
        let gcm = Cipher::Aes256Gcm16;
        let children =
            [child("wide", "10.0.0.0/8", gcm), child("a", "10.1.0.0/24", gcm), child("b", "10.2.0.0/24", gcm)];
        let offer = offer_esp(&children[0].proposals, 7, false);
        let choose = |local: &str, missing: &str| {
            let missing = |child: &ChildConfig| child.name.as_str() == missing;
            let exchange = ChildKeyExchange::Ignored;
            let (local, remote) = (selectors(local), selectors("10.9.0.0/16"));
            let offer = offer_of(&offer, &local, &remote);
            agree(children.iter(), offer, exchange, missing).map(|agreed| agreed.child.name.to_string())
        };
        assert_eq!(choose("10.1.0.0/24", "wide").unwrap(), "a");
        assert_eq!(choose("10.1.0.0/25", "a").unwrap(), "a");
        assert_eq!(choose("10.7.0.0/24", "a").unwrap(), "wide");
        assert_eq!(choose("0.0.0.0/0", "b").unwrap(), "b");
        assert_eq!(choose("0.0.0.0/0", "").unwrap(), "wide");
        assert_eq!(choose("192.0.2.0/24", "").unwrap_err(), Disagreement::Selectors);
    }

    #[test]
    fn each_child_has_its_own_proposals() {
        let children =
            [child("a", "10.1.0.0/24", Cipher::Aes256Gcm16), child("b", "10.1.0.0/24", Cipher::ChaCha20Poly1305)];
        let choose = |offered: &ChildConfig, children: &[ChildConfig]| {
            let (local, remote) = (selectors("10.1.0.0/24"), selectors("10.9.0.0/16"));
            let offer = offer_esp(&offered.proposals, 7, false);
            agree(children.iter(), offer_of(&offer, &local, &remote), ChildKeyExchange::Ignored, |_| false)
                .map(|agreed| agreed.child.name.to_string())
        };
        assert_eq!(choose(&children[1], &children).unwrap(), "b");
        let named = |name: &str| Disagreement::Proposals(Some(ChildName::new(name)));
        assert_eq!(choose(&children[1], &children[..1]).unwrap_err(), named("a"));
        // Another child's proposals do not turn this into a matter of selectors.
        let elsewhere = child("c", "10.2.0.0/24", Cipher::ChaCha20Poly1305);
        assert_eq!(choose(&elsewhere, &[elsewhere.clone(), children[0].clone()]).unwrap_err(), named("a"));
        let nowhere = child("d", "10.2.0.0/24", Cipher::Aes256Gcm16);
        assert_eq!(choose(&children[1], &[nowhere]).unwrap_err(), Disagreement::Proposals(None));
    }
}
