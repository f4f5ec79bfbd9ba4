//! Reqids of the peers. A peer keeps its reqid over rekeys, restarts and reboots, so that SAs of an
//! earlier run are recognised as the peer's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use edge_ike::PeerName;
use edge_xfrm::Reqid;
use edge_xfrm::reqid::TUNNELS;
use ring::digest::{SHA256, digest};

use crate::desired::PeerReqids;
use crate::state_dir::{make_private, replace_file};

/// Name of the file in the state directory.
const FILE: &str = "reqids.json";

/// The reqid of each peer, and the file that keeps them.
#[derive(Debug)]
pub(super) struct Reqids {
    path: PathBuf,
    numbers: BTreeMap<String, u32>,
    peers: HashMap<u32, PeerName>,
    hubs: HashSet<PeerName>,
}

impl Reqids {
    /// Reads the file. If it is missing or damaged, all reqids are assigned again. Most come out
    /// the same, since the first choice is a hash of the name.
    pub(super) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let numbers = match fs::read(&path).map(|text| serde_json::from_slice::<BTreeMap<String, u32>>(&text)) {
            Ok(Ok(numbers)) => numbers,
            Ok(Err(error)) => {
                tracing::warn!("{}: {error}; reqids are assigned again", path.display());
                BTreeMap::new()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::warn!("{}: cannot be read: {error}; reqids are assigned again", path.display());
                BTreeMap::new()
            }
        };
        let peers = numbers.iter().map(|(name, number)| (*number, PeerName::new(name))).collect();
        Self { path, numbers, peers, hubs: HashSet::new() }
    }

    /// The peer's reqid; `None` before [`Self::assign`].
    pub(super) fn of(&self, peer: &PeerName) -> Option<Reqid> {
        self.numbers.get(peer.as_str()).and_then(|number| Reqid::tunnel(*number))
    }

    /// The reqids of the peer's SAs and policies; `None` before [`Self::assign`].
    pub(super) fn of_sas(&self, peer: &PeerName) -> Option<PeerReqids> {
        let outbound = self.of(peer)?;
        let inbound = if self.hubs.contains(peer) { Reqid::FROM_HUBS } else { outbound };
        Some(PeerReqids { outbound, inbound })
    }

    /// Sets whether a peer is a hub. True: that changed.
    pub(super) fn set_hub(&mut self, peer: &PeerName, hub: bool) -> bool {
        if hub { self.hubs.insert(peer.clone()) } else { self.hubs.remove(peer) }
    }

    /// The peer with this reqid.
    pub(super) fn peer(&self, reqid: u32) -> Option<PeerName> {
        let number = Reqid::ours(reqid)?.tunnel_number()?;
        self.peers.get(&number).cloned()
    }

    /// Assigns a reqid to each peer, removes those of former peers, and writes the file. Fails if
    /// the file cannot be written; the reqids are in use all the same.
    pub(super) fn assign<'a>(&mut self, peers: impl Iterator<Item = &'a PeerName>) -> io::Result<()> {
        let peers: BTreeSet<&str> = peers.map(PeerName::as_str).collect();
        let mut changed = false;
        self.numbers.retain(|name, number| {
            let keep = peers.contains(name.as_str()) && *number < TUNNELS;
            if !keep {
                changed = true;
                // Only a damaged file gives two peers one number.
                if self.peers.get(number).is_some_and(|holder| holder.as_str() == name) {
                    self.peers.remove(number);
                }
            }
            keep
        });
        for name in peers {
            if !self.numbers.contains_key(name) {
                let mut number = first_choice(name);
                while self.peers.contains_key(&number) {
                    number = (number + 1) % TUNNELS;
                }
                self.numbers.insert(name.to_owned(), number);
                self.peers.insert(number, PeerName::new(name));
                changed = true;
            }
        }
        if changed { self.save() } else { Ok(()) }
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
        let directory = tempfile::tempdir().unwrap();
        let mut reqids = Reqids::load(directory.path());
        reqids.assign(names(&["a", "b"]).iter()).unwrap();
        let a = reqids.of(&PeerName::new("a")).unwrap();
        let mut reqids = Reqids::load(directory.path());
        assert_eq!(reqids.of(&PeerName::new("a")), Some(a));
        reqids.assign(names(&["a", "c"]).iter()).unwrap();
        assert_eq!(reqids.of(&PeerName::new("a")), Some(a));
        assert_eq!(reqids.of(&PeerName::new("b")), None);
        assert_eq!(reqids.peer(a.raw()), Some(PeerName::new("a")));
    }

    #[test]
    fn no_two_peers_share_a_reqid_even_if_their_first_choice_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let taken = first_choice("b");
        fs::write(directory.path().join(FILE), format!("{{\"a\": {taken}}}")).unwrap();
        let mut reqids = Reqids::load(directory.path());
        reqids.assign(names(&["a", "b"]).iter()).unwrap();
        assert_eq!(reqids.of(&PeerName::new("b")), Reqid::tunnel((taken + 1) % TUNNELS));
    }

    #[test]
    fn a_truncated_file_does_not_stop_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{\"a\":").unwrap();
        let mut reqids = Reqids::load(directory.path());
        reqids.assign(names(&["a"]).iter()).unwrap();
        assert!(reqids.of(&PeerName::new("a")).is_some());
    }
}
