//! Bit sets of the leased and the freed addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use edge_types::IpNetwork;
use edge_types::agent_protocol::Stock;
use edge_types::api::Family;

use crate::reserved::Reserved;
use crate::segment::{self, PodAddress};

/// Time in seconds for which a freed address is not leased again while another address is free.
/// Neighbours may still have the MAC address of the former owner in their caches.
pub(in crate::ipam) const COOL_DOWN_SECONDS: u64 = 60;

/// Number of addresses of one block. The last byte of its first address is 0.
pub(super) const BLOCK: usize = 256;

/// A set of addresses of one block, with one bit for each address.
pub(super) type Bits = [u64; BLOCK / 64];

/// The addresses of a block that are in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) leased: Bits,
    /// Addresses that were leased before and are not leased now.
    pub(super) freed: Bits,
}

/// Addresses that are leased or were freed, by blocks. No address is both leased and freed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UsedAddresses(BTreeMap<IpAddr, Block>);

/// A freed address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FreedAddress {
    pub(super) address: IpAddr,
    /// The time at which it was freed, in seconds since the boot.
    pub(super) at: u64,
    /// A number that orders addresses by the time at which they were freed.
    pub(super) order: u64,
}

impl UsedAddresses {
    /// Returns all blocks with their first addresses.
    pub(super) fn blocks(&self) -> impl ExactSizeIterator<Item = (IpAddr, &Block)> {
        self.0.iter().map(|(first, block)| (*first, block))
    }

    /// Adds a whole block.
    pub(super) fn insert_block(&mut self, first: IpAddr, block: Block) {
        self.0.insert(first, block);
    }

    pub(super) fn is_leased(&self, address: IpAddr) -> bool {
        let (first, bit) = place(address);
        self.0.get(&first).is_some_and(|block| contains(&block.leased, bit))
    }

    pub(super) fn is_freed(&self, address: IpAddr) -> bool {
        let (first, bit) = place(address);
        self.0.get(&first).is_some_and(|block| contains(&block.freed, bit))
    }

    pub(super) fn set_leased(&mut self, address: IpAddr) {
        let (first, bit) = place(address);
        let block = self.0.entry(first).or_default();
        set(&mut block.leased, bit, true);
        set(&mut block.freed, bit, false);
    }

    pub(super) fn set_freed(&mut self, address: IpAddr) {
        let (first, bit) = place(address);
        let block = self.0.entry(first).or_default();
        set(&mut block.leased, bit, false);
        set(&mut block.freed, bit, true);
    }

    /// Returns the number of leased addresses from `first` to `last`, which must have the same
    /// family.
    fn count_leased(&self, first: IpAddr, last: IpAddr) -> u64 {
        let ((first_block, first_bit), (last_block, last_bit)) = (place(first), place(last));
        if first > last {
            return 0;
        }
        let count = |(at, block): (&IpAddr, &Block)| {
            let from = if *at == first_block { first_bit } else { 0 };
            let to = if *at == last_block { last_bit } else { BLOCK - 1 };
            let words = block.leased.iter().enumerate();
            words.map(|(index, word)| u64::from((word & between(index, from, to)).count_ones())).sum::<u64>()
        };
        self.0.range(first_block..=last_block).map(count).sum()
    }

    /// Returns the first address, starting with this one, that is neither leased nor freed.
    fn next_unused(&self, mut address: IpAddr) -> Option<IpAddr> {
        loop {
            let (first, bit) = place(address);
            let Some(block) = self.0.get(&first) else { return Some(address) };
            let free = (bit..BLOCK).find(|bit| !contains(&block.leased, *bit) && !contains(&block.freed, *bit));
            if let Some(free) = free {
                return Some(nth(first, free));
            }
            address = segment::next(nth(first, BLOCK - 1))?;
        }
    }

    /// Returns the numbers of free and leased addresses of these segments, by family.
    pub(super) fn stock(&self, segments: &[IpNetwork], reserved: &Reserved) -> Vec<Stock> {
        let stock_of = |family: Family| {
            let mut stock = Stock { family, free: 0, leased: 0 };
            for segment in segments.iter().filter(|segment| Family::of(segment) == family) {
                let (first, last) = segment::pod_range(segment);
                let leased = self.count_leased(first, last);
                // An address may have been leased before it was reserved. Such an address is not
                // part of the capacity.
                let within = reserved.ranges().iter().filter(|range| range.first().is_ipv4() == first.is_ipv4());
                let reserved_leased: u64 =
                    within.map(|range| self.count_leased(range.first().max(first), range.last().min(last))).sum();
                let taken = leased.saturating_sub(reserved_leased);
                stock.free = stock.free.saturating_add(reserved.capacity(segment).saturating_sub(taken));
                stock.leased += leased;
            }
            stock
        };
        segment::families(segments).into_iter().map(stock_of).collect()
    }

    /// Returns the next address of a family to lease. It is from the first segment with an address
    /// that was never used or has cooled down. If no segment has such an address, the address that
    /// was freed longest ago is next. `longest_ago` returns the address that was freed longest ago,
    /// among those that a predicate accepts.
    pub(super) fn next_address<E>(
        &self,
        segments: &[IpNetwork],
        reserved: &Reserved,
        family: Family,
        now: u64,
        longest_ago: impl Fn(&dyn Fn(IpAddr) -> bool) -> Result<Option<FreedAddress>, E>,
    ) -> Result<Option<PodAddress>, E> {
        let mut waiting: Option<(u64, PodAddress)> = None;
        for segment in segments.iter().filter(|segment| Family::of(segment) == family) {
            if let Some(address) = self.first_unused(segment, reserved) {
                return Ok(Some(PodAddress { address, segment: *segment }));
            }
            let for_pods =
                |address: IpAddr| segment::holds_pod(segment, address) && reserved.range_of(address).is_none();
            let Some(freed) = longest_ago(&for_pods)? else { continue };
            let assigned = PodAddress { address: freed.address, segment: *segment };
            if now.saturating_sub(freed.at) >= COOL_DOWN_SECONDS {
                return Ok(Some(assigned));
            }
            if waiting.is_none_or(|(order, _)| freed.order < order) {
                waiting = Some((freed.order, assigned));
            }
        }
        Ok(waiting.map(|(_, assigned)| assigned))
    }

    /// Returns the first address of a segment that was never used and is not reserved.
    fn first_unused(&self, segment: &IpNetwork, reserved: &Reserved) -> Option<IpAddr> {
        let (mut address, last) = segment::pod_range(segment);
        while address <= last {
            // The whole range is skipped, since it may have too many addresses to check each one.
            if let Some(range) = reserved.range_of(address) {
                address = segment::next(range.last())?;
                continue;
            }
            match self.next_unused(address)? {
                unused if unused == address => return Some(address),
                unused => address = unused,
            }
        }
        None
    }
}

/// Returns the first address of the block that contains `address`, and the bit of `address` in the
/// block.
fn place(address: IpAddr) -> (IpAddr, usize) {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, bit] = address.octets();
            ([a, b, c, 0].into(), bit.into())
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (IpAddr::V6((bits & !0xff).into()), (bits & 0xff) as usize)
        }
    }
}

/// Returns the address for a bit of the block that begins with `first`.
fn nth(first: IpAddr, bit: usize) -> IpAddr {
    match first {
        IpAddr::V4(first) => IpAddr::V4((first.to_bits() | bit as u32).into()),
        IpAddr::V6(first) => IpAddr::V6((first.to_bits() | bit as u128).into()),
    }
}

fn contains(bits: &Bits, bit: usize) -> bool {
    bits.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
}

fn set(bits: &mut Bits, bit: usize, value: bool) {
    if let Some(word) = bits.get_mut(bit / 64) {
        *word = *word & !(1 << (bit % 64)) | u64::from(value) << (bit % 64);
    }
}

/// Returns the bits of one word of a block that lie within a range of the block's bits.
fn between(word: usize, from: usize, to: usize) -> u64 {
    let lowest = word * 64;
    let below = |bit: usize| match bit.saturating_sub(lowest) {
        0 => 0,
        count if count >= 64 => u64::MAX,
        count => (1 << count) - 1,
    };
    below(to + 1) & !below(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn leased_addresses_are_counted_within_and_across_blocks() {
        let mut used = UsedAddresses::default();
        let first = 0x0a00_00f0_u32;
        (first..first + 600).for_each(|number| used.set_leased(IpAddr::V4(number.into())));
        used.set_leased(address("fd00::f0"));
        for (from, to) in [(0, 0), (0, 15), (3, 16), (16, 271), (17, 400), (0, 599), (70, 130), (100, 99)] {
            let at = |offset: u32| IpAddr::V4((first + offset).into());
            assert_eq!(used.count_leased(at(from), at(to)), u64::from((to + 1).saturating_sub(from)), "{from} to {to}");
        }
        assert_eq!(used.count_leased(address("10.0.0.0"), address("10.0.255.255")), 600);
        used.set_freed(address("10.0.0.255"));
        assert_eq!(used.count_leased(address("10.0.0.0"), address("10.0.255.255")), 599);
        assert!(used.is_freed(address("10.0.0.255")) && !used.is_leased(address("10.0.0.255")));
        assert_eq!(used.count_leased(address("::"), address("ffff::")), 1);
        assert_eq!(used.next_unused(address("10.0.0.240")), Some(address("10.0.3.72")));
        assert_eq!(used.next_unused(address("10.0.0.7")), Some(address("10.0.0.7")));
    }

    #[test]
    fn the_last_block_of_a_family_has_an_end() {
        let mut used = UsedAddresses::default();
        (0xffff_ff00..=u32::MAX).for_each(|number| used.set_leased(IpAddr::V4(number.into())));
        assert_eq!(used.next_unused(address("255.255.255.3")), None);
        assert_eq!(used.count_leased(address("255.255.255.1"), address("255.255.255.255")), 255);
    }
}
