//! Checks `[[peer]]`: credentials, identities and networks.

use edge_ike::config::{Auth, CertificateAuth};
use edge_ike::{Identity, PeerConfig, certificate_is_for, check_credentials};
use edge_types::network;
use ipnetwork::IpNetwork;
use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;

use super::report::{Level, RenewedBy, Report, validity};
use crate::config::{Config, PeerSection, Remote};
use crate::crl_files::CrlFiles;

/// Length in octets below which a pre-shared key gets a warning: an attacker who answers in the
/// peer's place can try keys offline (RFC 7296 2.15).
const SHORT_PSK: usize = 16;

pub(super) fn check(config: &Config, now: i64, report: &mut Report) {
    let mut crls = CrlFiles::default();
    for (at, peer) in config.peers.iter().enumerate() {
        match peer.resolve(config, &mut crls) {
            Ok(resolved) => credentials(&resolved, &peer.name, now, report),
            // The message begins with the peer's name, which the finding already has as its
            // section.
            Err(problem) => {
                let problem =
                    problem.strip_prefix(&format!("[[peer]] {:?}: ", peer.name)).unwrap_or(&problem).to_owned();
                report.add(Level::Error, &peer.name, problem);
            }
        }
        networks(peer, &config.peers[..at], report);
    }
}

fn credentials(peer: &PeerConfig, section: &str, now: i64, report: &mut Report) {
    if let Err(problem) = check_credentials(&peer.auth) {
        report.add(Level::Error, section, format!("these credentials cannot be used: {problem}"));
        return;
    }
    match &peer.auth {
        Auth::Psk(psk) if psk.expose().len() < SHORT_PSK => report.add(
            Level::Warning,
            section,
            format!("the pre-shared key has less than {SHORT_PSK} octets and can be guessed: make one with `openssl rand -base64 32`"),
        ),
        Auth::Psk(_) => report.add(Level::Ok, section, format!("pre-shared key, we are {}, the peer is {}", peer.local_id, peer.remote_id)),
        Auth::Certificate(auth) => certificates(peer, auth, section, now, report),
    }
}

fn certificates(peer: &PeerConfig, auth: &CertificateAuth, section: &str, now: i64, report: &mut Report) {
    for (nth, der) in auth.chain.iter().enumerate() {
        let Ok((_, certificate)) = parse_x509_certificate(der) else { continue };
        let subject = certificate.subject();
        let whose = if nth == 0 {
            format!("our certificate ({subject})")
        } else {
            format!("the intermediate certificate {subject}")
        };
        validity(report, section, &whose, &certificate, now, RenewedBy::Operator);
    }
    for (name, next_update) in auth.revocation.iter().flat_map(|revocation| revocation.lists.next_updates()) {
        let (level, state) = match i64::try_from(next_update).unwrap_or(i64::MAX) {
            past if past < now => (Level::Warning, "should have been replaced by its issuer by"),
            _ => (Level::Ok, "is valid until"),
        };
        let when = OffsetDateTime::from_unix_timestamp(i64::try_from(next_update).unwrap_or(i64::MAX));
        let when = when.map_or_else(|_| next_update.to_string(), |when| when.date().to_string());
        report.add(level, section, format!("the revocation list {name} {state} {when}"));
    }
    if let Some(leaf) = auth.chain.first()
        && !certificate_is_for(leaf, &peer.local_id)
    {
        report.add(
            Level::Error,
            section,
            format!(
                "our certificate is not for local_id {}: the peer will refuse us; set local_id to a name in the certificate, or renew the certificate with \
                 this name",
                peer.local_id
            ),
        );
    }
    if matches!(peer.remote_id, Identity::KeyId(_)) {
        report.add(
            Level::Error,
            section,
            format!(
                "remote_id is {}, which no certificate can prove: use a name in the peer's certificate",
                peer.remote_id
            ),
        );
    }
    for der in &auth.trust_anchors {
        match parse_x509_certificate(der) {
            Ok((_, anchor)) => {
                validity(
                    report,
                    section,
                    &format!("the trust anchor {}", anchor.subject()),
                    &anchor,
                    now,
                    RenewedBy::Operator,
                );
                if !anchor.is_ca() {
                    report.add(
                        Level::Warning,
                        section,
                        format!(
                            "the trust anchor {} is no authority (basicConstraints CA): it can prove nobody but itself",
                            anchor.subject()
                        ),
                    );
                }
            }
            Err(_) => report.add(Level::Error, section, "a trust anchor is not DER of an X.509 certificate"),
        }
    }
}

/// Returns a warning for each network behind this node and each network behind the peer that
/// overlap.
pub(super) fn networks_at_both_ends(peer: &PeerSection) -> impl Iterator<Item = String> {
    let (has_pool, key) = (!peer.address_pool.is_empty(), key_of_remotes(peer));
    // A gateway for everything has its own pool in 0.0.0.0/0.
    let locals = peer.all_local_subnets().filter(move |local| local.prefix() != 0 || !has_pool);
    locals.flat_map(move |local| {
        let overlapping = peer.all_remote_subnets().filter(move |remote| network::overlap(local, remote));
        overlapping.map(move |remote| {
            let how = if local == remote { "are the same network" } else { "overlap" };
            format!(
                "local_subnets {local} and {key} {remote} {how}: hosts of local_subnets reach each other without the tunnel"
            )
        })
    })
}

/// Returns the key of the networks behind a peer, which has one of the two.
fn key_of_remotes(peer: &PeerSection) -> &'static str {
    if peer.address_pool.is_empty() { "remote_subnets" } else { "address_pool" }
}

fn networks(peer: &PeerSection, before: &[PeerSection], report: &mut Report) {
    for warning in networks_at_both_ends(peer) {
        report.add(Level::Warning, &peer.name, warning);
    }
    let key = key_of_remotes(peer);
    for remote in peer.all_remote_subnets() {
        for address in peer.remote.iter().filter_map(Remote::address).filter(|address| remote.contains(*address)) {
            report.add(
                Level::Warning,
                &peer.name,
                format!("the peer's own address {address} is in {key} {remote}: what hosts here send to it goes into the tunnel"),
            );
        }
        for other in before {
            // Several peers may have the same pool: each address is given to one of them.
            let same_pool = |theirs: &IpNetwork| {
                theirs == remote && peer.address_pool.contains(remote) && other.address_pool.contains(theirs)
            };
            let shared = |theirs: &&IpNetwork| network::overlap(remote, theirs) && !same_pool(theirs);
            let locals = peer
                .all_local_subnets()
                .any(|local| other.all_local_subnets().any(|theirs| network::overlap(local, theirs)));
            if let Some(theirs) = other.all_remote_subnets().find(shared).filter(|_| locals) {
                report.add(
                    Level::Warning,
                    &peer.name,
                    format!("{key} {remote} overlaps {theirs} of {:?}: packets to what both contain take one of the tunnels", other.name),
                );
            }
        }
    }
}
