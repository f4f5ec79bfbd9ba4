//! What comes after `edge-cni` in the list: what the configuration names, or `portmap` by itself
//! (without it a pod's `hostPort` is accepted and never there), and what somebody else has appended
//! to the list.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use serde_json::{Value, json};

use super::PLUGIN;
use crate::config::Config;

/// The version that every plugin of the list is called with: `cniVersions` is for runtimes that
/// know it.
pub(super) const VERSION: &str = "1.0.0";

/// Maps host ports to pods: the reference plugin of that name.
const PORTMAP: &str = "portmap";

/// The entries after ours.
pub(super) struct Further {
    /// In their order.
    pub(super) plugins: Vec<Value>,
    /// Types of those that somebody else appended.
    pub(super) kept: Vec<String>,
}

/// Computes them; `list` is the one that is there now.
pub(super) fn further(config: &Config, list: &Path) -> anyhow::Result<Further> {
    let mut plugins = match &config.cni.plugins {
        Some(configured) => configured
            .iter()
            .map(|plugin| serde_json::to_value(plugin).context("[cni] plugins: an entry cannot be written as JSON"))
            .collect::<anyhow::Result<Vec<_>>>()?,
        None if takes_our_version(&config.cni.bin_dir.join(PORTMAP)) => vec![portmap()],
        None => vec![],
    };
    let appended: Vec<Value> = present(list)
        .into_iter()
        // Ours of former times goes with its program, or when the configuration says otherwise.
        .filter(|plugin| kind(plugin) != Some(PLUGIN) && *plugin != portmap())
        .filter(|plugin| !plugins.iter().any(|configured| kind(configured) == kind(plugin)))
        .collect();
    let kept = appended.iter().filter_map(kind).map(str::to_owned).collect();
    plugins.extend(appended);
    Ok(Further { plugins, kept })
}

fn portmap() -> Value {
    json!({ "type": PORTMAP, "capabilities": { "portMappings": true }, "snat": true })
}

fn kind(plugin: &Value) -> Option<&str> {
    plugin.get("type")?.as_str()
}

/// The plugins of a list. One that cannot be read is written anew as a whole.
fn present(list: &Path) -> Vec<Value> {
    let document = fs::read(list).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let plugins = document.and_then(|mut document| document.get_mut("plugins").map(Value::take));
    match plugins {
        Some(Value::Array(plugins)) => plugins,
        _ => vec![],
    }
}

/// Whether the program is there and may be called with [`VERSION`]: one of before 2021 refuses it,
/// and every pod with it. Asked once for each program that comes to stand there.
fn takes_our_version(program: &Path) -> bool {
    static LAST: Mutex<Option<(SystemTime, u64, bool)>> = Mutex::new(None);
    let Ok(found) = fs::metadata(program) else { return false };
    let (Ok(changed), size) = (found.modified(), found.len()) else { return false };
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, _, takes)) = last.filter(|(at, of, _)| (*at, *of) == (changed, size)) {
        return takes;
    }
    let takes = match versions(program) {
        Ok(versions) if versions.iter().any(|version| version == VERSION) => true,
        Ok(versions) => {
            eprintln!(
                "warning: {} knows CNI {} and not {VERSION}; it is left out, so hostPort of pods does nothing: install containernetworking-plugins 1.0 or later",
                program.display(),
                versions.join(", ")
            );
            false
        }
        Err(error) => {
            eprintln!(
                "warning: {} does not say which CNI versions it knows and is left out: {error:#}",
                program.display()
            );
            return false;
        }
    };
    *last = Some((changed, size, takes));
    takes
}

/// `VERSION` of the CNI specification.
fn versions(program: &Path) -> anyhow::Result<Vec<String>> {
    let mut call = Command::new(program);
    call.env("CNI_COMMAND", "VERSION").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // Whoever installs it may still have it open for writing.
    let mut child = match call.spawn() {
        Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
            std::thread::sleep(super::LOOK);
            call.spawn()?
        }
        spawned => spawned?,
    };
    if let Some(mut input) = child.stdin.take() {
        // What does not read it has answered already.
        let _ = input.write_all(json!({ "cniVersion": VERSION }).to_string().as_bytes());
    }
    let answer: Value = serde_json::from_slice(&child.wait_with_output()?.stdout)?;
    let versions = answer.get("supportedVersions").and_then(Value::as_array).context("no supportedVersions")?;
    Ok(versions.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}
