//! Writes everything that a controller stores into one file, for backups and for moving from one
//! store to another.
//!
//! The file consists of JSON lines in UTF-8. Each line is an object with one key, which names the
//! kind of line:
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
//! The header is the first line. The last line has the number of the preceding lines and the hash
//! of all bytes in them, line feeds included. Between the header and the last line are the
//! certificate authorities with their private keys, and one line for each row in the form of
//! [`crate::state`]. Tokens are written as hashes, segments with their holders and times. A file
//! that is cut short, altered or of a later version is refused as a whole.
//!
//! - [`Archive`]: the content of an archive.
//! - [`mod@write`], [`mod@read`]: write and read an archive file.
//! - [`import()`]: imports an archive into any store. [`restore()`]: replaces the content of a
//!   state directory.

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
