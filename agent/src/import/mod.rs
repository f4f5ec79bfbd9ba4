//! `edge-agent import`: converts a `swanctl.conf` into the agent's configuration.
//!
//! A connection becomes a `[[peer]]` only if its tunnel stays the same. Every difference is
//! reported with the file and line.

mod child;
mod connection;
mod credentials;
mod keys;
mod proposals;
mod swanctl_file;
#[cfg(test)]
mod tests;
mod traffic_selector;

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use data_encoding::BASE64;
use pem::Pem;
use serde::Serialize;
use zeroize::Zeroizing;

use child::Child;
use connection::{ImportedCredentials, Peer};
use credentials::CredentialFiles;
use keys::ImportReport;

use crate::config::Config;
use crate::stdout::print;

/// Name of the configuration file in the output directory.
const CONFIGURATION: &str = "agent.toml";

/// Translates the connections of a `swanctl.conf`. Without `into`, prints the configuration and
/// writes nothing. Fails if a connection cannot be imported, but still imports the other
/// connections.
pub fn execute(file: &Path, into: Option<&Path>) -> anyhow::Result<()> {
    let import = Import::read(file)?;
    import.report();
    match into {
        Some(directory) => import.write(directory)?,
        None => {
            print(&import.text)?;
            if !import.files.is_empty() {
                eprintln!("Nothing is written. --into DIRECTORY writes this and the files that it names.");
            }
        }
    }
    match import.refused() {
        0 if import.connections.is_empty() => bail!("{}: the file defines no connection", file.display()),
        0 => Ok(()),
        refused => bail!("{refused} of {} connections were not converted", import.connections.len()),
    }
}

/// The result of translating a file.
struct Import {
    /// The content of `agent.toml`.
    text: String,
    /// Name and content of the files that `agent.toml` names. They are in the same directory.
    files: Vec<(String, Zeroizing<Vec<u8>>)>,
    /// For each connection, its name, whether it is imported, and the findings.
    connections: Vec<(String, bool, ImportReport)>,
}

/// Returns the names of the children. Characters that the agent's file does not allow become
/// underscores, and no two names are the same.
fn child_names(children: &[Child]) -> Vec<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let mut names: Vec<String> = Vec::new();
    for child in children {
        let mut name: String = child.name.chars().map(plain).collect();
        while names.contains(&name) {
            name.push('_');
        }
        names.push(name);
    }
    names
}

/// The form in which a `[[peer]]` is written.
#[derive(Serialize)]
struct PeerTable<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    remote: &'a [String],
    local_id: &'a str,
    remote_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    psk_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_anchors: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crls: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revocation: Option<&'static str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    local_subnets: Vec<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    remote_subnets: Vec<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    ike_proposals: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    esp_proposals: &'a [String],
    start: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    encap: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mobike: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    childless: Option<&'static str>,
    #[serde(rename = "child", skip_serializing_if = "Vec::is_empty")]
    children: Vec<ChildTable<'a>>,
}

/// The form in which a `[[peer.child]]` is written.
#[derive(Serialize)]
struct ChildTable<'a> {
    name: &'a str,
    local_subnets: Vec<String>,
    remote_subnets: Vec<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    esp_proposals: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
}

#[derive(Serialize)]
struct Tables<'a> {
    peer: [PeerTable<'a>; 1],
}

impl Import {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let root = swanctl_file::read(file).map_err(anyhow::Error::msg)?;
        let directory = file.parent().unwrap_or(Path::new(""));
        let files = CredentialFiles { directory, root: &root };
        let mut import = Self {
            text: format!("# Made from {} by `edge-agent import`.\n", file.display()),
            files: Vec::new(),
            connections: Vec::new(),
        };
        for (name, section) in root.section("connections").iter().flat_map(|connections| connections.sections()) {
            let (peer, report) = connection::translate(section, &files);
            import.comments(name, peer.is_some(), &report);
            if let Some(peer) = &peer {
                import.peer(name, peer)?;
            }
            import.connections.push((name.to_owned(), peer.is_some(), report));
        }
        if import.refused() < import.connections.len() {
            Config::parse(&import.text, &Path::new("what was made of").join(file))?;
        }
        Ok(import)
    }

    fn refused(&self) -> usize {
        self.connections.iter().filter(|(_, carried_over, _)| !carried_over).count()
    }

    fn report(&self) {
        for (name, carried_over, report) in &self.connections {
            eprintln!("{name:?} is {}", if *carried_over { "carried over" } else { "NOT carried over:" });
            for line in report.problems.iter().chain(&report.notes) {
                eprintln!("  {line}");
            }
        }
    }

    fn comments(&mut self, name: &str, carried_over: bool, report: &ImportReport) {
        let _ =
            write!(self.text, "\n# Connection {name:?}{}\n", if carried_over { "" } else { " is not carried over:" });
        for line in report.problems.iter().chain(&report.notes) {
            // A newline in text from `swanctl.conf` must not end the comment.
            let _ = writeln!(self.text, "# - {}", line.replace(|c: char| c.is_control(), " "));
        }
    }

    fn peer(&mut self, name: &str, peer: &Peer) -> anyhow::Result<()> {
        let (mut psk_file, mut certificate, mut key, mut trust_anchors) = (None, None, None, None);
        let mut crls = None;
        match &peer.credentials {
            ImportedCredentials::Psk(psk) => psk_file = Some(self.file(name, "psk", psk_line(psk))),
            ImportedCredentials::Certificates(parts) => {
                certificate = Some(self.file(name, "crt", pems("CERTIFICATE", &parts.chain)));
                key = Some(self.file(name, "key", pems("PRIVATE KEY", &[parts.key.to_vec()])));
                trust_anchors = Some(self.file(name, "ca.crt", pems("CERTIFICATE", &parts.trust_anchors)));
                crls = parts.crls.as_deref();
            }
        }
        let texts = |networks: &[ipnetwork::IpNetwork]| networks.iter().map(ToString::to_string).collect();
        // A single child that needs no `[[peer.child]]` table is written into the `[[peer]]` table.
        // Its name is lost.
        let (only, children) = match &peer.children[..] {
            [only] if !only.needs_table() => (Some(only), &[][..]),
            several => (None, several),
        };
        let names = child_names(children);
        let table = PeerTable {
            name,
            local: peer.local.map(|address| address.to_string()),
            remote: &peer.remote,
            local_id: &peer.local_id,
            remote_id: &peer.remote_id,
            psk_file,
            certificate,
            key,
            trust_anchors,
            crls,
            revocation: peer.revocation,
            local_subnets: only.map(|child| texts(&child.local_subnets)).unwrap_or_default(),
            remote_subnets: only.map(|child| texts(&child.remote_subnets)).unwrap_or_default(),
            ike_proposals: &peer.ike_proposals,
            esp_proposals: only.map(|child| child.esp_proposals.as_slice()).unwrap_or_default(),
            start: peer.start,
            encap: peer.force_encapsulation.then_some("force"),
            mobike: (!peer.mobike).then_some(false),
            childless: peer.childless,
            children: children
                .iter()
                .zip(&names)
                .map(|(child, name)| ChildTable {
                    name,
                    local_subnets: texts(&child.local_subnets),
                    remote_subnets: texts(&child.remote_subnets),
                    esp_proposals: &child.esp_proposals,
                    protocol: child.protocol,
                    local_port: child.local_port,
                    remote_port: child.remote_port,
                    mode: child.transport.then_some("transport"),
                })
                .collect(),
        };
        self.text += &toml::to_string(&Tables { peer: [table] })?;
        Ok(())
    }

    /// Adds a file named after the connection and returns the file's name.
    fn file(&mut self, connection: &str, extension: &str, content: Zeroizing<Vec<u8>>) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
        let stem: String = connection.chars().map(plain).take(64).collect();
        let mut name = format!("{stem}.{extension}");
        let mut number = 2;
        while self.files.iter().any(|(other, _)| *other == name) {
            name = format!("{stem}-{number}.{extension}");
            number += 1;
        }
        self.files.push((name.clone(), content));
        name
    }

    /// Writes all files or none. Only the owner can read the files. Existing files are not
    /// replaced.
    fn write(&self, directory: &Path) -> anyhow::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| directory.display().to_string())?;
        let files = self.files.iter().map(|(name, content)| (name.as_str(), content.as_slice()));
        let mut written: Vec<PathBuf> = Vec::new();
        // The configuration is written last, after all files that it names.
        for (name, content) in files.chain([(CONFIGURATION, self.text.as_bytes())]) {
            let path = directory.join(name);
            let outcome =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file| {
                    written.push(path.clone());
                    file.write_all(content)?;
                    file.sync_all()
                });
            if let Err(error) = outcome {
                for path in &written {
                    let _ = fs::remove_file(path);
                }
                let advice = match error.kind() {
                    std::io::ErrorKind::AlreadyExists => "; choose an empty directory, and move the files afterwards",
                    _ => "",
                };
                bail!("{}: {error}{advice}; nothing was written", path.display());
            }
        }
        let path = directory.join(CONFIGURATION);
        eprintln!("{} is written. `edge-agent check --config {}` judges it.", path.display(), path.display());
        Ok(())
    }
}

/// Returns the content of a `psk_file`, which is one line. The agent accepts strongSwan's forms
/// `0x` and `0s`.
fn psk_line(psk: &str) -> Zeroizing<Vec<u8>> {
    let is_line = !psk.contains(|c: char| c.is_control()) && !psk.starts_with("0t");
    let text = if is_line { psk.to_owned() } else { format!("0s{}", BASE64.encode(psk.as_bytes())) };
    Zeroizing::new((text + "\n").into_bytes())
}

fn pems(label: &str, ders: &[Vec<u8>]) -> Zeroizing<Vec<u8>> {
    let all: Vec<Pem> = ders.iter().map(|der| Pem::new(label, der.as_slice())).collect();
    Zeroizing::new(
        pem::encode_many_config(&all, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF)).into_bytes(),
    )
}
