//! What the kernel refuses: ciphers that it lacks, which are not offered to peers, and SAs. A peer
//! with a refused SA is not shown as up.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use edge_ike::config::{Cipher, EspProposal};
use edge_ike::{Instant, PeerConfig, PeerName};

use super::check_interval::SHORTEST;

/// What the kernel has refused.
#[derive(Debug, Default)]
pub(super) struct KernelRefusals {
    /// Whether the kernel has a cipher, for each that was tried: at most the twelve that there are.
    ciphers: Vec<(Cipher, bool)>,
    /// At most one entry for each desired peer.
    sas: BTreeMap<PeerName, RefusedSa>,
}

/// The last refusal of an SA of a peer.
#[derive(Debug)]
struct RefusedSa {
    /// `None` if the peer has all its SAs again.
    reason: Option<String>,
    /// When an SA was last refused that was to be replaced at once.
    replaced_at: Instant,
}

impl KernelRefusals {
    /// Returns the configuration of a peer without the ESP ciphers that the kernel lacks. `has`
    /// returns whether the kernel has a cipher; it is called once for each cipher in all. A child
    /// keeps its proposals if nothing would be left of them: its peer then cannot be up, and the
    /// reason is that of the refused SA.
    pub(super) fn without_missing_ciphers(
        &mut self,
        peer: Arc<PeerConfig>,
        mut has: impl FnMut(Cipher) -> bool,
    ) -> Arc<PeerConfig> {
        let configured = peer.children().flat_map(|child| &child.proposals).flat_map(|proposal| &proposal.ciphers);
        // Every cipher is tried, so that all that are missing are named at once.
        let missing = configured.filter(|cipher| !self.is_there(**cipher, &mut has)).count();
        if missing == 0 {
            return peer;
        }
        let mut proposals: Vec<Option<Vec<EspProposal>>> = Vec::new();
        for child in peer.children() {
            let offered: Vec<EspProposal> =
                child.proposals.iter().map(|proposal| self.without_missing(proposal, &mut has)).collect();
            let usable: Vec<_> = offered.into_iter().filter(|proposal| !proposal.ciphers.is_empty()).collect();
            proposals.push(Some(usable).filter(|usable| !usable.is_empty() && *usable != child.proposals));
        }
        if proposals.iter().all(Option::is_none) {
            return peer;
        }
        let mut peer = Arc::unwrap_or_clone(peer);
        let children = std::iter::once(&mut peer.child).chain(&mut peer.additional_children);
        for (child, proposals) in children.zip(proposals) {
            child.proposals = proposals.unwrap_or_else(|| std::mem::take(&mut child.proposals));
        }
        Arc::new(peer)
    }

    fn without_missing(&mut self, proposal: &EspProposal, has: &mut impl FnMut(Cipher) -> bool) -> EspProposal {
        let mut usable = proposal.clone();
        usable.ciphers.retain(|cipher| self.is_there(*cipher, has));
        usable
    }

    fn is_there(&mut self, cipher: Cipher, has: &mut impl FnMut(Cipher) -> bool) -> bool {
        if let Some((_, there)) = self.ciphers.iter().find(|(tried, _)| *tried == cipher) {
            return *there;
        }
        let there = has(cipher);
        self.ciphers.push((cipher, there));
        there
    }

    /// Returns the ciphers of configured peers that the kernel lacks, by name.
    pub(super) fn missing_ciphers(&self) -> Vec<String> {
        self.ciphers.iter().filter(|(_, there)| !there).map(|(cipher, _)| cipher.to_string()).collect()
    }

    /// Records that the kernel refused an SA of a peer. Returns whether its CHILD_SA may be
    /// replaced at once, because that was not done in the last [`SHORTEST`].
    pub(super) fn sa_refused(&mut self, peer: &PeerName, error: &impl Display, now: Instant) -> bool {
        let reason = Some(format!("the kernel refused an SA: {error}"));
        match self.sas.get_mut(peer) {
            Some(refused) => {
                refused.reason = reason;
                let may = now >= refused.replaced_at + SHORTEST;
                if may {
                    refused.replaced_at = now;
                }
                may
            }
            None => {
                self.sas.insert(peer.clone(), RefusedSa { reason, replaced_at: now });
                true
            }
        }
    }

    /// Records that a peer has all its SAs again.
    pub(super) fn sas_stand(&mut self, peer: &PeerName) {
        if let Some(refused) = self.sas.get_mut(peer) {
            refused.reason = None;
        }
    }

    /// Forgets a peer that is no longer one.
    pub(super) fn forget(&mut self, peer: &PeerName) {
        self.sas.remove(peer);
    }

    /// Returns why the kernel refused the last SA of a peer; `None` if it did not.
    pub(super) fn reason(&self, peer: &PeerName) -> Option<&str> {
        self.sas.get(peer)?.reason.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use edge_ike::config::{AesKeyLength, Integrity};

    use super::*;
    use crate::config::Config;
    use crate::crl_files::CrlFiles;

    const CBC: Cipher = Cipher::AesCbc(AesKeyLength::Bits256, Integrity::HmacSha256);

    fn peer(proposals: &str) -> Arc<PeerConfig> {
        let text = format!(
            "[[peer]]\nname = \"moon\"\nremote = \"192.0.2.2\"\nlocal_id = \"a.example\"\nremote_id = \"b.example\"\n\
             psk = \"correct horse battery staple\"\nlocal_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.2.0.0/24\"]\n\
             esp_proposals = {proposals}\n"
        );
        let config: Config = toml::from_str(&text).unwrap();
        Arc::new(config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap())
    }

    fn ciphers(peer: &PeerConfig) -> Vec<Vec<Cipher>> {
        peer.child.proposals.iter().map(|proposal| proposal.ciphers.clone()).collect()
    }

    #[test]
    fn only_ciphers_that_the_kernel_has_are_offered_and_each_is_tried_once() {
        let mut refusals = KernelRefusals::default();
        let configured = peer("[\"aes256gcm16-chacha20poly1305\", \"aes128gcm16\", \"aes256-sha256\"]");
        let mut tried = Vec::new();
        for _ in 0..2 {
            let offered = refusals.without_missing_ciphers(configured.clone(), |cipher| {
                tried.push(cipher);
                matches!(cipher, Cipher::ChaCha20Poly1305 | Cipher::AesCbc(..))
            });
            assert_eq!(ciphers(&offered), [vec![Cipher::ChaCha20Poly1305], vec![CBC]]);
            assert_eq!(offered.child.local, configured.child.local);
        }
        assert_eq!(tried, [Cipher::Aes256Gcm16, Cipher::ChaCha20Poly1305, Cipher::Aes128Gcm16, CBC]);
        assert_eq!(refusals.missing_ciphers(), ["AES_GCM_16-256", "AES_GCM_16-128"]);
    }

    #[test]
    fn a_refused_sa_is_replaced_at_once_but_not_again_and_again() {
        let mut refusals = KernelRefusals::default();
        let moon = PeerName::new("moon");
        let at = |seconds: u64| Instant::new(std::time::Duration::from_secs(1000 + seconds));
        let mut replaced = Vec::new();
        for second in 0..30 {
            if refusals.sa_refused(&moon, &"no", at(second)) {
                replaced.push(second);
            }
            assert_eq!(refusals.reason(&moon), Some("the kernel refused an SA: no"));
            // Another tunnel of the peer may be whole in between.
            refusals.sas_stand(&moon);
            assert_eq!(refusals.reason(&moon), None);
        }
        assert_eq!(replaced, [0, 10, 20]);
        refusals.forget(&moon);
        assert!(refusals.sas.is_empty());
    }

    #[test]
    fn a_peer_that_needs_nothing_that_is_missing_stays_as_it_is() {
        let mut refusals = KernelRefusals::default();
        let configured = peer("[\"aes256gcm16\"]");
        let offered = refusals.without_missing_ciphers(configured.clone(), |_| true);
        assert!(Arc::ptr_eq(&offered, &configured) && refusals.missing_ciphers().is_empty());
    }

    #[test]
    fn a_peer_of_whose_ciphers_the_kernel_has_none_keeps_them_and_they_are_named() {
        let mut refusals = KernelRefusals::default();
        let configured = peer("[\"aes256gcm16\", \"aes256-sha256\"]");
        let offered = refusals.without_missing_ciphers(configured.clone(), |_| false);
        assert_eq!(*offered, *configured);
        assert_eq!(refusals.missing_ciphers(), ["AES_GCM_16-256".to_owned(), CBC.to_string()]);
    }
}
