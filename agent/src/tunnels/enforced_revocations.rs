//! Remembers which revocations of peers' certificates have been enforced, across restarts.
//!
//! A revocation is the start of the validity that a peer's certificate must have at least
//! (`certificates_from` in the view). When it rises, the endpoint ends the SAs of this run. Of SAs
//! of an earlier run only the time is known at which the kernel made them, by the system's clock.
//! On a device without a battery clock they may have been made before the clock was set, in 1970.
//! Such a time says nothing about a revocation that the earlier run had enforced already, so it is
//! compared only if this file does not show that.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use edge_ike::{Auth, PeerConfig, PeerName};

use crate::state_dir::{ChangeLog, make_private, read_json_with_changes};

/// Name of the file in the state directory.
const FILE: &str = "enforced-revocations.json";

/// The revocations that have been enforced: no SA of a peer was negotiated with a certificate that
/// is valid from an earlier time. Seconds since 1970-01-01 UTC. At most one entry for each peer.
#[derive(Debug)]
pub(super) struct EnforcedRevocations {
    state_dir: PathBuf,
    log: ChangeLog,
    from: BTreeMap<String, u64>,
    /// Peers whose entry is not in the file as it is here.
    unsaved: BTreeSet<String>,
}

impl EnforcedRevocations {
    /// Reads the file. If it is missing or damaged, no revocation counts as enforced.
    pub(super) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let mut from: BTreeMap<String, u64> = BTreeMap::new();
        match read_json_with_changes::<_, BTreeMap<String, Option<u64>>>(&path, "it is written again") {
            Ok(None) => {}
            Ok(Some((content, changes))) => {
                from = content;
                for (peer, enforced) in changes.into_iter().flatten() {
                    match enforced {
                        Some(enforced) => from.insert(peer, enforced),
                        None => from.remove(&peer),
                    };
                }
            }
            Err(error) => tracing::warn!("SAs of an earlier run are judged by their age alone: {error}"),
        }
        Self { state_dir: state_dir.to_owned(), log: ChangeLog::new(path), from, unsaved: BTreeSet::new() }
    }

    /// Returns whether no SA of the peer was negotiated with a certificate that is valid from a
    /// time before `from`.
    pub(super) fn is_enforced(&self, peer: &PeerName, from: u64) -> bool {
        self.from.get(peer.as_str()).is_some_and(|enforced| *enforced >= from)
    }

    /// Records that the endpoint and the table of SAs have enforced a revocation. The file is
    /// written by [`Self::save`], when the SAs are gone from the kernel.
    pub(super) fn enforced(&mut self, peer: &PeerName, from: u64) {
        // Nothing was ever revoked of a peer from the configuration file.
        if from > 0 && !self.is_enforced(peer, from) {
            self.from.insert(peer.as_str().to_owned(), from);
            self.unsaved.insert(peer.as_str().to_owned());
        }
    }

    /// Removes a former peer, whose SAs have been deleted.
    pub(super) fn forget(&mut self, peer: &PeerName) {
        if self.from.remove(peer.as_str()).is_some() {
            self.unsaved.insert(peer.as_str().to_owned());
        }
    }

    /// Writes what has changed. Fails if the file cannot be written; in that case the next call
    /// writes all of it.
    pub(super) fn save(&mut self) -> io::Result<()> {
        if self.unsaved.is_empty() {
            return Ok(());
        }
        let changes: BTreeMap<&String, Option<u64>> =
            self.unsaved.iter().map(|peer| (peer, self.from.get(peer).copied())).collect();
        if !self.log.append(&serde_json::to_string(&changes)?).map_err(io::Error::other)? {
            make_private(&self.state_dir)?;
            self.log.replace(&serde_json::to_vec_pretty(&self.from)?).map_err(io::Error::other)?;
        }
        self.unsaved.clear();
        Ok(())
    }
}

/// Returns the time from which the peer's certificates must be valid, in seconds since 1970-01-01
/// UTC; 0 if none was revoked.
pub(super) fn valid_from(peer: &PeerConfig) -> u64 {
    match &peer.auth {
        Auth::Certificate(auth) => auth.remote_not_before,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn peer(name: &str) -> PeerName {
        PeerName::new(name)
    }

    #[test]
    fn what_an_earlier_run_enforced_is_known_after_a_restart_and_a_later_revocation_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut run = EnforcedRevocations::load(directory.path());
        assert!(!run.is_enforced(&peer("a"), 1000), "nothing is known at first");
        run.enforced(&peer("a"), 1000);
        run.enforced(&peer("b"), 2000);
        run.save().unwrap();
        let mut run = EnforcedRevocations::load(directory.path());
        assert!(run.is_enforced(&peer("a"), 1000) && run.is_enforced(&peer("a"), 999));
        assert!(!run.is_enforced(&peer("a"), 1001), "revoked while the agent did not run");
        run.enforced(&peer("a"), 900);
        assert!(run.is_enforced(&peer("a"), 1000), "an older view takes nothing back");
        run.forget(&peer("a"));
        run.save().unwrap();
        let run = EnforcedRevocations::load(directory.path());
        assert!(!run.is_enforced(&peer("a"), 1) && run.is_enforced(&peer("b"), 2000));
    }

    #[test]
    fn what_was_not_saved_before_a_kill_does_not_count_as_enforced() {
        let directory = tempfile::tempdir().unwrap();
        let mut run = EnforcedRevocations::load(directory.path());
        run.enforced(&peer("a"), 1000);
        drop(run);
        assert!(!EnforcedRevocations::load(directory.path()).is_enforced(&peer("a"), 1000));
    }

    #[test]
    fn a_damaged_file_and_one_that_cannot_be_written_enforce_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{\"a\": 10").unwrap();
        let mut run = EnforcedRevocations::load(directory.path());
        assert!(!run.is_enforced(&peer("a"), 1));
        let in_the_way = directory.path().join(format!("{FILE}.tmp"));
        fs::create_dir(&in_the_way).unwrap();
        run.enforced(&peer("a"), 1000);
        run.save().unwrap_err();
        fs::remove_dir(&in_the_way).unwrap();
        run.enforced(&peer("b"), 1000);
        run.save().unwrap();
        let run = EnforcedRevocations::load(directory.path());
        assert!(run.is_enforced(&peer("a"), 1000) && run.is_enforced(&peer("b"), 1000));
    }

    #[test]
    fn a_peer_from_the_configuration_file_has_no_entry_and_one_among_ten_thousand_costs_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut run = EnforcedRevocations::load(directory.path());
        run.enforced(&peer("moon"), 0);
        run.save().unwrap();
        assert!(!directory.path().join(FILE).exists());
        for index in 0..10_000 {
            run.enforced(&peer(&format!("edge-{index:05}")), 1_800_000_000);
        }
        run.save().unwrap();
        let whole = fs::read(directory.path().join(FILE)).unwrap();
        run.enforced(&peer("edge-00017"), 1_800_000_001);
        run.save().unwrap();
        assert_eq!(fs::read(directory.path().join(FILE)).unwrap(), whole, "the file is not written again");
        let run = EnforcedRevocations::load(directory.path());
        assert!(run.is_enforced(&peer("edge-00017"), 1_800_000_001));
        assert!(!run.is_enforced(&peer("edge-00018"), 1_800_000_001));
    }
}
