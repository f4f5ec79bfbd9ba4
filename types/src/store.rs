//! Files below the state directory (`/var/lib/edge-cni`) that plugin and agent share.
//!
//! The agent writes [`SEGMENTS_FILE`], the plugin writes leases; both under an exclusive `flock` on [`LOCK_FILE`]. A file is replaced as a
//! whole: write `NAME.tmp`, fsync it, rename, fsync the folder. So a power cut leaves the old or the new content, never a mixture.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Default state directory.
pub const STATE_DIR: &str = "/var/lib/edge-cni";
/// Locked exclusively by whoever reads in order to write.
pub const LOCK_FILE: &str = "lock";
/// Segments of this node, JSON ([`SegmentsFile`]); written by the agent, or once by the plugin from its configuration.
pub const SEGMENTS_FILE: &str = "segments.json";
/// Leases of pods; the plugin's own format, below this folder or with this name.
pub const LEASES_FILE: &str = "leases";
/// The agent's last view, JSON ([`crate::NodeView`]).
pub const VIEW_FILE: &str = "view.json";

/// Content of [`SEGMENTS_FILE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentsFile {
    /// Layout of this file; 1.
    pub version: u32,
    /// Who provided the segments.
    pub source: SegmentsSource,
    /// In the order in which they were granted; addresses are given from the first that has one free.
    pub segments: Vec<IpNetwork>,
    /// All ranges from which segments are cut in the whole cluster; what the guard guards.
    #[serde(default)]
    pub cluster_ranges: Vec<IpNetwork>,
    /// MTU for pods, bytes; 0 where the agent has not found it out.
    #[serde(default)]
    pub mtu: u32,
    /// Cloud networks that this node fronts (hubs only): allowed beside own segments by the guard.
    #[serde(default)]
    pub networks: Vec<IpNetwork>,
}

/// Who wrote [`SegmentsFile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentsSource {
    /// The plugin, from `segments` in its configuration; the agent may overwrite it.
    Configuration,
    /// The agent; the plugin's `segments` are ignored from then on.
    Agent,
}
