//! Internal addresses: the addresses within the tunnel that one end gives the other one by the
//! configuration payload of IKE_AUTH (RFC 7296 2.19, 3.15).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Whether one end gives the other one internal addresses: at most one IPv4 address and one IPv6
/// address. They last as long as the IKE SA and the IKE SAs that replace it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AddressAssignment {
    /// Neither end gives the other one an address. A request for addresses is ignored.
    #[default]
    Off,
    /// We ask the peer for an address of each family that the first child has on both sides. Only
    /// an address within the `local` networks of a child is accepted, and it takes the place of
    /// these networks in all CHILD_SAs. Only we can initiate.
    Request,
    /// The peer must ask us, and gets addresses from these networks that no other peer has. They
    /// take the place of the `remote` networks of all children. Only the peer can initiate.
    Pool(Vec<IpNetwork>),
}

/// Returns whether a host may have this address: it is not unspecified, loopback, link-local,
/// multicast or broadcast.
pub(crate) fn is_assignable(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast() || address.octets().starts_with(&[0]),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    !(special || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// Returns, for each of these networks that contains at least one of the addresses, those
/// addresses as networks.
pub(crate) fn as_networks(addresses: &[IpAddr], within: &[IpNetwork]) -> Vec<IpNetwork> {
    let inside = |address: &&IpAddr| within.iter().any(|network| network.contains(**address));
    addresses.iter().filter(inside).map(|address| IpNetwork::from(*address)).collect()
}
