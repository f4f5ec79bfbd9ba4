//! Remembers across restarts which internal addresses static peers have: those from a pool of this
//! node, and those that a peer gave this node. Without it, a restarted gateway gives the address of
//! one client to another one that happens to be quicker, and connections in the tunnels break.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use edge_ike::PeerName;

use crate::state_dir::{ChangeLog, make_private, read_json_with_changes};

/// Name of the file in the state directory.
const FILE: &str = "internal-addresses.json";

/// The internal addresses by peer: at most one of each family for each peer from the configuration
/// file.
#[derive(Debug)]
pub(super) struct InternalAddressStore {
    state_dir: PathBuf,
    log: ChangeLog,
    addresses: BTreeMap<String, Vec<IpAddr>>,
    /// The peer that had an address last.
    holders: HashMap<IpAddr, String>,
    /// Peers whose entry is not in the file as it is here.
    unsaved: BTreeSet<String>,
}

impl InternalAddressStore {
    /// Reads the file. If it is missing or damaged, peers get their addresses as at first.
    pub(super) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        match read_json_with_changes::<_, BTreeMap<String, Option<Vec<IpAddr>>>>(&path, "it is written again") {
            Ok(None) => {}
            Ok(Some((content, changes))) => {
                addresses = content;
                for (peer, changed) in changes.into_iter().flatten() {
                    match changed {
                        Some(changed) => addresses.insert(peer, changed),
                        None => addresses.remove(&peer),
                    };
                }
            }
            Err(error) => tracing::warn!("former addresses of peers are not known: {error}"),
        }
        let holders = addresses.iter().flat_map(|(peer, of)| of.iter().map(|address| (*address, peer.clone())));
        let (state_dir, holders) = (state_dir.to_owned(), holders.collect());
        Self { state_dir, log: ChangeLog::new(path), addresses, holders, unsaved: BTreeSet::new() }
    }

    /// Returns the addresses that a peer has or had.
    pub(super) fn of(&self, peer: &PeerName) -> &[IpAddr] {
        self.addresses.get(peer.as_str()).map(Vec::as_slice).unwrap_or_default()
    }

    /// Records the addresses of a peer. Another peer that had one of them before has it no longer.
    pub(super) fn record(&mut self, peer: &PeerName, addresses: &[IpAddr]) {
        if addresses.is_empty() || self.of(peer) == addresses {
            return;
        }
        self.forget(peer);
        for address in addresses {
            let Some(former) = self.holders.insert(*address, peer.as_str().to_owned()) else { continue };
            if let Some(left) = self.addresses.get_mut(&former) {
                left.retain(|other| other != address);
                self.unsaved.insert(former);
            }
        }
        self.addresses.insert(peer.as_str().to_owned(), addresses.to_vec());
        self.unsaved.insert(peer.as_str().to_owned());
    }

    /// Removes a peer that is no longer configured.
    pub(super) fn forget(&mut self, peer: &PeerName) {
        for address in self.addresses.remove(peer.as_str()).into_iter().flatten() {
            self.holders.remove(&address);
            self.unsaved.insert(peer.as_str().to_owned());
        }
    }

    /// Removes the peers that were removed from the configuration while the agent did not run.
    pub(super) fn retain(&mut self, is_configured: impl Fn(&PeerName) -> bool) {
        let names = self.addresses.keys().map(|peer| PeerName::new(peer));
        for gone in names.filter(|peer| !is_configured(peer)).collect::<Vec<_>>() {
            self.forget(&gone);
        }
    }

    /// Writes what has changed. Fails if the file cannot be written; in that case the next call
    /// writes all of it.
    pub(super) fn save(&mut self) -> io::Result<()> {
        if self.unsaved.is_empty() {
            return Ok(());
        }
        let changes: BTreeMap<&String, Option<&Vec<IpAddr>>> =
            self.unsaved.iter().map(|peer| (peer, self.addresses.get(peer))).collect();
        if !self.log.append(&serde_json::to_string(&changes)?).map_err(io::Error::other)? {
            make_private(&self.state_dir)?;
            self.log.replace(&serde_json::to_vec_pretty(&self.addresses)?).map_err(io::Error::other)?;
        }
        self.unsaved.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn peer(name: &str) -> PeerName {
        PeerName::new(name)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_of_an_earlier_run_are_known_and_an_address_has_one_holder() {
        let directory = tempfile::tempdir().unwrap();
        let mut run = InternalAddressStore::load(directory.path());
        assert!(run.of(&peer("a")).is_empty());
        run.record(&peer("a"), &[ip("10.9.0.1"), ip("fd09::1")]);
        run.record(&peer("b"), &[ip("10.9.0.2")]);
        run.save().unwrap();
        let mut run = InternalAddressStore::load(directory.path());
        assert_eq!(run.of(&peer("a")), [ip("10.9.0.1"), ip("fd09::1")]);
        // The pool is used up: c gets the address of a, which is away.
        run.record(&peer("c"), &[ip("10.9.0.1")]);
        run.record(&peer("b"), &[]);
        run.save().unwrap();
        let mut run = InternalAddressStore::load(directory.path());
        assert_eq!(run.of(&peer("a")), [ip("fd09::1")]);
        assert_eq!((run.of(&peer("b")), run.of(&peer("c"))), (&[ip("10.9.0.2")][..], &[ip("10.9.0.1")][..]));
        run.retain(|peer| peer.as_str() != "b");
        run.forget(&peer("c"));
        run.record(&peer("a"), &[ip("10.9.0.1"), ip("fd09::1")]);
        run.save().unwrap();
        let run = InternalAddressStore::load(directory.path());
        assert_eq!(run.of(&peer("a")), [ip("10.9.0.1"), ip("fd09::1")]);
        assert!(run.of(&peer("b")).is_empty() && run.of(&peer("c")).is_empty());
    }

    #[test]
    fn a_damaged_file_is_written_again_and_one_that_cannot_be_written_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{\"a\": [\"10.9.").unwrap();
        let mut run = InternalAddressStore::load(directory.path());
        assert!(run.of(&peer("a")).is_empty());
        let in_the_way = directory.path().join(format!("{FILE}.tmp"));
        fs::create_dir(&in_the_way).unwrap();
        run.record(&peer("a"), &[ip("10.9.0.1")]);
        run.save().unwrap_err();
        fs::remove_dir(&in_the_way).unwrap();
        run.save().unwrap();
        assert_eq!(InternalAddressStore::load(directory.path()).of(&peer("a")), [ip("10.9.0.1")]);
    }

    #[test]
    fn nodes_without_internal_addresses_have_no_file_and_one_client_of_ten_thousand_costs_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut run = InternalAddressStore::load(directory.path());
        run.record(&peer("moon"), &[]);
        run.forget(&peer("moon"));
        run.save().unwrap();
        assert!(!directory.path().join(FILE).exists());
        for index in 0..10_000_u32 {
            run.record(&peer(&format!("client-{index}")), &[IpAddr::V4((0x0a09_0000 + index).into())]);
        }
        run.save().unwrap();
        let whole = fs::read(directory.path().join(FILE)).unwrap();
        run.record(&peer("client-17"), &[ip("10.99.0.1")]);
        run.save().unwrap();
        assert_eq!(fs::read(directory.path().join(FILE)).unwrap(), whole, "the file is not written again");
        let run = InternalAddressStore::load(directory.path());
        assert_eq!(run.of(&peer("client-17")), [ip("10.99.0.1")]);
        assert_eq!(run.of(&peer("client-18")), [ip("10.9.0.18")]);
    }
}
