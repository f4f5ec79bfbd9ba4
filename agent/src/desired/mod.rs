//! What this node wants, computed from the view and the static peers. Pure: no kernel, no clock, no
//! disk.

mod policies;

pub use policies::{Ends, Reach, desired_policies};

use std::collections::BTreeMap;
use std::net::IpAddr;

use edge_ike::config::{Auth, CertificateAuth, ChildConfig};
use edge_ike::{Identity, PeerConfig, PeerName};
use edge_types::network::overlap;
use edge_types::pki::{EKU_IPSEC_IKE_DER, node_uri};
use edge_types::{NodeView, Peer, Role};
use edge_xfrm::guard::GuardConfig;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::candidates;
use crate::config::proposal::{default_esp, default_ike};
use crate::config::{Config, Encap};
use crate::membership::Membership;

/// Everything that this node wants.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// This node's name in the cluster, once there is a view.
    pub node: Option<String>,
    /// Its role.
    pub role: Option<Role>,
    /// Version of the view that this was made of.
    pub view_version: Option<u64>,
    /// All sources of peers have spoken: what is in the kernel and not here is to go.
    pub complete: bool,
    /// Tunnels by our name for the peer.
    pub tunnels: BTreeMap<PeerName, Tunnel>,
    /// What may never travel in clear; nothing on a plain IKEv2 daemon and on cloud nodes.
    pub guard: GuardConfig,
    /// Networks behind peers of the view: routed into the guard's device, where policies take their
    /// packets.
    pub remote_networks: Vec<IpNetwork>,
    /// Networks of hubs that the view no longer names: routed into the guard's device, which
    /// drops their packets.
    pub former_networks: Vec<IpNetwork>,
    /// Networks behind static peers that are routed likewise: there may be no other route, and
    /// where there is one, it must not take their packets in clear while no tunnel is up.
    pub static_networks: Vec<IpNetwork>,
    /// On a cloud node: the cluster's ranges, and the hubs' addresses to route them to, likeliest
    /// first.
    pub hub_routes: Vec<HubRoute>,
    /// On a cloud node: the cloud's networks, which the hubs front.
    pub cloud_networks: Vec<IpNetwork>,
    /// What could not be honoured, and why.
    pub problems: Vec<String>,
}

/// A tunnel to one peer.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// What the endpoint is told.
    pub peer: PeerConfig,
    /// Who asked for it.
    pub origin: Origin,
    /// What may pass.
    pub reach: Reach,
}

/// Who asked for a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The controller's view.
    View,
    /// A `[[peer]]`.
    Configuration,
}

/// A cluster range and where a cloud node sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRoute {
    /// The range.
    pub network: IpNetwork,
    /// Hubs' addresses of the same family.
    pub via: Vec<IpAddr>,
}

impl Desired {
    /// Computes it. `statics` are the `[[peer]]` tables with their secrets read.
    pub fn compute(config: &Config, statics: &[PeerConfig], membership: Option<&Membership>) -> Self {
        let mut desired = Self { complete: config.controller.is_none() || membership.is_some(), ..Self::default() };
        for peer in statics {
            let tunnel = Tunnel { peer: peer.clone(), origin: Origin::Configuration, reach: Reach::Negotiated };
            desired.tunnels.insert(peer.name.clone(), tunnel);
            desired.static_networks.extend(routable(peer, statics));
        }
        desired.static_networks.sort();
        desired.static_networks.dedup();
        let Some(membership) = membership else { return desired };
        let view = &membership.view;
        desired.node = Some(view.node.to_string());
        desired.role = Some(view.role);
        desired.view_version = Some(view.version);
        if let Some(role) = config.role
            && role != view.role
        {
            desired.problems.push(format!(
                "the configuration says role = \"{role}\", this node joined as {}: correct the file, or join with a token for {role}; until \
                 then nothing is negotiated",
                view.role
            ));
            // Still nothing in clear.
            desired.guard = guard(view);
            if view.role != Role::Cloud {
                desired.remote_networks = desired.networks_of_peers(membership);
                desired.hold_former(membership);
            }
            return desired;
        }
        if view.role == Role::Cloud {
            desired.hub_routes = hub_routes(view);
            let hubs = view.peers.iter().filter(|peer| peer.role == Role::Hub);
            desired.cloud_networks = hubs.flat_map(|hub| &hub.networks).copied().collect();
            return desired;
        }
        desired.guard = guard(view);
        desired.remote_networks = desired.networks_of_peers(membership);
        for peer in peers(view) {
            desired.add_peer(config, membership, peer);
        }
        desired.hold_former(membership);
        desired
    }

    /// Which of our segments' packets static peers' tunnels take: local and remote network of each
    /// pair, the local one no wider than a segment.
    #[must_use]
    pub fn static_pairs(&self, segments: &[IpNetwork]) -> Vec<(IpNetwork, IpNetwork)> {
        let statics = self.tunnels.values().filter(|tunnel| tunnel.origin == Origin::Configuration);
        let mut pairs = Vec::new();
        for child in statics.map(|tunnel| &tunnel.peer.child) {
            for local in &child.local {
                for segment in segments.iter().filter(|segment| overlap(segment, local)) {
                    let narrower = if local.prefix() > segment.prefix() { local } else { segment };
                    let remotes = child.remote.iter().filter(|remote| remote.is_ipv4() == local.is_ipv4());
                    pairs.extend(remotes.map(|remote| (*narrower, *remote)));
                }
            }
        }
        pairs.sort();
        pairs.dedup();
        pairs
    }

    /// The networks behind all peers, each once. A network that overlaps this node's own is left
    /// out and named in `problems`.
    fn networks_of_peers(&mut self, membership: &Membership) -> Vec<IpNetwork> {
        let view = &membership.view;
        let mut all = Vec::new();
        for peer in peers(view) {
            for network in peer.remote_networks() {
                match view.local_networks().find(|own| overlap(own, &network)) {
                    Some(own) => self.problems.push(format!(
                        "peer {}: its network {network} overlaps {own} of this node and is left out; correct the hub's networks or the cluster's \
                         ranges at the controller",
                        peer.name
                    )),
                    None => all.push(network),
                }
            }
        }
        all.sort();
        all.dedup();
        all
    }

    fn add_peer(&mut self, config: &Config, membership: &Membership, peer: &Peer) {
        let local: Vec<_> = membership.view.local_networks().collect();
        let beside = |network: &IpNetwork| !local.iter().any(|own| overlap(own, network));
        let remote = peer.remote_networks().filter(beside).collect();
        let name = PeerName::new(peer.name.as_str());
        let tunnel = Tunnel {
            peer: peer_config(config, membership, peer, &name),
            origin: Origin::View,
            reach: Reach::Granted { local, remote },
        };
        if self.tunnels.insert(name, tunnel).is_some() {
            self.problems.push(format!(
                "[[peer]] {:?} has the name of a node of the cluster and is left out; give it another name",
                peer.name.as_str()
            ));
        }
    }

    /// Keeps packets for the networks of a hub that is gone from leaving in clear.
    fn hold_former(&mut self, membership: &Membership) {
        let beside = |network: &IpNetwork| !membership.view.local_networks().any(|own| overlap(&own, network));
        let held: Vec<_> = membership.former_networks.iter().filter(|former| beside(&former.network)).collect();
        if held.is_empty() {
            return;
        }
        self.former_networks = held.iter().map(|former| former.network).collect();
        let named: Vec<_> = held.iter().map(|former| format!("{} of {}", former.network, former.hub)).collect();
        self.problems.push(format!(
            "the view no longer names the hubs of {}: for a day nothing leaves this node for there in clear; if they are gone for good, stop the \
             agent, remove former-networks.json from the state directory, and start it",
            named.join(", ")
        ));
    }
}

/// The peers of a view to which there is a tunnel.
fn peers(view: &NodeView) -> impl Iterator<Item = &Peer> {
    view.peers.iter().filter(|peer| peer.name != view.node && peer.role != Role::Cloud)
}

fn peer_config(config: &Config, membership: &Membership, peer: &Peer, name: &PeerName) -> PeerConfig {
    let credentials = &membership.credentials;
    let any: Vec<IpNetwork> = any_networks();
    PeerConfig {
        name: name.clone(),
        local: None,
        remotes: candidates::peer_candidates(
            peer.endpoints.iter().map(|endpoint| endpoint.address),
            &membership.view.cluster_ranges,
        ),
        local_id: Identity::Fqdn(membership.view.node.to_string()),
        remote_id: Identity::Fqdn(peer.name.to_string()),
        auth: Auth::Certificate(CertificateAuth {
            chain: credentials.chain.clone(),
            key: credentials.key.clone(),
            trust_anchors: credentials.trust_anchors.clone(),
            remote_uri: Some(node_uri(peer.role, &peer.name)),
            remote_key_usages: vec![EKU_IPSEC_IKE_DER.to_vec()],
            remote_not_before: u64::try_from(peer.certificates_from).unwrap_or(0),
        }),
        ike_proposals: default_ike(),
        child: ChildConfig { proposals: default_esp(), local: any.clone(), remote: any },
        // Both ends get the view at the same moment, and either may be the only one that can reach
        // the other.
        initiate: true,
        force_encapsulation: config.encap == Encap::Force,
        keep_existing: false,
        timing: config.timing.resolve(),
    }
}

/// The selectors between our own nodes: policies decide what flows.
fn any_networks() -> Vec<IpNetwork> {
    let v4 = Ipv4Network::new_checked(std::net::Ipv4Addr::UNSPECIFIED, 0).map(IpNetwork::V4);
    let v6 = Ipv6Network::new_checked(std::net::Ipv6Addr::UNSPECIFIED, 0).map(IpNetwork::V6);
    v4.into_iter().chain(v6).collect()
}

fn guard(view: &NodeView) -> GuardConfig {
    GuardConfig {
        cluster_ranges: view.cluster_ranges.clone(),
        segments: view.segments.clone(),
        networks: view.networks.clone(),
        bridge_addresses: vec![],
    }
}

fn hub_routes(view: &NodeView) -> Vec<HubRoute> {
    let hubs = view.peers.iter().filter(|peer| peer.role == Role::Hub);
    let addresses: Vec<IpAddr> =
        hubs.flat_map(|hub| hub.endpoints.iter().map(|endpoint| endpoint.address.ip())).collect();
    view.cluster_ranges
        .iter()
        .map(|network| HubRoute {
            network: *network,
            via: addresses.iter().filter(|address| address.is_ipv4() == network.is_ipv4()).copied().collect(),
        })
        .collect()
}

/// Which networks of a static peer can be routed into the guard's device: not those that hold an
/// address at which a peer is, since ESP itself goes there, nor all of a family, nor what overlaps
/// our side. A peer that comes from nobody knows where may be its own network.
fn routable<'a>(peer: &'a PeerConfig, statics: &'a [PeerConfig]) -> impl Iterator<Item = IpNetwork> + 'a {
    peer.child.remote.iter().copied().filter(move |network| {
        let holds_a_peer = statics.iter().flat_map(|peer| &peer.remotes).any(|remote| network.contains(remote.ip()));
        let all = network.prefix() == 0;
        let host = network.prefix() == if network.is_ipv4() { 32 } else { 128 };
        let perhaps_itself = host && peer.remotes.is_empty();
        let ours = peer.child.local.iter().any(|own| overlap(own, network));
        !(all || holds_a_peer || perhaps_itself || ours)
    })
}

#[cfg(test)]
mod tests;
