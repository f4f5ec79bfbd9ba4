//! The purpose of a CHILD_SA. A peer may have several CHILD_SAs under one IKE SA (RFC 7296 1.3.1):
//! one for each configured child, or several for parts of one configured child.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

/// Name of a configured child. It is unique among the children of its peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildName(Arc<str>);

impl ChildName {
    /// Makes a name from this text. A [`Purpose`] whose name contains `[` cannot be parsed by
    /// [`Purpose::from_str`].
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChildName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The purpose of a CHILD_SA. We send with only one of the CHILD_SAs of each purpose. A rekey or a
/// new IKE SA replaces that CHILD_SA. CHILD_SAs of different purposes do not affect each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Purpose {
    /// The configured child.
    pub child: ChildName,
    /// The part of the child's traffic that the peer accepts. `None` means all of it.
    pub part: Option<Arc<TrafficPart>>,
}

/// A part of the traffic of a configured child.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficPart {
    /// Networks of our side, sorted.
    pub local: Vec<IpNetwork>,
    /// Networks of the peer's side, sorted.
    pub remote: Vec<IpNetwork>,
}

impl Purpose {
    /// Makes the purpose of all traffic of a configured child.
    pub fn whole(child: &ChildName) -> Self {
        Self { child: child.clone(), part: None }
    }

    /// Returns whether a CHILD_SA of this purpose serves the `other` one. A CHILD_SA for all
    /// traffic of a child serves every part of it. A CHILD_SA for a part also serves the whole,
    /// since the peer does not accept more.
    pub(crate) fn serves(&self, other: &Self) -> bool {
        self.child == other.child && (self.part.is_none() || other.part.is_none() || self.part == other.part)
    }

    /// Makes the purpose of the traffic between these networks.
    pub(crate) fn part(child: &ChildName, mut local: Vec<IpNetwork>, mut remote: Vec<IpNetwork>) -> Self {
        for networks in [&mut local, &mut remote] {
            networks.sort();
            networks.dedup();
        }
        Self { child: child.clone(), part: Some(Arc::new(TrafficPart { local, remote })) }
    }
}

/// Formats as `net` or, for a part, as `net[10.1.0.0/24,10.1.1.0/24=10.2.0.0/24]`: the networks of
/// our side, then those of the peer's side.
impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(part) = &self.part else {
            return self.child.fmt(f);
        };
        let list = |networks: &[IpNetwork]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        write!(f, "{}[{}={}]", self.child, list(&part.local), list(&part.remote))
    }
}

/// The error for a text that does not have the display format of [`Purpose`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected NAME or NAME[NETWORK,...=NETWORK,...]")]
pub struct InvalidPurpose;

impl FromStr for Purpose {
    type Err = InvalidPurpose;

    fn from_str(text: &str) -> Result<Self, InvalidPurpose> {
        let Some((name, part)) = text.split_once('[') else {
            return Ok(Self::whole(&ChildName::new(text)));
        };
        let sides = part.strip_suffix(']').and_then(|part| part.split_once('=')).ok_or(InvalidPurpose)?;
        let list = |side: &str| -> Result<Vec<IpNetwork>, InvalidPurpose> {
            side.split(',').map(|network| network.parse().map_err(|_| InvalidPurpose)).collect()
        };
        Ok(Self::part(&ChildName::new(name), list(sides.0)?, list(sides.1)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_is_read_back_as_it_is_shown() {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let name = ChildName::new("net");
        let part = Purpose::part(&name, networks(&["10.3.0.0/24", "10.1.0.0/24"]), networks(&["fd00::/64"]));
        assert_eq!(part.to_string(), "net[10.1.0.0/24,10.3.0.0/24=fd00::/64]");
        for purpose in [Purpose::whole(&name), part] {
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
        for wrong in ["net[", "net[10.1.0.0/24]", "net[10.1.0.0/24=]", "net[=10.1.0.0/24", "net[a=b]"] {
            assert_eq!(wrong.parse::<Purpose>(), Err(InvalidPurpose), "{wrong}");
        }
    }
}
