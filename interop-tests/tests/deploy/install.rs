//! Tests that the files and commands in the pages of `docs/install` are accepted unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use interop_tests::edgecore::{self, Cloud, Settings};
use interop_tests::executables;
use interop_tests::suite::Test;
use serde_json::Value;

use crate::helm::{helm, template};
use crate::programs::{built, output, workspace};

pub(crate) const TESTS: &[Test] = &[
    ("the_files_in_the_pages_about_installing_are_accepted", files),
    ("the_commands_in_the_pages_about_installing_are_understood", commands),
];

/// A block of code, with its page, its language and its text.
struct Block {
    page: String,
    language: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for entry in fs::read_dir(workspace("docs/install")).unwrap() {
        let path = entry.unwrap().path();
        let page = path.file_name().expect("a name").to_str().expect("a name in UTF-8").to_owned();
        for part in fs::read_to_string(&path).unwrap().split("\n```").skip(1).step_by(2) {
            let (language, text) = part.split_once('\n').expect("a line with the language");
            blocks.push(Block { page: page.clone(), language: language.to_owned(), text: text.to_owned() });
        }
    }
    assert!(blocks.len() > 20, "only {} blocks of code were found", blocks.len());
    blocks
}

fn files() {
    let directory = tempfile::tempdir().unwrap();
    let mut seen = BTreeMap::<&str, usize>::new();
    for Block { page, language, text } in blocks() {
        let path = directory.path().join("file");
        fs::write(&path, &text).unwrap();
        let kind = match language.as_str() {
            "toml" if text.contains("cluster_ranges") => {
                let mut command = Command::new(built("edge-controller"));
                output(command.args(["config", "--config"]).arg(&path)).unwrap_or_else(|why| panic!("{page}: {why}"));
                "controller.toml"
            }
            "toml" => {
                let out = Command::new(built("edge-agent")).args(["check", "--config"]).arg(&path).output().unwrap();
                // Exit code 1 reports a finding, since this machine has neither token nor secret.
                // Exit code 2 means that the file is refused.
                assert_ne!(out.status.code(), Some(2), "{page}: {}", String::from_utf8_lossy(&out.stderr));
                "agent.toml"
            }
            "yaml" if text.starts_with("modules:") => {
                let fragment: Value = serde_saphyr::from_str(&text).unwrap_or_else(|why| panic!("{page}: {why}"));
                edgecore_has(&page, &edgecore_configuration(), &fragment);
                "edgecore.yaml"
            }
            "ini" if text.contains("\n[Service]\n") => {
                for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                    let section = line.starts_with('[') && line.ends_with(']');
                    assert!(section || line.contains('='), "{page}: {line}");
                }
                "unit"
            }
            "ini" => {
                // The lab runs the resolver (`kubeedge/services`), if it is installed.
                if let Some(dnsmasq) = executables::find("dnsmasq") {
                    let mut command = Command::new(dnsmasq);
                    command.arg("--test").arg(format!("--conf-file={}", path.display()));
                    output(&mut command).unwrap_or_else(|why| panic!("{page}: {why}"));
                }
                "resolver.conf"
            }
            "yaml" => {
                let path = path.to_str().expect("a path in UTF-8");
                template(&["--values", path]).unwrap_or_else(|why| panic!("{page}: {why}"));
                "values.yaml"
            }
            "sh" => continue,
            other => panic!("{page} has a block in {other:?}, which nothing here reads"),
        };
        *seen.entry(kind).or_default() += 1;
    }
    for kind in ["controller.toml", "agent.toml", "values.yaml", "edgecore.yaml", "unit", "resolver.conf"] {
        assert!(seen.contains_key(kind), "no {kind} was found: {seen:?}");
    }
}

/// Returns the configuration with which the lab runs edgecore, which refuses unknown keys.
fn edgecore_configuration() -> Value {
    let cluster_dns = &["192.0.2.53".to_owned()];
    edgecore::configuration(&Settings { node: "edge", directory: "", cgroup: "", cloud: Cloud::Never, cluster_dns })
}

/// Fails if a part of a configuration of edgecore names a key that the lab's does not have.
fn edgecore_has(page: &str, configuration: &Value, fragment: &Value) {
    for (key, value) in fragment.as_object().into_iter().flatten() {
        let there = configuration.get(key).unwrap_or_else(|| panic!("{page}: the lab's edgecore has no {key}"));
        assert_eq!(there.is_object(), value.is_object(), "{page}: {key}");
        edgecore_has(page, there, value);
    }
}

/// Calls a program with `--help` after the words of a command. The program refuses unknown
/// subcommands and flags, and does nothing else. The first URL and all words after it are left out:
/// a join token may begin with a hyphen, so a flag after it would be read as the token.
fn understood(mut command: Command, page: &str, line: &str, words: &[&str]) {
    let words = words.split(|word| word.contains("://")).next().unwrap_or_default();
    if let Err(why) = output(command.args(words).arg("--help")) {
        panic!("{page}: {line}: {why}");
    }
}

fn commands() {
    let kubectl = interop_tests::kube::ensure().unwrap().kubectl;
    let makefile = fs::read_to_string(workspace("Makefile")).unwrap();
    let mut seen = BTreeMap::<String, usize>::new();
    for Block { page, text, .. } in blocks().into_iter().filter(|block| block.language == "sh") {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let command = line.split(" # ").next().unwrap_or(line);
            let words: Vec<&str> = command.split_whitespace().collect();
            let (program, words) = words.split_first().expect("a program");
            match *program {
                "edge-agent" | "edge-controller" => understood(Command::new(built(program)), &page, line, words),
                "helm" => understood(helm(), &page, line, words),
                "kubectl" => understood(Command::new(&kubectl), &page, line, words),
                "make" => assert!(makefile.contains(&format!("\n{}:", words[0])), "{page}: {line}: no such target"),
                "systemctl" => {
                    for unit in words.iter().filter(|word| word.starts_with("edge-")) {
                        let file = if unit.contains('.') { (*unit).to_owned() } else { format!("{unit}.service") };
                        assert!(workspace("deploy/systemd").join(&file).is_file(), "{page}: {line}: no {file}");
                    }
                }
                "apt-get" | "ctr" | "podman" => {}
                other => panic!("{page}: {line}: nothing here knows {other}"),
            }
            // Checks the files in this repository that a command names.
            for path in words.iter().filter(|word| word.starts_with("deploy/") && !word.contains(':')) {
                assert!(Path::new(&workspace(path)).exists(), "{page}: {line}: {path} is missing");
            }
            *seen.entry((*program).to_owned()).or_default() += 1;
        }
    }
    for program in ["edge-agent", "edge-controller", "helm", "kubectl", "make", "systemctl"] {
        assert!(seen.contains_key(program), "no command of {program} was found: {seen:?}");
    }
}
