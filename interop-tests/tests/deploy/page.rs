//! A page of the documentation with commands, and which of them have run.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;

use crate::programs::workspace;

/// The page, and the commands of it that have run.
pub(crate) struct Page {
    pub(crate) text: String,
    run: RefCell<BTreeSet<String>>,
}

impl Page {
    /// Reads a page of the workspace.
    pub(crate) fn read(path: &str) -> Self {
        let text = fs::read_to_string(workspace(path)).unwrap();
        // A block within a numbered list is indented.
        let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix("   ").unwrap_or(line)).collect();
        Self { text: lines.join("\n") + "\n", run: RefCell::default() }
    }

    /// Returns the blocks of code in this language below a heading of the second or third level, up
    /// to the next heading.
    pub(crate) fn blocks(&self, heading: &str, language: &str) -> Vec<&str> {
        let mut sections = self.text.split("\n## ").flat_map(|section| section.split("\n### "));
        let section = sections.find(|section| section.starts_with(&format!("{heading}\n")));
        let section = section.unwrap_or_else(|| panic!("the page has no heading {heading:?}"));
        let blocks = section.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
        blocks.filter(|(of, _)| *of == language).map(|(_, text)| text).collect()
    }

    /// Returns the commands of a block of shell, which the caller runs.
    pub(crate) fn commands(&self, heading: &str, block: usize) -> Vec<String> {
        let text = self.blocks(heading, "sh")[block];
        let commands: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
        self.run.borrow_mut().extend(commands.iter().cloned());
        commands
    }

    /// Returns all commands of the page.
    pub(crate) fn all_commands(&self) -> Vec<String> {
        let blocks = self.text.split("\n```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
        blocks.flat_map(str::lines).filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    }

    /// Notes that a command of the page has run.
    pub(crate) fn has_run(&self, line: &str) {
        self.run.borrow_mut().insert(line.to_owned());
    }

    /// Fails unless every command of the page has run, except for those that begin with one of
    /// these words. The page must have each of them.
    pub(crate) fn all_have_run_except(&self, not_run: &[&str]) {
        let run = self.run.borrow();
        let missing: Vec<String> = self.all_commands().into_iter().filter(|line| !run.contains(line)).collect();
        let is_excepted = |line: &String| not_run.iter().any(|words| line.starts_with(words));
        assert!(missing.iter().all(is_excepted), "these commands of the page do not run here: {missing:?}");
        for words in not_run {
            assert!(self.text.contains(&format!("\n{words}")), "{words} is not on the page");
        }
    }
}
