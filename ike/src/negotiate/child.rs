//! As responder: which of the configured children the peer asks for.

use super::proposal::{ChildKeyExchange, Chosen, EspSuite, choose_esp};
use super::selectors::{Narrowed, Traffic, narrow};
use crate::config::{ChildConfig, PeerConfig};
use crate::purpose::Purpose;
use crate::wire::{Proposal, TrafficSelector};

/// What both ends can agree upon for a CHILD_SA.
#[derive(Debug)]
pub(crate) struct Agreed<'a> {
    /// The configured child.
    pub(crate) child: &'a ChildConfig,
    /// The algorithms.
    pub(crate) chosen: Chosen<EspSuite>,
    /// The traffic.
    pub(crate) selectors: Narrowed,
}

/// Why no configured child is acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disagreement {
    /// NO_PROPOSAL_CHOSEN.
    Proposals,
    /// TS_UNACCEPTABLE.
    Selectors,
}

/// The child that suits the peer's offer best: one that the peer takes as a whole, then one that
/// holds all that the peer asks for, then one that is `missing`, then the first one.
pub(crate) fn agree<'a>(
    children: impl Iterator<Item = &'a ChildConfig>,
    offers: &[Proposal],
    exchange: ChildKeyExchange,
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
    missing: impl Fn(&ChildConfig) -> bool,
) -> Result<Agreed<'a>, Disagreement> {
    let (mut best, mut proposals_agree) = (None, false);
    for child in children {
        let Some(chosen) = choose_esp(offers, &child.proposals, exchange) else {
            continue;
        };
        proposals_agree = true;
        let Some(selectors) = narrow(child.into(), local, remote) else {
            continue;
        };
        let holds = |offered: &[TrafficSelector], narrowed: &[TrafficSelector]| {
            offered.iter().all(|offered| narrowed.iter().any(|narrowed| narrowed.contains(offered)))
        };
        let holds = holds(local, &selectors.local) && holds(remote, &selectors.remote);
        let fit = (holds && selectors.is_whole(child.into()), holds, missing(child));
        if best.as_ref().is_none_or(|(known, _)| fit > *known) {
            best = Some((fit, Agreed { child, chosen, selectors }));
        }
    }
    match best {
        Some((_, agreed)) => Ok(agreed),
        None if proposals_agree => Err(Disagreement::Selectors),
        None => Err(Disagreement::Proposals),
    }
}

impl PeerConfig {
    /// What a CHILD_SA of this child with these selectors is for. A peer that may have one
    /// CHILD_SA has it for everything.
    pub(crate) fn purpose(&self, child: &ChildConfig, selectors: &Narrowed) -> Purpose {
        if self.max_children <= 1 || selectors.is_whole(child.into()) {
            return Purpose::whole(&child.name);
        }
        Purpose::part(&child.name, selectors.local_networks(), selectors.remote_networks())
    }
}

impl PeerConfig {
    /// Whether the configuration still has what a CHILD_SA is for.
    pub fn may_have(&self, purpose: &Purpose) -> bool {
        let may_have = self.child_named(&purpose.child).and_then(|child| {
            let asked = self.traffic(purpose)?;
            let narrowed = narrow(child.into(), &asked.local_selectors(), &asked.remote_selectors())?;
            Some(purpose.part.is_none() || narrowed.covers(asked))
        });
        may_have.unwrap_or(false)
    }

    /// The traffic to ask for, for a CHILD_SA of this purpose. `None`: the child is no longer
    /// configured.
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
        }
    }

    fn selectors(network: &str) -> [TrafficSelector; 1] {
        [network.parse::<ipnetwork::IpNetwork>().unwrap().into()]
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
            agree(children.iter(), &offer, exchange, &selectors(local), &selectors("10.9.0.0/16"), missing)
                .map(|agreed| agreed.child.name.to_string())
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
            agree(children.iter(), &offer, ChildKeyExchange::Ignored, &local, &remote, |_| false)
                .map(|agreed| agreed.child.name.to_string())
        };
        assert_eq!(choose(&children[1], &children).unwrap(), "b");
        assert_eq!(choose(&children[1], &children[..1]).unwrap_err(), Disagreement::Proposals);
    }
}
