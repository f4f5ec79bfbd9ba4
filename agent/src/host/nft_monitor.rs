//! nftables' notifications: which tables changed, and by which program.

use std::io::ErrorKind;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use rustix::net::sockopt;

use super::firewall::{PODS_TABLE, TABLE};

/// `NFNLGRP_NFTABLES` (`linux/netfilter/nfnetlink.h`).
const NFTABLES_GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET` and `NFPROTO_BRIDGE` (`linux/netfilter.h`).
const INET: u8 = 1;
const BRIDGE: u8 = 7;
/// `NFT_MSG_NEWGEN` (`linux/netfilter/nf_tables.h`): ends a transaction.
const NEW_GENERATION: u16 = 15;
/// `NFTA_GEN_PROC_NAME`: who made it, 15 characters.
const PROCESS_NAME: u16 = 3;
/// The name of the table is the first attribute of tables, chains, rules, sets, elements, objects
/// and flowtables alike.
const TABLE_NAME: u16 = 1;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;
/// Bytes of notifications that wait to be read.
const BUFFER: usize = 4 << 20;
/// The plugin's name as the kernel knows it.
const PLUGIN: &str = "edge-cni";

/// What changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// The table `inet edge-cni`.
    pub(super) ours: bool,
    /// The table `bridge edge-cni`, by another program than the plugin whose it is.
    pub(super) bridge: bool,
    /// Another table.
    pub(super) others: bool,
    /// Transactions that changed the table `inet edge-cni`.
    pub(super) transactions: u32,
    /// Notifications were lost, so that the rest is a guess.
    pub(super) lost: bool,
}

impl Changes {
    /// Perhaps everything: notifications were lost.
    const ALL: Self = Self { ours: true, bridge: true, others: true, transactions: 0, lost: true };

    pub(super) fn add(&mut self, other: Self) {
        self.ours |= other.ours;
        self.bridge |= other.bridge;
        self.others |= other.others;
        self.transactions = self.transactions.saturating_add(other.transactions);
        self.lost |= other.lost;
    }
}

/// The socket, and what of a transaction is not complete yet.
pub(super) struct Ruleset {
    socket: TokioSocket,
    pending: Changes,
}

impl Ruleset {
    pub(super) fn open() -> std::io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        // kube-proxy may replace thousands of rules at once.
        let inner = socket.socket_ref();
        if sockopt::set_socket_recv_buffer_size_force(inner, BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(inner, BUFFER)?;
        }
        socket.socket_mut().add_membership(NFTABLES_GROUP)?;
        Ok(Self { socket, pending: Changes::default() })
    }

    /// Waits until something has changed.
    pub(super) async fn changed(&mut self) -> Changes {
        loop {
            let found = match self.socket.recv_from_full().await {
                Ok((datagram, _)) => parse(&datagram, &mut self.pending),
                Err(_) => self.overrun(),
            };
            if found != Changes::default() {
                return found;
            }
        }
    }

    /// What else has come in, without waiting.
    pub(super) fn drain(&mut self) -> Changes {
        let mut found = Changes::default();
        // Asked of the kernel itself: tokio may not have heard of what came a moment ago. Bounded:
        // while another program writes rules faster than they are read here, the rest waits for the
        // next turn.
        for _ in 0..100_000 {
            match self.socket.socket_ref().recv_from_full() {
                Ok((datagram, _)) => found.add(parse(&datagram, &mut self.pending)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => found.add(self.overrun()),
            }
        }
        found
    }

    fn overrun(&mut self) -> Changes {
        self.pending = Changes::default();
        Changes::ALL
    }
}

/// The transactions that end in this datagram. What has no end yet stays in `pending`.
fn parse(mut datagram: &[u8], pending: &mut Changes) -> Changes {
    let mut complete = Changes::default();
    while let Some((length, message_type)) = header(datagram) {
        let Some(message) = datagram.get(16..length) else { break };
        if message_type >> 8 == SUBSYSTEM {
            let family = message.first().copied().unwrap_or(0);
            let mut attributes = Attributes(message.get(4..).unwrap_or_default());
            if message_type & 0xff == NEW_GENERATION {
                let by = attributes.find(|(kind, _)| *kind == PROCESS_NAME).map(|(_, name)| text(name));
                let mut changes = std::mem::take(pending);
                changes.bridge &= by != Some(PLUGIN);
                changes.transactions = u32::from(changes.ours);
                complete.add(changes);
            } else {
                let table = attributes.find(|(kind, _)| *kind == TABLE_NAME).map(|(_, name)| text(name));
                match (family, table) {
                    (INET, Some(TABLE)) => pending.ours = true,
                    (BRIDGE, Some(TABLE)) => pending.bridge = true,
                    // The plugin makes it only where ours does not stand.
                    (INET, Some(PODS_TABLE)) => {}
                    _ => pending.others = true,
                }
            }
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    complete
}

/// Length and type of the first message (`struct nlmsghdr`).
fn header(datagram: &[u8]) -> Option<(usize, u16)> {
    let length = usize::try_from(u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?)).ok()?;
    let message_type = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    (length >= 16).then_some((length, message_type))
}

/// A string of the kernel's, which ends with a zero.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default().trim_end_matches('\0')
}

/// Type and content of each attribute.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let content = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + content.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let body = attributes.concat();
        let mut bytes = u32::try_from(20 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend((SUBSYSTEM << 8 | kind).to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(body);
        bytes
    }

    /// Deletes a rule of this table.
    fn deletion(family: u8, table: &str) -> Vec<u8> {
        message(8, family, &[attribute(TABLE_NAME, format!("{table}\0").as_bytes()), attribute(2, b"chain\0")])
    }

    fn end(by: &str) -> Vec<u8> {
        message(
            NEW_GENERATION,
            0,
            &[attribute(1, &[0, 0, 0, 9]), attribute(2, &[0, 0, 1, 0]), attribute(3, format!("{by}\0").as_bytes())],
        )
    }

    fn read(datagrams: &[Vec<u8>]) -> Changes {
        let mut pending = Changes::default();
        let mut found = Changes::default();
        datagrams.iter().for_each(|datagram| found.add(parse(datagram, &mut pending)));
        found
    }

    #[test]
    fn each_change_is_told_by_its_table() {
        let nothing = Changes::default();
        assert_eq!(
            read(&[[deletion(INET, TABLE), end("nft")].concat()]),
            Changes { ours: true, transactions: 1, ..nothing }
        );
        assert_eq!(read(&[deletion(BRIDGE, TABLE), end("nft")]), Changes { bridge: true, ..nothing });
        assert_eq!(read(&[deletion(2, "filter"), end("iptables")]), Changes { others: true, ..nothing });
        assert_eq!(read(&[deletion(2, TABLE), end("nft")]), Changes { others: true, ..nothing });
    }

    #[test]
    fn the_plugins_own_work_on_its_table_is_none_of_ours() {
        assert_eq!(read(&[deletion(BRIDGE, TABLE), end("edge-cni")]), Changes::default());
        let others = [deletion(BRIDGE, TABLE), end("edge-cni"), deletion(BRIDGE, TABLE), end("nft")];
        assert_eq!(read(&others), Changes { bridge: true, ..Changes::default() });
    }

    #[test]
    fn the_table_that_ours_replaces_says_nothing() {
        let replaced = [deletion(INET, PODS_TABLE), deletion(INET, TABLE), end("nft")].concat();
        assert_eq!(read(&[replaced]), Changes { ours: true, transactions: 1, ..Changes::default() });
        assert_eq!(read(&[deletion(INET, PODS_TABLE), end("edge-cni")]), Changes::default());
    }

    #[test]
    fn transactions_of_our_table_are_counted() {
        let twice =
            [deletion(INET, TABLE), deletion(INET, TABLE), end("nft"), deletion(INET, TABLE), end("nft"), end("nft")];
        assert_eq!(read(&twice).transactions, 2);
    }

    #[test]
    fn nothing_is_told_before_the_transaction_ends() {
        assert_eq!(read(&[deletion(INET, TABLE)]), Changes::default());
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = [deletion(INET, TABLE), end("nft")].concat();
        for cut in 0..whole.len() {
            parse(&whole[..cut], &mut Changes::default());
            let mut broken = whole.clone();
            broken[cut] ^= 0xff;
            parse(&broken, &mut Changes::default());
        }
        parse(&[0; 64], &mut Changes::default());
    }
}
