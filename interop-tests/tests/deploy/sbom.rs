//! Tests the software bill of materials that `make release` writes next to each program.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use interop_tests::suite::Test;
use serde_json::Value;

use crate::programs::{output, workspace};

pub(crate) const TESTS: &[Test] = &[
    ("a_bill_of_materials_names_what_cargo_builds_with_hashes_and_licences", complete),
    ("a_bill_of_materials_tells_linked_crates_from_those_of_the_build", scopes),
    ("a_bill_of_materials_has_the_same_bytes_each_time", repeatable),
];

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn text(program: &str) -> String {
    let mut command = Command::new(workspace(".ci/sbom"));
    output(command.args([program, TARGET]).current_dir(workspace("."))).unwrap_or_else(|said| panic!("{said}"))
}

fn document(program: &str) -> Value {
    serde_json::from_str(&text(program)).unwrap()
}

fn components(document: &Value) -> BTreeMap<(String, String), &Value> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let all = document["components"].as_array().unwrap().iter();
    all.map(|component| ((word(&component["name"]), word(&component["version"])), component)).collect()
}

/// Names and versions of packages.
type Packages = BTreeSet<(String, String)>;

/// Returns the direct dependencies of a package, and all of its dependencies, as cargo resolves
/// them, without those that only tests need. cargo unifies the features of the whole workspace
/// here, so the result may contain packages that the program does not need.
fn resolved(program: &str) -> (Packages, Packages) {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET]);
    let metadata: Value =
        serde_json::from_str(&output(command.current_dir(workspace("."))).unwrap_or_else(|said| panic!("{said}")))
            .unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let named = |id: &Value| {
        let package = packages.iter().find(|package| package["id"] == *id).unwrap();
        (package["name"].as_str().unwrap().to_owned(), package["version"].as_str().unwrap().to_owned())
    };
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let needs = |id: &Value| -> Vec<Value> {
        let node = nodes.iter().find(|node| node["id"] == *id).unwrap();
        let shipped =
            |dependency: &&Value| dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev");
        node["deps"].as_array().unwrap().iter().filter(shipped).map(|dependency| dependency["pkg"].clone()).collect()
    };
    let root = &packages.iter().find(|package| package["name"] == program).unwrap()["id"];
    let direct: Packages = needs(root).iter().map(named).collect();
    let (mut all, mut left) = (Packages::new(), needs(root));
    while let Some(id) = left.pop() {
        if all.insert(named(&id)) {
            left.extend(needs(&id));
        }
    }
    (direct, all)
}

fn complete() {
    for program in ["edge-agent", "edge-controller", "edge-cni"] {
        let document = document(program);
        assert_eq!((&document["bomFormat"], &document["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
        assert_eq!(document["metadata"]["component"]["name"], program);
        let components = components(&document);
        let (direct, all) = resolved(program);
        let is_std = |name: &str| name == "rust-std";
        for crate_ in &direct {
            assert!(components.contains_key(crate_), "{program} lacks {crate_:?}");
        }
        for (crate_, component) in &components {
            assert!(is_std(&crate_.0) || all.contains(crate_), "{program} does not need {crate_:?}");
            let licence = component["licenses"][0]["expression"].as_str().unwrap_or_default();
            assert!(!licence.is_empty() && !licence.contains('/'), "{crate_:?}: {licence:?}");
            let ours = crate_.0.starts_with("edge-");
            let hash = component["hashes"][0]["content"].as_str().unwrap_or_default();
            assert_eq!(hash.len() == 64, !ours && !is_std(&crate_.0), "{crate_:?}: {hash:?}");
        }
        let references: BTreeSet<&str> =
            components.values().map(|component| component["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(references.len(), components.len(), "references are unique");
        for dependency in document["dependencies"].as_array().unwrap() {
            for needed in dependency["dependsOn"].as_array().unwrap() {
                assert!(references.contains(needed.as_str().unwrap()), "{program}: {needed} is no component");
            }
        }
    }
}

fn scopes() {
    let (cni, controller) = (document("edge-cni"), document("edge-controller"));
    let scope = |document: &Value, name: &str| {
        let components = components(document);
        let found = components.iter().find(|((found, _), _)| found == name);
        found.map(|(_, component)| component["scope"].as_str().unwrap().to_owned())
    };
    assert_eq!(scope(&cni, "crc").as_deref(), Some("required"));
    assert_eq!(scope(&cni, "serde_derive").as_deref(), Some("excluded"), "it runs during the build");
    assert_eq!(scope(&cni, "tokio"), None, "the plugin is small");
    assert_eq!(scope(&cni, "rust-std").as_deref(), Some("required"));
    assert_eq!(scope(&controller, "tokio").as_deref(), Some("required"));
    assert_eq!(scope(&controller, "tempfile"), None, "tests alone need it");
}

fn repeatable() {
    assert_eq!(text("edge-cni"), text("edge-cni"));
    let made = document("edge-cni")["metadata"]["timestamp"].clone();
    assert_eq!(made, "1970-01-01T00:00:00Z", "no time of the build");
}
