//! What the agent keeps on disk, below the state directory.
//!
//! - [`StateDir`]: the folder, locked for the life of the agent; files replaced as a whole, so that
//!   a power cut leaves the old or the new.
//! - [`make_private`]: nobody else reads the folder.
//! - [`segments_file`]: `segments.json`, which the plugin reads; written under the lock that both
//!   share.

mod dir;
mod permissions;
pub mod segments_file;

pub use dir::{SharedLock, StateDir, StateDirError, replace_file};
pub use permissions::make_private;
