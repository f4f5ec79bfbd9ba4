//! `edge-agent install-cni`: writes the conflist, through which the container runtime finds the
//! plugin. As soon as a conflist exists, the runtime starts pods, so it is written only after the
//! node has its first segment.

mod conflist;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use edge_types::shared_files::{LOCK_FILE, SEGMENTS_FILE, SegmentsFile};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::attached_pods;
use crate::config::{CONFLIST, Config};
use crate::state_dir::replace_file;
use crate::stdout::print;

/// Type and program name of the plugin.
const PLUGIN: &str = "edge-cni";

/// Outcome of [`install_conflist`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Path of the conflist.
    pub conflist: PathBuf,
    /// Whether the file was written, because its content had to change.
    pub changed: bool,
    /// Files in the same directory that the runtime uses instead of the conflist.
    pub preferred: Vec<PathBuf>,
    /// Types of plugins that other programs or the operator appended to the conflist.
    pub kept: Vec<String>,
}

/// Interval at which the agent's files are checked. The command is a separate process that gets no
/// events from the agent.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Waits for the first segment, writes the conflist, and prints what it did. Fails if there is no
/// segment after `timeout`.
pub fn execute(config: &Config, timeout: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + timeout;
    let mut announced = false;
    let installed = loop {
        if let Some(installed) = install_conflist(config)? {
            break installed;
        }
        if Instant::now() >= end {
            bail!(
                "no segment in {} after {} s, so no conflist was written: see `edge-agent status`, which shows the state of the connection to the controller",
                config.state_dir.display(),
                timeout.as_secs()
            );
        }
        if !announced {
            eprintln!("waiting for the first segment, up to {} s", timeout.as_secs());
            announced = true;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "another program writes the file; its directory may not be there yet"
        )]
        std::thread::sleep(CHECK_INTERVAL);
    };
    print_outcome(&installed)
}

/// Writes the conflist after the first segment, and again whenever the file is lost or its content
/// changes, until the process receives SIGTERM. After a failure, prints the error once and tries
/// again.
pub fn keep_installed(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // The first process of a container ignores signals without a handler, and would write the
        // file again while the cleanup of the node removes it.
        let mut terminated = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut reported = None;
        // Others write these files at any time.
        let mut check = tokio::time::interval(10 * CHECK_INTERVAL);
        loop {
            tokio::select! {
                _ = terminated.recv() => return Ok(()),
                _ = check.tick() => keep_once(config, &mut reported),
            }
        }
    })
}

fn keep_once(config: &Config, reported: &mut Option<String>) {
    match install_conflist(config) {
        Ok(None) => {}
        Ok(Some(installed)) => {
            if installed.changed
                && let Err(error) = print_outcome(&installed)
            {
                eprintln!("edge-agent: {error:#}");
            }
            *reported = None;
        }
        Err(error) => {
            let text = format!("{error:#}");
            if reported.as_ref() != Some(&text) {
                eprintln!("edge-agent: {text}; trying again");
                *reported = Some(text);
            }
        }
    }
}

fn print_outcome(installed: &Installed) -> anyhow::Result<()> {
    let how = if installed.changed { "written" } else { "is up to date" };
    print(&format!("{} {how}\n", installed.conflist.display()))?;
    if !installed.kept.is_empty() {
        print(&format!(
            "kept, though not in [cni] plugins: {}; to remove it, edit the file by hand\n",
            installed.kept.join(", ")
        ))?;
    }
    for other in &installed.preferred {
        eprintln!(
            "warning: the runtime uses {} in preference, by its name; remove it, or rename it to come after {CONFLIST}",
            other.display()
        );
    }
    Ok(())
}

/// Returns the plugin's path in `bin_dir`.
pub(crate) fn plugin_path(config: &Config) -> PathBuf {
    config.cni.bin_dir.join(PLUGIN)
}

/// Copies the plugin atomically into `bin_dir` and returns the path of the copy. Fails if `from` is
/// not an ELF program.
pub fn install_plugin(config: &Config, from: &Path) -> anyhow::Result<PathBuf> {
    let bytes = fs::read(from).with_context(|| format!("reading the plugin {}", from.display()))?;
    if bytes.get(..4) != Some(b"\x7fELF") {
        bail!("{} is not a program: name the edge-cni binary of this release", from.display());
    }
    let to = plugin_path(config);
    make_directory(&config.cni.bin_dir)?;
    if fs::read(&to).is_ok_and(|present| present == bytes) {
        return Ok(to);
    }
    replace_file(&to, &bytes, 0o755)?;
    Ok(to)
}

/// Writes the conflist from `segments.json`, if the content of the existing file differs. Returns
/// `None` while there is no segment. Fails if the plugin is not in `bin_dir`.
pub fn install_conflist(config: &Config) -> anyhow::Result<Option<Installed>> {
    let Some(segments) = segments(&config.state_dir)?.filter(|file| !file.segments.is_empty()) else { return Ok(None) };
    let plugin = config.cni.bin_dir.join(PLUGIN);
    if !plugin.exists() {
        bail!(
            "{} is missing, so every pod would fail: copy it there with `edge-agent install-cni --plugin FILE`, or set [cni] bin_dir to where it is",
            plugin.display()
        );
    }
    let path = config.cni.conflist();
    let chained = conflist::chained_plugins(config, &path)?;
    let text = conflist(config, &segments, &chained.plugins);
    make_directory(&config.cni.conf_dir)?;
    let changed = !fs::read(&path).is_ok_and(|present| present == text.as_bytes());
    if changed {
        replace_file(&path, text.as_bytes(), 0o644)?;
    }
    let preferred = preferred(&config.cni.conf_dir)?;
    Ok(Some(Installed { conflist: path, changed, preferred, kept: chained.kept }))
}

/// Removes the conflist, so that the runtime starts no more pods with this network. Fails if it is
/// there and pods are attached: containerd, for one, cannot remove a pod without it.
pub fn remove_conflist(config: &Config) -> anyhow::Result<()> {
    let path = config.cni.conflist();
    if path.exists() {
        attached_pods::refuse(&format!(
            "The runtime needs {} to remove them, so it is kept. Drain the node (kubectl drain), or remove them through their runtime, and \
             remove the file then",
            path.display()
        ))?;
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Returns the text of a conflist that contains only the plugin `edge-cni`. `None` while there is
/// no `segments.json`.
pub(crate) fn conflist_text(config: &Config) -> anyhow::Result<Option<String>> {
    Ok(segments(&config.state_dir)?.map(|segments| conflist(config, &segments, &[])))
}

/// Returns the conflist's text. Every release of containerd since 1.6 supports one of the listed
/// versions. If only 1.1.0 were listed, every pod would fail in containerd 1.6 and 1.7.
fn conflist(config: &Config, segments: &SegmentsFile, chained: &[Value]) -> String {
    let mut ours = json!({
        "type": PLUGIN,
        // The runtime passes requested addresses only to plugins that have these capabilities.
        "capabilities": { "ips": true, "mac": true },
        "bridge": config.bridge,
        "stateDir": absolute(&config.state_dir),
        "agentSocket": absolute(&config.plugin_socket()),
        "clusterRanges": segments.cluster_ranges,
    });
    if !config.cni.unfiltered_pods.is_empty() {
        ours["unfilteredPods"] = json!(config.cni.unfiltered_pods);
    }
    if !config.firewall.lan_to_pods.is_empty() {
        ours["lanToPods"] = json!(config.firewall.lan_to_pods);
    }
    if !config.firewall.service_ranges.is_empty() {
        ours["serviceRanges"] = json!(config.firewall.service_ranges);
    }
    if config.firewall.forward_others {
        ours["forwardOthers"] = json!(true);
    }
    if !config.resolvers_behind_tunnels.is_empty() {
        ours["resolversBehindTunnels"] = json!(config.resolvers_behind_tunnels);
    }
    let plugins: Vec<&Value> = std::iter::once(&ours).chain(chained).collect();
    let document = json!({
        "cniVersion": conflist::VERSION,
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "edge-cni",
        "plugins": plugins,
    });
    format!("{document:#}\n")
}

fn segments(state_dir: &Path) -> anyhow::Result<Option<SegmentsFile>> {
    // The command runs while the agent runs, so it takes only the lock that agent and plugin share.
    let lock = state_dir.join(LOCK_FILE);
    let _lock = match fs::File::open(&lock) {
        Ok(file) => {
            file.lock_shared().with_context(|| format!("locking {}", lock.display()))?;
            file
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", lock.display())),
    };
    let path = state_dir.join(SEGMENTS_FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let file = serde_json::from_slice(&bytes);
    file.map(Some).with_context(|| format!("{} is damaged; the running agent writes it again", path.display()))
}

fn preferred(conf_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(conf_dir).with_context(|| format!("reading {}", conf_dir.display()))?;
    let mut before: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let is_configuration = path
                .extension()
                .is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|known| extension == *known));
            is_configuration && path.file_name().is_some_and(|name| name < CONFLIST)
        })
        .collect();
    before.sort();
    Ok(before)
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.with_context(|| format!("creating {}", path.display()))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::{StateDir, segments_file};

    fn config(directory: &Path) -> Config {
        let text = format!(
            "state_dir = {0:?}\nrun_dir = {0:?}\n[cni]\nconf_dir = {1:?}\nbin_dir = {2:?}\n[controller]\nurls = [\"https://c\"]\n",
            directory,
            directory.join("net.d"),
            directory.join("bin")
        );
        Config::parse(&text, Path::new("agent.toml")).unwrap()
    }

    #[test]
    fn the_conflist_comes_after_the_first_segment_and_says_what_the_plugin_needs() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        assert_eq!(install_conflist(&config).unwrap(), None);
        let state = StateDir::open(directory.path()).unwrap();
        segments_file::add_granted(&state, &["10.77.0.0/26".parse().unwrap()]).unwrap();
        assert!(install_conflist(&config).unwrap_err().to_string().contains("--plugin"));
        let program = std::env::current_exe().unwrap();
        let plugin = install_plugin(&config, &program).unwrap();
        assert_eq!(fs::read(plugin).unwrap(), fs::read(program).unwrap());
        let first = install_conflist(&config).unwrap().unwrap();
        assert!(first.changed && first.preferred.is_empty());
        assert!(!install_conflist(&config).unwrap().unwrap().changed);
        let document: serde_json::Value = serde_json::from_slice(&fs::read(&first.conflist).unwrap()).unwrap();
        assert_eq!(document["cniVersions"], json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(document["plugins"][0]["type"], "edge-cni");
        assert_eq!(document["plugins"][0]["stateDir"], json!(directory.path()));
        remove_conflist(&config).unwrap();
        remove_conflist(&config).unwrap();
        assert!(!first.conflist.exists());
    }

    fn with_a_segment(directory: &Path, cni: &str) -> Config {
        let text = format!(
            "state_dir = {0:?}\nrun_dir = {0:?}\n[controller]\nurls = [\"https://c\"]\n[cni]\nconf_dir = {1:?}\nbin_dir = {2:?}\n{cni}\n",
            directory,
            directory.join("net.d"),
            directory.join("bin")
        );
        let config = Config::parse(&text, Path::new("agent.toml")).unwrap();
        let state = StateDir::open(directory).unwrap();
        segments_file::add_granted(&state, &["10.77.0.0/26".parse().unwrap()]).unwrap();
        install_plugin(&config, &std::env::current_exe().unwrap()).unwrap();
        config
    }

    fn types(installed: &Installed) -> Vec<String> {
        let document: Value = serde_json::from_slice(&fs::read(&installed.conflist).unwrap()).unwrap();
        document["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
            .collect()
    }

    fn install_portmap(config: &Config, versions: &str) {
        let path = config.cni.bin_dir.join("portmap");
        let script = format!(
            "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{{\"cniVersion\":\"0.4.0\",\"supportedVersions\":{versions}}}'\n"
        );
        // Another program writes the file. If this process wrote it, a child that another test
        // forks could keep the descriptor open for a moment, and a program that is open for writing
        // cannot be run (ETXTBSY).
        let text = path.with_extension("text");
        fs::write(&text, script).unwrap();
        let copied = std::process::Command::new("install").args(["-m", "755"]).arg(&text).arg(&path).status().unwrap();
        assert!(copied.success());
    }

    #[test]
    fn portmap_is_in_the_list_where_its_program_is_there_and_can_be_called() {
        let directory = tempfile::tempdir().unwrap();
        let config = with_a_segment(directory.path(), "");
        assert_eq!(types(&install_conflist(&config).unwrap().unwrap()), ["edge-cni"]);
        install_portmap(&config, r#"["0.3.1","0.4.0","1.0.0","1.1.0"]"#);
        let installed = install_conflist(&config).unwrap().unwrap();
        assert!(installed.changed && installed.kept.is_empty());
        assert_eq!(types(&installed), ["edge-cni", "portmap"]);
        let document: Value = serde_json::from_slice(&fs::read(&installed.conflist).unwrap()).unwrap();
        assert_eq!(document["plugins"][1]["capabilities"]["portMappings"], true);
        assert_eq!(
            (&document["cniVersion"], &document["cniVersions"]),
            (&json!("1.0.0"), &json!(["0.4.0", "1.0.0", "1.1.0"]))
        );
        assert!(!install_conflist(&config).unwrap().unwrap().changed);
        // A release of portmap with which every pod would fail is left out.
        install_portmap(&config, r#"["0.3.1","0.4.0"]"#);
        assert_eq!(types(&install_conflist(&config).unwrap().unwrap()), ["edge-cni"]);
        install_portmap(&config, r#"["0.4.0","1.0.0"]"#);
        assert_eq!(types(&install_conflist(&config).unwrap().unwrap()), ["edge-cni", "portmap"]);
        fs::remove_file(config.cni.bin_dir.join("portmap")).unwrap();
        assert_eq!(types(&install_conflist(&config).unwrap().unwrap()), ["edge-cni"]);
        // The configuration takes precedence over the installed portmap.
        install_portmap(&config, r#"["1.0.0"]"#);
        let none = with_a_segment(directory.path(), "plugins = []");
        assert_eq!(types(&install_conflist(&none).unwrap().unwrap()), ["edge-cni"]);
    }

    #[test]
    fn plugins_of_the_configuration_come_as_they_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let plugins = "plugins = [{ type = \"bandwidth\", capabilities = { bandwidth = true } }, { type = \"tuning\", sysctl = { \"net.core.somaxconn\" = \"500\" } }]";
        let config = with_a_segment(directory.path(), plugins);
        let installed = install_conflist(&config).unwrap().unwrap();
        assert_eq!(types(&installed), ["edge-cni", "bandwidth", "tuning"]);
        let document: Value = serde_json::from_slice(&fs::read(&installed.conflist).unwrap()).unwrap();
        assert_eq!(document["plugins"][2], json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } }));
        for (bad, words) in [
            ("plugins = [{}]", "no type"),
            ("plugins = [{ type = \"edge-cni\" }]", "comes first by itself"),
            ("plugins = [{ type = \"../sh\" }]", "not the name"),
        ] {
            let text = format!("[controller]\nurls = [\"https://c\"]\n[cni]\n{bad}\n");
            let error = Config::parse(&text, Path::new("agent.toml")).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_an_operator_appended_to_the_list_is_kept_and_reported() {
        let directory = tempfile::tempdir().unwrap();
        let config = with_a_segment(directory.path(), "");
        let installed = install_conflist(&config).unwrap().unwrap();
        let mut document: Value = serde_json::from_slice(&fs::read(&installed.conflist).unwrap()).unwrap();
        let appended = json!({ "type": "portmap", "capabilities": { "portMappings": true }, "conditionsV4": ["!", "-d", "192.0.2.0/24"] });
        document["plugins"].as_array_mut().unwrap().push(appended.clone());
        document["plugins"][0]["bridge"] = json!("br0");
        fs::write(&installed.conflist, document.to_string()).unwrap();
        let installed = install_conflist(&config).unwrap().unwrap();
        assert!(installed.changed, "our own entry is as it must be");
        assert_eq!(installed.kept, ["portmap"]);
        let document: Value = serde_json::from_slice(&fs::read(&installed.conflist).unwrap()).unwrap();
        assert_eq!((&document["plugins"][0]["bridge"], &document["plugins"][1]), (&json!("ecni0"), &appended));
        assert!(!install_conflist(&config).unwrap().unwrap().changed);
        // A plugin of the same type in the configuration replaces it.
        let config = with_a_segment(directory.path(), "plugins = [{ type = \"portmap\", snat = false }]");
        let installed = install_conflist(&config).unwrap().unwrap();
        assert_eq!((types(&installed).len(), installed.kept.len()), (2, 0));
        fs::write(&installed.conflist, "{").unwrap();
        assert_eq!(types(&install_conflist(&config).unwrap().unwrap()), ["edge-cni", "portmap"]);
    }

    #[test]
    fn the_conflist_says_what_the_operator_excepts() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        let segments: SegmentsFile =
            serde_json::from_value(json!({"version": 1, "source": "agent", "segments": []})).unwrap();
        let plugin =
            |config: &Config| serde_json::from_str::<serde_json::Value>(&conflist(config, &segments, &[])).unwrap();
        assert!(plugin(&config)["plugins"][0].get("unfilteredPods").is_none());
        config.cni.unfiltered_pods = vec!["vms/vm-*".into()];
        assert_eq!(plugin(&config)["plugins"][0]["unfilteredPods"], json!(["vms/vm-*"]));
        assert!(plugin(&config)["plugins"][0].get("lanToPods").is_none());
        config.firewall.lan_to_pods = vec!["192.168.1.0/24".parse().unwrap()];
        assert_eq!(plugin(&config)["plugins"][0]["lanToPods"], json!(["192.168.1.0/24"]));
        assert!(plugin(&config)["plugins"][0].get("serviceRanges").is_none());
        config.firewall.service_ranges = vec!["10.96.0.0/12".parse().unwrap()];
        assert_eq!(plugin(&config)["plugins"][0]["serviceRanges"], json!(["10.96.0.0/12"]));
        assert!(plugin(&config)["plugins"][0].get("resolversBehindTunnels").is_none());
        config.resolvers_behind_tunnels = vec!["10.96.0.10".parse().unwrap()];
        assert_eq!(plugin(&config)["plugins"][0]["resolversBehindTunnels"], json!(["10.96.0.10"]));
        assert!(plugin(&config)["plugins"][0].get("forwardOthers").is_none());
        config.firewall.forward_others = true;
        assert_eq!(plugin(&config)["plugins"][0]["forwardOthers"], json!(true));
        let many = vec!["\"192.168.1.1\""; 129].join(",");
        let many = format!("[firewall]\nlan_to_pods = [{many}]\n[controller]\nurls = [\"https://c\"]\n");
        let error = Config::parse(&many, Path::new("agent.toml")).unwrap_err().to_string();
        assert!(error.contains("lan_to_pods has 129"), "{error}");
        let wrong = "[cni]\nunfiltered_pods = [\"vm-*\"]\n[controller]\nurls = [\"https://c\"]\n";
        let error = Config::parse(wrong, Path::new("agent.toml")).unwrap_err().to_string();
        assert!(error.contains("unfiltered_pods") && error.contains("vm-*"), "{error}");
    }

    #[test]
    fn a_configuration_that_the_runtime_prefers_is_reported_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let state = StateDir::open(directory.path()).unwrap();
        segments_file::add_granted(&state, &["10.77.0.0/26".parse().unwrap()]).unwrap();
        install_plugin(&config, &std::env::current_exe().unwrap()).unwrap();
        fs::create_dir_all(&config.cni.conf_dir).unwrap();
        let other = config.cni.conf_dir.join("05-other.conflist");
        fs::write(&other, "{}").unwrap();
        fs::write(config.cni.conf_dir.join("99-later.conf"), "{}").unwrap();
        let installed = install_conflist(&config).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "{}");
        assert_eq!(installed.preferred, [other]);
    }

    #[test]
    fn what_is_not_a_program_is_not_installed_as_the_plugin() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("edge-cni");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(install_plugin(&config(directory.path()), &script).unwrap_err().to_string().contains("not a program"));
        assert!(!directory.path().join("bin").exists());
    }
}
