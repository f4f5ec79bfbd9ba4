//! Builds the lab kernel, Debian's newest `linux-source` built as User-Mode Linux, once per
//! machine.
//!
//! The path of the kernel is `$XDG_CACHE_HOME/edge-cni/lab-kernel/VERSION-OPTIONS/linux`. `OPTIONS`
//! is a hash of `lab.config`, so a changed option leads to a new build, and the same options are
//! never built twice.

mod build;
mod cache;
mod source;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

pub use build::OVERRIDE;

/// The kernel options on top of `allnoconfig`.
const OPTIONS: &str = include_str!("../../lab.config");

/// Returns the path of a lab kernel. Builds the kernel if there is none yet.
///
/// With `update`, the package archive is checked for a newer version even if a kernel exists.
///
/// # Errors
/// Returns an error if a tool is missing, the archive cannot be reached or the build fails. The
/// message contains the remedy.
pub fn ensure(update: bool) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{OVERRIDE} names {}, which is not a file", path.display());
        }
        return Ok(path);
    }
    let cache = cache::Cache::open(OPTIONS)?;
    if !update && let Some(kernel) = cache.newest()? {
        return Ok(kernel);
    }
    let _lock = cache.lock()?;
    // Another process may have built the kernel while this one waited for the lock.
    if !update && let Some(kernel) = cache.newest()? {
        return Ok(kernel);
    }
    build::require_tools()?;
    let scratch = cache.scratch()?;
    let source = source::Package::newest(scratch.path())?;
    if let Some(kernel) = cache.of_version(&source.version) {
        return Ok(kernel);
    }
    eprintln!("no lab kernel with these options yet: building Linux {} once, about 10 CPU-minutes", source.version);
    let tree = source.unpack(scratch.path())?;
    let linux = build::build(&tree, &scratch.path().join("out"), OPTIONS)?;
    cache.publish(&source.version, &linux).context("keeping the lab kernel")
}
