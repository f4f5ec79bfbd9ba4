//! Names of what the controller keeps in its state directory, beside what others may have put
//! there.

use std::ffi::OsStr;

use crate::ca;
use crate::store::embedded;

/// Where a restore makes the new content. While it is there, the directory's content is not to be
/// trusted.
pub const RESTORING: &str = "restoring";
/// Where a restore keeps the former content, followed by the time.
pub const BEFORE_RESTORE: &str = "before-restore-";
/// How names begin that only a controller uses: those of store and authority, with `.new`, `.tmp`
/// or what a copy is named, and what a restore leaves.
const OURS: [&str; 3] = [embedded::FILE, ca::DOCUMENT, BEFORE_RESTORE];
/// Names that others use as well, Kubernetes for one: ours if one of [`OURS`] is beside them.
const LIKE_OTHERS: [&str; 2] = [ca::CERTIFICATES, ca::FORMER_KEY];

/// Whether something of this name is the controller's, in a folder that holds its state.
pub fn is_ours(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    is_surely_ours(name) || LIKE_OTHERS.contains(&name.strip_suffix(".tmp").unwrap_or(name))
}

/// Whether something of this name is the controller's, in any folder.
pub fn is_surely_ours(name: &str) -> bool {
    name == RESTORING || OURS.iter().any(|known| name.starts_with(known))
}
