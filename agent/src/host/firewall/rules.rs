//! Builds the table as commands for `nft -j`. `docs/firewall.md` explains every rule.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::contents::{Firewall, PODS_TABLE, TABLE};
use super::counters::COUNTERS;
use super::expressions::{
    FAMILIES, Family, accept, constant_network, ct, decapsulated, dropped, goto, is, meta, no_syn, prefix, redirected,
};
use super::sets;

/// Priority before connection tracking (-200), which therefore does not track packets that are
/// dropped at this priority.
const EARLY: i32 = -300;
/// Priority after connection tracking, before the usual priority of chains that translate sources
/// (100).
const BEFORE_OTHERS: i32 = -150;
/// Priority after the translation of destinations (-100), before the route lookup.
const REDIRECTED: i32 = -90;

struct Commands(Vec<Value>);

impl Commands {
    fn chain(&mut self, name: &str, kind: &str, hook: &str, priority: i32) {
        self.0.push(json!({"add": {"chain": {"family": "inet", "table": TABLE, "name": name, "type": kind, "hook": hook, "prio": priority,
                                             "policy": "accept"}}}));
    }

    fn target(&mut self, name: &str) {
        self.0.push(json!({"add": {"chain": {"family": "inet", "table": TABLE, "name": name}}}));
    }

    fn rule(&mut self, chain: &str, statements: impl IntoIterator<Item = Value>) {
        let statements: Vec<Value> = statements.into_iter().collect();
        self.0.push(json!({"add": {"rule": {"family": "inet", "table": TABLE, "chain": chain, "expr": statements}}}));
    }
}

impl Firewall {
    /// Returns the commands that replace the agent's table, no matter which release created it, and
    /// delete the plugin's [`PODS_TABLE`], in one transaction.
    pub(super) fn commands(&self) -> Value {
        let table = table(TABLE);
        // The table is added before it is deleted, since deleting a table that does not exist
        // fails.
        let mut commands = vec![json!({"add": table}), json!({"delete": table}), json!({"add": table})];
        commands.extend(counters());
        commands.extend(self.sets().iter().map(|(name, networks)| sets::make(name, networks)));
        commands.extend(self.rules());
        json!({ "nftables": commands })
    }

    /// Returns the commands that create the chains with their rules and delete [`PODS_TABLE`]. The
    /// sets and the [`counters`] must exist already.
    pub(super) fn rules(&self) -> Vec<Value> {
        let plugins = table(PODS_TABLE);
        let mut commands = Commands(vec![json!({"add": plugins}), json!({"delete": plugins})]);
        self.prerouting(&mut commands);
        self.input(&mut commands);
        self.forward(&mut commands);
        self.sources(&mut commands);
        self.mss(&mut commands);
        commands.0
    }

    /// Matches packets from pods (`iifname`) or to pods (`oifname`).
    fn over_bridges(&self, key: &str) -> Value {
        meta("==", key, json!({"set": self.pod_bridges}))
    }

    fn bridges_and_lo(&self) -> Value {
        let names: Vec<&str> = self.pod_bridges.iter().map(String::as_str).chain(["lo"]).collect();
        json!({ "set": names })
    }

    /// Drops packets with forged source addresses.
    fn prerouting(&self, commands: &mut Commands) {
        commands.chain("prerouting", "filter", "prerouting", EARLY);
        // The kernel drops such packets itself, unless portmap or kube-proxy has set
        // `route_localnet`. Replies to connections to 127.0.0.1 that these programs redirected are
        // not dropped: in this chain they still have another destination, since connection tracking
        // restores it later.
        let loopback = prefix(&constant_network(IpAddr::from([127, 0, 0, 0]), 8));
        for field in ["daddr", "saddr"] {
            let matches = [meta("!=", "iifname", json!("lo")), is("==", FAMILIES[0].field(field), loopback.clone())];
            commands.rule("prerouting", matches.into_iter().chain(dropped("loopback")));
        }
        for family in FAMILIES {
            let elsewhere = meta("!=", "iifname", self.bridges_and_lo());
            let posing = [elsewhere.clone(), family.within("saddr", "own")].into_iter().chain(dropped("posing"));
            commands.rule("prerouting", posing);
            // Matches packets with a source in the plugin's other networks that did not arrive over
            // a pods' bridge. Sources in `remote` are excepted, since a former segment may belong
            // to another node by now.
            let of_bridges = [elsewhere, family.within("saddr", "bridged"), family.outside("saddr", "remote")];
            commands.rule("prerouting", of_bridges.into_iter().chain(dropped("posing")));
            commands.rule(
                "prerouting",
                [self.over_bridges("iifname"), family.outside("saddr", "pods")].into_iter().chain(dropped("forged")),
            );
        }
        if !self.remote_in_clear {
            // The guard's policies cover the cluster ranges, but not the cloud's networks, and a
            // sysctl can turn policies off.
            commands.target("in-clear");
            for family in FAMILIES {
                let clear = [meta("!=", "iifname", json!("lo")), meta("==", "ipsec", json!(false))];
                commands
                    .rule("prerouting", clear.into_iter().chain([family.within("saddr", "remote"), goto("in-clear")]));
            }
            let ike =
                is("==", json!({"payload": {"protocol": "udp", "field": "dport"}}), json!({"set": self.ike_ports}));
            commands.rule("in-clear", [ike, accept()]);
            commands.rule("in-clear", [meta("==", "l4proto", json!("esp")), accept()]);
            for family in FAMILIES {
                for to_node in self.to_node(family) {
                    if !self.controller_ports.is_empty() {
                        let from = json!({"payload": {"protocol": "tcp", "field": "sport"}});
                        let answers = is("==", from, json!({"set": self.controller_ports}));
                        commands.rule("in-clear", [family.any(), answers, no_syn(), to_node.clone(), accept()]);
                    }
                    commands.rule("in-clear", [family.icmp_error(), to_node, accept()]);
                }
            }
            commands.rule("in-clear", dropped("posing"));
        }
        if !self.minimal {
            self.services_on_this_node(commands);
        }
        // The policies would also drop such a packet, but without counting it, since its source
        // does not belong to this node.
        commands.chain("redirected", "filter", "prerouting", REDIRECTED);
        for family in FAMILIES {
            let between = [family.within("saddr", "remote"), family.within("daddr", "remote")];
            let matches = [decapsulated(), redirected()].into_iter().chain(between);
            commands.rule("redirected", matches.chain(dropped("service-elsewhere")));
        }
    }

    /// Drops packets from hosts outside of the cluster to a Service's address that IPVS has put on
    /// an interface of this node (kube-ipvs0). IPVS forwards them to a pod from the node itself, so
    /// they never pass `forward`. A packet to an address of the interface on which it arrives is
    /// not such a packet.
    fn services_on_this_node(&self, commands: &mut Commands) {
        let kind = |flags: Value| json!({"fib": {"result": "type", "flags": flags}});
        for family in FAMILIES {
            let on_node = is("==", kind(json!(["daddr"])), json!("local"));
            let on_other_link = is("!=", kind(json!(["daddr", "iif"])), json!("local"));
            let to_service = family.within("daddr", "services");
            let matches = self.senders_outside().into_iter().chain([to_service]).chain(family.no_exception());
            let matches = matches.chain([on_node, on_other_link]);
            commands.rule("prerouting", matches.chain(dropped("to-pods")));
        }
    }

    /// Drops packets from hosts outside of the cluster to a Service that were redirected to a proxy
    /// on this node (EdgeMesh and other userspace proxies). The proxy would connect to the pod as a
    /// process of this node.
    fn input(&self, commands: &mut Commands) {
        commands.chain("input", "filter", "input", BEFORE_OTHERS);
        for family in FAMILIES {
            // Replies to this node's own calls of a Service also have the status `dnat`, so only
            // the original direction is matched.
            let from_clients = is("==", json!({"ct": {"key": "direction"}}), json!("original"));
            let matches =
                self.senders_outside().into_iter().chain([redirected(), from_clients, family.sent_to("services")]);
            let allowed = family.no_exception();
            commands.rule("input", matches.chain(allowed).chain(dropped("to-pods")));
        }
    }

    /// Matches packets from hosts outside of the cluster, that is, not from a pod, not from this
    /// node and not from a tunnel.
    fn senders_outside(&self) -> [Value; 2] {
        [meta("!=", "iifname", self.bridges_and_lo()), meta("==", "ipsec", json!(false))]
    }

    /// Matches packets whose destination is this node. The minimal table cannot check that, so
    /// there, packets match if their destination is not a pod.
    fn to_node(&self, family: Family) -> Vec<Value> {
        if !self.minimal {
            return vec![is("==", json!({"fib": {"result": "type", "flags": ["daddr"]}}), json!("local"))];
        }
        let own = self.addresses.iter().filter(|address| family.has(**address));
        let own = own.map(|address| is("==", family.field("daddr"), json!(address.to_string())));
        own.chain([family.outside("daddr", "own")]).collect()
    }

    /// Adds the rules that decide which packets are forwarded. An accept verdict ends only this
    /// table's chain, whereas a drop verdict is final.
    fn forward(&self, commands: &mut Commands) {
        for target in ["to-tunnels", "to-pods", "between-uplinks", "to-containers"] {
            commands.target(target);
        }
        commands.chain("forward", "filter", "forward", BEFORE_OTHERS);
        // Accepts only replies. Packets from the client are checked again, since the connection may
        // be older than this table or its keys.
        let answers = is("==", json!({"ct": {"key": "direction"}}), json!("reply"));
        commands.rule("forward", [ct("state", json!("established")), answers, accept()]);
        commands.rule("forward", [ct("state", json!("related")), accept()]);
        for family in FAMILIES {
            commands.rule("forward", [family.within("daddr", "remote"), goto("to-tunnels")]);
        }
        commands.rule("forward", [self.over_bridges("oifname"), goto("to-pods")]);
        if self.masquerade && !self.minimal {
            self.ike_of_pods(commands);
        }
        let from_pods = || self.over_bridges("iifname");

        for family in FAMILIES {
            commands.rule("to-tunnels", [from_pods(), family.within("saddr", "own"), accept()]);
        }
        for statement in [decapsulated(), from_pods()] {
            commands.rule("to-pods", [statement, accept()]);
        }
        for (target, allowed) in [("to-tunnels", "lan-to-tunnels"), ("to-pods", "lan-to-pods")] {
            for family in FAMILIES {
                commands.rule(target, [family.within("saddr", "fronted"), accept()]);
                commands.rule(target, [family.within("saddr", allowed), accept()]);
            }
            // kube-proxy redirects ClusterIPs for any sender. A packet to a ClusterIP that was
            // routed to this node did not use a published port.
            for family in FAMILIES {
                commands.rule(target, [family.sent_to("services")].into_iter().chain(dropped(target)));
            }
            commands.rule(target, [redirected(), accept()]);
            commands.rule(target, dropped(target));
        }

        for bridge in &self.bridges {
            let over = ["iifname", "oifname"].map(|key| meta("==", key, json!(bridge)));
            commands.rule("forward", over.into_iter().chain([accept()]));
        }
        for (family, isolated) in FAMILIES.into_iter().zip(&self.isolated) {
            if isolated.is_empty() {
                continue;
            }
            let on = |key: &str| meta("==", key, json!({"set": isolated}));
            commands.rule("forward", [family.any(), on("iifname"), on("oifname"), goto("between-uplinks")]);
            // The cloud's own CNI decides which senders may reach its pods on this node.
            commands.rule("forward", [on("iifname"), family.within("daddr", "fronted"), accept()]);
            commands.rule("forward", [family.any(), on("iifname"), goto("to-containers")]);
        }
        let into_tunnel = is("==", json!({"rt": {"key": "ipsec"}}), json!(true));
        for statement in [decapsulated(), into_tunnel, redirected()] {
            commands.rule("between-uplinks", [statement, accept()]);
        }
        commands.rule("between-uplinks", dropped("between-uplinks"));
        for statement in [decapsulated(), redirected()] {
            commands.rule("to-containers", [statement, accept()]);
        }
        commands.rule("to-containers", dropped("to-containers"));
    }

    /// Limits the IKE SAs that pods initiate with hosts outside of the cluster, on any port. Pods
    /// share this node's address, and a peer accepts 64 half-open IKE SAs from one address in 30 s.
    /// Without the limit, a pod could block this node's own IKE SAs.
    fn ike_of_pods(&self, commands: &mut Commands) {
        let bits = |offset: u32, length: u32| json!({"payload": {"base": "th", "offset": offset, "len": length}});
        commands.target("ike-of-pods");
        // RFC 7296 3.1, after the UDP header: responder's SPI 0, major version 2, exchange type
        // IKE_SA_INIT. On the NAT traversal port, four zero octets precede the message (RFC 3948
        // 2.2).
        for marker in [0, 32] {
            let mut matches = vec![self.over_bridges("iifname"), meta("==", "l4proto", json!("udp"))];
            if marker > 0 {
                matches.push(is("==", bits(64, 32), json!(0)));
            }
            matches.push(is("==", bits(128 + marker, 64), json!(0)));
            matches.push(is("==", bits(200 + marker, 4), json!(2)));
            matches.push(is("==", bits(208 + marker, 8), json!(34)));
            matches.push(json!({"jump": {"target": "ike-of-pods"}}));
            commands.rule("forward", matches);
        }
        let over = json!({"limit": {"rate": 1, "per": "second", "burst": 16, "burst_unit": "packets", "inv": true}});
        commands.rule("ike-of-pods", [over].into_iter().chain(dropped("ike-sa-init")));
    }

    /// Sets the source addresses of outgoing packets. The first rule that matches a connection's
    /// first packet determines the source of the whole connection.
    fn sources(&self, commands: &mut Commands) {
        commands.chain("sources", "nat", "postrouting", BEFORE_OTHERS);
        for family in FAMILIES {
            for local in ["own", "fronted"] {
                commands
                    .rule("sources", [family.within("saddr", local), family.within("daddr", "remote"), family.keep()]);
                commands
                    .rule("sources", [family.within("saddr", "remote"), family.within("daddr", local), family.keep()]);
            }
            if let Some(address) = self.addresses.iter().find(|address| family.has(**address)) {
                let ours = json!({"snat": {"family": family.protocol, "addr": address.to_string()}});
                // This rule applies to any sender. Forwarded packets have passed the chain
                // `forward`. Other packets are the node's own, or are sent by IPVS from the node
                // with a client's source address. No expression distinguishes these two kinds on
                // all kernels (since 5.7 IPVS's packets keep their `iif`; before that, no packet in
                // postrouting has one).
                let to = [family.within("daddr", "remote"), family.outside("saddr", "ranges")];
                commands.rule("sources", to.into_iter().chain([ours]));
            }
            for (local, remote) in self.static_pairs.iter().filter(|(local, _)| family.has(local.ip())) {
                let matches = |field: &str, network: &IpNetwork| is("==", family.field(field), prefix(network));
                commands.rule("sources", [matches("saddr", local), matches("daddr", remote), family.keep()]);
            }
            if self.masquerade && !self.minimal {
                let leaves = meta("!=", "oifname", self.bridges_and_lo());
                let statements = [family.within("saddr", "bridged"), leaves, family.outside("daddr", "inside")];
                // If a pod kept an IKE port, connection tracking would pass packets that a peer
                // sends to this node's port to the pod.
                let (first, last) = self.ports_without_ike();
                let udp =
                    [meta("==", "l4proto", json!("udp")), json!({"masquerade": {"port": {"range": [first, last]}}})];
                commands.rule("sources", statements.clone().into_iter().chain(udp));
                commands.rule("sources", statements.into_iter().chain([json!({"masquerade": null})]));
            }
        }
    }

    /// Lowers the MSS of TCP connections through tunnels to fit the pods' MTU and this node's
    /// uplink, and the MTU of the route to the peer if that is smaller, since path MTU discovery
    /// often fails.
    fn mss(&self, commands: &mut Commands) {
        commands.chain("mss-forward", "filter", "forward", BEFORE_OTHERS);
        commands.chain("mss-output", "filter", "output", BEFORE_OTHERS);
        for family in FAMILIES {
            let headers = if family.ipv4 { 40 } else { 60 };
            let Some(size) = self.mtu.checked_sub(headers).filter(|size| *size > 0) else { continue };
            let syn = || {
                let flags = json!({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "rst"]]});
                is("==", flags, json!("syn"))
            };
            // nft_exthdr only lowers the value and never raises it.
            let clamp =
                || json!({"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": size}});
            // The smaller MTU of the routes in both directions (`nft_rt_get_eval`).
            let of_route = json!({"rt": {"key": "mtu"}});
            let clamp_to_route =
                || json!({"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": of_route}});
            for (chain, field) in [("mss-forward", "daddr"), ("mss-output", "daddr"), ("mss-forward", "saddr")] {
                for clamp in [clamp(), clamp_to_route()] {
                    commands.rule(chain, [family.within(field, "remote"), syn(), clamp]);
                }
            }
        }
    }
}

/// Returns the commands that create the counters. An existing counter keeps its value.
pub(super) fn counters() -> impl Iterator<Item = Value> {
    let counter = |name| json!({"add": {"counter": {"family": "inet", "table": TABLE, "name": name}}});
    COUNTERS.into_iter().map(move |(name, _)| counter(name))
}

fn table(name: &str) -> Value {
    json!({"table": {"family": "inet", "name": name}})
}
