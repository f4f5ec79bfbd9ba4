//! Leases in memory, and the choice of the next address to lease.
//!
//! - `reserved`: addresses that no pod gets.

mod reserved;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use edge_types::IpNetwork;
use edge_types::agent_protocol::Stock;
use edge_types::api::Family;

use crate::mac::Mac;
use crate::request::Attachment;
use crate::segment::{self, PodAddress};

pub(crate) use self::reserved::{AddressRange, Reserved};

/// A freed address is not leased again for so long while another one is free, seconds. Neighbours
/// may still have its former owner's MAC address in their caches.
pub(in crate::ipam) const COOL_DOWN_SECONDS: u64 = 60;

/// What one attachment has leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// At most one address of each family.
    pub(crate) addresses: Vec<IpAddr>,
    /// The network's name: `name` of the configuration of the ADD.
    pub(crate) network: String,
    /// The pod's `namespace/name`, for people.
    pub(crate) pod: Option<String>,
    /// The MAC address that the runtime requested for the pod.
    pub(crate) mac: Option<Mac>,
}

/// All leases of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::ipam) struct Leases {
    held: BTreeMap<Attachment, Lease>,
    /// The owner of each leased address. It ensures that no address has two.
    owners: HashMap<IpAddr, Attachment>,
    /// When each address was freed: seconds since the boot, and a number that orders addresses that
    /// were freed in the same second.
    freed: HashMap<IpAddr, (u64, u64)>,
    frees: u64,
}

impl Leases {
    /// The lease of an attachment.
    pub(in crate::ipam) fn get(&self, attachment: &Attachment) -> Option<&Lease> {
        self.held.get(attachment)
    }

    /// The owner of an address.
    pub(in crate::ipam) fn owner(&self, address: IpAddr) -> Option<&Attachment> {
        self.owners.get(&address)
    }

    /// All leases.
    pub(in crate::ipam) fn iter(&self) -> impl Iterator<Item = (&Attachment, &Lease)> {
        self.held.iter()
    }

    /// Refuses a lease if the attachment has one already, or if another one has an address of the
    /// lease.
    pub(in crate::ipam) fn check(&self, attachment: &Attachment, lease: &Lease) -> Result<(), String> {
        if self.held.contains_key(attachment) {
            return Err(format!("{attachment} has two leases"));
        }
        if let Some((address, owner)) =
            lease.addresses.iter().find_map(|address| Some((address, self.owners.get(address)?)))
        {
            return Err(format!("{address} is leased to {owner} and to {attachment}"));
        }
        Ok(())
    }

    /// Enters a lease, unless [`Self::check`] refuses it.
    pub(in crate::ipam) fn insert(&mut self, attachment: Attachment, lease: Lease) -> Result<(), String> {
        self.check(&attachment, &lease)?;
        for address in &lease.addresses {
            self.owners.insert(*address, attachment.clone());
            self.freed.remove(address);
        }
        self.held.insert(attachment, lease);
        Ok(())
    }

    /// Ends a lease. `now` is in seconds since the boot.
    pub(in crate::ipam) fn remove(&mut self, attachment: &Attachment, now: u64) -> Option<Lease> {
        let lease = self.held.remove(attachment)?;
        for address in &lease.addresses {
            self.owners.remove(address);
            self.record_freed(*address, now);
        }
        Some(lease)
    }

    /// Records when an address was freed.
    pub(in crate::ipam) fn record_freed(&mut self, address: IpAddr, at: u64) {
        self.frees += 1;
        self.freed.insert(address, (at, self.frees));
    }

    /// Freed addresses with their times, the longest ago first.
    pub(in crate::ipam) fn freed(&self) -> Vec<(IpAddr, u64)> {
        let mut all: Vec<_> = self.freed.iter().map(|(address, order)| (*order, *address)).collect();
        all.sort_unstable();
        all.into_iter().map(|((at, _), address)| (address, at)).collect()
    }

    /// How many addresses of a family these segments have, free and leased.
    pub(in crate::ipam) fn stock(&self, segments: &[IpNetwork], reserved: &Reserved, family: Family) -> Stock {
        let of_family = || segments.iter().filter(|segment| Family::of(segment) == family);
        let capacity = of_family().map(|segment| reserved.capacity(segment)).fold(0, u64::saturating_add);
        let leased =
            || self.owners.keys().filter(|address| of_family().any(|segment| segment::holds_pod(segment, **address)));
        // An address may have been leased before it was reserved.
        let taken = leased().filter(|address| reserved.range_of(**address).is_none()).count() as u64;
        Stock { family, free: capacity.saturating_sub(taken), leased: leased().count() as u64 }
    }

    /// The next address of a family to lease. It comes from the first segment that has an address
    /// which was never used or has cooled down. If none has, it is the address that was freed
    /// longest ago.
    pub(in crate::ipam) fn next_address(
        &self,
        segments: &[IpNetwork],
        reserved: &Reserved,
        family: Family,
        now: u64,
    ) -> Option<PodAddress> {
        let of_family = || segments.iter().filter(|segment| Family::of(segment) == family);
        let longest_ago = |segment: &IpNetwork| {
            self.freed
                .iter()
                .filter(|(address, _)| segment::holds_pod(segment, **address))
                .filter(|(address, _)| reserved.range_of(**address).is_none())
                .min_by_key(|(_, order)| **order)
                .map(|(address, order)| (*order, PodAddress { address: *address, segment: *segment }))
        };
        for segment in of_family() {
            if let Some(address) = self.first_unused(segment, reserved) {
                return Some(PodAddress { address, segment: *segment });
            }
            if let Some(((at, _), assigned)) = longest_ago(segment)
                && now.saturating_sub(at) >= COOL_DOWN_SECONDS
            {
                return Some(assigned);
            }
        }
        of_family().filter_map(longest_ago).min_by_key(|(order, _)| *order).map(|(_, assigned)| assigned)
    }

    /// The first address of a segment that was never used and is not reserved.
    fn first_unused(&self, segment: &IpNetwork, reserved: &Reserved) -> Option<IpAddr> {
        let (mut address, last) = segment::pod_range(segment);
        while address <= last {
            // A range may have more addresses than can be looked at one by one.
            if let Some(range) = reserved.range_of(address) {
                address = segment::next(range.last())?;
            } else if self.owners.contains_key(&address) || self.freed.contains_key(&address) {
                address = segment::next(address)?;
            } else {
                return Some(address);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(number: usize) -> Attachment {
        Attachment { container: format!("c{number}"), ifname: "eth0".into() }
    }

    fn lease(address: &str) -> Lease {
        Lease { addresses: vec![address.parse().unwrap()], network: "pods".into(), pod: None, mac: None }
    }

    fn lease_next(leases: &mut Leases, number: usize, segments: &[IpNetwork], now: u64) -> Option<String> {
        let assigned = leases.next_address(segments, &Reserved::default(), Family::V4, now)?;
        leases.insert(attachment(number), lease(&assigned.address.to_string())).unwrap();
        Some(assigned.address.to_string())
    }

    #[test]
    fn addresses_are_given_in_order_until_none_is_left() {
        let segments = ["10.0.0.0/30".parse().unwrap(), "10.0.1.0/29".parse().unwrap()];
        let mut leases = Leases::default();
        let given: Vec<String> = (0..).map_while(|number| lease_next(&mut leases, number, &segments, 0)).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5", "10.0.1.6"]);
        assert_eq!(leases.stock(&segments, &Reserved::default(), Family::V4).free, 0);
        assert_eq!(leases.stock(&segments, &Reserved::default(), Family::V6).free, 0);
    }

    #[test]
    fn a_freed_address_rests_while_another_is_free() {
        let segments = ["10.0.0.0/29".parse().unwrap(), "10.0.1.0/29".parse().unwrap()];
        let mut leases = Leases::default();
        for number in 0..5 {
            lease_next(&mut leases, number, &segments, 0);
        }
        leases.remove(&attachment(3), 100);
        leases.remove(&attachment(1), 100);
        assert_eq!(leases.stock(&segments, &Reserved::default(), Family::V4).free, 7);
        // Too early for 10.0.0.5, so the second segment is used.
        assert_eq!(lease_next(&mut leases, 10, &segments, 100 + COOL_DOWN_SECONDS - 1).unwrap(), "10.0.1.2");
        // Cooled down, the address that was freed first comes first.
        assert_eq!(lease_next(&mut leases, 11, &segments, 100 + COOL_DOWN_SECONDS).unwrap(), "10.0.0.5");
        assert_eq!(lease_next(&mut leases, 12, &segments, 100 + COOL_DOWN_SECONDS).unwrap(), "10.0.0.3");
    }

    #[test]
    fn with_nothing_else_free_the_address_freed_longest_ago_is_given_without_a_wait() {
        let segments = ["10.0.0.0/29".parse().unwrap()];
        let mut leases = Leases::default();
        for number in 0..5 {
            lease_next(&mut leases, number, &segments, 0);
        }
        leases.remove(&attachment(4), 1);
        leases.remove(&attachment(0), 1);
        assert_eq!(lease_next(&mut leases, 10, &segments, 1).unwrap(), "10.0.0.6");
        assert_eq!(lease_next(&mut leases, 11, &segments, 1).unwrap(), "10.0.0.2");
        assert_eq!(lease_next(&mut leases, 12, &segments, 1), None);
    }

    #[test]
    fn reserved_addresses_are_never_given_also_after_they_were_freed() {
        let segments = ["10.0.0.0/29".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let mut leases = Leases::default();
        lease_next(&mut leases, 0, &segments, 0);
        leases.remove(&attachment(0), 1);
        let reserved = ["10.0.0.2", "10.0.0.4-10.0.0.5", "fd00::-fd00::ffff:ffff:ffff"];
        let reserved = Reserved::new(reserved.iter().map(|text| text.parse().unwrap()).collect());
        let mut given = Vec::new();
        while let Some(next) = leases.next_address(&segments, &reserved, Family::V4, 1000) {
            leases.insert(attachment(given.len()), lease(&next.address.to_string())).unwrap();
            given.push(next.address.to_string());
            assert_eq!(leases.stock(&segments, &reserved, Family::V4).free, 2 - given.len() as u64);
        }
        assert_eq!(given, ["10.0.0.3", "10.0.0.6"]);
        let next = leases.next_address(&segments, &reserved, Family::V6, 1000).unwrap();
        assert_eq!(next.address.to_string(), "fd00::1:0:0:0");
    }

    #[test]
    fn an_address_never_has_two_owners() {
        let mut leases = Leases::default();
        let lease = lease("10.0.0.2");
        leases.insert(attachment(1), lease.clone()).unwrap();
        assert!(leases.insert(attachment(2), lease.clone()).unwrap_err().contains("10.0.0.2"));
        assert!(leases.insert(attachment(1), lease).unwrap_err().contains("two leases"));
        assert!(leases.get(&attachment(2)).is_none());
    }

    #[test]
    fn leases_outside_the_segments_take_nothing_from_what_is_free() {
        let segments = ["10.0.0.0/29".parse().unwrap()];
        let mut leases = Leases::default();
        leases.insert(attachment(1), lease("10.9.0.2")).unwrap();
        assert_eq!(leases.stock(&segments, &Reserved::default(), Family::V4).free, 5);
    }
}
