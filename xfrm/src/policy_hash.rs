//! How the kernel finds policies (`ip xfrm policy set hthresh4`). Policies whose prefixes are at
//! least as long as a threshold are found by a hash. The others are kept in a list that the kernel
//! walks whenever one of them changes.

use crate::Xfrm;
use crate::error::Result;
use crate::netlink::{self, Attributes, RawMessage};
use crate::uapi;

/// `XFRM_MSG_NEWSPDINFO`, `XFRM_MSG_GETSPDINFO` (`linux/xfrm.h`, as the attributes below).
const NEW_INFO: u16 = 0x24;
const GET_INFO: u16 = 0x25;
/// `XFRMA_SPD_IPV4_HTHRESH`, `XFRMA_SPD_IPV6_HTHRESH`.
const IPV4: u16 = 3;
const IPV6: u16 = 4;

/// The prefixes of one family from which on policies are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Minimum prefix length of the local network: the source of outbound packets, the destination
    /// of others.
    pub local: u8,
    /// Minimum prefix length of the remote network.
    pub remote: u8,
}

/// The thresholds of this network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyHash {
    /// For IPv4.
    pub v4: Threshold,
    /// For IPv6.
    pub v6: Threshold,
}

impl PolicyHash {
    /// The kernel's default: only policies between two addresses are hashed.
    pub const DEFAULT: Self =
        Self { v4: Threshold { local: 32, remote: 32 }, v6: Threshold { local: 128, remote: 128 } };
    /// Hashes policies between any local network and a remote one of the size of a segment: at most
    /// 256 addresses. So only few of them have the same hash. Those of larger networks are not
    /// hashed, which costs nothing while there are few.
    pub const BY_REMOTE: Self =
        Self { v4: Threshold { local: 0, remote: 24 }, v6: Threshold { local: 0, remote: 120 } };
}

impl Xfrm {
    /// Returns the thresholds of this network namespace.
    pub fn policy_hash(&mut self) -> Result<PolicyHash> {
        let request = "read how policies are found (XFRM_MSG_GETSPDINFO)";
        let message = RawMessage { kind: GET_INFO, body: vec![0; 4] };
        let answer: RawMessage = self.netlink.get(request, message)?;
        let mut found = PolicyHash::DEFAULT;
        let mut read = || {
            let (_, attributes) = uapi::split(&answer.body, 4)?;
            uapi::attributes(attributes, |kind, value| {
                let of_family = match kind {
                    IPV4 => &mut found.v4,
                    IPV6 => &mut found.v6,
                    _ => return Ok(()),
                };
                let [local, remote] = *value else { return Err(format!("a threshold of {} bytes", value.len())) };
                *of_family = Threshold { local, remote };
                Ok(())
            })
        };
        read().map_err(|reason| netlink::Error::Malformed { request, reason })?;
        Ok(found)
    }

    /// Sets the thresholds of this network namespace, for all its policies. The kernel then sorts
    /// the existing ones anew, in the background.
    pub fn set_policy_hash(&mut self, hash: PolicyHash) -> Result<()> {
        let mut attributes = Attributes::default();
        attributes.bytes(IPV4, &[hash.v4.local, hash.v4.remote]);
        attributes.bytes(IPV6, &[hash.v6.local, hash.v6.remote]);
        let message = RawMessage { kind: NEW_INFO, body: [&[0; 4], attributes.octets()].concat() };
        Ok(self.netlink.execute("set how policies are found (XFRM_MSG_NEWSPDINFO)", message, 0)?)
    }
}
