//! Shows the steps of the tour on standard error.

use std::cell::Cell;

use anyhow::{Context as _, Result};

/// Columns of the narration.
const WIDTH: usize = 96;

/// Shows the steps. On a terminal it waits for Enter after each one.
pub(super) struct Guide {
    terminal: bool,
    steps: Cell<u32>,
}

impl Guide {
    pub(super) fn new(terminal: bool) -> Self {
        Self { terminal, steps: Cell::new(0) }
    }

    /// Shows a step's title and what happens in it.
    pub(super) fn step(&self, title: &str, about: &str) {
        self.steps.set(self.steps.get() + 1);
        eprintln!("\n== {}. {title}\n\n{}\n", self.steps.get(), wrapped(about));
    }

    /// Shows a picture as it is.
    pub(super) fn picture(&self, text: &str) {
        eprintln!("{text}\n");
    }

    /// Shows a command and its output.
    pub(super) fn output(&self, command: &str, text: &str) {
        eprintln!("  $ {command}");
        text.trim_end().lines().for_each(|line| eprintln!("    {line}"));
        eprintln!();
    }

    /// Waits until the person wants to go on.
    ///
    /// # Errors
    /// Returns an error if the terminal is gone.
    pub(super) fn wait(&self) -> Result<()> {
        if !self.terminal {
            return Ok(());
        }
        eprint!("-- Enter: go on ");
        let read = std::io::stdin().read_line(&mut String::new()).context("reading the terminal")?;
        anyhow::ensure!(read > 0, "the terminal was closed");
        Ok(())
    }
}

/// Breaks a text into lines of at most [`WIDTH`] columns. A longer word has its own line.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_words() {
        let text = ["word"; 60].join(" ");
        let lines: Vec<String> = wrapped(&text).lines().map(str::to_owned).collect();
        assert!(lines.iter().all(|line| line.len() <= WIDTH && !line.ends_with(' ')), "{lines:?}");
        assert_eq!(lines.join(" "), text);
        let long = "x".repeat(WIDTH + 1);
        assert_eq!(wrapped(&format!("a {long} b")), format!("a\n{long}\nb"));
    }
}
