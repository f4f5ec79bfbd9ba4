//! Ranges of reqids and policy indexes, which distinguish our SAs and policies from those of other
//! programs.

use std::fmt;

/// First reqid of our range. strongSwan counts up from 1 and libreswan from 16384, so neither
/// reaches this range.
pub const FIRST_REQID: u32 = 0xEC00_0000;
/// Last reqid of our range.
pub const LAST_REQID: u32 = 0xECFF_FFFF;
/// Maximum number of tunnels with a reqid. The reqids above those of tunnels are [`Reqid::BLOCK`]
/// and [`Reqid::FROM_HUBS`].
pub const TUNNELS: u32 = 0x00F0_0000;

/// First policy index of our range. An allow policy has no template and therefore no reqid that
/// marks it as ours. An index from this range marks it instead: the kernel uses the caller's index
/// if it is free (`xfrm_gen_index`), and counts its own indexes up from 8.
pub const FIRST_INDEX: u32 = 0xEC00_0000;
/// Last policy index of our range.
pub const LAST_INDEX: u32 = 0xECFF_FFFF;

/// One of our request IDs. It links policies, by their templates, to SAs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reqid(u32);

impl Reqid {
    /// Reqid that marks block policies. No SA ever has it.
    pub const BLOCK: Reqid = Reqid(FIRST_REQID + TUNNELS);

    /// Reqid of the inbound SAs of all hubs, and of the policies for packets from hubs. Several
    /// hubs front the same networks, and the kernel keeps one policy for packets from these
    /// networks.
    pub const FROM_HUBS: Reqid = Reqid(FIRST_REQID + TUNNELS + 1);

    /// Returns the reqid of tunnel number `n`, or `None` if `n` is not below [`TUNNELS`]. A peer
    /// keeps its reqid as long as the peer exists, across rekeys and changes of address.
    pub const fn tunnel(n: u32) -> Option<Reqid> {
        if n < TUNNELS { Some(Reqid(FIRST_REQID + n)) } else { None }
    }

    /// Checks a reqid that the kernel reported. Returns `None` if it belongs to another program.
    pub const fn ours(raw: u32) -> Option<Reqid> {
        if raw >= FIRST_REQID && raw <= LAST_REQID { Some(Reqid(raw)) } else { None }
    }

    /// Returns the number of the tunnel, or `None` if the reqid does not belong to a single tunnel.
    pub const fn tunnel_number(self) -> Option<u32> {
        let n = self.0 - FIRST_REQID;
        if n < TUNNELS { Some(n) } else { None }
    }

    /// Returns the value that the kernel uses.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Reqid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Reqid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Returns whether a policy index is in our range.
pub(crate) const fn index_is_ours(index: u32) -> bool {
    index >= FIRST_INDEX && index <= LAST_INDEX
}
