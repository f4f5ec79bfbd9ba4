//! `edge-agent down`: takes everything of the agent's away, whether or not it ever ran on this
//! boot.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use edge_xfrm::{Error, Xfrm, guard};
use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::RouteMessageBuilder;

use crate::config::Config;
use crate::host::{firewall, obstacles};
use crate::install_cni::CONFLIST;

/// Removes SAs, policies, routes, the guard and the tables; nothing of anyone else's. Pods that are
/// left stay closed to hosts outside. Goes on after a failure, and tells all of them.
pub fn down(config: &Config) -> anyhow::Result<()> {
    let socket = config.admin_socket();
    if UnixStream::connect(&socket).is_ok() {
        bail!("the agent is running ({}); stop it first, or it puts everything back", socket.display());
    }
    let mut failures = Vec::new();
    let tell = |failures: &mut Vec<String>, what: &str, outcome: anyhow::Result<usize>| match outcome {
        Ok(count) => println!("{what}: {count} removed"),
        Err(error) => failures.push(format!("{what}: {error:#}")),
    };
    tell(&mut failures, "SAs", sas());
    // While pods are there the guard goes last: until then their packets die instead of leaving in
    // clear.
    tell(&mut failures, "policies", policies());
    tell(&mut failures, "routes", routes());
    tell(&mut failures, "nftables tables", tables());
    if let Err(error) = close_pods(config) {
        failures.push(format!("hosts outside reach the pods that are left: {error:#}"));
    }
    tell(&mut failures, "accept rules in FORWARD", obstacles::remove_accepts());
    tell(&mut failures, "guard", guard::remove().map(|()| 1).map_err(Into::into));
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

/// As long as there are pods' bridges, the plugin's table does what ours did.
fn close_pods(config: &Config) -> anyhow::Result<()> {
    let (plugin, conflist) = (config.cni.bin_dir.join("edge-cni"), config.path(&config.cni.conf_dir).join(CONFLIST));
    if !plugin.exists() || !conflist.exists() {
        return Ok(());
    }
    let output = Command::new(&plugin).arg("ingress").arg(&conflist).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{} ingress", plugin.display()))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{} ingress: {}", plugin.display(), String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}

fn tables() -> anyhow::Result<usize> {
    let ours = match firewall::read()? {
        Some(_) => firewall::remove().map(|()| 1)?,
        None => 0,
    };
    Ok(ours + usize::from(firewall::remove_bridge_filter()?))
}
