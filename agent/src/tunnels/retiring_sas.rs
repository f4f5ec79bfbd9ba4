//! Keeps outbound SAs that were replaced until their last packets are encrypted.

use std::collections::{BTreeMap, HashMap};

use edge_ike::Instant;
use edge_xfrm::{Reqid, SaId};

use super::installed_sa::InstalledSa;

/// The replaced SAs, in the order of their deletion. Each stays for [`edge_xfrm::IN_FLIGHT`], so
/// their number is the number of rekeys in that time. An SA whose replacement the kernel refused
/// stays until its peer is removed.
#[derive(Debug, Default)]
pub(super) struct RetiringSas {
    queue: BTreeMap<(Instant, SaId), InstalledSa>,
    until: HashMap<SaId, Instant>,
}

impl RetiringSas {
    /// Adds an SA that is deleted at `until`, or changes the time of an SA that was added before.
    pub(super) fn add(&mut self, sa: InstalledSa, until: Instant) {
        self.take(sa.id);
        self.until.insert(sa.id, until);
        self.queue.insert((until, sa.id), sa);
    }

    /// Removes and returns the SA with this destination and SPI, so that it is not deleted.
    pub(super) fn take(&mut self, id: SaId) -> Option<InstalledSa> {
        let until = self.until.remove(&id)?;
        self.queue.remove(&(until, id))
    }

    /// Returns the SA with this destination and SPI.
    pub(super) fn find(&self, id: SaId) -> Option<&InstalledSa> {
        self.queue.get(&(*self.until.get(&id)?, id))
    }

    /// Makes the SAs with these reqids due immediately.
    pub(super) fn end(&mut self, reqids: &[Reqid]) {
        let ending: Vec<InstalledSa> = self.all().filter(|sa| reqids.contains(&sa.reqid)).cloned().collect();
        for sa in ending {
            self.add(sa, Instant::default());
        }
    }

    /// Removes and returns the SAs that are due for deletion.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<InstalledSa> {
        let mut due = Vec::new();
        while let Some(first) = self.queue.first_entry().filter(|first| first.key().0 <= now) {
            let sa = first.remove();
            self.until.remove(&sa.id);
            due.push(sa);
        }
        due
    }

    /// Returns the time at which the next SA is due for [`Self::take_due`].
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((until, _), _)| *until)
    }

    /// Returns all SAs.
    pub(super) fn all(&self) -> impl Iterator<Item = &InstalledSa> {
        self.queue.values()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use edge_xfrm::SaDirection;

    use super::*;

    fn sa(spi: u32, reqid: u32) -> InstalledSa {
        InstalledSa {
            direction: SaDirection::Out,
            source: "192.0.2.1".parse().unwrap(),
            id: SaId { destination: "192.0.2.2".parse().unwrap(), spi },
            reqid: Reqid::tunnel(reqid).unwrap(),
            encap: None,
            mode: edge_xfrm::Mode::Tunnel,
        }
    }

    fn at(milliseconds: u64) -> Instant {
        Instant::new(Duration::from_millis(milliseconds))
    }

    fn spis(sas: &[InstalledSa]) -> Vec<u32> {
        sas.iter().map(|sa| sa.id.spi).collect()
    }

    #[test]
    fn each_is_due_in_its_turn_and_one_that_is_used_again_is_not() {
        let mut retiring = RetiringSas::default();
        for (spi, until) in [(1, 30), (2, 10), (3, 20), (4, 10)] {
            retiring.add(sa(spi, spi), at(until));
        }
        // The SAs 2 and 4 are due at the same time.
        assert_eq!(retiring.next_deadline(), Some(at(10)));
        assert_eq!(retiring.take(sa(4, 4).id), Some(sa(4, 4)));
        assert_eq!(retiring.take(sa(4, 4).id), None);
        assert_eq!((retiring.find(sa(3, 3).id), retiring.find(sa(4, 4).id)), (Some(&sa(3, 3)), None));
        assert_eq!(spis(&retiring.take_due(at(9))), [0; 0]);
        assert_eq!(spis(&retiring.take_due(at(20))), [2, 3]);
        assert_eq!(retiring.next_deadline(), Some(at(30)));
        assert_eq!(spis(&retiring.take_due(at(u64::MAX / 2))), [1]);
        assert_eq!((retiring.next_deadline(), retiring.all().count(), retiring.until.len()), (None, 0, 0));
    }

    #[test]
    fn those_of_a_peer_that_is_gone_are_due_at_once() {
        let mut retiring = RetiringSas::default();
        retiring.add(sa(1, 1), Instant::new(Duration::MAX));
        retiring.add(sa(2, 2), at(50));
        retiring.end(&[sa(1, 1).reqid]);
        assert_eq!(spis(&retiring.take_due(at(0))), [1]);
        assert_eq!(retiring.next_deadline(), Some(at(50)));
    }
}
