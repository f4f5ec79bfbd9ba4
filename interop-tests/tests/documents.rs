//! Checks that the files, directories and headings to which the documents refer exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The workspace directories whose files the documents name between backticks.
const FOLDERS: [&str; 9] = ["agent", "cni", "controller", "deploy", "docs", "ike", "interop-tests", "types", "xfrm"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Returns all Markdown files at the top level and below `docs`.
fn documents() -> Vec<PathBuf> {
    let mut documents = Vec::new();
    for directory in ["", "docs", "docs/cli", "docs/decisions", "docs/install"].map(|folder| root().join(folder)) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    documents
}

/// Returns the text without its code blocks, since code is not Markdown.
fn prose(text: &str) -> String {
    let mut code = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}

/// Returns the targets of `[text](target)`.
fn links(prose: &str) -> impl Iterator<Item = &str> {
    prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// Returns the anchors of a document's headings, in GitHub's form.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    headings
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|heading| heading.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect())
        .collect()
}

/// Returns the texts between backticks that look like paths of this workspace.
fn paths(prose: &str) -> impl Iterator<Item = &str> {
    let quoted = prose.split('`').skip(1).step_by(2);
    let complete = |word: &&str| !word.contains(|c: char| c.is_whitespace() || "*{<$:".contains(c));
    quoted
        .filter(complete)
        .filter(|word| word.split_once('/').is_some_and(|(first, rest)| FOLDERS.contains(&first) && !rest.is_empty()))
}

#[test]
fn files_and_headings_that_documents_link_to_are_there() {
    let (mut missing, mut seen) = (Vec::new(), 0);
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&prose(&text)).filter(|link| !link.contains("://")) {
            seen += 1;
            let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => document.clone(),
                file => document.parent().expect("a directory").join(file),
            };
            let found = target.exists()
                && anchor.is_none_or(|anchor| anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !found {
                missing.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(seen > 50, "only {seen} links were found: are the documents read right?");
    assert!(missing.is_empty(), "links to nothing:\n{}", missing.join("\n"));
}

#[test]
fn paths_that_documents_name_are_there() {
    let (mut missing, mut seen) = (Vec::new(), 0);
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for path in paths(&prose(&text)) {
            seen += 1;
            // Documents name Rust's modules without the file extension.
            let (plain, module) = (root().join(path), root().join(format!("{path}.rs")));
            if !plain.exists()
                && !module.exists()
                && interop_tests::scenario::find(&interop_tests::scenarios::all(), path).is_none()
            {
                missing.push(format!("{}: {path}", document.display()));
            }
        }
    }
    assert!(seen > 20, "only {seen} paths were found: are the documents read right?");
    assert!(missing.is_empty(), "paths of nothing:\n{}", missing.join("\n"));
}
