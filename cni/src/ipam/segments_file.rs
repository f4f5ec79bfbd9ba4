//! The files with the node's segments in the state directory.
//!
//! `segments.json` is written by the agent, or created from the configuration of the first network.
//! An additional network, with its own bridge and other `segments` in its configuration, has
//! `segments-BRIDGE.json`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use edge_types::IpNetwork;
use edge_types::durable::replace_file;
use edge_types::network::overlap;
use edge_types::shared_files::{SEGMENTS_FILE, SegmentsFile, SegmentsSource};

use crate::config::{self, Config};
use crate::error::{Code, Context, Error, Result};

/// The supported layout version.
const VERSION: u32 = 1;

/// The segments of a network.
pub(super) enum NetworkSegments {
    /// From `segments.json`.
    OfNode(SegmentsFile),
    /// From the network's own file, with the ranges and the MTU of `segments.json`.
    OfNetwork(SegmentsFile),
}

impl NetworkSegments {
    pub(super) fn into_file(self) -> SegmentsFile {
        match self {
            Self::OfNode(file) | Self::OfNetwork(file) => file,
        }
    }
}

/// Reads the segments of a network. `None` if there are none yet. It needs no lock, since files are
/// always replaced as a whole.
pub(super) fn read(directory: &Path, config: &Config) -> Result<Option<NetworkSegments>> {
    let Some(node) = read_file(&directory.join(SEGMENTS_FILE))? else { return Ok(None) };
    if !is_of_another_network(&node, config) {
        return Ok(Some(NetworkSegments::OfNode(node)));
    }
    let own = read_file(&own_path(directory, config))?;
    Ok(own.map(|own| {
        let (segments, source, bridge) = (own.segments, own.source, own.bridge);
        NetworkSegments::OfNetwork(SegmentsFile { segments, source, bridge, ..node })
    }))
}

/// Writes the file of a network that has no file yet, from `segments` in its configuration. Does
/// nothing if there are none. The caller must hold the lock.
pub(super) fn seed(directory: &Path, config: &Config) -> Result<()> {
    if config.segments.is_empty() {
        return Ok(());
    }
    let path = match read_file(&directory.join(SEGMENTS_FILE))? {
        None => directory.join(SEGMENTS_FILE),
        Some(_) => own_path(directory, config),
    };
    let segments = SegmentsFile {
        version: VERSION,
        source: SegmentsSource::Configuration,
        segments: config.segments.clone(),
        cluster_ranges: config.cluster_ranges.clone(),
        mtu: 0,
        networks: Vec::new(),
        hub_networks: Vec::new(),
        bridge: Some(config.bridge.clone()),
    };
    let text = serde_json::to_vec_pretty(&segments).map_err(|error| Error::io("write", &path, error))?;
    replace_file(&path, &text, 0o600).context("replace", &path)?;
    Ok(())
}

/// Returns whether `segments.json` belongs to a network with another bridge, and this network has
/// its own segments. The agent does not record its bridge in the file. However, the agent's
/// segments are within the cluster ranges, and the segments of an additional network are not.
fn is_of_another_network(node: &SegmentsFile, config: &Config) -> bool {
    let overlaps = |range: &IpNetwork| config.segments.iter().any(|segment| overlap(range, segment));
    // A network whose bridge was renamed keeps its segments.
    if config.segments.is_empty() || node.segments.iter().any(overlaps) {
        return false;
    }
    match &node.bridge {
        Some(bridge) => *bridge != config.bridge,
        None => {
            let mut ranges = node.cluster_ranges.iter().chain(&config.cluster_ranges);
            node.source == SegmentsSource::Agent && !ranges.any(overlaps)
        }
    }
}

fn own_path(directory: &Path, config: &Config) -> PathBuf {
    directory.join(format!("segments-{}.json", config.bridge))
}

fn read_file(path: &Path) -> Result<Option<SegmentsFile>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let damaged = |why: String| {
        Error::new(
            Code::DamagedState,
            format!(
                "the segments in {} are damaged: {why}. Restart edge-agent, which writes the file again; without an agent remove it, and \
                 it is made from the plugin's configuration",
                path.display()
            ),
        )
    };
    let file: SegmentsFile =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("{error} in {} bytes", text.len())))?;
    if file.version != VERSION {
        return Err(damaged(format!(
            "its version is {}, expected {VERSION}; install edge-cni and edge-agent from one release",
            file.version
        )));
    }
    config::check_segments(&file.segments).map_err(damaged)?;
    Ok(Some(file))
}
