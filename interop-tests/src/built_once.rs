//! Programs of other projects that are built from their Go modules, once per machine.
//!
//! A build takes up to half an hour of CPU time, so no test builds these programs; `make` does.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cache::{self, BuildCache};
use crate::go_module::GoModule;

/// The programs of one release of another project.
pub struct BuiltOnce {
    /// The directory below the cache, and the `make` target.
    name: &'static str,
    release: &'static str,
    module: GoModule,
    /// The programs that the module names as its tools.
    tools: &'static [&'static str],
    /// A directory of the module cache whose YAML files are kept beside the programs.
    manifests: Option<&'static str>,
    /// The cost of the build, for messages.
    cost: &'static str,
}

/// KubeEdge's edgecore. The script `interop-tests/edgecore/pin` pins another release.
pub const EDGECORE: BuiltOnce = BuiltOnce {
    name: "edgecore",
    release: "v1.23.0",
    module: GoModule {
        go_mod: include_str!("../edgecore/go.mod"),
        go_sum: include_str!("../edgecore/go.sum"),
        programs: "edgecore",
        sources: "KubeEdge (400 MB)",
        otherwise: "leave out the tests with edgecore",
        packages: 2400,
        // edgecore needs C code, because its database is SQLite.
        cgo: true,
    },
    tools: &["edgecore"],
    manifests: None,
    cost: "half an hour of CPU time",
};

/// KubeEdge's cloudcore, with the definitions of its custom resources. The script
/// `interop-tests/edgecore/pin` pins another release.
pub const CLOUDCORE: BuiltOnce = BuiltOnce {
    name: "cloudcore",
    release: "v1.23.0",
    module: GoModule {
        go_mod: include_str!("../cloudcore/go.mod"),
        go_sum: include_str!("../cloudcore/go.sum"),
        programs: "cloudcore",
        sources: "KubeEdge (400 MB)",
        otherwise: "leave out the tests with cloudcore",
        packages: 1611,
        // cloudcore contains SQLite, as edgecore does.
        cgo: true,
    },
    tools: &["cloudcore"],
    manifests: Some("github.com/kubeedge/kubeedge@v1.23.0/build/crds"),
    cost: "half an hour of CPU time",
};

/// containerd 1.7 with its shim and `ctr`. The script `interop-tests/containerd/pin` pins another
/// release.
pub const CONTAINERD_1_7: BuiltOnce = BuiltOnce {
    name: "containerd",
    release: "v1.7.35",
    module: containerd(include_str!("../containerd/1.7/go.mod"), include_str!("../containerd/1.7/go.sum")),
    tools: CONTAINERD,
    manifests: None,
    cost: "10 minutes of CPU time",
};

/// containerd 2.1 with its shim and `ctr`. The script `interop-tests/containerd/pin` pins another
/// release.
pub const CONTAINERD_2_1: BuiltOnce = BuiltOnce {
    name: "containerd",
    release: "v2.1.9",
    module: containerd(include_str!("../containerd/2.1/go.mod"), include_str!("../containerd/2.1/go.sum")),
    tools: CONTAINERD,
    manifests: None,
    cost: "10 minutes of CPU time",
};

const CONTAINERD: &[&str] = &["containerd", "containerd-shim-runc-v2", "ctr"];

const fn containerd(go_mod: &'static str, go_sum: &'static str) -> GoModule {
    GoModule {
        go_mod,
        go_sum,
        programs: "containerd",
        sources: "containerd (100 MB)",
        otherwise: "leave out the tests with this containerd",
        packages: 1100,
        cgo: false,
    }
}

impl BuiltOnce {
    /// Returns the directory of the programs, if this machine has built them.
    #[must_use]
    pub fn built(&self) -> Option<PathBuf> {
        let (cache, entry) = self.build_cache().ok()?;
        let directory = cache.root().join(entry);
        self.tools.iter().all(|tool| directory.join(tool).is_file()).then_some(directory)
    }

    /// Returns the release without its patch level, for example `2.1`.
    #[must_use]
    pub fn minor_release(&self) -> &'static str {
        let release = self.release.trim_start_matches('v');
        release.rsplit_once('.').map_or(release, |(minor, _)| minor)
    }

    /// Returns the reason why tests with the programs cannot run on this machine. `None` if it has
    /// built them.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let Self { name, release, cost, .. } = self;
        self.built()
            .is_none()
            .then(|| format!("{name} {release} is not built on this machine; `make {name}` builds it, in {cost}"))
    }

    /// Returns the directory of the programs. Builds the programs if they are not there yet.
    ///
    /// # Errors
    /// Returns an error if Go is missing or too old, the module proxy cannot be reached or the
    /// build fails. The message contains the remedy.
    pub fn ensure(&self) -> Result<PathBuf> {
        let (cache, entry) = self.build_cache()?;
        let _lock = cache.lock()?;
        if let Some(directory) = self.built() {
            return Ok(directory);
        }
        let go = self.module.go()?;
        eprintln!("no {} {} yet: building it once, in {}", self.name, self.release, self.cost);
        let scratch = cache.scratch()?;
        let out = self.module.build(&go, scratch.path(), "-s -w")?;
        let mut kept: Vec<PathBuf> = self.tools.iter().map(|tool| out.join(tool)).collect();
        if let Some(manifests) = self.manifests {
            kept.extend(yaml_files(&scratch.path().join("sources").join(manifests))?);
        }
        cache.publish(&entry, &kept.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
        self.built().context("the cache lost what was just put there")
    }

    fn build_cache(&self) -> Result<(BuildCache, String)> {
        let inputs = cache::digest(&[self.module.go_mod, self.module.go_sum]);
        Ok((BuildCache::open(self.name, self.name)?, format!("{}-{inputs}", self.release)))
    }
}

/// Returns the YAML files below a directory.
fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(yaml_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_modules_are_those_of_the_named_release() {
        for programs in [&EDGECORE, &CLOUDCORE] {
            for module in ["kubeedge", "api", "beehive"] {
                let line = format!("github.com/kubeedge/{module} {}", programs.release);
                assert!(programs.module.go_mod.contains(&line), "{}'s go.mod does not say {line}", programs.name);
            }
        }
        for (programs, module) in [(&CONTAINERD_1_7, "containerd"), (&CONTAINERD_2_1, "containerd/v2")] {
            let line = format!("github.com/containerd/{module} {}", programs.release);
            assert!(programs.module.go_mod.contains(&line), "go.mod does not say {line}");
        }
    }

    #[test]
    fn cloudcores_definitions_are_those_of_its_release() {
        let kubeedge = format!("kubeedge@{}/", CLOUDCORE.release);
        assert!(CLOUDCORE.manifests.is_some_and(|directory| directory.contains(&kubeedge)));
    }

    #[test]
    fn a_module_names_the_programs_that_are_kept() {
        for programs in [&EDGECORE, &CLOUDCORE, &CONTAINERD_1_7, &CONTAINERD_2_1] {
            for tool in programs.tools {
                let named = programs.module.go_mod.lines().any(|line| line.ends_with(&format!("/cmd/{tool}")));
                assert!(named, "no tool {tool} in the go.mod of {}", programs.name);
            }
        }
    }
}
