//! Tests that a build machine does not pass over the builds for other machines.

use std::os::unix::fs::symlink;
use std::process::Command;

use interop_tests::executables;
use interop_tests::suite::Test;

use crate::programs::workspace;

pub(crate) const TESTS: &[Test] =
    &[("without_the_compilers_for_other_machines_the_build_is_skipped_except_in_ci", without_compilers)];

fn without_compilers() {
    let directory = tempfile::tempdir().unwrap();
    for program in ["bash", "dirname", "rustc", "rustup"] {
        if let Some(found) = executables::find(program) {
            symlink(found, directory.path().join(program)).unwrap();
        }
    }
    let run = |arguments: &[&str], ci: &str| {
        let mut command = Command::new(executables::find("bash").expect("bash"));
        command.arg(workspace(".ci/cross")).args(arguments).arg("edge-cni");
        let output = command.env("PATH", directory.path()).env("CI", ci).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stderr);
        for missing in ["missing: gcc-aarch64-linux-gnu", "missing: gcc-arm-linux-gnueabihf", "apt-get install"] {
            assert!(said.contains(missing), "{missing}: {said}");
        }
        (output.status.success(), text(&output.stdout).contains("skipped"))
    };
    for outside in ["", "0", "false"] {
        assert_eq!(run(&["--or-skip"], outside), (true, true), "CI={outside}");
    }
    assert_eq!(run(&["--or-skip"], "true"), (false, false));
    assert_eq!(run(&[], ""), (false, false));
}
