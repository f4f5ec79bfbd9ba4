//! The expressions of rules (`linux/netfilter/nf_tables.h`). They load a part of a packet into a
//! register, compare it, count, and give a verdict.

use edge_xfrm::netlink::Attributes;

/// `NFT_REG_1`, the first register that comparisons and lookups read.
const FIRST: u32 = 1;

/// One rule.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) chain: &'static str,
    pub(crate) expressions: Vec<Expression>,
    /// A comment that `nft list` shows with the rule.
    pub(crate) comment: Option<&'static str>,
}

/// An expression. Registers have the kernel's numbers: `NFT_REG_1` and `NFT_REG_2` have 16 bytes,
/// and the registers from `NFT_REG32_00` on have 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Loads metadata of the packet (`enum nft_meta_keys`).
    Meta { key: Meta, register: u32 },
    /// Loads bytes of the packet.
    Payload { base: Base, offset: u32, length: u32, register: u32 },
    /// Continues the rule if the comparison of `NFT_REG_1` with the value is true (`enum
    /// nft_cmp_ops`).
    Compare { operation: Comparison, value: Vec<u8> },
    /// Continues the rule if the value of the registers starting with `NFT_REG_1` is an element of
    /// the set or, with `inverted`, if it is not.
    Lookup { set: &'static str, inverted: bool },
    /// Loads data of connection tracking (`enum nft_ct_keys`) into `NFT_REG_1`.
    Conntrack(ConntrackKey),
    /// Loads the destination of a connection's first packet, before any translation, into
    /// `NFT_REG_1`. Ends the rule for connections of the other family.
    OriginalDestination { ipv4: bool },
    /// Loads a flag into `NFT_REG_1` that states whether the packet's route uses IPsec
    /// (`NFT_RT_XFRM`).
    RouteIntoIpsec,
    /// Loads the type of the packet's destination (`RTN_LOCAL` and others, `linux/rtnetlink.h`)
    /// into `NFT_REG_1`, as seen from the link on which the packet arrived.
    DestinationTypeOnInput,
    /// Keeps only the bits of `NFT_REG_1` that are set in the mask.
    Mask(Vec<u8>),
    /// Counts packets and bytes.
    Counter,
    /// Gives a verdict.
    Verdict(Verdict),
}

/// `enum nft_meta_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    Protocol = 1,
    InputName = 6,
    OutputName = 7,
    NetfilterProtocol = 15,
    Layer4Protocol = 16,
    PacketType = 19,
    /// Whether the packet came out of ESP.
    SecurityPath = 25,
    /// Kind of the interface, such as `bridge`. Hardware has no kind, so that the rule ends there.
    InputKind = 26,
    OutputKind = 27,
}

/// `enum nft_ct_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConntrackKey {
    State = 0,
    Direction = 1,
    Status = 2,
}

/// `enum nft_payload_bases`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// `enum nft_cmp_ops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// The verdict on a packet: `NF_DROP`, `NF_ACCEPT` (`linux/netfilter.h`), `NFT_GOTO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    Goto(&'static str),
}

impl Expression {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Conntrack(_) | Self::OriginalDestination { .. } => "ct",
            Self::RouteIntoIpsec => "rt",
            Self::DestinationTypeOnInput => "fib",
            Self::Mask(_) => "bitwise",
            Self::Counter => "counter",
            Self::Verdict(_) => "immediate",
        }
    }

    /// Writes the attributes of `enum nft_meta_attributes`, `nft_payload_attributes` and similar
    /// enums, in the order in which nft(8) sends them.
    pub(crate) fn write_data(&self, data: &mut Attributes) {
        match self {
            Self::Meta { key, register } => {
                data.number_be(2, *key as u32);
                data.number_be(1, *register);
            }
            Self::Payload { base, offset, length, register } => {
                data.number_be(1, *register);
                data.number_be(2, *base as u32);
                data.number_be(3, *offset);
                data.number_be(4, *length);
            }
            Self::Compare { operation, value } => {
                data.number_be(1, FIRST);
                data.number_be(2, *operation as u32);
                data.nest(3, |compared| compared.bytes(1, value));
            }
            Self::Lookup { set, inverted } => {
                data.number_be(2, FIRST);
                data.text(1, set);
                // NFT_LOOKUP_F_INV.
                if *inverted {
                    data.number_be(5, 1);
                }
            }
            Self::Conntrack(key) => {
                data.number_be(2, *key as u32);
                data.number_be(1, FIRST);
            }
            Self::OriginalDestination { ipv4 } => {
                // NFT_CT_DST_IP or _IP6; NFTA_CT_DIRECTION with IP_CT_DIR_ORIGINAL.
                data.number_be(2, if *ipv4 { 20 } else { 22 });
                data.number_be(1, FIRST);
                data.bytes(3, &[0]);
            }
            Self::RouteIntoIpsec => {
                data.number_be(2, 4);
                data.number_be(1, FIRST);
            }
            Self::DestinationTypeOnInput => {
                // NFTA_FIB_DREG, _RESULT with NFT_FIB_RESULT_ADDRTYPE, _FLAGS with NFTA_FIB_F_DADDR
                // and _IIF.
                data.number_be(1, FIRST);
                data.number_be(2, 3);
                data.number_be(3, 2 | 8);
            }
            Self::Mask(mask) => {
                // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR.
                data.number_be(1, FIRST);
                data.number_be(2, FIRST);
                data.number_be(3, mask.len() as u32);
                data.nest(4, |value| value.bytes(1, mask));
                data.nest(5, |value| value.bytes(1, &vec![0; mask.len()]));
            }
            Self::Counter => {}
            Self::Verdict(verdict) => {
                let (code, chain): (i32, _) = match verdict {
                    Verdict::Drop => (0, None),
                    Verdict::Accept => (1, None),
                    Verdict::Goto(chain) => (-4, Some(chain)),
                };
                // NFT_REG_VERDICT; NFTA_DATA_VERDICT with NFTA_VERDICT_CODE and _CHAIN.
                data.number_be(1, 0);
                data.nest(2, |value| {
                    value.nest(2, |verdict| {
                        verdict.bytes(1, &code.to_be_bytes());
                        if let Some(chain) = chain {
                            verdict.text(2, chain);
                        }
                    });
                });
            }
        }
    }
}
