//! Names of the controller's files in its state directory. The directory may also contain other
//! files.

use std::ffi::OsStr;

use crate::ca;
use crate::store::embedded;

/// Directory in which a restore builds the new content. While it exists, the content of the state
/// directory may be incomplete.
pub const RESTORING: &str = "restoring";
/// Prefix of the directory in which a restore keeps the former content. The time of the restore
/// follows.
pub const BEFORE_RESTORE: &str = "before-restore-";
/// File with the times when nodes were last seen, used with the embedded store.
pub const LAST_SEEN: &str = "last-seen.json";
/// Prefixes of names that only a controller uses: the store and the authorities, also with `.new`,
/// `.tmp` or the suffix of a copy, and the directories of a restore.
const OURS: [&str; 3] = [embedded::FILE, ca::DOCUMENT, BEFORE_RESTORE];
/// Names that other programs, such as Kubernetes, also use. Files with these names are the
/// controller's if the same directory has a name from [`OURS`].
const AMBIGUOUS: [&str; 3] = [ca::CERTIFICATES, ca::FORMER_KEY, LAST_SEEN];

/// Returns whether a file of this name is the controller's, in a directory that holds the
/// controller's state.
pub fn is_ours(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    is_surely_ours(name) || AMBIGUOUS.contains(&name.strip_suffix(".tmp").unwrap_or(name))
}

/// Returns whether a file of this name is the controller's in any directory.
pub fn is_surely_ours(name: &str) -> bool {
    name == RESTORING || OURS.iter().any(|known| name.starts_with(known))
}
