//! Where built kernels are kept, and who may build one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::fs::FlockOperation;

/// The folder of built kernels for one set of options.
pub(super) struct Cache {
    root: PathBuf,
    options: String,
}

impl Cache {
    /// Opens the cache for kernels with these options, making its folder.
    pub(super) fn open(options: &str) -> Result<Self> {
        let root = base()?.join("edge-cni").join("lab-kernel");
        fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, options.as_bytes());
        let options = digest.as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { root, options })
    }

    /// The kernel of one source version, if it is there.
    pub(super) fn of_version(&self, version: &str) -> Option<PathBuf> {
        let path = self.place(version).join("linux");
        path.is_file().then_some(path)
    }

    /// The kernel that was built last.
    pub(super) fn newest(&self) -> Result<Option<PathBuf>> {
        let suffix = format!("-{}", self.options);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let linux = entry.path().join("linux");
            if entry.file_name().to_string_lossy().ends_with(&suffix)
                && let Ok(meta) = fs::metadata(&linux)
            {
                found.push((meta.modified()?, linux));
            }
        }
        Ok(found.into_iter().max().map(|(_, linux)| linux))
    }

    /// Waits until nobody else builds. Released when the file is dropped.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.root.join("lock");
        let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("another run is building the lab kernel: waiting for it");
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        }
        Ok(file)
    }

    /// A folder for sources and objects (about 2.5 GB), removed when dropped. It is in the cache, so that publishing is a rename.
    pub(super) fn scratch(&self) -> Result<tempfile::TempDir> {
        // Only the holder of the lock comes here: what lies about was left by a build that was killed.
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("build-") {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
        tempfile::Builder::new().prefix("build-").tempdir_in(&self.root).context("making a folder to build in")
    }

    /// Keeps a built kernel: whole or not at all.
    pub(super) fn publish(&self, version: &str, linux: &Path) -> Result<PathBuf> {
        let place = self.place(version);
        let staged = tempfile::Builder::new().prefix("build-").tempdir_in(&self.root)?;
        fs::copy(linux, staged.path().join("linux"))?;
        let staged = staged.keep();
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::rename(&staged, &place).with_context(|| format!("moving the kernel to {}", place.display()))?;
        // The private mode of a temporary folder would hide the kernel from another user of the same cache.
        fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(place.join("linux"))
    }

    fn place(&self, version: &str) -> PathBuf {
        self.root.join(format!("{version}-{}", self.options))
    }
}

/// `$XDG_CACHE_HOME`, by default `~/.cache`.
fn base() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME")
        && Path::new(&dir).is_absolute()
    {
        return Ok(dir.into());
    }
    let home = std::env::home_dir().context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(home.join(".cache"))
}
