//! Finds or builds the programs of a control plane.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::build::{self, OVERRIDE};
use crate::cache::{self, BuildCache};
use crate::executables;

/// The Kubernetes release that `interop-tests/kube/go.mod` pins. The script
/// `interop-tests/kube/pin` pins another one.
pub const RELEASE: &str = "v1.37.2";

const API_SERVER: &str = "kube-apiserver";
const KUBECTL: &str = "kubectl";

/// The paths of both programs of the release.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Path of `kube-apiserver`.
    pub api_server: PathBuf,
    /// Path of `kubectl`.
    pub kubectl: PathBuf,
}

impl Programs {
    fn in_directory(directory: &Path) -> Option<Self> {
        let found = Self { api_server: directory.join(API_SERVER), kubectl: directory.join(KUBECTL) };
        (found.api_server.is_file() && found.kubectl.is_file()).then_some(found)
    }

    fn overridden() -> Result<Option<Self>> {
        let Some(directory) = std::env::var_os(OVERRIDE).map(PathBuf::from) else {
            return Ok(None);
        };
        let found = Self::in_directory(&directory);
        Ok(Some(found.with_context(|| {
            format!("{OVERRIDE} names {}, which does not hold {API_SERVER} and {KUBECTL}", directory.display())
        })?))
    }
}

/// Other programs that a control plane needs.
#[derive(Debug, Clone)]
pub(super) struct Helpers {
    pub(super) etcd: PathBuf,
    pub(super) etcdctl: PathBuf,
}

impl Helpers {
    pub(super) fn find() -> Result<Self> {
        let find = |program: &str, package: &str| {
            executables::find(program).with_context(|| {
                format!("{program} is missing: run .ci/install as root, or install Debian's package {package}")
            })
        };
        find("setpriv", "util-linux")?;
        Ok(Self { etcd: find("etcd", "etcd-server")?, etcdctl: find("etcdctl", "etcd-client")? })
    }
}

/// Returns `kube-apiserver` and `kubectl`. Builds them if they are not there yet.
///
/// # Errors
/// Returns an error if Go is missing or too old, the module proxy cannot be reached or the build
/// fails. The message contains the remedy.
pub fn ensure() -> Result<Programs> {
    if let Some(programs) = Programs::overridden()? {
        return Ok(programs);
    }
    let (cache, name) = build_cache()?;
    let built = cache.root().join(&name);
    if let Some(programs) = Programs::in_directory(&built) {
        return Ok(programs);
    }
    let _lock = cache.lock()?;
    // Another process may have built the programs while this one waited for the lock.
    if let Some(programs) = Programs::in_directory(&built) {
        return Ok(programs);
    }
    let go = build::MODULE.go()?;
    eprintln!("no {API_SERVER} {RELEASE} yet: building it and {KUBECTL} once, {}", build::COST);
    let scratch = cache.scratch()?;
    let out = build::MODULE.build(&go, scratch.path(), &build::link_flags(RELEASE))?;
    let built = cache.publish(&name, &[&out.join(API_SERVER), &out.join(KUBECTL)])?;
    Programs::in_directory(&built).with_context(|| format!("{} lost what was just put there", built.display()))
}

/// Returns the reason why this machine cannot run a control plane; `None` if it can. The check
/// builds nothing.
#[must_use]
pub fn unavailable() -> Option<String> {
    let found = || -> Result<()> {
        Helpers::find()?;
        if Programs::overridden()?.is_some() {
            return Ok(());
        }
        let (cache, name) = build_cache()?;
        if Programs::in_directory(&cache.root().join(name)).is_none() {
            build::MODULE.go()?;
        }
        Ok(())
    };
    found().err().map(|error| format!("{error:#}"))
}

fn build_cache() -> Result<(BuildCache, String)> {
    let pin = ["k8s.io/kubernetes", RELEASE];
    if !build::MODULE.go_mod.lines().any(|line| line.trim_start_matches("require ").split_whitespace().take(2).eq(pin))
    {
        bail!("interop-tests/kube/go.mod does not pin {RELEASE}: run interop-tests/kube/pin {RELEASE}");
    }
    let inputs = cache::digest(&[build::MODULE.go_mod, build::MODULE.go_sum]);
    Ok((BuildCache::open("kube", "kube-apiserver and kubectl")?, format!("{RELEASE}-{inputs}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_modules_are_those_of_the_named_release() {
        let (_, name) = build_cache().unwrap();
        assert!(name.starts_with(RELEASE), "{name}");
        let staging = RELEASE.replacen("v1.", "v0.", 1);
        for module in ["k8s.io/api", "k8s.io/apiserver", "k8s.io/client-go", "k8s.io/kubectl"] {
            let line = format!("{module} => {module} {staging}\n");
            assert!(build::MODULE.go_mod.contains(&line), "go.mod does not say {line}");
        }
    }
}
