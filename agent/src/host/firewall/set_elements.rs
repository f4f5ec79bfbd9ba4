//! Changes elements of the table's sets through nf_tables' netlink protocol. The program `nft`
//! reads all elements of a set before it changes one: with ten thousand peers that takes longer
//! than everything else that a view with one more peer causes.

use std::net::IpAddr;

use anyhow::Context as _;
use edge_xfrm::netlink::{Attributes, Netlink, RawMessage};
use ipnetwork::IpNetwork;
use netlink_packet_core::NLM_F_CREATE;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::contents::TABLE;
use super::sets::ElementChange;

/// Maximum number of networks in one transaction. Their elements take 80 bytes at most, which fits
/// into the smallest send buffer. More networks are left to `nft`.
pub(super) const MAX_NETWORKS: usize = 1024;
/// Maximum number of networks in one message, whose length fields have 16 bits.
const NETWORKS_AT_ONCE: usize = 256;

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`, `NFNL_SUBSYS_NFTABLES`
/// (`linux/netfilter/nfnetlink.h`).
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u8 = 10;
/// `NFPROTO_INET` (`linux/netfilter.h`).
const INET: u8 = 1;
/// `NFT_MSG_NEWSETELEM`, `NFT_MSG_DELSETELEM` (`linux/netfilter/nf_tables.h`, as the attributes
/// below).
const NEW_ELEMENTS: u8 = 12;
const DELETE_ELEMENTS: u8 = 14;
/// `NFTA_SET_ELEM_LIST_TABLE`, `NFTA_SET_ELEM_LIST_SET`, `NFTA_SET_ELEM_LIST_ELEMENTS`.
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
/// `NFTA_LIST_ELEM`, `NFTA_SET_ELEM_KEY`, `NFTA_DATA_VALUE`.
const ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;
/// `NFTA_SET_ELEM_FLAGS`, `NFT_SET_ELEM_INTERVAL_END`.
const ELEMENT_FLAGS: u16 = 3;
const INTERVAL_END: u32 = 1;

/// The socket to nf_tables, opened when it is first needed. It stays open, since opening and
/// closing it costs more than a transaction.
#[derive(Debug, Default)]
pub(in crate::host) struct SetElements(Option<Netlink>);

impl SetElements {
    /// Makes the changes in one transaction, in their order. If one of them is impossible, for
    /// example because another program has deleted an element, none is made.
    ///
    /// # Errors
    /// If the kernel refuses the transaction. The next one uses another socket, on which no late
    /// response can arrive.
    pub(super) fn apply(&mut self, changes: &[ElementChange]) -> anyhow::Result<()> {
        let mut netlink = match self.0.take() {
            Some(netlink) => netlink,
            None => Netlink::open(NETLINK_NETFILTER).context("a socket to nf_tables")?,
        };
        let messages = changes.iter().flat_map(messages).collect();
        let request = "change elements of the firewall's sets (NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM)";
        netlink.transaction(request, batch(BATCH_BEGIN), messages, Some(batch(BATCH_END)))?;
        self.0 = Some(netlink);
        Ok(())
    }
}

fn batch(kind: u16) -> RawMessage {
    RawMessage { kind, body: vec![0, 0, 0, SUBSYSTEM] }
}

fn messages(change: &ElementChange) -> impl Iterator<Item = (RawMessage, u16)> {
    let (operation, flags) = if change.added { (NEW_ELEMENTS, NLM_F_CREATE) } else { (DELETE_ELEMENTS, 0) };
    change.networks.chunks(NETWORKS_AT_ONCE).map(move |networks| {
        let mut attributes = Attributes::default();
        attributes.text(LIST_TABLE, TABLE);
        attributes.text(LIST_SET, &change.set);
        attributes.nest(LIST_ELEMENTS, |list| networks.iter().for_each(|network| add_interval(list, network)));
        let body = [&[INET, 0, 0, 0], attributes.octets()].concat();
        (RawMessage { kind: u16::from_be_bytes([SUBSYSTEM, operation]), body }, flags)
    })
}

/// Adds the two elements of an interval: its first address, and the address after its last one.
/// An interval that includes the family's last address has no end.
fn add_interval(list: &mut Attributes, network: &IpNetwork) {
    add_element(list, network.network(), 0);
    if let Some(end) = next_address(network.broadcast()) {
        add_element(list, end, INTERVAL_END);
    }
}

fn add_element(list: &mut Attributes, address: IpAddr, flags: u32) {
    list.nest(ELEMENT, |element| {
        if flags != 0 {
            element.number_be(ELEMENT_FLAGS, flags);
        }
        element.nest(ELEMENT_KEY, |key| match address {
            IpAddr::V4(address) => key.bytes(DATA_VALUE, &address.octets()),
            IpAddr::V6(address) => key.bytes(DATA_VALUE, &address.octets()),
        });
    });
}

fn next_address(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => IpAddr::from(address.to_bits().checked_add(1)?.to_be_bytes()),
        IpAddr::V6(address) => IpAddr::from(address.to_bits().checked_add(1)?.to_be_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use interop_tests::netns::{is_in_namespaces, is_root_or_skips, passes_in_namespaces};

    use super::super::contents::Firewall;
    use super::super::nft;
    use super::*;

    #[test]
    fn elements_that_are_changed_in_place_are_those_of_a_table_that_is_written_anew() {
        if is_root_or_skips() {
            passes_in_namespaces("host::firewall::set_elements::tests::changes_in_place");
        }
    }

    #[test]
    #[ignore = "runs in a namespace, started by the test before"]
    fn changes_in_place() {
        if !is_in_namespaces() {
            return;
        }
        let firewall = |remote: &[&str]| {
            let mut remote: Vec<IpNetwork> = remote.iter().map(|text| text.parse().unwrap()).collect();
            remote.sort();
            Firewall {
                pod_bridges: vec!["ecni0".into()],
                own: vec!["10.77.9.0/26".parse().unwrap()],
                ranges: vec!["10.77.0.0/16".parse().unwrap()],
                remote: remote.into(),
                ..Firewall::default()
            }
        };
        let mut applied = firewall(&["10.77.1.0/26", "10.77.1.64/26", "10.77.1.128/26", "fd77::100/120"]);
        let mut table = applied.apply().unwrap();
        let mut elements = SetElements::default();
        // Neighbours of what stays come and go, a network with inner ones, the ends of both
        // families, the whole family, and a set that becomes empty.
        for remote in [
            &["10.77.1.0/26", "10.77.1.128/26", "fd77::100/120"][..],
            &["10.77.1.0/26", "10.77.1.64/26", "10.77.1.128/26", "fd77::/120", "fd77::100/120", "fd77::200/120"],
            &["10.77.1.0/24", "10.77.1.64/26", "fd77::/112", "fd77::100/120"],
            &["10.77.1.64/26", "fd77::100/120"],
            &["10.77.1.64/26", "255.255.255.0/24", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120"],
            &["0.0.0.0/0", "10.77.1.64/26", "::/0"],
            &[],
            &["0.0.0.0/26", "::/120", "10.77.1.7/32"],
        ] {
            let next = firewall(remote);
            let transactions = next.update(&applied, &mut table).apply(&mut elements).unwrap();
            assert_eq!(transactions, 1, "{remote:?}");
            let found = nft::read().unwrap().unwrap();
            assert_eq!((&found.sets, &found.sets), (&table.sets, &next.sets()), "{remote:?}");
            assert_eq!(found.objects, table.objects, "the rules stay as they are");
            applied = next;
        }
        let peers = |count: u16| -> Vec<String> { (0..count).map(|at| format!("10.77.{at}.0/26")).collect() };
        let of = |texts: &[String]| firewall(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        // Another program has deleted an element that is to be deleted: the kernel refuses all, and
        // the caller writes the table anew.
        let few = of(&peers(3));
        few.update(&applied, &mut table).apply(&mut elements).unwrap();
        let gone =
            ElementChange { set: "remote4".into(), added: false, networks: vec!["10.77.1.0/26".parse().unwrap()] };
        elements.apply(std::slice::from_ref(&gone)).unwrap();
        assert!(elements.apply(&[ElementChange { added: true, ..gone.clone() }, gone.clone(), gone]).is_err());
        assert!(of(&peers(1)).update(&few, &mut table.clone()).apply(&mut elements).is_err());
        let found = nft::read().unwrap().unwrap();
        assert_eq!(found.sets["remote4"].len(), 2, "nothing of a refused transaction is done");
    }
}
