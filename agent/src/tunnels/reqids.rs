//! Assigns reqids to the peers' CHILD_SAs, one for each purpose. A purpose keeps its reqid across
//! rekeys, restarts and reboots, so that the peer of an SA from an earlier run can be determined.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_ike::{ChildName, Instant, PeerName, Purpose};
use edge_xfrm::Reqid;
use edge_xfrm::reqid::TUNNELS;
use ring::digest::{SHA256, digest};

use crate::config::DEFAULT_CHILD;
use crate::desired::PeerReqids;
use crate::state_dir::{ChangeLog, make_private, read_json_with_changes};

/// Name of the file in the state directory.
const FILE: &str = "reqids.json";

/// Time for which a change that may wait is joined with further ones before the file is written:
/// a change of parts, since the peer chooses them and should not be able to cause a write to disk
/// with every choice, and the release of a former peer's reqids, which may as well happen after a
/// restart.
const UNSAVED: Duration = Duration::from_secs(1);

/// The reqids of each peer, and the file that stores them.
#[derive(Debug)]
pub(super) struct Reqids {
    state_dir: PathBuf,
    /// Writes the file. Each change is an object with the assigned reqids, and `null` for released
    /// ones.
    log: ChangeLog,
    /// Reqids by [`key`].
    numbers: BTreeMap<String, u32>,
    /// Reqids of parts of configured children. The peer determines which parts exist, so their
    /// number is limited as in `SaTable`.
    parts: HashMap<PeerName, BTreeMap<Purpose, u32>>,
    /// Changes that are not in the file yet, in the form that is written to the file. They are
    /// about parts and about former peers, so there are at most as many as reqids.
    unsaved: BTreeMap<String, Option<u32>>,
    /// The time of the oldest change that is not in the file.
    unsaved_since: Option<Instant>,
    peers: HashMap<u32, PeerName>,
    hubs: HashSet<PeerName>,
}

impl Reqids {
    /// Reads the file. If it is missing or damaged, all reqids are assigned again. Most reqids stay
    /// the same, since the first choice for each is a hash of the name.
    pub(super) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let mut numbers = match read_json_with_changes(&path, "it is written again") {
            Ok(None) => BTreeMap::new(),
            Ok(Some((numbers, changes))) => with_changes(numbers, changes),
            Err(error) => {
                tracing::warn!("reqids are assigned again: {error}");
                BTreeMap::new()
            }
        };
        let of_parts: Vec<(String, u32)> = numbers.extract_if(.., |key, _| part_of_key(key).is_some()).collect();
        let mut peers: HashMap<u32, PeerName> =
            numbers.iter().map(|(key, number)| (*number, PeerName::new(peer_of_key(key)))).collect();
        let mut parts: HashMap<PeerName, BTreeMap<Purpose, u32>> = HashMap::new();
        for (key, number) in of_parts {
            // Only a damaged file contains the same number twice, or a number that is out of range.
            let Some((peer, purpose)) = part_of_key(&key).filter(|_| number < TUNNELS && !peers.contains_key(&number))
            else {
                continue;
            };
            peers.insert(number, peer.clone());
            parts.entry(peer).or_default().insert(purpose, number);
        }
        Self {
            state_dir: state_dir.to_owned(),
            log: ChangeLog::new(path),
            numbers,
            parts,
            unsaved: BTreeMap::new(),
            unsaved_since: None,
            peers,
            hubs: HashSet::new(),
        }
    }

    /// Returns a reqid of the peer; `None` before [`Self::assign`].
    pub(super) fn any_of(&self, peer: &PeerName) -> Option<Reqid> {
        self.of_configuration(peer).next()
    }

    /// Returns the reqids of the peer's configured children.
    fn of_configuration(&self, peer: &PeerName) -> impl Iterator<Item = Reqid> {
        self.entries(peer).filter_map(|(_, number)| Reqid::tunnel(*number))
    }

    fn entries(&self, peer: &PeerName) -> impl Iterator<Item = (&String, &u32)> {
        // A line break sorts before every letter of a name, so the peer's keys are adjacent.
        let from = self.numbers.range(peer.as_str().to_owned()..);
        from.take_while(|(key, _)| peer_of_key(key) == peer.as_str())
    }

    fn keys(&self, peer: &PeerName) -> Vec<String> {
        self.entries(peer).map(|(key, _)| key.clone()).collect()
    }

    /// Returns all reqids of the peer.
    pub(super) fn all_of(&self, peer: &PeerName) -> Vec<Reqid> {
        let parts = self.parts.get(peer).into_iter().flat_map(BTreeMap::values);
        self.of_configuration(peer).chain(parts.filter_map(|number| Reqid::tunnel(*number))).collect()
    }

    /// Returns the reqid of the peer's CHILD_SAs of this purpose; `None` before [`Self::assign`]
    /// and, for a part, before [`Self::assign_part`].
    pub(super) fn of_purpose(&self, peer: &PeerName, purpose: &Purpose) -> Option<Reqid> {
        let number = match purpose.part {
            None => self.numbers.get(&key(peer, &purpose.child)),
            Some(_) => self.parts.get(peer).and_then(|parts| parts.get(purpose)),
        };
        number.and_then(|number| Reqid::tunnel(*number))
    }

    /// Returns the purposes of a configured child of the peer that have a reqid: the whole child
    /// and its parts.
    pub(super) fn of_child(&self, peer: &PeerName, child: &ChildName) -> Vec<(Purpose, Reqid)> {
        let whole = Purpose::whole(child);
        let whole = self.of_purpose(peer, &whole).map(|reqid| (whole, reqid));
        let parts = self.parts.get(peer).into_iter().flatten().filter(|(purpose, _)| purpose.child == *child);
        let parts = parts.filter_map(|(purpose, number)| Some((purpose.clone(), Reqid::tunnel(*number)?)));
        whole.into_iter().chain(parts).collect()
    }

    /// Assigns a reqid to the part of a configured child, if it has none.
    pub(super) fn assign_part(&mut self, peer: &PeerName, purpose: &Purpose, now: Instant) {
        if purpose.part.is_none() || self.of_purpose(peer, purpose).is_some() {
            return;
        }
        let name = part_key(peer, purpose);
        let number = self.free(&name);
        self.parts.entry(peer.clone()).or_default().insert(purpose.clone(), number);
        self.unsaved.insert(name, Some(number));
        self.peers.insert(number, peer.clone());
        self.unsaved_since.get_or_insert(now);
    }

    /// Releases the reqids of the parts that are not among `purposes`.
    pub(super) fn retain_parts(&mut self, peer: &PeerName, purposes: &[Purpose], now: Instant) {
        let ended = self.end_parts(peer, |purpose| !purposes.contains(purpose));
        if !ended.is_empty() {
            self.unsaved.extend(ended);
            self.unsaved_since.get_or_insert(now);
        }
    }

    /// Releases the reqids of these parts of the peer. Returns the change to the file.
    fn end_parts(&mut self, peer: &PeerName, ends: impl Fn(&Purpose) -> bool) -> Vec<(String, Option<u32>)> {
        let Some(parts) = self.parts.get_mut(peer) else { return vec![] };
        let ended: Vec<(Purpose, u32)> = parts.extract_if(.., |purpose, _| ends(purpose)).collect();
        if parts.is_empty() {
            self.parts.remove(peer);
        }
        let change = |(purpose, number)| {
            self.peers.remove(&number);
            (part_key(peer, &purpose), None)
        };
        ended.into_iter().map(change).collect()
    }

    /// Returns the time at which [`Self::save_due_changes`] has changes to write.
    pub(super) fn save_due(&self) -> Option<Instant> {
        self.unsaved_since.map(|since| since + UNSAVED)
    }

    /// Writes the changes that are due at `now`. Fails if the file cannot be written. In that case
    /// the reqids are used nevertheless, and the next change causes another attempt.
    pub(super) fn save_due_changes(&mut self, now: Instant) -> io::Result<()> {
        if self.save_due().is_none_or(|due| due > now) {
            return Ok(());
        }
        self.save_changes()
    }

    fn free(&self, name: &str) -> u32 {
        let mut number = first_choice(name);
        while self.peers.contains_key(&number) {
            number = (number + 1) % TUNNELS;
        }
        number
    }

    /// Returns the reqids of the peer's SAs and policies of this purpose; `None` in the same cases
    /// as [`Self::of_purpose`].
    pub(super) fn of_sas(&self, peer: &PeerName, purpose: &Purpose) -> Option<PeerReqids> {
        let outbound = self.of_purpose(peer, purpose)?;
        let inbound = if self.hubs.contains(peer) { Reqid::FROM_HUBS } else { outbound };
        Some(PeerReqids { outbound, inbound })
    }

    /// Sets whether a peer is a hub. Returns `true` if this is a change.
    pub(super) fn set_hub(&mut self, peer: &PeerName, hub: bool) -> bool {
        if hub { self.hubs.insert(peer.clone()) } else { self.hubs.remove(peer) }
    }

    /// Returns the peer with this reqid.
    pub(super) fn peer(&self, reqid: u32) -> Option<PeerName> {
        let number = Reqid::ours(reqid)?.tunnel_number()?;
        self.peers.get(&number).cloned()
    }

    /// Assigns a reqid to each child of each peer, removes the reqids of former children and peers,
    /// and writes the file. Fails if the file cannot be written. In that case the reqids are used
    /// nevertheless.
    pub(super) fn assign<'a>(
        &mut self,
        children: impl Iterator<Item = (&'a PeerName, &'a ChildName)>,
    ) -> io::Result<()> {
        let keys: BTreeMap<String, &PeerName> = children.map(|(peer, child)| (key(peer, child), peer)).collect();
        let mut changed = false;
        for peer in self.parts.keys().cloned().collect::<Vec<_>>() {
            changed |= !self.end_parts(&peer, |purpose| !keys.contains_key(&key(&peer, &purpose.child))).is_empty();
        }
        self.numbers.retain(|name, number| {
            let keep = keys.contains_key(name) && *number < TUNNELS;
            if !keep {
                changed = true;
                // Only a damaged file gives two peers the same number.
                if self.peers.get(number).is_some_and(|holder| holder.as_str() == peer_of_key(name)) {
                    self.peers.remove(number);
                }
            }
            keep
        });
        for (name, peer) in keys {
            if !self.numbers.contains_key(&name) {
                let number = self.free(&name);
                self.numbers.insert(name, number);
                self.peers.insert(number, peer.clone());
                changed = true;
            }
        }
        if changed { self.save() } else { Ok(()) }
    }

    /// Assigns reqids as [`Self::assign`] does, but only to those of `children` that have none.
    /// Removes the reqids of the peers in `gone`, from the file with the next change or after a
    /// second. The cost does not depend on the number of other peers.
    pub(super) fn assign_changes<'a>(
        &mut self,
        children: impl Iterator<Item = (&'a PeerName, &'a ChildName)>,
        gone: &[PeerName],
        now: Instant,
    ) -> io::Result<()> {
        let mut released: Vec<(String, Option<u32>)> = Vec::new();
        for peer in gone {
            for name in self.keys(peer) {
                if let Some(number) = self.numbers.remove(&name)
                    && self.peers.get(&number) == Some(peer)
                {
                    self.peers.remove(&number);
                }
                released.push((name, None));
            }
            released.extend(self.end_parts(peer, |_| true));
        }
        if !released.is_empty() {
            self.unsaved.extend(released);
            self.unsaved_since.get_or_insert(now);
        }
        let mut assigned = false;
        for (peer, child) in children {
            let name = key(peer, child);
            if self.numbers.get(&name).is_none_or(|number| *number >= TUNNELS) {
                let number = self.free(&name);
                self.numbers.insert(name.clone(), number);
                self.peers.insert(number, peer.clone());
                self.unsaved.insert(name, Some(number));
                assigned = true;
            }
        }
        // The SAs of a new peer must be found after a restart.
        if assigned { self.save_changes() } else { Ok(()) }
    }

    fn save_changes(&mut self) -> io::Result<()> {
        self.unsaved_since = None;
        // If these changes cannot be written, the next attempt writes the whole file.
        let changes = std::mem::take(&mut self.unsaved);
        if changes.is_empty() {
            return Ok(());
        }
        let appended = self.log.append(&serde_json::to_string(&changes)?);
        if appended.map_err(io::Error::other)? { Ok(()) } else { self.save() }
    }

    fn save(&mut self) -> io::Result<()> {
        let parts = self
            .parts
            .iter()
            .flat_map(|(peer, parts)| parts.iter().map(|(purpose, number)| (part_key(peer, purpose), *number)));
        let all: BTreeMap<String, u32> = self.numbers.clone().into_iter().chain(parts).collect();
        make_private(&self.state_dir)?;
        self.log.replace(&serde_json::to_vec_pretty(&all)?).map_err(io::Error::other)?;
        self.unsaved.clear();
        self.unsaved_since = None;
        Ok(())
    }
}

/// Returns the content of the file with these changes applied.
fn with_changes(
    mut numbers: BTreeMap<String, u32>,
    changes: Vec<BTreeMap<String, Option<u32>>>,
) -> BTreeMap<String, u32> {
    for (name, number) in changes.into_iter().flatten() {
        match number {
            Some(number) => numbers.insert(name, number),
            None => numbers.remove(&name),
        };
    }
    numbers
}

/// Returns the key of a configured child in the file: the peer's name, followed by a line break and
/// the child's name, unless the child is the only one. Peer names contain no line break.
fn key(peer: &PeerName, child: &ChildName) -> String {
    match child.as_str() {
        DEFAULT_CHILD => peer.as_str().to_owned(),
        child => format!("{}\n{child}", peer.as_str()),
    }
}

/// Returns the key of a part in the file: the peer's name, a line break, and the part in the form
/// of [`Purpose`]. Child names contain no bracket.
fn part_key(peer: &PeerName, purpose: &Purpose) -> String {
    format!("{}\n{purpose}", peer.as_str())
}

/// Returns the peer and the part with this key; `None` if it is not the key of a part.
fn part_of_key(key: &str) -> Option<(PeerName, Purpose)> {
    let (peer, purpose) = key.split_once('\n')?;
    let purpose: Purpose = purpose.parse().ok()?;
    purpose.part.as_ref()?;
    Some((PeerName::new(peer), purpose))
}

fn peer_of_key(key: &str) -> &str {
    key.split('\n').next().unwrap_or_default()
}

fn first_choice(name: &str) -> u32 {
    let hash = digest(&SHA256, name.as_bytes());
    let bytes = hash.as_ref().first_chunk::<4>().copied().unwrap_or_default();
    u32::from_be_bytes(bytes) % TUNNELS
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(texts: &[&str]) -> Vec<PeerName> {
        texts.iter().map(|text| PeerName::new(text)).collect()
    }

    fn of(reqids: &Reqids, peer: &str) -> Option<Reqid> {
        reqids.of_purpose(&PeerName::new(peer), &Purpose::whole(&ChildName::new(DEFAULT_CHILD)))
    }

    fn assign(reqids: &mut Reqids, peers: &[PeerName]) -> io::Result<()> {
        let child = ChildName::new(DEFAULT_CHILD);
        reqids.assign(peers.iter().map(|peer| (peer, &child)))
    }

    #[test]
    fn each_child_of_a_peer_has_its_reqid_and_so_has_each_part_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (moon, children) = (PeerName::new("moon"), ["net", "voice"].map(ChildName::new));
        let mut reqids = Reqids::load(directory.path());
        reqids.assign(children.iter().map(|child| (&moon, child))).unwrap();
        let [net, voice] = children.each_ref().map(Purpose::whole);
        let part: Purpose = "voice[10.1.0.0/24=10.2.0.0/24]".parse().unwrap();
        assert_eq!(reqids.of_purpose(&moon, &part), None);
        let at = |seconds| Instant::new(Duration::from_secs(seconds));
        reqids.assign_part(&moon, &part, at(10));
        let all = [&net, &voice, &part].map(|purpose| reqids.of_purpose(&moon, purpose).unwrap());
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
        assert!(all.iter().all(|reqid| reqids.peer(reqid.raw()) == Some(moon.clone())));
        assert_eq!(reqids.all_of(&moon).len(), 3);
        let known = Reqids::load(directory.path());
        assert_eq!([&net, &voice].map(|purpose| known.of_purpose(&moon, purpose)), [Some(all[0]), Some(all[1])]);
        assert_eq!(known.of_purpose(&moon, &part), None, "it is not written at once");
        reqids.save_due_changes(at(10)).unwrap();
        assert_eq!(reqids.save_due(), Some(at(11)));
        reqids.save_due_changes(at(11)).unwrap();
        assert_eq!(reqids.save_due(), None);
        let mut known = Reqids::load(directory.path());
        let voices = known.of_child(&moon, &children[1]);
        assert_eq!(voices, [(voice.clone(), all[1]), (part.clone(), all[2])]);
        assert_eq!(known.peer(all[2].raw()), Some(moon.clone()));
        // The part's child is no longer configured.
        known.assign([(&moon, &children[0])].into_iter()).unwrap();
        assert_eq!((known.of_purpose(&moon, &part), known.peer(all[2].raw())), (None, None));
        assert_eq!(Reqids::load(directory.path()).of_purpose(&moon, &part), None);
        reqids.retain_parts(&moon, &[], at(12));
        assert_eq!((reqids.of_purpose(&moon, &part), reqids.peer(all[2].raw())), (None, None));
        assert_eq!(reqids.save_due(), Some(at(13)));
    }

    #[test]
    fn parts_in_a_damaged_file_take_no_number_of_another_and_none_out_of_range() {
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "{{\"a\": 7, \"a\\nnet[10.1.0.0/24=10.2.0.0/24]\": 7, \"b\\nnet[10.1.0.0/24=10.2.0.0/24]\": {TUNNELS}, \"c\\nnet[x=y]\": 9}}"
        );
        fs::write(directory.path().join(FILE), text).unwrap();
        let mut reqids = Reqids::load(directory.path());
        assign(&mut reqids, &names(&["a", "b", "c"])).unwrap();
        let part: Purpose = "net[10.1.0.0/24=10.2.0.0/24]".parse().unwrap();
        for peer in names(&["a", "b", "c"]) {
            assert_eq!(reqids.of_purpose(&peer, &part), None);
            assert_eq!(reqids.all_of(&peer).len(), 1, "{peer}");
        }
        assert_eq!(of(&reqids, "a"), Reqid::tunnel(7));
    }

    #[test]
    fn a_peer_keeps_its_reqid_over_restarts_and_changes_around_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut reqids = Reqids::load(directory.path());
        assign(&mut reqids, &names(&["a", "b"])).unwrap();
        let a = of(&reqids, "a").unwrap();
        let mut reqids = Reqids::load(directory.path());
        assert_eq!(of(&reqids, "a"), Some(a));
        assign(&mut reqids, &names(&["a", "c"])).unwrap();
        assert_eq!(of(&reqids, "a"), Some(a));
        assert_eq!(of(&reqids, "b"), None);
        assert_eq!(reqids.peer(a.raw()), Some(PeerName::new("a")));
    }

    #[test]
    fn no_two_peers_share_a_reqid_even_if_their_first_choice_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let taken = first_choice("b");
        fs::write(directory.path().join(FILE), format!("{{\"a\": {taken}}}")).unwrap();
        let mut reqids = Reqids::load(directory.path());
        assign(&mut reqids, &names(&["a", "b"])).unwrap();
        assert_eq!(of(&reqids, "b"), Reqid::tunnel((taken + 1) % TUNNELS));
    }

    #[test]
    fn while_the_file_cannot_be_written_changes_do_not_pile_up_and_the_next_write_has_all() {
        let directory = tempfile::tempdir().unwrap();
        let mut reqids = Reqids::load(directory.path());
        assign(&mut reqids, &names(&["a"])).unwrap();
        let in_the_way = directory.path().join(format!("{FILE}.tmp"));
        fs::create_dir(&in_the_way).unwrap();
        let peer = PeerName::new("a");
        let parts: Vec<Purpose> =
            (0..100).map(|n| format!("net[10.1.{n}.0/24=10.2.0.0/24]").parse().unwrap()).collect();
        let at = |seconds| Instant::new(Duration::from_secs(seconds));
        for (seconds, part) in (0..).step_by(2).zip(&parts) {
            reqids.assign_part(&peer, part, at(seconds));
            assert!(reqids.save_due_changes(at(seconds + 1)).is_err());
            assert!(reqids.unsaved.is_empty());
        }
        fs::remove_dir(&in_the_way).unwrap();
        reqids.retain_parts(&peer, &parts[1..], at(1000));
        reqids.save_due_changes(at(1001)).unwrap();
        let known = Reqids::load(directory.path());
        assert_eq!(known.of_purpose(&peer, &parts[0]), None);
        assert_eq!(known.all_of(&peer).len(), parts.len());
    }

    #[test]
    fn a_truncated_file_does_not_stop_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{\"a\":").unwrap();
        let mut reqids = Reqids::load(directory.path());
        assign(&mut reqids, &names(&["a"])).unwrap();
        assert!(of(&reqids, "a").is_some());
    }

    #[test]
    fn a_peer_that_joins_ten_thousand_others_costs_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let many: Vec<PeerName> = (0..10_000).map(|index| PeerName::new(&format!("edge-{index:05}"))).collect();
        let (child, new) = (ChildName::new(DEFAULT_CHILD), PeerName::new("new"));
        let mut reqids = Reqids::load(directory.path());
        assign(&mut reqids, &many).unwrap();
        let whole = fs::read(&path).unwrap();
        let now = Instant::default();
        reqids.assign_changes([(&new, &child)].into_iter(), &many[17..18], now).unwrap();
        reqids.assign_changes([(&many[3], &child)].into_iter(), &[], now).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole, "the file is not written again");
        let changes = fs::read_to_string(directory.path().join(format!("{FILE}.changes"))).unwrap();
        let number = of(&reqids, "new").unwrap().tunnel_number().unwrap();
        assert_eq!(
            changes.lines().skip(1).collect::<Vec<_>>(),
            [format!("{{\"edge-00017\":null,\"new\":{number}}}")],
            "a peer that has its reqid costs nothing"
        );
        let known = Reqids::load(directory.path());
        assert_eq!((of(&known, "edge-00017"), known.numbers.len()), (None, 10_000));
        for peer in ["new", "edge-00003", "edge-09999"] {
            assert_eq!(of(&known, peer), of(&reqids, peer), "{peer}");
        }
        // A damaged line and the lines after it are ignored.
        let damaged = format!("{}\n{{\"edge-00001\":null}}\n", changes.trim_end().trim_end_matches('}'));
        fs::write(directory.path().join(format!("{FILE}.changes")), damaged).unwrap();
        let known = Reqids::load(directory.path());
        assert!(
            of(&known, "edge-00017").is_some() && of(&known, "new").is_none() && of(&known, "edge-00001").is_some()
        );
    }

    #[test]
    fn a_peer_that_leaves_gives_back_the_reqids_of_its_children_and_of_no_other_peer() {
        let directory = tempfile::tempdir().unwrap();
        let children = ["net", "voice"].map(ChildName::new);
        let [moon, moons] = ["moon", "moon-2"].map(PeerName::new);
        let mut reqids = Reqids::load(directory.path());
        let all = children.iter().flat_map(|child| [(&moon, child), (&moons, child)]);
        let at = |seconds| Instant::new(Duration::from_secs(seconds));
        reqids.assign_changes(all, &[], at(1)).unwrap();
        let former = reqids.all_of(&moon);
        let written = fs::read(directory.path().join(FILE)).unwrap();
        reqids.assign_changes(std::iter::empty(), std::slice::from_ref(&moon), at(2)).unwrap();
        assert_eq!((former.len(), reqids.all_of(&moon).len(), reqids.all_of(&moons).len()), (2, 0, 2));
        assert!(former.iter().all(|reqid| reqids.peer(reqid.raw()).is_none()));
        // Many peers that leave one after the other cause one write to disk.
        reqids.save_due_changes(at(2)).unwrap();
        assert_eq!(fs::read(directory.path().join(FILE)).unwrap(), written);
        assert_eq!(reqids.save_due(), Some(at(3)));
        reqids.save_due_changes(at(3)).unwrap();
        assert_eq!(reqids.save_due(), None);
        let known = Reqids::load(directory.path());
        assert_eq!((known.all_of(&moons), known.all_of(&moon).len()), (reqids.all_of(&moons), 0));
    }

    #[test]
    fn a_peer_that_leaves_and_returns_within_a_second_has_its_reqid_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (child, moon, now) = (ChildName::new(DEFAULT_CHILD), PeerName::new("moon"), Instant::default());
        let mut reqids = Reqids::load(directory.path());
        reqids.assign_changes([(&moon, &child)].into_iter(), &[], now).unwrap();
        reqids.assign_changes(std::iter::empty(), std::slice::from_ref(&moon), now).unwrap();
        reqids.assign_changes([(&moon, &child)].into_iter(), &[], now).unwrap();
        assert_eq!(reqids.save_due(), None);
        assert!(of(&reqids, "moon").is_some());
        assert_eq!(of(&Reqids::load(directory.path()), "moon"), of(&reqids, "moon"));
    }
}
