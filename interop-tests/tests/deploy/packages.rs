//! Tests the Debian packages, in a copy of this machine's system.

use std::process::Command;

use interop_tests::suite::Test;

use crate::programs::{built, output, workspace};

pub(crate) const TESTS: &[Test] = &[("the_packages_are_installed_run_upgraded_removed_and_purged", packages)];

fn packages() {
    assert!(rustix::process::geteuid().is_root(), "run it as root: it needs mount and network namespaces");
    let directory = tempfile::tempdir().unwrap();
    let [programs, _, _] = ["edge-agent", "edge-controller", "edge-cni"].map(built);
    let at = |version: &str| directory.path().join(version);
    for version in ["1", "2"] {
        let mut build = Command::new(workspace("deploy/debian/build"));
        build.arg(programs.parent().expect("a directory")).arg(at(version)).arg(version);
        // The contents are the same as with xz, and the build is faster.
        output(build.env("COMPRESSION", "none")).unwrap();
    }
    let mut command = Command::new("unshare");
    // All processes end with the script.
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh"]);
    command.arg(workspace("interop-tests/tests/deploy/packages.sh")).arg(at("1")).arg(at("2"));
    command.env("TMPDIR", directory.path());
    let said = output(&mut command).unwrap_or_else(|why| panic!("{why}"));
    assert!(said.ends_with("packages: all done\n"), "{said}");
}
