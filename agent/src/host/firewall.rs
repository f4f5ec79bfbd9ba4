//! One nftables table of ours, `inet edge-cni`; nothing of anyone else's is touched.
//!
//! - **Sources stay.** What others masquerade on this host (kube-proxy, Docker, the operator) must not change the source of a packet that travels in
//!   a tunnel. A connection is translated by the first rule that applies to it, so ours, in an earlier chain, translate each source to itself.
//! - **Foreign sources become ours.** What comes from outside the cluster and goes to a peer (a NodePort's client, a process that
//!   bound another address) takes the bridge's address, so that the peer's policies know it and its answers find back.
//! - **MSS.** TCP through a tunnel is told the pods' MTU, since path MTU discovery fails often enough.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use ipnetwork::IpNetwork;
use nftables::helper::{self, NftablesError};
use serde_json::{Value, json};

/// Name of the table, family `inet`.
pub const TABLE: &str = "edge-cni";

/// Before every other chain that translates sources (100), after connection tracking (-200).
const PRIORITY: i32 = -150;

/// What the table is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Networks of this side: own segments, a hub's cloud networks, on a cloud node those of the hubs.
    pub local: Vec<IpNetwork>,
    /// Networks behind tunnels.
    pub remote: Vec<IpNetwork>,
    /// The cluster's ranges: a source from there that is not ours is forged, and is never made respectable.
    pub ranges: Vec<IpNetwork>,
    /// The bridge's addresses, one a family.
    pub bridge: Vec<IpAddr>,
    /// MTU of packets in tunnels, 0 where it is not known.
    pub mtu: u32,
}

impl Firewall {
    /// Nothing to do: the table is not wanted.
    pub fn is_empty(&self) -> bool {
        self.remote.is_empty()
    }

    /// The commands that replace the table in one transaction.
    fn commands(&self) -> Value {
        let table = json!({"table": {"family": "inet", "name": TABLE}});
        // Adding before deleting makes the deletion succeed where there is none yet.
        let mut commands = vec![json!({"add": table}), json!({"delete": table}), json!({"add": table})];
        let chain = |name: &str, kind: &str, hook: &str, priority: i32| {
            json!({"add": {"chain": {"family": "inet", "table": TABLE, "name": name, "type": kind, "hook": hook, "prio": priority,
                                     "policy": "accept"}}})
        };
        commands.push(chain("sources", "nat", "postrouting", PRIORITY));
        commands.push(chain("mss-forward", "filter", "forward", PRIORITY));
        commands.push(chain("mss-output", "filter", "output", PRIORITY));
        let rule = |chain: &str, statements: Vec<Value>| json!({"add": {"rule": {"family": "inet", "table": TABLE, "chain": chain, "expr": statements}}});
        for ipv4 in [true, false] {
            let family = if ipv4 { "ip" } else { "ip6" };
            let (Some(local), remote) = (set(&self.local, ipv4), set(&self.remote, ipv4)) else { continue };
            let Some(remote) = remote else { continue };
            let field = |field: &str| json!({"payload": {"protocol": family, "field": field}});
            let matches =
                |side: &str, networks: &Value| json!({"match": {"op": "==", "left": field(side), "right": networks}});
            let keep = json!({"snat": {"family": family, "addr": field("saddr")}});
            commands.push(rule("sources", vec![matches("saddr", &local), matches("daddr", &remote), keep.clone()]));
            commands.push(rule("sources", vec![matches("saddr", &remote), matches("daddr", &local), keep]));
            if let Some(bridge) = self.bridge.iter().find(|address| address.is_ipv4() == ipv4) {
                let ours = json!({"snat": {"family": family, "addr": bridge.to_string()}});
                let outside = set(&self.ranges, ipv4)
                    .map(|ranges| json!({"match": {"op": "!=", "left": field("saddr"), "right": ranges}}));
                let statements = [matches("daddr", &remote)].into_iter().chain(outside).chain([ours]).collect();
                commands.push(rule("sources", statements));
            }
            let headers = if ipv4 { 40 } else { 60 };
            if let Some(size) = self.mtu.checked_sub(headers).filter(|size| *size > 0) {
                let syn = json!({"match": {"op": "==", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "rst"]]},
                                           "right": "syn"}});
                // It only ever lowers what is there (nft_exthdr).
                let clamp =
                    json!({"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": size}});
                for chain in ["mss-forward", "mss-output"] {
                    commands.push(rule(chain, vec![matches("daddr", &remote), syn.clone(), clamp.clone()]));
                }
                commands.push(rule("mss-forward", vec![matches("saddr", &remote), syn, clamp]));
            }
        }
        json!({ "nftables": commands })
    }

    /// Puts the table in place, and returns it as the kernel then shows it.
    pub fn apply(&self) -> anyhow::Result<Value> {
        run(&self.commands()).context("the table inet edge-cni (nftables 0.9.3 or later is needed)")?;
        match read()? {
            Some(table) => Ok(table),
            None => bail!("the table inet edge-cni is not there although nft accepted it: another program deletes it"),
        }
    }
}

/// An anonymous set of the networks of one family; `None` if there are none.
fn set(networks: &[IpNetwork], ipv4: bool) -> Option<Value> {
    let mut networks: Vec<&IpNetwork> = networks.iter().filter(|network| network.is_ipv4() == ipv4).collect();
    // Intervals must not overlap: what lies within another says nothing new.
    networks.sort_by_key(|network| (network.prefix(), network.network()));
    let mut kept: Vec<&IpNetwork> = Vec::new();
    for network in networks {
        if !kept.iter().any(|outer| outer.contains(network.network())) {
            kept.push(network);
        }
    }
    let prefix =
        |network: &&IpNetwork| json!({"prefix": {"addr": network.network().to_string(), "len": network.prefix()}});
    let elements: Vec<Value> = kept.iter().map(prefix).collect();
    (!elements.is_empty()).then(|| json!({ "set": elements }))
}

/// The table as the kernel has it, without what changes by itself; `None` where it is not there.
pub fn read() -> anyhow::Result<Option<Value>> {
    let arguments = ["list", "table", "inet", TABLE];
    let text = match helper::get_current_ruleset_raw(helper::DEFAULT_NFT, arguments) {
        Ok(text) => text,
        Err(NftablesError::NftFailed { stderr, .. }) if stderr.contains("No such file or directory") => {
            return Ok(None);
        }
        Err(error) => return Err(explain(error)).context("nft cannot list the table inet edge-cni"),
    };
    let mut table: Value = serde_json::from_str(&text).context("nft's answer")?;
    let Some(objects) = table["nftables"].as_array_mut() else { bail!("nft's answer has no list") };
    objects.retain(|object| object.get("metainfo").is_none());
    for object in objects {
        for inner in object.as_object_mut().into_iter().flat_map(|object| object.values_mut()) {
            if let Some(fields) = inner.as_object_mut() {
                fields.remove("handle");
            }
        }
    }
    Ok(Some(table))
}

/// Takes the table away.
pub fn remove() -> anyhow::Result<()> {
    let table = json!({"table": {"family": "inet", "name": TABLE}});
    run(&json!({"nftables": [{"add": table}, {"delete": table}]})).context("the table inet edge-cni")
}

fn run(commands: &Value) -> anyhow::Result<()> {
    // The crate's own way is `-f -`, for which nft opens /dev/stdin: not every small system has that.
    let mut nft = Command::new("nft")
        .args(["-j", "-f", "/proc/self/fd/0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft cannot be run; install nftables")?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(commands.to_string().as_bytes())?;
    }
    let output = nft.wait_with_output()?;
    if !output.status.success() {
        bail!("nft refused it: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// nft's own words, which the crate's error leaves out.
fn explain(error: NftablesError) -> anyhow::Error {
    match &error {
        NftablesError::NftFailed { stderr, .. } => anyhow::anyhow!("{error}: {}", stderr.trim()),
        _ => error.into(),
    }
}
