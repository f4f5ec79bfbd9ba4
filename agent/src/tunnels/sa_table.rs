//! SAs in the kernel, in the order of the endpoint's events: the zero-loss order of rekeying.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use edge_ike::config::Aead as IkeAead;
use edge_ike::{ChildId, ChildSa, Instant, PeerName};
use edge_xfrm::IN_FLIGHT;
use edge_xfrm::reconcile::ExpectedSa;
use edge_xfrm::{Aead, Algorithm, Encap, Error, Limits, Replay, Reqid, Result, Sa, SaDirection, SaId, SaParams, Xfrm};

use crate::desired::Ends;

/// Packets after which an SA without extended sequence numbers is rekeyed: three quarters of what
/// its counter holds.
const SOFT_PACKETS: u64 = 3 << 30;

/// One SA of ours in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    /// Which way its packets go.
    pub(super) direction: SaDirection,
    /// Outer source.
    pub(super) source: IpAddr,
    /// Outer destination and SPI.
    pub(super) id: SaId,
    /// Its reqid.
    pub(super) reqid: Reqid,
    /// UDP ports.
    pub(super) encap: Option<Encap>,
}

impl Installed {
    fn of(params: &SaParams) -> Self {
        Self {
            direction: params.direction,
            source: params.source,
            id: params.id(),
            reqid: params.reqid,
            encap: params.encap,
        }
    }

    /// What the kernel should have.
    pub(super) fn expected(&self) -> ExpectedSa {
        ExpectedSa { id: self.id, reqid: self.reqid.raw(), encap: self.encap }
    }
}

/// A CHILD_SA and what of it is installed.
#[derive(Debug)]
struct Child {
    peer: PeerName,
    reqid: Reqid,
    sa: Arc<ChildSa>,
    inbound: Option<Installed>,
    outbound: Option<Installed>,
    /// Its outbound SA was in the kernel: once that is gone its key must not come back, since its
    /// sequence numbers, and with them the AEAD's nonces, would begin anew.
    spent: bool,
}

/// What became of a wish to send through a CHILD_SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// It sends.
    Done,
    /// Its outbound SA was there once and is gone: a rekey must make a new one. What sent before
    /// goes on.
    Spent,
}

/// An SA that a former run of the agent left: it goes on working until the peer's new CHILD_SA
/// replaces it.
#[derive(Debug)]
struct Kept {
    sa: Sa,
    outbound: bool,
    /// When it is to go: an inbound one lingers after its replacement, and none lives for ever.
    until: Instant,
}

impl Kept {
    fn is_from_before(&self, reqid: Reqid, moment: u64) -> bool {
        self.sa.reqid == reqid.raw() && self.sa.counters.added < moment
    }
}

/// An outbound SA that has a successor, until its last packets are encrypted.
#[derive(Debug)]
struct Retiring {
    sa: Installed,
    until: Instant,
}

/// All SAs of ours.
#[derive(Debug, Default)]
pub(super) struct SaTable {
    children: HashMap<ChildId, Child>,
    kept: BTreeMap<SaId, Kept>,
    retiring: Vec<Retiring>,
    ends: HashMap<PeerName, Ends>,
}

impl SaTable {
    /// Takes over what a former run left. `is_local` tells our own addresses, for kernels that do
    /// not know an SA's direction.
    pub(super) fn keep(&mut self, sas: Vec<Sa>, is_local: impl Fn(IpAddr) -> bool, until: Instant) {
        for sa in sas.into_iter().filter(|sa| sa.is_ours() && !sa.is_larval()) {
            let outbound = match sa.direction {
                Some(direction) => direction == SaDirection::Out,
                None => !is_local(sa.id.destination),
            };
            self.kept.insert(sa.id, Kept { sa, outbound, until });
        }
    }

    /// Whether SAs of a former run are kept under this reqid.
    pub(super) fn has_kept(&self, reqid: Reqid) -> bool {
        self.kept.values().any(|kept| kept.sa.reqid == reqid.raw())
    }

    /// Where kept SAs of this reqid end: local and remote address.
    pub(super) fn kept_ends(&self, reqid: Reqid) -> Option<(IpAddr, IpAddr)> {
        let out = self.kept.values().find(|kept| kept.outbound && kept.sa.reqid == reqid.raw())?;
        Some((out.sa.source, out.sa.id.destination))
    }

    /// Sets a peer's ends from before this run, unless it has some.
    pub(super) fn assume_ends(&mut self, peer: &PeerName, ends: Ends) {
        self.ends.entry(peer.clone()).or_insert(ends);
    }

    /// Where a peer's tunnel ends.
    pub(super) fn ends(&self, peer: &PeerName) -> Option<Ends> {
        let up = self.children.values().any(|child| child.peer == *peer && child.outbound.is_some());
        let ends = self.ends.get(peer)?;
        Some(Ends { up: up || ends.up, ..ends.clone() })
    }

    /// A peer that is none any more: what a former run left of it goes, and its ends are forgotten.
    pub(super) fn forget(&mut self, xfrm: &mut Xfrm, peer: &PeerName, reqid: Reqid) -> Result<()> {
        self.ends.remove(peer);
        for retiring in &mut self.retiring {
            if retiring.sa.reqid == reqid {
                retiring.until = Instant::default();
            }
        }
        self.drop_kept(xfrm, |kept| kept.sa.reqid == reqid.raw())
    }

    /// A peer of which nothing counts that was agreed on before this moment of the system's clock
    /// (seconds since 1970): what a former run agreed on before goes.
    pub(super) fn forget_from_before(&mut self, xfrm: &mut Xfrm, reqid: Reqid, moment: u64) -> Result<()> {
        self.drop_kept(xfrm, |kept| kept.is_from_before(reqid, moment))
    }

    /// Installs a CHILD_SA's inbound SA.
    pub(super) fn install_inbound(
        &mut self,
        xfrm: &mut Xfrm,
        peer: &PeerName,
        reqid: Reqid,
        sa: &Arc<ChildSa>,
    ) -> Result<()> {
        let params = inbound(sa, reqid)?;
        xfrm.install_inbound(&params)?;
        let child = Child {
            peer: peer.clone(),
            reqid,
            sa: sa.clone(),
            inbound: Some(Installed::of(&params)),
            outbound: None,
            spent: false,
        };
        self.children.insert(sa.id, child);
        Ok(())
    }

    /// Makes a CHILD_SA the one that sends, in place of all others of the peer, which
    /// [`Self::expire`] removes. `policies` is called where the policies' templates do not name the
    /// new SA's ends yet.
    pub(super) fn send_through(
        &mut self,
        xfrm: &mut Xfrm,
        id: ChildId,
        now: Instant,
        policies: impl FnOnce(&mut Xfrm, &Self),
    ) -> Result<Sending> {
        let Some(child) = self.children.get(&id) else { return Ok(Sending::Done) };
        if child.outbound.is_some() {
            return Ok(Sending::Done);
        }
        let (peer, reqid) = (child.peer.clone(), child.reqid);
        let params = outbound(&child.sa, reqid)?;
        let ends = Ends {
            local: params.source,
            remote: params.destination,
            local_selectors: child.sa.local_selectors.clone(),
            remote_selectors: child.sa.remote_selectors.clone(),
            up: false,
        };
        // Of two begun at once, the one that stays may have been replaced a moment ago.
        let retired = self.retiring.iter().position(|retiring| retiring.sa.id == params.id());
        if child.spent && retired.is_none() {
            return Ok(Sending::Spent);
        }
        let mut old: Vec<Installed> = self
            .children
            .values_mut()
            .filter(|other| other.peer == peer)
            .filter_map(|other| other.outbound.take())
            .collect();
        // It cannot be added once more, and the kernel prefers the later one: the others go at
        // once.
        if let Some(at) = retired {
            let back = self.retiring.swap_remove(at).sa;
            if let Some(child) = self.children.get_mut(&id) {
                child.outbound = Some(back);
            }
            if self.ends.insert(peer, ends.clone()) != Some(ends) {
                policies(xfrm, self);
            }
            for sa in old {
                gone_is_fine(xfrm.delete_sa(sa.id))?;
            }
            return Ok(Sending::Done);
        }
        let kept = self.kept.values().filter(|kept| kept.outbound && kept.sa.reqid == reqid.raw());
        old.extend(kept.map(|kept| Installed {
            direction: SaDirection::Out,
            source: kept.sa.source,
            id: kept.sa.id,
            reqid,
            encap: kept.sa.encap,
        }));
        self.kept.retain(|_, kept| !(kept.outbound && kept.sa.reqid == reqid.raw()));

        // Between the same addresses the later one is taken at once; between others the policies'
        // templates tell them apart, and have to change. The old one goes when no packet can be on
        // its way to it any more.
        let same = old.iter().find(|old| (old.source, old.id.destination) == (params.source, params.destination));
        let installed = match same {
            Some(old) => xfrm.begin_switch(&params, old.id).map(drop),
            None => xfrm.add_sa(&params),
        };
        if installed.is_ok()
            && let Some(child) = self.children.get_mut(&id)
        {
            child.outbound = Some(Installed::of(&params));
            child.spent = true;
        }
        let elsewhere = same.is_none();
        if installed.is_ok() && (elsewhere || self.ends.get(&peer) != Some(&ends)) {
            self.ends.insert(peer, ends);
            policies(xfrm, self);
        }
        let until = now + IN_FLIGHT;
        match &installed {
            Ok(()) => self.retiring.extend(old.into_iter().map(|old| Retiring { sa: old, until })),
            // It is better to go on with the old keys than with none.
            Err(_) => self.restore(old, reqid),
        }
        installed.map(|()| Sending::Done)
    }

    /// Puts outbound SAs back to whom they were taken from.
    fn restore(&mut self, old: Vec<Installed>, reqid: Reqid) {
        for old in old {
            let owner =
                self.children.values_mut().find(|child| child.reqid == reqid && child.sa.outbound_spi == old.id.spi);
            match owner {
                Some(child) => child.outbound = Some(old),
                None => self.retiring.push(Retiring { sa: old, until: Instant::new(Duration::MAX) }),
            }
        }
    }

    /// The peer has a new CHILD_SA: inbound SAs of a former run linger no longer than this.
    pub(super) fn limit_kept(&mut self, reqid: Reqid, until: Instant) {
        for kept in self.kept.values_mut().filter(|kept| kept.sa.reqid == reqid.raw()) {
            kept.until = kept.until.min(until);
        }
    }

    /// Removes what is left of a CHILD_SA.
    pub(super) fn remove(&mut self, xfrm: &mut Xfrm, id: ChildId) -> Result<()> {
        let Some(child) = self.children.remove(&id) else { return Ok(()) };
        let mut outcome = Ok(());
        for installed in child.inbound.iter().chain(&child.outbound) {
            outcome = outcome.and(gone_is_fine(xfrm.delete_sa(installed.id)));
        }
        outcome
    }

    /// Updates the UDP ports of a CHILD_SA between the same addresses. `false`: the addresses
    /// differ, which takes new SAs.
    pub(super) fn move_ports(&mut self, xfrm: &mut Xfrm, id: ChildId, sa: &Arc<ChildSa>) -> Result<bool> {
        let Some(child) = self.children.get_mut(&id) else { return Ok(true) };
        child.sa = sa.clone();
        let mut same = true;
        let inbound = inbound(sa, child.reqid)?;
        if let Some(installed) = &mut child.inbound {
            if (installed.id, installed.source) == (inbound.id(), inbound.source) {
                xfrm.update_sa(&inbound)?;
                *installed = Installed::of(&inbound);
            } else {
                same = false;
            }
        }
        let outbound = outbound(sa, child.reqid)?;
        if let Some(installed) = &mut child.outbound {
            if (installed.id, installed.source) == (outbound.id(), outbound.source) {
                xfrm.update_sa(&outbound)?;
                *installed = Installed::of(&outbound);
            } else {
                same = false;
            }
        }
        Ok(same)
    }

    /// Deletes what was kept long enough.
    pub(super) fn expire(&mut self, xfrm: &mut Xfrm, now: Instant) -> Result<()> {
        let mut outcome = Ok(());
        for retired in self.retiring.extract_if(.., |retiring| retiring.until <= now) {
            outcome = outcome.and(gone_is_fine(xfrm.delete_sa(retired.sa.id)));
        }
        outcome.and(self.drop_kept(xfrm, |kept| kept.until <= now))
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let retiring = self.retiring.iter().map(|retiring| retiring.until);
        self.kept.values().map(|kept| kept.until).chain(retiring).min()
    }

    fn drop_kept(&mut self, xfrm: &mut Xfrm, which: impl Fn(&Kept) -> bool) -> Result<()> {
        let ids: Vec<SaId> = self.kept.iter().filter(|(_, kept)| which(kept)).map(|(id, _)| *id).collect();
        let mut outcome = Ok(());
        for id in ids {
            self.kept.remove(&id);
            outcome = outcome.and(gone_is_fine(xfrm.delete_sa(id)));
        }
        outcome
    }

    /// All SAs that the kernel should have.
    pub(super) fn installed(&self) -> Vec<Installed> {
        let children = self.children.values().flat_map(|child| child.inbound.iter().chain(&child.outbound).cloned());
        let kept = self.kept.values().filter_map(|kept| {
            Some(Installed {
                direction: if kept.outbound { SaDirection::Out } else { SaDirection::In },
                source: kept.sa.source,
                id: kept.sa.id,
                reqid: Reqid::ours(kept.sa.reqid)?,
                encap: kept.sa.encap,
            })
        });
        children.chain(kept).chain(self.retiring.iter().map(|retiring| retiring.sa.clone())).collect()
    }

    /// What is installed of a CHILD_SA: inbound, outbound.
    pub(super) fn of_child(&self, id: ChildId) -> (Option<&Installed>, Option<&Installed>) {
        self.children.get(&id).map_or((None, None), |child| (child.inbound.as_ref(), child.outbound.as_ref()))
    }

    /// The kernel lost an SA of ours. Whose it was, if its CHILD_SA is still in use; it is to be
    /// rekeyed. What a former run left is only forgotten.
    pub(super) fn lost(&mut self, id: SaId) -> Option<(PeerName, ChildId)> {
        self.kept.remove(&id);
        self.retiring.retain(|retiring| retiring.sa.id != id);
        let holds = |installed: &Option<Installed>| installed.as_ref().is_some_and(|installed| installed.id == id);
        let (child_id, child) =
            self.children.iter_mut().find(|(_, child)| holds(&child.inbound) || holds(&child.outbound))?;
        if holds(&child.inbound) {
            child.inbound = None;
        } else {
            child.outbound = None;
        }
        Some((child.peer.clone(), *child_id))
    }

    /// Whose an SA is.
    pub(super) fn owner(&self, id: SaId) -> Option<&PeerName> {
        let holds = |installed: &Option<Installed>| installed.as_ref().is_some_and(|installed| installed.id == id);
        self.children.values().find(|child| holds(&child.inbound) || holds(&child.outbound)).map(|child| &child.peer)
    }

    /// The CHILD_SA itself.
    pub(super) fn child(&self, id: ChildId) -> Option<&Arc<ChildSa>> {
        self.children.get(&id).map(|child| &child.sa)
    }
}

/// How long inbound SAs of a former run stay after the peer has a new CHILD_SA.
pub(super) const LINGER_KEPT: Duration = Duration::from_secs(10);

fn gone_is_fine(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(Error::NoSuchSa { .. }) => Ok(()),
        outcome => outcome,
    }
}

fn aead(sa: &ChildSa, key: &edge_ike::Secret) -> Result<Aead> {
    let algorithm = match sa.aead {
        IkeAead::Aes128Gcm16 => Algorithm::Aes128Gcm16,
        IkeAead::Aes256Gcm16 => Algorithm::Aes256Gcm16,
        IkeAead::ChaCha20Poly1305 => Algorithm::ChaCha20Poly1305,
    };
    Ok(Aead::new(algorithm, key.expose())?)
}

fn replay(sa: &ChildSa) -> Replay {
    if sa.esn { Replay::ESN } else { Replay::PLAIN }
}

fn limits(sa: &ChildSa) -> Limits {
    Limits { soft_packets: (!sa.esn).then_some(SOFT_PACKETS), ..Limits::default() }
}

fn inbound(sa: &ChildSa, reqid: Reqid) -> Result<SaParams> {
    Ok(SaParams {
        direction: SaDirection::In,
        source: sa.remote.ip(),
        destination: sa.local.ip(),
        spi: sa.inbound_spi,
        reqid,
        aead: aead(sa, &sa.inbound_key)?,
        encap: sa.encapsulated.then_some(Encap { source_port: sa.remote.port(), destination_port: sa.local.port() }),
        replay: replay(sa),
        selector: None,
        limits: limits(sa),
    })
}

fn outbound(sa: &ChildSa, reqid: Reqid) -> Result<SaParams> {
    Ok(SaParams {
        direction: SaDirection::Out,
        source: sa.local.ip(),
        destination: sa.remote.ip(),
        spi: sa.outbound_spi,
        reqid,
        aead: aead(sa, &sa.outbound_key)?,
        encap: sa.encapsulated.then_some(Encap { source_port: sa.local.port(), destination_port: sa.remote.port() }),
        replay: replay(sa),
        selector: None,
        limits: limits(sa),
    })
}

#[cfg(test)]
mod tests {
    use edge_xfrm::Counters;

    use super::*;

    #[test]
    fn what_a_former_run_agreed_on_with_a_peer_is_from_before_a_later_moment_alone() {
        let kept = |reqid: Reqid, added: u64| Kept {
            sa: Sa {
                id: SaId { destination: "192.0.2.1".parse().unwrap(), spi: 0xC000_0001 },
                source: "192.0.2.2".parse().unwrap(),
                protocol: 50,
                reqid: reqid.raw(),
                mode: 1,
                direction: None,
                algorithm: Some("rfc4106(gcm(aes))".into()),
                encap: None,
                selector: None,
                replay_window: 0,
                esn: true,
                flags: 0,
                if_id: 0,
                counters: Counters { added, ..Counters::default() },
            },
            outbound: true,
            until: Instant::default(),
        };
        let [of_peer, of_other] = [1, 2].map(|index| Reqid::tunnel(index).unwrap());
        assert!(kept(of_peer, 999).is_from_before(of_peer, 1000));
        assert!(!kept(of_peer, 1000).is_from_before(of_peer, 1000), "in the second in which the peer joined");
        assert!(!kept(of_other, 999).is_from_before(of_peer, 1000));
        assert!(!kept(of_peer, 999).is_from_before(of_peer, 0), "a peer of which everything counts");
    }
}
