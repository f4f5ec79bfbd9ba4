//! Tests that a CHILD_SA has an identifier of its own in an endpoint with several addresses.

use super::*;

const HUB: [&str; 2] = ["192.0.2.10", "192.0.2.11"];
const EDGES: [&str; 2] = ["192.0.2.20", "192.0.2.21"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Endpoints with the addresses that they have.
struct Net {
    ends: Vec<(Endpoint, Host, Vec<IpAddr>)>,
    now: Instant,
}

impl Net {
    fn call<R>(&mut self, end: usize, call: impl FnOnce(&mut Endpoint, Instant, &mut dyn Environment) -> R) -> R {
        let (endpoint, host, _) = &mut self.ends[end];
        let result = call(endpoint, self.now, host);
        while self.deliver() {}
        result
    }

    /// Delivers the datagrams that the endpoints have sent. Returns whether there were any.
    fn deliver(&mut self) -> bool {
        let sent: Vec<Transmit> =
            self.ends.iter_mut().flat_map(|(endpoint, ..)| std::iter::from_fn(|| endpoint.poll_transmit())).collect();
        for Transmit { local, remote, payload } in &sent {
            let (endpoint, host, _) = self.ends.iter_mut().find(|(_, _, own)| own.contains(&remote.ip())).unwrap();
            endpoint.handle(payload, *remote, *local, self.now, host);
        }
        !sent.is_empty()
    }
}

/// Returns the configuration of the tunnel between an edge and the hub's address of the same
/// number, at the hub or at the edge.
fn tunnel(number: usize, at_hub: bool) -> PeerConfig {
    let psk = Auth::Psk(Secret::new(b"correct horse battery staple".to_vec()));
    let edge = Identity::Fqdn(format!("edge-{number}.example"));
    let hub = Identity::Fqdn("hub.example".into());
    let (local, remote) = if at_hub { (HUB, EDGES) } else { (EDGES, HUB) };
    let (local_id, remote_id) = if at_hub { (hub, edge) } else { (edge, hub) };
    PeerConfig {
        name: PeerName::new(&format!("peer-{number}")),
        local: Some(ip(local[number])),
        remotes: vec![SocketAddr::new(ip(remote[number]), 500)],
        local_id,
        remote_id,
        initiate: !at_hub,
        ..config(0, psk)
    }
}

#[test]
fn child_sas_at_two_addresses_do_not_share_an_identifier() {
    let end = |seed, addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| ip(address)).collect();
        (Endpoint::new(EndpointConfig::default()), Host::new(seed), addresses)
    };
    let ends = vec![end(1, &HUB), end(2, &EDGES[..1]), end(3, &EDGES[1..])];
    let mut net = Net { ends, now: Instant::new(Duration::from_secs(1000)) };
    for number in 0..2 {
        net.call(0, |endpoint, now, env| endpoint.set_peer(tunnel(number, true), now, env)).unwrap();
        net.call(number + 1, |endpoint, now, env| endpoint.set_peer(tunnel(number, false), now, env)).unwrap();
    }
    let ids: Vec<_> =
        net.ends[0].0.snapshot().iter().flat_map(|peer| &peer.children).map(|child| child.sa.id).collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
    // The SPIs are free again when the CHILD_SAs are gone.
    for number in 0..2 {
        net.call(0, |endpoint, now, env| endpoint.terminate(&PeerName::new(&format!("peer-{number}")), now, env));
    }
    assert!(net.ends[0].0.out.inbound_spis.is_empty());
}
