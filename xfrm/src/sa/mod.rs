//! Security associations: ESP, as the kernel takes them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::DefaultNla;
use netlink_packet_xfrm as nl;

mod algorithm;

pub use algorithm::{AesKeyLength, Algorithm, EspKey, Integrity, KeyLength};

use crate::mode::Mode;
use crate::reqid::Reqid;
use crate::selector::{MixedFamilies, Selector};
use crate::uapi;

/// Which way the packets of an SA go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SaDirection {
    /// Packets come to us; we allocated the SPI.
    In,
    /// Packets leave; the peer allocated the SPI.
    Out,
}

/// Identifies an ESP SA: the destination of its packets and its SPI.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaId {
    /// Outer destination.
    pub destination: IpAddr,
    /// SPI, 256 or above.
    pub spi: u32,
}

impl fmt::Display for SaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} spi {:#010x}", self.destination, self.spi)
    }
}

impl fmt::Debug for SaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SaId {
    pub(crate) fn to_kernel(self) -> nl::UserSaId {
        nl::UserSaId {
            daddr: nl::Address::from_ip(&self.destination),
            spi: self.spi,
            family: uapi::family_of(self.destination),
            proto: nl::IPPROTO_ESP,
        }
    }
}

/// UDP ports between which ESP travels (RFC 3948), in the order of the packets of this SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UdpEncap {
    /// Source port of the packets.
    pub source_port: u16,
    /// Destination port of the packets.
    pub destination_port: u16,
}

/// Sequence numbers and replay protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Replay {
    /// Window of an inbound SA, packets, at most [`Replay::MAX_WINDOW`]. 0 turns the check off,
    /// except with `esn`. Ignored on outbound SAs.
    pub window: u32,
    /// Extended (64 bit) sequence numbers, as negotiated.
    pub esn: bool,
}

impl Replay {
    /// Largest window that the kernel takes (`XFRMA_REPLAY_ESN_MAX`), packets.
    pub const MAX_WINDOW: u32 = 4096;

    /// Without extended sequence numbers, with a window wide enough for paths that reorder.
    pub const PLAIN: Replay = Replay { window: 1024, esn: false };
    /// With extended sequence numbers and the same window.
    pub const ESN: Replay = Replay { window: 1024, esn: true };
}

/// Limits at which the kernel reports an SA ([`crate::events::Event::Expire`]). They count packets
/// and bytes only: the kernel's timers run on the wall clock, and a step of that clock would end
/// SAs. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Limits {
    /// Bytes after which to rekey.
    pub soft_bytes: Option<u64>,
    /// Bytes after which the kernel deletes it.
    pub hard_bytes: Option<u64>,
    /// Packets after which to rekey.
    pub soft_packets: Option<u64>,
    /// Packets after which the kernel deletes it.
    pub hard_packets: Option<u64>,
}

/// An SA to install.
#[derive(Debug, Clone)]
pub struct SaParams {
    /// Which way its packets go.
    pub direction: SaDirection,
    /// Outer source.
    pub source: IpAddr,
    /// Outer destination.
    pub destination: IpAddr,
    /// SPI.
    pub spi: u32,
    /// Joins it to policies.
    pub reqid: Reqid,
    /// Tunnel or transport mode.
    pub mode: Mode,
    /// Algorithm and keys.
    pub key: EspKey,
    /// ESP in UDP.
    pub encap: Option<UdpEncap>,
    /// Sequence numbers and replay protection.
    pub replay: Replay,
    /// Towards peers that are not ours: the only packets that may travel in it. `None` between our
    /// own nodes: any packet of either family (`XFRM_STATE_AF_UNSPEC`); policies decide. In
    /// transport mode `None` is any packet between its two addresses.
    pub selector: Option<Selector>,
    /// When to rekey or delete it.
    pub limits: Limits,
}

impl SaParams {
    /// Destination and SPI.
    pub fn id(&self) -> SaId {
        SaId { destination: self.destination, spi: self.spi }
    }
}

/// SPIs that may be allocated, both ends included. RFC 4303 2.1 reserves 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpiRange {
    /// Smallest SPI.
    pub min: u32,
    /// Largest SPI.
    pub max: u32,
}

impl Default for SpiRange {
    fn default() -> Self {
        Self { min: 0xC000_0000, max: 0xCFFF_FFFF }
    }
}

/// An SA in the kernel, of any program. Its key is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sa {
    /// Destination and SPI.
    pub id: SaId,
    /// Outer source.
    pub source: IpAddr,
    /// IP protocol; 50 is ESP.
    pub protocol: u8,
    /// Reqid.
    pub reqid: u32,
    /// `XFRM_MODE_*`; 1 is tunnel.
    pub mode: u8,
    /// Its direction, if the kernel knows it: 6.10 and later, if the installing program stated it.
    pub direction: Option<SaDirection>,
    /// The kernel's name of the AEAD or cipher; of AH, that of the integrity algorithm. `None`: it
    /// is larval, that is, a reserved SPI or an acquire under way.
    pub algorithm: Option<String>,
    /// ESP in UDP.
    pub encap: Option<UdpEncap>,
    /// The only packets that may travel in it.
    pub selector: Option<Selector>,
    /// Replay window, packets.
    pub replay_window: u32,
    /// Extended sequence numbers.
    pub esn: bool,
    /// `XFRM_STATE_*` flags as the kernel has them.
    pub flags: u8,
    /// XFRM interface, 0 for none.
    pub if_id: u32,
    /// Packets and bytes that went through it.
    pub counters: Counters,
}

/// Packets and bytes that went through an SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes of payload, without ESP's overhead.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// When it was installed, seconds of the wall clock since 1970.
    pub added: u64,
    /// When it was first used, seconds of the wall clock since 1970; 0 for never.
    pub first_used: u64,
    /// Packets that were older than the replay window.
    pub before_window: u32,
    /// Packets that came twice.
    pub replayed: u32,
    /// Packets whose ICV was wrong.
    pub integrity_failures: u32,
    /// Last sequence number sent (64 bits with extended sequence numbers).
    pub sent_sequence: u64,
    /// Highest sequence number received.
    pub received_sequence: u64,
}

impl Sa {
    /// Whether its reqid is from our range.
    pub fn is_ours(&self) -> bool {
        Reqid::ours(self.reqid).is_some()
    }

    /// Whether it is only a reservation or an acquire.
    pub fn is_larval(&self) -> bool {
        self.algorithm.is_none()
    }

    /// Outer source and destination. The ports are 0 without UDP encapsulation.
    pub fn endpoints(&self) -> (SocketAddr, SocketAddr) {
        let (source_port, destination_port) =
            self.encap.map_or((0, 0), |encap| (encap.source_port, encap.destination_port));
        (SocketAddr::new(self.source, source_port), SocketAddr::new(self.id.destination, destination_port))
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, String> {
        let (fixed, rest) = uapi::split(body, nl::XFRM_USER_SA_INFO_LEN)?;
        let mut sa = Self::from_info(&nl::UserSaInfo::parse(fixed).map_err(|error| error.to_string())?)?;
        uapi::attributes(rest, |kind, value| sa.read_attribute(kind, value))?;
        Ok(sa)
    }

    pub(crate) fn from_info(info: &nl::UserSaInfo) -> Result<Self, String> {
        let address =
            |raw: &nl::Address| uapi::address(raw, info.family).ok_or_else(|| format!("SA of family {}", info.family));
        let selector = match info.selector.family {
            nl::AF_UNSPEC => None,
            _ => {
                Selector::from_kernel(&info.selector).filter(|selector| *selector != Selector::any(selector.is_ipv4()))
            }
        };
        Ok(Self {
            id: SaId { destination: address(&info.id.daddr)?, spi: info.id.spi },
            source: address(&info.saddr)?,
            protocol: info.id.proto,
            reqid: info.reqid,
            mode: info.mode,
            direction: None,
            algorithm: None,
            encap: None,
            selector,
            replay_window: u32::from(info.replay_window),
            esn: info.flags & nl::XFRM_STATE_ESN != 0,
            flags: info.flags,
            if_id: 0,
            counters: Counters {
                bytes: info.lifetime_cur.bytes,
                packets: info.lifetime_cur.packets,
                added: info.lifetime_cur.add_time,
                first_used: info.lifetime_cur.use_time,
                before_window: info.stats.replay_window,
                replayed: info.stats.replay,
                integrity_failures: info.stats.integrity_failed,
                ..Counters::default()
            },
        })
    }

    fn read_attribute(&mut self, kind: u16, value: &[u8]) -> Result<(), String> {
        match kind {
            // Only the name is read; the key behind it is not copied.
            nl::XFRMA_ALG_AEAD | nl::XFRMA_ALG_CRYPT | nl::XFRMA_ALG_AUTH | nl::XFRMA_ALG_AUTH_TRUNC => {
                let name = value.get(..nl::XFRM_ALG_AEAD_NAME_LEN).ok_or("algorithm shorter than its name")?;
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                match kind {
                    nl::XFRMA_ALG_AEAD | nl::XFRMA_ALG_CRYPT => self.algorithm = Some(name),
                    _ => drop(self.algorithm.get_or_insert(name)),
                }
            }
            nl::XFRMA_ENCAP => {
                let encap = nl::EncapTmpl::parse(value).map_err(|error| error.to_string())?;
                self.encap = Some(UdpEncap { source_port: encap.encap_sport, destination_port: encap.encap_dport });
            }
            nl::XFRMA_REPLAY_VAL => {
                let replay = nl::Replay::parse(value).map_err(|error| error.to_string())?;
                self.counters.sent_sequence = u64::from(replay.oseq);
                self.counters.received_sequence = u64::from(replay.seq);
            }
            nl::XFRMA_REPLAY_ESN_VAL => {
                let replay = nl::ReplayEsn::parse(value).map_err(|error| error.to_string())?;
                self.replay_window = replay.replay_window;
                self.counters.sent_sequence = u64::from(replay.oseq_hi) << 32 | u64::from(replay.oseq);
                self.counters.received_sequence = u64::from(replay.seq_hi) << 32 | u64::from(replay.seq);
            }
            nl::XFRMA_IF_ID => self.if_id = uapi::u32_of(value).ok_or("XFRMA_IF_ID is not a u32")?,
            uapi::XFRMA_SA_DIR => {
                self.direction = match value {
                    [uapi::SA_DIR_IN] => Some(SaDirection::In),
                    [uapi::SA_DIR_OUT] => Some(SaDirection::Out),
                    _ => None,
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Features that depend on the kernel's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// SAs have a direction (`XFRMA_SA_DIR`, 6.10 and later).
    pub sa_direction: bool,
    /// An `out` policy keeps the SA that it used last as long as that exists (6.13 and later, with
    /// per-CPU SAs).
    pub policies_cache_sas: bool,
}

/// Seconds between two [`crate::events::Event::Mapping`] of one SA. Without it the kernel reports
/// every packet from a new address.
const MAPPING_THRESHOLD_SECONDS: u32 = 1;

pub(crate) fn direction_attribute(direction: SaDirection) -> nl::XfrmAttrs {
    let value = match direction {
        SaDirection::In => uapi::SA_DIR_IN,
        SaDirection::Out => uapi::SA_DIR_OUT,
    };
    nl::XfrmAttrs::Other(DefaultNla::new(uapi::XFRMA_SA_DIR, vec![value]))
}

/// The fixed part that SPI reservations and SAs have in common.
pub(crate) fn base_info(
    source: IpAddr,
    destination: IpAddr,
    spi: u32,
    reqid: Reqid,
) -> Result<nl::UserSaInfo, MixedFamilies> {
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(MixedFamilies { one: source.to_string(), other: destination.to_string() });
    }
    Ok(nl::UserSaInfo {
        id: nl::Id { daddr: nl::Address::from_ip(&destination), spi, proto: nl::IPPROTO_ESP },
        saddr: nl::Address::from_ip(&source),
        family: uapi::family_of(destination),
        reqid: reqid.raw(),
        mode: nl::XFRM_MODE_TUNNEL,
        ..nl::UserSaInfo::default()
    })
}

impl SaParams {
    /// The result holds a copy of the key. Put it into a [`crate::message::XfrmRequest`] at once,
    /// which wipes it.
    pub(crate) fn to_kernel(&self, features: Features) -> Result<nl::state::ModifyMessage, MixedFamilies> {
        let mut info = base_info(self.source, self.destination, self.spi, self.reqid)?;
        info.mode = self.mode.to_kernel();
        match (&self.selector, self.mode) {
            (Some(selector), _) => info.selector = selector.to_kernel(),
            // The kernel takes the family of the addresses for the selector.
            (None, Mode::Transport) => {}
            (None, Mode::Tunnel) => info.flags |= nl::XFRM_STATE_AF_UNSPEC,
        }
        if self.replay.esn {
            info.flags |= nl::XFRM_STATE_ESN;
        }
        let limit = |limit: Option<u64>| limit.unwrap_or(nl::XFRM_INF);
        info.lifetime_cfg = nl::LifetimeConfig {
            soft_byte_limit: limit(self.limits.soft_bytes),
            hard_byte_limit: limit(self.limits.hard_bytes),
            soft_packet_limit: limit(self.limits.soft_packets),
            hard_packet_limit: limit(self.limits.hard_packets),
            ..nl::LifetimeConfig::default()
        };
        let inbound = self.direction == SaDirection::In;

        let mut attributes = self.key.to_kernel();
        attributes.extend(self.encap.map(|encap| {
            nl::XfrmAttrs::EncapsulationTemplate(nl::EncapTmpl {
                encap_type: nl::UDP_ENCAP_ESPINUDP,
                encap_sport: encap.source_port,
                encap_dport: encap.destination_port,
                encap_oa: nl::Address::default(),
            })
        }));
        attributes.extend(self.replay_attribute(features));
        // No number of packets leads to a notification ([`crate::events::EspEventSocket`]).
        attributes.push(nl::XfrmAttrs::ReplayThreshold(0));
        if inbound && self.encap.is_some() {
            attributes.push(nl::XfrmAttrs::MappingTimeThreshold(MAPPING_THRESHOLD_SECONDS));
        }
        if features.sa_direction {
            attributes.push(direction_attribute(self.direction));
        }
        Ok(nl::state::ModifyMessage { user_sa_info: info, nlas: attributes })
    }

    /// The window stands in `xfrm_replay_state_esn`, with or without extended sequence numbers: the
    /// older field ends at 32. An outbound SA has no window. With ESN, a kernel that knows
    /// directions wants no window and no bitmap there; an older one wants at least 1.
    fn replay_attribute(&self, features: Features) -> Option<nl::XfrmAttrs> {
        let window = match (self.direction, self.replay.esn) {
            (SaDirection::In, esn) => self.replay.window.clamp(u32::from(esn), Replay::MAX_WINDOW),
            (SaDirection::Out, true) => u32::from(!features.sa_direction),
            (SaDirection::Out, false) => return None,
        };
        let words = window.div_ceil(32);
        Some(nl::XfrmAttrs::ReplayStateEsn(nl::ReplayEsn {
            bmp_len: words,
            replay_window: window,
            bmp: vec![0; words as usize],
            ..nl::ReplayEsn::default()
        }))
    }
}

#[cfg(test)]
mod tests;
