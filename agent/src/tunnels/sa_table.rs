//! The SAs that the agent has installed in the kernel. They are installed, switched and deleted in
//! the order of the endpoint's events, so that no packet is lost at a rekey.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use edge_ike::config::Aead as IkeAead;
use edge_ike::{ChildId, ChildSa, Instant, PeerName};
use edge_xfrm::IN_FLIGHT;
use edge_xfrm::reconcile::ExpectedSa;
use edge_xfrm::{
    AeadKey, Algorithm, Encap, Error, Limits, Replay, Reqid, Result, Sa, SaDirection, SaId, SaParams, Xfrm,
};

use crate::desired::TunnelEnds;

/// Number of packets after which an SA without extended sequence numbers is rekeyed: three quarters
/// of its 32-bit counter.
const SOFT_PACKETS: u64 = 3 << 30;

/// An SA of ours in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InstalledSa {
    /// Whether it decrypts (`In`) or encrypts (`Out`).
    pub(super) direction: SaDirection,
    /// Source address of the ESP packets.
    pub(super) source: IpAddr,
    /// Destination address of the ESP packets, and SPI.
    pub(super) id: SaId,
    /// Joins it to the policies of its peer.
    pub(super) reqid: Reqid,
    /// UDP ports, if ESP travels in UDP.
    pub(super) encap: Option<Encap>,
}

impl InstalledSa {
    fn of(params: &SaParams) -> Self {
        Self {
            direction: params.direction,
            source: params.source,
            id: params.id(),
            reqid: params.reqid,
            encap: params.encap,
        }
    }

    /// The form in which it is compared with the kernel.
    pub(super) fn expected(&self) -> ExpectedSa {
        ExpectedSa { id: self.id, reqid: self.reqid.raw(), encap: self.encap }
    }
}

/// A CHILD_SA and its installed SAs.
#[derive(Debug)]
struct Child {
    peer: PeerName,
    reqid: Reqid,
    sa: Arc<ChildSa>,
    inbound: Option<InstalledSa>,
    outbound: Option<InstalledSa>,
    /// Its outbound SA has been in the kernel. If that SA is gone, it must not be installed again:
    /// its sequence numbers, and with them the AEAD's nonces, would repeat.
    outbound_used: bool,
}

/// Outcome of [`SaTable::switch_outbound`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutboundSwitchOutcome {
    /// The CHILD_SA sends.
    Switched,
    /// Its outbound SA is gone and must not come back, so a rekey must make a new CHILD_SA. The one
    /// before goes on sending.
    NeedsRekey,
}

/// An SA that an earlier run of the agent left in the kernel. It works until a new CHILD_SA with
/// the peer replaces it.
#[derive(Debug)]
struct InheritedSa {
    sa: Sa,
    outbound: bool,
    /// When it is deleted: an inbound one some time after its replacement, each at its lifetime's
    /// end.
    until: Instant,
}

impl InheritedSa {
    fn is_older_than(&self, reqid: Reqid, moment: u64) -> bool {
        self.sa.reqid == reqid.raw() && self.sa.counters.added < moment
    }
}

/// A replaced outbound SA. It stays until its last packets are encrypted.
#[derive(Debug)]
struct Retiring {
    sa: InstalledSa,
    until: Instant,
}

/// All SAs of ours, and the tunnel ends by peer.
#[derive(Debug, Default)]
pub(super) struct SaTable {
    children: HashMap<ChildId, Child>,
    inherited: BTreeMap<SaId, InheritedSa>,
    retiring: Vec<Retiring>,
    ends: HashMap<PeerName, TunnelEnds>,
}

impl SaTable {
    /// Takes over the SAs of an earlier run, until `until`. `is_local` recognises this node's
    /// addresses, for kernels that do not report an SA's direction.
    pub(super) fn inherit(&mut self, sas: Vec<Sa>, is_local: impl Fn(IpAddr) -> bool, until: Instant) {
        for sa in sas.into_iter().filter(|sa| sa.is_ours() && !sa.is_larval()) {
            let outbound = match sa.direction {
                Some(direction) => direction == SaDirection::Out,
                None => !is_local(sa.id.destination),
            };
            self.inherited.insert(sa.id, InheritedSa { sa, outbound, until });
        }
    }

    /// Whether there are inherited SAs with this reqid.
    pub(super) fn has_inherited(&self, reqid: Reqid) -> bool {
        self.inherited.values().any(|inherited| inherited.sa.reqid == reqid.raw())
    }

    /// Local and remote address of the inherited SAs with this reqid.
    pub(super) fn inherited_ends(&self, reqid: Reqid) -> Option<(IpAddr, IpAddr)> {
        let out = self.inherited.values().find(|inherited| inherited.outbound && inherited.sa.reqid == reqid.raw())?;
        Some((out.sa.source, out.sa.id.destination))
    }

    /// Sets a peer's tunnel ends, unless they are known.
    pub(super) fn set_ends_if_unknown(&mut self, peer: &PeerName, ends: TunnelEnds) {
        self.ends.entry(peer.clone()).or_insert(ends);
    }

    /// The ends of a peer's tunnel.
    pub(super) fn ends(&self, peer: &PeerName) -> Option<TunnelEnds> {
        let up = self.children.values().any(|child| child.peer == *peer && child.outbound.is_some());
        let ends = self.ends.get(peer)?;
        Some(TunnelEnds { up: up || ends.up, ..ends.clone() })
    }

    /// Removes a former peer: its inherited SAs and its tunnel ends.
    pub(super) fn forget(&mut self, xfrm: &mut Xfrm, peer: &PeerName, reqid: Reqid) -> Result<()> {
        self.ends.remove(peer);
        for retiring in &mut self.retiring {
            if retiring.sa.reqid == reqid {
                retiring.until = Instant::default();
            }
        }
        self.delete_inherited(xfrm, |inherited| inherited.sa.reqid == reqid.raw())
    }

    /// Deletes inherited SAs with this reqid that were installed before `moment`, a time of the
    /// system clock in seconds since 1970-01-01 UTC.
    pub(super) fn forget_older_than(&mut self, xfrm: &mut Xfrm, reqid: Reqid, moment: u64) -> Result<()> {
        self.delete_inherited(xfrm, |inherited| inherited.is_older_than(reqid, moment))
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
            inbound: Some(InstalledSa::of(&params)),
            outbound: None,
            outbound_used: false,
        };
        self.children.insert(sa.id, child);
        Ok(())
    }

    /// Makes a CHILD_SA the peer's only one that sends. [`Self::expire`] later deletes the outbound
    /// SAs of the others. `policies` is called if the policies' templates do not name the new SA's
    /// ends yet.
    pub(super) fn switch_outbound(
        &mut self,
        xfrm: &mut Xfrm,
        id: ChildId,
        now: Instant,
        policies: impl FnOnce(&mut Xfrm, &Self),
    ) -> Result<OutboundSwitchOutcome> {
        let Some(child) = self.children.get(&id) else { return Ok(OutboundSwitchOutcome::Switched) };
        if child.outbound.is_some() {
            return Ok(OutboundSwitchOutcome::Switched);
        }
        let (peer, reqid) = (child.peer.clone(), child.reqid);
        let params = outbound(&child.sa, reqid)?;
        let ends = TunnelEnds {
            local: params.source,
            remote: params.destination,
            local_selectors: child.sa.local_selectors.clone(),
            remote_selectors: child.sa.remote_selectors.clone(),
            up: false,
        };
        // Of two CHILD_SAs made at once, the survivor may have been replaced a moment ago.
        let retired = self.retiring.iter().position(|retiring| retiring.sa.id == params.id());
        if child.outbound_used && retired.is_none() {
            return Ok(OutboundSwitchOutcome::NeedsRekey);
        }
        let mut old: Vec<InstalledSa> = self
            .children
            .values_mut()
            .filter(|other| other.peer == peer)
            .filter_map(|other| other.outbound.take())
            .collect();
        // This SA is still in the kernel and cannot be added again. Since the kernel prefers the SA
        // that was added last, the others are deleted at once.
        if let Some(at) = retired {
            let back = self.retiring.swap_remove(at).sa;
            if let Some(child) = self.children.get_mut(&id) {
                child.outbound = Some(back);
            }
            if self.ends.insert(peer, ends.clone()) != Some(ends) {
                policies(xfrm, self);
            }
            for sa in old {
                ignore_missing(xfrm.delete_sa(sa.id))?;
            }
            return Ok(OutboundSwitchOutcome::Switched);
        }
        let inherited =
            self.inherited.values().filter(|inherited| inherited.outbound && inherited.sa.reqid == reqid.raw());
        old.extend(inherited.map(|inherited| InstalledSa {
            direction: SaDirection::Out,
            source: inherited.sa.source,
            id: inherited.sa.id,
            reqid,
            encap: inherited.sa.encap,
        }));
        self.inherited.retain(|_, inherited| !(inherited.outbound && inherited.sa.reqid == reqid.raw()));

        // Between the same addresses the kernel uses the new SA at once. Between other addresses
        // the policies' templates select the SA, so they have to change. The old SA is deleted when
        // no packet can be on its way to it any more.
        let same = old.iter().find(|old| (old.source, old.id.destination) == (params.source, params.destination));
        let installed = match same {
            Some(old) => xfrm.begin_switch(&params, old.id).map(drop),
            None => xfrm.add_sa(&params),
        };
        if installed.is_ok()
            && let Some(child) = self.children.get_mut(&id)
        {
            child.outbound = Some(InstalledSa::of(&params));
            child.outbound_used = true;
        }
        let elsewhere = same.is_none();
        if installed.is_ok() && (elsewhere || self.ends.get(&peer) != Some(&ends)) {
            self.ends.insert(peer, ends);
            policies(xfrm, self);
        }
        let until = now + IN_FLIGHT;
        match &installed {
            Ok(()) => self.retiring.extend(old.into_iter().map(|old| Retiring { sa: old, until })),
            // The old SAs go on sending.
            Err(_) => self.restore(old, reqid),
        }
        installed.map(|()| OutboundSwitchOutcome::Switched)
    }

    /// Gives outbound SAs back to the CHILD_SAs from which they were taken.
    fn restore(&mut self, old: Vec<InstalledSa>, reqid: Reqid) {
        for old in old {
            let owner =
                self.children.values_mut().find(|child| child.reqid == reqid && child.sa.outbound_spi == old.id.spi);
            match owner {
                Some(child) => child.outbound = Some(old),
                None => self.retiring.push(Retiring { sa: old, until: Instant::new(Duration::MAX) }),
            }
        }
    }

    /// Limits the life of inherited SAs with this reqid to `until`: the peer has a new CHILD_SA.
    pub(super) fn limit_inherited(&mut self, reqid: Reqid, until: Instant) {
        for inherited in self.inherited.values_mut().filter(|inherited| inherited.sa.reqid == reqid.raw()) {
            inherited.until = inherited.until.min(until);
        }
    }

    /// Deletes the remaining SAs of a CHILD_SA.
    pub(super) fn remove(&mut self, xfrm: &mut Xfrm, id: ChildId) -> Result<()> {
        let Some(child) = self.children.remove(&id) else { return Ok(()) };
        let mut outcome = Ok(());
        for installed in child.inbound.iter().chain(&child.outbound) {
            outcome = outcome.and(ignore_missing(xfrm.delete_sa(installed.id)));
        }
        outcome
    }

    /// Updates the UDP ports of a CHILD_SA. Returns `false` if the addresses differ, which requires
    /// new SAs.
    pub(super) fn update_ports(&mut self, xfrm: &mut Xfrm, id: ChildId, sa: &Arc<ChildSa>) -> Result<bool> {
        let Some(child) = self.children.get_mut(&id) else { return Ok(true) };
        child.sa = sa.clone();
        let mut same = true;
        let inbound = inbound(sa, child.reqid)?;
        if let Some(installed) = &mut child.inbound {
            if (installed.id, installed.source) == (inbound.id(), inbound.source) {
                xfrm.update_sa(&inbound)?;
                *installed = InstalledSa::of(&inbound);
            } else {
                same = false;
            }
        }
        let outbound = outbound(sa, child.reqid)?;
        if let Some(installed) = &mut child.outbound {
            if (installed.id, installed.source) == (outbound.id(), outbound.source) {
                xfrm.update_sa(&outbound)?;
                *installed = InstalledSa::of(&outbound);
            } else {
                same = false;
            }
        }
        Ok(same)
    }

    /// Deletes inherited and retiring SAs whose time is over.
    pub(super) fn expire(&mut self, xfrm: &mut Xfrm, now: Instant) -> Result<()> {
        let mut outcome = Ok(());
        for retired in self.retiring.extract_if(.., |retiring| retiring.until <= now) {
            outcome = outcome.and(ignore_missing(xfrm.delete_sa(retired.sa.id)));
        }
        outcome.and(self.delete_inherited(xfrm, |inherited| inherited.until <= now))
    }

    /// When [`Self::expire`] is due.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let retiring = self.retiring.iter().map(|retiring| retiring.until);
        self.inherited.values().map(|inherited| inherited.until).chain(retiring).min()
    }

    fn delete_inherited(&mut self, xfrm: &mut Xfrm, which: impl Fn(&InheritedSa) -> bool) -> Result<()> {
        let ids: Vec<SaId> =
            self.inherited.iter().filter(|(_, inherited)| which(inherited)).map(|(id, _)| *id).collect();
        let mut outcome = Ok(());
        for id in ids {
            self.inherited.remove(&id);
            outcome = outcome.and(ignore_missing(xfrm.delete_sa(id)));
        }
        outcome
    }

    /// All SAs that the kernel should have.
    pub(super) fn installed(&self) -> Vec<InstalledSa> {
        let children = self.children.values().flat_map(|child| child.inbound.iter().chain(&child.outbound).cloned());
        let inherited = self.inherited.values().filter_map(|inherited| {
            Some(InstalledSa {
                direction: if inherited.outbound { SaDirection::Out } else { SaDirection::In },
                source: inherited.sa.source,
                id: inherited.sa.id,
                reqid: Reqid::ours(inherited.sa.reqid)?,
                encap: inherited.sa.encap,
            })
        });
        children.chain(inherited).chain(self.retiring.iter().map(|retiring| retiring.sa.clone())).collect()
    }

    /// The installed SAs of a CHILD_SA: inbound, outbound.
    pub(super) fn of_child(&self, id: ChildId) -> (Option<&InstalledSa>, Option<&InstalledSa>) {
        self.children.get(&id).map_or((None, None), |child| (child.inbound.as_ref(), child.outbound.as_ref()))
    }

    /// Records that an SA is no longer in the kernel. Returns peer and CHILD_SA if it belongs to
    /// one, which must then be rekeyed.
    pub(super) fn lost(&mut self, id: SaId) -> Option<(PeerName, ChildId)> {
        self.inherited.remove(&id);
        self.retiring.retain(|retiring| retiring.sa.id != id);
        let holds = |installed: &Option<InstalledSa>| installed.as_ref().is_some_and(|installed| installed.id == id);
        let (child_id, child) =
            self.children.iter_mut().find(|(_, child)| holds(&child.inbound) || holds(&child.outbound))?;
        if holds(&child.inbound) {
            child.inbound = None;
        } else {
            child.outbound = None;
        }
        Some((child.peer.clone(), *child_id))
    }

    /// The peer of an SA.
    pub(super) fn owner(&self, id: SaId) -> Option<&PeerName> {
        let holds = |installed: &Option<InstalledSa>| installed.as_ref().is_some_and(|installed| installed.id == id);
        self.children.values().find(|child| holds(&child.inbound) || holds(&child.outbound)).map(|child| &child.peer)
    }

    /// The CHILD_SA with this id.
    pub(super) fn child(&self, id: ChildId) -> Option<&Arc<ChildSa>> {
        self.children.get(&id).map(|child| &child.sa)
    }
}

/// How long inherited inbound SAs stay after the peer has a new CHILD_SA.
pub(super) const INHERITED_LINGER: Duration = Duration::from_secs(10);

fn ignore_missing(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(Error::NoSuchSa { .. }) => Ok(()),
        outcome => outcome,
    }
}

fn aead(sa: &ChildSa, key: &edge_ike::Secret) -> Result<AeadKey> {
    let algorithm = match sa.aead {
        IkeAead::Aes128Gcm16 => Algorithm::Aes128Gcm16,
        IkeAead::Aes256Gcm16 => Algorithm::Aes256Gcm16,
        IkeAead::ChaCha20Poly1305 => Algorithm::ChaCha20Poly1305,
    };
    Ok(AeadKey::new(algorithm, key.expose())?)
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
    fn an_inherited_sa_is_older_than_later_moments_only() {
        let inherited = |reqid: Reqid, added: u64| InheritedSa {
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
        assert!(inherited(of_peer, 999).is_older_than(of_peer, 1000));
        assert!(!inherited(of_peer, 1000).is_older_than(of_peer, 1000), "in the second in which the peer joined");
        assert!(!inherited(of_other, 999).is_older_than(of_peer, 1000));
        assert!(!inherited(of_peer, 999).is_older_than(of_peer, 0), "a peer without revoked certificates");
    }
}
