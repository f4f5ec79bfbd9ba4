//! The desired state of this node, computed from the view and the static peers. The computation
//! does no I/O and reads no clock.

mod few_changes;
#[cfg(test)]
mod full_computation;
mod on_demand;
mod policies;
mod policy_table;
mod remote_networks;
mod routed_networks;
mod tunnel;
mod tunnel_map;
mod unprotected;

pub use few_changes::Step;
pub use policies::{ChildEnds, PeerReqids, PermittedTraffic, TunnelEnds, tunnel_policies};
pub use policy_table::{PolicyTable, TunnelState};
pub use remote_networks::RemoteNetworks;
pub use routed_networks::{HubException, HubGateway, RoutedNetworks};
pub use tunnel::{DesiredTunnel, Origin};
pub use tunnel_map::TunnelMap;

use std::collections::{BTreeSet, HashSet};
use std::iter::Peekable;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use edge_ike::config::{AgentNotifications, Auth, CertificateAuth, ChildConfig, Mode, NextLayer, Timing};
use edge_ike::{AddressAssignment, ChildName, Childless, Identity, PeerConfig, PeerName};
use edge_types::network::overlap;
use edge_types::pki::{EKU_IPSEC_IKE_DER, node_uri};
use edge_types::{NodeView, Peer, Role, SharedPeer, shared_list};
use edge_xfrm::guard::GuardConfig;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::candidate_addresses;
use crate::config::proposal::{node_esp, node_ike};
use crate::config::{Config, DEFAULT_CHILD, Encap, Start};
use crate::membership::Membership;

/// Default of `liveness` towards hubs. The kernel reports ESP traffic once a second, so a shorter
/// time would cause checks of hubs that are alive.
const HUB_LIVENESS: Duration = Duration::from_secs(2);
/// Default of `idle_liveness` towards hubs, equal to the interval of NAT keepalives.
const HUB_IDLE_LIVENESS: Duration = Duration::from_secs(20);
/// Default of `retry_max` towards edges. The retries may be rare, because an edge that comes back
/// initiates on its own.
const EDGE_RETRY_MAX: Duration = Duration::from_secs(120);

/// An edge asks idle edges no more often than one in this time, all together. With a check of 178
/// octets that is half a megabyte a day.
const EDGE_IDLE_SHARE: Duration = Duration::from_secs(30);

/// The tunnels, guard and routes that this node should have.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// This node's name; `None` without a view.
    pub node: Option<String>,
    /// This node's role; `None` without a view.
    pub role: Option<Role>,
    /// Version of the view; `None` without a view.
    pub view_version: Option<u64>,
    /// Whether all sources of peers are known. If so, any other objects of the agent in the kernel
    /// may be deleted.
    pub complete: bool,
    /// Tunnels by peer name. A tunnel that does not change is shared between successive desired
    /// states.
    pub tunnels: TunnelMap,
    /// Networks to and from which no packet may travel without encryption. Empty without a
    /// controller, and on cloud nodes.
    pub guard: GuardConfig,
    /// Networks behind peers in the view. They are routed into the guard's device, and policies
    /// select the tunnel.
    pub remote_networks: RemoteNetworks,
    /// Hub networks that the view no longer names. They are routed into the guard's device, which
    /// drops their packets.
    pub former_networks: Vec<IpNetwork>,
    /// Networks behind static peers. They are also routed into the guard's device: another route
    /// may not exist, and if one exists, packets must not take it without encryption while the
    /// tunnel is down.
    pub static_networks: Vec<IpNetwork>,
    /// On a cloud node: the cluster ranges, which the node routes through a hub.
    pub hub_routes: Vec<IpNetwork>,
    /// On a cloud node: the hubs' addresses. The hubs are in the order of their names, which is
    /// also the order in which edges prefer them. The addresses of each hub are sorted by
    /// likelihood, likeliest first.
    pub hub_gateways: Vec<HubGateway>,
    /// On a cloud node: the networks that are not reached through some hubs, in their order.
    pub hub_exceptions: Vec<HubException>,
    /// On a cloud node: the cloud's networks, which the hubs front.
    pub cloud_networks: Vec<IpNetwork>,
    /// Parts of the view or the configuration that were left out, with the reasons.
    pub problems: Vec<String>,
    /// Number of tunnels to static peers.
    pub static_tunnels: usize,
    /// Whether no peer in the view has networks in addition to its segments.
    pub only_segments: bool,
    /// How this state was computed from the one before; `None` if it was computed as a whole.
    pub step: Option<Step>,
}

/// How the peers of two desired states differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerChanges {
    /// Peers that are new, or whose configuration or networks have changed.
    pub set: Vec<PeerName>,
    /// Peers that no longer exist.
    pub gone: Vec<PeerName>,
}

impl Desired {
    /// Computes the desired state. `static_peers` are the `[[peer]]` tables with their secrets.
    pub fn compute(config: &Config, static_peers: &[PeerConfig], membership: Option<&Membership>) -> Self {
        Self::update(config, static_peers, membership, None)
    }

    /// Returns the part of the desired state on which the routes depend that separate tasks
    /// maintain.
    pub fn routed_networks(&self) -> RoutedNetworks {
        RoutedNetworks {
            hub_routes: self.hub_routes.clone(),
            hub_gateways: self.hub_gateways.clone(),
            hub_exceptions: self.hub_exceptions.clone(),
            segments: self.guard.segments.clone(),
        }
    }

    /// Computes the desired state as [`Self::compute`] does. `previous` is an earlier membership
    /// and the state that was computed from it with the same configuration. Tunnels of peers that
    /// are the same in both memberships are reused. If only a few edges of a hub differ, the cost
    /// hardly depends on the number of edges.
    pub fn update(
        config: &Config,
        static_peers: &[PeerConfig],
        membership: Option<&Membership>,
        previous: Option<(&Membership, &Arc<Self>)>,
    ) -> Self {
        if let (Some((before, desired)), Some(now)) = (previous, membership)
            && let Some(updated) = few_changes::update(config, before, desired, now)
        {
            return updated;
        }
        let mut desired = Self { complete: config.controller.is_none() || membership.is_some(), ..Self::default() };
        let on_demand: HashSet<&str> =
            (config.peers.iter()).filter(|peer| peer.start == Start::OnDemand).map(|peer| peer.name.as_str()).collect();
        let addresses = static_peers.iter().flat_map(|peer| &peer.remotes).map(SocketAddr::ip).collect();
        for peer in static_peers {
            let tunnel = DesiredTunnel {
                peer: Arc::new(peer.clone()),
                origin: Origin::Configuration,
                permitted: PermittedTraffic::Negotiated,
                hub: false,
                on_demand: on_demand.contains(peer.name.as_str()),
                tcp: vec![],
            };
            desired.tunnels.insert(peer.name.clone(), Arc::new(tunnel));
            desired.static_networks.extend(routable_networks(peer, &addresses));
        }
        desired.static_tunnels = desired.tunnels.len();
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
            // The guard stays, so that no packet travels without encryption.
            desired.guard = guard(view);
            if view.role != Role::Cloud {
                desired.remote_networks = desired.networks_of_peers(membership);
                desired.add_former_networks(membership);
            }
            return desired;
        }
        if view.role == Role::Cloud {
            desired.hub_routes.clone_from(&view.cluster_ranges);
            desired.hub_gateways = hub_gateways(view);
            desired.hub_exceptions = routed_networks::hub_exceptions(view);
            let hubs = view.peers.iter().filter(|peer| peer.role == Role::Hub);
            desired.cloud_networks = hubs.flat_map(|hub| &hub.networks).copied().collect();
            return desired;
        }
        desired.guard = guard(view);
        desired.remote_networks = desired.networks_of_peers(membership);
        desired.only_segments = tunnel_peers(view).all(|peer| peer.networks.is_empty());
        let mut known = previous.and_then(|(before, desired)| KnownTunnels::new(before, desired, membership));
        let members = on_demand::undecided_members(view, tunnel_peers(view));
        let static_tunnels = std::mem::take(&mut desired.tunnels);
        let tunnels = tunnel_peers(view).map(|peer| {
            let on_demand = on_demand::waits_for_a_packet(view, peer, members, config.on_demand.eager);
            match known.as_mut().and_then(|known| known.next(peer)) {
                Some(tunnel) if tunnel.on_demand == on_demand => Arc::clone(tunnel),
                _ => Arc::new(view_tunnel(config, membership, peer, on_demand)),
            }
        });
        // The peers in a view are in the order of their names, which is fastest for the map.
        desired.tunnels = tunnels.map(|tunnel| (tunnel.peer.name.clone(), tunnel)).collect();
        for (name, tunnel) in &static_tunnels {
            if desired.tunnels.contains_key(name) {
                desired.problems.push(format!(
                    "[[peer]] {:?} has the name of a node of the cluster and is left out; give it another name",
                    name.as_str()
                ));
            } else {
                desired.tunnels.insert(name.clone(), tunnel.clone());
            }
        }
        desired.add_former_networks(membership);
        desired
    }

    /// Returns the peers that are new in this state or differ from `before`, and the peers that
    /// only `before` contains.
    #[must_use]
    pub fn changes_since(&self, before: &Arc<Self>) -> PeerChanges {
        if let Some(step) = self.step.as_ref().filter(|step| std::ptr::eq(step.before.as_ptr(), Arc::as_ptr(before))) {
            return step.changes.clone();
        }
        let mut changes = PeerChanges::default();
        for (before, now) in before.tunnels.differences(&self.tunnels) {
            match (before, now) {
                (_, Some(name)) => changes.set.push(name.clone()),
                (Some(name), None) => changes.gone.push(name.clone()),
                (None, None) => {}
            }
        }
        changes
    }

    /// Returns the pairs of local and remote networks between which packets from and to this node's
    /// segments pass through tunnels of static peers. No local network is larger than a segment.
    #[must_use]
    pub fn static_pairs(&self, segments: &[IpNetwork]) -> Vec<(IpNetwork, IpNetwork)> {
        let of_segments = |tunnel: &&Arc<DesiredTunnel>| {
            let asks = tunnel.peer.address_assignment == AddressAssignment::Request;
            tunnel.origin == Origin::Configuration && !asks
        };
        // A hub's ten thousand tunnels are not searched where none of them is a static peer's.
        let searched = if self.static_tunnels == 0 { 0 } else { self.tunnels.len() };
        let static_peers = self.tunnels.values().take(searched).filter(of_segments);
        let mut pairs = Vec::new();
        for child in static_peers.flat_map(|tunnel| tunnel.peer.children()) {
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

    /// Returns the networks behind all peers, each once. A network that overlaps one of this node's
    /// networks is left out and reported in `problems`.
    fn networks_of_peers(&mut self, membership: &Membership) -> RemoteNetworks {
        let view = &membership.view;
        let mut all = Vec::new();
        for peer in tunnel_peers(view) {
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
        RemoteNetworks::new(all, &view.cluster_ranges)
    }

    /// Adds the former networks of hubs, so that packets to them do not leave without encryption.
    /// Networks that overlap this node's networks are left out.
    fn add_former_networks(&mut self, membership: &Membership) {
        let beside = |network: &IpNetwork| !membership.view.local_networks().any(|own| overlap(&own, network));
        let beside_own: Vec<_> = membership.former_networks.iter().filter(|former| beside(&former.network)).collect();
        if beside_own.is_empty() {
            return;
        }
        self.former_networks = beside_own.iter().map(|former| former.network).collect();
        let named: Vec<_> = beside_own.iter().map(|former| format!("{} of {}", former.network, former.hub)).collect();
        self.problems.push(format!(
            "the view no longer names the hubs of {}: for a day nothing leaves this node for there in clear; if they are gone for good, stop the \
             agent, remove former-networks.json from the state directory, and start it",
            named.join(", ")
        ));
    }
}

/// The tunnels of an earlier membership, with the peers from which they were computed. Views and
/// tunnels are in the order of the peers' names, so all tunnels are found in one pass. A tunnel
/// that is not found is computed.
struct KnownTunnels<'a> {
    peers: Peekable<shared_list::Iter<'a, SharedPeer>>,
    tunnels: Peekable<tunnel_map::Iter<'a>>,
}

impl<'a> KnownTunnels<'a> {
    /// Returns the known tunnels, or `None` if anything on which all tunnels depend has changed.
    fn new(before: &'a Membership, desired: &'a Desired, now: &Membership) -> Option<Self> {
        let common = |membership: &'_ Membership| {
            let view = &membership.view;
            let own = view.local_networks().collect::<Vec<_>>();
            (view.node.clone(), view.role, view.cluster_ranges.clone(), own, view.certificate_grace_seconds)
        };
        let same = Arc::ptr_eq(&before.credentials, &now.credentials) && common(before) == common(now);
        same.then(|| Self { peers: before.view.peers.iter().peekable(), tunnels: desired.tunnels.iter().peekable() })
    }

    /// Returns the tunnel of a peer that has not changed. Must be called for the peers in the order
    /// of their names.
    fn next(&mut self, peer: &SharedPeer) -> Option<&'a Arc<DesiredTunnel>> {
        let name = peer.name.as_str();
        // For a peer that both views share, the names need not be compared.
        while self.peers.next_if(|known| !known.is_same(peer) && known.name.as_str() < name).is_some() {}
        while self.tunnels.next_if(|(other, _)| other.as_str() < name).is_some() {}
        let known = self.peers.next_if(|known| known.is_same(peer) || known.name.as_str() == name)?;
        let (_, tunnel) = self.tunnels.next_if(|(other, _)| other.as_str() == name)?;
        (tunnel.origin == Origin::View && known == peer).then_some(tunnel)
    }
}

/// Returns the peers in a view to which this node has a tunnel.
fn tunnel_peers(view: &NodeView) -> impl Iterator<Item = &SharedPeer> {
    view.peers.iter().filter(|peer| peer.name != view.node && peer.role != Role::Cloud)
}

/// Computes the tunnel to a peer in the view.
fn view_tunnel(config: &Config, membership: &Membership, peer: &Peer, on_demand: bool) -> DesiredTunnel {
    let local: Vec<_> = membership.view.local_networks().collect();
    let beside = |network: &IpNetwork| !local.iter().any(|own| overlap(own, network));
    let remote = peer.remote_networks().filter(beside).collect();
    let name = PeerName::new(peer.name.as_str());
    DesiredTunnel {
        // Unless the tunnel is set up on demand, both ends initiate, since it may be that only one
        // of them can reach the other.
        peer: Arc::new(PeerConfig { initiate: !on_demand, ..peer_config(config, membership, peer, &name) }),
        origin: Origin::View,
        permitted: PermittedTraffic::Granted { local, remote },
        hub: peer.role == Role::Hub,
        on_demand,
        tcp: tcp_addresses(config, membership, peer),
    }
}

/// Returns the addresses at which this node connects to a hub by TCP.
fn tcp_addresses(config: &Config, membership: &Membership, peer: &Peer) -> Vec<SocketAddr> {
    let applies = config.tcp.fallback && membership.view.role == Role::Edge && peer.role == Role::Hub;
    let Some(port) = peer.tcp_port.filter(|_| applies) else { return vec![] };
    let addresses = peer.endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.address.ip(), port));
    candidate_addresses::peer_candidates(addresses, &membership.view.cluster_ranges)
}

fn peer_config(config: &Config, membership: &Membership, peer: &Peer, name: &PeerName) -> PeerConfig {
    let credentials = &membership.credentials;
    let any: Vec<IpNetwork> = any_networks();
    PeerConfig {
        name: name.clone(),
        local: None,
        remotes: candidate_addresses::peer_candidates(
            peer.mapped.iter().copied().chain(peer.endpoints.iter().map(|endpoint| endpoint.address)),
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
            remote_grace: Duration::from_secs(membership.view.certificate_grace_seconds),
            revocation: None,
        }),
        ike_proposals: node_ike(),
        child: ChildConfig {
            name: ChildName::new(DEFAULT_CHILD),
            proposals: node_esp(),
            local: any.clone(),
            remote: any,
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        initiate: true,
        force_encapsulation: config.encap == Encap::Force,
        mobike: true,
        keep_existing: false,
        agent_notifications: match membership.view.role {
            Role::Hub => AgentNotifications::TellAddress,
            Role::Edge | Role::Cloud => AgentNotifications::Exchange,
        },
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: timing(config, membership.view.role, peer.role),
    }
}

/// Returns the timers of a tunnel to a node. Towards a hub, attempts are more frequent and liveness
/// is checked earlier. Another hub may take over, and a hub that has rebooted cannot reach an idle
/// edge behind a NAT, so the edge must detect the loss itself. Edges ask idle edges so rarely that
/// it takes no more traffic in a large community than in a small one.
fn timing(config: &Config, own: Role, peer: Role) -> Timing {
    let configured = &config.timing;
    let mut timing = configured.resolve();
    if peer == Role::Hub {
        timing.liveness = configured.liveness.unwrap_or(HUB_LIVENESS);
        timing.idle_liveness = configured.idle_liveness.unwrap_or(HUB_IDLE_LIVENESS);
    } else {
        timing.retry_max = configured.retry_max.unwrap_or(EDGE_RETRY_MAX);
        if own == Role::Edge && configured.idle_liveness.is_none() {
            timing.idle_share = EDGE_IDLE_SHARE;
        }
    }
    timing
}

/// Returns the traffic selectors between our own nodes, which cover all addresses. XFRM policies
/// determine which packets may pass.
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
        sources: Vec::new(),
    }
}

fn hub_gateways(view: &NodeView) -> Vec<HubGateway> {
    let mut hubs: Vec<&SharedPeer> = view.peers.iter().filter(|peer| peer.role == Role::Hub).collect();
    hubs.sort_by(|one, other| one.name.cmp(&other.name));
    let gateways = hubs.into_iter().flat_map(|hub| {
        let addresses = hub.endpoints.iter().map(|endpoint| endpoint.address);
        let addresses = candidate_addresses::peer_candidates(addresses, &view.cluster_ranges);
        addresses.into_iter().map(|address| HubGateway { hub: hub.name.clone(), address })
    });
    gateways.collect()
}

/// Returns the networks of a static peer that can be routed into the guard's device. It leaves out
/// networks that contain a peer's address, since ESP itself is sent to that address; `0.0.0.0/0`
/// and `::/0`; networks that overlap this node's networks; and networks to which only some
/// protocols go through the tunnel. For a peer without a known address, a host network is left out
/// too, because it may be the peer itself. `addresses` are the addresses of all static peers.
fn routable_networks<'a>(
    peer: &'a PeerConfig,
    addresses: &'a BTreeSet<IpAddr>,
) -> impl Iterator<Item = IpNetwork> + 'a {
    let whole = peer.children().filter(|child| child.next_layer == NextLayer::ANY);
    whole.flat_map(|child| &child.remote).copied().filter(move |network| {
        let holds_a_peer = addresses.range(network.network()..=network.broadcast()).next().is_some();
        let all = network.prefix() == 0;
        let host = network.prefix() == if network.is_ipv4() { 32 } else { 128 };
        let pool = matches!(peer.address_assignment, AddressAssignment::Pool(_));
        let perhaps_itself = host && peer.remotes.is_empty() && !pool;
        // One end of the tunnel is an internal address. The networks on that side only bound what
        // the address may be, and a pool is never ours.
        let assigned = peer.address_assignment != AddressAssignment::Off;
        let ours = !assigned && peer.children().flat_map(|child| &child.local).any(|own| overlap(own, network));
        !(all || holds_a_peer || perhaps_itself || ours)
    })
}

#[cfg(test)]
pub(crate) mod tests;
