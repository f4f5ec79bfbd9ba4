//! Limits the log. Each event is one line, whatever text from outside it contains, and callers
//! without a certificate cannot fill a disk.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_controller_domain::text::is_invisible;
use serde_json::Value;

/// Maximum length of a line in bytes. A longer line is cut, and ends with a note about it.
pub(crate) const LONGEST_LINE: usize = 4 * 1024;
/// Maximum length of text from outside in a line, in characters. In a JSON line that is too long,
/// every text is shortened to this.
const LONGEST_TEXT: usize = 512;
/// Maximum number of log lines per second about peers without a certificate. Omitted lines are
/// counted, and the next line reports their number.
const STRANGERS_LINES: u32 = 20;
/// Maximum number of log lines per second about refused requests from nodes.
const NODES_LINES: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);

/// A writer of lines in a form that is safe for terminals and programs. Characters that move a
/// cursor, break a line or change the direction of text are written as in JSON (`\u001b`).
pub(crate) struct Lines<W>(W);

impl<W: Write> Lines<W> {
    /// Wraps a writer; each `write` is one event.
    pub(crate) fn new(to: W) -> Self {
        Self(to)
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let mut written = match line.len() > LONGEST_LINE {
            true => cut(line),
            false => escape(line),
        };
        written.push('\n');
        self.0.write_all(written.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn escape(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len() + 1);
    for c in line.chars() {
        match c {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c if is_invisible(c) => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// Shortens a line that is too long. A JSON line stays JSON.
fn cut(line: &str) -> String {
    if let Ok(mut value @ Value::Object(_)) = serde_json::from_str(line) {
        cut_texts(&mut value);
        let shorter = value.to_string();
        if shorter.len() <= 2 * LONGEST_LINE {
            return escape(&shorter);
        }
        return serde_json::json!({"level": "WARN", "message": format!("a line of {} bytes was left out", line.len())})
            .to_string();
    }
    let end = line.floor_char_boundary(LONGEST_LINE);
    format!("{}... ({} bytes were cut off)", escape(line.get(..end).unwrap_or_default()), line.len() - end)
}

fn cut_texts(value: &mut Value) {
    match value {
        Value::String(text) => *text = shortened(text).into_owned(),
        Value::Array(all) => all.iter_mut().for_each(cut_texts),
        Value::Object(all) => all.values_mut().for_each(cut_texts),
        _ => {}
    }
}

/// Shortens text from outside to [`LONGEST_TEXT`].
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()).into(),
        None => text.into(),
    }
}

/// Returns whether a line about a peer without a certificate may be written now. Also logs how many
/// such lines were omitted before.
pub(crate) fn may_log_stranger() -> bool {
    static QUOTA: Mutex<Quota> = Mutex::new(Quota::of(STRANGERS_LINES));
    may_log(&QUOTA, "strangers")
}

/// Returns whether a line about a refused request from a node may be written now. Also logs how
/// many such lines were omitted before.
pub(crate) fn may_log_node() -> bool {
    static QUOTA: Mutex<Quota> = Mutex::new(Quota::of(NODES_LINES));
    may_log(&QUOTA, "what nodes were refused")
}

fn may_log(quota: &Mutex<Quota>, about: &str) -> bool {
    let taken = quota.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
    if let Some(left_out) = taken.filter(|left_out| *left_out > 0) {
        tracing::info!("{left_out} lines about {about} were left out");
    }
    taken.is_some()
}

#[derive(Debug)]
struct Quota {
    per_second: u32,
    began: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl Quota {
    const fn of(per_second: u32) -> Self {
        Self { per_second, began: None, logged: 0, left_out: 0 }
    }

    /// Returns the number of lines that were omitted before this one; `None` if no line may be
    /// written now.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= SECOND) {
            (self.began, self.logged) = (Some(now), 0);
        }
        if self.logged >= self.per_second {
            self.left_out += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: &str) -> String {
        let mut to = Vec::new();
        Lines::new(&mut to).write_all(event.as_bytes()).unwrap();
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn nothing_breaks_a_line_moves_a_cursor_or_turns_text_around() {
        let evil = "a\nINFO forged\r\x1b[2J\x07\u{9b}31m\u{202e}gnp\u{2028}\u{200b}\u{e0041}b \u{7f}\t\u{e4}\n";
        assert_eq!(
            written(evil),
            "a\\nINFO forged\\r\\u001b[2J\\u0007\\u009b31m\\u202egnp\\u2028\\u200b\\udb40\\udc41b \\u007f\\t\u{e4}\n"
        );
    }

    #[test]
    fn long_lines_are_cut_and_say_so_and_those_of_json_stay_json() {
        let line = written(&"\u{e4}".repeat(LONGEST_LINE));
        assert!(line.len() < LONGEST_LINE + 100 && line.ends_with(" bytes were cut off)\n"), "{}", line.len());
        let event =
            serde_json::json!({"level": "INFO", "fields": {"message": "x\u{202e}".repeat(LONGEST_LINE), "n": 1}});
        let line = written(&format!("{event}\n"));
        let read: Value = serde_json::from_str(&line).unwrap();
        assert!(line.len() < LONGEST_LINE && read["fields"]["n"] == 1 && !line.contains('\u{202e}'), "{line}");
        let many = serde_json::json!({"list": vec!["y"; 4 * LONGEST_LINE]}).to_string();
        let read: Value = serde_json::from_str(&written(&many)).unwrap();
        assert!(read["message"].as_str().unwrap().contains("left out"));
    }

    #[test]
    fn strangers_get_few_lines_a_second_and_the_rest_is_counted() {
        let (mut quota, now) = (Quota::of(STRANGERS_LINES), Instant::now());
        let logged = (0..1000).filter_map(|_| quota.take(now)).count();
        assert_eq!(logged, STRANGERS_LINES as usize);
        assert_eq!(quota.take(now + SECOND), Some(1000 - u64::from(STRANGERS_LINES)));
        assert_eq!(quota.take(now + SECOND), Some(0));
    }
}
