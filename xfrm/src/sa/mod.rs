//! Security associations for ESP, in the kernel's format.

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

/// The direction of the packets of an SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SaDirection {
    /// Packets come to this host, which allocated the SPI.
    In,
    /// Packets leave this host. The peer allocated the SPI.
    Out,
}

/// Identifies an ESP SA: the destination of its packets and its SPI.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaId {
    /// Outer destination address.
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

/// The protocol in which ESP travels, and its ports, as seen in the packets of this SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Encap {
    /// The protocol.
    pub protocol: EncapProtocol,
    /// Source port of the packets.
    pub source_port: u16,
    /// Destination port of the packets.
    pub destination_port: u16,
}

/// A protocol in which ESP travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EncapProtocol {
    /// UDP (RFC 3948).
    Udp,
    /// TCP (RFC 9329). An outbound SA sends through the established socket with its addresses and
    /// ports on which [`encapsulate_in_tcp`](crate::socket::encapsulate_in_tcp) was called, and
    /// drops packets while there is none.
    Tcp,
}

impl Encap {
    /// ESP in UDP between these ports.
    pub const fn udp(source_port: u16, destination_port: u16) -> Self {
        Self { protocol: EncapProtocol::Udp, source_port, destination_port }
    }

    /// ESP in the TCP connection between these ports.
    pub const fn tcp(source_port: u16, destination_port: u16) -> Self {
        Self { protocol: EncapProtocol::Tcp, source_port, destination_port }
    }
}

/// `TCP_ENCAP_ESPINTCP` (`linux/udp.h`).
const TCP_ENCAP_ESPINTCP: u16 = 7;

/// Sequence numbers and replay protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Replay {
    /// Window of an inbound SA in packets, at most [`Replay::MAX_WINDOW`]. 0 turns the check off,
    /// except with `esn`. Ignored on outbound SAs.
    pub window: u32,
    /// Extended (64 bit) sequence numbers, as negotiated.
    pub esn: bool,
}

impl Replay {
    /// Maximum window that the kernel accepts (`XFRMA_REPLAY_ESN_MAX`), packets.
    pub const MAX_WINDOW: u32 = 4096;

    /// No extended sequence numbers, and a window that is wide enough for paths that reorder
    /// packets.
    pub const PLAIN: Replay = Replay { window: 1024, esn: false };
    /// Extended sequence numbers and the same window.
    pub const ESN: Replay = Replay { window: 1024, esn: true };
}

/// Limits at which the kernel reports an SA ([`crate::events::Event::Expire`]). There are only
/// limits of packets and bytes: the kernel's timers use the wall clock, so a step of that clock
/// would end SAs. `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Limits {
    /// Number of bytes after which the kernel reports that the SA must be rekeyed.
    pub soft_bytes: Option<u64>,
    /// Number of bytes after which the kernel deletes the SA.
    pub hard_bytes: Option<u64>,
    /// Number of packets after which the kernel reports that the SA must be rekeyed.
    pub soft_packets: Option<u64>,
    /// Number of packets after which the kernel deletes the SA.
    pub hard_packets: Option<u64>,
}

/// An SA to install.
#[derive(Debug, Clone)]
pub struct SaParams {
    /// The direction of the SA's packets.
    pub direction: SaDirection,
    /// Outer source address.
    pub source: IpAddr,
    /// Outer destination address.
    pub destination: IpAddr,
    /// SPI.
    pub spi: u32,
    /// Links the SA to policies.
    pub reqid: Reqid,
    /// Tunnel or transport mode.
    pub mode: Mode,
    /// Algorithm and keys.
    pub key: EspKey,
    /// Encapsulation in UDP or TCP. `None` means plain ESP.
    pub encap: Option<Encap>,
    /// Sequence numbers and replay protection.
    pub replay: Replay,
    /// The only packets that the SA accepts, for peers that are not our own nodes. `None` between
    /// our own nodes: it accepts any packet of either family (`XFRM_STATE_AF_UNSPEC`), and policies
    /// decide. In transport mode `None` means any packet between its two addresses.
    pub selector: Option<Selector>,
    /// Limits after which to rekey or delete the SA.
    pub limits: Limits,
}

impl SaParams {
    /// Returns the SA's destination and SPI.
    pub fn id(&self) -> SaId {
        SaId { destination: self.destination, spi: self.spi }
    }
}

/// The range of SPIs that may be allocated, including both ends. RFC 4303 2.1 reserves 0 to 255.
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

/// An SA in the kernel. It may belong to any program. Its key is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sa {
    /// Destination and SPI.
    pub id: SaId,
    /// Outer source address.
    pub source: IpAddr,
    /// IP protocol; 50 is ESP.
    pub protocol: u8,
    /// Reqid.
    pub reqid: u32,
    /// `XFRM_MODE_*`; 1 is tunnel.
    pub mode: u8,
    /// The direction, if the kernel supports directions (6.10 and later) and the program that
    /// installed the SA stated it.
    pub direction: Option<SaDirection>,
    /// The kernel's name of the AEAD or cipher; for AH, the name of the integrity algorithm. `None`
    /// if the SA is larval, that is, a reserved SPI or an acquire that is not finished.
    pub algorithm: Option<String>,
    /// Encapsulation in UDP or TCP. `None` means plain ESP.
    pub encap: Option<Encap>,
    /// The only packets that the SA accepts.
    pub selector: Option<Selector>,
    /// Replay window, packets.
    pub replay_window: u32,
    /// Whether extended sequence numbers are used.
    pub esn: bool,
    /// `XFRM_STATE_*` flags.
    pub flags: u8,
    /// XFRM interface, 0 for none.
    pub if_id: u32,
    /// Packets and bytes that the SA has processed.
    pub counters: Counters,
}

/// Packets and bytes that an SA has processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes of payload, without ESP's overhead.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// When the SA was installed, seconds of the wall clock since 1970.
    pub added: u64,
    /// When the SA was first used, seconds of the wall clock since 1970; 0 for never.
    pub first_used: u64,
    /// Packets that were older than the replay window.
    pub before_window: u32,
    /// Packets that were received twice.
    pub replayed: u32,
    /// Packets with a wrong ICV.
    pub integrity_failures: u32,
    /// Last sequence number sent (64 bits with extended sequence numbers).
    pub sent_sequence: u64,
    /// Highest sequence number received.
    pub received_sequence: u64,
}

impl Sa {
    /// Returns whether the reqid is in our range.
    pub fn is_ours(&self) -> bool {
        Reqid::ours(self.reqid).is_some()
    }

    /// Returns whether this is only a reservation or an acquire.
    pub fn is_larval(&self) -> bool {
        self.algorithm.is_none()
    }

    /// Returns the outer source and destination. The ports are 0 without encapsulation.
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
            // Only the name is read. The key that follows it is not copied.
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
                let protocol = match encap.encap_type {
                    TCP_ENCAP_ESPINTCP => EncapProtocol::Tcp,
                    _ => EncapProtocol::Udp,
                };
                self.encap =
                    Some(Encap { protocol, source_port: encap.encap_sport, destination_port: encap.encap_dport });
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
    /// Whether SAs have a direction (`XFRMA_SA_DIR`, 6.10 and later).
    pub sa_direction: bool,
    /// Whether an `out` policy keeps using its last SA as long as that SA exists (6.13 and later,
    /// with per-CPU SAs).
    pub policies_cache_sas: bool,
}

/// Minimum time between two [`crate::events::Event::Mapping`] of one SA, seconds. Without this
/// limit the kernel reports every packet from a new address.
const MAPPING_THRESHOLD_SECONDS: u32 = 1;

pub(crate) fn direction_attribute(direction: SaDirection) -> nl::XfrmAttrs {
    let value = match direction {
        SaDirection::In => uapi::SA_DIR_IN,
        SaDirection::Out => uapi::SA_DIR_OUT,
    };
    nl::XfrmAttrs::Other(DefaultNla::new(uapi::XFRMA_SA_DIR, vec![value]))
}

/// Returns the fixed part that SPI reservations and SAs have in common.
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
    /// Returns the request. The request holds a copy of the key. Put it into a
    /// [`crate::message::XfrmRequest`] immediately: that type wipes the key when dropped.
    pub(crate) fn to_kernel(&self, features: Features) -> Result<nl::state::ModifyMessage, MixedFamilies> {
        let mut info = base_info(self.source, self.destination, self.spi, self.reqid)?;
        info.mode = self.mode.to_kernel();
        match (&self.selector, self.mode) {
            (Some(selector), _) => info.selector = selector.to_kernel(),
            // The kernel uses the family of the addresses for the selector.
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
                encap_type: match encap.protocol {
                    EncapProtocol::Udp => nl::UDP_ENCAP_ESPINUDP,
                    EncapProtocol::Tcp => TCP_ENCAP_ESPINTCP,
                },
                encap_sport: encap.source_port,
                encap_dport: encap.destination_port,
                encap_oa: nl::Address::default(),
            })
        }));
        attributes.extend(self.replay_attribute(features));
        // The number of packets must not cause a notification ([`crate::events::EspEventSocket`]).
        attributes.push(nl::XfrmAttrs::ReplayThreshold(0));
        // The addresses of a TCP connection do not change.
        if inbound && self.encap.is_some_and(|encap| encap.protocol == EncapProtocol::Udp) {
            attributes.push(nl::XfrmAttrs::MappingTimeThreshold(MAPPING_THRESHOLD_SECONDS));
        }
        if features.sa_direction {
            attributes.push(direction_attribute(self.direction));
        }
        Ok(nl::state::ModifyMessage { user_sa_info: info, nlas: attributes })
    }

    /// Returns the attribute with the replay window. It is always `xfrm_replay_state_esn`, since
    /// the older field allows at most 32. An outbound SA has no window: with ESN, a kernel that
    /// supports directions requires that window and bitmap are absent, while an older kernel
    /// requires a window of at least 1.
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
