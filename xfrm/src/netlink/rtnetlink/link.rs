//! Links: `struct ifinfomsg` and `linux/if_link.h`.

use std::fmt;

use netlink_packet_core::DecodeError;

use super::values::{each_attribute, number, read, text};
use crate::netlink::error::Result;
use crate::netlink::message::{Attributes, RawMessage};

/// Length of the fixed part, bytes (`struct ifinfomsg`).
const FIXED: usize = 16;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;

/// `IFF_UP`, `IFF_LOOPBACK`, `IFF_NOARP` (`linux/if.h`).
const UP: u32 = 1 << 0;
const LOOPBACK: u32 = 1 << 3;
const NOARP: u32 = 1 << 7;

/// Attribute types in requests (`IFLA_...`).
pub mod attribute {
    /// `IFLA_ADDRESS`: the MAC address.
    pub const ADDRESS: u16 = 1;
    /// `IFLA_IFNAME`, text.
    pub const NAME: u16 = 3;
    /// `IFLA_MTU`, bytes.
    pub const MTU: u16 = 4;
    /// `IFLA_MASTER`: index of the bridge that the link is a port of.
    pub const CONTROLLER: u16 = 10;
    /// `IFLA_IFALIAS`, text.
    pub const ALIAS: u16 = 20;
    /// `IFLA_NET_NS_FD`: an open network namespace.
    pub const NETNS_FD: u16 = 28;
    /// `IFLA_TARGET_NETNSID`: the namespace that the request is about.
    pub const TARGET_NETNS_ID: u16 = 46;
}

const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_FDB_MAX_LEARNED: u16 = 49;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_GROUP_FWD_MASK: u16 = 31;
const IFLA_BRPORT_ISOLATED: u16 = 33;
/// `RTEXT_FILTER_SKIP_STATS` (`linux/rtnetlink.h`).
const SKIP_STATS: u32 = 1 << 3;

/// A request about a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkRequest {
    index: u32,
    flags: u32,
    change_mask: u32,
    /// The attributes to set, or by which to find the link. Types: [`attribute`].
    pub attributes: Attributes,
}

impl LinkRequest {
    /// Makes a request about the link with this index.
    #[must_use]
    pub fn of(index: u32) -> Self {
        Self { index, ..Self::default() }
    }

    /// Makes a request about the link with this name, or about a new link that gets this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut request = Self::default();
        request.attributes.text(attribute::NAME, name);
        request
    }

    /// Sets the link up or down.
    pub fn up(&mut self, up: bool) {
        self.flag(UP, up);
    }

    /// Turns ARP off for the link.
    pub fn without_arp(&mut self) {
        self.flag(NOARP, true);
    }

    fn flag(&mut self, flag: u32, set: bool) {
        self.change_mask |= flag;
        self.flags = if set { self.flags | flag } else { self.flags & !flag };
    }

    /// Sets the kind of the link.
    pub fn kind(&mut self, kind: &str) {
        self.attributes.nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, kind));
    }

    /// Makes the link a bridge that learns at most `max_learned` addresses.
    pub fn bridge(&mut self, max_learned: u32) {
        self.attributes.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "bridge");
            info.nest(IFLA_INFO_DATA, |data| data.number(IFLA_BR_FDB_MAX_LEARNED, max_learned));
        });
    }

    /// Makes the link one end of a veth pair, with `peer` as the other end.
    pub fn veth(&mut self, peer: &Self) {
        self.attributes.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| data.bytes(VETH_INFO_PEER, &peer.body()));
        });
    }

    /// Sets these settings of the link, which is a bridge port. Its state stays unchanged.
    pub fn bridge_port(&mut self, port: &BridgePort) {
        self.attributes.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_SLAVE_KIND, "bridge");
            info.nest(IFLA_INFO_SLAVE_DATA, |data| {
                data.bytes(IFLA_BRPORT_MODE, &[port.hairpin.into()]);
                data.bytes(IFLA_BRPORT_ISOLATED, &[port.isolated.into()]);
                data.bytes(IFLA_BRPORT_GROUP_FWD_MASK, &port.group_fwd_mask.to_ne_bytes());
            });
        });
    }

    /// Returns the `RTM_NEWLINK` request.
    #[must_use]
    pub fn create(&self) -> RawMessage {
        RawMessage { kind: RTM_NEWLINK, body: self.body() }
    }

    /// Returns the `RTM_SETLINK` request.
    #[must_use]
    pub fn set(&self) -> RawMessage {
        RawMessage { kind: RTM_SETLINK, body: self.body() }
    }

    /// Returns the `RTM_DELLINK` request.
    #[must_use]
    pub fn delete(&self) -> RawMessage {
        RawMessage { kind: RTM_DELLINK, body: self.body() }
    }

    /// Returns the `RTM_GETLINK` request, without statistics, for one link or, as a dump, for all
    /// links.
    #[must_use]
    pub fn get(mut self) -> RawMessage {
        self.attributes.number(IFLA_EXT_MASK, SKIP_STATS);
        RawMessage { kind: RTM_GETLINK, body: self.body() }
    }

    fn body(&self) -> Vec<u8> {
        // Family, padding, hardware type.
        let mut body = vec![0; 4];
        for field in [self.index, self.flags, self.change_mask] {
            body.extend(field.to_ne_bytes());
        }
        body.extend(self.attributes.octets());
        body
    }
}

/// A link, as `RTM_NEWLINK` reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkMessage {
    /// Index of the link.
    pub index: u32,
    /// Whether the link is up.
    pub up: bool,
    /// Whether the link is a loopback device.
    pub loopback: bool,
    /// Name of the link.
    pub name: String,
    /// Alias of the link. Empty if it has none.
    pub alias: String,
    /// MAC address of the link. Empty if it has none.
    pub address: Vec<u8>,
    /// MTU of the link, bytes.
    pub mtu: u32,
    /// Index of the underlying link, or of the other end of a veth pair.
    pub link: Option<u32>,
    /// ID of the network namespace of `link`, if it is another namespace.
    pub link_netns_id: Option<u32>,
    /// Index of the bridge that the link is a port of.
    pub controller: Option<u32>,
    /// The kernel's name for the kind of link. Empty for hardware.
    pub kind: String,
    /// The bridge port settings, if the link is a bridge port.
    pub port: Option<BridgePort>,
}

/// Settings of a bridge port. A setting that the kernel does not report counts as off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// The spanning tree state.
    pub state: Option<BridgePortState>,
    /// Whether the bridge sends frames back through the port on which they arrived.
    pub hairpin: bool,
    /// Whether the bridge forwards nothing between this port and other isolated ports.
    pub isolated: bool,
    /// The group addresses 01:80:c2:00:00:0X that are forwarded like other addresses, one bit for
    /// each X.
    pub group_fwd_mask: u16,
}

/// State of a bridge port (`BR_STATE_...`, `linux/if_bridge.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BridgePortState {
    /// `BR_STATE_DISABLED`.
    Disabled,
    /// `BR_STATE_LISTENING`.
    Listening,
    /// `BR_STATE_LEARNING`.
    Learning,
    /// `BR_STATE_FORWARDING`.
    Forwarding,
    /// `BR_STATE_BLOCKING`.
    Blocking,
    /// A state that this release does not know.
    Other(u8),
}

impl From<u8> for BridgePortState {
    fn from(state: u8) -> Self {
        match state {
            0 => Self::Disabled,
            1 => Self::Listening,
            2 => Self::Learning,
            3 => Self::Forwarding,
            4 => Self::Blocking,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for BridgePortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("disabled"),
            Self::Listening => f.write_str("listening"),
            Self::Learning => f.write_str("learning"),
            Self::Forwarding => f.write_str("forwarding"),
            Self::Blocking => f.write_str("blocking"),
            Self::Other(state) => write!(f, "{state}"),
        }
    }
}

impl LinkMessage {
    /// Parses the kernel's response to `request`.
    ///
    /// # Errors
    /// Returns an error if the message is not an `RTM_NEWLINK`, or is malformed.
    pub fn read(request: &'static str, message: &RawMessage) -> Result<Self> {
        read(request, message, RTM_NEWLINK, Self::read_body)
    }

    fn read_body(body: &[u8]) -> Result<Self, DecodeError> {
        let mut link = Self::default();
        if let Some([_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, _, _, _, _]) = body.first_chunk::<FIXED>() {
            link.index = u32::from_ne_bytes([*i0, *i1, *i2, *i3]);
            let flags = u32::from_ne_bytes([*f0, *f1, *f2, *f3]);
            link.up = flags & UP != 0;
            link.loopback = flags & LOOPBACK != 0;
        }
        each_attribute(body, FIXED, |kind, value| {
            match kind {
                attribute::NAME => link.name = text(value)?,
                attribute::ALIAS => link.alias = text(value)?,
                attribute::ADDRESS => link.address = value.to_vec(),
                attribute::MTU => link.mtu = number(value)?,
                attribute::CONTROLLER => link.controller = Some(number(value)?),
                IFLA_LINK => link.link = Some(number(value)?),
                IFLA_LINK_NETNSID => link.link_netns_id = Some(number(value)?),
                IFLA_LINKINFO => link.read_info(value)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(link)
    }

    fn read_info(&mut self, value: &[u8]) -> Result<(), DecodeError> {
        let mut on_bridge = false;
        each_attribute(value, 0, |kind, value| {
            match kind {
                IFLA_INFO_KIND => self.kind = text(value)?,
                IFLA_INFO_SLAVE_KIND => on_bridge = text(value)? == "bridge",
                IFLA_INFO_SLAVE_DATA if on_bridge => self.port = Some(BridgePort::read(value)?),
                _ => {}
            }
            Ok(())
        })
    }
}

impl BridgePort {
    fn read(value: &[u8]) -> Result<Self, DecodeError> {
        let mut port = Self::default();
        each_attribute(value, 0, |kind, value| {
            match (kind, value) {
                (IFLA_BRPORT_STATE, [state]) => port.state = Some((*state).into()),
                (IFLA_BRPORT_MODE, [hairpin]) => port.hairpin = *hairpin != 0,
                (IFLA_BRPORT_ISOLATED, [isolated]) => port.isolated = *isolated != 0,
                (IFLA_BRPORT_GROUP_FWD_MASK, [first, second]) => {
                    port.group_fwd_mask = u16::from_ne_bytes([*first, *second]);
                }
                (IFLA_BRPORT_STATE | IFLA_BRPORT_MODE | IFLA_BRPORT_ISOLATED | IFLA_BRPORT_GROUP_FWD_MASK, _) => {
                    return Err("a setting of a bridge's port has another length".into());
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(port)
    }
}
