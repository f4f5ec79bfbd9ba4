//! Checks that every test that `docs/threats.md` names exists.

use std::fs;
use std::path::{Path, PathBuf};

/// Minimum length of a test's name. Shorter words are names of nftables chains, sets and keys.
const SHORTEST_NAME: usize = 24;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Returns all Rust source files in the workspace, as one text.
fn sources() -> String {
    let mut text = String::new();
    let mut directories: Vec<PathBuf> =
        ["agent", "cni", "controller", "ike", "interop-tests", "types", "xfrm"].map(|name| root().join(name)).into();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("threats.rs") {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}

/// Returns the texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_the_threats_name_is_there() {
    let document = fs::read_to_string(root().join("docs/threats.md")).unwrap();
    let sources = sources();
    let is_name = |word: &&str| {
        word.len() >= SHORTEST_NAME && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let names: Vec<&str> = quoted(&document).filter(is_name).collect();
    assert!(names.len() > 40, "only {} names were found: is the document read right?", names.len());
    let missing: Vec<&str> = names
        .into_iter()
        .filter(|name| !sources.contains(&format!("fn {name}(")) && !sources.contains(&format!("\"{name}\"")))
        .collect();
    assert!(missing.is_empty(), "docs/threats.md names tests that do not exist: {missing:?}");
}

#[test]
fn every_scenario_that_the_threats_name_is_there() {
    let document = fs::read_to_string(root().join("docs/threats.md")).unwrap();
    for scenario in quoted(&document).filter(|word| ["demo/", "firewall/"].iter().any(|area| word.starts_with(area))) {
        let found = interop_tests::scenario::find(&interop_tests::scenarios::all(), scenario);
        assert!(found.is_some_and(|scenario| scenario.by_default), "{scenario} is no scenario that runs by default");
    }
}
