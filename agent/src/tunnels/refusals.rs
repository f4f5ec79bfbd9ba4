//! The initiators that were refused before they were known as a peer. The log has each refusal;
//! `status` shows the latest ones.

use std::collections::VecDeque;
use std::net::SocketAddr;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::status::Refusal;

/// Maximum number of refusals that are kept; the oldest goes first. A stranger can fill it, but not
/// with one identity from one address, whose refusals are counted.
const MAX_REFUSALS: usize = 20;

/// The latest refusals, oldest first.
#[derive(Debug, Default)]
pub(super) struct Refusals(VecDeque<Refusal>);

impl Refusals {
    /// Records a refusal. One with the same words from the same address, at any port, is counted.
    pub(super) fn record(&mut self, from: SocketAddr, identity: Option<String>, error: String, now: OffsetDateTime) {
        let at = now.format(&Rfc3339).unwrap_or_default();
        let refusal = Refusal { at, from, identity, error, times: 1 };
        let is_same = |former: &Refusal| {
            former.from.ip() == from.ip() && former.identity == refusal.identity && former.error == refusal.error
        };
        let former = self.0.iter().position(is_same).and_then(|position| self.0.remove(position));
        let times = former.map_or(0, |former| former.times).saturating_add(1);
        if self.0.len() == MAX_REFUSALS {
            self.0.pop_front();
        }
        self.0.push_back(Refusal { times, ..refusal });
    }

    /// Returns the latest refusals, oldest first.
    pub(super) fn latest(&self) -> Vec<Refusal> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(refusals: &mut Refusals, from: &str, identity: Option<&str>) {
        let identity = identity.map(ToOwned::to_owned);
        refusals.record(from.parse().unwrap(), identity, "unknown identity".into(), OffsetDateTime::UNIX_EPOCH);
    }

    #[test]
    fn refusals_of_one_identity_from_one_address_are_counted_and_become_the_latest() {
        let mut refusals = Refusals::default();
        record(&mut refusals, "192.0.2.1:500", Some("mallory"));
        record(&mut refusals, "192.0.2.2:500", Some("mallory"));
        record(&mut refusals, "192.0.2.1:4500", Some("mallory"));
        record(&mut refusals, "192.0.2.1:4500", None);
        let latest: Vec<_> = refusals.latest().into_iter().map(|it| (it.from.to_string(), it.times)).collect();
        let expected = [("192.0.2.2:500", 1), ("192.0.2.1:4500", 2), ("192.0.2.1:4500", 1)];
        assert_eq!(latest, expected.map(|(from, times)| (from.to_owned(), times)));
    }

    #[test]
    fn the_oldest_of_many_refusals_goes() {
        let mut refusals = Refusals::default();
        for host in 1..=30 {
            record(&mut refusals, &format!("192.0.2.{host}:500"), None);
        }
        let latest = refusals.latest();
        assert_eq!(latest.len(), MAX_REFUSALS);
        assert_eq!((latest[0].from.to_string(), &*latest[0].at), ("192.0.2.11:500".into(), "1970-01-01T00:00:00Z"));
    }
}
