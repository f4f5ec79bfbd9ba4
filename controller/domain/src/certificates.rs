//! Which of a node's certificates count: what its record keeps of them, and how that changes.

use edge_types::NodeName;

use crate::ca::{Authorities, Authority, BACKDATED, CaError, Issued, Term, request::NodeKey};
use crate::clock::Seconds;
use crate::state::{Certificate, NodeRecord, TokenRecord};

/// What a record keeps of a certificate that was just signed.
pub fn kept(issued: &Issued, key: &NodeKey) -> Certificate {
    Certificate {
        serial: issued.term.serial.clone(),
        key: key.fingerprint.clone(),
        not_after: issued.term.not_after,
        not_before: issued.term.not_before,
        issuer: issued.issuer.clone(),
        used: false,
    }
}

/// Why a node asks for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// It joins.
    Join,
    /// It renews the one that it has.
    Renewal,
}

/// Why a certificate that was just signed does not become one of the node's.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The name got a newer certificate since this one was signed.
    #[error("node {0} got another certificate at the same moment")]
    Concurrent(NodeName),
    /// The certificate by which the node renews does not count any more.
    #[error("the certificate by which node {0} renews was replaced")]
    Superseded(NodeName),
}

/// Number and time of the certificate to sign for `key`; `shown` is the time from which it may
/// count ([`crate::clock::Clock::shown`]). The answer to an earlier request may have been lost:
/// whoever asks again with the same key gets the same certificate again.
pub fn term(
    record: Option<&NodeRecord>,
    key: &NodeKey,
    occasion: Occasion,
    active: &Authority,
    days: u32,
    (now, shown): (Seconds, Seconds),
) -> Result<Term, CaError> {
    let known = record.into_iter().flat_map(|record| &record.certificates);
    let mut same = known.clone().filter(|known| known.key == key.fingerprint && known.issuer == active.id());
    let young = |known: &&Certificate| !known.used && now < known.not_before + BACKDATED + i64::from(days) * 3600;
    if let Some(same) = same.next().filter(young) {
        return Ok(Term { serial: same.serial.clone(), not_before: same.not_before, not_after: same.not_after });
    }
    let mut term = Term::days(days, now)?;
    // Others judge by clocks of their own, which were not ahead when this one was.
    term.not_before = term.not_before.min(shown - BACKDATED);
    term.not_before = match occasion {
        // Later than all that this name ever had, also within this second: peers tell them apart by
        // that.
        Occasion::Join => {
            let latest = known.map(|known| known.not_before).max().unwrap_or(0);
            term.not_before.max(latest).saturating_add(1)
        }
        // However often a node renews, it gets no further ahead than this.
        Occasion::Renewal => term.not_before.max(record.map_or(0, |record| record.certificates_from)),
    };
    Ok(term)
}

/// The node joins, with this certificate: no other counts any more, neither here nor with its
/// peers.
pub fn join(record: &mut NodeRecord, certificate: &Certificate) -> Result<(), CertificateError> {
    if record.certificates.iter().any(|known| known.serial == certificate.serial) {
        record.certificates.retain(|known| known.serial == certificate.serial);
        return Ok(());
    }
    // Signed before it was known what happens at the same moment.
    if record.certificates.iter().any(|known| known.not_before >= certificate.not_before) {
        return Err(CertificateError::Concurrent(record.name.clone()));
    }
    record.certificates = vec![certificate.clone()];
    record.certificates_from = certificate.not_before;
    Ok(())
}

/// The node renews the certificate with the serial `present`, which stays good until it has used
/// the new one: the answer may get lost, or the power.
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

/// The node has called with this certificate.
pub fn note_use(record: &mut NodeRecord, serial: &str) {
    for known in record.certificates.iter_mut().filter(|known| known.serial == serial) {
        known.used = true;
    }
}

/// Whether a node would be lost if an authority were retired now: a certificate of it is valid, and
/// the node has used none of another.
pub fn needs(record: &NodeRecord, authority: &Authority, authorities: &Authorities, now: Seconds) -> bool {
    let valid = |known: &&Certificate| now < known.not_after;
    let (of_it, of_others): (Vec<&Certificate>, Vec<&Certificate>) =
        record.certificates.iter().filter(valid).partition(|known| authorities.is_issuer(&known.issuer, authority));
    let trusted =
        |known: &&Certificate| authorities.trusted().iter().any(|other| authorities.is_issuer(&known.issuer, other));
    !of_it.is_empty() && !of_others.iter().filter(|known| trusted(known)).any(|known| known.used)
}

/// Whether a node that has not joined yet would find no authority that its token pins.
pub fn pins(token: &TokenRecord, authority: &Authority, authorities: &Authorities, now: Seconds) -> bool {
    now < token.expires_at
        && token.redemptions.len() < token.uses as usize
        && authorities.is_issuer(&token.authority, authority)
}

/// Names, not too many for a line.
pub fn some_of<'a>(names: impl ExactSizeIterator<Item = &'a NodeName>) -> Vec<String> {
    const SHOWN: usize = 20;
    let rest = names.len().saturating_sub(SHOWN);
    let mut shown: Vec<String> = names.take(SHOWN).map(|name| format!("node {name}")).collect();
    if rest > 0 {
        shown.push(format!("{rest} more nodes"));
    }
    shown
}
