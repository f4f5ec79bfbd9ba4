//! The counters of dropped packets, and the meaning of each.

/// Counters of dropped packets, and what each means for an operator.
pub(super) const COUNTERS: [(&str, &str); 9] = [
    ("loopback", "packets from other hosts or pods to or from this node's loopback addresses (127.0.0.0/8)"),
    (
        "posing",
        "packets with a pod's source that came neither from the bridge nor out of a tunnel; on a hub also those that another hub \
         forwards to pods here: [hub.NAME] networks of the controller must give this hub their networks",
    ),
    ("forged", "pods' packets with a source that is not a pod's"),
    (
        "to-tunnels",
        "connections from outside the cluster that were routed here to enter a tunnel; [firewall] lan_to_tunnels allows them",
    ),
    (
        "to-pods",
        "connections from outside the cluster that were routed here to a pod; [firewall] lan_to_pods allows them",
    ),
    (
        "between-uplinks",
        "connections between this node's own networks, for which it is no router; [firewall] forward_others allows them",
    ),
    (
        "to-containers",
        "connections from outside that were routed here to containers of another runtime; [firewall] forward_others allows them",
    ),
    (
        "ike-sa-init",
        "IKE_SA_INIT requests of pods beyond one a second; they share this node's address, and peers accept few of one address",
    ),
    (
        "service-elsewhere",
        "calls of a Service through this hub whose endpoint is at another edge; run kube-proxy on the edges",
    ),
];
