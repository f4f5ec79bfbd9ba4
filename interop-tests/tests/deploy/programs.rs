//! Finds workspace files and runs programs.

use std::path::PathBuf;
use std::process::Command;

/// Returns the path of a workspace file.
pub(crate) fn workspace(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Returns the path of a program that `cargo test --workspace` has built next to this test.
pub(crate) fn built(program: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps").join(program);
    assert!(path.is_file(), "{} is missing: run cargo build -p {program}", path.display());
    path
}

/// Runs a command to its end. Returns its standard output if it succeeds, otherwise its standard
/// error.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) }
}
