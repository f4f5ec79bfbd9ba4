//! Finds peers by their addresses and identities, so that neither IKE_SA_INIT nor IKE_AUTH has to
//! search all peers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::auth::canonical_identity;
use crate::childless::Childless;
use crate::config::{Identity, IkeProposal, PeerName};
use crate::sa::Profile;
use crate::wire::{CertificateEncoding, CertificateRequest};

/// Maximum number of trust anchors in a CERTREQ, which is only a hint (RFC 7296 3.7). With all of
/// them the response to a small request of any host would be large, and would need fragments.
const MAX_AUTHORITIES: usize = 20;
/// Length of the hash of a trust anchor in CERTREQ, bytes (SHA-1, RFC 7296 3.7).
const AUTHORITY_LEN: usize = 20;

/// The configured peers, indexed by the values that an initiator sends first.
#[derive(Debug, Default)]
pub(super) struct PeerIndex {
    all: InitTerms,
    by_address: HashMap<IpAddr, InitTerms>,
    by_identity: HashMap<Identity, BTreeSet<PeerName>>,
}

/// The settings for IKE_SA_INIT from a peer that is not known yet: the union of the settings of
/// several peers. Each setting is counted, so that it is removed together with the last peer that
/// has it.
#[derive(Debug, Default)]
struct InitTerms {
    peers: BTreeSet<PeerName>,
    proposals: Vec<(IkeProposal, usize)>,
    authorities: BTreeMap<Vec<u8>, usize>,
    force_encapsulation: usize,
    /// The number of peers with which IKE_AUTH must create a CHILD_SA.
    never_childless: usize,
}

impl PeerIndex {
    /// Adds a configured peer.
    pub(super) fn add(&mut self, profile: &Profile) {
        self.all.add(profile);
        for address in addresses(profile) {
            self.by_address.entry(address).or_default().add(profile);
        }
        let names = self.by_identity.entry(canonical_identity(&profile.config.remote_id)).or_default();
        names.insert(profile.config.name.clone());
    }

    /// Removes what [`Self::add`] added.
    pub(super) fn remove(&mut self, profile: &Profile) {
        self.all.remove(profile);
        for address in addresses(profile) {
            if let Some(terms) = self.by_address.get_mut(&address) {
                terms.remove(profile);
                if terms.peers.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
        let identity = canonical_identity(&profile.config.remote_id);
        if let Some(names) = self.by_identity.get_mut(&identity) {
            names.remove(&profile.config.name);
            if names.is_empty() {
                self.by_identity.remove(&identity);
            }
        }
    }

    /// Returns the settings for IKE_SA_INIT from this address.
    pub(super) fn init_terms(&self, from: IpAddr) -> TermsOfAddress<'_> {
        TermsOfAddress { here: self.by_address.get(&from.to_canonical()), all: &self.all }
    }

    /// Returns the peers with this address.
    pub(super) fn at_address(&self, address: IpAddr) -> impl Iterator<Item = &PeerName> {
        self.by_address.get(&address.to_canonical()).into_iter().flat_map(|terms| &terms.peers)
    }

    /// Returns the peers with this identity.
    pub(super) fn with_identity(&self, identity: &Identity) -> impl Iterator<Item = &PeerName> {
        self.by_identity.get(&canonical_identity(identity)).into_iter().flatten()
    }
}

/// The settings for IKE_SA_INIT from one address.
#[derive(Debug, Clone, Copy)]
pub(super) struct TermsOfAddress<'a> {
    /// Those of the peers with this address, if there are any.
    here: Option<&'a InitTerms>,
    /// Those of all peers, since a peer may use any address.
    all: &'a InitTerms,
}

impl<'a> TermsOfAddress<'a> {
    /// Returns the proposals, best first: those of the peers with this address, then all others.
    pub(super) fn proposals(self) -> Vec<&'a IkeProposal> {
        let mut proposals: Vec<&IkeProposal> =
            self.here.into_iter().flat_map(|terms| &terms.proposals).map(|(proposal, _)| proposal).collect();
        for (proposal, _) in &self.all.proposals {
            if !proposals.contains(&proposal) {
                proposals.push(proposal);
            }
        }
        proposals
    }

    /// Returns trust anchors as one CERTREQ: at most [`MAX_AUTHORITIES`], first those of the peers
    /// with this address. Returns `None` if no peer has a trust anchor.
    pub(super) fn certificate_request(self) -> Option<CertificateRequest> {
        let here = self.here.map(|terms| &terms.authorities);
        let here: Vec<&Vec<u8>> = here.into_iter().flat_map(BTreeMap::keys).take(MAX_AUTHORITIES).collect();
        let others = self.all.authorities.keys().filter(|hash| !here.contains(hash));
        let hashes: Vec<&Vec<u8>> = here.iter().copied().chain(others).take(MAX_AUTHORITIES).collect();
        let authorities: Vec<u8> = hashes.into_iter().flatten().copied().collect();
        let encoding = CertificateEncoding::X509Signature;
        (!authorities.is_empty()).then_some(CertificateRequest { encoding, authorities })
    }

    /// Returns whether the configuration of a peer with this address forces NAT detection. If no
    /// peer has this address, returns whether the configuration of any peer forces it.
    pub(super) fn force_encapsulation(self) -> bool {
        self.here.unwrap_or(self.all).force_encapsulation > 0
    }

    /// Returns whether every peer with this address may leave out the CHILD_SA of IKE_AUTH. If no
    /// peer has this address, returns whether every peer may.
    pub(super) fn allows_childless(self) -> bool {
        self.here.unwrap_or(self.all).never_childless == 0
    }
}

impl InitTerms {
    fn add(&mut self, profile: &Profile) {
        self.peers.insert(profile.config.name.clone());
        for proposal in &profile.config.ike_proposals {
            count(&mut self.proposals, proposal);
        }
        for hash in authorities(profile) {
            let times = self.authorities.entry(hash).or_default();
            *times = times.saturating_add(1);
        }
        let forces = usize::from(profile.config.force_encapsulation);
        self.force_encapsulation = self.force_encapsulation.saturating_add(forces);
        let never = usize::from(profile.config.childless == Childless::Never);
        self.never_childless = self.never_childless.saturating_add(never);
    }

    fn remove(&mut self, profile: &Profile) {
        self.peers.remove(&profile.config.name);
        for proposal in &profile.config.ike_proposals {
            discount(&mut self.proposals, proposal);
        }
        for hash in authorities(profile) {
            if let Some(times) = self.authorities.get_mut(&hash) {
                *times = times.saturating_sub(1);
                if *times == 0 {
                    self.authorities.remove(&hash);
                }
            }
        }
        let forces = usize::from(profile.config.force_encapsulation);
        self.force_encapsulation = self.force_encapsulation.saturating_sub(forces);
        let never = usize::from(profile.config.childless == Childless::Never);
        self.never_childless = self.never_childless.saturating_sub(never);
    }
}

/// Returns the distinct hashes of a peer's trust anchors.
fn authorities(profile: &Profile) -> BTreeSet<Vec<u8>> {
    let request = profile.auth.certificate_request();
    let hashes = request.iter().flat_map(|request| request.authorities.chunks(AUTHORITY_LEN));
    hashes.map(<[u8]>::to_vec).collect()
}

/// Returns the distinct addresses of a peer.
fn addresses(profile: &Profile) -> BTreeSet<IpAddr> {
    profile.config.remotes.iter().map(|remote| remote.ip().to_canonical()).collect()
}

fn count<T: PartialEq + Clone>(counted: &mut Vec<(T, usize)>, item: &T) {
    match counted.iter_mut().find(|(other, _)| other == item) {
        Some((_, times)) => *times = times.saturating_add(1),
        None => counted.push((item.clone(), 1)),
    }
}

fn discount<T: PartialEq>(counted: &mut Vec<(T, usize)>, item: &T) {
    if let Some((_, times)) = counted.iter_mut().find(|(other, _)| other == item) {
        *times = times.saturating_sub(1);
    }
    counted.retain(|(_, times)| *times > 0);
}
