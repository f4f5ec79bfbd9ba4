//! `edge-agent join`: turns a machine into a node. Writes the configuration and the join token,
//! starts the agent's unit, and waits until the node has joined.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use edge_types::{JoinToken, NodeName};
use zeroize::Zeroizing;

use crate::admin;
use crate::config::Config;
use crate::controller_client;
use crate::membership::ControllerStatus;
use crate::state_dir::replace_file;
use crate::stdout::print;

/// Name of the token's file, in the directory of a configuration that this command writes.
const TOKEN_NAME: &str = "token";
/// Maximum size of a join token, in bytes.
const MAX_TOKEN: u64 = 16 * 1024;
/// Interval at which the command queries the running agent.
const INTERVAL: Duration = Duration::from_millis(200);
/// A directory that exists if systemd manages this system (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";
/// The units in `deploy/systemd`.
const UNITS: [&str; 3] = ["edge-agent.socket", "edge-agent-ipv6.socket", "edge-agent.service"];

/// The options from the command line.
#[derive(Debug)]
pub struct JoinOptions {
    /// The controller's addresses, tried in this order.
    pub urls: Vec<String>,
    /// Path of the configuration.
    pub file: PathBuf,
    /// The node's name, if neither the token nor the host name determines it.
    pub name: Option<NodeName>,
    /// Timeout for joining; zero means not to wait.
    pub timeout: Duration,
}

/// Joins this machine to the cluster. `token` is the join token, or `-` to read it from standard
/// input, where other users of this machine do not see it. A second run for the same controller
/// only waits and shows the status, or installs a new token. Fails if a configuration exists and
/// names another controller.
pub fn join(options: &JoinOptions, token: &str) -> anyhow::Result<()> {
    let token = read_token(token)?;
    let parsed: JoinToken = token.parse().map_err(|error| anyhow::anyhow!("the join token: {error}"))?;
    if let (Some(name), Some(bound)) = (&options.name, &parsed.node)
        && name != bound
    {
        bail!("--name is {name}, but the join token is for {bound} alone: omit --name, or get a token for {name}");
    }
    let config = ensure_configuration(options)?;
    let token_file = token_path(&config, &options.file)?;
    if !fs::read(&token_file).is_ok_and(|present| present.trim_ascii() == token.trim().as_bytes()) {
        replace_file(&token_file, format!("{}\n", token.trim()).as_bytes(), 0o600)?;
        print(&format!("{} written\n", token_file.display()))?;
    }
    start_units(&options.file)?;
    if options.timeout.is_zero() {
        return Ok(());
    }
    wait(&config, options.timeout)?;
    admin::client::status(&config.admin_socket(), &[], false)
}

fn read_token(argument: &str) -> anyhow::Result<Zeroizing<String>> {
    if argument != "-" {
        return Ok(Zeroizing::new(argument.to_owned()));
    }
    let mut text = Zeroizing::new(String::new());
    io::stdin().lock().take(MAX_TOKEN).read_to_string(&mut text).context("the join token on standard input")?;
    Ok(text)
}

/// Writes the configuration, or reads an existing one.
fn ensure_configuration(options: &JoinOptions) -> anyhow::Result<Config> {
    let file = &options.file;
    if file.exists() {
        let config = Config::load(file)?;
        let urls = config.controller.as_ref().map_or(&[][..], |controller| &controller.urls);
        if let Some(other) = options.urls.iter().find(|url| !urls.contains(url)) {
            bail!(
                "{} is there and does not name {other} in `urls` of [controller]: add it there, or remove the file, and run this again",
                file.display()
            );
        }
        if let Some(name) = options.name.as_ref().filter(|name| config.name.as_ref() != Some(name)) {
            bail!(
                "{} exists and does not contain `name = \"{name}\"`: correct it and run the command again",
                file.display()
            );
        }
        return Ok(config);
    }
    let name = options.name.as_ref().map(|name| format!("name = \"{name}\"\n")).unwrap_or_default();
    let urls = toml::Value::from(options.urls.clone());
    let text = format!(
        "# All keys: docs/configuration.md\n{name}[controller]\nurls = {urls}\ntoken_file = \"{TOKEN_NAME}\"\n"
    );
    // A wrong URL is reported before anything is written.
    for url in &options.urls {
        controller_client::check_url(url)?;
    }
    Config::parse(&text, file)?;
    if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.with_context(|| format!("creating {}", directory.display()))?;
    }
    replace_file(file, text.as_bytes(), 0o644)?;
    print(&format!("{} written\n", file.display()))?;
    Ok(Config::load(file)?)
}

fn token_path(config: &Config, file: &Path) -> anyhow::Result<PathBuf> {
    let controller = config.controller.as_ref();
    let token_file = controller.and_then(|controller| controller.token_file.as_ref()).with_context(|| {
        format!("{} names no `token_file` in [controller]: add token_file = \"{TOKEN_NAME}\"", file.display())
    })?;
    Ok(config.path(token_file))
}

/// Enables and starts the agent's units. Without systemd or without the units, prints the command
/// that the operator must run.
fn start_units(file: &Path) -> anyhow::Result<()> {
    let has_unit = || {
        let found = Command::new("systemctl").args(["cat", UNITS[2]]).output();
        found.is_ok_and(|output| output.status.success())
    };
    if !Path::new(SYSTEMD).is_dir() || !has_unit() {
        eprintln!(
            "there is no unit edge-agent.service for systemd here; start the agent yourself: edge-agent run --config {}",
            file.display()
        );
        return Ok(());
    }
    let output = Command::new("systemctl").args(["enable", "--now"]).args(UNITS).output().context("systemctl")?;
    if !output.status.success() {
        bail!("systemctl enable --now {}: {}", UNITS.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    print("edge-agent.service started\n").map(drop)
}

/// Waits until the agent has a certificate and the controller's view.
fn wait(config: &Config, timeout: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + timeout;
    let mut shown = None;
    loop {
        let missing = match admin::client::request_status(&config.admin_socket()) {
            Err(_) => "the agent does not run yet".to_owned(),
            Ok(status) => match status.controller {
                Some(controller) if has_joined(&controller) => return Ok(()),
                Some(controller) => controller
                    .last_error
                    .or(controller.refused_view)
                    .unwrap_or_else(|| "the controller has not answered".into()),
                None => "the running agent has another configuration, without [controller]".into(),
            },
        };
        if Instant::now() >= end {
            bail!("this node has not joined within {} s: {missing}", timeout.as_secs());
        }
        if shown.as_ref() != Some(&missing) {
            eprintln!("waiting: {missing}");
            shown = Some(missing);
        }
        #[expect(clippy::disallowed_methods, reason = "another program joins, and has no socket before it runs")]
        std::thread::sleep(INTERVAL);
    }
}

fn has_joined(controller: &ControllerStatus) -> bool {
    controller.connected && controller.view_source.as_deref() == Some("controller")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use edge_types::Role;

    use super::*;

    fn token(node: Option<&str>) -> String {
        let token = JoinToken {
            ca_hash: [7; 32],
            role: Role::Edge,
            node: node.map(|name| name.parse().unwrap()),
            id: "t1".into(),
            secret: Zeroizing::new("s3cret".into()),
        };
        token.encode().to_string()
    }

    fn options(directory: &Path, url: &str) -> JoinOptions {
        JoinOptions {
            urls: vec![url.to_owned()],
            file: directory.join("etc/agent.toml"),
            name: None,
            timeout: Duration::ZERO,
        }
    }

    #[test]
    fn join_writes_the_configuration_and_the_token_for_root_alone() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path(), "https://192.0.2.1:8443");
        join(&options, &token(None)).unwrap();
        let config = Config::load(&options.file).unwrap();
        let controller = config.controller.as_ref().unwrap();
        assert_eq!(controller.urls, ["https://192.0.2.1:8443"]);
        let file = token_path(&config, &options.file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), token(None));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // The second run has a new token.
        let text = fs::read(&options.file).unwrap();
        join(&options, &token(Some("edge-1"))).unwrap();
        assert_eq!(fs::read(&options.file).unwrap(), text);
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), token(Some("edge-1")));
    }

    #[test]
    fn a_configuration_that_is_there_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let first = options(directory.path(), "https://192.0.2.1:8443");
        join(&first, &token(None)).unwrap();
        let other = options(directory.path(), "https://192.0.2.2:8443");
        let error = join(&other, &token(Some("edge-1"))).unwrap_err().to_string();
        assert!(error.contains("does not name https://192.0.2.2:8443"), "{error}");
        let named = JoinOptions { name: Some("edge-9".parse().unwrap()), ..first };
        let error = join(&named, &token(None)).unwrap_err().to_string();
        assert!(error.contains("does not contain `name = \"edge-9\"`"), "{error}");
    }

    #[test]
    fn wrong_tokens_and_urls_are_refused_before_anything_is_written() {
        let directory = tempfile::tempdir().unwrap();
        for (url, text) in [
            ("https://c", "s3cret-and-no-token".to_owned()),
            ("http://c", token(None)),
            ("https://c:8443/v1", token(None)),
            ("https://admin:s3cret@c:8443", token(None)),
            ("https://c\"]\n[[peer]]\nname = \"x", token(None)),
        ] {
            let options = options(directory.path(), url);
            let refused = format!("{:#}", join(&options, &text).unwrap_err());
            assert!(!refused.contains("s3cret") && !options.file.exists(), "{refused}");
        }
        let bound = JoinOptions { name: Some("edge-2".parse().unwrap()), ..options(directory.path(), "https://c") };
        assert!(join(&bound, &token(Some("edge-1"))).unwrap_err().to_string().contains("for edge-1 alone"));
    }
}
