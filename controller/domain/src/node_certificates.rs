//! Decides which certificates the controller accepts from a node, and updates the node's record at
//! joins and renewals.

use edge_types::NodeName;

use crate::ca::{Authorities, Authority, BACKDATED, CaError, Issued, Term, request::NodeKey};
use crate::clock::Seconds;
use crate::state::{Certificate, NodeRecord, TokenRecord};

/// Returns the entry in a node's record for a certificate that was just signed.
pub fn record_of(issued: &Issued, key: &NodeKey) -> Certificate {
    Certificate {
        serial: issued.term.serial.clone(),
        key: key.fingerprint.clone(),
        not_after: issued.term.not_after,
        not_before: issued.term.not_before,
        issuer: issued.issuer.clone(),
        used: false,
    }
}

/// The reason why a node requests a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateReason {
    /// The node joins with a token and has no accepted certificate.
    Join,
    /// The node renews its certificate.
    Renewal,
}

/// The reason why a certificate that was just signed is not written into the node's record.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The node got a newer certificate after this one was signed.
    #[error("node {0} got another certificate at the same moment")]
    Concurrent(NodeName),
    /// The certificate with which the node renews is not accepted any more.
    #[error("the certificate with which node {0} renews was replaced")]
    Superseded(NodeName),
}

/// Returns the serial number and validity of the certificate to sign for `key`. `issue_time` is
/// [`crate::clock::Clock::issue_time`]. If the response to an earlier request was lost, the node
/// repeats the request with the same key and gets the same certificate again.
pub fn term(
    record: Option<&NodeRecord>,
    key: &NodeKey,
    reason: CertificateReason,
    active: &Authority,
    days: u32,
    (now, issue_time): (Seconds, Seconds),
) -> Result<Term, CaError> {
    let known = record.into_iter().flat_map(|record| &record.certificates);
    let mut same = known.clone().filter(|known| known.key == key.fingerprint && known.issuer == active.id());
    let young = |known: &&Certificate| !known.used && now < known.not_before + BACKDATED + i64::from(days) * 3600;
    if let Some(same) = same.next().filter(young) {
        return Ok(Term { serial: same.serial.clone(), not_before: same.not_before, not_after: same.not_after });
    }
    let mut term = Term::days(days, now)?;
    // This controller's clock may have been ahead, but not the clocks of the peers that check the
    // validity.
    term.not_before = term.not_before.min(issue_time - BACKDATED);
    term.not_before = match reason {
        // The time is later than that of every earlier certificate of this node, even within one
        // second: peers distinguish the joins by `notBefore`.
        CertificateReason::Join => {
            let latest = known.map(|known| known.not_before).max().unwrap_or(0);
            term.not_before.max(latest).saturating_add(1)
        }
        // However often a node renews, `notBefore` is never further ahead than in the certificate
        // from its join.
        CertificateReason::Renewal => term.not_before.max(record.map_or(0, |record| record.certificates_from)),
    };
    Ok(term)
}

/// Records the certificate with which the node joins. From now on neither the controller nor the
/// node's peers accept another certificate.
pub fn join(record: &mut NodeRecord, certificate: &Certificate) -> Result<(), CertificateError> {
    if record.certificates.iter().any(|known| known.serial == certificate.serial) {
        record.certificates.retain(|known| known.serial == certificate.serial);
        return Ok(());
    }
    // Both certificates were signed in the same second.
    if record.certificates.iter().any(|known| known.not_before >= certificate.not_before) {
        return Err(CertificateError::Concurrent(record.name.clone()));
    }
    record.certificates = vec![certificate.clone()];
    record.certificates_from = certificate.not_before;
    Ok(())
}

/// Renews the certificate with the serial `present`. That certificate stays valid until the node
/// has used the new one, since the response may be lost or the power may fail.
pub fn renew(record: &mut NodeRecord, present: &str, certificate: &Certificate) -> Result<(), CertificateError> {
    record.certificates.retain(|known| known.serial == present || known.serial == certificate.serial);
    if !record.certificates.iter().any(|known| known.serial == present) {
        return Err(CertificateError::Superseded(record.name.clone()));
    }
    if !record.certificates.iter().any(|known| known.serial == certificate.serial) {
        record.certificates.push(certificate.clone());
    }
    Ok(())
}

/// Records that the node used this certificate.
pub fn note_use(record: &mut NodeRecord, serial: &str) {
    for known in record.certificates.iter_mut().filter(|known| known.serial == serial) {
        known.used = true;
    }
}

/// Returns whether a node could no longer connect if an authority were retired now: the node has a
/// certificate from that authority that is valid or ended at most `grace` seconds ago, and has used
/// none from another trusted authority.
pub fn needs(
    record: &NodeRecord,
    authority: &Authority,
    authorities: &Authorities,
    (now, grace): (Seconds, Seconds),
) -> bool {
    let valid = |known: &&Certificate| now < known.not_after.saturating_add(grace);
    let (of_it, of_others): (Vec<&Certificate>, Vec<&Certificate>) =
        record.certificates.iter().filter(valid).partition(|known| authorities.is_issuer(&known.issuer, authority));
    let trusted =
        |known: &&Certificate| authorities.trusted().iter().any(|other| authorities.is_issuer(&known.issuer, other));
    !of_it.is_empty() && !of_others.iter().filter(|known| trusted(known)).any(|known| known.used)
}

/// Returns whether a token that can still be used pins this authority. A node could not join with
/// the token if the authority were retired.
pub fn pins(token: &TokenRecord, authority: &Authority, authorities: &Authorities, now: Seconds) -> bool {
    now < token.expires_at && token.used() < token.uses() && authorities.is_issuer(&token.authority, authority)
}

/// Returns text for a message: the names of the first 20 nodes and the number of further nodes.
pub fn shortened<'a>(names: impl ExactSizeIterator<Item = &'a NodeName>) -> Vec<String> {
    const SHOWN: usize = 20;
    let rest = names.len().saturating_sub(SHOWN);
    let mut shown: Vec<String> = names.take(SHOWN).map(|name| format!("node {name}")).collect();
    if rest > 0 {
        shown.push(format!("{rest} more nodes"));
    }
    shown
}
