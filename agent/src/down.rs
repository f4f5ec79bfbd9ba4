//! `edge-agent down`: removes everything that an agent installed in the kernel, even if no agent
//! has run since boot.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use edge_types::forwarding::Forwarding;
use edge_xfrm::{Error, Xfrm, guard};
use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::RouteMessageBuilder;

use crate::config::Config;
use crate::host::firewall::PODS_TABLE;
use crate::host::{self, firewall, obstacles};
use crate::install_cni;
use crate::socket_holder::client::{self, HolderConnection};
use crate::stdout::print;

/// Removes the agent's SAs, policies, routes, nftables tables and the guard, but no objects of
/// other programs. Hosts outside of the cluster still cannot reach remaining pods: if the plugin
/// cannot create its table for these pods, the agent's table stays. Continues after a failure and
/// reports all failures. Fails if the agent runs.
pub fn down(config: &Config) -> anyhow::Result<()> {
    refuse_beside_agent(config)?;
    let removal = remove_from_kernel(config, true);
    let lines = removal.removed.iter().map(|(what, count)| format!("{what}: {count} removed"));
    for line in lines.chain(removal.notes.iter().cloned()) {
        print(&format!("{line}\n"))?;
    }
    removal.result()
}

/// Fails if the agent runs, because it would restore the removed objects.
pub(crate) fn refuse_beside_agent(config: &Config) -> anyhow::Result<()> {
    let socket = config.admin_socket();
    if UnixStream::connect(&socket).is_ok() {
        bail!("the agent is running ({}); stop it first, because it would restore everything", socket.display());
    }
    Ok(())
}

/// What was removed, and the failures.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    /// Each kind of object, and the number of objects removed.
    pub(crate) removed: Vec<(String, usize)>,
    /// Further notes for the operator, one line each.
    pub(crate) notes: Vec<String>,
    pub(crate) failures: Vec<String>,
}

impl Removal {
    pub(crate) fn record(&mut self, what: impl Into<String>, outcome: anyhow::Result<usize>) {
        let what = what.into();
        match outcome {
            Ok(count) => self.removed.push((what, count)),
            Err(error) => self.failures.push(format!("{what}: {error:#}")),
        }
    }

    /// Returns an error with all failures, if there are any.
    pub(crate) fn result(&self) -> anyhow::Result<()> {
        match self.failures.is_empty() {
            true => Ok(()),
            false => bail!("some things could not be removed: {}", self.failures.join("; ")),
        }
    }
}

/// Removes the objects of the agent and the plugin from the kernel, except the bridges and the
/// pods' interfaces. With `for_pods`, the objects that remaining pods need stay: a table that
/// protects them from hosts outside of the cluster, and forwarding.
pub(crate) fn remove_from_kernel(config: &Config, for_pods: bool) -> Removal {
    let mut removal = Removal::default();
    held_sockets(config, &mut removal);
    removal.record("SAs", sas());
    // The guard is removed last: until then, packets from remaining pods are dropped instead of
    // leaving without encryption.
    removal.record("policies", policies());
    removal.record("routes", routes());
    // Both tables only drop packets, and neither accepts packets that the other drops, so both may
    // exist at the same time.
    let closed = if for_pods { close_pods(config) } else { Ok(()) };
    match closed {
        Ok(()) => {
            // Without a table, the node would forward packets between its own networks.
            match restore_forwarding(config, for_pods) {
                Ok(lines) => removal.notes.extend(lines),
                Err(error) => removal.failures.push(format!("forwarding: {error:#}")),
            }
            removal.record("table inet edge-cni", agents_table());
        }
        Err(error) => removal.failures.push(format!(
            "table inet edge-cni is kept, since nothing else keeps hosts outside from the attached pods: {error:#}"
        )),
    }
    if !for_pods {
        removal.record(format!("table inet {PODS_TABLE}"), firewall::remove_pods_table().map(usize::from));
    }
    removal.record("table bridge edge-cni", firewall::remove_bridge_filter().map(usize::from));
    removal.record("accept rules in FORWARD", obstacles::remove_accepts());
    removal.record("device of internal addresses", host::remove_internal_addresses());
    removal.record("guard", guard::remove().map_err(Into::into));
    removal
}

/// Returns what the kernel has of the agent and the plugin, except interfaces; changes nothing.
pub(crate) fn kernel_objects() -> anyhow::Result<Vec<String>> {
    let mut xfrm = Xfrm::open().context("the agent needs CAP_NET_ADMIN")?;
    let counts = [
        ("SAs", xfrm.sas()?.iter().filter(|sa| sa.is_ours()).count()),
        ("policies", xfrm.policies()?.iter().filter(|policy| policy.is_ours()).count()),
    ];
    let mut found: Vec<String> =
        counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect();
    let tables = [
        ("table inet edge-cni", firewall::read()?.is_some()),
        ("table inet edge-cni-pods", firewall::pods_table_exists()?),
    ];
    found.extend(tables.iter().filter(|(_, exists)| *exists).map(|(what, _)| (*what).to_owned()));
    if client::find()?.is_some() {
        found.push("the process that holds the agent's sockets".to_owned());
    }
    Ok(found)
}

/// Has the processes that hold the UDP sockets close them, of which the one that an agent started
/// also exits. A failure of one does not keep the other's sockets open.
fn held_sockets(config: &Config, removal: &mut Removal) {
    let path = config.holder_socket();
    let mut count = 0;
    for closed in [close_held(client::find), close_held(|| client::find_at(&path))] {
        match closed {
            Ok(Closed::Sockets(closed)) => count += closed,
            Ok(Closed::Unknown) => {
                removal.notes.push("held sockets: those of a holder of another release are closed".to_owned());
            }
            Err(error) => removal.failures.push(format!("held sockets: {error:#}")),
        }
    }
    removal.removed.push(("held sockets".to_owned(), count));
}

/// How many sockets a holder has closed.
enum Closed {
    Sockets(usize),
    /// The holder did not give them.
    Unknown,
}

fn close_held(find: impl Fn() -> anyhow::Result<Option<HolderConnection>>) -> anyhow::Result<Closed> {
    let Some(holder) = find()? else { return Ok(Closed::Sockets(0)) };
    match holder.take() {
        Ok(sockets) => {
            let count = sockets.len();
            drop(sockets);
            holder.end().map(|()| Closed::Sockets(count))
        }
        // A holder of another version closes the connection after its answer.
        Err(_) => {
            drop(holder);
            match find()? {
                Some(holder) => holder.end().map(|()| Closed::Unknown),
                None => Ok(Closed::Sockets(0)),
            }
        }
    }
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

/// Removes the policies of tunnels. [`guard::remove`] removes the guard's policies.
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

/// Removes a cloud node's routes to the hub. The kernel removes the routes through the guard's
/// device together with the device.
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

/// Creates the plugin's table, which protects pods from hosts outside of the cluster like the
/// agent's table does. Fails if pods are attached and the table is necessary but does not exist
/// afterwards.
fn close_pods(config: &Config) -> anyhow::Result<()> {
    match make_pods_table(config) {
        Err(error) if host::has_attached_pods(&config.bridge)? => Err(error),
        _ => Ok(()),
    }
}

fn make_pods_table(config: &Config) -> anyhow::Result<()> {
    let (plugin, conflist) = (config.cni.bin_dir.join("edge-cni"), config.cni.conflist());
    if !plugin.exists() {
        bail!(
            "the plugin {} is missing; copy it there with `edge-agent install-cni --plugin FILE`, or remove the pods, and run `edge-agent down` again",
            plugin.display()
        );
    }
    let mut command = Command::new(&plugin);
    command.arg("ingress").stdout(Stdio::piped()).stderr(Stdio::piped());
    // The pods may still be attached after `install-cni --remove` has removed the file.
    let text = if conflist.exists() {
        command.arg(&conflist).stdin(Stdio::null());
        String::new()
    } else {
        command.arg("/proc/self/fd/0").stdin(Stdio::piped());
        install_cni::conflist_text(config)?.with_context(|| {
            format!(
                "neither {} nor segments.json in {} is there; remove the pods and run `edge-agent down` again",
                conflist.display(),
                config.state_dir.display()
            )
        })?
    };
    let mut run = || -> std::io::Result<_> {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().with_context(|| format!("{} ingress", plugin.display()))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{} ingress: {}", plugin.display(), String::from_utf8_lossy(&said).trim());
    }
    // Earlier releases of the plugin do not support this request, and create no table while the
    // agent's table exists.
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if !answer["table"].is_boolean() {
        bail!(
            "{} ingress does not say whether it made its table: it is of an earlier release; install this release's with `edge-agent install-cni --plugin FILE` and run `edge-agent down` again",
            plugin.display()
        );
    }
    Ok(())
}

/// Turns forwarding off again if it was off before the agent or the plugin turned it on. With
/// `for_pods`, forwarding stays on if the plugin's table exists: this table has the same rules as
/// the agent's table, and pods need forwarding.
fn restore_forwarding(config: &Config, for_pods: bool) -> anyhow::Result<Vec<String>> {
    if for_pods && firewall::pods_table_exists()? {
        return Ok(vec![]);
    }
    let turned_off = Forwarding::new(&config.state_dir, &config.run_dir).restore()?;
    let names = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];
    let families = turned_off.into_iter().zip(names).filter(|(turned_off, _)| *turned_off);
    let line = |name| format!("{name}: 0 again, as it was before; if another program needs it: sysctl -w {name}=1");
    Ok(families.map(|(_, name)| line(name)).collect())
}

/// Removes the agent's table.
fn agents_table() -> anyhow::Result<usize> {
    match firewall::read()? {
        Some(_) => firewall::remove().map(|()| 1),
        None => Ok(0),
    }
}
