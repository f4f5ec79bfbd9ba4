//! The view that unit tests start from.

use edge_types::{NodeView, Peer, Role, SharedPeer};

/// Returns version 1 of the view of `edge-1`, an edge with the cluster range 10.77.0.0/16. It has
/// no segments, no peers and no trust anchors.
pub(crate) fn empty_view() -> NodeView {
    NodeView {
        version: 1,
        node: "edge-1".parse().unwrap(),
        role: Role::Edge,
        communities: Default::default(),
        cluster_ranges: vec!["10.77.0.0/16".parse().unwrap()],
        segments: vec![],
        networks: vec![],
        peers: vec![].into(),
        trust_anchors: vec![],
        segment_prefix: Default::default(),
        certificate_grace_seconds: 0,
        unreached_from: Default::default(),
    }
}

/// Returns an edge as a peer, with one segment.
pub(crate) fn edge_peer(name: &str, segment: &str, certificates_from: i64) -> SharedPeer {
    SharedPeer::from(Peer {
        name: name.parse().unwrap(),
        role: Role::Edge,
        endpoints: vec![],
        segments: vec![segment.parse().unwrap()],
        networks: vec![],
        mapped: vec![],
        tcp_port: None,
        on_demand_in: Default::default(),
        certificates_from,
    })
}

/// Creates a trust anchor, in PEM.
pub(crate) fn anchor() -> String {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters.self_signed(&key).unwrap().pem()
}
