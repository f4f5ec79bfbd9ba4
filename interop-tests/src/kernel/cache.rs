//! Caches built kernels.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::{self, BuildCache};

/// The directory of built kernels for one set of options.
pub(super) struct Cache {
    cache: BuildCache,
    options: String,
}

impl Cache {
    /// Opens the cache for kernels with these options, and makes its directory if needed.
    pub(super) fn open(options: &str) -> Result<Self> {
        Ok(Self { cache: BuildCache::open("lab-kernel", "the lab kernel")?, options: cache::digest(&[options]) })
    }

    /// Returns the kernel of one source version, if it exists.
    pub(super) fn of_version(&self, version: &str) -> Option<PathBuf> {
        let path = self.cache.root().join(self.name(version)).join("linux");
        path.is_file().then_some(path)
    }

    /// Returns the kernel that was built last.
    pub(super) fn newest(&self) -> Result<Option<PathBuf>> {
        let suffix = format!("-{}", self.options);
        let mut found = Vec::new();
        for entry in fs::read_dir(self.cache.root())? {
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

    /// Waits until no other process builds. The lock is released when the file is dropped.
    pub(super) fn lock(&self) -> Result<File> {
        self.cache.lock()
    }

    /// Makes a directory for sources and objects (about 2.5 GB), removed when dropped.
    pub(super) fn scratch(&self) -> Result<tempfile::TempDir> {
        self.cache.scratch()
    }

    /// Puts a built kernel into the cache in one step.
    pub(super) fn publish(&self, version: &str, linux: &Path) -> Result<PathBuf> {
        Ok(self.cache.publish(&self.name(version), &[linux])?.join("linux"))
    }

    fn name(&self, version: &str) -> String {
        format!("{version}-{}", self.options)
    }
}
