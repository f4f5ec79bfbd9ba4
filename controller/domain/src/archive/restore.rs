//! Replaces the content of a state directory with an archive. The new content is built in a
//! separate directory, and the former content is moved to another directory.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::format::Archive;
use super::import::import;
use crate::ca::Files;
use crate::clock::{Clock, rfc3339};
use crate::state_files::{BEFORE_RESTORE, RESTORING, is_ours};
use crate::store::embedded::{self, Embedded};

/// Fails if a restore was interrupted.
pub fn check_not_restoring(state_dir: &Path) -> anyhow::Result<()> {
    let aside = state_dir.join(RESTORING);
    ensure!(
        !aside.exists(),
        "{} exists: a restore was interrupted. Run it again (edge-controller restore --replace FILE). To undo it instead, move the content \
         of {BEFORE_RESTORE}... back if there is such a directory, and remove {}",
        aside.display(),
        aside.display()
    );
    Ok(())
}

/// Replaces the content of a state directory with the content of an archive. Returns the directory
/// with the former content; `None` if there was none.
pub async fn restore(
    archive: Archive,
    state_dir: &Path,
    replace: bool,
    clock: &Clock,
) -> anyhow::Result<Option<PathBuf>> {
    let directory = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    directory(state_dir).with_context(|| format!("cannot create {}", state_dir.display()))?;
    if embedded::is_in_use(state_dir)? {
        bail!("a running edge-controller uses {}; stop it first", state_dir.display());
    }
    let present = content(state_dir)?;
    if !present.is_empty() && !replace {
        let names: Vec<_> = present.iter().map(|name| name.to_string_lossy()).collect();
        bail!(
            "{} is not empty ({}); with --replace its content is moved aside and kept",
            state_dir.display(),
            names.join(", ")
        );
    }
    let aside = state_dir.join(RESTORING);
    if aside.exists() {
        fs::remove_dir_all(&aside).with_context(|| format!("cannot remove {}", aside.display()))?;
    }
    directory(&aside)?;
    let store = Embedded::open(&aside)?;
    import(&store, &Files::new(&aside, clock.now()), archive, clock.now()).await?;
    drop(store);
    sync(&aside)?;
    let former = (!present.is_empty()).then(|| state_dir.join(format!("{BEFORE_RESTORE}{}", rfc3339(clock.now()))));
    if let Some(former) = &former {
        directory(former)?;
        for name in present {
            fs::rename(state_dir.join(&name), former.join(&name))?;
        }
        sync(former)?;
    }
    for name in content(&aside)? {
        fs::rename(aside.join(&name), state_dir.join(&name))?;
    }
    sync(state_dir)?;
    // From here on the restore is complete.
    fs::remove_dir(&aside)?;
    sync(state_dir)?;
    Ok(former)
}

/// Returns the names of the controller's files in a directory, without the directories that
/// restores create. Files that are not the controller's stay.
fn content(directory: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if is_ours(&name) && text != RESTORING && !text.starts_with(BEFORE_RESTORE) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn sync(directory: &Path) -> std::io::Result<()> {
    fs::File::open(directory)?.sync_all()
}
