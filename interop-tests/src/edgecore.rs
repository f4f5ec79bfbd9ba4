//! Builds KubeEdge's edgecore from its Go modules, once per machine.
//!
//! The build takes half an hour of CPU time, so no test builds edgecore; `make edgecore` does.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cache::{self, BuildCache};
use crate::go_module::GoModule;

/// The release that `interop-tests/edgecore/go.mod` pins. The script `interop-tests/edgecore/pin`
/// pins another one.
pub const RELEASE: &str = "v1.23.0";

/// The reason why tests with edgecore do not run on a machine that has not built edgecore.
pub const MISSING: &str =
    "edgecore is not built on this machine; `make edgecore` builds it, in half an hour of CPU time";

const PROGRAM: &str = "edgecore";

const MODULE: GoModule = GoModule {
    go_mod: include_str!("../edgecore/go.mod"),
    go_sum: include_str!("../edgecore/go.sum"),
    programs: "edgecore",
    sources: "KubeEdge (400 MB)",
    otherwise: "leave out the tests with edgecore",
    packages: 2400,
    // edgecore needs C code, because its database is SQLite.
    cgo: true,
};

/// Returns edgecore, if this machine has built it.
#[must_use]
pub fn built() -> Option<PathBuf> {
    let (cache, name) = build_cache().ok()?;
    Some(cache.root().join(name).join(PROGRAM)).filter(|program| program.is_file())
}

/// Returns the path of edgecore. Builds edgecore if it is not there yet.
///
/// # Errors
/// Returns an error if Go is missing or too old, the module proxy cannot be reached or the build
/// fails. The message contains the remedy.
pub fn ensure() -> Result<PathBuf> {
    let (cache, name) = build_cache()?;
    let _lock = cache.lock()?;
    if let Some(program) = built() {
        return Ok(program);
    }
    let go = MODULE.go()?;
    eprintln!("no edgecore {RELEASE} yet: building it once, about 30 CPU-minutes");
    let scratch = cache.scratch()?;
    let out = MODULE.build(&go, scratch.path(), "-s -w")?;
    cache.publish(&name, &[&out.join(PROGRAM)])?;
    built().context("the cache lost what was just put there")
}

fn build_cache() -> Result<(BuildCache, String)> {
    let inputs = cache::digest(&[MODULE.go_mod, MODULE.go_sum]);
    Ok((BuildCache::open(PROGRAM, PROGRAM)?, format!("{RELEASE}-{inputs}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_modules_are_those_of_the_named_release() {
        for module in ["kubeedge", "api", "beehive"] {
            let line = format!("github.com/kubeedge/{module} {RELEASE}");
            assert!(MODULE.go_mod.contains(&line), "go.mod does not say {line}");
        }
    }
}
