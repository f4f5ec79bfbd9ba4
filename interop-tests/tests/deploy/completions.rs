//! Tests the completions in the shells themselves: zsh and fish read the files and use them. The
//! test of the packages does the same with bash.

use std::process::Command;

use interop_tests::executables;
use interop_tests::suite::{Test, skip};

use crate::programs::{output, workspace};

pub(crate) const TESTS: &[Test] = &[
    ("zsh_reads_the_completions_and_uses_them_for_both_programs", zsh),
    ("fish_reads_the_completions_and_completes_with_them", fish),
];

const PROGRAMS: [&str; 2] = ["edge-agent", "edge-controller"];

fn zsh() {
    needs("zsh");
    let directory = workspace("deploy/completions");
    for program in PROGRAMS {
        output(Command::new("zsh").arg("-n").arg(directory.join(format!("_{program}")))).unwrap();
        // compinit finds the file by its first line; the function is then loaded from it.
        let script =
            "fpath=($1 $fpath); autoload -Uz compinit; compinit -u -D; print -r -- ${_comps[$2]}; autoload +X _$2";
        let mut command = Command::new("zsh");
        command.args(["-f", "-c", script, "zsh"]).arg(&directory).arg(program);
        assert_eq!(output(&mut command).unwrap().trim(), format!("_{program}"));
    }
}

fn fish() {
    needs("fish");
    for program in PROGRAMS {
        let file = workspace(&format!("deploy/completions/{program}.fish"));
        output(Command::new("fish").arg("--no-execute").arg(&file)).unwrap();
        let script = format!("source $argv[1]; complete --do-complete '{program} stat'");
        let said = output(Command::new("fish").args(["--no-config", "-c", &script]).arg(&file)).unwrap();
        let completed: Vec<&str> = said.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(completed, ["status"], "{said}");
    }
}

/// Skips the test if the shell is not installed.
fn needs(shell: &str) {
    if executables::find(shell).is_none() {
        skip(&format!("{shell} is missing: apt-get install {shell}"));
    }
}
