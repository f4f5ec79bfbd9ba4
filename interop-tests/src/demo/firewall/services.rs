//! Checks ClusterIPs, which kube-proxy redirects for every sender. Only pods and the nodes may call
//! them; a host on a LAN that routes its calls through a node may not.

use std::net::IpAddr;

use anyhow::{Result, ensure};

use super::lan_test::{LOOK, LanTest, PORT, both, fetched, routed_through, socket};
use crate::topology::Namespaces;

/// The port of Services.
const SERVICE_PORT: u16 = 80;

/// Redirects each Service's address to an endpoint on a node, as kube-proxy does.
///
/// # Errors
/// Returns an error if the kernel refuses a rule.
pub(super) fn redirect(node: &Namespaces, services: &[(IpAddr, IpAddr)]) -> Result<()> {
    for (family, name) in [(true, "ip"), (false, "ip6")] {
        let rules: String = services
            .iter()
            .filter(|(service, _)| service.is_ipv4() == family)
            .map(|(service, endpoint)| {
                let to = socket(*endpoint, PORT);
                format!("add rule {name} service pre {name} daddr {service} tcp dport {SERVICE_PORT} dnat to {to}; ")
            })
            .collect();
        node.sh(&format!(
            "nft 'add table {name} service; add chain {name} service pre {{ type nat hook prerouting priority dstnat; }}; {rules}'"
        ))?;
    }
    Ok(())
}

/// Removes the rules of [`redirect`].
///
/// # Errors
/// Returns an error if the rules do not exist.
pub(super) fn forget(node: &Namespaces) -> Result<()> {
    node.sh("nft 'delete table ip service; delete table ip6 service'").map(drop)
}

/// Calls all these Services from `from` at the same time. Fails if any of them answers.
///
/// # Errors
/// Returns an error if a Service answers.
pub(super) fn none_is_served(from: &Namespaces, services: &[IpAddr]) -> Result<()> {
    let served: Vec<String> = std::thread::scope(|scope| {
        let calls: Vec<_> =
            services.iter().map(|service| scope.spawn(move || fetched(from, *service, SERVICE_PORT).is_ok())).collect();
        let answers = services.iter().zip(calls);
        answers
            .filter_map(|(service, call)| call.join().is_ok_and(|served| served).then(|| service.to_string()))
            .collect()
    });
    ensure!(served.is_empty(), "{} is served to {}", served.join(", "), from.name());
    Ok(())
}

/// Checks that the neighbour cannot call Services in the cloud's networks through a1, with
/// endpoints on a1 and on a2.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn lan_host_calls_none(test: &LanTest) -> Result<()> {
    let (edge, neighbour) = (test.world.node("edge-a1"), test.world.node("neighbour"));
    let (here, elsewhere) = (both(["10.244.99.3", "fd44::99:3"])?, both(["10.244.99.4", "fd44::99:4"])?);
    let pairs: Vec<(IpAddr, IpAddr)> =
        here.into_iter().zip(test.own).chain(elsewhere.into_iter().zip(test.far)).collect();
    redirect(edge, &pairs)?;
    for family in [0, 1] {
        let what = format!("a1's pod calls the Service {}, whose endpoint is a2's pod", elsewhere[family]);
        test.seen_as(&test.pods.of("edge-a1").pod, elsewhere[family], SERVICE_PORT, test.own[family], &what)?;
    }
    test.world.checks.check("a host on a1's LAN calls no Service by routing through a1", LOOK, || {
        let counts = || -> Result<(u64, u64)> {
            Ok((test.refused("edge-a1", "to-pods")?, test.refused("edge-a1", "to-tunnels")?))
        };
        let before = counts()?;
        let services = [here, elsewhere].concat();
        routed_through(neighbour, test.edge, &services, || none_is_served(neighbour, &services))?;
        let after = counts()?;
        let counted = (after.0 - before.0, after.1 - before.1);
        ensure!(counted.0 >= 2 && counted.1 >= 2, "a1's firewall counted {counted:?}: they never got there");
        Ok(format!("{} packets dropped on the way to pods, {} to tunnels", counted.0, counted.1))
    })?;
    forget(edge)
}

/// Checks that an edge's pod can call a Service through the hub if its endpoint is in the cloud,
/// but not if its endpoint is at another edge.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn endpoint_at_another_edge(test: &LanTest) -> Result<()> {
    let hub = test.world.node("cloud-1");
    let pod = &test.pods.of("edge-a1").pod;
    let [service, other]: [IpAddr; 2] = ["10.244.99.1".parse()?, "10.244.99.2".parse()?];
    redirect(hub, &[(service, test.cloud[0]), (other, test.far[0])])?;
    let what = "a Service whose endpoint is in the cloud is served through the hub";
    test.seen_as(pod, service, SERVICE_PORT, test.own[0], what)?;
    test.world.checks.check(
        "one whose endpoint is at another edge is not, and the hub's status says why",
        "cloud-1.edge-agent.log",
        || {
            none_is_served(pod, &[other])?;
            let counted = test.refused("cloud-1", "service-elsewhere")?;
            ensure!(counted > 0, "the hub counted nothing");
            Ok(format!("{counted} packets"))
        },
    )?;
    forget(hub)
}
