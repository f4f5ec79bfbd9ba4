//! What the agent keeps on disk, below the state directory.
//!
//! - [`StateDir`]: the folder, locked for the life of the agent; files replaced as a whole, so that
//!   a power cut leaves the old or the new.
//! - [`make_private`]: nobody else reads the folder.
//! - [`segments`]: `segments.json`, which the plugin reads; written under the lock that both share.

mod dir;
mod private;
pub mod segments;

pub use dir::{SharedLock, StateDir, StoreError, replace_file};
pub use private::make_private;
