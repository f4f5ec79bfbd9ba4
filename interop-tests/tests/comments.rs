//! Checks that comments end at column 100. Only nightly rustfmt can check that (`comment_width`).

use std::fs;
use std::path::{Path, PathBuf};

/// The last column of a comment, in characters.
const WIDTH: usize = 100;

/// Returns all Rust source files in the workspace.
fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut directories: Vec<PathBuf> =
        ["agent", "cni", "controller", "ike", "interop-tests", "types", "xfrm"].map(|name| root.join(name)).into();
    let mut sources = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(path);
            }
        }
    }
    sources
}

/// Returns the numbers of lines that contain only a comment and are too long. Code, and examples in
/// comments (between "```" lines), may be as long as code.
fn long_comments(source: &str) -> Vec<usize> {
    let (mut example, mut long) = (false, Vec::new());
    for (number, line) in (1..).zip(source.lines()) {
        let Some(comment) = line.trim_start().strip_prefix("//") else {
            example = false;
            continue;
        };
        if comment.trim_start_matches(['/', '!']).trim_start().starts_with("```") {
            example = !example;
        } else if !example && line.chars().count() > WIDTH {
            long.push(number);
        }
    }
    long
}

#[test]
fn a_long_comment_is_found_and_code_is_none() {
    let long = "x".repeat(WIDTH);
    let source = format!("// {long}\n/// ```\n/// {long}\n/// ```\n/// {long}\nlet a = \"{long}\"; // b\n");
    assert_eq!(long_comments(&source), [1, 5]);
}

#[test]
fn comments_end_at_column_100() {
    let sources = sources();
    assert!(sources.len() > 400, "only {} sources were found", sources.len());
    let mut long = Vec::new();
    for path in sources {
        let lines = long_comments(&fs::read_to_string(&path).unwrap());
        long.extend(lines.into_iter().map(|line| format!("{}:{line}", path.display())));
    }
    assert!(long.is_empty(), "comments beyond column {WIDTH}:\n{}", long.join("\n"));
}
