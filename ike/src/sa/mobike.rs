//! MOBIKE (RFC 4555): the notifications that state the addresses of both ends, and the state that
//! an IKE SA stores about these addresses. `exchange/addresses.rs` contains the exchanges.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use super::path::Path;
use crate::config::{EndpointConfig, PeerConfig};
use crate::event::IkeId;
use crate::output::Context;
use crate::tcp_connection::is_reserved_for_tcp;
use crate::wire::{Notify, NotifyType, Payload, Payloads};

/// Maximum number of additional addresses that are announced, and of the peer's additional
/// addresses that are stored. Further addresses are ignored.
pub(crate) const MAX_ADDITIONAL: usize = 8;

/// Length of the hash in NAT_DETECTION_*_IP, bytes (SHA-1, RFC 7296 2.23).
pub(super) const NAT_DETECTION_HASH_LEN: usize = 20;

/// How a peer's SAs move to another address of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalMove {
    /// The peer is asked at the new address. ESP moves when it answers there.
    Begun,
    /// The SAs stay: the peer is the original initiator, which chooses the addresses (RFC 4555
    /// 3.5). A new IKE SA that this node begins can have the address
    /// ([`crate::Endpoint::try_addresses`]).
    PeerChooses,
    /// The SAs stay: the peer does not support MOBIKE, has no IKE SA or one in TCP, is at this
    /// address already, or has just been asked at another one.
    Impossible,
}

/// Allowed size of COOKIE2, bytes (RFC 4555 4.2.5).
const COOKIE2_OCTETS: std::ops::RangeInclusive<usize> = 8..=64;

/// The addresses of both ends in addition to the path of an IKE SA.
#[derive(Debug, Clone)]
pub(crate) struct Mobike {
    /// The additional addresses that the peer announced last, at most [`MAX_ADDITIONAL`].
    pub(super) peer_addresses: Box<[IpAddr]>,
    /// The peer's address in the IP header of the message that carried its list: IKE_AUTH or an
    /// announcement. It belongs to the list (RFC 4555 3.4, 3.6).
    pub(super) announced_by_peer_from: SocketAddr,
    /// The additional addresses that we announced last.
    pub(super) announced: Box<[IpAddr]>,
    /// Our address in the IP header of the message that carried the list: IKE_AUTH or an
    /// announcement. It counts as the first address of the list. charon does not change that
    /// address on UPDATE_SA_ADDRESSES.
    pub(super) announced_from: IpAddr,
    /// Our address as the peer sees it: its last NAT_DETECTION_DESTINATION_IP in an address update.
    pub(super) seen_as: Option<[u8; NAT_DETECTION_HASH_LEN]>,
    /// Whether our address changed while another IKE SA superseded this one, so that the peer was
    /// not told.
    pub(super) missed_move: bool,
    /// Number of consecutive UNEXPECTED_NAT_DETECTED answers from the peer.
    pub(super) unexpected_nats: u32,
}

impl Mobike {
    /// Returns the state after IKE_AUTH on this path, in which we announced these addresses.
    /// Returns `None` if one of the ends does not support MOBIKE.
    pub(super) fn negotiated(
        config: &PeerConfig,
        payloads: &Payloads,
        announced: Vec<IpAddr>,
        path: &Path,
    ) -> Option<Self> {
        //= RFC 4555 3.2 MUST 1: MOBIKE is announced in IKE_AUTH
        //= RFC 4555 4.2.1 MUST 2: its data does not matter
        let both = config.speaks_mobike() && payloads.notify(NotifyType::MobikeSupported).is_some();
        both.then(|| Self {
            peer_addresses: additional_of(payloads).unwrap_or_default().into(),
            announced_by_peer_from: path.remote,
            announced: announced.into(),
            announced_from: path.local.ip(),
            seen_as: None,
            missed_move: false,
            unexpected_nats: 0,
        })
    }
}

/// Returns our notifications for IKE_AUTH: MOBIKE_SUPPORTED, and our additional addresses.
pub(super) fn supported(additional: &[IpAddr]) -> impl Iterator<Item = Payload> {
    //= RFC 4555 4.2.1 MUST 1: no data
    let data = if mutation!("mobike_announced_with_data") { vec![1] } else { Vec::new() };
    let supported = Notify::with_data(NotifyType::MobikeSupported, data);
    std::iter::once(supported).chain(additional.iter().copied().map(Notify::additional_address)).map(Payload::Notify)
}

/// Returns our additional addresses for an INFORMATIONAL request. The list is always complete.
//= RFC 4555 3.6 REQUIRED 1: the complete list
pub(super) fn additional(addresses: &[IpAddr]) -> Vec<Payload> {
    if addresses.is_empty() {
        return vec![Payload::Notify(Notify::new(NotifyType::NoAdditionalAddresses))];
    }
    addresses.iter().copied().map(Notify::additional_address).map(Payload::Notify).collect()
}

/// Returns the addresses of this node other than `current` that are announced to this peer.
pub(super) fn own_additional(config: &EndpointConfig, peer: &PeerConfig, current: IpAddr) -> Vec<IpAddr> {
    let inner = || peer.children().flat_map(|child| &child.local);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in config.addresses.iter().map(IpAddr::to_canonical) {
        let outer = address != current.to_canonical() && can_be_reached(address) && !is_inner(address, inner());
        if outer && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.truncate(MAX_ADDITIONAL);
    addresses
}

/// Returns the peer's additional addresses, or `None` if the message contains no list of them.
pub(super) fn additional_of(payloads: &Payloads) -> Option<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in payloads.notifies().filter_map(Notify::address).filter(|address| can_be_reached(*address)) {
        if !addresses.contains(&address) && addresses.len() < MAX_ADDITIONAL {
            addresses.push(address);
        }
    }
    let kinds = [NotifyType::AdditionalIp4Address, NotifyType::AdditionalIp6Address, NotifyType::NoAdditionalAddresses];
    payloads.notifies().any(|notify| kinds.contains(&notify.kind)).then_some(addresses)
}

/// Returns whether an address belongs to one of these networks. Packets to these networks go
/// through the tunnel. Selectors for all addresses, as between our own nodes, do not count.
pub(super) fn is_inner<'a>(address: IpAddr, networks: impl IntoIterator<Item = &'a IpNetwork>) -> bool {
    networks.into_iter().any(|network| network.prefix() > 0 && network.contains(address))
}

/// Returns whether other hosts can send to this address. Link-local addresses are excluded, since
/// they are meaningless without an interface, and so are those that stand for TCP connections.
pub(super) fn can_be_reached(address: IpAddr) -> bool {
    let link_local = match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let address = address.to_canonical();
    let of_tcp = is_reserved_for_tcp(address);
    !(link_local || of_tcp || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// Returns the payloads that protect the addresses of a request that may change them: NAT
/// detection, or NO_NATS_ALLOWED if the peer does not support NAT traversal (RFC 4555 3.5, 3.9).
pub(super) fn protection(path: &Path, ike: IkeId, forced: bool) -> Vec<Payload> {
    if path.nat_traversal {
        return path.notifies(ike, forced).map(Payload::Notify).to_vec();
    }
    //= RFC 4555 3.9 MUST 1: NO_NATS_ALLOWED without NAT traversal
    vec![Payload::Notify(Notify::no_nats_allowed(path.local, path.remote))]
}

/// Returns whether the peer forbids NATs, but there is one: the addresses of its datagram differ
/// from those in its notification.
pub(super) fn finds_unexpected_nat(payloads: &Payloads, local: SocketAddr, remote: SocketAddr) -> bool {
    //= RFC 4555 3.9 MUST 2: compared with the IP header
    //= RFC 4555 3.9 MUST NOT 6: and used for nothing else
    let expected = Notify::no_nats_allowed(remote, local);
    payloads.notifies().any(|notify| notify.kind == NotifyType::NoNatsAllowed && notify.data != expected.data)
}

/// The octets of one of our COOKIE2 notifications. A response that contains them proves that the
/// peer receives our messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie2([u8; 16]);

impl Cookie2 {
    /// Makes an unpredictable COOKIE2.
    pub(super) fn new(cx: &mut Context<'_>) -> Self {
        //= RFC 4555 4.2.5 MUST 2: COOKIE2 is unpredictable
        Self(if mutation!("cookie2_repeated") { [2; 16] } else { cx.random() })
    }

    /// Returns the COOKIE2 notification.
    //= RFC 4555 4.2.5 MUST 1: 8 to 64 octets
    pub(super) fn payload(self) -> Payload {
        Payload::Notify(Notify::with_data(NotifyType::Cookie2, self.0.to_vec()))
    }

    /// Returns whether these payloads contain this COOKIE2.
    pub(super) fn is_returned(self, payloads: &Payloads) -> bool {
        let returned = payloads.notify(NotifyType::Cookie2);
        returned.is_some_and(|notify| notify.data == self.0) || mutation!("any_cookie2_accepted")
    }
}

/// Returns the peer's COOKIE2 unchanged, for our response.
//= RFC 4555 3.7 MUST 3: COOKIE2 is copied unchanged
pub(super) fn returned_cookie(payloads: &Payloads) -> Option<Payload> {
    let cookie = payloads.notify(NotifyType::Cookie2).filter(|notify| COOKIE2_OCTETS.contains(&notify.data.len()))?;
    Some(Payload::Notify(Notify::with_data(NotifyType::Cookie2, cookie.data.clone())))
        .filter(|_| !mutation!("cookie2_not_returned"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_addresses_that_another_host_can_reach_are_announced_and_eight_at_most() {
        let mut addresses: Vec<IpAddr> = [
            "127.0.0.1",
            "::1",
            "169.254.1.1",
            "fe80::1",
            "224.0.0.1",
            "0.0.0.0",
            "100::2:0:0:1",
            "192.0.2.1",
            "::ffff:192.0.2.1",
        ]
        .map(ip)
        .to_vec();
        addresses.extend((1..20).map(|host| IpAddr::from([10, 0, 0, host])));
        addresses.push(ip("10.0.0.2"));
        let config = EndpointConfig { addresses, ..EndpointConfig::default() };
        let mut peer = PeerConfig::clone(&super::super::tests::profile().config);
        let announced = own_additional(&config, &peer, ip("10.0.0.1"));
        assert_eq!(announced[..2], [ip("192.0.2.1"), ip("10.0.0.2")]);
        assert_eq!(announced.len(), MAX_ADDITIONAL);
        // Addresses in networks that a child protects are not announced, since the peer reaches
        // them only through the tunnel.
        peer.child.local = vec!["10.0.0.0/28".parse().unwrap(), "::/0".parse().unwrap()];
        let announced = own_additional(&config, &peer, ip("10.0.0.1"));
        assert_eq!(announced, [ip("192.0.2.1"), ip("10.0.0.16"), ip("10.0.0.17"), ip("10.0.0.18"), ip("10.0.0.19")]);
    }

    #[test]
    fn a_list_of_the_peer_is_read_with_a_limit_and_without_what_is_malformed() {
        let read = |notifies: Vec<Notify>| additional_of(&notifies.into_iter().map(Payload::Notify).collect());
        assert_eq!(read(vec![Notify::new(NotifyType::Cookie2)]), None);
        assert_eq!(read(vec![Notify::new(NotifyType::NoAdditionalAddresses)]), Some(Vec::new()));
        let short = Notify::with_data(NotifyType::AdditionalIp4Address, vec![1; 3]);
        assert_eq!(read(vec![short]), Some(Vec::new()));
        let six = Notify::additional_address(ip("2001:db8::1"));
        assert_eq!((six.kind, six.data.len()), (NotifyType::AdditionalIp6Address, 16));
        let loopback = Notify::additional_address(ip("127.0.0.1"));
        let tcp = Notify::additional_address(crate::TcpConnectionId::new(7).remote());
        assert_eq!(read(vec![six.clone(), loopback, tcp, six]), Some(vec![ip("2001:db8::1")]));
        let many = (0..100).map(|host| Notify::additional_address(IpAddr::from([10, 0, 0, host]))).collect();
        assert_eq!(read(many).map(|addresses| addresses.len()), Some(MAX_ADDITIONAL));
    }

    #[test]
    fn no_nats_allowed_names_addresses_then_ports() {
        let (source, destination) = ("192.0.2.1:500".parse().unwrap(), "198.51.100.2:4500".parse().unwrap());
        let notify = Notify::no_nats_allowed(source, destination);
        assert_eq!(notify.data, [192, 0, 2, 1, 198, 51, 100, 2, 1, 244, 17, 148]);
        let six = Notify::no_nats_allowed("[2001:db8::1]:500".parse().unwrap(), "[2001:db8::2]:500".parse().unwrap());
        assert_eq!(six.data.len(), 36);
        let payloads = Payloads::from(vec![Payload::Notify(notify)]);
        assert!(!finds_unexpected_nat(&payloads, destination, source));
        assert!(finds_unexpected_nat(&payloads, destination, "192.0.2.1:501".parse().unwrap()));
        assert!(finds_unexpected_nat(&payloads, source, destination));
    }
}
