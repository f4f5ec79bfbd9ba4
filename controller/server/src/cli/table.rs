//! Prints tables for people, and single lines, on standard output.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};

/// Prints a table without frames, as wide as the terminal.
pub(super) fn print<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> anyhow::Result<()> {
    print_line(rendered(header, rows))
}

/// Formats a table without frames, as wide as the terminal.
pub(super) fn rendered<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    table
}

/// Writes a line. It is not an error if the reader, such as `head`, has closed the pipe: the
/// command still completes its work.
pub(super) fn print_line(line: impl Display) -> anyhow::Result<()> {
    match write(&line) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Writes a line that must not be lost. For such a line a closed pipe is an error.
pub(super) fn print_required_line(line: impl Display) -> anyhow::Result<()> {
    write(&line).context("cannot write to standard output")
}

fn write(line: &impl Display) -> io::Result<()> {
    let mut to = io::stdout().lock();
    writeln!(to, "{line}")?;
    to.flush()
}

/// Joins several values into the text of one table cell.
pub(super) fn list<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    let things: Vec<String> = things.into_iter().map(|thing| thing.to_string()).collect();
    if things.is_empty() { "-".into() } else { things.join("\n") }
}
