//! Tables for eyes.

use comfy_table::{ContentArrangement, Table, presets};

/// A table without frames, as wide as the terminal.
pub(super) fn print<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    println!("{table}");
}

/// Several things in one cell.
pub(super) fn list<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    let things: Vec<String> = things.into_iter().map(|thing| thing.to_string()).collect();
    if things.is_empty() { "-".into() } else { things.join("\n") }
}
