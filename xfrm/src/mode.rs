//! Tunnel and transport mode: in tunnel mode ESP protects whole packets, and in transport mode the
//! payload of packets between the two hosts.

use std::fmt;

use netlink_packet_xfrm as nl;

/// Mode of SAs and templates (RFC 4301 4.1). A policy uses only SAs with its template's mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Whole packets travel in ESP between the tunnel's ends.
    #[default]
    Tunnel,
    /// ESP protects the payload of packets between the two hosts themselves.
    Transport,
}

impl Mode {
    pub(crate) fn to_kernel(self) -> u8 {
        match self {
            Self::Tunnel => nl::XFRM_MODE_TUNNEL,
            Self::Transport => nl::XFRM_MODE_TRANSPORT,
        }
    }
}

/// Uses the names of `ip xfrm`.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tunnel => "tunnel",
            Self::Transport => "transport",
        })
    }
}
