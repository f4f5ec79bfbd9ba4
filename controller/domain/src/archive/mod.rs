//! Writes everything that a controller stores into one file, for backups and for moving from one
//! store to another.
//!
//! The file has JSON lines in UTF-8. Each is an object with one key, which names the kind of the
//! line:
//!
//! ```json
//! {"header":{"format":"edge-controller-archive","version":1,"release":"0.1.0","written_at":1794000000,"revision":17,"time":1794000000}}
//! {"ca":{...}}
//! {"community":{...}}
//! {"token":{...}}
//! {"node":{...}}
//! {"segment":{...}}
//! {"end":{"lines":6,"sha256":"..."}}
//! ```
//!
//! The header is the first line. The last line has the number of lines before it and the hash of
//! all their bytes, line feeds included. Between them are the authorities with their private keys,
//! and one line for each row in the form of [`crate::state`]: tokens as hashes, segments with their
//! holders and times. A file that is cut short, altered or of a later version is refused as a
//! whole.
//!
//! - [`Archive`]: the content.
//! - [`mod@write`], [`mod@read`]: the file.
//! - [`import()`]: writes an archive into any store. [`restore()`]: replaces the content of a state
//!   directory.

mod format;
mod import;
mod read;
mod restore;
mod write;

pub use format::Archive;
pub use import::{ImportError, import};
pub use read::{ArchiveError, read};
pub use restore::{check_not_restoring, restore};
pub use write::{Chunks, write};
