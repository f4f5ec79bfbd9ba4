//! All leases in memory.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

use super::checksum::crc32;
use super::line::Line;
use super::used_addresses::{FreedAddress, UsedAddresses};
use crate::mac::Mac;
use crate::request::Attachment;
use crate::sort::sort_by;

/// The addresses that one attachment has leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The addresses, at most one of each family.
    pub(crate) addresses: Vec<IpAddr>,
    /// The network's name: `name` of the configuration of the ADD.
    pub(crate) network: String,
    /// The pod's `namespace/name`, for display to the operator.
    pub(crate) pod: Option<String>,
    /// The MAC address that the runtime requested for the pod.
    pub(crate) mac: Option<Mac>,
}

/// All leases of the node. They need little memory and few allocations, since one buffer contains
/// all texts, and another one contains all addresses.
#[derive(Debug, Clone, Default)]
pub(in crate::ipam) struct Leases {
    slots: Vec<LeaseEntry>,
    /// The texts of all slots: container and interface, network, and pod.
    texts: String,
    addresses: Vec<IpAddr>,
    /// Slots by the hash of container and interface. If another attachment has the same hash, the
    /// next number is tried.
    by_attachment: HashMap<u32, u32, BuildHasherDefault<QuickHasher>>,
    /// The leased and freed addresses, which ensure that no address has two owners.
    used: UsedAddresses,
    /// The time at which each address was freed, in seconds since the boot, and a number that
    /// orders addresses that were freed in the same second.
    freed: HashMap<IpAddr, (u64, u64), BuildHasherDefault<QuickHasher>>,
    frees: u64,
    count: usize,
}

/// A lease, which may have ended.
#[derive(Debug, Clone)]
struct LeaseEntry {
    /// Offset and lengths of the texts: container and interface (separated by a blank), network,
    /// pod.
    text: usize,
    lengths: [usize; 3],
    has_pod: bool,
    /// Index of the first address, and the number of addresses.
    first_address: usize,
    address_count: usize,
    mac: Option<Mac>,
    line: Line,
    held: bool,
}

/// A lease with borrowed texts, in the form of the journal.
#[derive(Debug, Clone, Copy)]
pub(in crate::ipam) struct LeaseRef<'a> {
    /// Container and interface, separated by a blank.
    pub(in crate::ipam) attachment: &'a str,
    pub(in crate::ipam) network: &'a str,
    pub(in crate::ipam) pod: Option<&'a str>,
    pub(in crate::ipam) addresses: &'a [IpAddr],
    pub(in crate::ipam) mac: Option<Mac>,
}

/// A hasher for addresses, and for numbers that are already hashes. The operator chooses the
/// addresses, so the hasher need not resist malicious keys.
#[derive(Debug, Default)]
struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        // The two halves of the product together depend on all bits of both factors.
        let product = u128::from(self.0.rotate_left(5) ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

impl Leases {
    /// Allocates memory for this number of additional leases.
    pub(in crate::ipam) fn reserve(&mut self, leases: usize) {
        self.slots.reserve(leases);
        self.by_attachment.reserve(leases);
        // Most pods have an address of each family.
        self.addresses.reserve(2 * leases);
    }

    /// Returns the lease of an attachment.
    pub(in crate::ipam) fn get(&self, attachment: &Attachment) -> Option<Lease> {
        let slot = self.slots.get(self.find(&key_of(attachment))?)?;
        self.read(slot).map(|(_, lease)| lease)
    }

    /// Returns the journal line that begins an attachment's lease.
    pub(in crate::ipam) fn line(&self, attachment: &Attachment) -> Option<Line> {
        Some(self.slots.get(self.find(&key_of(attachment))?)?.line)
    }

    /// Returns all attachments in the form of [`LeaseRef`], with the journal lines that begin their
    /// leases.
    pub(in crate::ipam) fn lines(&self) -> impl Iterator<Item = (&str, Line)> {
        let held = self.slots.iter().filter(|slot| slot.held);
        held.filter_map(|slot| Some((self.texts.get(slot.text..slot.text + slot.lengths[0])?, slot.line)))
    }

    /// Returns all leases, in the order in which they began.
    pub(in crate::ipam) fn iter(&self) -> impl Iterator<Item = (Attachment, Lease)> {
        self.slots.iter().filter(|slot| slot.held).filter_map(|slot| self.read(slot))
    }

    /// Returns the number of leases.
    pub(in crate::ipam) const fn count(&self) -> usize {
        self.count
    }

    /// Returns the leased and freed addresses.
    pub(in crate::ipam) const fn used(&self) -> &UsedAddresses {
        &self.used
    }

    /// Returns the owner of an address.
    pub(in crate::ipam) fn owner(&self, address: IpAddr) -> Option<Attachment> {
        if !self.used.is_leased(address) {
            return None;
        }
        self.iter().find(|(_, lease)| lease.addresses.contains(&address)).map(|(attachment, _)| attachment)
    }

    /// Refuses a lease if the attachment already has one, or if another attachment has one of the
    /// lease's addresses.
    pub(in crate::ipam) fn check(&self, lease: LeaseRef<'_>) -> Result<(), String> {
        let named = |attachment: &str| attachment_of(attachment).map(|attachment| attachment.to_string());
        let attachment = lease.attachment;
        if self.find(attachment).is_some() {
            return Err(format!("{} has two leases", named(attachment).unwrap_or_default()));
        }
        if let Some(address) = lease.addresses.iter().find(|address| self.used.is_leased(**address)) {
            let owner = self.owner(*address).map(|owner| owner.to_string()).unwrap_or_default();
            return Err(format!("{address} is leased to {owner} and to {}", named(attachment).unwrap_or_default()));
        }
        Ok(())
    }

    /// Enters a lease, which begins with this line of the journal, unless [`Self::check`] refuses
    /// it.
    pub(in crate::ipam) fn insert(&mut self, lease: LeaseRef<'_>, line: Line) -> Result<(), String> {
        self.check(lease)?;
        let index = u32::try_from(self.slots.len()).map_err(|_| "there are too many leases".to_owned())?;
        for address in lease.addresses {
            self.used.set_leased(*address);
            if !self.freed.is_empty() {
                self.freed.remove(address);
            }
        }
        let pod = lease.pod.unwrap_or_default();
        self.slots.push(LeaseEntry {
            text: self.texts.len(),
            lengths: [lease.attachment.len(), lease.network.len(), pod.len()],
            has_pod: lease.pod.is_some(),
            first_address: self.addresses.len(),
            address_count: lease.addresses.len(),
            mac: lease.mac,
            line,
            held: true,
        });
        [lease.attachment, lease.network, pod].into_iter().for_each(|text| self.texts.push_str(text));
        self.addresses.extend(lease.addresses);
        let mut hash = hash_of(lease.attachment);
        while let Some(other) = self.by_attachment.get(&hash)
            && self.slots.get(*other as usize).is_some_and(|other| other.held)
        {
            hash = hash.wrapping_add(1);
        }
        self.by_attachment.insert(hash, index);
        self.count += 1;
        Ok(())
    }

    /// Ends a lease and returns it. `now` is in seconds since the boot.
    pub(in crate::ipam) fn remove(&mut self, attachment: &str, now: u64) -> Option<Lease> {
        let index = self.find(attachment)?;
        let slot = self.slots.get_mut(index)?;
        slot.held = false;
        let slot = slot.clone();
        let (_, lease) = self.read(&slot)?;
        for address in &lease.addresses {
            self.record_freed(*address, now);
        }
        self.count -= 1;
        Some(lease)
    }

    /// Finds the index of the slot of an attachment's lease. The search continues past leases that
    /// have ended.
    fn find(&self, attachment: &str) -> Option<usize> {
        let mut hash = hash_of(attachment);
        loop {
            let index = *self.by_attachment.get(&hash)? as usize;
            let slot = self.slots.get(index)?;
            let key = self.texts.get(slot.text..slot.text + slot.lengths[0]);
            if slot.held && key == Some(attachment) {
                return Some(index);
            }
            hash = hash.wrapping_add(1);
        }
    }

    /// Reads the content of a slot.
    fn read(&self, slot: &LeaseEntry) -> Option<(Attachment, Lease)> {
        let [attachment, network, pod] = slot.lengths;
        let (network_at, pod_at) = (slot.text + attachment, slot.text + attachment + network);
        let attachment = attachment_of(self.texts.get(slot.text..network_at)?)?;
        let lease = Lease {
            addresses: self.addresses.get(slot.first_address..slot.first_address + slot.address_count)?.to_vec(),
            network: self.texts.get(network_at..pod_at)?.to_owned(),
            pod: if slot.has_pod { Some(self.texts.get(pod_at..pod_at + pod)?.to_owned()) } else { None },
            mac: slot.mac,
        };
        Some((attachment, lease))
    }

    /// Records that an address was freed, `at` seconds after the boot.
    pub(in crate::ipam) fn record_freed(&mut self, address: IpAddr, at: u64) {
        self.used.set_freed(address);
        self.frees += 1;
        self.freed.insert(address, (at, self.frees));
    }

    /// Returns the freed addresses and the times at which they were freed, earliest first.
    pub(in crate::ipam) fn freed(&self) -> Vec<(IpAddr, u64)> {
        let mut all: Vec<_> = self.freed.iter().map(|(address, order)| (*order, *address)).collect();
        sort_by(&mut all, |one, other| one < other);
        all.into_iter().map(|((at, _), address)| (address, at)).collect()
    }

    /// Returns the address that was freed longest ago, among those that `chosen` accepts.
    pub(in crate::ipam) fn freed_longest_ago(&self, chosen: &dyn Fn(IpAddr) -> bool) -> Option<FreedAddress> {
        let all = self.freed.iter().filter(|(address, _)| chosen(**address));
        all.min_by_key(|(_, (_, order))| *order).map(|(address, (at, order))| FreedAddress {
            address: *address,
            at: *at,
            order: *order,
        })
    }
}

/// Formats an attachment for [`LeaseRef`].
pub(in crate::ipam) fn key_of(attachment: &Attachment) -> String {
    format!("{} {}", attachment.container, attachment.ifname)
}

fn attachment_of(key: &str) -> Option<Attachment> {
    let (container, ifname) = key.split_once(' ')?;
    Some(Attachment { container: container.into(), ifname: ifname.into() })
}

/// Computes the hash by which an attachment is found.
pub(in crate::ipam) fn hash_of(attachment: &str) -> u32 {
    crc32(0, attachment.as_bytes())
}

#[cfg(test)]
mod tests {
    use edge_types::IpNetwork;
    use edge_types::agent_protocol::Stock;
    use edge_types::api::Family;

    use super::*;
    use crate::ipam::used_addresses::COOL_DOWN_SECONDS;
    use crate::reserved::Reserved;
    use crate::segment::PodAddress;

    fn attachment(number: usize) -> Attachment {
        Attachment { container: format!("c{number}"), ifname: "eth0".into() }
    }

    fn insert(leases: &mut Leases, number: usize, address: &str) -> Result<(), String> {
        let (attachment, lease) = (key_of(&attachment(number)), lease(address));
        let (addresses, network) = (&lease.addresses[..], &lease.network[..]);
        leases.insert(LeaseRef { attachment: &attachment, network, pod: None, addresses, mac: None }, Line::default())
    }

    fn remove(leases: &mut Leases, number: usize, now: u64) {
        leases.remove(&key_of(&attachment(number)), now).unwrap();
    }

    fn stock(leases: &Leases, segments: &[IpNetwork], reserved: &Reserved, family: Family) -> Stock {
        let none = Stock { family, free: 0, leased: 0 };
        leases.used().stock(segments, reserved).into_iter().find(|stock| stock.family == family).unwrap_or(none)
    }

    fn lease(address: &str) -> Lease {
        Lease { addresses: vec![address.parse().unwrap()], network: "pods".into(), pod: None, mac: None }
    }

    fn next_address(
        leases: &Leases,
        segments: &[IpNetwork],
        reserved: &Reserved,
        family: Family,
        now: u64,
    ) -> Option<PodAddress> {
        let longest_ago = |chosen: &dyn Fn(IpAddr) -> bool| Ok::<_, ()>(leases.freed_longest_ago(chosen));
        leases.used().next_address(segments, reserved, family, now, longest_ago).unwrap()
    }

    fn lease_next(leases: &mut Leases, number: usize, segments: &[IpNetwork], now: u64) -> Option<String> {
        let assigned = next_address(leases, segments, &Reserved::default(), Family::V4, now)?;
        insert(leases, number, &assigned.address.to_string()).unwrap();
        Some(assigned.address.to_string())
    }

    #[test]
    fn addresses_are_given_in_order_until_none_is_left() {
        let segments = ["10.0.0.0/30".parse().unwrap(), "10.0.1.0/29".parse().unwrap()];
        let mut leases = Leases::default();
        let given: Vec<String> = (0..).map_while(|number| lease_next(&mut leases, number, &segments, 0)).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5", "10.0.1.6"]);
        assert_eq!(stock(&leases, &segments, &Reserved::default(), Family::V4).free, 0);
        assert_eq!(stock(&leases, &segments, &Reserved::default(), Family::V6).free, 0);
    }

    #[test]
    fn a_freed_address_rests_while_another_is_free() {
        let segments = ["10.0.0.0/29".parse().unwrap(), "10.0.1.0/29".parse().unwrap()];
        let mut leases = Leases::default();
        for number in 0..5 {
            lease_next(&mut leases, number, &segments, 0);
        }
        remove(&mut leases, 3, 100);
        remove(&mut leases, 1, 100);
        assert_eq!(stock(&leases, &segments, &Reserved::default(), Family::V4).free, 7);
        // The address 10.0.0.5 has not cooled down yet, so the second segment is used.
        assert_eq!(lease_next(&mut leases, 10, &segments, 100 + COOL_DOWN_SECONDS - 1).unwrap(), "10.0.1.2");
        // Of the addresses that have cooled down, the one that was freed first is leased first.
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
        remove(&mut leases, 4, 1);
        remove(&mut leases, 0, 1);
        assert_eq!(lease_next(&mut leases, 10, &segments, 1).unwrap(), "10.0.0.6");
        assert_eq!(lease_next(&mut leases, 11, &segments, 1).unwrap(), "10.0.0.2");
        assert_eq!(lease_next(&mut leases, 12, &segments, 1), None);
    }

    #[test]
    fn reserved_addresses_are_never_given_also_after_they_were_freed() {
        let segments = ["10.0.0.0/29".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let mut leases = Leases::default();
        lease_next(&mut leases, 0, &segments, 0);
        remove(&mut leases, 0, 1);
        let reserved = ["10.0.0.2", "10.0.0.4-10.0.0.5", "fd00::-fd00::ffff:ffff:ffff"];
        let reserved = Reserved::new(reserved.iter().map(|text| text.parse().unwrap()).collect());
        let mut given = Vec::new();
        while let Some(next) = next_address(&leases, &segments, &reserved, Family::V4, 1000) {
            insert(&mut leases, given.len(), &next.address.to_string()).unwrap();
            given.push(next.address.to_string());
            assert_eq!(stock(&leases, &segments, &reserved, Family::V4).free, 2 - given.len() as u64);
        }
        assert_eq!(given, ["10.0.0.3", "10.0.0.6"]);
        let next = next_address(&leases, &segments, &reserved, Family::V6, 1000).unwrap();
        assert_eq!(next.address.to_string(), "fd00::1:0:0:0");
    }

    #[test]
    fn an_address_never_has_two_owners() {
        let mut leases = Leases::default();
        insert(&mut leases, 1, "10.0.0.2").unwrap();
        assert!(insert(&mut leases, 2, "10.0.0.2").unwrap_err().contains("10.0.0.2"));
        assert!(insert(&mut leases, 1, "10.0.0.3").unwrap_err().contains("two leases"));
        assert!(leases.get(&attachment(2)).is_none());
    }

    #[test]
    fn leases_outside_the_segments_take_nothing_from_what_is_free() {
        let segments = ["10.0.0.0/29".parse().unwrap()];
        let mut leases = Leases::default();
        insert(&mut leases, 1, "10.9.0.2").unwrap();
        assert_eq!(stock(&leases, &segments, &Reserved::default(), Family::V4).free, 5);
    }

    /// Names with the same CRC-32.
    const SAME_HASH: [&str; 2] = ["plumless eth0", "buckeroo eth0"];

    #[test]
    fn attachments_with_the_same_hash_are_told_apart_also_after_one_has_ended() {
        let enter = |leases: &mut Leases, attachment: &str, address: &str| {
            let addresses = [address.parse().unwrap()];
            leases
                .insert(
                    LeaseRef { attachment, network: "pods", pod: None, addresses: &addresses, mac: None },
                    Line::default(),
                )
                .unwrap();
        };
        let [one, two] = SAME_HASH;
        assert_eq!(hash_of(one), hash_of(two));
        let mut leases = Leases::default();
        enter(&mut leases, one, "10.0.0.2");
        enter(&mut leases, two, "10.0.0.3");
        let address = |leases: &Leases, key: &str| {
            leases.get(&attachment_of(key).unwrap()).map(|lease| lease.addresses[0].to_string())
        };
        assert_eq!(
            (address(&leases, one).as_deref(), address(&leases, two).as_deref()),
            (Some("10.0.0.2"), Some("10.0.0.3"))
        );
        leases.remove(one, 1).unwrap();
        assert_eq!((address(&leases, one), address(&leases, two).as_deref()), (None, Some("10.0.0.3")));
        enter(&mut leases, one, "10.0.0.4");
        assert_eq!(
            (address(&leases, one).as_deref(), address(&leases, two).as_deref()),
            (Some("10.0.0.4"), Some("10.0.0.3"))
        );
        leases.remove(two, 1).unwrap();
        leases.remove(one, 1).unwrap();
        assert_eq!((leases.count(), leases.iter().count()), (0, 0));
    }
}
