//! Tests what other users of the machine can see of the program's memory and files.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::harness::Node;
use crate::process::{Program, text};

/// The unprivileged user for the program if the test runs as root. Otherwise every file in `/proc`
/// of the process would belong to root.
const NOBODY: u32 = 65534;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

#[test]
fn no_core_is_written_and_no_process_of_the_same_user_may_look_into_its_memory() {
    let program = Program::new();
    let is_root = rustix::process::geteuid().is_root();
    // That user may be unable to reach the program's path, but can use an open file. The descriptor
    // stays open at exec, because rustix's dup does not set the flag.
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
    // proc(5): these files of a process that is not dumpable belong to root.
    let owner = fs::metadata(proc("mem")).map(|found| found.uid());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said.contains("serving"), "{said}");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"], "{core}");
    assert_eq!(owner.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gathered_helps_to_find_a_fault_and_contains_no_secret() {
    let mut program = Program::with("cluster_ranges = [\"10.77.0.0/16\"]\n");
    program.start();
    let token = text(&program.run(&["token", "create", "--role", "edge"]).stdout);
    let token: edge_types::JoinToken = token.parse().unwrap();
    let ca = CertificateDer::from_pem_file(program.path("state/ca.crt")).unwrap();
    let node = Node::join(program.addresses[0], ca, &token, "edge-1").await;
    let report = serde_json::json!({"addresses": ["192.0.2.1"], "port": 4500, "obstacles": ["ufw drops"]});
    assert_eq!(node.ask(hyper::Method::PUT, "", Some(report)).await.0, 204);
    let (bundle, config) = (program.path("bundle.json"), program.path("c.toml"));
    let observe = format!("--observe-listen={}", program.addresses[1]);
    let args = ["gather", bundle.to_str().unwrap(), "--config", config.to_str().unwrap(), &observe];
    let output = program.run(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(mode(&bundle), 0o600);
    let written = fs::read_to_string(&bundle).unwrap();
    for expected in
        ["edge-1", "ufw drops", "10.77.0.0/26", &token.id, "BEGIN CERTIFICATE", "[+]store ok", "edge_controller_nodes"]
    {
        assert!(written.contains(expected), "{expected} is missing:\n{written}");
    }
    assert!(!written.contains("\"error\""), "{written}");
    // Standard output gets the same, and nothing else.
    let printed = program.run(&["gather", "-", "--config", config.to_str().unwrap(), &observe]);
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    let (mut printed, mut document): (serde_json::Value, serde_json::Value) =
        (serde_json::from_slice(&printed.stdout).unwrap(), serde_json::from_str(&written).unwrap());
    // The second that each run was answered in.
    for whole in [&mut printed, &mut document] {
        assert!(whole["status"].as_object_mut().unwrap().remove("time").is_some(), "{whole}");
    }
    for part in ["status", "segments", "communities", "tokens", "authorities", "configuration"] {
        assert!(printed[part] == document[part] && !printed[part].is_null(), "{part}: {printed}");
    }
    assert_eq!(printed.as_object().unwrap().len(), document.as_object().unwrap().len());
    assert!(!std::path::Path::new("-").exists(), "a file named - was made");
    // The existing secrets are the token's, its hash, and every line of the authority's key.
    let kept = fs::read_to_string(program.path("state/ca.json")).unwrap();
    let key = kept.split("PRIVATE KEY-----").nth(1).expect("the authority has a key");
    let lines = key.split("\\n").filter(|line| line.len() > 20 && !line.contains("END"));
    let hash =
        edge_controller_domain::ca::hex(ring::digest::digest(&ring::digest::SHA256, token.secret.as_bytes()).as_ref());
    let secrets: Vec<&str> = lines.chain([token.secret.as_str(), hash.as_str(), "PRIVATE KEY"]).collect();
    assert!(secrets.len() > 3, "{}", secrets.len());
    for secret in secrets {
        assert!(kept.contains(secret) || secret == token.secret.as_str() || secret == hash);
        assert!(!written.contains(secret), "a secret of {} characters is in it", secret.len());
    }
    // Without the server, the file names the missing parts and contains the rest.
    program.kill();
    let output = program.run(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(&bundle).unwrap()).unwrap();
    assert!(written["status"]["error"].as_str().unwrap().contains("no edge-controller answers"), "{written}");
    assert!(written["configuration"].to_string().contains("10.77.0.0/16"), "{written}");
}

/// Makes a controller that has run, its state directory, and the files in it.
fn state_of_a_run() -> (Program, PathBuf, [PathBuf; 3]) {
    let mut program = Program::new();
    program.start();
    program.kill();
    let directory = program.path("state");
    let files = ["ca.json", "ca.crt", "controller.redb"].map(|name| directory.join(name));
    (program, directory, files)
}

#[test]
fn a_state_directory_and_files_that_were_open_to_others_are_closed_at_start() {
    let (mut program, directory, files) = state_of_a_run();
    for file in &files {
        assert_eq!(mode(file), 0o600, "as made: {}", file.display());
        fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
    }
    let (outside, link) = (program.path("outside"), directory.join("ca.json.link"));
    fs::write(&outside, "another's").unwrap();
    fs::set_permissions(&outside, Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink(&outside, link).unwrap();
    // A restore left the first directory, and a file system created the second.
    for name in ["before-restore-2026", "lost+found"] {
        fs::DirBuilder::new().recursive(true).create(directory.join(name)).unwrap();
        fs::set_permissions(directory.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
    program.start();
    assert_eq!(mode(&directory.join("before-restore-2026")), 0o700);
    assert_eq!(mode(&directory.join("lost+found")), 0o755);
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&outside), 0o644, "what a link leads to is not ours");
}

/// Returns everything in a directory with its mode.
fn modes(directory: &Path) -> BTreeMap<PathBuf, u32> {
    let mut found = BTreeMap::from([(directory.to_owned(), mode(directory))]);
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut modes(&path));
        } else {
            found.insert(path.clone(), mode(&path));
        }
    }
    found
}

fn put(path: &Path, mode: u32) {
    fs::write(path, "another's").unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_directory_that_others_share_is_refused_and_nothing_in_it_changes() {
    // Directories like `/var/lib`, like `/tmp`, like a directory of Kubernetes' certificates, and
    // one with another user's file of the same name.
    for (directory_mode, names) in [
        (0o755, &["dpkg/status", "passwd"][..]),
        (0o770, &["passwd"]),
        (0o1777, &["x11/socket"]),
        (0o1777, &[]),
        (0o755, &["ca.crt", "ca.key"]),
        (0o755, &["ca.crt", "ca.key", "sa.key"]),
    ] {
        let mut program = Program::new();
        let directory = program.path("state");
        fs::create_dir(&directory).unwrap();
        for name in names {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            put(&path, 0o644);
        }
        fs::set_permissions(&directory, Permissions::from_mode(directory_mode)).unwrap();
        let before = modes(&directory);
        let said = program.does_not_start();
        assert!(said.contains("state_dir") && said.contains("name a directory of its own"), "{names:?}: {said}");
        assert_eq!(modes(&directory), before, "{names:?}");
        // If its owner has closed the directory, it is accepted.
        if !names.contains(&"ca.crt") {
            fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
            program.start();
            for name in names {
                assert_eq!(mode(&directory.join(name)), 0o644, "{name}");
            }
        }
    }
}

#[test]
fn state_that_is_in_a_shared_directory_already_is_closed_and_the_directory_is_left() {
    for directory_mode in [0o755, 0o1777] {
        let (mut program, directory, files) = state_of_a_run();
        for file in &files {
            fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
        }
        let (another, its_directory) = (directory.join("passwd"), directory.join("dpkg"));
        put(&another, 0o644);
        fs::create_dir(&its_directory).unwrap();
        fs::set_permissions(&its_directory, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(directory_mode)).unwrap();
        program.start();
        for file in &files {
            assert_eq!(mode(file), 0o600, "{}", file.display());
        }
        assert_eq!((mode(&directory), mode(&another), mode(&its_directory)), (directory_mode, 0o644, 0o755));
    }
}
