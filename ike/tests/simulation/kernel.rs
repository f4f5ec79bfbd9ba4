//! A model of the kernel and of the owner's work in it. It carries out events, and panics if an
//! event does not match its state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use edge_ike::{ChildId, ChildSa, Event, OutboundSwitch, PeerName, Purpose, Secret};

/// The contents of an ESP packet in this model.
#[derive(Debug, Clone)]
pub struct Esp {
    pub spi: u32,
    pub key: Secret,
}

#[derive(Debug, Default)]
pub struct InstalledSas {
    pub inbound: BTreeMap<ChildId, Arc<ChildSa>>,
    /// For each purpose, the CHILD_SA with which packets are sent.
    pub outbound: BTreeMap<Purpose, Arc<ChildSa>>,
}

impl InstalledSas {
    /// Returns the SA with which packets are sent, if one SA carries all traffic.
    pub fn sole_outbound(&self) -> Option<&Arc<ChildSa>> {
        assert!(self.outbound.len() <= 1, "several CHILD_SAs are sent with");
        self.outbound.values().next()
    }

    /// Starts to send with `new`, and checks that `old` was used until now.
    fn switch(&mut self, old: Option<ChildId>, new: &Arc<ChildSa>) {
        let before = self.outbound.insert(new.purpose.clone(), Arc::clone(new));
        assert_eq!(before.map(|sa| sa.id), old, "switched from what is sent with");
    }
}

#[derive(Debug, Default)]
pub struct Kernel {
    pub tunnels: BTreeMap<PeerName, InstalledSas>,
    /// The addresses between which ESP of a CHILD_SA is sent: our address, then the peer's.
    pub paths: BTreeMap<ChildId, (SocketAddr, SocketAddr)>,
    pub reserved: BTreeSet<u32>,
    pub ike_sas: BTreeSet<(PeerName, edge_ike::IkeId)>,
    next_spi: u32,
}

impl Kernel {
    pub fn reserve(&mut self) -> u32 {
        self.next_spi += 1;
        let spi = 0x1000 + self.next_spi;
        self.reserved.insert(spi);
        spi
    }

    pub fn release(&mut self, spi: u32) {
        assert!(self.reserved.remove(&spi), "released an SPI that is not reserved: {spi:x}");
    }

    /// Removes all SAs of the node. SPIs that were reserved before are not reused.
    pub fn restart(&mut self) {
        *self = Self { next_spi: self.next_spi, ..Self::default() };
    }

    pub fn carry_out(&mut self, event: &Event) {
        match event {
            Event::ChildUp { peer, child, replaces } => {
                self.install_inbound(peer, child);
                let tunnel = self.tunnels.get_mut(peer).unwrap();
                tunnel.switch(*replaces, child);
            }
            Event::ChildRekeyed { peer, old, new, switch } => {
                self.install_inbound(peer, new);
                let tunnel = self.tunnels.get_mut(peer).unwrap();
                if *switch == OutboundSwitch::Now {
                    tunnel.switch(Some(*old), new);
                }
            }
            Event::OutboundSwitch { peer, old, new } => {
                let tunnel = self.tunnels.get_mut(peer).unwrap();
                assert!(tunnel.inbound.contains_key(&new.id), "switched to what was installed before");
                tunnel.switch(Some(*old), new);
            }
            Event::ChildDown { peer, child, .. } => {
                let tunnel = self.tunnels.get_mut(peer).unwrap();
                assert!(tunnel.inbound.remove(child).is_some(), "only what is there goes");
                self.paths.remove(child);
                tunnel.outbound.retain(|_, sa| sa.id != *child);
            }
            Event::PeerMoved { children, local, remote, .. } => {
                for child in children {
                    assert!(self.paths.insert(*child, (*local, *remote)).is_some(), "only what is there moves");
                }
            }
            Event::IkeUp { peer, ike, .. } => {
                assert!(self.ike_sas.insert((peer.clone(), *ike)), "an IKE SA comes up once");
            }
            Event::IkeDown { peer, ike, .. } | Event::IkeReplaced { peer, old: ike, .. } => {
                assert!(self.ike_sas.remove(&(peer.clone(), *ike)), "only an IKE SA that is up goes, once");
            }
            Event::AgentNotification { .. }
            | Event::PeerSilent { .. }
            | Event::PeerHeard { .. }
            | Event::PeerFailed { .. }
            | Event::Refused { .. } => {}
        }
    }

    fn install_inbound(&mut self, peer: &PeerName, sa: &Arc<ChildSa>) {
        assert!(self.reserved.remove(&sa.inbound_spi), "the SPI was reserved");
        assert_eq!(sa.id, ChildId(sa.inbound_spi));
        self.paths.insert(sa.id, (sa.local, sa.remote));
        let before = self.tunnels.entry(peer.clone()).or_default().inbound.insert(sa.id, Arc::clone(sa));
        assert!(before.is_none(), "an inbound SA is installed once");
    }

    /// Returns the ESP packets that would be sent to a peer now, one for each purpose, and their
    /// addresses.
    pub fn encrypt(&self, peer: &PeerName) -> BTreeMap<Purpose, (Esp, SocketAddr, SocketAddr)> {
        let outbound = self.tunnels.get(peer).into_iter().flat_map(|tunnel| &tunnel.outbound);
        let packet = |sa: &ChildSa| {
            let (local, remote) = self.paths[&sa.id];
            (Esp { spi: sa.outbound_spi, key: sa.outbound_key.clone() }, local, remote)
        };
        outbound.map(|(purpose, sa)| (purpose.clone(), packet(sa))).collect()
    }

    /// Returns the peer that sent a packet, if this node can decrypt it.
    pub fn decrypts(&self, esp: &Esp) -> Option<PeerName> {
        let has = |tunnel: &InstalledSas| {
            tunnel.inbound.values().any(|sa| sa.inbound_spi == esp.spi && sa.inbound_key == esp.key)
        };
        self.tunnels.iter().find(|(_, tunnel)| has(tunnel)).map(|(peer, _)| peer.clone())
    }
}
