//! Caches files that are built once per machine: manages their directories and the lock for
//! building.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use data_encoding::HEXLOWER;
use rustix::fs::FlockOperation;

/// A directory below `$XDG_CACHE_HOME/edge-cni` for all builds of one kind.
pub(crate) struct BuildCache {
    root: PathBuf,
    what: &'static str,
}

impl BuildCache {
    /// Opens the directory, or makes it. `what` names the built files, for messages.
    pub(crate) fn open(directory: &str, what: &'static str) -> Result<Self> {
        let root = self::directory(directory)?;
        fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
        Ok(Self { root, what })
    }

    /// Returns the directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until no other process builds. The lock is released when the file is dropped.
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.root.join("lock");
        let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("another run is building {}: waiting for it", self.what);
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        }
        Ok(file)
    }

    /// Makes a directory to build in, which is removed when dropped.
    pub(crate) fn scratch(&self) -> Result<tempfile::TempDir> {
        // This process holds the lock, so older directories are from builds that were killed.
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("build-") {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
        tempfile::Builder::new().prefix("build-").tempdir_in(&self.root).context("making a directory to build in")
    }

    /// Keeps built files under `name`. Either all of them are kept or none.
    pub(crate) fn publish(&self, name: &str, files: &[&Path]) -> Result<PathBuf> {
        let built = self.root.join(name);
        let staged = tempfile::Builder::new().prefix("build-").tempdir_in(&self.root)?;
        for file in files {
            let base = file.file_name().context("a built file without a name")?;
            fs::copy(file, staged.path().join(base)).with_context(|| format!("keeping {}", file.display()))?;
        }
        // A temporary directory is private. Another user of the same cache must be able to read the
        // build.
        fs::set_permissions(staged.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let staged = staged.keep();
        if built.exists() {
            fs::remove_dir_all(&built)?;
        }
        fs::rename(&staged, &built).with_context(|| format!("moving {} to {}", self.what, built.display()))?;
        Ok(built)
    }
}

/// Returns a short name for a build's inputs; different inputs have different names.
pub(crate) fn digest(inputs: &[&str]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    inputs.iter().for_each(|input| context.update(input.as_bytes()));
    HEXLOWER.encode(&context.finish().as_ref()[..6])
}

/// Returns the path of a directory below `$XDG_CACHE_HOME/edge-cni`, which need not exist.
pub(crate) fn directory(name: &str) -> Result<PathBuf> {
    Ok(base()?.join("edge-cni").join(name))
}

/// Returns `$XDG_CACHE_HOME`, by default `~/.cache`.
fn base() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME")
        && Path::new(&dir).is_absolute()
    {
        return Ok(dir.into());
    }
    let home = std::env::home_dir().context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(home.join(".cache"))
}
