//! One of the agent's SAs in the kernel.

use std::net::IpAddr;

use edge_xfrm::reconcile::ExpectedSa;
use edge_xfrm::{Encap, EncapProtocol, Mode, Reqid, SaDirection, SaId, SaParams};

/// One of the agent's SAs in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InstalledSa {
    /// Whether the SA decrypts (`In`) or encrypts (`Out`).
    pub(super) direction: SaDirection,
    /// Source address of the ESP packets.
    pub(super) source: IpAddr,
    /// Destination address of the ESP packets, and SPI.
    pub(super) id: SaId,
    /// Reqid, which is also in the templates of the peer's policies.
    pub(super) reqid: Reqid,
    /// Tunnel or transport mode.
    pub(super) mode: Mode,
    /// UDP ports, if ESP is encapsulated in UDP.
    pub(super) encap: Option<Encap>,
}

/// What a change of a peer's addresses means for an SA in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaChange {
    /// The SA stays as it is.
    None,
    /// The UDP ports change.
    Ports,
    /// The addresses change, or UDP encapsulation is added or removed, which an SA does not allow.
    NewSa,
}

impl InstalledSa {
    pub(super) fn of(params: &SaParams) -> Self {
        Self {
            direction: params.direction,
            source: params.source,
            id: params.id(),
            reqid: params.reqid,
            mode: params.mode,
            encap: params.encap,
        }
    }

    /// Returns what must happen in the kernel so that this SA becomes `new`.
    pub(super) fn change_to(&self, new: &Self) -> SaChange {
        if self == new {
            return SaChange::None;
        }
        let is_udp = |encap: Option<Encap>| encap.is_some_and(|encap| encap.protocol == EncapProtocol::Udp);
        let in_udp = is_udp(self.encap) && is_udp(new.encap);
        let moved = Self { encap: new.encap, ..self.clone() };
        if in_udp && moved == *new { SaChange::Ports } else { SaChange::NewSa }
    }

    /// Returns the values that are compared with the SA in the kernel.
    pub(super) fn expected(&self) -> ExpectedSa {
        ExpectedSa { id: self.id, reqid: self.reqid.raw(), encap: self.encap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_ports_of_an_encapsulated_sa_change_it_and_other_addresses_need_another_one() {
        let sa = |source: &str, ports: Option<(u16, u16)>| InstalledSa {
            direction: SaDirection::In,
            source: source.parse().unwrap(),
            id: SaId { destination: "192.0.2.1".parse().unwrap(), spi: 7 },
            reqid: Reqid::FROM_HUBS,
            mode: Mode::Tunnel,
            encap: ports.map(|(source, destination)| Encap::udp(source, destination)),
        };
        let encapsulated = sa("192.0.2.2", Some((4500, 4500)));
        assert_eq!(encapsulated.change_to(&encapsulated.clone()), SaChange::None);
        assert_eq!(encapsulated.change_to(&sa("192.0.2.2", Some((61_000, 4500)))), SaChange::Ports);
        assert_eq!(encapsulated.change_to(&sa("192.0.2.3", Some((61_000, 4500)))), SaChange::NewSa);
        assert_eq!(encapsulated.change_to(&sa("192.0.2.2", None)), SaChange::NewSa);
        let in_tcp = InstalledSa { encap: Some(Encap::tcp(61_000, 4500)), ..sa("192.0.2.2", None) };
        assert_eq!(encapsulated.change_to(&in_tcp), SaChange::NewSa);
        // The port of IKE does not matter to ESP without UDP.
        let plain = sa("192.0.2.2", None);
        assert_eq!(plain.change_to(&sa("192.0.2.2", None)), SaChange::None);
        assert_eq!(plain.change_to(&encapsulated), SaChange::NewSa);
    }
}
