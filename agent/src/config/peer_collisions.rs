//! Finds static peers that cannot be told apart when they connect.

use std::collections::{HashMap, HashSet};

use edge_ike::{Identity, canonical_identity};

use super::remote::RemoteHost;

/// What tells a peer apart from others when it connects.
pub(super) struct PeerEnds<'a> {
    pub(super) name: &'a str,
    pub(super) local_id: &'a Identity,
    pub(super) remote_id: &'a Identity,
    /// The peer's addresses in one form and its host names; empty if it may be anywhere.
    pub(super) hosts: Vec<RemoteHost>,
}

/// The peers before the current one that have the same identities at both ends.
#[derive(Default)]
struct SameIdentities<'a> {
    /// The name of the first of these peers.
    first: Option<&'a str>,
    /// The name of the peer without addresses, which could be at any of them.
    anywhere: Option<&'a str>,
    /// The name of the peer at each address or host name.
    at: HashMap<RemoteHost, &'a str>,
}

impl<'a> SameIdentities<'a> {
    /// Adds a peer. Returns the name of an earlier peer from which a request could also be, because
    /// no address distinguishes the two. In that case only the key of one of them would ever be
    /// used.
    fn add(&mut self, name: &'a str, hosts: Vec<RemoteHost>) -> Option<&'a str> {
        let same_host = hosts.iter().find_map(|host| self.at.get(host));
        let other = self.anywhere.or(same_host.copied()).or(self.first.filter(|_| hosts.is_empty()));
        self.first.get_or_insert(name);
        if hosts.is_empty() {
            self.anywhere = Some(name);
        }
        self.at.extend(hosts.into_iter().map(|host| (host, name)));
        other
    }
}

/// Fails if two peers have the same name, or if a request could be from either of two peers. Takes
/// one pass, since a file may have thousands of peers, and each command reads it.
pub(super) fn check_distinct<'a>(peers: impl Iterator<Item = PeerEnds<'a>>) -> Result<(), String> {
    let mut names = HashSet::new();
    let mut known: HashMap<(Identity, Identity), SameIdentities<'_>> = HashMap::new();
    for peer in peers {
        let PeerEnds { name, local_id, remote_id, hosts } = peer;
        if !names.insert(name) {
            return Err(format!("two [[peer]] have the name {name:?}; names must differ"));
        }
        let identities = (canonical_identity(remote_id), canonical_identity(local_id));
        if let Some(other) = known.entry(identities).or_default().add(name, hosts) {
            return Err(format!(
                "[[peer]] {other:?} and {name:?} cannot be told apart when they connect: both have remote_id {remote_id} and local_id {local_id}; \
                 give each an identity of its own (with strongSwan `id` in its section `local`), or each another address in `remote`"
            ));
        }
    }
    Ok(())
}
