//! Tests that the programs accept state that earlier releases left on disk. Each directory in
//! `interop-tests/tests/data/layouts` has the state directories of a controller and of an agent
//! that joined it, as one release wrote them; the keys in them were made for this test.
//! `EDGE_UPDATE=1` writes the directory for the present version; do this for each release. The
//! node's certificate expires after 825 days; remove directories that are as old.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use interop_tests::suite::Test;
use serde_json::Value;

use crate::pair::Pair;
use crate::programs::{built, output, workspace};

pub(crate) const TESTS: &[Test] = &[
    ("state_of_every_release_is_read_by_the_present_programs_and_nobody_joins_again", every_release),
    ("state_of_a_later_layout_is_refused_in_words_and_left_as_it_is", later),
];

/// The node in the layouts.
const NODE: &str = "edge-1";

fn layouts() -> PathBuf {
    workspace("interop-tests/tests/data/layouts")
}

/// Makes a copy that only its owner can read, as the programs require, because git keeps no
/// permissions.
fn copy_of(layout: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    output(Command::new("cp").arg("-rT").arg(layout).arg(directory.path())).unwrap();
    output(Command::new("chmod").args(["-R", "u=rwX,go="]).arg(directory.path())).unwrap();
    directory
}

/// Returns the path of this version's layout.
fn present() -> PathBuf {
    layouts().join(env!("CARGO_PKG_VERSION"))
}

/// Writes the layout of this version.
fn update() {
    let directory = tempfile::tempdir().unwrap();
    let pair = Pair::start(directory.path(), NODE);
    pair.until_connected();
    pair.operator(&["node", "label", NODE, "fabedge/edge-community=alpha"]);
    pair.stop();
    if present().exists() {
        fs::remove_dir_all(present()).unwrap();
    }
    for state in ["controller", "agent"] {
        fs::create_dir_all(present()).unwrap();
        output(Command::new("cp").arg("-r").arg(directory.path().join(state)).arg(present())).unwrap();
    }
}

fn every_release() {
    if std::env::var_os("EDGE_UPDATE").is_some() {
        update();
    }
    let mut layouts: Vec<PathBuf> = fs::read_dir(layouts()).unwrap().map(|entry| entry.unwrap().path()).collect();
    layouts.sort();
    assert!(!layouts.is_empty());
    for layout in layouts {
        let directory = copy_of(&layout);
        let identity = fs::read(directory.path().join("agent/identity.json")).unwrap();
        let segments: Value = json(&directory.path().join("agent/segments.json"));
        // There is no join token, so the agent connects with its stored identity.
        let pair = Pair::start(directory.path(), NODE);
        pair.until_connected();
        let nodes = pair.operator(&["node", "list"]);
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == NODE).expect("the node");
        assert_eq!(node["connected"], true, "{}: {node}", layout.display());
        assert_eq!(node["communities"], serde_json::json!(["alpha"]), "{node}");
        assert_eq!(node["segments"], segments["segments"], "{node}");
        pair.stop();
        assert_eq!(fs::read(directory.path().join("agent/identity.json")).unwrap(), identity, "{}", layout.display());
        assert_eq!(json(&directory.path().join("agent/segments.json"))["segments"], segments["segments"]);
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn later() {
    for (program, file) in [("edge-controller", "controller/ca.json"), ("edge-agent", "agent/identity.json")] {
        let directory = copy_of(&present());
        // The files that configure both programs.
        let pair = Pair::start(directory.path(), NODE);
        pair.until_connected();
        pair.stop();
        let path = directory.path().join(file);
        let mut document = json(&path);
        document["version"] = 1000.into();
        let later = serde_json::to_vec(&document).unwrap();
        fs::write(&path, &later).unwrap();
        let config = directory.path().join(format!("{}.toml", program.trim_start_matches("edge-")));
        let out = Command::new("unshare")
            .args(["--net", "--"])
            .arg(built(program))
            .args(["run", "--config"])
            .arg(config)
            .output();
        let out = out.unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{file}: {said}");
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(said.contains(name) && said.contains("1000") && said.contains("release"), "{file}: {said}");
        assert!(fs::read(&path).unwrap() == later, "{file} was changed");
    }
}
