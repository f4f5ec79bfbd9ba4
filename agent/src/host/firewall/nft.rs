//! The table in the kernel, through `nft -j`, since no maintained crate speaks nftables' netlink.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nftables::helper::{self, NftablesError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::contents::{Firewall, PODS_TABLE, TABLE};
use super::rules::COUNTERS;

/// Number of packets that a rule dropped since the table was last replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPackets {
    /// Name of the counter in the table.
    pub counter: String,
    /// Packets since the table was last replaced.
    pub packets: u64,
    /// Description of these packets, with the key that allows them.
    pub what: String,
}

impl Firewall {
    /// Replaces the table, and returns its form in the kernel. Fails if nft refuses it.
    pub fn apply(&self) -> anyhow::Result<Value> {
        run(&self.commands()).context("the table inet edge-cni (nftables 0.9.3 or later is needed)")?;
        match read()? {
            Some(table) => Ok(table),
            None => bail!("the table inet edge-cni is not there although nft accepted it: another program deletes it"),
        }
    }
}

/// Reads the table, without handles and counters; `None` if it does not exist.
pub fn read() -> anyhow::Result<Option<Value>> {
    let Some(mut table) = list(&["list", "table", "inet", TABLE])? else { return Ok(None) };
    let Some(objects) = table["nftables"].as_array_mut() else { bail!("nft's output has no list") };
    objects.retain(|object| object.get("metainfo").is_none());
    for inner in objects.iter_mut().filter_map(Value::as_object_mut).flat_map(|object| object.values_mut()) {
        if let Some(fields) = inner.as_object_mut() {
            for volatile in ["handle", "packets", "bytes"] {
                fields.remove(volatile);
            }
        }
    }
    Ok(Some(table))
}

/// Reads the counters of dropped packets that are above 0; none if the table does not exist.
pub fn dropped_packets() -> anyhow::Result<Vec<DroppedPackets>> {
    let listed = list(&["list", "counters", "table", "inet", TABLE])?.unwrap_or_default();
    let objects = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut dropped = Vec::new();
    for (name, what) in COUNTERS {
        let counter = objects.iter().map(|object| &object["counter"]).find(|counter| counter["name"] == name);
        let packets = counter.and_then(|counter| counter["packets"].as_u64()).unwrap_or(0);
        if packets > 0 {
            dropped.push(DroppedPackets { counter: name.to_owned(), packets, what: what.to_owned() });
        }
    }
    Ok(dropped)
}

/// Removes the table `inet edge-cni`.
pub fn remove() -> anyhow::Result<()> {
    delete("inet")
}

/// Whether the plugin's table `inet edge-cni-pods` exists.
pub(crate) fn pods_table_exists() -> anyhow::Result<bool> {
    Ok(list(&["list", "table", "inet", PODS_TABLE])?.is_some())
}

/// Removes the plugin's table, `bridge edge-cni`, which the next ADD makes again. False if it does
/// not exist.
pub fn remove_bridge_filter() -> anyhow::Result<bool> {
    match list(&["list", "table", "bridge", TABLE])? {
        Some(_) => delete("bridge").map(|()| true),
        None => Ok(false),
    }
}

fn delete(family: &str) -> anyhow::Result<()> {
    let table = json!({"table": {"family": family, "name": TABLE}});
    run(&json!({"nftables": [{"add": table}, {"delete": table}]}))
        .with_context(|| format!("the table {family} edge-cni"))
}

/// Runs `nft -j` with arguments that list something; `None` if it does not exist.
pub(in crate::host) fn list(arguments: &[&str]) -> anyhow::Result<Option<Value>> {
    let text = match helper::get_current_ruleset_raw(helper::DEFAULT_NFT, arguments) {
        Ok(text) => text,
        Err(NftablesError::NftFailed { stderr, .. }) if stderr.contains("No such file or directory") => {
            return Ok(None);
        }
        Err(error) => return Err(explain(error)).with_context(|| format!("nft {}", arguments.join(" "))),
    };
    serde_json::from_str(&text).map(Some).context("nft's output")
}

/// Runs nft commands in one transaction.
pub(in crate::host) fn run(commands: &Value) -> anyhow::Result<()> {
    // The crate uses `-f -`, for which nft opens /dev/stdin, which small systems may lack.
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

/// Adds nft's message, which the crate's error leaves out.
fn explain(error: NftablesError) -> anyhow::Error {
    match &error {
        NftablesError::NftFailed { stderr, .. } => anyhow::anyhow!("{error}: {}", stderr.trim()),
        _ => error.into(),
    }
}
