//! `[[peer.child]]`: one of several CHILD_SAs with a static peer.

use edge_ike::ChildName;
use edge_ike::config::{ChildConfig, EspProposal, Mode, NextLayer};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};

use super::peer::PeerSection;
use super::{Encap, proposal};

/// Name of the child of a `[[peer]]` without `[[peer.child]]`, and of the only one of a node.
pub const DEFAULT_CHILD: &str = "net";

/// Most `[[peer.child]]` of a peer.
const MAX_CHILDREN: usize = 32;
/// Most CHILD_SAs of a static peer that stand side by side: it may make one for each pair of its
/// networks. More than [`MAX_CHILDREN`].
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
    /// ESP proposals, best first; those of the peer unless set.
    #[serde(default, deserialize_with = "esp_proposals")]
    pub esp_proposals: Option<Vec<EspProposal>>,
    /// The IP protocol that it carries; any unless set.
    #[serde(default, deserialize_with = "protocol")]
    pub protocol: u8,
    /// The port of this node's hosts that it carries; any unless set.
    pub local_port: Option<u16>,
    /// The port of the peer's hosts that it carries; any unless set.
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
    /// What packets between this node and the peer itself carry.
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

/// The protocols with ports that the kernel's policies know.
const WITH_PORTS: [(&str, u8); 4] = [("tcp", 6), ("udp", 17), ("dccp", 33), ("sctp", 132)];
/// Protocols without ports that have a name here.
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

/// The number of a protocol.
pub(crate) fn protocol_named(name: &str) -> Result<u8, String> {
    let known = WITH_PORTS.iter().chain(&WITHOUT_PORTS).find(|(known, _)| *known == name);
    known.map(|(_, number)| *number).ok_or_else(|| {
        let names: Vec<&str> = WITH_PORTS.iter().chain(&WITHOUT_PORTS).map(|(name, _)| *name).collect();
        format!("protocol {name:?} is not known: write {} or its number", names.join(", "))
    })
}

/// Whether a protocol has ports that the kernel's policies know.
pub(crate) fn has_ports(protocol: u8) -> bool {
    WITH_PORTS.iter().any(|(_, number)| *number == protocol)
}

impl ChildSection {
    fn check(&self) -> Result<(), String> {
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

    fn config(&self, peer: &PeerSection) -> ChildConfig {
        let Self { protocol, local_port, remote_port, .. } = *self;
        ChildConfig {
            name: ChildName::new(&self.name),
            proposals: self.esp_proposals.clone().unwrap_or_else(|| peer.esp_proposals.clone()),
            local: self.local_subnets.clone(),
            remote: self.remote_subnets.clone(),
            next_layer: NextLayer { protocol, local_port, remote_port },
            mode: self.mode.into(),
        }
    }
}

impl PeerSection {
    pub(super) fn check_children(&self) -> Result<(), String> {
        let own = !self.local_subnets.is_empty() || !self.remote_subnets.is_empty();
        if self.children.is_empty() && (self.local_subnets.is_empty() || self.remote_subnets.is_empty()) {
            return Err(
                "local_subnets and remote_subnets need at least one network each, or [[peer.child]] has them".into()
            );
        }
        if !self.children.is_empty() && own {
            return Err("local_subnets and remote_subnets stand either in [[peer]] or in its [[peer.child]]".into());
        }
        let transport = self.children.iter().find(|child| child.mode == ChildMode::Transport);
        if let Some(child) = transport.filter(|_| self.encap == Encap::Force) {
            return Err(format!(
                "[[peer.child]] {:?}: mode = \"transport\" does not work with encap = \"force\"; leave encap out",
                child.name
            ));
        }
        if self.children.len() > MAX_CHILDREN {
            return Err(format!("it has {} [[peer.child]]; {MAX_CHILDREN} are the most", self.children.len()));
        }
        for (at, child) in self.children.iter().enumerate() {
            child.check().map_err(|problem| format!("[[peer.child]] {:?}: {problem}", child.name))?;
            if self.children.iter().take(at).any(|other| other.name == child.name) {
                return Err(format!("two [[peer.child]] are called {:?}", child.name));
            }
        }
        Ok(())
    }

    /// Networks behind this node, of all children.
    pub fn all_local_subnets(&self) -> impl Iterator<Item = &IpNetwork> {
        self.local_subnets.iter().chain(self.children.iter().flat_map(|child| &child.local_subnets))
    }

    /// Networks behind the peer, of all children.
    pub fn all_remote_subnets(&self) -> impl Iterator<Item = &IpNetwork> {
        self.remote_subnets.iter().chain(self.children.iter().flat_map(|child| &child.remote_subnets))
    }

    /// The children of a peer: the first one, then the others.
    pub(super) fn child_configs(&self) -> (ChildConfig, Vec<ChildConfig>) {
        let mut children = self.children.iter().map(|child| child.config(self));
        let only = || ChildConfig {
            name: ChildName::new(DEFAULT_CHILD),
            proposals: self.esp_proposals.clone(),
            local: self.local_subnets.clone(),
            remote: self.remote_subnets.clone(),
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        };
        (children.next().unwrap_or_else(only), children.collect())
    }
}
