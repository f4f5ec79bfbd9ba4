//! The part of nf_tables that the plugin uses, through nfnetlink. The program `nft` is not
//! necessary.
//!
//! - [`expression`]: the expressions of rules.
//! - [`wire`]: the messages to nf_tables.

pub(crate) mod expression;
pub(crate) mod wire;

use std::fmt;

use edge_xfrm::netlink::{Error, Netlink, RawMessage};

/// `NFPROTO_INET`, `NFPROTO_BRIDGE` (`linux/netfilter.h`).
pub(crate) const INET: u8 = 1;
pub(crate) const BRIDGE: u8 = 7;

/// The type numbers of nft(8) (`enum datatypes`, include/datatype.h), with which it determines how
/// to show a set.
pub(crate) const INTEGER: u32 = 4;
pub(crate) const IPV4: u32 = 7;
pub(crate) const IPV6: u32 = 8;
pub(crate) const MAC: u32 = 9;
pub(crate) const INTERFACE: u32 = 41;

/// `IFNAMSIZ` (`linux/if.h`): the length of an interface's name in a key.
pub(crate) const IFNAMSIZ: usize = 16;

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) family: u8,
    pub(crate) name: &'static str,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == BRIDGE { "bridge" } else { "inet" };
        write!(f, "`table {family} {}`", self.name)
    }
}

/// A set without elements.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// The set's ID within the transaction that creates it.
    pub(crate) id: u32,
    pub(crate) key_type: u32,
    /// Length of a key, bytes.
    pub(crate) key_length: u32,
    /// Whether the set contains intervals of keys ([`Table::add_intervals`]).
    pub(crate) intervals: bool,
    pub(crate) user_data: Vec<u8>,
}

/// The hook of a base chain.
#[derive(Debug)]
pub(crate) struct BaseChain {
    /// `enum nf_inet_hooks`, whose numbers are the same for bridges (`NF_BR_PRE_ROUTING` and the
    /// following).
    pub(crate) hook: u32,
    pub(crate) priority: i32,
}

/// Returns an interface's name as a key, padded with at least one zero octet.
pub(crate) fn interface_key(name: &str) -> [u8; IFNAMSIZ] {
    let mut key = [0; IFNAMSIZ];
    key.iter_mut().take(IFNAMSIZ - 1).zip(name.bytes()).for_each(|(place, octet)| *place = octet);
    key
}

/// Returns the interface name at the beginning of a key.
pub(crate) fn interface_of(key: &[u8]) -> String {
    let name = key.iter().take(IFNAMSIZ).copied().take_while(|octet| *octet != 0).collect();
    String::from_utf8(name).unwrap_or_default()
}

/// Reads the keys in a set. `None` if the table or the set does not exist.
pub(crate) fn elements(netlink: &mut Netlink, table: &Table, set: &str) -> Result<Option<Vec<Vec<u8>>>, Error> {
    match netlink.dump::<_, RawMessage>("NFT_MSG_GETSETELEM", table.get_elements(set)) {
        Ok(messages) => Ok(Some(messages.iter().flat_map(wire::keys_of).collect())),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
