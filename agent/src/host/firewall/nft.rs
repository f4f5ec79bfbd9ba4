//! The table in the kernel, through `nft -j`: no maintained crate speaks nftables' netlink.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nftables::helper::{self, NftablesError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rules::COUNTERS;
use super::{Firewall, TABLE};

/// Packets that the table dropped since it was last replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Name of the counter in the table.
    pub counter: String,
    /// How many.
    pub packets: u64,
    /// What they were.
    pub what: String,
}

impl Firewall {
    /// Puts the table in place, and returns it as the kernel then shows it.
    pub fn apply(&self) -> anyhow::Result<Value> {
        run(&self.commands()).context("the table inet edge-cni (nftables 0.9.3 or later is needed)")?;
        match read()? {
            Some(table) => Ok(table),
            None => bail!("the table inet edge-cni is not there although nft accepted it: another program deletes it"),
        }
    }
}

/// The table as the kernel has it, without what changes by itself; `None` where it is not there.
pub fn read() -> anyhow::Result<Option<Value>> {
    let Some(mut table) = list(&["list", "table", "inet", TABLE])? else { return Ok(None) };
    let Some(objects) = table["nftables"].as_array_mut() else { bail!("nft's answer has no list") };
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

/// What the table has dropped since it was last replaced; nothing where it is not there.
pub fn refused() -> anyhow::Result<Vec<Refused>> {
    let listed = list(&["list", "counters", "table", "inet", TABLE])?.unwrap_or_default();
    let objects = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut refused = Vec::new();
    for (name, what) in COUNTERS {
        let counter = objects.iter().map(|object| &object["counter"]).find(|counter| counter["name"] == name);
        let packets = counter.and_then(|counter| counter["packets"].as_u64()).unwrap_or(0);
        if packets > 0 {
            refused.push(Refused { counter: name.to_owned(), packets, what: what.to_owned() });
        }
    }
    Ok(refused)
}

/// Takes the table away.
pub fn remove() -> anyhow::Result<()> {
    delete("inet")
}

/// Takes away the plugin's table, `bridge edge-cni`; false where there is none. The next ADD makes
/// it again.
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

/// What nft lists; `None` where the kernel has no such thing.
pub(in crate::host) fn list(arguments: &[&str]) -> anyhow::Result<Option<Value>> {
    let text = match helper::get_current_ruleset_raw(helper::DEFAULT_NFT, arguments) {
        Ok(text) => text,
        Err(NftablesError::NftFailed { stderr, .. }) if stderr.contains("No such file or directory") => {
            return Ok(None);
        }
        Err(error) => return Err(explain(error)).with_context(|| format!("nft {}", arguments.join(" "))),
    };
    serde_json::from_str(&text).map(Some).context("nft's answer")
}

/// Carries out commands in one transaction.
pub(in crate::host) fn run(commands: &Value) -> anyhow::Result<()> {
    // The crate's own way is `-f -`, for which nft opens /dev/stdin: not every small system has
    // that.
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
