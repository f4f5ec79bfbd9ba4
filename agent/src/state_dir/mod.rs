//! The agent's files in the state directory.
//!
//! - [`StateDir`]: the directory, locked while the agent runs. Its files are replaced atomically,
//!   so that after a power cut they have the old or the new content.
//! - [`ChangeLog`]: a large file and its changes; a small change adds one line.
//! - [`make_private`]: makes the directory accessible to its owner only.
//! - [`remove_ours`]: removes the files of the agent and the plugin from the directory.
//! - [`segments_file`]: `segments.json`, which the plugin reads. It is written under the lock that
//!   the agent and the plugin share.

mod change_log;
mod contents;
mod dir;
mod permissions;
pub mod segments_file;

pub use change_log::{ChangeLog, read_json_with_changes};
pub use contents::{RemovedFiles, has_ours, remove_ours};
pub use dir::{SharedLock, StateDir, StateDirError, json_bytes, read_json, read_layout, replace_file};
pub use permissions::make_private;
