//! `edge-agent down`: takes everything of the agent's away, whether or not it ever ran on this
//! boot.

use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use edge_xfrm::{Error, Xfrm, guard};
use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::RouteMessageBuilder;

use crate::config::Config;
use crate::host::{firewall, obstacles};

/// Removes SAs, policies, routes, the guard and the table; nothing of anyone else's. Goes on after
/// a failure, and tells all of them.
pub fn down(config: &Config) -> anyhow::Result<()> {
    let socket = config.admin_socket();
    if UnixStream::connect(&socket).is_ok() {
        bail!("the agent is running ({}); stop it first, or it puts everything back", socket.display());
    }
    let mut failures = Vec::new();
    let mut tell = |what: &str, outcome: anyhow::Result<usize>| match outcome {
        Ok(count) => println!("{what}: {count} removed"),
        Err(error) => failures.push(format!("{what}: {error:#}")),
    };
    tell("SAs", sas());
    // While pods are there the guard goes last: until then their packets die instead of leaving in
    // clear.
    tell("policies", policies());
    tell("routes", routes());
    tell("nftables tables", tables());
    tell("accept rules in FORWARD", obstacles::remove_accepts());
    tell("guard", guard::remove().map(|()| 1).map_err(Into::into));
    if failures.is_empty() { Ok(()) } else { bail!("not all is gone: {}", failures.join("; ")) }
}

fn sas() -> anyhow::Result<usize> {
    let mut xfrm = Xfrm::open().context("the agent needs CAP_NET_ADMIN")?;
    let mut count = 0;
    for sa in xfrm.sas()?.iter().filter(|sa| sa.is_ours()) {
        match xfrm.delete_sa(sa.id) {
            Ok(()) => count += 1,
            Err(Error::NoSuchSa { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}

/// Those of tunnels; the guard's are left to its own crate.
fn policies() -> anyhow::Result<usize> {
    use edge_xfrm::policy::priority;
    let mut xfrm = Xfrm::open().context("the agent needs CAP_NET_ADMIN")?;
    let ours = |policy: &&edge_xfrm::InstalledPolicy| {
        policy.is_ours() && !matches!(policy.priority, priority::ALLOW | priority::BLOCK)
    };
    let mut count = 0;
    for policy in xfrm.policies()?.iter().filter(ours) {
        count += usize::from(xfrm.delete_policy(policy)?);
    }
    Ok(count)
}

/// A cloud node's to the hub; those of the guard's device go with it.
fn routes() -> anyhow::Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let mut count = 0;
        for filter in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let routes: Vec<RouteMessage> = handle.route().get(filter).execute().try_collect().await?;
            let through_gateway = |route: &&RouteMessage| {
                u8::from(route.header.protocol) == guard::ROUTE_PROTOCOL
                    && route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_)))
            };
            for route in routes.iter().filter(through_gateway) {
                handle.route().del(route.clone()).execute().await?;
                count += 1;
            }
        }
        Ok(count)
    })
}

fn tables() -> anyhow::Result<usize> {
    let ours = match firewall::read()? {
        Some(_) => firewall::remove().map(|()| 1)?,
        None => 0,
    };
    Ok(ours + usize::from(firewall::remove_bridge_filter()?))
}
