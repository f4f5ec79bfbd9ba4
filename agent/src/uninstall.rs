//! `edge-agent uninstall`: restores the host to its state before edge-cni.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use edge_xfrm::{PolicyHash, Xfrm};

use crate::config::Config;
use crate::down::{Removal, kernel_objects, refuse_beside_agent, remove_from_kernel};
use crate::stdout::print;
use crate::{attached_pods, host, install_cni, socket_holder, state_dir};

/// Sysctl: whether the kernel drops packets that wait for an SA (ip-sysctl.rst).
const LARVAL_DROP: &str = "/proc/sys/net/core/xfrm_larval_drop";

/// Options for what is removed.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Continue although pods are attached. These pods lose the network.
    pub cut_off_pods: bool,
    /// Also remove the configuration and the join token.
    pub purge: bool,
}

/// Removes everything that the agent and the plugin keep on this host: the conflist and the plugin,
/// everything that `down` removes, bridges, forwarding, and the files below `state_dir` and
/// `run_dir`. `file` is the path of the configuration. Changes nothing if the agent runs, or if
/// pods are attached and may not be cut off. Otherwise continues after a failure and reports all
/// failures.
pub fn uninstall(config: &Config, file: &Path, extent: Extent) -> anyhow::Result<()> {
    refuse_beside_agent(config).context(
        "on a host with systemd: systemctl disable --now edge-agent-install-cni edge-agent edge-agent.socket edge-agent-ipv6.socket",
    )?;
    refuse_beside_holder(config)?;
    refuse_attached_pods(extent)?;
    let mut removal = Removal::default();
    // Without the conflist, the runtime attaches no more pods.
    let conflist = config.cni.conflist();
    remove_file(&mut removal, &conflist);
    // A pod may have been attached since the first check.
    refuse_attached_pods(extent)?;
    removal.record("bridges", delete_bridges());
    let kernel = remove_from_kernel(config, false);
    removal.removed.extend(kernel.removed);
    removal.notes.extend(kernel.notes);
    removal.failures.extend(kernel.failures);
    if removal.failures.is_empty() {
        remove_file(&mut removal, &install_cni::plugin_path(config));
        // The record of forwarding and the identity are kept until everything else is removed, so
        // that the command can be repeated.
        for directory in [&config.run_dir, &config.state_dir] {
            remove_directory(&mut removal, directory);
        }
    }
    if extent.purge && removal.failures.is_empty() {
        purge(&mut removal, config, file);
    }
    unhash_policies(&mut removal);
    // The setting is not restored, because it applies to all programs and its earlier value is
    // unknown.
    if fs::read_to_string(LARVAL_DROP).is_ok_and(|value| value.trim() == "0") {
        removal.notes.push(
            "net.core.xfrm_larval_drop is 0, perhaps for our tunnels on demand; the kernel's default: sysctl -w net.core.xfrm_larval_drop=1"
                .to_owned(),
        );
    }
    report(&removal, config)?;
    removal.result()
}

/// Returns what is on a host that has no configuration at the given place: interfaces, what the
/// kernel has, and the files of an agent whose configuration sets no directories. Changes nothing.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn remains() -> anyhow::Result<Vec<String>> {
    let config = Config::with_defaults()?;
    let mut remains: Vec<String> = vec![];
    let interfaces = host::plugin_interfaces()?;
    remains.extend(interfaces.names().map(|name| format!("interface {name}")));
    remains.extend(kernel_objects()?);
    for file in [config.cni.conflist(), install_cni::plugin_path(&config)] {
        if file.symlink_metadata().is_ok() {
            remains.push(file.display().to_string());
        }
    }
    for directory in [&config.run_dir, &config.state_dir] {
        if state_dir::has_ours(directory)? {
            remains.push(directory.display().to_string());
        }
    }
    Ok(remains)
}

/// Prints that nothing is left. `file` is the configuration, which is missing.
pub fn report_nothing(file: &Path) -> anyhow::Result<()> {
    print(&format!(
        "nothing of edge-cni was on this host ({} is missing, so only the default directories were searched)\n",
        file.display()
    ))
    .map(drop)
}

/// Restores the kernel's default if the agent's thresholds are set: it sets them only in place of
/// the default.
fn unhash_policies(removal: &mut Removal) {
    let outcome = Xfrm::open().and_then(|mut xfrm| {
        let ours = xfrm.policy_hash()? == PolicyHash::BY_REMOTE;
        if ours {
            xfrm.set_policy_hash(PolicyHash::DEFAULT)?;
        }
        Ok(ours)
    });
    match outcome {
        Ok(true) => removal.notes.push("thresholds of policies: the kernel's default again".to_owned()),
        Ok(false) => {}
        Err(error) => removal.failures.push(format!("thresholds of policies: {error}")),
    }
}

/// Fails if a holder of the sockets in a pod runs, because it would make its directory again.
fn refuse_beside_holder(config: &Config) -> anyhow::Result<()> {
    let path = config.holder_socket();
    if socket_holder::client::find_at(&path)?.is_some() {
        bail!(
            "`edge-agent hold-sockets` is running ({}); end it first (in Kubernetes, delete the DaemonSet socket-holder), because it would make \
             its directory again",
            path.display()
        );
    }
    Ok(())
}

fn refuse_attached_pods(extent: Extent) -> anyhow::Result<()> {
    if extent.cut_off_pods {
        return Ok(());
    }
    attached_pods::refuse(
        "Drain the node (kubectl drain), or remove them through their runtime; `edge-cni leases` names them. \
         With --cut-off-pods they lose the network instead",
    )
}

fn delete_bridges() -> anyhow::Result<usize> {
    Ok(host::plugin_interfaces()?.delete_bridges()?.len())
}

fn remove_file(removal: &mut Removal, path: &Path) {
    let outcome = match fs::remove_file(path) {
        Ok(()) => Ok(1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.into()),
    };
    removal.record(path.display().to_string(), outcome);
}

fn remove_directory(removal: &mut Removal, directory: &Path) {
    match state_dir::remove_ours(directory) {
        Ok(removed) => {
            for kept in &removed.kept {
                removal.notes.push(format!("{} is kept: it is not ours", kept.display()));
            }
            removal.record(directory.display().to_string(), Ok(removed.count));
        }
        Err(error) => removal.record(directory.display().to_string(), Err(error.into())),
    }
}

/// Removes the configuration and the join token, and their directory if it is then empty. Keys and
/// certificates of static peers stay, because they belong to the operator.
fn purge(removal: &mut Removal, config: &Config, file: &Path) {
    if let Some(token) = config.controller.as_ref().and_then(|controller| controller.token_file.as_ref()) {
        remove_file(removal, &config.path(token));
    }
    remove_file(removal, file);
    if let Some(directory) = file.parent()
        && fs::remove_dir(directory).is_ok()
    {
        removal.record(directory.display().to_string(), Ok(1));
    }
}

fn report(removal: &Removal, config: &Config) -> anyhow::Result<()> {
    let found = removal.removed.iter().filter(|(_, count)| *count > 0);
    let mut lines: Vec<String> = found.map(|(what, count)| format!("{what}: {count} removed")).collect();
    let nothing = lines.is_empty() && removal.failures.is_empty();
    lines.extend(removal.notes.iter().cloned());
    if nothing {
        lines.push("nothing of edge-cni was on this host".to_owned());
    } else if config.controller.is_some() {
        let name = config.node_name().map_or_else(|_| "NODE".to_owned(), |name| name.to_string());
        lines.push(format!(
            "the controller still holds this node's segments for it: edge-controller node deregister {name}"
        ));
    }
    lines.iter().try_for_each(|line| print(&format!("{line}\n")).map(drop))
}

#[cfg(test)]
mod tests {
    use edge_xfrm::Threshold;
    use interop_tests::netns::{is_in_namespaces, is_root_or_skips, passes_in_namespaces};

    use super::*;

    #[test]
    fn the_default_thresholds_of_policies_are_restored_and_those_of_others_stay() {
        if is_root_or_skips() {
            passes_in_namespaces("uninstall::tests::thresholds_are_restored");
        }
    }

    #[test]
    #[ignore = "runs in a namespace, started by the test before"]
    fn thresholds_are_restored() {
        if !is_in_namespaces() {
            return;
        }
        let mut xfrm = Xfrm::open().unwrap();
        let of_others = PolicyHash { v4: Threshold { local: 16, remote: 20 }, ..PolicyHash::BY_REMOTE };
        for (before, after, notes) in [
            (PolicyHash::BY_REMOTE, PolicyHash::DEFAULT, 1),
            (PolicyHash::DEFAULT, PolicyHash::DEFAULT, 0),
            (of_others, of_others, 0),
        ] {
            xfrm.set_policy_hash(before).unwrap();
            let mut removal = Removal::default();
            unhash_policies(&mut removal);
            assert_eq!(xfrm.policy_hash().unwrap(), after);
            assert_eq!((removal.notes.len(), removal.failures), (notes, vec![]));
        }
    }
}
