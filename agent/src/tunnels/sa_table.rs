//! The SAs that the agent has installed in the kernel. They are installed, switched and deleted in
//! the order of the endpoint's events, so that no packet is lost at a rekey.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use edge_ike::{ChildId, ChildName, ChildSa, Instant, PeerName, Purpose, TcpConnectionId};
use edge_xfrm::IN_FLIGHT;
use edge_xfrm::{Error, Policy, Reqid, Result, Sa, SaDirection, SaId, SaParams, Xfrm};
use litemap::LiteMap;

use super::inherited_sas::InheritedSas;
use super::installed_sa::{InstalledSa, SaChange};
use super::retiring_sas::RetiringSas;
use super::sa_params::{SaEnds, inbound, outbound, tunnel_ends};
use super::source_ports::SourcePorts;
use crate::desired::{PeerReqids, TunnelEnds};
use crate::tcp_encapsulation::Connections;

/// UDP port of IKE (RFC 7296 2), at which a peer is reached whose ESP does not travel in UDP.
const IKE_PORT: u16 = 500;

/// A CHILD_SA and its installed SAs.
#[derive(Debug)]
struct Child {
    peer: PeerName,
    reqids: PeerReqids,
    sa: Arc<ChildSa>,
    inbound: Option<InstalledSa>,
    outbound: Option<InstalledSa>,
    /// Whether the outbound SA has ever been in the kernel. If it has been deleted since, it must
    /// not be installed again, because its sequence numbers and therefore the AEAD's nonces would
    /// repeat.
    outbound_used: bool,
}

/// The SAs of a CHILD_SA whose purpose has no others.
#[derive(Debug)]
pub(super) struct FirstSas {
    /// The inbound SA.
    pub(super) inbound: SaParams,
    /// The outbound SA.
    pub(super) outbound: SaParams,
    /// The ends of the tunnel when it was up before.
    ends_before: Option<TunnelEnds>,
}

/// Outcome of [`SaTable::switch_outbound`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutboundSwitchOutcome {
    /// The CHILD_SA sends now.
    Switched,
    /// The CHILD_SA's outbound SA is no longer in the kernel and must not be installed again, so a
    /// rekey must create a new CHILD_SA. The previous CHILD_SA continues to send.
    NeedsRekey,
}

/// The SAs of one peer, by purpose. Usually there is one purpose. A node of a `BTreeMap` has room
/// for eleven, which is nearly two kilobytes for each of many peers.
type PeerSas = LiteMap<Purpose, PurposeSas>;

/// The CHILD_SAs of one purpose.
#[derive(Debug, Default)]
struct PurposeSas {
    /// The CHILD_SAs: usually one; two while one replaces the other.
    children: Vec<ChildId>,
    /// The ends of the tunnel, once it has been up. Their field `up` is not used.
    ends: Option<TunnelEnds>,
    /// The reqid of the inherited SAs that this purpose's policies use.
    inherited: Option<Reqid>,
}

/// Maximum number of purposes of a peer that keep their policies while their tunnels are down. The
/// peer chooses the parts of a configured child, so further parts that are down are dropped.
const MAX_DOWN: usize = 64;

/// An SA that is no longer in the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LostSa {
    /// The SA belongs to a CHILD_SA with this peer, which must be rekeyed.
    OfChild(PeerName),
    /// The SA was inherited and belongs to the peer with this reqid.
    Inherited(Reqid),
}

/// All SAs of the agent, and the tunnel ends by peer. The size of the table is proportional to the
/// number of SAs.
#[derive(Debug)]
pub(super) struct SaTable {
    tcp: Connections,
    ports: SourcePorts,
    children: HashMap<ChildId, Child>,
    /// The CHILD_SA to which an SA in the kernel belongs.
    owners: HashMap<SaId, ChildId>,
    peers: HashMap<PeerName, PeerSas>,
    inherited: InheritedSas,
    retiring: RetiringSas,
}

impl SaTable {
    /// A table without SAs. `tcp` are the connections in which SAs may be encapsulated, and `ports`
    /// the source ports of those that are encapsulated in UDP.
    pub(super) fn new(tcp: Connections, ports: SourcePorts) -> Self {
        Self {
            tcp,
            ports,
            children: HashMap::new(),
            owners: HashMap::new(),
            peers: HashMap::new(),
            inherited: InheritedSas::default(),
            retiring: RetiringSas::default(),
        }
    }

    /// Returns the ends of a CHILD_SA's ESP packets. If its TCP connection has ended, the SAs find
    /// no socket, and the kernel drops their packets.
    fn esp_ends(&self, sa: &ChildSa) -> SaEnds {
        match TcpConnectionId::of(sa.remote.ip()) {
            Some(_) => (self.tcp.real(sa.local), self.tcp.real(sa.remote), true),
            None => (self.ports.real(sa.local, sa.remote), sa.remote, false),
        }
    }

    /// Takes over the SAs of an earlier run, which are deleted at `until`. `is_local` returns
    /// whether an address belongs to this node. It is used on kernels that do not report an SA's
    /// direction.
    pub(super) fn inherit(&mut self, sas: Vec<Sa>, is_local: impl Fn(IpAddr) -> bool, until: Instant) {
        let ours = sas.into_iter().filter(|sa| sa.is_ours() && !sa.is_larval()).map(|sa| {
            let outbound = match sa.direction {
                Some(direction) => direction == SaDirection::Out,
                None => !is_local(sa.id.destination),
            };
            (sa, outbound)
        });
        self.inherited.add_all(ours.collect(), until);
    }

    /// Returns whether there are inherited SAs with this reqid.
    pub(super) fn has_inherited(&self, reqid: Reqid) -> bool {
        self.inherited.contains(reqid)
    }

    /// Returns the local and the remote address of the inherited SAs with this reqid.
    pub(super) fn inherited_ends(&self, reqid: Reqid) -> Option<(IpAddr, IpAddr)> {
        self.inherited.outbound(reqid).map(|out| (out.source, out.id.destination))
    }

    /// Returns the address and port to which the inherited SAs with this reqid send, unless they
    /// are among the `known` ones. This may be the only address at which the peer can be reached:
    /// it may be behind a NAT, or no address of it may be configured.
    pub(super) fn inherited_remote(&self, reqid: Reqid, known: &[SocketAddr]) -> Option<SocketAddr> {
        let sa = self.inherited.outbound(reqid)?;
        let port = sa.encap.map_or(IKE_PORT, |encap| encap.destination_port);
        let remote = SocketAddr::new(sa.id.destination, port);
        (!known.contains(&remote)).then_some(remote)
    }

    /// Uses the ends of an earlier run for a peer's tunnel of this purpose, unless that tunnel has
    /// been up in this run. `inherited` is the reqid of the inherited SAs with these ends; `None`
    /// if no SA is left.
    pub(super) fn use_former_ends(
        &mut self,
        peer: &PeerName,
        purpose: Purpose,
        inherited: Option<Reqid>,
        ends: TunnelEnds,
    ) {
        let of_purpose = self.purposes(peer).entry(purpose).or_default();
        if of_purpose.ends.is_none() {
            (of_purpose.ends, of_purpose.inherited) = (Some(ends), inherited);
        }
    }

    /// Returns whether a CHILD_SA of the peer sends.
    pub(super) fn sends(&self, peer: &PeerName) -> bool {
        self.peers.get(peer).is_some_and(|of_peer| of_peer.values().any(|of_purpose| self.sends_with(of_purpose)))
    }

    /// Returns whether both SAs of a CHILD_SA stand in the kernel.
    pub(super) fn is_complete(&self, id: ChildId) -> bool {
        self.children.get(&id).is_some_and(|child| child.inbound.is_some() && child.outbound.is_some())
    }

    /// Returns whether a tunnel of the peer has an inbound and an outbound SA in the kernel. While
    /// one CHILD_SA replaces another one, they may belong to different ones.
    pub(super) fn stands(&self, peer: &PeerName) -> bool {
        self.peers.get(peer).is_some_and(|of_peer| of_peer.values().any(|of_purpose| self.stands_with(of_purpose)))
    }

    /// Returns whether each tunnel of the peer that has CHILD_SAs has both SAs in the kernel.
    pub(super) fn all_stand(&self, peer: &PeerName) -> bool {
        let stands = |of_purpose: &PurposeSas| of_purpose.children.is_empty() || self.stands_with(of_purpose);
        self.peers.get(peer).is_some_and(|of_peer| of_peer.values().all(stands))
    }

    fn stands_with(&self, of_purpose: &PurposeSas) -> bool {
        let receives = |id: &ChildId| self.children.get(id).is_some_and(|child| child.inbound.is_some());
        self.sends_with(of_purpose) && of_purpose.children.iter().any(receives)
    }

    fn sends_with(&self, of_purpose: &PurposeSas) -> bool {
        let sends = |id: &ChildId| self.children.get(id).is_some_and(|child| child.outbound.is_some());
        of_purpose.children.iter().any(sends)
    }

    /// Returns the ends of a peer's tunnels by purpose. The tunnels that are up come first. A part
    /// that is down is left out if the tunnel for the whole child is up, because that tunnel also
    /// carries the part's packets.
    pub(super) fn ends(&self, peer: &PeerName) -> Vec<(&Purpose, TunnelEnds)> {
        let ends = self.peers.get(peer).into_iter().flatten().filter_map(|(purpose, of_purpose)| {
            let inherited = of_purpose.inherited.is_some_and(|reqid| self.inherited.outbound(reqid).is_some());
            let up = inherited || self.sends_with(of_purpose);
            Some((purpose, TunnelEnds { up, ..of_purpose.ends.clone()? }))
        });
        let mut all: Vec<(&Purpose, TunnelEnds)> = ends.collect();
        let whole: Vec<ChildName> = all
            .iter()
            .filter(|(purpose, ends)| ends.up && purpose.part.is_none())
            .map(|(purpose, _)| purpose.child.clone())
            .collect();
        all.retain(|(purpose, ends)| ends.up || purpose.part.is_none() || !whole.contains(&purpose.child));
        all.sort_by_key(|(_, ends)| !ends.up);
        all
    }

    /// Drops the ends of tunnels that are down, if `wanted` rejects their purpose. If the tunnels
    /// of many parts are down, also drops the ends of some of these. Returns the remaining
    /// purposes.
    pub(super) fn forget_unwanted(&mut self, peer: &PeerName, wanted: impl Fn(&Purpose) -> bool) -> Vec<Purpose> {
        let Some(of_peer) = self.peers.get_mut(peer) else { return vec![] };
        let is_down = |of_purpose: &PurposeSas| of_purpose.children.is_empty() && of_purpose.inherited.is_none();
        let mut down = 0;
        of_peer.retain(|purpose, of_purpose| {
            if !is_down(of_purpose) {
                return true;
            }
            down += 1;
            wanted(purpose) && (purpose.part.is_none() || down <= MAX_DOWN)
        });
        of_peer.keys().cloned().collect()
    }

    /// Removes the inherited SAs with these reqids and the tunnel ends of a former peer.
    pub(super) fn forget(&mut self, xfrm: &mut Xfrm, peer: &PeerName, reqids: &[Reqid]) -> Result<()> {
        for (_, of_purpose) in self.peers.get_mut(peer).into_iter().flatten() {
            (of_purpose.ends, of_purpose.inherited) = (None, None);
        }
        self.drop_peer_without_state(peer);
        self.retiring.end(reqids);
        let mut outcome = Ok(());
        for reqid in reqids {
            outcome = outcome.and(delete_all(xfrm, self.inherited.take(*reqid)));
        }
        outcome
    }

    /// Deletes inherited SAs with this reqid that were installed before `moment`, a time of the
    /// system clock in seconds since 1970-01-01 UTC.
    pub(super) fn forget_older_than(&mut self, xfrm: &mut Xfrm, reqid: Reqid, moment: u64) -> Result<()> {
        delete_all(xfrm, self.inherited.take_older_than(reqid, moment))
    }

    fn drop_peer_without_state(&mut self, peer: &PeerName) {
        let Some(of_peer) = self.peers.get_mut(peer) else { return };
        of_peer.retain(|_, of_purpose| !of_purpose.children.is_empty() || of_purpose.ends.is_some());
        if of_peer.is_empty() {
            self.peers.remove(peer);
        }
    }

    /// Records that an SA of a CHILD_SA is in the kernel.
    fn set_installed(&mut self, id: ChildId, installed: InstalledSa) {
        let Some(child) = self.children.get_mut(&id) else { return };
        self.owners.insert(installed.id, id);
        match installed.direction {
            SaDirection::In => child.inbound = Some(installed),
            SaDirection::Out => child.outbound = Some(installed),
        }
    }

    /// Removes and returns the outbound SA of a CHILD_SA. The SA stays in the kernel.
    fn take_outbound(&mut self, id: ChildId) -> Option<InstalledSa> {
        let installed = self.children.get_mut(&id)?.outbound.take()?;
        self.owners.remove(&installed.id);
        Some(installed)
    }

    /// Begins to install both SAs of a new CHILD_SA: records them as installed, and returns their
    /// parameters, so that the caller installs them at once together with the policies. Then it
    /// must call [`Self::first_refused`] if the kernel refused one. Returns `None`, and records
    /// nothing, if other SAs are or were used for this purpose, which must be replaced in order.
    pub(super) fn begin_first(
        &mut self,
        peer: &PeerName,
        reqids: PeerReqids,
        sa: &Arc<ChildSa>,
    ) -> Result<Option<FirstSas>> {
        let ends = self.esp_ends(sa);
        let first = FirstSas {
            inbound: inbound(sa, reqids.inbound, ends)?,
            outbound: outbound(sa, reqids.outbound, ends)?,
            ends_before: self.peers.get(peer).and_then(|of_peer| of_peer.get(&sa.purpose)?.ends.clone()),
        };
        let of_purpose = self.peers.get(peer).and_then(|of_peer| of_peer.get(&sa.purpose));
        let is_first =
            of_purpose.is_none_or(|of_purpose| of_purpose.children.is_empty() && of_purpose.inherited.is_none());
        let is_first = is_first && !self.children.contains_key(&sa.id);
        if !is_first || self.has_inherited(reqids.outbound) || self.find(first.outbound.id()).is_some() {
            return Ok(None);
        }
        let child =
            Child { peer: peer.clone(), reqids, sa: sa.clone(), inbound: None, outbound: None, outbound_used: true };
        self.children.insert(sa.id, child);
        self.of_purpose(peer, &sa.purpose).children.push(sa.id);
        self.set_installed(sa.id, InstalledSa::of(&first.inbound));
        self.set_installed(sa.id, InstalledSa::of(&first.outbound));
        self.set_ends(peer, &sa.purpose, tunnel_ends(sa, &first.outbound));
        Ok(Some(first))
    }

    /// Records that the kernel refused one or both SAs of [`Self::begin_first`]. Without its
    /// inbound SA, the CHILD_SA is dropped, and its outbound SA must be deleted if the kernel has
    /// it.
    pub(super) fn first_refused(&mut self, id: ChildId, first: FirstSas, has_inbound: bool) {
        let Some(child) = self.children.get_mut(&id) else { return };
        let (peer, purpose) = (child.peer.clone(), child.sa.purpose.clone());
        self.owners.remove(&first.outbound.id());
        (child.outbound, child.outbound_used) = (None, false);
        self.of_purpose(&peer, &purpose).ends = first.ends_before;
        if !has_inbound {
            self.owners.remove(&first.inbound.id());
            self.children.remove(&id);
            self.of_purpose(&peer, &purpose).children.retain(|other| *other != id);
            self.drop_peer_without_state(&peer);
        }
    }

    /// Installs a CHILD_SA's inbound SA.
    pub(super) fn install_inbound(
        &mut self,
        xfrm: &mut Xfrm,
        peer: &PeerName,
        reqids: PeerReqids,
        sa: &Arc<ChildSa>,
    ) -> Result<()> {
        let params = inbound(sa, reqids.inbound, self.esp_ends(sa))?;
        xfrm.install_inbound(&params)?;
        let child =
            Child { peer: peer.clone(), reqids, sa: sa.clone(), inbound: None, outbound: None, outbound_used: false };
        self.children.insert(sa.id, child);
        let children = &mut self.of_purpose(peer, &sa.purpose).children;
        if !children.contains(&sa.id) {
            children.push(sa.id);
        }
        self.set_installed(sa.id, InstalledSa::of(&params));
        Ok(())
    }

    fn purposes(&mut self, peer: &PeerName) -> &mut PeerSas {
        self.peers.entry(peer.clone()).or_insert_with(|| LiteMap::with_capacity(1))
    }

    fn of_purpose(&mut self, peer: &PeerName, purpose: &Purpose) -> &mut PurposeSas {
        self.purposes(peer).entry(purpose.clone()).or_default()
    }

    /// Makes a CHILD_SA the only one of its purpose that sends. [`Self::expire`] later deletes the
    /// outbound SAs of the other CHILD_SAs of this purpose. `out_policies` are the outbound
    /// policies that currently use the tunnel. `update_policies` is called if the templates of the
    /// policies do not contain the new SA's addresses yet.
    pub(super) fn switch_outbound(
        &mut self,
        xfrm: &mut Xfrm,
        id: ChildId,
        now: Instant,
        out_policies: &[Policy],
        update_policies: impl FnOnce(&mut Xfrm, &Self),
    ) -> Result<OutboundSwitchOutcome> {
        let Some(child) = self.children.get(&id) else { return Ok(OutboundSwitchOutcome::Switched) };
        if child.outbound.is_some() {
            return Ok(OutboundSwitchOutcome::Switched);
        }
        let (peer, purpose, reqid) = (child.peer.clone(), child.sa.purpose.clone(), child.reqids.outbound);
        let params = outbound(&child.sa, reqid, self.esp_ends(&child.sa))?;
        let ends = tunnel_ends(&child.sa, &params);
        // If two CHILD_SAs were created at the same time, the one that is kept may have just been
        // replaced.
        let retired = self.retiring.take(params.id());
        if child.outbound_used && retired.is_none() {
            return Ok(OutboundSwitchOutcome::NeedsRekey);
        }
        let others = self.of_purpose(&peer, &purpose).children.clone();
        let mut old: Vec<InstalledSa> = others.into_iter().filter_map(|other| self.take_outbound(other)).collect();
        // The SA is still in the kernel, so it cannot be added again. Since the kernel prefers the
        // SA that was added last, the other SAs are deleted immediately.
        if let Some(back) = retired {
            self.set_installed(id, back);
            if self.set_ends(&peer, &purpose, ends) {
                update_policies(xfrm, self);
            }
            for sa in old {
                ignore_missing(xfrm.delete_sa(sa.id))?;
            }
            return Ok(OutboundSwitchOutcome::Switched);
        }
        let of_children = old.clone();
        old.extend(self.inherited.outbound_installed(reqid));

        // If the addresses stay the same, the kernel uses the new SA immediately. If they differ,
        // the policies' templates select the SA, so the templates must change. The old SA is
        // deleted when no packet can still be waiting for encryption with it.
        let same = old.iter().find(|old| (old.source, old.id.destination) == (params.source, params.destination));
        let installed = match same {
            Some(old) => xfrm.begin_switch_under(&params, old.id, out_policies).map(drop),
            None => xfrm.add_sa(&params),
        };
        if installed.is_ok()
            && let Some(child) = self.children.get_mut(&id)
        {
            child.outbound_used = true;
            self.set_installed(id, InstalledSa::of(&params));
            self.inherited.take_outbound(reqid);
        }
        let elsewhere = same.is_none();
        if installed.is_ok() && (self.set_ends(&peer, &purpose, ends) || elsewhere) {
            update_policies(xfrm, self);
        }
        let until = now + IN_FLIGHT;
        match &installed {
            Ok(()) => old.into_iter().for_each(|old| self.retiring.add(old, until)),
            // The old SAs continue to send.
            Err(_) => self.restore(&peer, &purpose, of_children),
        }
        installed.map(|()| OutboundSwitchOutcome::Switched)
    }

    /// Sets the ends of a peer's tunnel, which inherited SAs no longer determine. Returns `true` if
    /// the ends have changed.
    fn set_ends(&mut self, peer: &PeerName, purpose: &Purpose, ends: TunnelEnds) -> bool {
        let of_purpose = self.of_purpose(peer, purpose);
        let inherited = of_purpose.inherited.take().is_some();
        let changed = of_purpose.ends.as_ref() != Some(&ends);
        of_purpose.ends = Some(ends);
        changed || inherited
    }

    /// Assigns outbound SAs again to the CHILD_SAs from which they were taken. An SA without such a
    /// CHILD_SA stays until its peer is removed.
    fn restore(&mut self, peer: &PeerName, purpose: &Purpose, old: Vec<InstalledSa>) {
        for old in old {
            let of_purpose = self.peers.get(peer).and_then(|of_peer| of_peer.get(purpose));
            let children = of_purpose.map(|of_purpose| of_purpose.children.as_slice()).unwrap_or_default();
            let sends_with =
                |id: &&ChildId| self.children.get(id).is_some_and(|child| child.sa.outbound_spi == old.id.spi);
            match children.iter().find(sends_with).copied() {
                Some(owner) => self.set_installed(owner, old),
                None => self.retiring.add(old, Instant::new(Duration::MAX)),
            }
        }
    }

    /// Limits the lifetime of inherited SAs with this reqid to `until`, because the peer has a new
    /// CHILD_SA.
    pub(super) fn limit_inherited(&mut self, reqid: Reqid, until: Instant) {
        self.inherited.limit(reqid, until);
    }

    /// Deletes the remaining SAs of a CHILD_SA.
    pub(super) fn remove(&mut self, xfrm: &mut Xfrm, id: ChildId) -> Result<()> {
        let Some(child) = self.children.remove(&id) else { return Ok(()) };
        for (_, of_purpose) in self.peers.get_mut(&child.peer).into_iter().flatten() {
            of_purpose.children.retain(|other| *other != id);
        }
        self.drop_peer_without_state(&child.peer);
        let installed: Vec<InstalledSa> = child.inbound.into_iter().chain(child.outbound).collect();
        for sa in &installed {
            self.owners.remove(&sa.id);
        }
        delete_all(xfrm, installed)
    }

    /// Updates the UDP ports of a CHILD_SA, if they differ from those in the kernel. Returns
    /// `false` if the addresses or the encapsulation differ, which requires new SAs.
    pub(super) fn update_ports(&mut self, xfrm: &mut Xfrm, id: ChildId, sa: &Arc<ChildSa>) -> Result<bool> {
        let ends = self.esp_ends(sa);
        let Some(child) = self.children.get_mut(&id) else { return Ok(true) };
        let in_tcp = |sa: &ChildSa| TcpConnectionId::of(sa.remote.ip());
        let same_connection = in_tcp(&child.sa) == in_tcp(sa);
        child.sa = sa.clone();
        let inbound = inbound(sa, child.reqids.inbound, ends)?;
        let outbound = outbound(sa, child.reqids.outbound, ends)?;
        let installed = [child.inbound.as_mut().zip(Some(inbound)), child.outbound.as_mut().zip(Some(outbound))];
        for (installed, moved) in installed.into_iter().flatten() {
            let new = InstalledSa::of(&moved);
            match installed.change_to(&new) {
                SaChange::None if same_connection => {}
                SaChange::Ports if same_connection => {
                    xfrm.update_sa(&moved)?;
                    *installed = new;
                }
                SaChange::None | SaChange::Ports | SaChange::NewSa => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Deletes the inherited and retiring SAs that are due for deletion. Returns the reqids of the
    /// peers whose inherited SAs were deleted.
    pub(super) fn expire(&mut self, xfrm: &mut Xfrm, now: Instant) -> (BTreeSet<Reqid>, Result<()>) {
        let outcome = delete_all(xfrm, self.retiring.take_due(now));
        let (reqids, inherited) = self.inherited.take_due(now).into_iter().unzip();
        (reqids, outcome.and(delete_all(xfrm, inherited)))
    }

    /// Returns the time at which [`Self::expire`] is due.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.retiring.next_deadline().into_iter().chain(self.inherited.next_deadline()).min()
    }

    /// Returns all SAs that the kernel should have.
    pub(super) fn installed(&self) -> Vec<InstalledSa> {
        let children = self.children.values().flat_map(|child| child.inbound.iter().chain(&child.outbound).cloned());
        children.chain(self.inherited.installed()).chain(self.retiring.all().cloned()).collect()
    }

    /// Returns the SA with this destination and SPI, if the kernel should have it.
    pub(super) fn find(&self, id: SaId) -> Option<InstalledSa> {
        if let Some(child) = self.owners.get(&id).and_then(|child| self.children.get(child)) {
            return child.inbound.iter().chain(&child.outbound).find(|sa| sa.id == id).cloned();
        }
        self.retiring.find(id).cloned().or_else(|| self.inherited.find(id))
    }

    /// Returns the installed inbound and outbound SA of a CHILD_SA.
    pub(super) fn of_child(&self, id: ChildId) -> (Option<&InstalledSa>, Option<&InstalledSa>) {
        self.children.get(&id).map_or((None, None), |child| (child.inbound.as_ref(), child.outbound.as_ref()))
    }

    /// Records that an SA is no longer in the kernel.
    pub(super) fn lost(&mut self, id: SaId) -> Option<LostSa> {
        if let Some((owner, _)) = self.inherited.remove(id) {
            return Some(LostSa::Inherited(owner));
        }
        self.retiring.take(id);
        let child = self.children.get_mut(&self.owners.remove(&id)?)?;
        if child.inbound.as_ref().is_some_and(|inbound| inbound.id == id) {
            child.inbound = None;
        } else {
            child.outbound = None;
        }
        Some(LostSa::OfChild(child.peer.clone()))
    }

    /// Returns the peer to which an SA of a CHILD_SA belongs.
    pub(super) fn owner(&self, id: SaId) -> Option<&PeerName> {
        self.children.get(self.owners.get(&id)?).map(|child| &child.peer)
    }

    /// Returns the peer to which an SA of a CHILD_SA belongs, and the SA's direction.
    pub(super) fn usage(&self, id: SaId) -> Option<(&PeerName, SaDirection)> {
        let child = self.children.get(self.owners.get(&id)?)?;
        let installed = child.inbound.iter().chain(&child.outbound).find(|sa| sa.id == id)?;
        Some((&child.peer, installed.direction))
    }

    /// Returns an SA of a CHILD_SA.
    pub(super) fn installed_sa(&self, id: SaId) -> Option<&InstalledSa> {
        let child = self.children.get(self.owners.get(&id)?)?;
        child.inbound.iter().chain(&child.outbound).find(|sa| sa.id == id)
    }

    /// Returns the CHILD_SA with this ID.
    pub(super) fn child(&self, id: ChildId) -> Option<&Arc<ChildSa>> {
        self.children.get(&id).map(|child| &child.sa)
    }
}

/// Time for which inherited inbound SAs stay after the peer has a new CHILD_SA.
pub(super) const INHERITED_LINGER: Duration = Duration::from_secs(10);

/// Deletes SAs. Continues after an error, and returns the first one.
fn delete_all(xfrm: &mut Xfrm, sas: Vec<InstalledSa>) -> Result<()> {
    let mut outcome = Ok(());
    for sa in sas {
        outcome = outcome.and(ignore_missing(xfrm.delete_sa(sa.id)));
    }
    outcome
}

fn ignore_missing(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(Error::NoSuchSa { .. }) => Ok(()),
        outcome => outcome,
    }
}
