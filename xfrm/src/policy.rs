//! Desired policies, policies in the kernel, and their comparison.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_xfrm as nl;

use crate::mode::Mode;
use crate::reqid::{Reqid, index_is_ours};
use crate::selector::Selector;
use crate::uapi;

/// The point at which the kernel applies a policy to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Packets to this host.
    In = nl::XFRM_POLICY_IN,
    /// Packets that leave this host, whether they originate on this host or are forwarded.
    Out = nl::XFRM_POLICY_OUT,
    /// Packets that this host forwards, at the time they arrive.
    Fwd = nl::XFRM_POLICY_FWD,
}

impl Direction {
    fn from_kernel(raw: u8) -> Option<Self> {
        match raw {
            nl::XFRM_POLICY_IN => Some(Direction::In),
            nl::XFRM_POLICY_OUT => Some(Direction::Out),
            nl::XFRM_POLICY_FWD => Some(Direction::Fwd),
            // 3 to 5 are per-socket policies, which a dump also contains.
            _ => None,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::In => "in",
            Direction::Out => "out",
            Direction::Fwd => "fwd",
        })
    }
}

/// Priorities. As in the kernel, the smallest number has the highest precedence.
pub mod priority {
    use crate::selector::Selector;

    /// The smallest number among the priorities of peers' policies; see [`peer`].
    pub const PEER: u32 = 10_000;
    /// Priority of the guard's allow policies for our own segments.
    pub const ALLOW: u32 = 20_000;
    /// Priority of policies for peers whose selector has a side of prefix length 0. They have lower
    /// precedence than the allow policies for our own segments, which they would otherwise
    /// override.
    pub const PEER_DEFAULT_ROUTE: u32 = 25_000;
    /// Priority of the guard's block policies. They have lower precedence than all our other
    /// policies.
    pub const BLOCK: u32 = 30_000;

    /// The difference in priority between policies for one protocol and policies for any protocol.
    const ONE_PROTOCOL: u32 = 1_000;

    /// Returns the priority of a peer's policy. A narrower selector has higher precedence. A policy
    /// for a single protocol has higher precedence than all policies for any protocol.
    pub fn peer(selector: &Selector) -> u32 {
        let bits = |network: ipnetwork::IpNetwork| u32::from(network.prefix());
        let width = if selector.is_ipv4() { 64 } else { 256 };
        let (source, destination) = (bits(selector.source()), bits(selector.destination()));
        let base = if source == 0 || destination == 0 { PEER_DEFAULT_ROUTE } else { PEER };
        let protocol = if selector.protocol() == 0 { 0 } else { ONE_PROTOCOL };
        base + width - source - destination - protocol
    }
}

/// Selects the SAs that protect the packets of a policy, by their reqid. It does not contain an
/// SPI, so that a rekey does not change policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Template {
    /// The reqid that links the policy to SAs.
    pub reqid: Reqid,
    /// Mode of the SAs.
    pub mode: Mode,
    /// Tunnel ends (source, destination) for `out`. `None` for `in` and `fwd`: the kernel then
    /// accepts any ends, so a change of the peer's address does not change these policies. `None`
    /// in transport mode: the ends are the addresses of the packet.
    pub outer: Option<(IpAddr, IpAddr)>,
}

/// The treatment of packets that match a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Packets are protected by SAs: outgoing packets become ESP, and incoming packets in clear are
    /// refused.
    Protect(Template),
    /// Packets are allowed in clear, or protected by SAs in transport mode. Packets that came
    /// through a tunnel are refused.
    Allow,
    /// Packets are dropped and counted as `XfrmInPolBlock` or `XfrmOutPolBlock`.
    Block,
}

/// A desired policy.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    /// The point at which the kernel applies the policy.
    pub direction: Direction,
    /// The packets that the policy matches.
    pub selector: Selector,
    /// The policy's priority; see [`priority`].
    pub priority: u32,
    /// The treatment of the packets.
    pub action: Action,
}

/// Identifies a policy. Among policies without mark and `if_id`, such as ours, the kernel keeps one
/// for each key.
pub type PolicyKey = (Direction, Selector);

impl Policy {
    /// Makes a policy that sends traffic through the tunnel of `reqid` between the nodes `local`
    /// and `remote`.
    pub fn protect_out(selector: Selector, reqid: Reqid, local: IpAddr, remote: IpAddr) -> Self {
        let template = Template { reqid, mode: Mode::Tunnel, outer: Some((local, remote)) };
        Self {
            direction: Direction::Out,
            selector,
            priority: priority::peer(&selector),
            action: Action::Protect(template),
        }
    }

    /// Makes a policy that accepts traffic from the tunnel of `reqid`, to this host (`in`) or
    /// through it (`fwd`). `selector` describes the packets themselves: the source is at the peer.
    pub fn protect_in(direction: Direction, selector: Selector, reqid: Reqid) -> Self {
        let template = Template { reqid, mode: Mode::Tunnel, outer: None };
        Self { direction, selector, priority: priority::peer(&selector), action: Action::Protect(template) }
    }

    /// Makes a policy that protects packets between this host and a peer by the SAs of `reqid` in
    /// transport mode. `selector` describes the packets of this direction, between the addresses of
    /// the SAs.
    pub fn protect_transport(direction: Direction, selector: Selector, reqid: Reqid) -> Self {
        let template = Template { reqid, mode: Mode::Transport, outer: None };
        Self { direction, selector, priority: priority::peer(&selector), action: Action::Protect(template) }
    }

    /// Makes an allow policy of the guard.
    pub fn allow(direction: Direction, selector: Selector) -> Self {
        Self { direction, selector, priority: priority::ALLOW, action: Action::Allow }
    }

    /// Makes a block policy of the guard.
    pub fn block(direction: Direction, selector: Selector) -> Self {
        Self { direction, selector, priority: priority::BLOCK, action: Action::Block }
    }

    /// Returns the direction and selector, which identify a policy in the kernel.
    pub fn key(&self) -> PolicyKey {
        (self.direction, self.selector)
    }

    pub(crate) fn to_kernel(self, index: u32) -> nl::policy::ModifyMessage {
        let template = match self.action {
            Action::Allow => None,
            Action::Block => Some(BLOCK_TAG),
            Action::Protect(template) => Some(template),
        };
        nl::policy::ModifyMessage {
            user_policy_info: nl::UserPolicyInfo {
                selector: self.selector.to_kernel(),
                priority: self.priority,
                index,
                direction: self.direction as u8,
                action: if self.action == Action::Block { nl::XFRM_POLICY_BLOCK } else { nl::XFRM_POLICY_ALLOW },
                share: nl::XFRM_SHARE_ANY,
                ..nl::UserPolicyInfo::default()
            },
            nlas: template
                .map(|template| nl::XfrmAttrs::Template(vec![template_to_kernel(&template, &self.selector)]))
                .into_iter()
                .collect(),
        }
    }
}

/// The template of block policies. It has no SAs and only marks the policy as ours.
const BLOCK_TAG: Template = Template { reqid: Reqid::BLOCK, mode: Mode::Tunnel, outer: None };

fn template_to_kernel(template: &Template, selector: &Selector) -> nl::UserTemplate {
    let (source, destination) = template.outer.unwrap_or((selector.any_address(), selector.any_address()));
    nl::UserTemplate {
        id: nl::Id { daddr: nl::Address::from_ip(&destination), spi: 0, proto: nl::IPPROTO_ESP },
        family: uapi::family_of(destination),
        saddr: nl::Address::from_ip(&source),
        reqid: template.reqid.raw(),
        mode: template.mode.to_kernel(),
        share: nl::XFRM_SHARE_ANY,
        optional: 0,
        // Any algorithm. These bit masks do not include AEADs.
        aalgos: u32::MAX,
        ealgos: u32::MAX,
        calgos: u32::MAX,
    }
}

/// A template in the kernel. It may belong to any program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstalledTemplate {
    /// Tunnel source. The unspecified address matches any.
    pub source: IpAddr,
    /// Tunnel destination. The unspecified address matches any.
    pub destination: IpAddr,
    /// SPI, 0 for any.
    pub spi: u32,
    /// Reqid, 0 for any.
    pub reqid: u32,
    /// `XFRM_MODE_*`. Tunnel mode is 1.
    pub mode: u8,
    /// IP protocol. ESP is 50.
    pub protocol: u8,
    /// Whether unprotected packets are accepted as well.
    pub optional: bool,
    /// Whether any algorithm is accepted.
    pub any_algorithm: bool,
}

/// A policy in the kernel. It may belong to any program.
#[derive(Clone, PartialEq, Eq)]
pub struct InstalledPolicy {
    /// The point at which the kernel applies the policy.
    pub direction: Direction,
    /// The packets that the policy matches.
    pub selector: Selector,
    /// Priority. Smaller numbers have higher precedence.
    pub priority: u32,
    /// The kernel's number for the policy.
    pub index: u32,
    /// Whether the policy drops the packets that it matches.
    pub blocks: bool,
    /// The SAs that packets need. Our block policies have one template as a mark. Our allow
    /// policies have none.
    pub templates: Vec<InstalledTemplate>,
    /// Mark and mask. 0/0 means none.
    pub mark: (u32, u32),
    /// XFRM interface, 0 for none.
    pub if_id: u32,
    /// `XFRM_POLICY_LOCALOK`, `XFRM_POLICY_ICMP`.
    pub flags: u8,
}

impl InstalledPolicy {
    /// Returns whether the policy is marked as ours: by the reqid of its template or, if it has no
    /// template, by its index.
    pub fn is_ours(&self) -> bool {
        if self.mark != (0, 0) || self.if_id != 0 {
            return false;
        }
        match self.templates.as_slice() {
            [] => index_is_ours(self.index),
            templates => templates.iter().all(|template| Reqid::ours(template.reqid).is_some()),
        }
    }

    /// Returns the direction and selector, which identify a policy in the kernel.
    pub fn key(&self) -> PolicyKey {
        (self.direction, self.selector)
    }

    /// Returns whether the policy shares the key space of our policies. Policies with a mark or an
    /// XFRM interface have a separate key space.
    pub fn shares_key_space(&self) -> bool {
        self.mark == (0, 0) && self.if_id == 0
    }

    /// Returns whether the policy is exactly the `wanted` one.
    pub fn matches(&self, wanted: &Policy) -> bool {
        let template = match wanted.action {
            Action::Allow => None,
            Action::Block => Some(BLOCK_TAG),
            Action::Protect(template) => Some(template),
        };
        let same_template = match (template, self.templates.as_slice()) {
            (None, []) => index_is_ours(self.index),
            (Some(wanted_template), [got]) => {
                let (source, destination) =
                    wanted_template.outer.unwrap_or((wanted.selector.any_address(), wanted.selector.any_address()));
                *got == InstalledTemplate {
                    source,
                    destination,
                    spi: 0,
                    reqid: wanted_template.reqid.raw(),
                    mode: wanted_template.mode.to_kernel(),
                    protocol: nl::IPPROTO_ESP,
                    optional: false,
                    any_algorithm: true,
                }
            }
            _ => false,
        };
        same_template
            && self.key() == wanted.key()
            && self.priority == wanted.priority
            && self.blocks == (wanted.action == Action::Block)
            && self.shares_key_space()
            && self.flags == 0
    }

    /// Returns the desired policy that this one implements, if it protects with this reqid.
    pub(crate) fn to_policy(&self, reqid: Reqid) -> Option<Policy> {
        let [template] = self.templates.as_slice() else { return None };
        let (mode, outer) = match template.mode {
            nl::XFRM_MODE_TRANSPORT => (Mode::Transport, None),
            _ => (Mode::Tunnel, Some((template.source, template.destination))),
        };
        let policy = Policy {
            direction: self.direction,
            selector: self.selector,
            priority: self.priority,
            action: Action::Protect(Template { reqid, mode, outer }),
        };
        self.matches(&policy).then_some(policy)
    }

    /// Parses a policy. Returns `Ok(None)` for per-socket policies.
    pub(crate) fn decode(body: &[u8]) -> Result<Option<Self>, String> {
        let (fixed, rest) = uapi::split(body, nl::XFRM_USER_POLICY_INFO_LEN)?;
        let info = nl::UserPolicyInfo::parse(fixed).map_err(|error| error.to_string())?;
        let Some(direction) = Direction::from_kernel(info.direction) else { return Ok(None) };
        let selector = Selector::from_kernel(&info.selector)
            .ok_or_else(|| format!("selector of family {} with prefix lengths out of range", info.selector.family))?;
        let mut policy = Self {
            direction,
            selector,
            priority: info.priority,
            index: info.index,
            blocks: info.action == nl::XFRM_POLICY_BLOCK,
            templates: Vec::new(),
            mark: (0, 0),
            if_id: 0,
            flags: info.flags,
        };
        uapi::attributes(rest, |kind, value| {
            match kind {
                nl::XFRMA_TMPL => {
                    for raw in value.chunks_exact(nl::XFRM_USER_TEMPLATE_LEN) {
                        let template = nl::UserTemplate::parse(raw).map_err(|error| error.to_string())?;
                        policy.templates.push(InstalledTemplate::from_kernel(&template));
                    }
                }
                nl::XFRMA_MARK => {
                    let mark = nl::Mark::parse(value).map_err(|error| error.to_string())?;
                    policy.mark = (mark.value, mark.mask);
                }
                nl::XFRMA_IF_ID => policy.if_id = uapi::u32_of(value).ok_or("XFRMA_IF_ID is not a u32")?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(Some(policy))
    }
}

impl InstalledTemplate {
    fn from_kernel(raw: &nl::UserTemplate) -> Self {
        // A transport template may lack a family. In that case it has no addresses.
        let address =
            |address: &nl::Address| uapi::address(address, raw.family).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        Self {
            source: address(&raw.saddr),
            destination: address(&raw.id.daddr),
            spi: raw.id.spi,
            reqid: raw.reqid,
            mode: raw.mode,
            protocol: raw.id.proto,
            optional: raw.optional != 0,
            any_algorithm: raw.aalgos & raw.ealgos & raw.calgos == u32::MAX,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} priority {} ", self.direction, self.selector, self.priority)?;
        match self.action {
            Action::Allow => f.write_str("allow"),
            Action::Block => f.write_str("block"),
            Action::Protect(Template { reqid, mode, outer }) => {
                let mode = if mode == Mode::Transport { " transport" } else { "" };
                write!(f, "esp{mode} reqid {reqid}")?;
                outer.map_or(Ok(()), |(source, destination)| write!(f, " {source} -> {destination}"))
            }
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for InstalledPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} priority {} index {} ", self.direction, self.selector, self.priority, self.index)?;
        f.write_str(if self.blocks { "block" } else { "allow" })?;
        for template in &self.templates {
            write!(f, " esp reqid {:#x} {} -> {}", template.reqid, template.source, template.destination)?;
            if template.spi != 0 {
                write!(f, " spi {:#010x}", template.spi)?;
            }
        }
        if self.mark != (0, 0) {
            write!(f, " mark {:#x}/{:#x}", self.mark.0, self.mark.1)?;
        }
        if self.if_id != 0 {
            write!(f, " if_id {:#x}", self.if_id)?;
        }
        Ok(())
    }
}

impl fmt::Debug for InstalledPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(source: &str, destination: &str) -> Selector {
        Selector::new(source.parse().unwrap(), destination.parse().unwrap()).unwrap()
    }

    #[test]
    fn narrower_peers_are_stronger_and_all_are_between_guard_and_default_route() {
        let narrow = priority::peer(&selector("10.77.0.0/26", "10.77.1.0/26"));
        let wide = priority::peer(&selector("10.77.0.0/26", "10.0.0.0/8"));
        let everything = priority::peer(&selector("10.77.0.0/26", "0.0.0.0/0"));
        assert!(narrow < wide && wide < priority::ALLOW);
        assert!(priority::ALLOW < everything && everything < priority::BLOCK);
        assert!(priority::peer(&selector("::1/128", "::2/128")) >= priority::PEER);
        assert!(priority::peer(&selector("fd00::/8", "fd01::/16")) < priority::ALLOW);
    }

    #[test]
    fn selectors_of_two_families_are_refused() {
        assert!(Selector::new("10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()).is_err());
    }
}
