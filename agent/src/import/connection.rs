//! Translates one connection of `swanctl.conf` into one `[[peer]]`.

use std::net::IpAddr;

use edge_ike::{Identity, certificate_is_for};
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use super::child::{self, Child, ChildEnds};
use super::credentials::{Certificates, CredentialFiles, psk};
use super::keys::{CHILD, CONNECTION, ImportReport, LOCAL, REMOTE, normal};
use super::proposals::proposals;
use super::swanctl_file::Section;
use crate::config::{Remote, parse_identity, proposal};

/// The values of a `[[peer]]`.
pub(super) struct Peer {
    pub(super) local: Option<IpAddr>,
    pub(super) remote: Vec<String>,
    pub(super) local_id: String,
    pub(super) remote_id: String,
    pub(super) credentials: ImportedCredentials,
    /// `revocation` of the agent, if it is not the default.
    pub(super) revocation: Option<&'static str>,
    /// The children, at least one.
    pub(super) children: Vec<Child>,
    /// IKE proposals; empty to use the agent's defaults.
    pub(super) ike_proposals: Vec<String>,
    pub(super) start: &'static str,
    pub(super) force_encapsulation: bool,
    pub(super) mobike: bool,
    /// `childless`, if it is not the default.
    pub(super) childless: Option<&'static str>,
}

/// How the two ends authenticate.
pub(super) enum ImportedCredentials {
    /// With a pre-shared key.
    Psk(Zeroizing<String>),
    /// With certificates.
    Certificates(Certificates),
}

/// Translates a connection. Returns no peer if `report.problems` has an entry.
pub(super) fn translate(connection: &Section, files: &CredentialFiles<'_>) -> (Option<Peer>, ImportReport) {
    let mut report = ImportReport::default();
    let peer = translate_into(connection, files, &mut report);
    (peer.filter(|_| report.problems.is_empty()), report)
}

fn translate_into(connection: &Section, files: &CredentialFiles<'_>, report: &mut ImportReport) -> Option<Peer> {
    report.keys(connection, CONNECTION);
    if connection.get("version") == Some("1") {
        report.problems.push(format!("{}: not supported: IKEv1", connection.at));
    }
    let local = only(connection, "local", report);
    let remote = only(connection, "remote", report);
    let children = children(connection, report);
    let (local, remote) = (local?, remote?);
    if children.is_empty() {
        return None;
    }
    report.keys(local, LOCAL);
    report.keys(remote, REMOTE);
    for section in [local, remote] {
        for (name, inner) in section.sections() {
            report.problems.push(format!("{}: section {name}: not supported: certificates on a token", inner.at));
        }
    }
    let start = start(&children, report);
    let addresses = addresses(connection, report);
    let by_certificate = method(local, remote, report)?;
    let (local_id, remote_id, credentials) = match identities(local, remote, &addresses, by_certificate, files) {
        Ok(parts) => parts,
        Err(problem) => {
            report.problems.push(problem);
            return None;
        }
    };
    let mut revocation = None;
    let credentials = match credentials {
        Some((certificates, note)) => {
            report.notes.extend(note);
            revocation = self::revocation(remote, &certificates, report);
            ImportedCredentials::Certificates(certificates)
        }
        None => {
            let pair = (parse_identity(&local_id), parse_identity(&remote_id));
            let (Ok(ours), Ok(theirs)) = pair else { return None };
            match psk(files.root.section("secrets"), &ours, &theirs) {
                Ok(psk) => ImportedCredentials::Psk(psk),
                Err(problem) => {
                    report.problems.push(problem);
                    return None;
                }
            }
        }
    };
    let start = if addresses.remote.is_empty() && start != "respond" {
        report.notes.push("the peer has no address, so it must begin".into());
        "respond"
    } else {
        start
    };
    let force_encapsulation = connection.get("encap").map(normal) == Some("yes");
    let ends = ChildEnds { local: addresses.local, remote: addresses.remote_address() };
    let children = children.iter().map(|(name, child)| child::translate(name, child, &ends, report)).collect();
    Some(Peer {
        local: addresses.local,
        children,
        remote: addresses.remote,
        local_id,
        remote_id,
        credentials,
        revocation,
        ike_proposals: proposals(connection, "proposals", |text| proposal::ike(text).map(drop), report),
        start,
        force_encapsulation,
        mobike: connection.get("mobike").map(normal) != Some("no"),
        childless: childless(connection, report),
    })
}

/// Returns whether IKE_AUTH leaves out the CHILD_SA, if that is not the default.
fn childless(connection: &Section, report: &mut ImportReport) -> Option<&'static str> {
    let setting = connection.get("childless").unwrap_or("allow");
    let known = ["never", "prefer", "force"].into_iter().find(|known| *known == setting);
    if known.is_none() && setting != "allow" {
        report.problems.push(format!("{}: childless {setting:?} is unknown", connection.at));
    }
    known
}

/// Returns the policy about revocation lists, if it is not the default.
fn revocation(remote: &Section, certificates: &Certificates, report: &mut ImportReport) -> Option<&'static str> {
    let policy = match remote.get("revocation").unwrap_or("relaxed") {
        "relaxed" => None,
        "ifuri" => Some("ifuri"),
        "strict" => Some("strict"),
        other => {
            report.problems.push(format!("{}: revocation {other:?} is unknown", remote.at));
            None
        }
    };
    match &certificates.crls {
        Some(directory) => report.notes.push(format!(
            "crls: revocation lists are read from {} whenever they change; none is fetched, and OCSP is not asked",
            directory.display()
        )),
        None if policy.is_some() => report.problems.push(format!(
            "{}: revocation: not supported: fetching revocation lists; put them into the directory x509crl",
            remote.at
        )),
        None => {}
    }
    policy
}

/// Returns the only authentication section of a side (`local` or `remote`). The section's name may
/// have a suffix.
fn only<'a>(connection: &'a Section, side: &str, report: &mut ImportReport) -> Option<&'a Section> {
    let all: Vec<&Section> =
        connection.sections().filter(|(name, _)| name.starts_with(side)).map(|(_, section)| section).collect();
    match all[..] {
        [section] => return Some(section),
        [] => report.problems.push(format!("{}: it has no section {side}", connection.at)),
        [_, second, ..] => {
            report.problems.push(format!("{}: not supported: several rounds of authentication (RFC 4739)", second.at));
        }
    }
    None
}

/// Returns the connection's children with their names.
fn children<'a>(connection: &'a Section, report: &mut ImportReport) -> Vec<(&'a str, &'a Section)> {
    let all: Vec<(&str, &Section)> =
        connection.section("children").map(|all| all.sections().collect()).unwrap_or_default();
    if all.is_empty() {
        report.problems.push(format!("{}: it has no child, so no CHILD_SA", connection.at));
    }
    for (_, child) in &all {
        report.keys(child, CHILD);
    }
    all
}

/// Returns which end initiates, as the value of the key `start` of `[[peer]]`, which applies to all
/// children. If their values differ, the first of `initiate`, `on-demand` and `respond` that occurs
/// is returned, and a note is added.
fn start(children: &[(&str, &Section)], report: &mut ImportReport) -> &'static str {
    let mut starts = Vec::new();
    for (_, child) in children {
        starts.push(match child.get("start_action").unwrap_or("none") {
            "none" => "respond",
            "start" | "start|trap" | "trap|start" => "initiate",
            "trap" => "on-demand",
            other => {
                report.problems.push(format!("{}: start_action {other:?} is unknown", child.at));
                "respond"
            }
        });
    }
    let chosen = ["initiate", "on-demand"].into_iter().find(|start| starts.contains(start)).unwrap_or("respond");
    if let Some((_, child)) = children.first().filter(|_| starts.iter().any(|start| *start != chosen)) {
        report
            .notes
            .push(format!("{}: start_action: all children of the connection have start = {chosen:?}", child.at));
    }
    chosen
}

struct Addresses {
    local: Option<IpAddr>,
    remote: Vec<String>,
}

impl Addresses {
    /// Returns the peer's address, if there is only one.
    fn remote_address(&self) -> Option<IpAddr> {
        match &self.remote[..] {
            [one] => Remote::parse(one).ok()?.address(),
            _ => None,
        }
    }
}

fn addresses(connection: &Section, report: &mut ImportReport) -> Addresses {
    let concrete = |key: &str| -> Vec<&str> {
        connection
            .list(key)
            .into_iter()
            .filter(|text| !text.starts_with("%any") && !matches!(*text, "0.0.0.0" | "::"))
            .collect()
    };
    let ours = concrete("local_addrs");
    let local = match ours[..] {
        [] => None,
        [one] if one.parse::<IpAddr>().is_ok() => one.parse().ok(),
        _ => {
            report.notes.push(format!("{}: local_addrs: the route gives the address that we send from", connection.at));
            None
        }
    };
    let mut remote = Vec::new();
    for text in concrete("remote_addrs") {
        if text.contains('/') || (text.contains('-') && text.split('-').all(|end| end.trim().parse::<IpAddr>().is_ok()))
        {
            report.notes.push(format!("{}: remote_addrs {text}: the peer may come from any address", connection.at));
            continue;
        }
        let text = match connection.get("remote_port") {
            Some(port) if port != "500" && text.contains(':') => format!("[{text}]:{port}"),
            Some(port) if port != "500" => format!("{text}:{port}"),
            _ => text.to_owned(),
        };
        match Remote::parse(&text) {
            Ok(_) => remote.push(text),
            Err(problem) => report.problems.push(format!("{}: remote_addrs: {problem}", connection.at)),
        }
    }
    Addresses { local, remote }
}

/// Returns whether both ends authenticate with certificates; otherwise both have a pre-shared key.
fn method(local: &Section, remote: &Section, report: &mut ImportReport) -> Option<bool> {
    let mut kind = |section: &Section| {
        // The text after the first word restricts the algorithms.
        let text = section.get("auth").unwrap_or("pubkey");
        let kind = match text.split(['-', ':']).next().unwrap_or("") {
            "psk" => Some(false),
            "pubkey" | "ike" | "ecdsa" | "ed25519" | "rsa" => Some(true),
            _ => {
                report.problems.push(format!(
                    "{}: not supported: auth = {text}; the agent authenticates with pre-shared keys and with certificates \
                     (Ed25519, ECDSA and RSA)",
                    section.at
                ));
                None
            }
        };
        if kind == Some(true) && text != "pubkey" {
            report.notes.push(format!("{}: auth = {text}: the algorithm is not narrowed", section.at));
        }
        kind
    };
    let (ours, theirs) = (kind(local)?, kind(remote)?);
    if ours != theirs {
        report
            .problems
            .push(format!("{}: not supported: a pre-shared key at one end and a certificate at the other", local.at));
        return None;
    }
    Some(ours)
}

/// This node's identity, the peer's identity, and with certificates the credentials and an optional
/// note.
type Identities = (String, String, Option<(Certificates, Option<String>)>);

/// Returns the identities. Identities that the file does not contain are chosen as strongSwan's
/// daemon would choose them.
fn identities(
    local: &Section,
    remote: &Section,
    addresses: &Addresses,
    by_certificate: bool,
    files: &CredentialFiles<'_>,
) -> Result<Identities, String> {
    let given = |section: &Section| -> Result<Option<(String, Identity)>, String> {
        match section.get("id").filter(|text| !text.starts_with("%any")) {
            None => Ok(None),
            Some(text) => match parse_identity(text) {
                Ok(identity) => Ok(Some((text.to_owned(), identity))),
                Err(problem) => Err(format!("{}: id: {problem}", section.at)),
            },
        }
    };
    let remote_id = match (given(remote)?, addresses.remote_address()) {
        (Some((text, _)), _) => text,
        (None, Some(address)) => address.to_string(),
        (None, None) => {
            return Err(format!("{}: id is missing or %any: write the identity that the peer proves", remote.at));
        }
    };
    let ours = given(local)?;
    if !by_certificate {
        let local_id = match (ours, addresses.local) {
            (Some((text, _)), _) => text,
            (None, Some(address)) => address.to_string(),
            (None, None) => return Err(format!("{}: id is missing: write our identity", local.at)),
        };
        return Ok((local_id, remote_id, None));
    }
    let certificates = files
        .of(local, remote, ours.as_ref().map(|(_, identity)| identity))
        .map_err(|problem| format!("{}: {problem}", local.at))?;
    let leaf = certificates.chain.first().map(Vec::as_slice).unwrap_or_default();
    let (_, parsed) =
        parse_x509_certificate(leaf).map_err(|_| format!("{}: our certificate cannot be read", local.at))?;
    let subject = || format!("asn1dn:#{}", data_encoding::HEXLOWER.encode(parsed.subject().as_raw()));
    let (local_id, note) = match ours {
        Some((text, identity)) if certificate_is_for(leaf, &identity) => (text, None),
        Some((text, _)) => {
            let note = format!(
                "{}: our certificate is not for {text}; local_id is its subject, {}",
                local.at,
                parsed.subject()
            );
            (subject(), Some(note))
        }
        None => (subject(), Some(format!("local_id is the subject of our certificate, {}", parsed.subject()))),
    };
    Ok((local_id, remote_id, Some((certificates, note))))
}
