//! Tests which packets an edge drops and accepts without keys in `[firewall]`.

use super::Test;
use super::world::{BOTH, V4, V6, World, passes};
use edge_agent::config::Config;
use edge_agent::host::firewall::Firewall;
use ipnetwork::IpNetwork;

pub(crate) const TESTS: &[Test] = &[
    ("a_host_on_the_lan_reaches_no_pod_by_routing_through_the_edge", lan_host_reaches_nothing),
    ("a_host_on_the_lan_cannot_pose_as_a_pod", lan_host_cannot_pose),
    ("a_host_on_the_lan_cannot_pose_as_another_nodes_pod", lan_host_cannot_pose_as_remote),
    ("a_pod_sends_under_its_own_addresses_only", pods_cannot_forge),
    ("pods_reach_other_nodes_under_their_own_and_the_outside_under_the_edges_address", pods_reach_all),
    ("the_edges_own_processes_reach_other_nodes_under_the_bridges_address", own_processes),
    ("published_ports_of_pods_here_and_elsewhere_are_served_to_the_lan", published_ports),
    ("a_host_on_the_lan_reaches_no_service_by_routing_through_the_edge", lan_host_reaches_no_service),
    ("a_host_on_the_lan_reaches_no_service_that_is_an_address_of_the_edge_as_with_ipvs", lan_host_reaches_no_ipvs),
    ("a_host_on_the_lan_reaches_no_service_that_is_redirected_to_a_proxy_on_the_edge", lan_host_reaches_no_proxy),
    ("a_flow_that_was_there_before_the_table_is_judged_too", former_flows),
    ("what_a_node_sends_under_a_client_of_its_own_takes_the_bridges_address", sent_for_others),
    ("a_pod_reaches_itself_by_its_published_port", hairpin),
    ("neither_pods_nor_lan_hosts_reach_the_nodes_loopback_addresses_and_its_own_processes_do", loopback),
    ("the_plugins_table_goes_when_the_agents_comes", plugins_table),
    ("a_table_of_an_earlier_release_is_replaced", upgrade),
    ("connections_get_the_mss_that_fits_the_route_to_the_peer", mss_of_route),
    ("a_table_that_is_replaced_keeps_its_sets_and_counts", replaced),
    ("down_keeps_the_table_while_pods_are_attached_and_the_plugin_cannot_make_its_own", down),
];

/// A service range, with a Service whose endpoint is on this node and a Service whose endpoint is
/// on another node.
const SERVICES: [[&str; 3]; 2] = [["10.96.0.0/12", "10.96.0.10", "10.96.0.11"], ["fd96::/112", "fd96::10", "fd96::11"]];

/// Creates two worlds: one without and one with another program that masquerades all forwarded
/// packets.
fn worlds() -> impl Iterator<Item = World> {
    [false, true].into_iter().map(|others| {
        let world = World::new();
        for name in ["pod", "neighbour", "far", "outside", "lan"] {
            world.serve(name);
        }
        if others {
            world.masquerade_by_others();
        }
        world
    })
}

fn lan_host_reaches_nothing() {
    for world in worlds() {
        for family in BOTH {
            // Without the table, the LAN host reaches all targets.
            assert!(world.fetch("lan", family.far, 80).is_some() && world.fetch("lan", family.pod, 80).is_some());
        }
        world.apply(&World::edge());
        for family in BOTH {
            for to in [family.far, family.pod] {
                world.cannot_fetch("lan", to, 80);
            }
        }
        assert!(world.refused("to-tunnels") >= 2 && world.refused("to-pods") >= 2);
    }
}

fn lan_host_cannot_pose() {
    for world in worlds() {
        let cases = |world: &World, check: &dyn Fn(&World, &str, &str, &str)| {
            for family in BOTH {
                check(world, family.unused, "neighbour", family.neighbour);
                check(world, family.unused, "edge", family.edge_lan);
                check(world, family.unused, "far", family.far);
            }
        };
        cases(&world, &|world, source, at, to| {
            assert!(world.arrives("lan", source, at, to), "{to} is not reached without the table")
        });
        world.apply(&World::edge());
        cases(&world, &|world, source, at, to| world.cannot_pose("lan", source, at, to));
        assert!(world.refused("posing") >= 6, "{}", world.refused("posing"));
    }
}

/// A LAN host sends with the address of a remote pod. No XFRM policy covers this case.
fn lan_host_cannot_pose_as_remote() {
    let world = World::new();
    world.apply(&World::edge());
    for family in BOTH {
        assert!(world.arrives("lan", family.far, "edge", family.edge_lan), "the world itself lets it through");
    }
    world.apply(&Firewall { remote_in_clear: false, ..World::edge() });
    for family in BOTH {
        world.cannot_pose("lan", family.far, "edge", family.edge_lan);
        world.cannot_pose("lan", family.far, "pod", family.pod);
        world.cannot_pose("lan", family.far, "outside", family.outside);
        assert!(world.arrives("lan", family.lan, "edge", family.edge_lan));
    }
    assert!(world.refused("posing") >= 18);
    world.apply(&Firewall { remote_in_clear: false, ike_ports: [9, 4500], ..World::edge() });
    assert!(world.arrives("lan", V4.far, "edge", V4.edge_lan), "a peer whose address lies in its own networks");
}

fn pods_cannot_forge() {
    for world in worlds() {
        world.apply(&World::edge());
        for family in BOTH {
            let others =
                if family.ip == "ip" { ["192.168.1.200", "10.77.2.9"] } else { ["2001:db8:1::200", "fd77::2:9"] };
            for source in others {
                world.cannot_pose("pod", source, "outside", family.outside);
                world.cannot_pose("pod", source, "lan", family.lan);
                world.cannot_pose("pod", source, "edge", family.edge_lan);
                world.cannot_pose("pod", source, "far", family.far);
            }
            // Packets with the pod's own address do arrive.
            assert!(world.arrives("pod", family.pod, "edge", family.edge_lan));
        }
        assert!(world.refused("forged") >= 16);
    }
}

fn pods_reach_all() {
    for world in worlds() {
        world.apply(&World::edge());
        for family in BOTH {
            let seen = |to: &str| world.fetch("pod", to, 80);
            assert_eq!(seen(family.far).as_deref(), Some(family.pod));
            assert_eq!(seen(family.neighbour).as_deref(), Some(family.pod));
            assert_eq!(seen(family.outside).as_deref(), Some(family.edge_up));
            assert_eq!(seen(family.lan).as_deref(), Some(family.edge_lan));
        }
    }
}

fn own_processes() {
    for world in worlds() {
        world.sh("edge", "ip route replace 10.77.2.0/24 via 10.0.0.2; ip -6 route replace fd77::2:0/112 via fd00::2");
        world.apply(&World::edge());
        for family in BOTH {
            assert_eq!(world.fetch("edge", family.far, 80).as_deref(), Some(family.bridge));
            assert!(world.fetch("edge", family.pod, 80).is_some());
            assert!(world.fetch("edge", family.outside, 80).is_some());
        }
    }
}

fn published_ports() {
    for world in worlds() {
        world.apply(&World::edge());
        for family in BOTH {
            world.publish(8080, family.pod);
            assert_eq!(
                world.fetch("lan", family.edge_lan, 8080).as_deref(),
                Some(family.lan),
                "the pod sees the client"
            );
            world.sh("edge", &format!("nft delete table {} publish", family.ip));
            world.publish(30080, family.far);
            assert_eq!(world.fetch("lan", family.edge_lan, 30080).as_deref(), Some(family.bridge));
        }
    }
}

/// The hub fronts a service range. kube-proxy on the edge redirects the range's addresses for any
/// sender.
fn lan_host_reaches_no_service() {
    for world in worlds() {
        let mut edge = World::edge();
        edge.remote.extend(SERVICES.map(|family| family[0].parse::<IpNetwork>().unwrap()));
        for (family, [_, here, elsewhere]) in BOTH.into_iter().zip(SERVICES) {
            world.redirect(here, family.pod);
            world.redirect(elsewhere, family.far);
            assert!(world.fetch("lan", here, 80).is_some() && world.fetch("lan", elsewhere, 80).is_some());
        }
        world.apply(&edge);
        for (family, [_, here, elsewhere]) in BOTH.into_iter().zip(SERVICES) {
            for service in [here, elsewhere] {
                world.cannot_fetch("lan", service, 80);
            }
            assert!(world.fetch("pod", elsewhere, 80).is_some(), "a pod calls {elsewhere}");
            world.publish(30080, family.far);
            world.publish(8080, family.pod);
            for port in [30080, 8080] {
                assert!(world.fetch("lan", family.edge_lan, port).is_some(), "port {port} is published");
            }
        }
        assert!(world.refused("to-tunnels") >= 2 && world.refused("to-pods") >= 2);
        // The operator has configured a service range that no view names.
        let service_ranges = SERVICES.map(|family| family[0].parse::<IpNetwork>().unwrap()).to_vec();
        world.apply(&Firewall { service_ranges, ..World::edge() });
        for service in SERVICES.iter().flat_map(|[_, services @ ..]| services) {
            world.cannot_fetch("lan", service, 80);
        }
        let lan = || BOTH.map(|family| family.lan.parse().unwrap()).to_vec();
        world.apply(&Firewall { lan_to_pods: lan(), lan_to_tunnels: lan(), ..edge });
        for service in SERVICES.iter().flat_map(|[_, services @ ..]| services) {
            assert!(world.fetch("lan", service, 80).is_some(), "the operator lets it use {service}");
        }
    }
}

/// IPVS delivers packets for a Service to the node itself, because the Service's address is on a
/// separate link.
fn lan_host_reaches_no_ipvs() {
    for world in worlds() {
        world.serve("edge");
        world.sh("edge", "ip link add kube-ipvs0 type bridge && ip link set kube-ipvs0 up");
        for [_, service, _] in SERVICES {
            let options = if service.contains(':') { "nodad" } else { "" };
            world.sh("edge", &format!("ip addr add {service} dev kube-ipvs0 {options}"));
            assert!(world.fetch("lan", service, 80).is_some(), "without a table {service} is reached");
        }
        let named = SERVICES.map(|family| family[0].parse::<IpNetwork>().unwrap());
        // The operator or a view may configure a range that contains the edge's own address.
        let careless = BOTH.map(|family| family.edge_lan.parse::<IpNetwork>().unwrap());
        let service_ranges: Vec<IpNetwork> = named.into_iter().chain(careless).collect();
        let edge = Firewall { service_ranges, ..World::edge() };
        world.apply(&edge);
        for (family, [_, service, _]) in BOTH.into_iter().zip(SERVICES) {
            world.cannot_fetch("lan", service, 80);
            assert!(world.fetch("pod", service, 80).is_some(), "a pod calls {service}");
            assert!(world.fetch("lan", family.edge_lan, 80).is_some(), "the edge itself is reached");
        }
        assert!(world.refused("to-pods") >= 2);
        let lan = BOTH.map(|family| family.lan.parse().unwrap()).to_vec();
        world.apply(&Firewall { lan_to_pods: lan, ..edge });
        for [_, service, _] in SERVICES {
            assert!(world.fetch("lan", service, 80).is_some(), "the operator lets it use {service}");
        }
    }
}

/// With EdgeMesh and other userspace proxies, packets to the Service are redirected to a process on
/// the node, which connects to the pod itself.
fn lan_host_reaches_no_proxy() {
    for world in worlds() {
        world.serve("edge");
        let proxies = ["169.254.96.16", "fd96:ffff::16"];
        world.sh("edge", "ip link add edgemesh0 type bridge && ip link set edgemesh0 up && ip addr add 169.254.96.16/32 dev edgemesh0 && ip addr add fd96:ffff::16/128 dev edgemesh0 nodad");
        for ((family, [_, service, to_lan]), proxy) in BOTH.into_iter().zip(SERVICES).zip(proxies) {
            world.redirect(service, proxy);
            assert!(world.fetch("lan", service, 80).is_some(), "without a table {service} is reached");
            // Adds kube-proxy's rule for a process on the node that calls a Service whose endpoint
            // is outside of the cluster, such as the API server.
            let target =
                if proxy.contains(':') { format!("[{}]:80", family.lan) } else { format!("{}:80", family.lan) };
            world.sh(
                "edge",
                &format!(
                    "nft 'add chain {0} services out {{ type nat hook output priority -100; }}; \
                 add rule {0} services out {0} daddr {to_lan} tcp dport 80 dnat to {target}'",
                    family.ip
                ),
            );
        }
        let service_ranges: Vec<IpNetwork> = SERVICES.map(|family| family[0].parse().unwrap()).to_vec();
        for minimal in [false, true] {
            let edge = Firewall { service_ranges: service_ranges.clone(), minimal, ..World::edge() };
            world.apply(&edge);
            for ((family, [_, service, to_lan]), proxy) in BOTH.into_iter().zip(SERVICES).zip(proxies) {
                world.cannot_fetch("lan", service, 80);
                assert!(world.fetch("pod", service, 80).is_some(), "a pod calls {service}");
                assert!(world.fetch("edge", to_lan, 80).is_some(), "a process of the node calls {to_lan}");
                world.publish(30080, proxy);
                assert!(world.fetch("lan", family.edge_lan, 30080).is_some(), "a NodePort of the proxy");
                world.sh("edge", &format!("nft delete table {} publish", family.ip));
            }
            assert!(world.refused("to-pods") >= 2);
            for keys in [
                Firewall { lan_to_pods: BOTH.map(|family| family.lan.parse().unwrap()).to_vec(), ..edge.clone() },
                Firewall { lan_to_tunnels: BOTH.map(|family| family.lan.parse().unwrap()).to_vec(), ..edge.clone() },
            ] {
                world.apply(&keys);
                for [_, service, _] in SERVICES {
                    assert!(world.fetch("lan", service, 80).is_some(), "the operator lets it use {service}");
                }
            }
        }
    }
}

/// The connection was established before the table existed, so connection tracking counts it as
/// established.
fn former_flows() {
    let world = World::new();
    // This rule also turns on connection tracking.
    world.masquerade_by_others();
    for family in BOTH {
        let mut kept_out = [family.pod, family.far]
            .map(|to| world.connection("lan", if to == family.pod { "pod" } else { "far" }, to));
        let mut wanted = [("far", family.far), ("lan", family.lan), ("neighbour", family.neighbour)]
            .map(|(at, to)| world.connection("pod", at, to));
        for (client, server) in kept_out.iter_mut().chain(&mut wanted) {
            assert!(passes(client, server) && passes(server, client));
        }
        world.apply(&World::edge());
        for (client, server) in &mut wanted {
            assert!(passes(client, server) && passes(server, client));
        }
        for (client, server) in &mut kept_out {
            assert!(!passes(client, server), "{:?} still reaches {:?}", client.local_addr(), client.peer_addr());
        }
        world.sh("edge", "nft delete table inet edge-cni");
    }
}

/// IPVS sends NodePort traffic through the output hook with the client's source address, and its
/// connection does not have the status `dnat`. The source address must still be rewritten to the
/// bridge's address.
fn sent_for_others() {
    let world = World::new();
    for family in BOTH {
        world.sh(
            "edge",
            &format!(
                "nft 'add table {0} ipvs; add chain {0} ipvs out {{ type filter hook output priority -350; }}; \
                 add rule {0} ipvs out {0} daddr {1} {0} saddr set {2}'",
                family.ip, family.far, family.lan
            ),
        );
        assert_eq!(world.source_of_datagram("edge", "far", family.far), family.lan, "without the table");
    }
    for minimal in [false, true] {
        world.apply(&Firewall { minimal, ..World::edge() });
        for family in BOTH {
            assert_eq!(world.source_of_datagram("edge", "far", family.far), family.bridge);
        }
    }
}

/// A pod connects to a published port whose endpoint is the pod itself. As with kube-proxy and
/// portmap, the connection is masqueraded.
fn hairpin() {
    for world in worlds() {
        world.apply(&World::edge());
        for family in BOTH {
            world.publish(8080, family.pod);
            world.sh(
                "edge",
                &format!(
                    "nft 'add chain {0} publish post {{ type nat hook postrouting priority srcnat; }}; \
                     add rule {0} publish post {0} saddr {1} {0} daddr {1} masquerade'",
                    family.ip, family.pod
                ),
            );
            for netfilter in ["1", "0"] {
                world.sh("edge", &format!("sysctl -qw net.bridge.bridge-nf-call-iptables={netfilter} net.bridge.bridge-nf-call-ip6tables={netfilter} || true"));
                assert_eq!(
                    world.fetch("pod", family.edge_lan, 8080).as_deref(),
                    Some(family.bridge),
                    "bridge-nf-call: {netfilter}"
                );
            }
        }
    }
}

/// portmap and kube-proxy let packets to and from 127.0.0.0/8 cross links (`route_localnet`), so
/// that the node's processes reach published ports at 127.0.0.1.
fn loopback() {
    let world = World::new();
    world.serve("edge");
    world.serve("pod");
    world.serve("far");
    world.sh(
        "edge",
        "set -e
         sysctl -qw net.ipv4.conf.all.route_localnet=1
         nft 'add table ip publish; add chain ip publish out { type nat hook output priority -100; }; \
              add chain ip publish post { type nat hook postrouting priority srcnat; }; \
              add rule ip publish out ip daddr 127.0.0.1 tcp dport 8080 dnat to 10.77.1.2:80; \
              add rule ip publish out ip daddr 127.0.0.1 tcp dport 30080 dnat to 10.77.2.2:80; \
              add rule ip publish post ip saddr 127.0.0.1 oifname ecni0 masquerade'",
    );
    for (name, via) in [("pod", [V4.bridge, V6.bridge]), ("lan", [V4.edge_lan, V6.edge_lan])] {
        world.sh(
            name,
            &format!(
                "sysctl -qw net.ipv4.conf.all.route_localnet=1
                 ip addr del 127.0.0.1/8 dev lo; ip -6 addr del ::1/128 dev lo
                 ip route add 127.0.0.1/32 via {} dev eth0; ip -6 route add ::1/128 via {} dev eth0 || true",
                via[0], via[1]
            ),
        );
        assert!(world.fetch(name, "127.0.0.1", 80).is_some(), "without the table {name} reaches it");
        // The kernel drops this packet on every link except `lo`.
        world.cannot_fetch(name, "::1", 80);
    }
    assert!(world.arrives("lan", "127.0.0.5", "edge", V4.edge_lan), "without the table");
    for netfilter in ["0", "1"] {
        world.sh("edge", &format!("sysctl -qw net.bridge.bridge-nf-call-iptables={netfilter} || true"));
        for minimal in [false, true] {
            world.apply(&Firewall { minimal, ..World::edge() });
            for name in ["pod", "lan"] {
                world.cannot_fetch(name, "127.0.0.1", 80);
                world.cannot_fetch(name, "::1", 80);
            }
            world.cannot_pose("lan", "127.0.0.5", "edge", V4.edge_lan);
            assert!(world.refused("loopback") >= 5, "{}", world.refused("loopback"));
            assert_eq!(world.fetch("edge", "127.0.0.1", 8080).as_deref(), Some(V4.bridge), "the published port");
            let elsewhere = world.fetch("edge", "127.0.0.1", 30080);
            assert_eq!(elsewhere.as_deref(), Some(V4.bridge), "a NodePort whose pod is on another node");
            assert!(world.fetch("edge", "127.0.0.1", 80).is_some() && world.fetch("edge", "::1", 80).is_some());
        }
    }
}

/// Because of a view or of keys that the plugin does not support, the agent's table may accept
/// packets that the plugin's table drops.
fn plugins_table() {
    let world = World::new();
    world.serve("pod");
    world.sh(
        "edge",
        "nft 'add table inet edge-cni-pods; add chain inet edge-cni-pods forward { type filter hook forward priority -150; }; \
         add rule inet edge-cni-pods forward oifname ecni0 drop'",
    );
    world.cannot_fetch("lan", V4.pod, 80);
    let lan = BOTH.map(|family| family.lan.parse().unwrap()).to_vec();
    world.apply(&Firewall { lan_to_pods: lan, ..World::edge() });
    assert!(world.fetch("lan", V4.pod, 80).is_some());
    assert!(!world.sh("edge", "nft list tables").contains("edge-cni-pods"));
    // The transaction that deletes the plugin's table also succeeds if that table does not exist.
    world.apply(&World::edge());
    world.cannot_fetch("lan", V4.pod, 80);
}

fn upgrade() {
    let world = World::new();
    world.serve("far");
    world.sh(
        "edge",
        "nft 'add table inet edge-cni; add chain inet edge-cni sources { type nat hook postrouting priority -150; }; \
         add rule inet edge-cni sources ip daddr 10.77.2.0/24 snat ip to 10.77.1.1; \
         add chain inet edge-cni mss-forward { type filter hook forward priority -150; }'",
    );
    assert_eq!(world.fetch("lan", "10.77.2.2", 80).as_deref(), Some("10.77.1.1"), "the hole of then");
    world.apply(&World::edge());
    world.cannot_fetch("lan", "10.77.2.2", 80);
}

/// The SYN of a pod carries the MSS of the pods' MTU, 1418, or of the route's MTU if that is
/// smaller. So does the answer, which lowers what the pod sends.
fn mss_of_route() {
    let world = World::new();
    world.serve("far");
    world.apply(&World::edge());
    world.sh("far", "nft 'add table inet seen; add chain inet seen input { type filter hook input priority 0; }'");
    world.sh("pod", "nft 'add table inet seen; add chain inet seen input { type filter hook input priority 0; }'");
    for (route, mss) in [("", [1378, 1358]), ("mtu 1320", [1280, 1260])] {
        world.sh(
            "edge",
            &format!(
                "ip route replace 10.77.2.0/24 via 10.0.0.2 src 10.77.1.1 {route}
                 ip -6 route replace fd77::2:0/112 via fd00::2 src fd77::1:1 {route}"
            ),
        );
        for (at, flags) in [("far", "syn"), ("pod", "(syn | ack)")] {
            world.sh(at, "nft flush chain inet seen input");
            for (family, mss) in ["ipv4", "ipv6"].into_iter().zip(mss) {
                world.sh(
                    at,
                    &format!(
                        "nft 'add rule inet seen input meta nfproto {family} tcp flags & (syn | ack) == {flags} \
                         tcp option maxseg size {mss} counter'"
                    ),
                );
            }
        }
        for addresses in [V4, V6] {
            assert_eq!(world.fetch("pod", addresses.far, 80).as_deref(), Some(addresses.pod), "{route}");
        }
        for at in ["far", "pod"] {
            let seen = world.sh(at, "nft list chain inet seen input");
            assert!(!seen.contains("packets 0 ") && seen.contains("packets 1 "), "{at} {route}: {seen}");
        }
    }
}

/// Since Linux 7.0, a set is empty for a moment if it is created in the same transaction as the
/// rules that use it.
fn replaced() {
    let world = World::new();
    world.serve("far");
    world.apply(&World::edge());
    world.cannot_fetch("lan", V4.far, 80);
    let sets = || world.sh("edge", "nft -a list sets table inet edge-cni | grep 'set .* # handle'");
    let (before, refused) = (sets(), world.refused("to-tunnels"));
    assert!(before.contains("remote4") && refused > 0, "{before} {refused}");
    world.sh("edge", "nft 'add set inet edge-cni stray { type ipv4_addr; }; add chain inet edge-cni stray'");
    let further: Vec<IpNetwork> =
        ["10.77.2.0/24", "fd77::2:0/112", "10.77.3.0/26"].map(|text| text.parse().unwrap()).to_vec();
    world.apply(&Firewall { remote: further.into(), mtu: 1280, ..World::edge() });
    assert_eq!(sets(), before);
    assert_eq!(world.refused("to-tunnels"), refused);
    let table = world.sh("edge", "nft list table inet edge-cni");
    assert!(table.contains("10.77.3.0/26") && table.contains("maxseg size set 1240"), "{table}");
    assert!(!table.contains("1378") && !table.contains("stray"), "{table}");
    assert_eq!(world.fetch("pod", V4.far, 80).as_deref(), Some(V4.pod));
    world.cannot_fetch("lan", V4.far, 80);
}

fn down() {
    let world = World::new();
    world.serve("pod");
    world.apply(&World::edge());
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "state_dir = {0:?}\nrun_dir = {0:?}\n[cni]\nconf_dir = {0:?}\nbin_dir = {0:?}\n[controller]\nurls = [\"https://c\"]\n",
        directory.path()
    );
    let config = Config::parse(&text, &directory.path().join("agent.toml")).unwrap();
    let down = || world.on("edge", || edge_agent::down::down(&config).map_err(|error| format!("{error:#}")));
    let tables = || world.sh("edge", "nft list tables");
    let error = down().unwrap_err();
    assert!(error.contains("table inet edge-cni is kept") && error.contains("install-cni --plugin"), "{error}");
    assert!(tables().contains("table inet edge-cni\n"), "{}", tables());
    for family in BOTH {
        world.cannot_fetch("lan", family.pod, 80);
    }
    world.sh("edge", "ip link set pod nomaster; ip link set neighbour nomaster");
    down().unwrap();
    assert_eq!(tables(), "");
}
