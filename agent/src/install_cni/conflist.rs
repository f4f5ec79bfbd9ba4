//! Determines the plugins after `edge-cni` in the conflist. These are the plugins in the
//! configuration, or else `portmap` (without which a pod's `hostPort` has no effect), followed by
//! the plugins that other programs or the operator appended to the file.

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

/// The conflist's `cniVersion`. Runtimes call each plugin with this version unless they support
/// `cniVersions`.
pub(super) const VERSION: &str = "1.0.0";

/// The CNI project's plugin that maps host ports to pods.
const PORTMAP: &str = "portmap";

/// The plugin entries after `edge-cni`.
pub(super) struct ChainedPlugins {
    /// The plugins' configurations, in order.
    pub(super) plugins: Vec<Value>,
    /// Types of the entries that other programs or the operator appended to the file.
    pub(super) kept: Vec<String>,
}

/// Returns the plugins that result from the configuration and the current conflist at `list`.
pub(super) fn chained_plugins(config: &Config, list: &Path) -> anyhow::Result<ChainedPlugins> {
    let mut plugins = match &config.cni.plugins {
        Some(configured) => configured
            .iter()
            .map(|plugin| serde_json::to_value(plugin).context("[cni] plugins: an entry cannot be written as JSON"))
            .collect::<anyhow::Result<Vec<_>>>()?,
        None if supports_version(&config.cni.bin_dir.join(PORTMAP)) => vec![portmap()],
        None => vec![],
    };
    let appended: Vec<Value> = present(list)
        .into_iter()
        // The agent's own `portmap` entry does not count as appended: it is removed when the
        // program disappears, or when the configuration lists other plugins.
        .filter(|plugin| kind(plugin) != Some(PLUGIN) && *plugin != portmap())
        .filter(|plugin| !plugins.iter().any(|configured| kind(configured) == kind(plugin)))
        .collect();
    let kept = appended.iter().filter_map(kind).map(str::to_owned).collect();
    plugins.extend(appended);
    Ok(ChainedPlugins { plugins, kept })
}

fn portmap() -> Value {
    json!({ "type": PORTMAP, "capabilities": { "portMappings": true }, "snat": true })
}

fn kind(plugin: &Value) -> Option<&str> {
    plugin.get("type")?.as_str()
}

/// Returns the plugins of a conflist; none if the file cannot be read.
fn present(list: &Path) -> Vec<Value> {
    let document = fs::read(list).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let plugins = document.and_then(|mut document| document.get_mut("plugins").map(Value::take));
    match plugins {
        Some(Value::Array(plugins)) => plugins,
        _ => vec![],
    }
}

/// Returns whether the program exists and supports [`VERSION`]. Programs from before 2021 do not,
/// and every pod would fail with them. The result is cached until the program's file changes.
fn supports_version(program: &Path) -> bool {
    static LAST: Mutex<Option<(SystemTime, u64, bool)>> = Mutex::new(None);
    let Ok(found) = fs::metadata(program) else { return false };
    let (Ok(changed), size) = (found.modified(), found.len()) else { return false };
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, _, supported)) = last.filter(|(at, of, _)| (*at, *of) == (changed, size)) {
        return supported;
    }
    let supported = match versions(program) {
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
    *last = Some((changed, size, supported));
    supported
}

/// Returns the versions that the plugin supports (`VERSION` of the CNI specification).
fn versions(program: &Path) -> anyhow::Result<Vec<String>> {
    let mut call = Command::new(program);
    call.env("CNI_COMMAND", "VERSION").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // An installer may still have the program open for writing (ETXTBSY). In that case, the program
    // is started once more.
    let mut child = match call.spawn() {
        Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
            #[expect(clippy::disallowed_methods, reason = "the kernel tells no one when a program can be run again")]
            std::thread::sleep(super::CHECK_INTERVAL);
            call.spawn()?
        }
        spawned => spawned?,
    };
    if let Some(mut input) = child.stdin.take() {
        // The error is ignored, because a plugin may answer without reading its input.
        let _ = input.write_all(json!({ "cniVersion": VERSION }).to_string().as_bytes());
    }
    let response: Value = serde_json::from_slice(&child.wait_with_output()?.stdout)?;
    let versions = response.get("supportedVersions").and_then(Value::as_array).context("no supportedVersions")?;
    Ok(versions.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}
