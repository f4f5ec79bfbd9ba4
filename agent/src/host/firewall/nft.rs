//! Accesses the table in the kernel through `nft -j`, since no maintained crate implements
//! nftables' netlink protocol. Only elements of sets are changed without `nft`.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nftables::helper::{self, NftablesError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::contents::{Firewall, PODS_TABLE, TABLE};
use super::counters::COUNTERS;
use super::remote_changes::follow;
use super::rules::counters;
use super::set_elements::{MAX_NETWORKS, SetElements};
use super::sets::{ElementChange, Sets, changes, parse};

/// Number of packets that a rule dropped since the table was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPackets {
    /// Name of the counter in the table.
    pub counter: String,
    /// Packets dropped since the table was created.
    pub packets: u64,
    /// Description of these packets, with the configuration key that allows them.
    pub what: String,
}

/// The table as read from the kernel, without handles and counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelTable {
    /// nft's objects, without the elements of the sets in `sets`.
    pub(in crate::host) objects: Value,
    /// Sets of networks. A set with elements of another type is only in `objects`.
    pub(in crate::host) sets: Sets,
}

impl Firewall {
    /// Replaces the table and returns it as read back from the kernel. Fails if nft refuses it.
    pub fn apply(&self) -> anyhow::Result<KernelTable> {
        self.replace(&mut 0)
    }

    /// Replaces the table as [`Self::apply`] does. Adds the number of transactions that changed the
    /// table to `transactions`.
    ///
    /// The sets are changed before the rules that use them: since Linux 7.0, lookups find the
    /// elements of a new set only a moment after the rules of the same transaction take effect.
    /// Packets that arrive in that moment would be dropped.
    pub(in crate::host) fn replace(&self, transactions: &mut u32) -> anyhow::Result<KernelTable> {
        let replaced = match read()? {
            Some(found) => self.replace_in_steps(&found, transactions).inspect_err(|error| {
                tracing::debug!("table inet {TABLE}: {error:#}");
            }),
            // A missing table is not created in steps: while the sets existed without rules, the
            // plugin would treat the table as complete.
            None => Ok(false),
        };
        if !replaced.unwrap_or(false) {
            run(&self.commands()).context("the table inet edge-cni (nftables 0.9.3 or later is needed)")?;
            *transactions += 1;
        }
        match read()? {
            Some(table) => Ok(table),
            None => bail!("the table inet edge-cni is not there although nft accepted it: another program deletes it"),
        }
    }

    /// Changes the sets first and then the rules. Returns `false` if the table in the kernel has
    /// objects that the desired table lacks, and must therefore be deleted.
    fn replace_in_steps(&self, found: &KernelTable, transactions: &mut u32) -> anyhow::Result<bool> {
        let Some(deletions) = found.delete_rules(&self.sets()) else { return Ok(false) };
        run_counted(changes(&found.sets, &self.sets()), transactions)?;
        run_counted(deletions.into_iter().chain(counters()).chain(self.rules()).collect(), transactions)?;
        Ok(true)
    }

    /// Changes the recorded sets of `table`, which is the table of `applied` and has the rules of
    /// this firewall, and returns what must be changed in the kernel to match.
    pub(in crate::host) fn update(&self, applied: &Self, table: &mut KernelTable) -> SetUpdate {
        match follow(&mut table.sets, applied, self) {
            Some(few) if few.iter().map(|change| change.networks.len()).sum::<usize>() <= MAX_NETWORKS => {
                SetUpdate::Few(few)
            }
            Some(many) => SetUpdate::Many(many.iter().map(ElementChange::command).collect()),
            None => {
                let sets = self.sets();
                let commands = changes(&table.sets, &sets);
                table.sets = sets;
                SetUpdate::Many(commands)
            }
        }
    }

    /// Returns whether both tables have the same rules, so that only elements of sets differ.
    pub(in crate::host) fn has_rules_of(&self, other: &Self) -> bool {
        self.is_same_except_remote(other) || self.rules() == other.rules()
    }
}

/// Changes of the table's sets.
#[derive(Debug)]
pub(in crate::host) enum SetUpdate {
    /// A few elements, which are changed through netlink.
    Few(Vec<ElementChange>),
    /// Commands for nft.
    Many(Vec<Value>),
}

impl SetUpdate {
    /// Makes the changes in the kernel in one transaction. Returns the number of transactions: none
    /// if nothing changes.
    pub(in crate::host) fn apply(self, elements: &mut SetElements) -> anyhow::Result<u32> {
        let mut transactions = 0;
        match self {
            Self::Few(few) if few.is_empty() => {}
            Self::Few(few) => {
                elements.apply(&few)?;
                transactions = 1;
            }
            Self::Many(commands) => run_counted(commands, &mut transactions)?,
        }
        Ok(transactions)
    }
}

impl KernelTable {
    /// Returns the commands that delete everything except the `wanted` sets and the counters.
    /// `None` if the table in the kernel has objects that the desired table lacks.
    fn delete_rules(&self, wanted: &Sets) -> Option<Vec<Value>> {
        let table = json!({"table": {"family": "inet", "name": TABLE}});
        let mut commands = vec![json!({"flush": table})];
        for object in self.objects.as_array()? {
            let (kind, fields) = object.as_object()?.iter().next()?;
            let name = fields["name"].as_str();
            let stays = match kind.as_str() {
                "table" | "rule" => true,
                "chain" => false,
                "set" => wanted.contains_key(name?),
                "counter" => COUNTERS.iter().any(|(known, _)| Some(*known) == name),
                _ => return None,
            };
            if !stays {
                commands.push(json!({"delete": {kind: {"family": "inet", "table": TABLE, "name": name}}}));
            }
        }
        Some(commands)
    }
}

/// Reads the table; `None` if it does not exist.
pub fn read() -> anyhow::Result<Option<KernelTable>> {
    let Some(mut table) = list(&["list", "table", "inet", TABLE])? else { return Ok(None) };
    let Some(objects) = table["nftables"].as_array_mut() else { bail!("nft's output has no list") };
    objects.retain(|object| object.get("metainfo").is_none());
    let mut sets = Sets::new();
    for inner in objects.iter_mut().filter_map(Value::as_object_mut).flat_map(|object| object.values_mut()) {
        if let Some(fields) = inner.as_object_mut() {
            for volatile in ["handle", "packets", "bytes"] {
                fields.remove(volatile);
            }
        }
    }
    for set in objects.iter_mut().filter_map(|object| object.get_mut("set")?.as_object_mut()) {
        let name = set.get("name").and_then(Value::as_str).map(str::to_owned);
        if let (Some(name), Some(networks)) = (name, parse(set.get("elem").unwrap_or(&Value::Null))) {
            sets.insert(name, networks);
            set.remove("elem");
        }
    }
    Ok(Some(KernelTable { objects: table["nftables"].take(), sets }))
}

/// Returns the counters of dropped packets that are above 0; none if the table does not exist.
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
    delete("inet", TABLE)
}

/// Returns whether the plugin's table `inet edge-cni-pods` exists.
pub(crate) fn pods_table_exists() -> anyhow::Result<bool> {
    Ok(list(&["list", "table", "inet", PODS_TABLE])?.is_some())
}

/// Removes the plugin's table `inet edge-cni-pods`. Returns `false` if it does not exist.
pub(crate) fn remove_pods_table() -> anyhow::Result<bool> {
    match pods_table_exists()? {
        true => delete("inet", PODS_TABLE).map(|()| true),
        false => Ok(false),
    }
}

/// Removes the plugin's table, `bridge edge-cni`, which the next ADD creates again. Returns `false`
/// if it does not exist.
pub fn remove_bridge_filter() -> anyhow::Result<bool> {
    match list(&["list", "table", "bridge", TABLE])? {
        Some(_) => delete("bridge", TABLE).map(|()| true),
        None => Ok(false),
    }
}

fn delete(family: &str, name: &str) -> anyhow::Result<()> {
    let table = json!({"table": {"family": family, "name": name}});
    run(&json!({"nftables": [{"add": table}, {"delete": table}]})).with_context(|| format!("the table {family} {name}"))
}

/// Runs `nft -j` with arguments that list an object; `None` if the object does not exist.
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
    // The `nftables` crate passes `-f -`. For this argument nft opens /dev/stdin, which may not
    // exist on small systems.
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

/// Runs the commands in one transaction and counts the transaction. Does nothing if there are no
/// commands.
fn run_counted(commands: Vec<Value>, transactions: &mut u32) -> anyhow::Result<()> {
    if !commands.is_empty() {
        run(&json!({ "nftables": commands }))?;
        *transactions += 1;
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
