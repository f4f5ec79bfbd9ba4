//! Tests the controller while the disk of its store is full.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use interop_tests::netns::is_root_or_skips;
use serde_json::{Value, json};

use crate::process::{Program, text};

/// More tokens than there is room for in the store's file before it must grow.
const MANY: usize = 5000;

/// Makes the server run with a small disk of its own as its state directory. The other commands run
/// as usual.
fn with_small_disk() -> Program {
    let mut program = Program::new();
    let script = format!(
        "#!/bin/sh\n\
         [ \"$1\" = run ] || exec {executable:?} \"$@\"\n\
         exec unshare --mount sh -c 'mount -t tmpfs -o size=16m,mode=700 none {state} && exec \"$0\" \"$@\"' {executable:?} \"$@\"\n",
        executable = program.executable,
        state = program.path("state").display(),
    );
    std::fs::create_dir(program.path("state")).unwrap();
    let path = program.path("controller");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    program.executable = path;
    program
}

/// Fills the disk of the running server, which only its mount namespace has. Returns the file.
fn fill_disk(program: &Program) -> PathBuf {
    let state = program.path("state");
    let root = PathBuf::from(format!("/proc/{}/root", program.server.as_ref().unwrap().id()));
    let path = root.join(state.strip_prefix("/").unwrap()).join("fill");
    let mut file = std::fs::File::create(&path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    path
}

fn problems(program: &Program) -> Value {
    program.json(&["status"])["problems"].clone()
}

#[test]
fn a_full_disk_is_shown_before_and_while_changes_fail_and_all_goes_on_with_room() {
    if !is_root_or_skips() {
        return;
    }
    let mut program = with_small_disk();
    program.start();
    assert_eq!(problems(&program), json!([]));
    let fill = fill_disk(&program);
    let shown = problems(&program);
    assert!(shown[0].as_str().unwrap().contains("state has 0 KiB left: "), "{shown}");
    let create = ["token", "create", "--role", "edge"];
    let failed = (0..MANY).map(|_| program.run(&create)).find(|output| !output.status.success());
    let failed = failed.expect("a change that cannot be stored");
    let said = text(&failed.stderr);
    assert!(failed.status.code() == Some(1) && said.contains("No space left on device"), "{said}");
    assert_eq!(said.to_lowercase().matches("the store failed").count(), 1, "{said}");
    let listed = program.json(&["token", "list"]);
    assert_eq!(program.json(&["token", "list"]), listed, "what is stored can be read");
    std::fs::remove_file(fill).unwrap();
    assert_eq!(problems(&program), json!([]));
    assert!(program.run(&create).status.success());
    let before = listed.as_array().unwrap().len();
    assert_eq!(program.json(&["token", "list"]).as_array().unwrap().len(), before + 1);
}
