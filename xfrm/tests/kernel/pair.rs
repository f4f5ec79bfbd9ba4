//! Two hosts that are connected by SAs.

use std::net::UdpSocket;

use edge_xfrm::sa::Features;
use edge_xfrm::{Direction, Encap, Policy, Reqid, SaDirection, SaId, SaParams, Xfrm};

use crate::namespace::{Namespace, receive};
use crate::policies::selector;

/// Two hosts on one link, with an inner address of each family.
pub(crate) struct Pair {
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    /// The kernel decapsulates ESP in UDP only while these sockets are open.
    _sockets: Vec<UdpSocket>,
}

pub(crate) fn pair() -> Pair {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.wire(("eth0", &["192.0.2.1/24", "2001:db8::1/64"]), &b, ("eth0", &["192.0.2.2/24", "2001:db8::2/64"]));
    let mut sockets = Vec::new();
    for (here, n, there) in [(&a, 0, 1), (&b, 1, 0)] {
        here.ip(&format!("addr add 10.77.{n}.1/32 dev lo"));
        here.ip(&format!("addr add fd77:0:0:{n}::1/128 dev lo nodad"));
        here.ip(&format!("route add 10.77.{there}.0/24 via 192.0.2.{} src 10.77.{n}.1", there + 1));
        here.ip(&format!("-6 route add fd77:0:0:{there}::/64 via 2001:db8::{}", there + 1));
        for address in ["0.0.0.0:4500", "[::]:4500"] {
            sockets.push(esp_socket(here, address));
        }
    }
    Pair { a, b, _sockets: sockets }
}

pub(crate) fn esp_socket(namespace: &Namespace, address: &str) -> UdpSocket {
    let socket = namespace.listen(address);
    edge_xfrm::socket::decapsulate_esp(&socket, true).unwrap();
    socket
}

pub(crate) fn policies(local: u32, remote: u32, n: u32, outer: (&str, &str)) -> Vec<Policy> {
    let reqid = Reqid::tunnel(n).unwrap();
    let (here, there) = (outer.0.parse().unwrap(), outer.1.parse().unwrap());
    [
        (format!("10.77.{local}.0/24"), format!("10.77.{remote}.0/24")),
        (format!("fd77:0:0:{local}::/64"), format!("fd77:0:0:{remote}::/64")),
    ]
    .iter()
    .flat_map(|(local, remote)| {
        let out = selector(local, remote);
        [Policy::protect_out(out, reqid, here, there), Policy::protect_in(Direction::In, out.reversed(), reqid)]
    })
    .collect()
}

/// Installs the SAs for both directions, and the policies, at both hosts.
pub(crate) fn connect(pair: &Pair, forth: &SaParams, back: &SaParams, features: Option<Features>) {
    let outer = (forth.source.to_string(), forth.destination.to_string());
    let n = forth.reqid.tunnel_number().unwrap();
    for (namespace, outbound, inbound, local, remote, (here, there)) in [
        (&pair.a, forth, back, 0, 1, (outer.0.clone(), outer.1.clone())),
        (&pair.b, back, forth, 1, 0, (outer.1.clone(), outer.0.clone())),
    ] {
        let outbound = SaParams { direction: SaDirection::Out, ..outbound.clone() };
        let inbound = SaParams { direction: SaDirection::In, ..inbound.clone() };
        namespace.run(move || {
            let mut xfrm = Xfrm::open().unwrap();
            features.into_iter().for_each(|features| xfrm.assume_features(features));
            xfrm.install_inbound(&inbound).unwrap();
            xfrm.add_sa(&outbound).unwrap();
            let errors = xfrm.reconcile_policies(&policies(local, remote, n, (&here, &there))).unwrap().1;
            assert!(errors.is_empty(), "{errors:?}");
        });
    }
}

pub(crate) fn reversed(sa: &SaParams, spi: u32) -> SaParams {
    let encap = sa.encap.map(|e| Encap { source_port: e.destination_port, destination_port: e.source_port, ..e });
    SaParams { source: sa.destination, destination: sa.source, spi, encap, ..sa.clone() }
}

/// Sends a datagram of each family in each direction, and checks that it arrives.
pub(crate) fn talk(pair: &Pair) {
    for (from, to, source, destination) in [
        (&pair.a, &pair.b, "10.77.0.1", "10.77.1.1:7"),
        (&pair.b, &pair.a, "10.77.1.1", "10.77.0.1:7"),
        (&pair.a, &pair.b, "fd77::1", "[fd77:0:0:1::1]:7"),
        (&pair.b, &pair.a, "fd77:0:0:1::1", "[fd77::1]:7"),
    ] {
        let socket = to.listen(destination);
        from.send(source, destination, "through");
        assert_eq!(receive(&socket), "through", "{source} to {destination}");
    }
}

pub(crate) fn read(namespace: &Namespace, id: SaId) -> edge_xfrm::Sa {
    namespace.run(move || Xfrm::open().unwrap().sa(id).unwrap().expect("the SA is there"))
}
