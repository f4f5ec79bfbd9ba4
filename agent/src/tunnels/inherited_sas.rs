//! SAs that an earlier run of the agent left in the kernel. They are used until a new CHILD_SA with
//! the peer replaces them.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use edge_ike::Instant;
use edge_xfrm::{Mode, Reqid, Sa, SaDirection, SaId};

use super::installed_sa::InstalledSa;

/// An inherited SA.
#[derive(Debug)]
struct InheritedSa {
    sa: Sa,
    outbound: bool,
    /// The time at which the SA is deleted. This is the end of its lifetime or, for an inbound SA
    /// that has been replaced, some time after the replacement.
    until: Instant,
}

impl InheritedSa {
    fn installed(&self) -> Option<InstalledSa> {
        Some(InstalledSa {
            direction: if self.outbound { SaDirection::Out } else { SaDirection::In },
            source: self.sa.source,
            id: self.sa.id,
            reqid: Reqid::ours(self.sa.reqid)?,
            // `XFRM_MODE_TRANSPORT` is 0.
            mode: if self.sa.mode == 0 { Mode::Transport } else { Mode::Tunnel },
            encap: self.sa.encap,
        })
    }
}

/// All inherited SAs, by the reqid of their peer. The peer's outbound SAs have this reqid, and so
/// do its inbound SAs, unless the peer is a hub. After the start, no SAs are added.
#[derive(Debug, Default)]
pub(super) struct InheritedSas {
    by_owner: HashMap<u32, Vec<InheritedSa>>,
    owners: HashMap<SaId, u32>,
    deadlines: BTreeSet<(Instant, SaId)>,
}

impl InheritedSas {
    /// Adds SAs, each with a flag that is `true` for outbound SAs. The SAs are deleted at `until`.
    pub(super) fn add_all(&mut self, sas: Vec<(Sa, bool)>, until: Instant) {
        let outbound = sas.iter().filter(|(_, outbound)| *outbound);
        let by_remote: HashMap<IpAddr, u32> = outbound.map(|(sa, _)| (sa.id.destination, sa.reqid)).collect();
        for (sa, outbound) in sas {
            // All inbound SAs of hubs have the same reqid, so the source address determines to
            // which hub an SA belongs.
            let from_hub = sa.reqid == Reqid::FROM_HUBS.raw();
            let owner = by_remote.get(&sa.source).copied().filter(|_| from_hub).unwrap_or(sa.reqid);
            self.add(sa, outbound, owner, until);
        }
    }

    /// Adds an SA of the peer with the reqid `owner`, which is deleted at `until`.
    fn add(&mut self, sa: Sa, outbound: bool, owner: u32, until: Instant) {
        self.owners.insert(sa.id, owner);
        self.deadlines.insert((until, sa.id));
        self.by_owner.entry(owner).or_default().push(InheritedSa { sa, outbound, until });
    }

    /// Returns whether there are SAs with this reqid.
    pub(super) fn contains(&self, reqid: Reqid) -> bool {
        self.by_owner.contains_key(&reqid.raw())
    }

    /// Returns an outbound SA with this reqid.
    pub(super) fn outbound(&self, reqid: Reqid) -> Option<&Sa> {
        let sas = self.by_owner.get(&reqid.raw())?;
        sas.iter().find(|inherited| inherited.outbound).map(|inherited| &inherited.sa)
    }

    /// Returns the outbound SAs with this reqid.
    pub(super) fn outbound_installed(&self, reqid: Reqid) -> impl Iterator<Item = InstalledSa> {
        let sas = self.by_owner.get(&reqid.raw()).into_iter().flatten();
        sas.filter(|inherited| inherited.outbound).filter_map(InheritedSa::installed)
    }

    /// Removes and returns all SAs with this reqid.
    pub(super) fn take(&mut self, reqid: Reqid) -> Vec<InstalledSa> {
        self.take_if(reqid, |_| true)
    }

    /// Removes and returns the outbound SAs with this reqid.
    pub(super) fn take_outbound(&mut self, reqid: Reqid) -> Vec<InstalledSa> {
        self.take_if(reqid, |inherited| inherited.outbound)
    }

    /// Removes and returns the SAs with this reqid that were installed before `moment`, a time of
    /// the system clock in seconds since 1970-01-01 UTC.
    pub(super) fn take_older_than(&mut self, reqid: Reqid, moment: u64) -> Vec<InstalledSa> {
        self.take_if(reqid, |inherited| inherited.sa.counters.added < moment)
    }

    /// Removes and returns the SAs that are due for deletion, with the reqids of their peers.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(Reqid, InstalledSa)> {
        let mut due = Vec::new();
        while let Some((_, id)) = self.deadlines.first().filter(|(until, _)| *until <= now) {
            due.extend(self.remove(*id));
        }
        due
    }

    /// Returns the time at which the next SA is due for [`Self::take_due`].
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(until, _)| *until)
    }

    /// Limits the lifetime of the SAs with this reqid to `until`.
    pub(super) fn limit(&mut self, reqid: Reqid, until: Instant) {
        for inherited in self.by_owner.get_mut(&reqid.raw()).into_iter().flatten() {
            if until < inherited.until {
                self.deadlines.remove(&(inherited.until, inherited.sa.id));
                self.deadlines.insert((until, inherited.sa.id));
                inherited.until = until;
            }
        }
    }

    /// Returns the SA with this destination and SPI.
    pub(super) fn find(&self, id: SaId) -> Option<InstalledSa> {
        let sas = self.by_owner.get(self.owners.get(&id)?)?;
        sas.iter().find(|inherited| inherited.sa.id == id)?.installed()
    }

    /// Removes an SA and returns it with the reqid of its peer.
    pub(super) fn remove(&mut self, id: SaId) -> Option<(Reqid, InstalledSa)> {
        let owner = Reqid::ours(*self.owners.get(&id)?)?;
        self.take_if(owner, |inherited| inherited.sa.id == id).pop().map(|sa| (owner, sa))
    }

    /// Returns all SAs.
    pub(super) fn installed(&self) -> impl Iterator<Item = InstalledSa> {
        self.by_owner.values().flatten().filter_map(InheritedSa::installed)
    }

    fn take_if(&mut self, reqid: Reqid, which: impl Fn(&InheritedSa) -> bool) -> Vec<InstalledSa> {
        let Some(sas) = self.by_owner.get_mut(&reqid.raw()) else { return vec![] };
        let taken: Vec<InheritedSa> = sas.extract_if(.., |inherited| which(inherited)).collect();
        if sas.is_empty() {
            self.by_owner.remove(&reqid.raw());
        }
        for inherited in &taken {
            self.owners.remove(&inherited.sa.id);
            self.deadlines.remove(&(inherited.until, inherited.sa.id));
        }
        taken.iter().filter_map(InheritedSa::installed).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use edge_xfrm::Counters;

    use super::*;

    fn sa(spi: u32, reqid: Reqid, added: u64) -> Sa {
        Sa {
            id: SaId { destination: "192.0.2.1".parse().unwrap(), spi },
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
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn spis(sas: &[InstalledSa]) -> Vec<u32> {
        sas.iter().map(|sa| sa.id.spi).collect()
    }

    #[test]
    fn an_inherited_sa_is_older_than_later_moments_only() {
        let [of_peer, of_other] = [1, 2].map(|index| Reqid::tunnel(index).unwrap());
        for (reqid, added, moment, taken, why) in [
            (of_peer, 999, 1000, true, "before the peer joined"),
            (of_peer, 1000, 1000, false, "in the second in which the peer joined"),
            (of_other, 999, 1000, false, "another peer's"),
            (of_peer, 999, 0, false, "a peer without revoked certificates"),
        ] {
            let mut inherited = InheritedSas::default();
            inherited.add(sa(1, reqid, added), true, reqid.raw(), at(9));
            assert_eq!(!inherited.take_older_than(of_peer, moment).is_empty(), taken, "{why}");
            assert_eq!(inherited.contains(reqid), !taken, "{why}");
        }
    }

    #[test]
    fn an_inbound_sa_of_a_hub_belongs_to_the_hub_at_its_address() {
        let [first, second] = [1, 2].map(|index| Reqid::tunnel(index).unwrap());
        let ours: IpAddr = "192.0.2.1".parse().unwrap();
        let [hub, other] = ["203.0.113.1", "203.0.113.2"].map(|text| text.parse::<IpAddr>().unwrap());
        let between = |spi, reqid, source, destination| {
            let id = SaId { destination, spi };
            Sa { id, source, ..sa(spi, reqid, 0) }
        };
        let mut inherited = InheritedSas::default();
        inherited.add_all(
            vec![
                (between(1, Reqid::FROM_HUBS, hub, ours), false),
                (between(2, Reqid::FROM_HUBS, other, ours), false),
                (between(3, first, ours, hub), true),
                (between(4, second, ours, other), true),
            ],
            at(9),
        );
        let removed = inherited.remove(SaId { destination: ours, spi: 2 }).unwrap();
        assert_eq!((removed.0, removed.1.reqid), (second, Reqid::FROM_HUBS));
        let mut of_first = spis(&inherited.take(first));
        of_first.sort_unstable();
        assert_eq!(of_first, [1, 3]);
    }

    #[test]
    fn each_is_due_at_its_own_time_and_a_limit_only_shortens_it() {
        let [one, other] = [1, 2].map(|index| Reqid::tunnel(index).unwrap());
        let mut inherited = InheritedSas::default();
        for (spi, reqid, outbound) in [(1, one, false), (2, one, true), (3, other, false), (4, other, true)] {
            inherited.add(sa(spi, reqid, 0), outbound, reqid.raw(), at(100));
        }
        inherited.limit(one, at(20));
        inherited.limit(one, at(50));
        assert_eq!(inherited.next_deadline(), Some(at(20)));
        assert_eq!(spis(&inherited.take_outbound(one)), [2]);
        assert!(inherited.outbound(one).is_none() && inherited.contains(one));
        assert!(inherited.take_due(at(19)).is_empty());
        assert_eq!(
            inherited.take_due(at(20)).into_iter().map(|(owner, sa)| (owner, sa.id.spi)).collect::<Vec<_>>(),
            [(one, 1)]
        );
        assert!(!inherited.contains(one));
        assert_eq!(inherited.remove(SaId { destination: "192.0.2.1".parse().unwrap(), spi: 3 }).unwrap().1.id.spi, 3);
        assert_eq!(inherited.next_deadline(), Some(at(100)));
        assert_eq!(spis(&inherited.installed().collect::<Vec<_>>()), [4]);
        assert_eq!(spis(&inherited.take(other)), [4]);
        assert_eq!(inherited.next_deadline(), None);
    }
}
