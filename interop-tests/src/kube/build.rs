//! Builds the Kubernetes programs from Go modules.

use crate::go_module::GoModule;

/// Environment variable with a directory of ready `kube-apiserver` and `kubectl`, for machines that
/// cannot build them.
pub const OVERRIDE: &str = "EDGE_KUBE_PROGRAMS";

/// The cost of a build, for messages.
pub(super) const COST: &str = "about 10 CPU-minutes";

/// The modules of both programs.
pub(super) const MODULE: GoModule = GoModule {
    go_mod: include_str!("../../kube/go.mod"),
    go_sum: include_str!("../../kube/go.sum"),
    programs: "kube-apiserver and kubectl",
    sources: "Kubernetes (150 MB)",
    otherwise: "name ready programs in EDGE_KUBE_PROGRAMS",
    packages: 2277,
    cgo: false,
};

/// Returns the linker flags: no symbols, and the version that the release's own build sets.
pub(super) fn link_flags(release: &str) -> String {
    let mut numbers = release.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [("Version", release), ("Major", major), ("Minor", minor), ("TreeState", "clean")] {
            flags.push_str(&format!(" -X {package}.git{name}={value}"));
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_told_their_release() {
        let flags = link_flags("v1.37.2");
        assert!(flags.contains("-X k8s.io/component-base/version.gitVersion=v1.37.2"), "{flags}");
        assert!(flags.contains("-X k8s.io/component-base/version.gitMinor=37"), "{flags}");
    }
}
