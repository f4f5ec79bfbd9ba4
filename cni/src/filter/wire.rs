//! Messages to nf_tables through nfnetlink: `linux/netfilter/nfnetlink.h`,
//! `linux/netfilter/nf_tables.h`. Numbers are in network byte order there, attributes' own headers
//! in the machine's.

use std::convert::Infallible;

use netlink_packet_core::{
    NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};

use super::expression::{Expression, Rule};
use super::table::{self, BaseChain, Set};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_BRIDGE` (`linux/netfilter.h`).
const FAMILY: u8 = 7;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NLA_F_NESTED`, `NLA_TYPE_MASK` (`linux/netlink.h`).
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;

/// `enum nf_tables_msg_types`.
mod verb {
    pub(super) const NEWTABLE: u16 = 0;
    pub(super) const DELTABLE: u16 = 2;
    pub(super) const NEWCHAIN: u16 = 3;
    pub(super) const NEWRULE: u16 = 6;
    pub(super) const NEWSET: u16 = 9;
    pub(super) const NEWSETELEM: u16 = 12;
    pub(super) const GETSETELEM: u16 = 13;
    pub(super) const DELSETELEM: u16 = 14;
}

/// Elements in one message: an attribute's length has 16 bits, and an element takes at most 64
/// bytes.
pub(super) const ELEMENTS: usize = 512;

/// A message to or from nf_tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u16,
    /// `struct nfgenmsg` and attributes.
    pub(super) body: Vec<u8>,
}

impl Message {
    fn new(kind: u16, attributes: Attributes) -> Self {
        // nfgen_family, NFNETLINK_V0, res_id.
        let body = [&[FAMILY, 0, 0, 0], attributes.0.as_slice()].concat();
        Self { kind: SUBSYSTEM << 8 | kind, body }
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

/// The message that begins a transaction: for nf_tables.
pub(super) fn begin() -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message { kind: BATCH_BEGIN, body: vec![0, 0, high, low] }
}

/// The message that ends a transaction.
pub(super) fn end() -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message { kind: BATCH_END, body: vec![0, 0, high, low] }
}

/// Makes the table; refused where there is one of its name.
pub(super) fn new_table() -> (Message, u16) {
    // NFTA_TABLE_NAME, NFTA_TABLE_FLAGS.
    let mut attributes = Attributes::default();
    attributes.text(1, table::NAME);
    attributes.number(2, 0);
    (Message::new(verb::NEWTABLE, attributes), NLM_F_CREATE | NLM_F_EXCL)
}

/// Deletes the table with all that is in it.
pub(super) fn delete_table() -> (Message, u16) {
    let mut attributes = Attributes::default();
    attributes.text(1, table::NAME);
    (Message::new(verb::DELTABLE, attributes), 0)
}

/// Makes a chain of the table; `base` where packets enter it by a hook.
pub(super) fn new_chain(name: &str, base: Option<&BaseChain>) -> (Message, u16) {
    // NFTA_CHAIN_TABLE, _NAME, _TYPE, _POLICY, _HOOK with NFTA_HOOK_HOOKNUM and _PRIORITY.
    let mut attributes = Attributes::default();
    attributes.text(1, table::NAME);
    attributes.text(3, name);
    if let Some(base) = base {
        attributes.text(7, "filter");
        attributes.number(5, 1);
        attributes.nest(4, |hook| {
            hook.number(1, base.hook);
            hook.bytes(2, &base.priority.to_be_bytes());
        });
    }
    (Message::new(verb::NEWCHAIN, attributes), NLM_F_CREATE)
}

/// Makes a set of the table.
pub(super) fn new_set(set: Set) -> (Message, u16) {
    // NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _ID, _USERDATA.
    let mut attributes = Attributes::default();
    attributes.text(1, table::NAME);
    attributes.text(2, set.name());
    attributes.number(3, 0);
    attributes.number(4, set.key_type());
    attributes.number(5, set.key_length());
    attributes.number(10, set as u32 + 1);
    attributes.bytes(13, &set.user_data());
    (Message::new(verb::NEWSET, attributes), NLM_F_CREATE)
}

/// Appends a rule to its chain.
pub(super) fn new_rule(rule: &Rule) -> (Message, u16) {
    // NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS of NFTA_LIST_ELEM, _USERDATA.
    let mut attributes = Attributes::default();
    attributes.text(1, table::NAME);
    attributes.text(2, rule.chain);
    attributes
        .nest(4, |list| rule.expressions.iter().for_each(|expression| list.nest(1, |item| expression.write(item))));
    if let Some(comment) = rule.comment {
        // libnftnl/udata.h: NFTNL_UDATA_RULE_COMMENT, length, text with its zero.
        let mut data = vec![0, comment.len() as u8 + 1];
        data.extend(comment.as_bytes());
        data.push(0);
        attributes.bytes(7, &data);
    }
    (Message::new(verb::NEWRULE, attributes), NLM_F_CREATE | NLM_F_APPEND)
}

/// Adds elements to a set; those that are there already stay. At most [`ELEMENTS`].
pub(super) fn add_elements(set: Set, keys: &[Vec<u8>]) -> (Message, u16) {
    (Message::new(verb::NEWSETELEM, element_list(set, keys)), NLM_F_CREATE)
}

/// Takes elements from a set; one that is not there is an error. At most [`ELEMENTS`].
pub(super) fn delete_elements(set: Set, keys: &[Vec<u8>]) -> (Message, u16) {
    (Message::new(verb::DELSETELEM, element_list(set, keys)), 0)
}

/// Asks for the elements of a set.
pub(super) fn get_elements(set: Set) -> Message {
    Message::new(verb::GETSETELEM, element_list(set, &[]))
}

fn element_list(set: Set, keys: &[Vec<u8>]) -> Attributes {
    // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS of NFTA_LIST_ELEM with NFTA_SET_ELEM_KEY with
    // NFTA_DATA_VALUE.
    let mut attributes = Attributes::default();
    attributes.text(1, table::NAME);
    attributes.text(2, set.name());
    if !keys.is_empty() {
        attributes.nest(3, |list| {
            for key in keys {
                list.nest(1, |element| element.nest(1, |data| data.bytes(1, key)));
            }
        });
    }
    attributes
}

/// The keys of the elements in an answer to [`get_elements`].
pub(super) fn keys_of(message: &Message) -> Vec<Vec<u8>> {
    let attributes = message.body.get(4..).unwrap_or_default();
    let child = |bytes, kind| attributes_of(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value);
    let Some(list) = child(attributes, 3) else { return Vec::new() };
    attributes_of(list).filter_map(|(_, element)| child(child(element, 1)?, 1)).map(<[u8]>::to_vec).collect()
}

/// Kind and value of each attribute; ends where they make no sense.
fn attributes_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, value))
    })
}

/// Attributes (`struct nlattr`), one after another.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = 4 + value.len() as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }
}

impl Expression {
    /// `enum nft_expr_attributes`: name and data of one expression.
    fn write(&self, item: &mut Attributes) {
        item.text(1, self.name());
        item.nest(2, |data| self.write_data(data));
    }
}
