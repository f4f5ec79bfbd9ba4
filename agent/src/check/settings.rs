//! Finds settings that work, but probably not as the operator intended: everybody is let in, a
//! timer has no effect, both ends of a tunnel have one identity.

use edge_ike::canonical_identity;
use ipnetwork::IpNetwork;

use super::report::{Level, Report};
use crate::config::{Config, PeerSection, Remote};

/// Directories whose content is gone after a reboot.
const LOST_AT_REBOOT: [&str; 4] = ["/run", "/var/run", "/dev/shm", "/proc"];

pub(super) fn check(config: &Config, report: &mut Report) {
    for (section, warning) in warnings(config) {
        report.add(Level::Warning, &section, warning);
    }
}

/// Returns the section and the text of each warning about settings of the node and of each peer.
pub(super) fn warnings(config: &Config) -> impl Iterator<Item = (String, String)> {
    let of_node = firewall(config).into_iter().chain(timing(config)).chain(state_dir(config)).chain(sizes(config));
    let of_node = of_node.map(|(section, warning)| (section.to_owned(), warning));
    of_node.chain(
        config.peers.iter().flat_map(|peer| of_peer(peer).into_iter().map(|warning| (peer.name.clone(), warning))),
    )
}

fn firewall(config: &Config) -> Vec<(&'static str, String)> {
    let firewall = &config.firewall;
    let mut warnings = vec![];
    for (key, networks, consequence) in [
        (
            "lan_to_pods",
            &firewall.lan_to_pods,
            "every host that can send to this node, the internet too, reaches its pods without encryption; name the networks of the LAN",
        ),
        (
            "lan_to_tunnels",
            &firewall.lan_to_tunnels,
            "every host that can send to this node, the internet too, may use its tunnels; name the networks of the LAN",
        ),
        (
            "pod_sources",
            &firewall.pod_sources,
            "every pod may send with any source address, also that of another pod; name the networks that pods route",
        ),
        (
            "masquerade_except",
            &firewall.masquerade_except,
            "no packet of a pod is masqueraded; masquerade = false says so, or name the networks that have a route back to pods",
        ),
    ] {
        for everything in networks.iter().filter(|network| holds_everything(network)) {
            warnings.push(("[firewall]", format!("{key} has {everything}: {consequence}")));
        }
    }
    if firewall.masquerade == Some(false) && !firewall.masquerade_except.is_empty() {
        let warning = "masquerade_except has no effect, since masquerade is false; leave one of them out";
        warnings.push(("[firewall]", warning.to_owned()));
    }
    warnings
}

/// Returns whether a network has half of all addresses of its family, or more: `0.0.0.0/0` is also
/// written as two halves.
fn holds_everything(network: &IpNetwork) -> bool {
    network.prefix() <= 1
}

fn timing(config: &Config) -> Vec<(&'static str, String)> {
    let timing = config.timing.resolve();
    let mut warnings = vec![];
    for (key, value, other, limit, consequence) in [
        (
            "ike_lifetime",
            timing.ike_lifetime,
            "child_lifetime",
            timing.child_lifetime,
            "an IKE SA usually lives longer than its CHILD_SAs, whose keys protect far more data",
        ),
        (
            "authentication_lifetime",
            timing.authentication_lifetime,
            "ike_lifetime",
            timing.ike_lifetime,
            "no IKE SA is ever rekeyed, since a new one replaces it before",
        ),
        (
            "child_lifetime",
            timing.child_lifetime,
            "linger",
            timing.linger,
            "the old inbound SAs of several rekeys are accepted at the same time",
        ),
        (
            "idle_liveness",
            timing.idle_liveness,
            "liveness",
            timing.liveness,
            "a peer to which nothing is sent is checked more often than one that does not answer",
        ),
    ] {
        if value < limit {
            let warning = format!(
                "{key} is {value:?}, less than {other}, {limit:?}: {consequence}; raise {key}, or lower {other}"
            );
            warnings.push(("[timing]", warning));
        }
    }
    warnings
}

fn state_dir(config: &Config) -> Option<(&'static str, String)> {
    let lost = LOST_AT_REBOOT.iter().find(|directory| config.state_dir.starts_with(directory))?;
    let warning = format!(
        "state_dir is {}, and {lost} is empty after a reboot: the node would have to join again, and forget its pods' addresses; \
         use a directory on a disk, such as /var/lib/edge-cni",
        config.state_dir.display()
    );
    Some(("state_dir", warning))
}

/// Number of unused segments above which `spare` is a warning.
const MANY_SPARE: u32 = 16;
/// Smallest MTU with which IPv6 works (RFC 8200 5).
const IPV6_MTU: u32 = 1280;

fn sizes(config: &Config) -> Vec<(&'static str, String)> {
    let mut warnings = vec![];
    if let Some(mtu) = config.mtu.filter(|mtu| *mtu < IPV6_MTU) {
        let warning =
            format!("mtu is {mtu}, and IPv6 needs {IPV6_MTU}: pods have IPv4 alone; leave it out to derive it");
        warnings.push(("mtu", warning));
    }
    if let Some(spare) = config.controller.as_ref().map(|controller| controller.spare).filter(|n| *n > MANY_SPARE) {
        let warning = format!(
            "spare is {spare}: this node takes unused segments, as many as it may hold, from other nodes; write a few"
        );
        warnings.push(("[controller]", warning));
    }
    warnings
}

fn of_peer(peer: &PeerSection) -> Vec<String> {
    let mut warnings = vec![];
    if canonical_identity(&peer.local_id) == canonical_identity(&peer.remote_id) {
        warnings.push(format!(
            "local_id and remote_id are both {}: the peer cannot be told from this node, so that somebody on the way can connect this \
             node with itself; give each end an identity of its own",
            peer.local_id
        ));
    }
    let networks = [("local_subnets", peer.all_local_subnets().collect::<Vec<_>>())];
    let networks = networks.into_iter().chain([("remote_subnets", peer.all_remote_subnets().collect())]);
    for (key, network) in networks.flat_map(|(key, all)| all.into_iter().map(move |network| (key, network))) {
        if network.ip() != network.network() {
            warnings.push(format!(
                "{key} has {network}, with bits set beyond its prefix; meant {}/{}?",
                network.network(),
                network.prefix()
            ));
        }
        if network.prefix() > 0 && network.network().is_loopback() {
            warnings
                .push(format!("{key} has {network}, addresses that stay on each host; name the networks of the site"));
        }
    }
    let families = |networks: &mut dyn Iterator<Item = &IpNetwork>| {
        let (v4, v6): (Vec<&IpNetwork>, Vec<&IpNetwork>) = networks.partition(|network| network.is_ipv4());
        [!v4.is_empty(), !v6.is_empty()]
    };
    let ours = families(&mut peer.all_local_subnets());
    let theirs = families(&mut peer.all_remote_subnets());
    let common = ours.iter().zip(theirs).any(|(ours, theirs)| *ours && theirs);
    if !common && ours.contains(&true) && theirs.contains(&true) {
        warnings.push(
            "local_subnets and remote_subnets have no family in common, IPv4 or IPv6, so that no packet fits into the tunnel; name networks \
             of the same family at both ends"
                .to_owned(),
        );
    }
    if let Some(loopback) = peer.remote.iter().filter_map(Remote::address).find(|ip| ip.to_canonical().is_loopback()) {
        warnings
            .push(format!("remote has {loopback}, which is this host itself; write the address of the peer's host"));
    }
    warnings
}
