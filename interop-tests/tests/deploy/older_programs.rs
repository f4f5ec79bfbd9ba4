//! Tests the programs of an earlier release together with the present ones: an upgrade, controller
//! first, and the way back, all on the same state. `make older` builds the earlier programs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use interop_tests::suite::{Test, skip};
use interop_tests::wait;
use serde_json::Value;

use crate::pair::{AGENT, Pair, Programs};
use crate::programs::{built, output, workspace};

pub(crate) const TESTS: &[Test] = &[
    ("an_upgrade_and_its_rollback_mix_two_releases_and_lose_nothing", both_ways),
    ("a_clone_without_the_earlier_release_is_told_so_and_builds_no_other_commit", shallow),
];

const NODE: &str = "edge-1";

/// Returns the path of a program of a release.
type Release = fn(&str) -> PathBuf;

/// Returns the path of a program of the earlier release.
fn older(program: &str) -> PathBuf {
    workspace("target/older").join(program)
}

/// Scenario: `git clone --depth 1` has one commit, which seems to have written every file.
fn shallow() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    let make = "mkdir -p .ci interop-tests/tests/data/layouts && cp \"$1\" .ci/older && git init --quiet . &&\n\
                echo 1 >interop-tests/tests/data/layouts/state && git add . &&\n\
                git -c user.name=x -c user.email=x@x commit --quiet --message first &&\n\
                git -c user.name=x -c user.email=x@x commit --quiet --allow-empty --message second &&\n\
                git clone --quiet --depth 1 \"file://$PWD\" ../shallow";
    fs::create_dir(&whole).unwrap();
    // What git exports to its hooks names another repository, and a configuration may want
    // signatures.
    let without_git = |program: &std::ffi::OsStr| {
        let mut command = Command::new(program);
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"] {
            command.env_remove(name);
        }
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        command
    };
    let mut command = without_git("sh".as_ref());
    command.args(["-ec", make, "sh"]).arg(workspace(".ci/older").canonicalize().unwrap());
    output(command.current_dir(&whole)).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = without_git(directory.path().join("shallow/.ci/older").as_os_str());
        let output = command.args(arguments).env("XDG_CACHE_HOME", directory.path().join("cache")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("is not in this clone") && said.contains("git fetch --unshallow"), "{said}");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).contains("skipped"))
    };
    assert_eq!(run(&["--or-skip"]), (true, true));
    assert_eq!(run(&[]), (false, false));
    assert!(!directory.path().join("shallow/target").exists());
}

fn both_ways() {
    if !older("edge-controller").is_file() || !older("edge-agent").is_file() {
        skip("target/older has no programs of an earlier release: run `make older`");
    }
    let directory = tempfile::tempdir().unwrap();
    let mut before = None;
    // The order of an upgrade, and back.
    let stages: [(&str, [Release; 2]); 6] = [
        ("both of the earlier release", [older, older]),
        ("the controller is upgraded", [built, older]),
        ("the agent is upgraded", [built, built]),
        ("the agent is rolled back", [built, older]),
        ("the controller is rolled back", [older, older]),
        ("the agent is upgraded first", [older, built]),
    ];
    for (number, (stage, [controller, agent])) in stages.into_iter().enumerate() {
        let programs = Programs { controller: controller("edge-controller"), agent: agent("edge-agent") };
        let pair = Pair::start_programs(directory.path(), NODE, programs);
        pair.until_connected();
        // A change reaches the agent while it is connected.
        let version = view_version(&pair).unwrap();
        let community = format!("stage-{number}");
        pair.operator(&["node", "label", NODE, &format!("fabedge/edge-community={community}")]);
        wait::for_event(stage, || {
            anyhow::ensure!(view_version(&pair)? > version, "the change does not arrive");
            Ok(())
        })
        .unwrap();
        let nodes = pair.operator(&["node", "list"]);
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == NODE).expect("the node");
        assert_eq!(node["connected"], true, "{stage}: {node}");
        assert_eq!(node["communities"], serde_json::json!([community]), "{stage}: {node}");
        let segments = node["segments"].clone();
        assert!(!segments.as_array().unwrap().is_empty(), "{stage}: {node}");
        pair.stop();
        // The node keeps its identity and its segments; nobody joins again.
        let identity = fs::read(directory.path().join("agent/identity.json")).unwrap();
        let stored: Value =
            serde_json::from_slice(&fs::read(directory.path().join("agent/segments.json")).unwrap()).unwrap();
        assert_eq!(stored["segments"], segments, "{stage}");
        let now = (identity, segments);
        assert!(before.as_ref().is_none_or(|before| *before == now), "{stage}: {} before: {before:?}", now.1);
        before = Some(now);
    }
}

/// Returns the version of the view that is in force at the agent.
fn view_version(pair: &Pair) -> anyhow::Result<f64> {
    let page = pair.page(AGENT).context("the agent's metrics")?;
    let line = page.lines().find_map(|line| line.strip_prefix("edge_agent_view_version "));
    Ok(line.context("the agent has no view")?.parse()?)
}
