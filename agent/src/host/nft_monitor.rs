//! Receives notifications from nftables, and determines which tables changed and which program
//! changed them.

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
/// `NFT_MSG_NEWTABLE`, `NFT_MSG_DELTABLE` (`linux/netfilter/nf_tables.h`).
const NEW_TABLE: u16 = 0;
const DELETED_TABLE: u16 = 2;
/// `NFT_MSG_NEWGEN` (`linux/netfilter/nf_tables.h`), the last message of a transaction.
const NEW_GENERATION: u16 = 15;
/// `NFTA_GEN_PROC_NAME`: name of the process that sent the transaction, at most 15 characters.
const PROCESS_NAME: u16 = 3;
/// The attribute with the table's name, which is the first attribute of tables, chains, rules,
/// sets, elements, objects and flowtables.
const TABLE_NAME: u16 = 1;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;
/// Size of the socket's receive buffer, bytes.
const BUFFER: usize = 4 << 20;
/// The plugin's process name.
const PLUGIN: &str = "edge-cni";

/// The tables that changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RulesetChanges {
    /// The table `inet edge-cni` changed.
    pub(super) ours: bool,
    /// The table `bridge edge-cni` was changed by a program other than the plugin.
    pub(super) bridge: bool,
    /// The table `inet edge-cni-pods` was created.
    pub(super) pods_table: bool,
    /// Another table changed.
    pub(super) others: bool,
    /// Number of transactions that changed the table `inet edge-cni`.
    pub(super) transactions: u32,
    /// Notifications were lost, so any table may have changed.
    pub(super) lost: bool,
}

impl RulesetChanges {
    /// The value after notifications were lost. The check that `ours` causes also looks for `inet
    /// edge-cni-pods`.
    const ALL: Self = Self { ours: true, bridge: true, pods_table: false, others: true, transactions: 0, lost: true };

    pub(super) fn add(&mut self, other: Self) {
        self.ours |= other.ours;
        self.bridge |= other.bridge;
        self.pods_table |= other.pods_table;
        self.others |= other.others;
        self.transactions = self.transactions.saturating_add(other.transactions);
        self.lost |= other.lost;
    }
}

/// Maximum size of a notification, bytes. The kernel puts many messages into one datagram, but no
/// more than fit into a few pages.
const MAX_DATAGRAM: usize = 64 << 10;

/// The netlink socket, and the changes of the transaction that is not complete yet.
pub(super) struct NftMonitor {
    socket: TokioSocket,
    /// The datagram that was received last. Its room is allocated once; only the pages that
    /// datagrams have reached take memory.
    datagram: Vec<u8>,
    pending: RulesetChanges,
}

impl NftMonitor {
    pub(super) fn open() -> std::io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        // The buffer is large because kube-proxy may replace thousands of rules at once.
        let inner = socket.socket_ref();
        if sockopt::set_socket_recv_buffer_size_force(inner, BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(inner, BUFFER)?;
        }
        socket.socket_mut().add_membership(NFTABLES_GROUP)?;
        Ok(Self { socket, datagram: Vec::with_capacity(MAX_DATAGRAM), pending: RulesetChanges::default() })
    }

    /// Waits for the next change.
    pub(super) async fn changed(&mut self) -> RulesetChanges {
        loop {
            self.datagram.clear();
            let received = self.socket.recv(&mut self.datagram).await;
            let found = self.received(received.map(|()| self.datagram.len()));
            if found != RulesetChanges::default() {
                return found;
            }
        }
    }

    /// Returns the changes that have arrived, without waiting.
    pub(super) fn drain(&mut self) -> RulesetChanges {
        let mut found = RulesetChanges::default();
        // This reads from the socket directly, since tokio may not have been notified yet that it
        // is readable. The limit ends the loop if another program writes rules faster than this
        // loop reads the notifications.
        for _ in 0..100_000 {
            self.datagram.clear();
            match self.socket.socket_ref().recv(&mut self.datagram, 0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                received => found.add(self.received(received)),
            }
        }
        found
    }

    /// Reads the received datagram. One that fills the whole buffer may have been cut off.
    fn received(&mut self, length: std::io::Result<usize>) -> RulesetChanges {
        match length {
            Ok(length) if length < MAX_DATAGRAM => parse(&self.datagram, &mut self.pending),
            _ => self.overrun(),
        }
    }

    fn overrun(&mut self) -> RulesetChanges {
        self.pending = RulesetChanges::default();
        RulesetChanges::ALL
    }
}

/// Returns the changes of the transactions that end in this datagram. Changes of an incomplete
/// transaction stay in `pending`.
fn parse(mut datagram: &[u8], pending: &mut RulesetChanges) -> RulesetChanges {
    let mut complete = RulesetChanges::default();
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
                    // The plugin creates this table only if the agent's table is missing, but the
                    // agent's table may appear just after the plugin has checked that. The
                    // transaction that creates the agent's table also deletes this table, at its
                    // end.
                    (INET, Some(PODS_TABLE)) => match message_type & 0xff {
                        NEW_TABLE => pending.pods_table = true,
                        DELETED_TABLE => pending.pods_table = false,
                        _ => {}
                    },
                    _ => pending.others = true,
                }
            }
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    complete
}

/// Returns the length and the type of the first message (`struct nlmsghdr`).
fn header(datagram: &[u8]) -> Option<(usize, u16)> {
    let length = usize::try_from(u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?)).ok()?;
    let message_type = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    (length >= 16).then_some((length, message_type))
}

/// Parses a zero-terminated string.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default().trim_end_matches('\0')
}

/// Iterates over the types and contents of netlink attributes.
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

    /// Builds the notification that a rule of this table was deleted.
    fn deletion(family: u8, table: &str) -> Vec<u8> {
        message(8, family, &[attribute(TABLE_NAME, format!("{table}\0").as_bytes()), attribute(2, b"chain\0")])
    }

    /// Builds the notification that the table itself was created or deleted.
    fn table(kind: u16, name: &str) -> Vec<u8> {
        message(kind, INET, &[attribute(TABLE_NAME, format!("{name}\0").as_bytes())])
    }

    fn end(by: &str) -> Vec<u8> {
        message(
            NEW_GENERATION,
            0,
            &[attribute(1, &[0, 0, 0, 9]), attribute(2, &[0, 0, 1, 0]), attribute(3, format!("{by}\0").as_bytes())],
        )
    }

    fn read(datagrams: &[Vec<u8>]) -> RulesetChanges {
        let mut pending = RulesetChanges::default();
        let mut found = RulesetChanges::default();
        datagrams.iter().for_each(|datagram| found.add(parse(datagram, &mut pending)));
        found
    }

    #[test]
    fn each_change_is_attributed_to_its_table() {
        let nothing = RulesetChanges::default();
        assert_eq!(
            read(&[[deletion(INET, TABLE), end("nft")].concat()]),
            RulesetChanges { ours: true, transactions: 1, ..nothing }
        );
        assert_eq!(read(&[deletion(BRIDGE, TABLE), end("nft")]), RulesetChanges { bridge: true, ..nothing });
        assert_eq!(read(&[deletion(2, "filter"), end("iptables")]), RulesetChanges { others: true, ..nothing });
        assert_eq!(read(&[deletion(2, TABLE), end("nft")]), RulesetChanges { others: true, ..nothing });
    }

    #[test]
    fn the_plugins_own_changes_of_its_table_are_ignored() {
        assert_eq!(read(&[deletion(BRIDGE, TABLE), end("edge-cni")]), RulesetChanges::default());
        let others = [deletion(BRIDGE, TABLE), end("edge-cni"), deletion(BRIDGE, TABLE), end("nft")];
        assert_eq!(read(&others), RulesetChanges { bridge: true, ..RulesetChanges::default() });
    }

    #[test]
    fn changes_of_the_table_that_ours_replaces_are_ignored() {
        let replaced = [deletion(INET, PODS_TABLE), deletion(INET, TABLE), end("nft")].concat();
        assert_eq!(read(&[replaced]), RulesetChanges { ours: true, transactions: 1, ..RulesetChanges::default() });
        assert_eq!(read(&[deletion(INET, PODS_TABLE), end("edge-cni")]), RulesetChanges::default());
        let made = [table(NEW_TABLE, PODS_TABLE), table(DELETED_TABLE, PODS_TABLE), deletion(INET, TABLE), end("nft")];
        assert_eq!(read(&made), RulesetChanges { ours: true, transactions: 1, ..RulesetChanges::default() });
    }

    #[test]
    fn a_new_table_of_the_plugin_beside_ours_is_noticed() {
        let made = [table(NEW_TABLE, PODS_TABLE), deletion(INET, PODS_TABLE), end("edge-cni")].concat();
        assert_eq!(read(&[made]), RulesetChanges { pods_table: true, ..RulesetChanges::default() });
        let other = [table(NEW_TABLE, "other"), end("nft")];
        assert_eq!(read(&other), RulesetChanges { others: true, ..RulesetChanges::default() });
    }

    #[test]
    fn transactions_of_our_table_are_counted() {
        let twice =
            [deletion(INET, TABLE), deletion(INET, TABLE), end("nft"), deletion(INET, TABLE), end("nft"), end("nft")];
        assert_eq!(read(&twice).transactions, 2);
    }

    #[test]
    fn nothing_is_reported_before_the_transaction_ends() {
        assert_eq!(read(&[deletion(INET, TABLE)]), RulesetChanges::default());
    }

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let whole = [deletion(INET, TABLE), end("nft")].concat();
        for cut in 0..whole.len() {
            parse(&whole[..cut], &mut RulesetChanges::default());
            let mut broken = whole.clone();
            broken[cut] ^= 0xff;
            parse(&broken, &mut RulesetChanges::default());
        }
        parse(&[0; 64], &mut RulesetChanges::default());
    }
}
