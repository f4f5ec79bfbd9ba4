//! Messages to nf_tables through nfnetlink: `linux/netfilter/nfnetlink.h`,
//! `linux/netfilter/nf_tables.h`. Numbers are in network byte order, but attribute headers are in
//! host byte order.

use edge_xfrm::netlink::{Attributes, RawMessage};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};

use super::expression::{Expression, Rule};
use super::{BaseChain, Set, Table};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NLA_TYPE_MASK` (`linux/netlink.h`).
const TYPE_MASK: u16 = 0x3fff;

/// `enum nf_tables_msg_types`.
mod verb {
    pub(super) const NEWTABLE: u16 = 0;
    pub(super) const GETTABLE: u16 = 1;
    pub(super) const DELTABLE: u16 = 2;
    pub(super) const NEWCHAIN: u16 = 3;
    pub(super) const NEWRULE: u16 = 6;
    pub(super) const NEWSET: u16 = 9;
    pub(super) const NEWSETELEM: u16 = 12;
    pub(super) const GETSETELEM: u16 = 13;
    pub(super) const DELSETELEM: u16 = 14;
    pub(super) const GETGEN: u16 = 16;
}

/// Maximum number of elements in one message. An attribute's length has 16 bits, and an element
/// takes at most 64 bytes.
pub(crate) const ELEMENTS: usize = 512;

/// Builds the message that begins an nf_tables transaction.
pub(crate) fn begin() -> RawMessage {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    RawMessage { kind: BATCH_BEGIN, body: vec![0, 0, high, low] }
}

/// Does the same as [`begin`], but the kernel refuses the transaction with `ERESTART` if the
/// ruleset no longer has this generation.
pub(crate) fn begin_at(generation: u32) -> RawMessage {
    let RawMessage { kind, mut body } = begin();
    // NFNL_BATCH_GENID.
    let mut attributes = Attributes::default();
    attributes.number_be(1, generation);
    body.extend(attributes.octets());
    RawMessage { kind, body }
}

/// Builds the request for the generation of the ruleset.
pub(crate) fn get_generation() -> RawMessage {
    RawMessage { kind: SUBSYSTEM << 8 | verb::GETGEN, body: vec![0; 4] }
}

/// Returns the generation in the answer to [`get_generation`]. `None` for any other message.
pub(crate) fn generation_in(message: &RawMessage) -> Option<u32> {
    // NFTA_GEN_ID.
    let attributes = attributes_of(message.body.get(4..)?);
    let (_, value) = attributes.into_iter().find(|(kind, _)| *kind == 1)?;
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// Builds the message that ends a transaction.
pub(crate) fn end() -> RawMessage {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    RawMessage { kind: BATCH_END, body: vec![0, 0, high, low] }
}

impl Table {
    /// Builds the message that creates the table. The kernel refuses it if a table with that name
    /// already exists.
    pub(crate) fn create(&self) -> (RawMessage, u16) {
        // NFTA_TABLE_FLAGS.
        let message = self.message(verb::NEWTABLE, |attributes| attributes.number_be(2, 0));
        (message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Builds the messages that create the table, and before that delete an existing table with
    /// that name.
    pub(crate) fn delete_and_create(&self) -> [(RawMessage, u16); 3] {
        // The table is created first, so that the deletion always finds one.
        let (make, _) = self.create();
        [(make, NLM_F_CREATE), self.delete(), self.create()]
    }

    /// Builds the message that deletes the table with its content.
    pub(crate) fn delete(&self) -> (RawMessage, u16) {
        (self.message(verb::DELTABLE, |_| {}), 0)
    }

    /// Builds the request for the table.
    pub(crate) fn get(&self) -> RawMessage {
        self.message(verb::GETTABLE, |_| {})
    }

    /// Builds the message that creates a chain of the table. It is a base chain if `base` is given.
    pub(crate) fn new_chain(&self, name: &str, base: Option<&BaseChain>) -> (RawMessage, u16) {
        // NFTA_CHAIN_NAME, _TYPE, _POLICY, _HOOK with NFTA_HOOK_HOOKNUM and _PRIORITY.
        let message = self.message(verb::NEWCHAIN, |attributes| {
            attributes.text(3, name);
            if let Some(base) = base {
                attributes.text(7, "filter");
                attributes.number_be(5, 1);
                attributes.nest(4, |hook| {
                    hook.number_be(1, base.hook);
                    hook.bytes(2, &base.priority.to_be_bytes());
                });
            }
        });
        (message, NLM_F_CREATE)
    }

    /// Builds the message that creates a set of the table.
    pub(crate) fn new_set(&self, set: &Set) -> (RawMessage, u16) {
        // NFTA_SET_NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _ID, _USERDATA.
        let message = self.message(verb::NEWSET, |attributes| {
            attributes.text(2, set.name);
            // NFT_SET_INTERVAL.
            attributes.number_be(3, if set.intervals { 4 } else { 0 });
            attributes.number_be(4, set.key_type);
            attributes.number_be(5, set.key_length);
            attributes.number_be(10, set.id);
            attributes.bytes(13, &set.user_data);
        });
        (message, NLM_F_CREATE)
    }

    /// Builds the message that appends a rule to its chain.
    pub(crate) fn new_rule(&self, rule: &Rule) -> (RawMessage, u16) {
        // NFTA_RULE_CHAIN, _EXPRESSIONS of NFTA_LIST_ELEM, _USERDATA.
        let message = self.message(verb::NEWRULE, |attributes| {
            attributes.text(2, rule.chain);
            let expressions = |list: &mut Attributes| {
                rule.expressions.iter().for_each(|expression| list.nest(1, |item| expression.write(item)));
            };
            attributes.nest(4, expressions);
            if let Some(comment) = rule.comment {
                // libnftnl/udata.h: NFTNL_UDATA_RULE_COMMENT, length, text with its final zero.
                let mut data = vec![0, comment.len() as u8 + 1];
                data.extend(comment.as_bytes());
                data.push(0);
                attributes.bytes(7, &data);
            }
        });
        (message, NLM_F_CREATE | NLM_F_APPEND)
    }

    /// Builds the message that adds at most [`ELEMENTS`] elements to a set. Elements that are
    /// already in the set stay.
    pub(crate) fn add_elements(&self, set: &str, keys: &[Vec<u8>]) -> (RawMessage, u16) {
        (self.elements(verb::NEWSETELEM, set, keys), NLM_F_CREATE)
    }

    /// Builds the message that adds at most [`ELEMENTS`] / 2 intervals, which must not overlap, to
    /// a set of intervals. Each interval consists of its first key and the key after its last one.
    /// The latter is `None` if the last key is the greatest possible one.
    pub(crate) fn add_intervals(&self, set: &str, intervals: &[(Vec<u8>, Option<Vec<u8>>)]) -> (RawMessage, u16) {
        let message = self.message(verb::NEWSETELEM, |attributes| {
            attributes.text(2, set);
            attributes.nest(3, |list| {
                for (first, end) in intervals {
                    list.nest(1, |element| element.nest(1, |data| data.bytes(1, first)));
                    if let Some(end) = end {
                        list.nest(1, |element| {
                            // NFTA_SET_ELEM_FLAGS with NFT_SET_ELEM_INTERVAL_END.
                            element.nest(1, |data| data.bytes(1, end));
                            element.number_be(3, 1);
                        });
                    }
                }
            });
        });
        (message, NLM_F_CREATE)
    }

    /// Builds the message that removes at most [`ELEMENTS`] elements from a set. The kernel refuses
    /// it if one of them is missing.
    pub(crate) fn delete_elements(&self, set: &str, keys: &[Vec<u8>]) -> (RawMessage, u16) {
        (self.elements(verb::DELSETELEM, set, keys), 0)
    }

    /// Builds the request for the elements of a set.
    pub(crate) fn get_elements(&self, set: &str) -> RawMessage {
        self.elements(verb::GETSETELEM, set, &[])
    }

    fn elements(&self, verb: u16, set: &str, keys: &[Vec<u8>]) -> RawMessage {
        // NFTA_SET_ELEM_LIST_SET, _ELEMENTS of NFTA_LIST_ELEM with NFTA_SET_ELEM_KEY with
        // NFTA_DATA_VALUE.
        self.message(verb, |attributes| {
            attributes.text(2, set);
            if !keys.is_empty() {
                attributes.nest(3, |list| {
                    for key in keys {
                        list.nest(1, |element| element.nest(1, |data| data.bytes(1, key)));
                    }
                });
            }
        })
    }

    /// Builds a message. The first attribute of every message is the name of the table.
    fn message(&self, verb: u16, fill: impl FnOnce(&mut Attributes)) -> RawMessage {
        let mut attributes = Attributes::default();
        attributes.text(1, self.name);
        fill(&mut attributes);
        // nfgen_family, NFNETLINK_V0, res_id.
        let body = [&[self.family, 0, 0, 0], attributes.octets()].concat();
        RawMessage { kind: SUBSYSTEM << 8 | verb, body }
    }
}

/// Returns the keys of the elements in an answer to [`Table::get_elements`].
pub(crate) fn keys_of(message: &RawMessage) -> Vec<Vec<u8>> {
    let attributes = message.body.get(4..).unwrap_or_default();
    let child = |bytes, kind| attributes_of(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value);
    let Some(list) = child(attributes, 3) else { return Vec::new() };
    attributes_of(list).filter_map(|(_, element)| child(child(element, 1)?, 1)).map(<[u8]>::to_vec).collect()
}

/// Returns the kind and value of each attribute, up to the first malformed one.
fn attributes_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, value))
    })
}

impl Expression {
    /// Writes the name and data of one expression (`enum nft_expr_attributes`).
    fn write(&self, item: &mut Attributes) {
        item.text(1, self.name());
        item.nest(2, |data| self.write_data(data));
    }
}
