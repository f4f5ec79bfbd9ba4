//! `segments.json`: the networks from which the plugin assigns addresses to pods. It is read and
//! replaced under the lock that the plugin and the agent share.

use std::collections::HashSet;

use edge_types::shared_files::{SEGMENTS_FILE, SegmentsFile, SegmentsSource, pod_capacity};
use edge_types::{IpNetwork, NodeView, Role, api::Family};

use super::{StateDir, StateDirError};

const VERSION: u32 = 1;

/// Reads the file; `None` if it does not exist. Fails if it is damaged.
pub fn read(state: &StateDir) -> Result<Option<SegmentsFile>, StateDirError> {
    let _lock = state.lock_shared_files()?;
    state.read_layout(SEGMENTS_FILE, VERSION, ADVICE)
}

/// Writes the segments, cluster ranges and networks of a view. The view's segments come first, in
/// its order. A granted segment that no view has contained yet is kept. A segment is removed if
/// `previous` contains it and `view` does not. `mtu` is in bytes; 0 leaves the value in the file.
pub fn follow_view(
    state: &StateDir,
    previous: Option<&NodeView>,
    view: &NodeView,
    mtu: u32,
) -> Result<SegmentsFile, StateDirError> {
    update(state, |file| {
        let shown: HashSet<_> = previous.into_iter().flat_map(|view| &view.segments).chain(&view.segments).collect();
        let mut segments = view.segments.clone();
        match file.source {
            SegmentsSource::Agent => segments.extend(file.segments.iter().filter(|segment| !shown.contains(segment))),
            // The segments in the plugin's configuration were not granted. They are used until the
            // first segment is granted.
            SegmentsSource::Configuration if segments.is_empty() => segments.clone_from(&file.segments),
            SegmentsSource::Configuration => file.source = SegmentsSource::Agent,
        }
        file.segments = segments;
        file.cluster_ranges.clone_from(&view.cluster_ranges);
        file.networks.clone_from(&view.networks);
        file.hub_networks = hub_networks(view);
        if mtu != 0 {
            file.mtu = mtu;
        }
    })
}

/// The part of a view that [`follow_view`] writes, with the pods' MTU.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentsOfView {
    segments: Vec<IpNetwork>,
    cluster_ranges: Vec<IpNetwork>,
    networks: Vec<IpNetwork>,
    hub_networks: Vec<IpNetwork>,
    mtu: u32,
}

impl SegmentsOfView {
    /// Returns the part of a view. `mtu` is in bytes.
    pub fn new(view: &NodeView, mtu: u32) -> Self {
        Self {
            segments: view.segments.clone(),
            cluster_ranges: view.cluster_ranges.clone(),
            networks: view.networks.clone(),
            hub_networks: hub_networks(view),
            mtu,
        }
    }

    /// Returns the pods' MTU, bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }
}

/// Returns the networks that hubs front for this edge, each once. Empty for a node in the cloud,
/// because it is part of these networks.
fn hub_networks(view: &NodeView) -> Vec<IpNetwork> {
    if view.role != Role::Edge {
        return Vec::new();
    }
    let mut networks: Vec<IpNetwork> = view.peers.iter().flat_map(|peer| &peer.networks).copied().collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}

/// Adds newly granted segments.
pub fn add_granted(state: &StateDir, granted: &[IpNetwork]) -> Result<SegmentsFile, StateDirError> {
    update(state, |file| {
        if granted.is_empty() {
            return;
        }
        if file.source == SegmentsSource::Configuration {
            file.source = SegmentsSource::Agent;
            file.segments.clear();
        }
        for segment in granted {
            if !file.segments.contains(segment) {
                file.segments.push(*segment);
            }
        }
    })
}

/// Removes granted segments, because they belong to an earlier identity of this node.
pub fn forget_granted(state: &StateDir) -> Result<(), StateDirError> {
    let _lock = state.lock_shared_files()?;
    match state.read_layout::<SegmentsFile>(SEGMENTS_FILE, VERSION, ADVICE) {
        Ok(Some(file)) if file.source == SegmentsSource::Agent => state.remove(SEGMENTS_FILE),
        Ok(_) => Ok(()),
        Err(StateDirError::Damaged { .. }) => state.remove(SEGMENTS_FILE),
        Err(error) => Err(error),
    }
}

/// Returns the number of pod addresses in all segments of a family.
pub fn capacity(file: &SegmentsFile, family: Family) -> u64 {
    file.segments.iter().filter(|segment| Family::of(segment) == family).map(pod_capacity).fold(0, u64::saturating_add)
}

const ADVICE: &str = "the agent writes it again from its view: see whether it runs";

fn update(state: &StateDir, change: impl FnOnce(&mut SegmentsFile)) -> Result<SegmentsFile, StateDirError> {
    let _lock = state.lock_shared_files()?;
    let before = match state.read_layout::<SegmentsFile>(SEGMENTS_FILE, VERSION, ADVICE) {
        Ok(file) => file,
        Err(error @ StateDirError::Damaged { .. }) => {
            // The file can be written again from the view.
            let aside = state.put_aside(SEGMENTS_FILE)?;
            tracing::error!(%error, aside = %aside.display(), "the segments file was unreadable and is written again");
            None
        }
        Err(error) => return Err(error),
    };
    let mut file = before.clone().unwrap_or(SegmentsFile {
        version: VERSION,
        source: SegmentsSource::Agent,
        segments: Vec::new(),
        cluster_ranges: Vec::new(),
        mtu: 0,
        networks: Vec::new(),
        hub_networks: Vec::new(),
        bridge: None,
    });
    change(&mut file);
    file.version = VERSION;
    if before.as_ref() != Some(&file) {
        state.write_json(SEGMENTS_FILE, &file)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use edge_types::{Peer, SharedPeer};

    use super::*;
    use crate::test_view::empty_view;

    fn nets(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn view(segments: &[&str]) -> NodeView {
        NodeView { segments: nets(segments), ..empty_view() }
    }

    fn state() -> (tempfile::TempDir, StateDir) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        (directory, state)
    }

    #[test]
    fn the_layout_of_a_newer_release_is_refused_and_left_as_it_is() {
        let (directory, state) = state();
        let newer = b"{\"version\": 2, \"grants\": {\"10.77.0.0/26\": {}}}";
        state.write(SEGMENTS_FILE, newer).unwrap();
        for refused in [
            read(&state).map(drop),
            follow_view(&state, None, &view(&["10.77.0.64/26"]), 1380).map(drop),
            add_granted(&state, &nets(&["10.77.0.64/26"])).map(drop),
            forget_granted(&state),
        ] {
            let why = refused.unwrap_err().to_string();
            assert!(why.contains("segments.json is of layout 2") && why.contains("newer release"), "{why}");
        }
        assert_eq!(std::fs::read(directory.path().join(SEGMENTS_FILE)).unwrap(), newer);
    }

    #[test]
    fn a_grant_that_no_view_has_shown_yet_outlives_an_older_view() {
        let (_directory, state) = state();
        let old = view(&["10.77.0.0/26"]);
        follow_view(&state, None, &old, 1380).unwrap();
        add_granted(&state, &nets(&["10.77.0.64/26"])).unwrap();
        let file = follow_view(&state, Some(&old), &old, 0).unwrap();
        assert_eq!(file.segments, nets(&["10.77.0.0/26", "10.77.0.64/26"]));
        assert_eq!(file.mtu, 1380);
        let new = view(&["10.77.0.0/26", "10.77.0.64/26"]);
        let file = follow_view(&state, Some(&old), &new, 0).unwrap();
        assert_eq!(file.segments, new.segments);
        assert_eq!(read(&state).unwrap().unwrap(), file);
    }

    #[test]
    fn a_segment_that_a_newer_view_no_longer_shows_is_gone() {
        let (_directory, state) = state();
        let both = view(&["10.77.0.0/26", "10.77.0.64/26"]);
        follow_view(&state, None, &both, 0).unwrap();
        let one = view(&["10.77.0.64/26"]);
        assert_eq!(follow_view(&state, Some(&both), &one, 0).unwrap().segments, one.segments);
    }

    #[test]
    fn what_the_plugin_was_configured_with_holds_until_the_first_grant() {
        let (_directory, state) = state();
        let configured = SegmentsFile {
            version: 1,
            source: SegmentsSource::Configuration,
            segments: nets(&["10.9.0.0/24"]),
            cluster_ranges: Vec::new(),
            mtu: 0,
            networks: Vec::new(),
            hub_networks: Vec::new(),
            bridge: None,
        };
        state.write_json(SEGMENTS_FILE, &configured).unwrap();
        let file = follow_view(&state, None, &view(&[]), 0).unwrap();
        assert_eq!((file.source, &file.segments), (SegmentsSource::Configuration, &configured.segments));
        let file = add_granted(&state, &nets(&["10.77.0.0/26"])).unwrap();
        assert_eq!((file.source, file.segments), (SegmentsSource::Agent, nets(&["10.77.0.0/26"])));
    }

    #[test]
    fn an_edge_learns_the_networks_of_its_hubs_and_a_cloud_node_does_not_take_its_own_for_them() {
        let (_directory, state) = state();
        let mut view = view(&["10.77.0.0/26"]);
        view.peers = ["hub-1", "hub-2"]
            .map(|name| Peer {
                name: name.parse().unwrap(),
                role: Role::Hub,
                endpoints: Vec::new(),
                segments: nets(&["10.77.1.0/26"]),
                networks: nets(&["fd96::/108", "10.96.0.0/12"]),
                mapped: vec![],
                tcp_port: None,
                on_demand_in: Default::default(),
                certificates_from: 0,
            })
            .map(SharedPeer::from)
            .into_iter()
            .collect();
        let file = follow_view(&state, None, &view, 0).unwrap();
        assert_eq!(file.hub_networks, nets(&["10.96.0.0/12", "fd96::/108"]));
        view.role = Role::Cloud;
        assert!(follow_view(&state, None, &view, 0).unwrap().hub_networks.is_empty());
    }

    #[test]
    fn a_truncated_file_is_renamed_and_written_again_from_the_view() {
        let (directory, state) = state();
        state.write(SEGMENTS_FILE, b"{\"version\": 1, \"sour").unwrap();
        assert!(read(&state).unwrap_err().to_string().contains("cut short"));
        let file = follow_view(&state, None, &view(&["10.77.0.0/26"]), 0).unwrap();
        assert_eq!(file.segments, nets(&["10.77.0.0/26"]));
        assert!(directory.path().join("segments.json.damaged").exists());
    }

    #[test]
    fn an_earlier_identitys_grants_are_forgotten_but_not_the_plugins_configuration() {
        let (_directory, state) = state();
        add_granted(&state, &nets(&["10.77.0.0/26"])).unwrap();
        forget_granted(&state).unwrap();
        assert_eq!(read(&state).unwrap(), None);
        forget_granted(&state).unwrap();
    }

    #[test]
    fn capacity_counts_a_family_alone() {
        let (_directory, state) = state();
        let file = add_granted(&state, &nets(&["10.77.0.0/26", "10.77.0.64/26", "fd77::/120"])).unwrap();
        assert_eq!((capacity(&file, Family::V4), capacity(&file, Family::V6)), (122, 254));
    }
}
