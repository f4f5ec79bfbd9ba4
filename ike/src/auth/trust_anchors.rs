//! The configured trust anchors. webpki uses only the name, key and name constraints of an anchor.
//! RFC 5280 6.1 allows an anchor to set more limits. We apply those limits as well, since an
//! operator who limits a CA expects them to apply.

use std::borrow::Cow;

use ring::digest;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::{AuthError, CredentialError};

/// Trust anchors, each with the limits in its certificate that webpki does not apply.
#[derive(Debug)]
pub(super) struct TrustAnchors {
    anchors: Vec<TrustAnchor<'static>>,
    limits: Vec<AnchorLimits>,
    authorities: Vec<u8>,
}

/// The limits that a trust anchor's certificate sets for itself.
#[derive(Debug, Clone, Copy)]
struct AnchorLimits {
    /// notBefore, seconds since 1970-01-01 UTC.
    not_before: u64,
    /// notAfter, seconds since 1970-01-01 UTC.
    not_after: u64,
    /// pathLenConstraint: maximum number of intermediates below the anchor. `None` allows any
    /// number.
    path_len: Option<u32>,
}

/// The trust anchors that are valid at a certain time.
pub(super) struct ValidAnchors<'a> {
    /// The anchors in the form that webpki needs.
    pub(super) anchors: Cow<'a, [TrustAnchor<'static>]>,
    limits: Vec<AnchorLimits>,
}

impl TrustAnchors {
    pub(super) fn new(certificates: &[Vec<u8>]) -> Result<Self, CredentialError> {
        if certificates.is_empty() {
            return Err(CredentialError::NoTrustAnchor);
        }
        let (mut anchors, mut limits, mut authorities) = (Vec::new(), Vec::new(), Vec::new());
        for der in certificates {
            let malformed = |_| CredentialError::MalformedTrustAnchor;
            let certificate = CertificateDer::from(der.as_slice());
            anchors.push(webpki::anchor_from_trusted_cert(&certificate).map_err(malformed)?.to_owned());
            let (_, parsed) = X509Certificate::from_der(der).map_err(|_| CredentialError::MalformedTrustAnchor)?;
            limits.push(AnchorLimits::of(&parsed));
            // RFC 7296 3.7: SHA-1 of the SubjectPublicKeyInfo element.
            let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, parsed.public_key().raw);
            authorities.extend_from_slice(hash.as_ref());
        }
        Ok(Self { anchors, limits, authorities })
    }

    /// Returns the hashes of the trust anchors, in the format of CERTREQ.
    pub(super) fn authorities(&self) -> &[u8] {
        &self.authorities
    }

    /// Returns all trust anchors, including those that are not valid now.
    pub(super) fn all(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Returns the anchors that are valid at `unix_time`.
    pub(super) fn valid_at(&self, unix_time: u64) -> ValidAnchors<'_> {
        if self.limits.iter().all(|limits| limits.valid_at(unix_time)) {
            return ValidAnchors { anchors: Cow::Borrowed(&self.anchors), limits: self.limits.clone() };
        }
        let valid = self.anchors.iter().zip(&self.limits).filter(|(_, limits)| limits.valid_at(unix_time));
        let (anchors, limits) = valid.map(|(anchor, limits)| (anchor.clone(), *limits)).unzip();
        ValidAnchors { anchors: Cow::Owned(anchors), limits }
    }

    /// Returns the reason why this anchor of [`Self::all`] is not valid at `now`, or `None` if it
    /// is valid.
    pub(super) fn invalid(&self, anchor: &TrustAnchor<'_>, now: u64) -> Option<AuthError> {
        let position = self.anchors.iter().position(|other| std::ptr::eq(other, anchor))?;
        let AnchorLimits { not_before, not_after, .. } = *self.limits.get(position)?;
        if now > not_after {
            Some(AuthError::Expired { not_after, now })
        } else {
            (now < not_before).then_some(AuthError::NotYetValid { not_before, now })
        }
    }
}

impl ValidAnchors<'_> {
    /// Returns notAfter of the anchor at which a path ends. Returns an error if the anchor does not
    /// allow this number of intermediates.
    pub(super) fn check(&self, anchor: &TrustAnchor<'_>, intermediates: usize) -> Result<u64, AuthError> {
        let position = self.anchors.iter().position(|other| std::ptr::eq(other, anchor));
        let Some(limits) = position.and_then(|position| self.limits.get(position)) else {
            return Ok(u64::MAX);
        };
        match limits.path_len {
            Some(most) if usize::try_from(most).is_ok_and(|most| intermediates > most) => {
                Err(AuthError::Chain(format!(
                    "its trust anchor allows {most} intermediate certificates below it, and there are {intermediates}"
                )))
            }
            _ => Ok(limits.not_after),
        }
    }
}

impl AnchorLimits {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
        let constraints = certificate.basic_constraints().ok().flatten();
        Self {
            not_before: seconds(validity.not_before.timestamp()),
            not_after: seconds(validity.not_after.timestamp()),
            path_len: constraints.and_then(|constraints| constraints.value.path_len_constraint),
        }
    }

    fn valid_at(&self, unix_time: u64) -> bool {
        (self.not_before..=self.not_after).contains(&unix_time)
    }
}
