//! The kernel's links, addresses, routes and settings.
//!
//! - [`netns`]: network namespaces, compared by inode.
//! - [`link`]: links, addresses and routes of one network namespace, through one netlink socket.
//! - [`bridge`]: the pods' bridge, which has a gateway address in each segment.
//! - [`veth`]: the pair of links that connects a pod with the bridge.
//! - [`uplink`]: the links that lead outside of this host.
//! - [`sysctl`]: settings below `/proc/sys/net`.

pub(crate) mod bridge;
pub(crate) mod link;
pub(crate) mod netns;
pub(crate) mod sysctl;
pub(crate) mod uplink;
pub(crate) mod veth;

/// Computes a 64-bit FNV-1a hash, from which link names and MAC addresses are generated.
fn fnv1a(parts: &[&[u8]]) -> u64 {
    // A zero octet ends each part, so that ("ab", "c") and ("a", "bc") differ.
    parts
        .iter()
        .flat_map(|part| part.iter().chain(&[0]))
        .fold(0xcbf2_9ce4_8422_2325, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::fnv1a;

    #[test]
    fn where_one_part_ends_matters() {
        assert_ne!(fnv1a(&[b"ab", b"c"]), fnv1a(&[b"a", b"bc"]));
    }
}
