//! What others on the machine can see of the program's memory and files.

use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process::Program;

/// A user without rights, as which root runs the program here: of a root's process every file in `/proc` is root's.
const NOBODY: u32 = 65534;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

#[test]
fn no_core_is_written_and_no_process_of_the_same_user_may_look_into_its_memory() {
    let program = Program::new();
    let is_root = rustix::process::geteuid().is_root();
    // The path to the program may be closed to that user; an open file is not. Not closed at exec: rustix's dup leaves the flag off.
    let executable = rustix::io::dup(File::open(env!("CARGO_BIN_EXE_edge-controller")).unwrap()).unwrap();
    let mut command = Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()));
    if is_root {
        for path in [program.path("."), program.path("c.toml")] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    let config = program.path("c.toml");
    command.args(["run", "--config", config.to_str().unwrap()]).env_remove("RUST_LOG").stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while std::io::BufRead::read_line(&mut log, &mut said).unwrap() > 0 && !said.contains("serving") {}
    let proc = |file: &str| Path::new("/proc").join(child.id().to_string()).join(file);
    let limits = fs::read_to_string(proc("limits")).unwrap_or_else(|error| panic!("{error}: {said}"));
    // proc(5): of a process that is not dumpable these belong to root.
    let owner = fs::metadata(proc("mem")).map(|found| found.uid());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said.contains("serving"), "{said}");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"], "{core}");
    assert_eq!(owner.unwrap(), 0);
}

#[test]
fn a_state_directory_and_files_that_were_open_to_others_are_closed_at_start() {
    let mut program = Program::new();
    program.start();
    program.kill();
    let folder = program.path("state");
    let files = ["ca.json", "ca.crt", "controller.redb"].map(|name| folder.join(name));
    for file in &files {
        assert_eq!(mode(file), 0o600, "as made: {}", file.display());
        fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
    }
    let (outside, link) = (program.path("outside"), folder.join("link"));
    fs::write(&outside, "another's").unwrap();
    fs::set_permissions(&outside, Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink(&outside, link).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    program.start();
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&outside), 0o644, "what a link leads to is not ours");
}
