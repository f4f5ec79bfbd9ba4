//! Expressions and statements in nft's JSON format (libnftables-json(5)), from which the rules are
//! built.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

/// An address family in nft's syntax.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Family {
    pub(super) ipv4: bool,
    /// `ip` or `ip6`.
    pub(super) protocol: &'static str,
    /// Suffix of the names of this family's sets.
    pub(super) suffix: &'static str,
}

pub(super) const FAMILIES: [Family; 2] =
    [Family { ipv4: true, protocol: "ip", suffix: "4" }, Family { ipv4: false, protocol: "ip6", suffix: "6" }];

impl Family {
    pub(super) fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.ipv4
    }

    pub(super) fn field(self, field: &str) -> Value {
        json!({"payload": {"protocol": self.protocol, "field": field}})
    }

    /// Builds a match such as `ip saddr @own4`.
    pub(super) fn within(self, field: &str, set: &str) -> Value {
        is("==", self.field(field), json!(format!("@{set}{}", self.suffix)))
    }

    pub(super) fn outside(self, field: &str, set: &str) -> Value {
        is("!=", self.field(field), json!(format!("@{set}{}", self.suffix)))
    }

    /// Matches any packet of this family.
    pub(super) fn any(self) -> Value {
        meta("==", "nfproto", json!(if self.ipv4 { "ipv4" } else { "ipv6" }))
    }

    /// Matches an ICMP (RFC 792) or ICMPv6 (RFC 4443) error, for example an error about this node's
    /// ESP packets.
    pub(super) fn icmp_error(self) -> Value {
        let (protocol, types) = if self.ipv4 {
            ("icmp", vec!["destination-unreachable", "time-exceeded", "parameter-problem"])
        } else {
            ("icmpv6", vec!["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"])
        };
        is("==", json!({"payload": {"protocol": protocol, "field": "type"}}), json!({ "set": types }))
    }

    /// Matches a packet whose destination before any redirection is in the set.
    pub(super) fn sent_to(self, set: &str) -> Value {
        let sent_to = json!({"ct": {"key": format!("{} daddr", self.protocol), "dir": "original"}});
        is("==", sent_to, json!(format!("@{set}{}", self.suffix)))
    }

    /// Matches sources outside of the cluster that neither a configuration key nor this node's role
    /// allows to call Services.
    pub(super) fn no_exception(self) -> [Value; 3] {
        ["fronted", "lan-to-tunnels", "lan-to-pods"].map(|set| self.outside("saddr", set))
    }

    /// Translates the source to itself, so that later chains do not translate it.
    pub(super) fn keep(self) -> Value {
        json!({"snat": {"family": self.protocol, "addr": self.field("saddr")}})
    }
}

pub(super) fn is(op: &str, left: Value, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

pub(super) fn meta(op: &str, key: &str, right: Value) -> Value {
    is(op, json!({"meta": {"key": key}}), right)
}

pub(super) fn ct(key: &str, right: Value) -> Value {
    is("in", json!({"ct": {"key": key}}), right)
}

/// Matches a packet whose destination was translated, as for a published port or a Service.
pub(super) fn redirected() -> Value {
    ct("status", json!("dnat"))
}

/// Matches a packet that was decapsulated from ESP, and therefore was accepted by a policy.
pub(super) fn decapsulated() -> Value {
    meta("==", "ipsec", json!(true))
}

/// Matches any packet except the first of a TCP connection.
pub(super) fn no_syn() -> Value {
    let flags = json!({"payload": {"protocol": "tcp", "field": "flags"}});
    is("!=", json!({"&": [flags, ["syn", "ack"]]}), json!("syn"))
}

pub(super) fn accept() -> Value {
    json!({"accept": null})
}

pub(super) fn dropped(counter: &str) -> [Value; 2] {
    [json!({"counter": counter}), json!({"drop": null})]
}

pub(super) fn goto(target: &str) -> Value {
    json!({"goto": {"target": target}})
}

/// Builds a network. The prefix length must be valid for the address.
pub(super) fn constant_network(address: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(address, prefix).unwrap_or_else(|_| IpNetwork::from(address))
}

pub(super) fn prefix(network: &IpNetwork) -> Value {
    json!({"prefix": {"addr": network.network().to_string(), "len": network.prefix()}})
}
