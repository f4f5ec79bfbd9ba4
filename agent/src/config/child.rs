//! `[[peer.child]]`: one of several CHILD_SAs with a static peer.

use edge_ike::ChildName;
use edge_ike::config::{ChildConfig, EspProposal, Mode, NextLayer};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};

use super::proposal;

/// Name of the child of a `[[peer]]` without `[[peer.child]]`, and of the only child of a peer from
/// the view.
pub const DEFAULT_CHILD: &str = "net";

/// Maximum number of `[[peer.child]]` tables for one peer.
pub(super) const MAX_CHILDREN: usize = 32;
/// Maximum number of simultaneous CHILD_SAs of a static peer, which may create one for each pair of
/// its networks. This is larger than [`MAX_CHILDREN`].
pub(super) const MAX_CHILD_SAS: usize = 64;

/// A table `[[peer.child]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChildSection {
    /// Name of the child in messages and `status`.
    pub name: String,
    /// Networks behind this node.
    pub local_subnets: Vec<IpNetwork>,
    /// Networks behind the peer.
    pub remote_subnets: Vec<IpNetwork>,
    /// ESP proposals, best first; the proposals of the `[[peer]]` if not set.
    #[serde(default, deserialize_with = "esp_proposals")]
    pub esp_proposals: Option<Vec<EspProposal>>,
    /// The IP protocol that the child carries; any if not set.
    #[serde(default, deserialize_with = "protocol")]
    pub protocol: u8,
    /// The port on this node's side that the child carries; any if not set.
    pub local_port: Option<u16>,
    /// The port on the peer's side that the child carries; any if not set.
    pub remote_port: Option<u16>,
    /// Tunnel or transport mode.
    #[serde(default)]
    pub mode: ChildMode,
}

/// The mode of a child.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChildMode {
    /// Whole packets, between networks.
    #[default]
    Tunnel,
    /// The payload of packets between this node and the peer.
    Transport,
}

impl From<ChildMode> for Mode {
    fn from(mode: ChildMode) -> Self {
        match mode {
            ChildMode::Tunnel => Self::Tunnel,
            ChildMode::Transport => Self::Transport,
        }
    }
}

fn esp_proposals<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<EspProposal>>, D::Error> {
    proposal::esp_list(from).map(Some)
}

/// The protocols whose ports the kernel's policies can match.
const WITH_PORTS: [(&str, u8); 4] = [("tcp", 6), ("udp", 17), ("dccp", 33), ("sctp", 132)];
/// Protocols without ports that have a name in the configuration.
const WITHOUT_PORTS: [(&str, u8); 3] = [("icmp", 1), ("gre", 47), ("icmpv6", 58)];

fn protocol<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "protocol is a name in quotes (tcp, udp, ...) or a number from 1 to 255")]
    enum NameOrNumber {
        Name(String),
        Number(u8),
    }
    match NameOrNumber::deserialize(from)? {
        NameOrNumber::Number(number) if number != 0 => Ok(number),
        NameOrNumber::Number(_) => {
            Err(serde::de::Error::custom("protocol is 0; leave it out if the child carries every protocol"))
        }
        NameOrNumber::Name(name) => protocol_named(&name).map_err(serde::de::Error::custom),
    }
}

/// Returns the number of a protocol.
pub(crate) fn protocol_named(name: &str) -> Result<u8, String> {
    let known = WITH_PORTS.iter().chain(&WITHOUT_PORTS).find(|(known, _)| *known == name);
    known.map(|(_, number)| *number).ok_or_else(|| {
        let names: Vec<&str> = WITH_PORTS.iter().chain(&WITHOUT_PORTS).map(|(name, _)| *name).collect();
        format!("protocol {name:?} is not known: write {} or its number", names.join(", "))
    })
}

/// Returns whether the kernel's policies can match the ports of a protocol.
pub(crate) fn has_ports(protocol: u8) -> bool {
    WITH_PORTS.iter().any(|(_, number)| *number == protocol)
}

impl ChildSection {
    pub(super) fn check(&self) -> Result<(), String> {
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || !self.name.chars().all(letter) {
            return Err("its name consists of letters, digits, '-', '_' and '.'".into());
        }
        if self.local_subnets.is_empty() || self.remote_subnets.is_empty() {
            return Err("local_subnets and remote_subnets need at least one network each".into());
        }
        if self.esp_proposals.as_ref().is_some_and(Vec::is_empty) {
            return Err(
                "an empty list of proposals never matches the peer's; leave it out for those of the peer".into()
            );
        }
        let ports = self.local_port.is_some() || self.remote_port.is_some();
        if ports && !has_ports(self.protocol) {
            let names: Vec<&str> = WITH_PORTS.iter().map(|(name, _)| *name).collect();
            return Err(format!("local_port and remote_port need protocol = {}", names.join(", ")));
        }
        self.check_mode()
    }

    fn check_mode(&self) -> Result<(), String> {
        let is_address = |network: &IpNetwork| network.prefix() == if network.is_ipv4() { 32 } else { 128 };
        match (self.mode, &self.local_subnets[..], &self.remote_subnets[..]) {
            (ChildMode::Tunnel, ..) => Ok(()),
            (ChildMode::Transport, [local], [remote])
                if is_address(local) && is_address(remote) && local.is_ipv4() == remote.is_ipv4() =>
            {
                Ok(())
            }
            _ => Err("mode = \"transport\" is for packets between this node and the peer themselves: local_subnets and remote_subnets need \
                      one address each, of the same family; use mode = \"tunnel\" for networks"
                .into()),
        }
    }

    /// Builds the configuration for `edge-ike`. `proposals` are the ESP proposals of the
    /// `[[peer]]`.
    pub(super) fn config(&self, proposals: &[EspProposal]) -> ChildConfig {
        let Self { protocol, local_port, remote_port, .. } = *self;
        ChildConfig {
            name: ChildName::new(&self.name),
            proposals: self.esp_proposals.clone().unwrap_or_else(|| proposals.to_vec()),
            local: self.local_subnets.clone(),
            remote: self.remote_subnets.clone(),
            next_layer: NextLayer { protocol, local_port, remote_port },
            mode: self.mode.into(),
        }
    }
}
