//! Which reqid a peer has: the same over rekeys, restarts and reboots, so that SAs of a former run
//! are recognised as the peer's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use edge_ike::PeerName;
use edge_xfrm::Reqid;
use edge_xfrm::reqid::TUNNELS;
use ring::digest::{SHA256, digest};

use crate::state_dir::{make_private, replace_file};

/// Name of the file in the state directory.
const FILE: &str = "reqids.json";

/// Reqids by peer.
#[derive(Debug)]
pub(super) struct Reqids {
    path: PathBuf,
    numbers: BTreeMap<String, u32>,
}

impl Reqids {
    /// Reads the file; a missing or unreadable one is begun anew. Numbers begin at a hash of the
    /// name, so most survive that as well.
    pub(super) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let numbers = match fs::read(&path).map(|text| serde_json::from_slice::<BTreeMap<String, u32>>(&text)) {
            Ok(Ok(numbers)) => numbers,
            Ok(Err(error)) => {
                tracing::warn!("{}: {error}; numbers are given anew", path.display());
                BTreeMap::new()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::warn!("{}: cannot be read: {error}; numbers are given anew", path.display());
                BTreeMap::new()
            }
        };
        Self { path, numbers }
    }

    /// The peer's reqid, if it has one.
    pub(super) fn of(&self, peer: &PeerName) -> Option<Reqid> {
        self.numbers.get(peer.as_str()).and_then(|number| Reqid::tunnel(*number))
    }

    /// The peer that has a reqid.
    pub(super) fn peer(&self, reqid: u32) -> Option<PeerName> {
        let number = Reqid::ours(reqid)?.tunnel_number()?;
        self.numbers.iter().find(|(_, other)| **other == number).map(|(name, _)| PeerName::new(name))
    }

    /// Gives every peer a reqid, forgets those who are none any more, and keeps that on disk before
    /// anybody uses it.
    pub(super) fn assign<'a>(&mut self, peers: impl Iterator<Item = &'a PeerName>) -> io::Result<()> {
        let peers: BTreeSet<&str> = peers.map(PeerName::as_str).collect();
        let before = self.numbers.clone();
        self.numbers.retain(|name, number| peers.contains(name.as_str()) && *number < TUNNELS);
        let mut used: BTreeSet<u32> = self.numbers.values().copied().collect();
        for name in peers {
            if !self.numbers.contains_key(name) {
                let mut number = first_choice(name);
                while !used.insert(number) {
                    number = (number + 1) % TUNNELS;
                }
                self.numbers.insert(name.to_owned(), number);
            }
        }
        if self.numbers == before { Ok(()) } else { self.save() }
    }

    fn save(&self) -> io::Result<()> {
        make_private(self.path.parent().unwrap_or(Path::new(".")))?;
        replace_file(&self.path, &serde_json::to_vec_pretty(&self.numbers)?, 0o600).map_err(io::Error::other)
    }
}

fn first_choice(name: &str) -> u32 {
    let hash = digest(&SHA256, name.as_bytes());
    let bytes = hash.as_ref().first_chunk::<4>().copied().unwrap_or_default();
    u32::from_be_bytes(bytes) % TUNNELS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<PeerName> {
        texts.iter().map(|text| PeerName::new(text)).collect()
    }

    #[test]
    fn a_peer_keeps_its_reqid_over_restarts_and_changes_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut reqids = Reqids::load(folder.path());
        reqids.assign(names(&["a", "b"]).iter()).unwrap();
        let a = reqids.of(&PeerName::new("a")).unwrap();
        let mut reqids = Reqids::load(folder.path());
        assert_eq!(reqids.of(&PeerName::new("a")), Some(a));
        reqids.assign(names(&["a", "c"]).iter()).unwrap();
        assert_eq!(reqids.of(&PeerName::new("a")), Some(a));
        assert_eq!(reqids.of(&PeerName::new("b")), None);
        assert_eq!(reqids.peer(a.raw()), Some(PeerName::new("a")));
    }

    #[test]
    fn no_two_peers_share_a_reqid_even_if_their_names_begin_at_the_same_number() {
        let folder = tempfile::tempdir().unwrap();
        let taken = first_choice("b");
        fs::write(folder.path().join(FILE), format!("{{\"a\": {taken}}}")).unwrap();
        let mut reqids = Reqids::load(folder.path());
        reqids.assign(names(&["a", "b"]).iter()).unwrap();
        assert_eq!(reqids.of(&PeerName::new("b")), Reqid::tunnel((taken + 1) % TUNNELS));
    }

    #[test]
    fn a_truncated_file_is_no_reason_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{\"a\":").unwrap();
        let mut reqids = Reqids::load(folder.path());
        reqids.assign(names(&["a"]).iter()).unwrap();
        assert!(reqids.of(&PeerName::new("a")).is_some());
    }
}
