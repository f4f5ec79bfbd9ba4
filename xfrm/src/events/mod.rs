//! The kernel's notifications about SAs and policies, on a separate socket. Notifications about ESP
//! packets arrive on another socket ([`EspEventSocket`]), because there may be many of them, and
//! the loss of some does no harm.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use netlink_packet_xfrm as nl;
use netlink_sys::protocols::NETLINK_XFRM;
use netlink_sys::{Socket, SocketAddr as Port};
use zeroize::{Zeroize, Zeroizing};

use crate::error::Result;
use crate::netlink::{self, Frame, Frames, widen_buffer};
use crate::policy::InstalledPolicy;
use crate::sa::{Sa, SaId};
use crate::selector::Selector;
use crate::{socket, uapi};

mod esp;

pub use esp::{EspEvent, EspEventSocket};

/// The file with the lifetime of an acquire's larval state, in seconds.
const ACQUIRE_LIFETIME_PATH: &str = "/proc/sys/net/core/xfrm_acq_expires";

/// Maximum size of a notification, bytes. An SA with the largest replay window takes less than 2
/// KiB.
const MAX_DATAGRAM: usize = 32 << 10;

/// A notification from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A packet matched an `out` policy that has no SA. The kernel reports it once for each flow
    /// until its larval state is gone (30 s) or an SA exists.
    Acquire {
        /// Reqid of the policy's template.
        reqid: u32,
        /// The packet's own addresses and ports.
        selector: Selector,
        /// Outer source address that the SA would have.
        source: IpAddr,
        /// Outer destination address.
        destination: IpAddr,
        /// Index of the policy.
        policy_index: u32,
    },
    /// An SA reached a limit of packets or bytes, or a reserved SPI did not become an SA in time
    /// (`hard`). The kernel also reports a reservation that another SA with the same SPI outlives,
    /// so read the SA before you believe that it is gone.
    Expire {
        /// Destination and SPI of the SA.
        id: SaId,
        /// The reqid of the SA.
        reqid: u32,
        /// Whether the kernel has deleted the SA. If it has not, the SA must be rekeyed.
        hard: bool,
    },
    /// An SA was installed or updated.
    SaChanged(Box<Sa>),
    /// An SA was deleted.
    SaDeleted {
        /// Destination and SPI of the SA.
        id: SaId,
        /// The reqid of the SA.
        reqid: Option<u32>,
    },
    /// All SAs were deleted at once (`ip xfrm state flush`).
    SasFlushed,
    /// A policy was installed or replaced.
    PolicyChanged(Box<InstalledPolicy>),
    /// A policy was deleted.
    PolicyDeleted(Box<InstalledPolicy>),
    /// All policies were deleted at once (`ip xfrm policy flush`).
    PoliciesFlushed,
    /// ESP of this SA comes from another address or port: a NAT changed its mapping, or the peer
    /// moved. The packet was authentic.
    Mapping {
        /// Destination and SPI of the SA.
        id: SaId,
        /// The reqid of the SA.
        reqid: u32,
        /// The peer's former address and port.
        old: SocketAddr,
        /// The peer's present address and port.
        new: SocketAddr,
    },
    /// Notifications were lost. Read all SAs and policies again.
    Overrun,
}

/// A non-blocking socket for [`Event`]s. Register it for readability, then call
/// [`EventSocket::next`] until it returns `None`.
pub struct EventSocket {
    socket: Socket,
    buffer: Zeroizing<Vec<u8>>,
    /// The events of one datagram that were not returned yet.
    queue: VecDeque<Event>,
}

impl std::fmt::Debug for EventSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventSocket").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl EventSocket {
    /// Opens the socket in the thread's network namespace. Open it before you read all SAs and
    /// policies for the first time, so that no change is missed.
    pub fn open() -> Result<Self> {
        let socket = open_socket(&[
            nl::XFRMNLGRP_ACQUIRE,
            nl::XFRMNLGRP_EXPIRE,
            nl::XFRMNLGRP_SA,
            nl::XFRMNLGRP_POLICY,
            nl::XFRMNLGRP_MAPPING,
        ])?;
        Ok(Self { socket, buffer: Zeroizing::new(vec![0; MAX_DATAGRAM]), queue: VecDeque::new() })
    }

    /// Stops reporting changes that are made through the request socket with this port
    /// ([`crate::Xfrm::port`]), from now on. The kernel drops these notifications, so they neither
    /// wake the owner nor fill the buffer. Another port replaces this one.
    pub fn ignore_port(&mut self, port: u32) -> Result<()> {
        socket::refuse_netlink_port(&self.socket, port)
    }

    /// Returns the next event, or `None` if there is none now.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(Some(event));
            }
            match self.socket.recv(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC) {
                Ok(length) => self.parse_datagram(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Some(Event::Overrun)),
                Err(error) => {
                    return Err(netlink::Error::Io { doing: "cannot receive XFRM's notifications", error }.into());
                }
            }
        }
    }

    fn parse_datagram(&mut self, length: usize) {
        let Some(bytes) = self.buffer.get_mut(..length) else {
            // The datagram is larger than any that today's kernels send. It counts as lost.
            self.queue.push_back(Event::Overrun);
            return;
        };
        for frame in Frames::new(bytes) {
            match frame.and_then(|frame| parse(&frame)) {
                Ok(event) => self.queue.extend(event),
                Err(reason) => {
                    tracing::warn!(reason, "a notification of XFRM was not understood; reading everything again");
                    self.queue.push_back(Event::Overrun);
                }
            }
        }
        bytes.zeroize();
    }
}

impl AsFd for EventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for EventSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Returns the time for which the larval state of an acquire lasts in the thread's network
/// namespace. During this time the kernel sends no further [`Event::Acquire`] for the flow. If the
/// setting cannot be read, this is the kernel's default, 30 s.
pub fn acquire_lifetime() -> Duration {
    let seconds = std::fs::read_to_string(ACQUIRE_LIFETIME_PATH).ok().and_then(|text| text.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(30))
}

/// Opens a non-blocking socket and joins these multicast groups.
fn open_socket(groups: &[u32]) -> Result<Socket> {
    let failed = |doing: &'static str| move |error: io::Error| netlink::Error::Io { doing, error };
    let mut socket = Socket::new(NETLINK_XFRM).map_err(failed("cannot open a netlink socket"))?;
    socket.set_non_blocking(true).map_err(failed("cannot set O_NONBLOCK on a netlink socket"))?;
    widen_buffer(&socket)?;
    socket.bind(&Port::new(0, 0)).map_err(failed("cannot bind a netlink socket"))?;
    for group in groups {
        socket.add_membership(*group).map_err(failed("cannot listen to XFRM's notifications"))?;
    }
    Ok(socket)
}

/// Parses a notification. Returns `None` for types that are not used.
fn parse(frame: &Frame<'_>) -> Result<Option<Event>, String> {
    Ok(match frame.kind {
        nl::XFRM_MSG_ACQUIRE => Some(acquire(frame.body)?),
        nl::XFRM_MSG_EXPIRE => expire(frame.body)?,
        nl::XFRM_MSG_NEWSA | nl::XFRM_MSG_UPDSA => Some(Event::SaChanged(Box::new(Sa::decode(frame.body)?))),
        nl::XFRM_MSG_DELSA => sa_deleted(frame.body)?,
        nl::XFRM_MSG_FLUSHSA => Some(Event::SasFlushed),
        nl::XFRM_MSG_NEWPOLICY | nl::XFRM_MSG_UPDPOLICY => {
            InstalledPolicy::decode(frame.body)?.map(|policy| Event::PolicyChanged(Box::new(policy)))
        }
        nl::XFRM_MSG_DELPOLICY => policy_deleted(frame.body)?.map(|policy| Event::PolicyDeleted(Box::new(policy))),
        nl::XFRM_MSG_FLUSHPOLICY => Some(Event::PoliciesFlushed),
        nl::XFRM_MSG_MAPPING => Some(mapping(frame.body)?),
        _ => None,
    })
}

/// Parses `struct xfrm_user_acquire` and the template after it.
fn acquire(body: &[u8]) -> Result<Event, String> {
    let (fixed, rest) = uapi::split(body, nl::XFRM_USER_ACQUIRE_LEN)?;
    let raw = nl::UserAcquire::parse(fixed).map_err(|error| error.to_string())?;
    let selector = Selector::from_kernel(&raw.selector).ok_or("acquire without a family")?;
    let (mut reqid, mut family) = (0, raw.selector.family);
    uapi::attributes(rest, |kind, value| {
        if kind == nl::XFRMA_TMPL
            && let Some(first) = value.get(..nl::XFRM_USER_TEMPLATE_LEN)
        {
            let template = nl::UserTemplate::parse(first).map_err(|error| error.to_string())?;
            reqid = template.reqid;
            family = template.family;
        }
        Ok(())
    })?;
    let address = |raw: &nl::Address| uapi::address(raw, family).ok_or_else(|| format!("acquire of family {family}"));
    Ok(Event::Acquire {
        reqid,
        selector,
        source: address(&raw.saddr)?,
        destination: address(&raw.id.daddr)?,
        policy_index: raw.policy.index,
    })
}

/// Parses `struct xfrm_user_expire`. Returns `None` for an entry without SPI, which is the larval
/// state of an acquire that ended without an answer, and for another protocol than ESP.
fn expire(body: &[u8]) -> Result<Option<Event>, String> {
    let (fixed, _) = uapi::split(body, nl::XFRM_USER_EXPIRE_LEN)?;
    let raw = nl::UserExpire::parse(fixed).map_err(|error| error.to_string())?;
    let sa = Sa::from_info(&raw.state)?;
    Ok((sa.id.spi != 0 && sa.protocol == nl::IPPROTO_ESP).then_some(Event::Expire {
        id: sa.id,
        reqid: sa.reqid,
        hard: raw.hard != 0,
    }))
}

/// Parses `struct xfrm_usersa_id` and the SA after it. Returns `None` for another protocol than
/// ESP: an SA of AH or IPComp may have the destination and the SPI of one of ours.
fn sa_deleted(body: &[u8]) -> Result<Option<Event>, String> {
    let (fixed, rest) = uapi::split(body, nl::XFRM_USER_SA_ID_LEN)?;
    let raw = nl::UserSaId::parse(fixed).map_err(|error| error.to_string())?;
    if raw.proto != nl::IPPROTO_ESP {
        return Ok(None);
    }
    let destination =
        uapi::address(&raw.daddr, raw.family).ok_or_else(|| format!("deleted SA of family {}", raw.family))?;
    let mut reqid = None;
    uapi::attributes(rest, |kind, value| {
        if kind == nl::XFRMA_SA {
            let (fixed, _) = uapi::split(value, nl::XFRM_USER_SA_INFO_LEN)?;
            reqid = Some(nl::UserSaInfo::parse(fixed).map_err(|error| error.to_string())?.reqid);
        }
        Ok(())
    })?;
    Ok(Some(Event::SaDeleted { id: SaId { destination, spi: raw.spi }, reqid }))
}

/// Parses `struct xfrm_userpolicy_id`, then the policy as `XFRMA_POLICY`, then its templates.
fn policy_deleted(body: &[u8]) -> Result<Option<InstalledPolicy>, String> {
    let (_, rest) = uapi::split(body, nl::XFRM_USER_POLICY_ID_LEN)?;
    let mut whole = None;
    uapi::attributes(rest, |kind, value| {
        if kind == nl::XFRMA_POLICY {
            let (fixed, _) = uapi::split(value, nl::XFRM_USER_POLICY_INFO_LEN)?;
            whole = Some(fixed.to_vec());
        }
        Ok(())
    })?;
    let mut whole = whole.ok_or("deleted policy without XFRMA_POLICY")?;
    whole.extend_from_slice(rest);
    InstalledPolicy::decode(&whole)
}

/// Parses `struct xfrm_user_mapping`.
fn mapping(body: &[u8]) -> Result<Event, String> {
    let (fixed, _) = uapi::split(body, nl::XFRM_USER_MAPPING_LEN)?;
    let raw = nl::UserMapping::parse(fixed).map_err(|error| error.to_string())?;
    let family = raw.id.family;
    let address = |raw: &nl::Address| uapi::address(raw, family).ok_or_else(|| format!("mapping of family {family}"));
    Ok(Event::Mapping {
        id: SaId { destination: address(&raw.id.daddr)?, spi: raw.id.spi },
        reqid: raw.reqid,
        old: SocketAddr::new(address(&raw.old_saddr)?, raw.old_sport),
        new: SocketAddr::new(address(&raw.new_saddr)?, raw.new_sport),
    })
}

#[cfg(test)]
mod tests;
