//! Builds the lab kernel, Debian's newest `linux-source` built as User-Mode Linux, once per
//! machine.
//!
//! The path of the kernel is `$XDG_CACHE_HOME/edge-cni/lab-kernel/VERSION-OPTIONS/linux`. `OPTIONS`
//! is a hash of the options, so a changed option leads to a new build, and the same options are
//! never built twice.
//!
//! A person who tries the demo first waits for a kernel with the demo's options only. Who has the
//! kernel of all scenarios needs no other.

mod build;
mod cache;
mod source;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

pub use build::OVERRIDE;

/// What the kernel is used for. It decides its options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purpose {
    /// The demo and the tour alone.
    Demo,
    /// All scenarios, with the demo.
    #[default]
    Scenarios,
}

/// The kernel options on top of `allnoconfig`.
struct Options {
    text: &'static str,
    /// Number of objects in a build with them, for the progress.
    objects: usize,
}

const DEMO: Options = Options { text: include_str!("../../demo.config"), objects: 815 };
const SCENARIOS: Options =
    Options { text: concat!(include_str!("../../demo.config"), include_str!("../../lab.config")), objects: 1113 };

/// Returns the path of a lab kernel for this purpose. Builds the kernel if there is none yet.
///
/// With `update`, the package archive is checked for a newer version even if a kernel exists.
///
/// # Errors
/// Returns an error if a tool is missing, the archive cannot be reached or the build fails. The
/// message contains the remedy.
pub fn ensure(purpose: Purpose, update: bool) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{OVERRIDE} names {}, which is not a file", path.display());
        }
        return Ok(path);
    }
    let whole = cache::Cache::open(SCENARIOS.text)?;
    if purpose == Purpose::Scenarios {
        return newest_or_built(&whole, &SCENARIOS, update);
    }
    match whole.newest()? {
        Some(kernel) if !update => Ok(kernel),
        _ => newest_or_built(&cache::Cache::open(DEMO.text)?, &DEMO, update),
    }
}

/// Returns the kernel with these options that was built last, or builds one.
fn newest_or_built(cache: &cache::Cache, options: &Options, update: bool) -> Result<PathBuf> {
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
    eprintln!("no lab kernel with these options yet: building Linux {} once, up to 10 CPU-minutes", source.version);
    let tree = source.unpack(scratch.path())?;
    let linux = build::build(&tree, &scratch.path().join("out"), options.text, options.objects)?;
    cache.publish(&source.version, &linux).context("keeping the lab kernel")
}
