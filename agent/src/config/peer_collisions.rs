//! Finds static peers that cannot be told apart when they connect.

use std::collections::{HashMap, HashSet};

use edge_ike::{Identity, canonical_identity};

use super::peer::{PeerSection, RemoteHost};

/// The peers before the current one that have the same identities at both ends.
#[derive(Default)]
struct SameIdentities<'a> {
    /// The first of these peers.
    first: Option<&'a PeerSection>,
    /// The peer without addresses, which could be at any of them.
    anywhere: Option<&'a PeerSection>,
    /// The peer at each address or host name.
    at: HashMap<RemoteHost, &'a PeerSection>,
}

impl<'a> SameIdentities<'a> {
    /// Adds a peer. Returns an earlier peer from which a request could also be, because no address
    /// distinguishes the two. In that case only the key of one of them would ever be used.
    fn add(&mut self, peer: &'a PeerSection) -> Option<&'a PeerSection> {
        let hosts: Vec<RemoteHost> = peer.remote.iter().map(|remote| canonical_host(&remote.host)).collect();
        let same_host = hosts.iter().find_map(|host| self.at.get(host));
        let other = self.anywhere.or(same_host.copied()).or(self.first.filter(|_| hosts.is_empty()));
        self.first.get_or_insert(peer);
        if hosts.is_empty() {
            self.anywhere = Some(peer);
        }
        self.at.extend(hosts.into_iter().map(|host| (host, peer)));
        other
    }
}

/// Fails if two peers have the same name, or if a request could be from either of two peers. Takes
/// one pass, since a file may have thousands of peers, and each command reads it.
pub(super) fn check_distinct(peers: &[PeerSection]) -> Result<(), String> {
    let mut names = HashSet::new();
    let mut known: HashMap<(Identity, Identity), SameIdentities<'_>> = HashMap::new();
    for peer in peers {
        if !names.insert(peer.name.as_str()) {
            return Err(format!("two [[peer]] have the name {:?}; names must differ", peer.name));
        }
        let identities = (canonical_identity(&peer.remote_id), canonical_identity(&peer.local_id));
        if let Some(other) = known.entry(identities).or_default().add(peer) {
            return Err(format!(
                "[[peer]] {:?} and {:?} cannot be told apart when they connect: both have remote_id {} and local_id {}; \
                 give each an identity of its own (with strongSwan `id` in its section `local`), or each another address in `remote`",
                other.name, peer.name, peer.remote_id, peer.local_id
            ));
        }
    }
    Ok(())
}

/// Returns one form of an address.
pub(super) fn canonical_host(host: &RemoteHost) -> RemoteHost {
    match host {
        RemoteHost::Address(address) => RemoteHost::Address(address.to_canonical()),
        RemoteHost::Name(name) => RemoteHost::Name(name.clone()),
    }
}
